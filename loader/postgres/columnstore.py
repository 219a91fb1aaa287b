"""TimescaleDB's columnstore: which way a group of rows goes in, and compressing again what went in unordered.

`timescaledb.enable_direct_compress_copy_client_sorted` is never set: it promises an order across all that was ever
loaded into a chunk, and with one late row `ORDER BY timestamp DESC LIMIT 1` answers wrongly, without any error.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import LiteralString

import psycopg

from loader.postgres.session import Connection
from recorder.runtime.logging import get_logger

# Rows of an instrument in one COPY, on average, from which on a batch of them is small: with 12 it is as large as the
# rowstore's rows, with 100 a fourth of them.
LEAST_PER_INSTRUMENT = 100
# So many rows are worth compressing an ordered chunk anew as a whole; fewer go into its rowstore, and the policy
# then touches only their instruments.
WORTH_A_REWRITE = 20_000

# What is younger than a chunk is long may lie in the one that is running.
_TABLE = """
SELECT segmentby, orderby, %s > now() - (
    SELECT time_interval FROM timescaledb_information.dimensions
    WHERE dimension_number = 1 AND (hypertable_schema, hypertable_name) = (SELECT nspname, relname FROM pg_class
        JOIN pg_namespace ns ON ns.oid = relnamespace WHERE pg_class.oid = hypertable))
FROM timescaledb_information.hypertable_columnstore_settings WHERE hypertable = to_regclass(%s)
"""
# The chunks that rows of a time lie in, or will.
_CHUNKS = """
SELECT _timescaledb_functions.chunk_status_text(place), segmentby, orderby
FROM timescaledb_information.chunks
CROSS JOIN LATERAL (SELECT format('%%I.%%I', chunk_schema, chunk_name)::regclass AS place) AS named
LEFT JOIN timescaledb_information.chunk_columnstore_settings ON chunk = place
WHERE (hypertable_schema, hypertable_name) = (SELECT nspname, relname FROM pg_class JOIN pg_namespace ns
    ON ns.oid = relnamespace WHERE pg_class.oid = to_regclass(%s)) AND range_start <= %s AND range_end > %s
"""
# What the policy would take as well: all that ended an hour ago, each quarter of an hour, of trades each hour.
_UNORDERED = """
SELECT format('%%I.%%I', chunk_schema, chunk_name)
FROM timescaledb_information.chunks
WHERE (hypertable_schema, hypertable_name) = (SELECT nspname, relname FROM pg_class JOIN pg_namespace ns
    ON ns.oid = relnamespace WHERE pg_class.oid = to_regclass(%s))
  AND range_start <= %s AND range_end > %s AND range_end < now() - INTERVAL '1 hour'
  AND _timescaledb_functions.chunk_status_text(format('%%I.%%I', chunk_schema, chunk_name)::regclass)
      <> '{COMPRESSED}'
ORDER BY range_start
"""

log = get_logger("loader")


class Way(StrEnum):
    """How the rows of one COPY become stored."""

    ROWSTORE = "rowstore"  # as rows; on a hypertable the policy compresses them later
    COMPRESSED = "compressed"  # in the runs of instruments that they come in
    COMPRESSED_BY_SERVER = "compressed, sorted by the server"  # where the table's settings are not ours


_SETTINGS: dict[Way, LiteralString] = {
    Way.ROWSTORE: "SET LOCAL timescaledb.enable_direct_compress_copy = off",
    Way.COMPRESSED: """
        SET LOCAL timescaledb.enable_direct_compress_copy = on;
        SET LOCAL timescaledb.enable_direct_compress_copy_sort_batches = off""",
    Way.COMPRESSED_BY_SERVER: """
        SET LOCAL timescaledb.enable_direct_compress_copy = on;
        SET LOCAL timescaledb.enable_direct_compress_copy_sort_batches = on""",
}


@dataclass(frozen=True)
class Order:
    """How a table, or one of its chunks, is divided and ordered, as the server tells it."""

    segmentby: str | None
    orderby: str | None

    @property
    def ours(self) -> bool:
        """Whether rows that come in runs of instruments, each in time order, are in this order."""
        return self.segmentby == "instrument" and (self.orderby or "").strip('"') == "timestamp"


@dataclass(frozen=True)
class Chunk:
    """A chunk that rows of the group lie in."""

    status: Sequence[str]  # as chunk_status_text tells it; empty for a chunk of rows
    order: Order | None  # None while it was never compressed

    @property
    def is_ordered(self) -> bool:
        """Whether it was compressed as a whole and nothing has come since."""
        return list(self.status) == ["COMPRESSED"]


def choose_way(table: Order | None, chunks: Sequence[Chunk], *, rows: int, instruments: int, running: bool) -> Way:
    """Decide how a group of rows goes in. Pure.

    Args:
        table: None if it has no columnstore.
        chunks: those that rows of the group will lie in, as far as they are there.
        rows: how many.
        instruments: how many instruments they are of.
        running: whether a chunk of theirs is not over yet. It would be unordered until it is, and the last price of
            each option take a hundred times as long: neither the policy nor we put in order what is still filled.
    """
    if table is None or running or rows < LEAST_PER_INSTRUMENT * instruments:
        return Way.ROWSTORE
    if rows < WORTH_A_REWRITE and any(chunk.is_ordered for chunk in chunks):
        return Way.ROWSTORE
    ours = table.ours and all(chunk.order.ours for chunk in chunks if chunk.order)
    return Way.COMPRESSED if ours else Way.COMPRESSED_BY_SERVER


def way_of(
    connection: Connection, stream: str, times: tuple[datetime, datetime] | None, *, rows: int, instruments: int
) -> Way:
    """Ask what is there, and decide how a group of rows goes in."""
    if times is None or rows < LEAST_PER_INSTRUMENT * instruments:
        return Way.ROWSTORE
    name = _regclass(stream)
    table = connection.execute(_TABLE, [times[1], name]).fetchone()
    if table is None:
        return Way.ROWSTORE
    segmentby, orderby, running = table
    found = connection.execute(_CHUNKS, [name, times[1], times[0]]).fetchall()
    chunks = [Chunk(status, Order(by, order) if by or order else None) for status, by, order in found]
    return choose_way(Order(segmentby, orderby), chunks, rows=rows, instruments=instruments, running=running)


def go(connection: Connection, way: Way) -> None:
    """Set, for the transaction under way, how rows go in."""
    connection.execute(_SETTINGS[way])


def compress_again(
    connection: Connection, streams: Iterable[tuple[str, datetime, datetime]], check: Callable[[], None]
) -> None:
    """Compress the chunks of these times that have ended and are not ordered, as the policy will later.

    A reader with an open transaction would make it, and then every other reader, wait: it gives up after a moment,
    and what is left is the policy's.
    """
    for stream, first, last in streams:
        for (chunk,) in connection.execute(_UNORDERED, [_regclass(stream), last, first]).fetchall():
            check()
            try:
                with connection.transaction():
                    connection.execute("SET LOCAL lock_timeout = '2s'")
                    connection.execute("SELECT compress_chunk(%s::regclass, recompress => false)", [chunk])
            # TimescaleDB says InternalError ("could not open relation") where its policy is at that chunk just now.
            except (
                psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected, psycopg.errors.InternalError_,
            ) as exc:  # fmt: skip
                log.info("chunk.left_to_policy", chunk=chunk, reason=" ".join(str(exc).split()))


def _regclass(stream: str) -> str:
    return f'"{stream}"'
