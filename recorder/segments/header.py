"""Finds out what a segment is by its beginning, or by what else tells the same where that is damaged."""

import zlib
from collections.abc import Iterator

import pyarrow as pa

from recorder.segments.encode import FOOTER_MAGIC, FORMAT_VERSION, MAGIC, Identity
from recorder.segments.messages import ARROW_ERRORS, find_commits, first_line
from recorder.segments.schemas import SCHEMAS, stream_kind

Header = tuple[pa.Schema, Identity, bytes]  # the last is the schema message


class Refused(ValueError):
    """A schema that no segment of this version begins with."""


def identity_of(schema: pa.Schema) -> Identity:
    """Return who a segment is that begins with this schema.

    Raises:
        Refused: none of this version begins so.
        Any of ARROW_ERRORS: it does not name a segment.
    """
    metadata = {key.decode(): value.decode() for key, value in (schema.metadata or {}).items()}
    version = metadata.pop("format_version", "")
    if version != str(FORMAT_VERSION):
        raise Refused(f"it is of format version {version!r}")
    try:
        identity = Identity(**metadata)
    except TypeError as exc:
        raise Refused(f"the schema does not name a segment ({first_line(exc)})") from exc
    kind = stream_kind(identity.stream)
    if kind is None or not schema.equals(SCHEMAS[kind]):
        raise Refused(f"the columns are not those of stream {identity.stream!r}")
    return identity


def newer_version(schema: pa.Schema | None) -> str:
    """Return the version that a schema claims if it is newer than this program knows, else an empty text."""
    claimed = ((schema.metadata if schema is not None else None) or {}).get(b"format_version", b"")
    text = claimed.decode(errors="replace")
    return text if text.isascii() and text.isdigit() and int(text[:20]) > FORMAT_VERSION else ""


def find_header(buffer: pa.Buffer, schema: pa.Schema | None, in_place: bytes = b"") -> Header | None:
    """Find the header that the file's first commit vouches for, where that in its place does not do.

    Args:
        buffer: the file.
        schema: what the header in its place says; None if it cannot be read.
        in_place: the message in its place, which the first commit does not vouch for.
    """
    for better in _repairs(buffer, schema):
        message = _message(better)
        identity = None if message == in_place else _identity_or_none(better)
        if identity is not None and _proves(buffer, message):
            return better, identity, message
    return None


def header_in_footer(buffer: pa.Buffer) -> Header | None:
    """Return the header that the footer of a file repeats; None if it does not end in that of a segment."""
    schema = _schema_in_footer(memoryview(buffer))
    identity = None if schema is None else _identity_or_none(schema)
    return None if schema is None or identity is None else (schema, identity, _message(schema))


def _repairs(buffer: pa.Buffer, schema: pa.Schema | None) -> Iterator[pa.Schema]:
    """Yield what the header may have been: as the footer repeats it, or with one word, or a padding, put right."""
    footer = _schema_in_footer(memoryview(buffer))
    if footer is not None:
        yield footer
    if schema is not None and schema.metadata:
        yield schema
        yield schema.with_metadata({**schema.metadata, b"format_version": str(FORMAT_VERSION).encode()})
        stated = {commit.segment for commit in find_commits(buffer, len(MAGIC), _message(schema))} - {""}
        if len(stated) == 1:  # else there are groups of another segment among them
            yield schema.with_metadata({**schema.metadata, b"segment_id": stated.pop().encode()})


def _identity_or_none(schema: pa.Schema) -> Identity | None:
    try:
        return identity_of(schema)
    except (*ARROW_ERRORS, Refused):
        return None


def _proves(buffer: pa.Buffer, message: bytes) -> bool:
    """Whether the file's first commit states the checksum of a file that begins with this schema message."""
    header = MAGIC + message
    commit = next(find_commits(buffer, len(MAGIC), message), None)
    if commit is None or commit.number:
        return False
    rows = memoryview(buffer)[len(header) : commit.offset_bytes]
    return f"{zlib.crc32(rows, zlib.crc32(header)):08x}" == commit.crc32


def _schema_in_footer(view: memoryview) -> pa.Schema | None:
    """Return the schema that the footer of a file repeats; None if the file does not end in a footer."""
    ending = len(FOOTER_MAGIC) + 4
    if len(view) < ending or bytes(view[-len(FOOTER_MAGIC) :]) != FOOTER_MAGIC:
        return None
    footer_bytes = int.from_bytes(view[-ending : -len(FOOTER_MAGIC)], "little")
    if footer_bytes + ending > len(view):
        return None
    try:
        return pa.ipc.open_file(pa.py_buffer(MAGIC + bytes(view[-ending - footer_bytes :]))).schema
    except ARROW_ERRORS:
        return None


def _message(schema: pa.Schema) -> bytes:
    return bytes(schema.serialize().to_pybytes())
