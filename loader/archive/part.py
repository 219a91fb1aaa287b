"""One part as Parquet: sorted and written in slices, read back and compared in slices; bounded in memory.

A part's rows are held in memory once. What is sorted, written, or compared is a row group of them at a time.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from loader.archive.plan import ROW_GROUP_ROWS
from loader.errors import ArchiveDamaged
from loader.prepare import instrument_order
from recorder.runtime import disk
from recorder.segments.manifest import ArchivedSegment, Manifest
from recorder.segments.schemas import SCHEMAS, stream_kind

SEGMENT = "segment"  # the last column: the segment_id
_READ_BYTES = 1024 * 1024


@dataclass(frozen=True)
class Written:
    """The bytes of a part, as they were handed to the disk."""

    bytes: int
    sha256: str


class Rows:
    """The rows of a part, by instrument and then by time; rows of one time stay in the order of the tape."""

    def __init__(self, stream: str, segments: Sequence[ArchivedSegment], tables: list[pa.Table]) -> None:
        """Take the rows of whole segments.

        Args:
            stream: whose they are.
            segments: in the order of the tape.
            tables: the rows of each; the list is emptied, so that they are not held twice.
        """
        self.schema = part_schema(stream)
        codes = np.repeat(np.arange(len(segments), dtype=np.int32), [segment.rows for segment in segments])
        ids = pa.array([segment.segment_id for segment in segments], pa.string())
        table = pa.concat_tables(tables)
        tables.clear()
        for place, name in enumerate(table.column_names):
            # Column by column: the chunks of one are given back before the next is joined.
            table = table.set_column(place, name, table[name].combine_chunks())
            pa.default_memory_pool().release_unused()
        self._table = table.append_column(SEGMENT, pa.DictionaryArray.from_arrays(pa.array(codes), ids))
        self._order = instrument_order(table, by_name=True)

    @property
    def count(self) -> int:
        """How many there are."""
        return int(self._table.num_rows)

    def row_groups(self) -> Iterator[pa.Table]:
        """Yield the rows of one row group after another, in the columns of a part."""
        for start in range(0, self.count, ROW_GROUP_ROWS):
            yield self._table.take(pa.array(self._order[start : start + ROW_GROUP_ROWS])).cast(self.schema)


def part_schema(stream: str) -> pa.Schema:
    """Return the columns of a stream's parts: the tape's, then `segment`."""
    return SCHEMAS[stream_kind(stream) or ""].append(pa.field(SEGMENT, pa.string()))


def write(draft: Path, rows: Rows, *, compression: str, check: Callable[[], None]) -> Written:
    """Write a part as a new file, durably, name included.

    Raises:
        OSError: the disk refused.
        ArchiveDamaged: the rows have no form in Parquet.
    """
    fd = disk.create(draft)
    sink = _Sink(fd)
    try:
        # Without Arrow's own schema in the metadata every reader sees the types that Parquet has for them.
        with pq.ParquetWriter(sink, rows.schema, compression=compression, store_schema=False) as writer:
            for group in rows.row_groups():
                check()
                writer.write_table(group, row_group_size=ROW_GROUP_ROWS)
        disk.fsync(fd)
    except pa.ArrowException as exc:
        raise ArchiveDamaged(f"its rows cannot be written as Parquet: {' '.join(str(exc).split())}") from exc
    finally:
        os.close(fd)
    disk.fsync_dir(draft.parent)
    return Written(sink.tell(), sink.sha256.hexdigest())


def verify(file: BinaryIO, rows: Rows, written: Written, check: Callable[[], None]) -> None:
    """Compare what lies in the archive with what was written, byte by byte, and with the rows, value by value.

    Raises:
        ArchiveDamaged: something differs.
    """
    _compare_bytes(file, written.bytes, written.sha256, check)
    parquet = _opened(file, rows.schema)
    groups = 0
    for expected in rows.row_groups():
        check()
        if groups >= parquet.num_row_groups or not same_rows(expected, parquet.read_row_group(groups)):
            raise ArchiveDamaged(f"it reads back other rows than were written, in row group {groups}")
        groups += 1
    if groups != parquet.num_row_groups or parquet.metadata.num_rows != rows.count:
        raise ArchiveDamaged("it reads back more rows than were written")


def read_part(file: BinaryIO, manifest: Manifest, check: Callable[[], None]) -> pa.Table:
    """Return the rows of a part in its own order, once its bytes were found to be what the manifest says.

    Raises:
        ArchiveDamaged: they are not.
    """
    _compare_bytes(file, manifest.bytes, manifest.sha256, check)
    table: pa.Table = _opened(file, part_schema(manifest.stream)).read()
    counts = {one["values"]: one["counts"] for one in pc.value_counts(table[SEGMENT]).to_pylist()}
    if counts != {segment.segment_id: segment.rows for segment in manifest.segments if segment.rows}:
        raise ArchiveDamaged("its rows are not those of the segments that its manifest names")
    return table


def compare_bytes(file: BinaryIO, manifest: Manifest, check: Callable[[], None]) -> None:
    """Compare a part's bytes with its manifest.

    Raises:
        ArchiveDamaged: they differ.
    """
    _compare_bytes(file, manifest.bytes, manifest.sha256, check)


def _compare_bytes(file: BinaryIO, size: int, sha256: str, check: Callable[[], None]) -> None:
    found, total = hashlib.sha256(), 0
    while data := file.read(_READ_BYTES):
        check()
        found.update(data)
        total += len(data)
    file.seek(0)
    if total != size:
        raise ArchiveDamaged(f"it has {total} bytes where {size} were written")
    if found.hexdigest() != sha256:
        raise ArchiveDamaged("its checksum is not that of what was written")


def _opened(file: BinaryIO, schema: pa.Schema) -> Any:
    try:
        parquet = pq.ParquetFile(file)
        if not parquet.schema_arrow.remove_metadata().equals(schema):
            raise ArchiveDamaged("it reads back other columns than were written")
    except pa.ArrowException as exc:
        raise ArchiveDamaged(f"it cannot be read as Parquet: {' '.join(str(exc).split())}") from exc
    return parquet


def same_rows(one: pa.Table, other: pa.Table) -> bool:
    """Compare two tables row by row, and floats by their bits: a NaN is the same as itself, and -0.0 is not 0.0."""
    return bool(one.schema.equals(other.schema) and one.num_rows == other.num_rows) and all(
        _same_column(a, b) for a, b in zip(one.columns, other.columns, strict=True)
    )


def _same_column(one: pa.ChunkedArray, other: pa.ChunkedArray) -> bool:
    if not pa.types.is_floating(one.type):
        return bool(one.equals(other))
    mine, theirs = one.combine_chunks(), other.combine_chunks()
    # Under a null there may be any bits.
    bits = [pc.if_else(array.is_valid(), array.view(pa.int64()), 0) for array in (mine, theirs)]
    return bool(mine.is_valid().equals(theirs.is_valid()) and bits[0].equals(bits[1]))


class _Sink:
    """A file for Parquet's writer that knows the checksum of what was meant, whatever the disk makes of it."""

    closed = False

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._size = 0
        self.sha256 = hashlib.sha256()

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        disk.write(self._fd, view)
        self.sha256.update(view)
        self._size += len(view)
        return len(view)

    def tell(self) -> int:
        return self._size

    def writable(self) -> bool:
        return True

    def readable(self) -> bool:
        return False

    def seekable(self) -> bool:
        return False

    def flush(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True
