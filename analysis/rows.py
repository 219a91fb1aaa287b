"""The rows of one stream's segments, sealed and live: read file by file, only the columns that a question needs.

Segments hold a batch a flush, some hundred rows each. Arrow's own dataset of such files hands each of them on by
itself; here the batches of a file are put together first, and the next files are read meanwhile by other threads: it
takes less than a third of the time.
"""

import logging
import os
from collections import deque
from collections.abc import Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from analysis.flushes import READ_ERRORS, count_rows, read_columns
from analysis.span import Span
from analysis.tape import Plan
from recorder.segments.reader import Choice, choose_sealed, read_segment
from recorder.segments.schemas import SCHEMAS, stream_kind

_THREADS = min(os.cpu_count() or 1, 8)
_AHEAD_FILES = 2 * _THREADS
_BATCH_ROWS = 65_536
_COUNTED_ROWS = 1 << 20  # in a batch, where they are only counted
# A column of nulls in front of a stream's, which DuckDB alone sees: who counts rows asks it for the first column.
ROW = pa.field("_row", pa.int8())  # the type that DuckDB scans fastest

# Of the standard library: who asks for rows may be a notebook, and a warning belongs on stderr, never on stdout.
log = logging.getLogger("analysis")


class Rows(ds.Dataset):  # type: ignore[misc] # pyarrow is untyped
    """A stream's segments as a dataset into which DuckDB pushes columns and filters.

    It has one column more than the stream, `_row`: whoever makes a table of it leaves that out.

    Which sealed files count is found out when rows are first asked for: it takes a look into each of them.
    """

    def __init__(self, planned: Plan, span: Span, *, verify: bool = False) -> None:
        """Take what to read.

        Args:
            planned: the stream, as it was looked at.
            span: which of its rows.
            verify: whether to check each file to its last byte before its rows count.
        """
        self._plan = planned
        self._span = span
        self._verify = verify
        self.stream_schema = SCHEMAS[stream_kind(planned.stream) or ""]
        self._chosen: Choice | None = None
        self._files = span.files(planned.stream, _not_archived(planned))
        for file in (*planned.found.left_out, *planned.left_out):
            log.warning("left out %s", file)

    @property
    def none(self) -> bool:
        """Whether there is no file to read."""
        return not self._files and self._plan.found.live is None

    @property
    def schema(self) -> pa.Schema:
        """`_row` and the stream's columns, without what a segment says of itself."""
        return pa.schema([ROW, *self.stream_schema])

    def scanner(self, columns: list[str] | None = None, filter: Any = None, **_options: Any) -> "Scan":  # noqa: A002 - pyarrow's names
        """Scan it; DuckDB calls this at every query.

        Raises:
            OSError: a file cannot be read.
        """
        return Scan(self, columns or self.schema.names, filter)

    def batches(self, columns: list[str] | None = None, condition: Any = None) -> Iterator[pa.RecordBatch]:
        """Yield the rows of the range, live ones first.

        Args:
            columns: which, in this order; None for all of the stream.
            condition: an Arrow expression that rows must fulfil besides.

        Raises:
            OSError: a file cannot be read.
        """
        if self._chosen is None:
            self._chosen = self._choose()
        for bound in self._span.bounds(self._plan.stream):
            holds = bound.holds(pc.field(bound.column))
            condition = holds if condition is None else holds & condition
        wanted = Wanted(self.stream_schema, columns or self.stream_schema.names, condition)
        read = [*self._chosen.rows, *([] if self._plan.found.live is None else [self._plan.found.live])]
        for table in read:
            yield from wanted.of(table)
        if wanted.counted and not self._verify:  # so little is read of a file that threads would be in the way
            yield from wanted.of_count(sum(_count(path, wanted) for path in self._chosen.paths))
            return
        yield from chain.from_iterable(_in_turn(self._chosen.paths, wanted, verify=self._verify))

    def _choose(self) -> Choice:
        segments = [segment for manifest in self._plan.manifests for segment in manifest.segments]
        known = {one for segment in segments for one in (segment.segment_id, segment.salvages) if one}
        choice = choose_sealed(self._files, self._plan.stream, archived=known)
        for file in choice.left_out:
            log.warning("left out %s", file)
        return choice


class Scan(NamedTuple):
    """What DuckDB takes for a pyarrow Scanner."""

    rows: Rows
    columns: list[str]
    condition: Any

    def to_reader(self) -> pa.RecordBatchReader:
        """Return the rows."""
        schema = pa.schema([self.rows.schema.field(name) for name in self.columns])
        return pa.RecordBatchReader.from_batches(schema, self.rows.batches(self.columns, self.condition))


class Wanted:
    """Which rows and columns of a stream are wanted."""

    def __init__(self, schema: pa.Schema, columns: list[str], condition: Any) -> None:
        self.schema = schema
        self._columns = columns
        self._condition = condition
        # An expression does not tell which columns it is about, but its text names them.
        text = "" if condition is None else str(condition)
        needed = [number for number, name in enumerate(schema.names) if name in columns or name in text]
        self.needed = needed or [0]  # a table without columns has no rows
        self.counted = condition is None and columns == [ROW.name]

    def read(self, path: Path) -> list[pa.RecordBatch]:
        """Return them of a sealed file as its footer says.

        Raises:
            FileNotFoundError: it was archived and pruned meanwhile.
            Any of READ_ERRORS: it is not as its footer says.
        """
        return self.of(read_columns(path, self.needed, self.schema))

    def of_count(self, rows: int) -> list[pa.RecordBatch]:
        """Return as many rows of which nothing is wanted but that they are there."""
        nulls = pa.nulls(min(rows, _COUNTED_ROWS), ROW.type)
        sizes = [*([_COUNTED_ROWS] * (rows // _COUNTED_ROWS)), rows % _COUNTED_ROWS]
        return [pa.RecordBatch.from_arrays([nulls[:size]], schema=pa.schema([ROW])) for size in sizes if size]

    def of(self, table: pa.Table) -> list[pa.RecordBatch]:
        """Return them of a file's rows, its flushes together: a small batch takes its reader as long as a large."""
        joined = table.replace_schema_metadata(None).combine_chunks()
        if self._condition is not None:
            joined = joined.filter(self._condition)
        if ROW.name in self._columns:
            joined = joined.append_column(ROW, pa.nulls(joined.num_rows, ROW.type))
        return list(joined.select(self._columns).to_batches(_BATCH_ROWS))


def _not_archived(planned: Plan) -> list[Path]:
    """Return the sealed files but those that the archive has under their very name: they need not be opened."""
    names = {Path(segment.name).name for manifest in planned.manifests for segment in manifest.segments}
    return [path for path in planned.found.sealed if path.name not in names]


def _in_turn(paths: Collection[Path], wanted: Wanted, *, verify: bool) -> Iterator[list[pa.RecordBatch]]:
    """Yield each file's rows, in the order of the files, a few of them read ahead."""
    if not paths:
        return
    read = _read_whole if verify else _read
    ahead: deque[Future[list[pa.RecordBatch]]] = deque()
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="segments") as pool:
        for path in paths:
            ahead.append(pool.submit(read, path, wanted))
            if len(ahead) == _AHEAD_FILES:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def _read(path: Path, wanted: Wanted) -> list[pa.RecordBatch]:
    """Read a sealed file as its footer says; where that cannot be, whole."""
    try:
        return wanted.read(path)
    except FileNotFoundError:
        raise
    except READ_ERRORS:
        return _read_whole(path, wanted)


def _count(path: Path, wanted: Wanted) -> int:
    """Count the rows of a sealed file as its end states; where that cannot be, by reading it whole."""
    try:
        return count_rows(path, wanted.schema)
    except FileNotFoundError:
        raise
    except READ_ERRORS:
        return sum(batch.num_rows for batch in _read_whole(path, wanted))


def _read_whole(path: Path, wanted: Wanted) -> list[pa.RecordBatch]:
    """Read and check a file: its good rows count, and what is damaged is named."""
    checked = read_segment(path)
    if checked.damage:
        log.warning("left out %s: all but %d rows, for %s", path, checked.rows, checked.damage[0].what)
    return wanted.of(checked.table)
