"""Judges what was returned of a damaged segment; shares no code with the product's readers: plain pyarrow, zlib."""

import zlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

MAGIC = b"ARROW1\0\0"
Row = tuple[Any, ...]


@dataclass(frozen=True)
class Place:
    """Where one group of a sound segment lies."""

    start: int
    commit: int
    end: int


@dataclass(frozen=True)
class Original:
    """A sound segment, sealed or live, as it was written."""

    data: bytes
    header_end: int
    groups: tuple[Place, ...]
    rows: tuple[tuple[Row, ...], ...]  # of each group

    @property
    def end(self) -> int:
        """Where the last commit ends."""
        return self.groups[-1].end if self.groups else self.header_end

    @property
    def sealed(self) -> bool:
        return self.end < len(self.data)

    @property
    def live(self) -> "Original":
        """The same segment before it was sealed."""
        return Original(self.data[: self.end], self.header_end, self.groups, self.rows)

    def unchanged(self, damaged: bytes) -> frozenset[int]:
        """The groups that damage in place left provable: all that their commit vouches for since the one before."""
        if damaged[: self.header_end] != self.data[: self.header_end] and (
            not self.sealed or damaged[self.end :] != self.data[self.end :]
        ):
            return frozenset()  # nothing tells any more what segment it is
        starts = [0, *(place.commit for place in self.groups)]
        return frozenset(
            number
            for number, (start, place) in enumerate(zip(starts, self.groups, strict=False))
            if damaged[start : place.end] == self.data[start : place.end]
        )


def read(data: bytes) -> Original:
    """Take a sound segment apart, and hold it against docs/format.md on the way."""
    assert data.startswith(MAGIC)
    source = pa.BufferReader(data[len(MAGIC) :])
    messages = pa.ipc.MessageReader.open_stream(source)
    schema = pa.ipc.read_schema(messages.read_next_message())
    header_end = at = len(MAGIC) + source.tell()
    places: list[Place] = []
    rows: list[tuple[Row, ...]] = []
    while True:
        try:
            message = messages.read_next_message()
        except StopIteration:
            break
        commit = len(MAGIC) + source.tell()
        messages.read_next_message()
        end = len(MAGIC) + source.tell()
        stated = metadata_of(data[len(MAGIC) : header_end], data[commit:end])
        assert stated[b"commit"] == str(len(places)).encode()
        assert stated[b"crc32"] == f"{zlib.crc32(data[:commit]):08x}".encode()
        places.append(Place(at, commit, end))
        rows.append(tuple(tuples(pa.ipc.read_record_batch(message, schema))))
        at = end
    return Original(data, header_end, tuple(places), tuple(rows))


def metadata_of(schema_message: bytes, commit: bytes) -> dict[bytes, bytes]:
    """The custom metadata of a commit batch, as any Arrow reader sees it."""
    reader = pa.ipc.open_stream(pa.BufferReader(schema_message + commit))
    found = reader.read_next_batch_with_custom_metadata()
    assert found.batch.num_rows == 0
    return dict(found.custom_metadata)


def tuples(rows: Any) -> list[Row]:
    """The rows of a table or a batch; times as numbers, so that nothing is rounded."""
    columns = [column.cast(pa.int64()) if pa.types.is_timestamp(column.type) else column for column in rows.columns]
    return list(zip(*(column.to_pylist() for column in columns), strict=True))


def judge(found: Iterable[Row], original: Original, *, kept: Iterable[int], what: object) -> None:
    """Say whether these may be what was returned: nothing that was not written, nothing twice, all that is kept."""
    there = Counter(found)
    written = Counter(row for rows in original.rows for row in rows)
    due = Counter(row for number in kept for row in original.rows[number])
    for wrong, excess in (("rows twice, or never written", there - written), ("good rows are lost", due - there)):
        assert not excess, (what, wrong, excess.total(), min(excess, key=str))


def sealed_rows(root: Path, stream: str) -> list[Row]:
    """What a stock reader sees in a stream's folder."""
    found: list[Row] = []
    for path in sorted((root / stream).glob("date=*/*.arrow")):
        found += tuples(pa.ipc.open_file(path.read_bytes()).read_all())
    return found
