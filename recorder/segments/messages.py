"""Finds what a segment's bytes are made of: messages, commits, and the end. Pure; no length in them is believed.

Arrow's readers are asked about whole messages only, out of a buffer that ends where the file ends, so that a length
which claims more than is there is an error and no allocation.
"""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import pyarrow as pa

from recorder.segments.encode import END_OF_STREAM, FOOTER_MAGIC, believed_rows
from recorder.segments.footer import Malformed, sizes_of_commit

# What pyarrow raises on bytes that are no Arrow message. ArrowInvalid is a ValueError, ArrowIOError an OSError;
# metadata that is no UTF-8 or lacks a key, and an offset past the end, raise the rest.
ARROW_ERRORS = (pa.ArrowException, OSError, EOFError, ValueError, KeyError, IndexError, TypeError)

# A commit has no rows: its metadata takes less than 2 KiB, its body a few bytes for each column of text. What is
# larger is none, and is not decoded to find out.
_COMMIT_METADATA_BYTES = 64 * 1024
_COMMIT_BODY_BYTES = 8 * 1024
# The mark that each message begins with, and a length of metadata below 64 KiB.
_MESSAGE_START = re.compile(rb"\xff\xff\xff\xff[\x00-\xff]{2}\x00\x00")
_COMMIT_KEY = re.compile(rb"crc32")
_MUST = {"commit", "crc32"}
_ROWS = {"rows", "rows_crc32"}
# Any other key may be a flipped bit in one of these.
_KEYS = (_MUST, _MUST | {"segment"}, _MUST | _ROWS, _MUST | {"segment"} | _ROWS)


# A flush is small: to hand its columns to a pool of threads takes three times as long as to do it here.
ONE_THREAD = pa.ipc.IpcReadOptions(use_threads=False)


class Commit(NamedTuple):
    """A commit batch, as it states itself."""

    offset_bytes: int
    end_bytes: int
    number: int
    crc32: str
    segment: str  # the segment_id it is of; empty if it does not say
    rows: int | None  # of the file, up to it; None if it does not say


def message_at(buffer: pa.Buffer, offset_bytes: int) -> tuple[Any, int]:
    """Read the message that begins at an offset; return it, and where it ends.

    Raises:
        Any of ARROW_ERRORS: there is none, or an end-of-stream mark.
    """
    source = pa.BufferReader(buffer.slice(offset_bytes))
    message = pa.ipc.read_message(source)
    return message, offset_bytes + int(source.tell())


def commit_at(buffer: pa.Buffer, offset_bytes: int, schema_message: bytes) -> Commit | None:
    """Read the commit batch that begins at an offset; None if none does.

    Args:
        buffer: the file.
        offset_bytes: where.
        schema_message: of a schema with the segment's columns, for Arrow's reader.
    """
    try:
        message, end_bytes = message_at(buffer, offset_bytes)
        body_bytes = message.body.size if message.body else 0
        if (
            message.type != "record batch"
            or body_bytes > _COMMIT_BODY_BYTES
            or end_bytes - offset_bytes - body_bytes > _COMMIT_METADATA_BYTES
        ):
            return None
        said = buffer.slice(offset_bytes, end_bytes - offset_bytes).to_pybytes()
        stream = pa.py_buffer(schema_message + said)
        read = pa.ipc.open_stream(stream, options=ONE_THREAD).read_next_batch_with_custom_metadata()
        read.batch.validate(full=True)
        stated = {key.decode(): value.decode() for key, value in (read.custom_metadata or {}).items()}
        number, crc32 = int(stated["commit"]), stated["crc32"]
        rows = believed_rows(stated["rows"], stated["rows_crc32"]) if "rows" in stated else None
        if (
            read.batch.num_rows
            or stated.keys() not in _KEYS
            or str(number) != stated["commit"]
            or number < 0
            or stated.get("segment") == ""
            # Told or not there at all: a shorter list of what is stated may be a flipped bit.
            or any((key in said) != (key.decode() in stated) for key in (b"segment", b"rows_crc32"))
            or f"{int(crc32, 16):08x}" != crc32
            or (rows is None and "rows" in stated)
        ):
            return None
        return Commit(offset_bytes, end_bytes, number, crc32, stated.get("segment", ""), rows)
    except (*ARROW_ERRORS, StopIteration):
        return None


def exact(buffer: pa.Buffer, commit: Commit) -> Commit:
    """Return a commit that ends where its content ends: its lengths may have been damaged, and take in what follows.

    What follows is in no commit then; zeros are its own padding.
    """
    start = commit.offset_bytes
    data = buffer.slice(start, commit.end_bytes - start).to_pybytes()
    metadata_bytes = int.from_bytes(data[4:8], "little")
    try:
        used_bytes, body_bytes = sizes_of_commit(data[8 : 8 + metadata_bytes])
    except Malformed:
        return commit
    metadata_end = 8 + _padded(used_bytes)
    if any(data[metadata_end : 8 + metadata_bytes]):
        return commit._replace(end_bytes=start + metadata_end)
    end = 8 + metadata_bytes + _padded(body_bytes)
    return commit._replace(end_bytes=start + end) if any(data[end:]) else commit


def _padded(size_bytes: int) -> int:
    return -(-size_bytes // 8) * 8


def find_commits(buffer: pa.Buffer, start_bytes: int, schema_message: bytes) -> Iterator[Commit]:
    """Find all commit batches from an offset on, whatever lies between them.

    Nearly all that looks like the beginning of a message is passed over without a look at it, for every commit has
    its key in its metadata: bytes that were made to look like beginnings cost no more than others.
    """
    view = memoryview(buffer)
    at, key_at = start_bytes, -1
    while match := _MESSAGE_START.search(view, at):
        metadata = match.end()
        if key_at < metadata:
            key = _COMMIT_KEY.search(view, metadata)
            if key is None:
                return
            key_at = key.start()
        if key_at - metadata > _COMMIT_METADATA_BYTES:
            at = key_at - _COMMIT_METADATA_BYTES
            continue
        at = match.start() + 1
        if key_at < metadata + int.from_bytes(view[metadata - 4 : metadata], "little"):
            commit = commit_at(buffer, match.start(), schema_message)
            if commit is not None:
                commit = exact(buffer, commit)
                yield commit
                at = commit.end_bytes


def footer_in(tail: memoryview) -> bytes | None:
    """Return the footer if bytes are exactly an end-of-stream mark and a footer that ends the file, else None."""
    footer_bytes = len(tail) - len(END_OF_STREAM) - 4 - len(FOOTER_MAGIC)
    if (
        footer_bytes <= 0
        or bytes(tail[: len(END_OF_STREAM)]) != END_OF_STREAM
        or bytes(tail[-len(FOOTER_MAGIC) :]) != FOOTER_MAGIC
        or int.from_bytes(tail[-len(FOOTER_MAGIC) - 4 : -len(FOOTER_MAGIC)], "little") != footer_bytes
    ):
        return None
    return bytes(tail[len(END_OF_STREAM) : len(END_OF_STREAM) + footer_bytes])


def first_line(exc: BaseException) -> str:
    """Return what an error of Arrow says, as part of a sentence."""
    return str(exc).splitlines()[0][:160] if str(exc) else type(exc).__name__
