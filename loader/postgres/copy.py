"""Rows as PostgreSQL takes them: Arrow → COPY BINARY. The one place that knows with which library.

pgpq encodes whole batches (4 to 8 times as fast as row by row); it has no wheel for linux/arm64, where psycopg
writes the same rows one by one.
"""

from collections.abc import Callable
from typing import Any, Protocol

import psycopg
import pyarrow as pa
from psycopg import sql

from loader.postgres.tables import SEGMENT

try:
    import pgpq
except ImportError:
    HAS_PGPQ = False
else:
    HAS_PGPQ = True

# Rows encoded, and sent, at a time: about 1 MB, so that a stop is noticed between two.
BATCH_ROWS = 8192

_TYPE_NAMES = {
    pa.timestamp("us", tz="UTC"): "timestamptz",
    pa.string(): "text",
    pa.float64(): "float8",
    pa.int64(): "int8",
    pa.int32(): "int4",
    pa.bool_(): "bool",
}


class Rows(Protocol):
    """Rows ready to be sent to a table."""

    def send(self, copy: psycopg.Copy, check: Callable[[], None]) -> None:
        """Send all of them; `check` is called now and then and may raise."""

    def drop(self) -> None:
        """Hold them no longer: who has a group in hand may keep it until the next one is there."""


class EncodedRows:
    """Rows as the bytes of a COPY BINARY, by pgpq."""

    def __init__(self, table: pa.Table) -> None:
        encoder = pgpq.ArrowToPostgresBinaryEncoder(table.schema)
        # write_batch may return nothing, and finish() all of it: only the whole counts.
        self.chunks: list[bytes] = [
            encoder.write_header(),
            *(encoder.write_batch(batch) for batch in _batches(table)),
            encoder.finish(),
        ]

    def send(self, copy: psycopg.Copy, check: Callable[[], None]) -> None:
        """Send the bytes."""
        for chunk in self.chunks:
            check()
            copy.write(chunk)

    def drop(self) -> None:
        """Hold them no longer."""
        self.chunks = []


class PlainRows:
    """Rows that psycopg encodes one by one while it sends them."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table

    def send(self, copy: psycopg.Copy, check: Callable[[], None]) -> None:
        """Send the rows."""
        copy.set_types([_TYPE_NAMES[field.type] for field in self._table.schema])
        for batch in _batches(self._table):
            check()
            columns: list[list[Any]] = [column.to_pylist() for column in batch.columns]
            for row in zip(*columns, strict=True):
                copy.write_row(row)

    def drop(self) -> None:
        """Hold them no longer."""
        self._table = self._table.schema.empty_table()


def numbered(table: pa.Table, number: int) -> pa.Table:
    """Return a segment's rows as they are in its table: with its number as the last column."""
    return table.replace_schema_metadata(None).append_column(
        pa.field(SEGMENT, pa.int32()), pa.repeat(pa.scalar(number, pa.int32()), table.num_rows)
    )


def encode(table: pa.Table) -> Rows:
    """Make rows ready to be sent.

    Raises:
        ValueError, OverflowError, pa.ArrowException: a value has no form in PostgreSQL.
    """
    return EncodedRows(table) if HAS_PGPQ else PlainRows(table)


def copy_rows(
    connection: "psycopg.Connection[Any]", statement: sql.Composed, rows: Rows, check: Callable[[], None]
) -> int:
    """Run one COPY; return how many rows the server says it took."""
    with connection.cursor() as cursor:
        with cursor.copy(statement) as copy:
            rows.send(copy, check)
        return cursor.rowcount


def _batches(table: pa.Table) -> list[pa.RecordBatch]:
    # A segment has a batch for each flush; joined first, for each call has its cost.
    batches: list[pa.RecordBatch] = table.combine_chunks().to_batches(max_chunksize=BATCH_ROWS)
    return batches
