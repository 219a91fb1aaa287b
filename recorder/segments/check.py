"""Checks a segment's bytes: which rows a commit vouches for, and what is damaged. Pure; never raises on damage.

Nothing is decoded before the checksum over it was found right: Arrow's reader trusts the lengths it reads, and
of random single-bit flips 80 to 91 % come back from it as wrong data without an error.
"""

import zlib
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from recorder.segments.encode import END_OF_STREAM, FOOTER_MAGIC, FORMAT_VERSION, MAGIC, Identity
from recorder.segments.schemas import SCHEMAS, stream_kind

# What pyarrow raises on bytes that are no Arrow message. ArrowInvalid is a ValueError, ArrowIOError an OSError;
# metadata that is no UTF-8 or lacks a key raises the rest.
_ARROW_ERRORS = (pa.ArrowException, OSError, ValueError, KeyError, TypeError)


@dataclass(frozen=True)
class Group:
    """One flush whose commit agrees: its place in the file and its rows."""

    number: int
    offset_bytes: int
    end_bytes: int
    batch: pa.RecordBatch


@dataclass(frozen=True)
class Damage:
    """One thing that is wrong, and where."""

    offset_bytes: int
    what: str

    def __str__(self) -> str:
        return f"at byte {self.offset_bytes}: {self.what}"


@dataclass
class Checked:
    """What a segment's bytes hold.

    `groups` are all that a commit vouches for, also those after a damaged one; `whole_bytes` is the end of the
    last good group before any damage (where a live file may still be growing). `sealed` says that the file ends
    in end-of-stream and a footer through which a stock reader sees just these groups.
    """

    schema: pa.Schema | None = None
    identity: Identity | None = None
    groups: list[Group] = field(default_factory=list)
    damage: list[Damage] = field(default_factory=list)
    header_bytes: int = 0
    whole_bytes: int = 0
    size_bytes: int = 0
    crc32: str = ""  # what the last good commit states; "" if there is none
    sealed: bool = False
    newer_version: str = ""  # set if the format is newer than this program knows

    @property
    def rows(self) -> int:
        """How many rows a commit vouches for."""
        return sum(group.batch.num_rows for group in self.groups)

    @property
    def table(self) -> pa.Table:
        """The vouched rows as one table. Only with a schema."""
        return pa.Table.from_batches([group.batch for group in self.groups], schema=self.schema)


def check(data: bytes | memoryview | pa.Buffer) -> Checked:
    """Check the bytes of one segment file, sealed, live, or torn.

    A live file's normal torn tail is a Damage too: whoever reads a live file passes over it.
    """
    buffer = data if isinstance(data, pa.Buffer) else pa.py_buffer(data)
    checked = Checked(size_bytes=buffer.size)
    walk = _Walk(buffer, checked)
    if walk.read_schema():
        walk.read_groups()
        if checked.damage == []:
            walk.read_end()
    return checked


class _Walk:
    """One pass over the messages of a segment."""

    def __init__(self, buffer: pa.Buffer, checked: Checked) -> None:
        self.buffer = buffer
        self.view = memoryview(buffer)
        self.checked = checked
        self.source = pa.BufferReader(buffer.slice(min(len(MAGIC), buffer.size)))
        self.messages = pa.ipc.MessageReader.open_stream(self.source)
        self.header = b""

    def tell(self) -> int:
        return len(MAGIC) + int(self.source.tell())

    def damaged(self, offset_bytes: int, what: str) -> None:
        self.checked.damage.append(Damage(offset_bytes, what))

    def next_message(self) -> Any | None:
        """Return the next message; None at an end-of-stream mark, at the end of the bytes, or at damage."""
        offset = self.tell()
        try:
            return self.messages.read_next_message()
        except StopIteration:
            return None
        except _ARROW_ERRORS as exc:
            self.damaged(offset, f"no whole Arrow message ({_first_line(exc)})")
            return None

    def read_schema(self) -> bool:
        if bytes(self.view[: len(MAGIC)]) != MAGIC:
            self.damaged(0, "not a segment: the file does not begin with the Arrow file magic")
            return False
        message = self.next_message()
        if message is None or message.type != "schema":
            if not self.checked.damage:
                self.damaged(len(MAGIC), "no schema")
            return False
        try:
            schema = pa.ipc.read_schema(message)
            metadata = {key.decode(): value.decode() for key, value in (schema.metadata or {}).items()}
            version = metadata.pop("format_version")
            if version != str(FORMAT_VERSION):
                # Before any checksum was found right a version is only a claim, but so is "newer": leave it be.
                self.checked.newer_version = version
                self.damaged(len(MAGIC), f"format version {version} is not known to this program, which knows 1")
                return False
            identity = Identity(**metadata)
        except _ARROW_ERRORS as exc:
            self.damaged(len(MAGIC), f"the schema does not name a segment ({_first_line(exc)})")
            return False
        kind = stream_kind(identity.stream)
        if kind is None or not schema.remove_metadata().equals(SCHEMAS[kind]):
            self.damaged(len(MAGIC), f"the columns are not those of stream {identity.stream!r}")
            return False
        self.checked.schema, self.checked.identity = schema, identity
        self.header = bytes(self.view[len(MAGIC) : self.tell()])
        self.checked.header_bytes = self.checked.whole_bytes = self.tell()
        return True

    def read_groups(self) -> None:
        chain_offset, chain_crc, expected = 0, 0, 0
        while True:
            offset = self.tell()
            rows = self.next_message()
            if rows is None:
                return
            commit_offset = self.tell()
            commit = self.next_message()
            if commit is None:
                if not self.checked.damage:
                    self.damaged(offset, "rows without a commit")
                return
            stated = self.read_commit(commit_offset)
            if stated is None:
                self.damaged(commit_offset, "no commit where one belongs")
                return
            number, crc_text = stated
            crc = zlib.crc32(self.view[chain_offset:commit_offset], chain_crc)
            if number != expected:
                self.damaged(offset, f"commit {number} where {expected} belongs")
            elif f"{crc:08x}" != crc_text:
                self.damaged(offset, f"the checksum of commit {number} does not fit")
            else:
                self.accept(number, offset, rows, crc_text)
            # Past damage the chain goes on from what the commit before states.
            chain_offset, chain_crc, expected = commit_offset, int(crc_text, 16), number + 1

    def read_commit(self, offset: int) -> tuple[int, str] | None:
        """Return (number, crc32 as written) of the commit batch that begins at `offset`, if it is one."""
        stream = self.header + bytes(self.view[offset : self.tell()])
        try:
            read = pa.ipc.open_stream(pa.py_buffer(stream)).read_next_batch_with_custom_metadata()
            number = int(read.custom_metadata[b"commit"])
            crc_text = read.custom_metadata[b"crc32"].decode()
            if read.batch.num_rows or number < 0 or f"{int(crc_text, 16):08x}" != crc_text:
                return None
        except (*_ARROW_ERRORS, StopIteration):
            return None
        return number, crc_text

    def accept(self, number: int, offset: int, rows: Any, crc_text: str) -> None:
        try:
            batch = pa.ipc.read_record_batch(rows, self.checked.schema)
            batch.validate(full=True)
        except _ARROW_ERRORS as exc:
            self.damaged(offset, f"commit {number} vouches for rows that cannot be read ({_first_line(exc)})")
            return
        self.checked.groups.append(Group(number, offset, self.tell(), batch))
        self.checked.crc32 = crc_text
        if not self.checked.damage:
            self.checked.whole_bytes = self.tell()

    def read_end(self) -> None:
        """After the last commit: end-of-stream and footer, or nothing (live), or damage."""
        end = self.checked.whole_bytes
        tail = self.view[end:]
        if len(tail) == 0:
            return
        footer_bytes = len(tail) - len(END_OF_STREAM) - 4 - len(FOOTER_MAGIC)
        if (
            footer_bytes <= 0
            or bytes(tail[: len(END_OF_STREAM)]) != END_OF_STREAM
            or bytes(tail[-len(FOOTER_MAGIC) :]) != FOOTER_MAGIC
            or int.from_bytes(tail[-len(FOOTER_MAGIC) - 4 : -len(FOOTER_MAGIC)], "little") != footer_bytes
        ):
            self.damaged(end, f"{len(tail)} bytes after the last commit that are no footer")
            return
        problem = self.compare_footer()
        if problem:
            self.damaged(end, problem)
            return
        self.checked.sealed = True

    def compare_footer(self) -> str:
        """Read the file as a stock reader does; return what differs from the checked stream, or ""."""
        try:
            file = pa.ipc.open_file(self.buffer)
            if not file.schema.equals(self.checked.schema, check_metadata=True):
                return "the footer names another schema than the file begins with"
            if file.num_record_batches != 2 * len(self.checked.groups):
                return (
                    f"the footer names {file.num_record_batches} batches, the file has {2 * len(self.checked.groups)}"
                )
            for index, group in enumerate(self.checked.groups):
                if not _same_buffers(file.get_batch(2 * index), group.batch):
                    return f"the footer leads to other rows than group {group.number}"
                commit = file.get_batch_with_custom_metadata(2 * index + 1)
                if commit.batch.num_rows or int(commit.custom_metadata[b"commit"]) != group.number:
                    return f"the footer leads to another commit than {group.number}"
        except (*_ARROW_ERRORS, IndexError) as exc:
            return f"the footer cannot be read ({_first_line(exc)})"
        return ""


def _same_buffers(one: pa.RecordBatch, other: pa.RecordBatch) -> bool:
    """Compare two batches by their bytes: unlike `equals`, this holds for NaN."""
    return bool(
        one.num_rows == other.num_rows
        and one.schema.equals(other.schema)
        and all(
            len(a.buffers()) == len(b.buffers())
            and all((x is None and y is None) or (x is not None and y is not None and x.equals(y))
                    for x, y in zip(a.buffers(), b.buffers(), strict=True))
            for a, b in zip(one.columns, other.columns, strict=True)
        )
    )  # fmt: skip


def _first_line(exc: BaseException) -> str:
    return str(exc).splitlines()[0][:160] if str(exc) else type(exc).__name__
