"""A segment's rows against those of its number in the database: by sums, and where these differ row by row."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

import pyarrow as pa
import pyarrow.compute as pc
from psycopg import sql

from loader import checksum
from loader.postgres.copy import copy_rows, encode, numbered
from loader.postgres.session import Connection
from loader.postgres.tables import columns, copy_statement
from loader.prepare import first_and_last

TEMPORARY = "audited_rows"
# So many of the rows that differ are named on either side.
_NAMED = 3
EVERYWHERE = sql.SQL("true")


@dataclass(frozen=True)
class Entry:
    """A ledger row, as far as it is needed here."""

    segment_id: str
    number: int
    stream: str
    name: str
    rows: int
    first_received_at: datetime | None
    crc32: str  # what the last commit of what was loaded states


@dataclass(frozen=True)
class Sum:
    """How many rows there are, and their checksum; None where the server's is not believed."""

    rows: int = 0
    checksum: int | None = None


def nothing(*, hashed: bool) -> Sum:
    """Return the sum of no rows."""
    return Sum(0, 0 if hashed else None)


@dataclass(frozen=True)
class Rest:
    """Rows that are on one side only."""

    rows: int = 0
    named: str = ""  # instrument and time of the first few


@dataclass(frozen=True)
class Difference:
    """In what a segment's rows on the tape and in the database differ."""

    only_tape: Rest
    only_database: Rest  # rows that are there twice, or changed, too
    elsewhere: Rest  # in the database, at other times than the tape's

    def matters(self, *, salvaged: bool) -> bool:
        """Return whether it is one. Pure.

        Args:
            salvaged: the rows are in the database as part of what was loaded before the damage: it may have more.
        """
        surplus = self.only_database.rows + self.elsewhere.rows
        return bool(self.only_tape.rows or (surplus and not salvaged))

    def __str__(self) -> str:
        told = {
            "rows of the tape that the database lacks": self.only_tape,
            "rows of the database that the tape lacks": self.only_database,
            "rows of the database at other times than the tape's": self.elsewhere,
        }
        return "; ".join(f"{what}: {rest.rows} ({rest.named})" for what, rest in told.items() if rest.rows)


def expected_rows(table: pa.Table, since: datetime | None) -> pa.Table:
    """Return those rows of a segment that its table should have.

    Args:
        table: all of them.
        since: what is older was dropped by retention.
    """
    if since is None:
        return table
    return table.filter(pc.greater_equal(table["timestamp"], pa.scalar(since, pa.timestamp("us", tz="UTC"))))


def sum_here(stream: str, table: pa.Table, *, hashed: bool) -> Sum:
    """Return the sum of rows of the tape."""
    return Sum(table.num_rows, checksum.of_stream(stream, table) if hashed else None)


def sums_there(
    connection: Connection, stream: str, *, hashed: bool, where: sql.Composable = EVERYWHERE
) -> dict[int | None, Sum]:
    """Ask for the sums of the segments of a stream's table, or of what fulfils a condition, in one scan."""
    rows = connection.execute(
        sql.SQL("SELECT segment, count(*), {} FROM {} WHERE {} GROUP BY segment").format(
            checksum.sum_in_sql(stream) if hashed else sql.NULL, sql.Identifier(stream), where
        )
    )
    return {segment: Sum(count, checksum.from_sql(total) if hashed else None) for segment, count, total in rows}


def fill_temporary(
    connection: Connection, stream: str, table: pa.Table, number: int, check: Callable[[], None]
) -> None:
    """Send rows of the tape into a temporary table, which is gone at the transaction's end."""
    connection.execute(
        sql.SQL("CREATE TEMPORARY TABLE {} ON COMMIT DROP AS SELECT {} FROM {} WITH NO DATA").format(
            sql.Identifier(TEMPORARY), names_of(stream), sql.Identifier(stream)
        )
    )
    copy_rows(connection, copy_statement(stream, TEMPORARY), encode(numbered(table, number)), check)


def difference(
    connection: Connection, stream: str, number: int, *, table: pa.Table, there: int, check: Callable[[], None]
) -> Difference:
    """Subtract rows of the tape from those of a number, both ways; changes nothing.

    Args:
        connection: no transaction is open on it.
        stream: whose table to look into.
        number: the ledger's number of the segment.
        table: the rows of the tape.
        there: how many rows the number has.
        check: called now and then; may raise.
    """
    of_number, times = rows_of(number), within(table)
    with connection.transaction(force_rollback=True):
        fill_temporary(connection, stream, table, number, check)
        here = _select(stream, TEMPORARY, EVERYWHERE)
        # Bounded in time, for the chunks and the index of that time.
        mine = _select(stream, stream, sql.SQL("{} AND {}").format(of_number, times))
        only_tape, only_database = _subtract(connection, here, mine), _subtract(connection, mine, here)
        elsewhere = Rest()
        if there > table.num_rows - only_tape.rows + only_database.rows:
            others = _select(stream, stream, sql.SQL("{} AND ({}) IS NOT TRUE").format(of_number, times))
            elsewhere = _first_of(connection, others)
    return Difference(only_tape, only_database, elsewhere)


def rows_of(number: int) -> sql.Composed:
    """Return the condition that the rows of a number fulfil."""
    return sql.SQL("segment = {}").format(sql.Literal(number))


def within(table: pa.Table) -> sql.Composable:
    """Return the condition, with literal bounds, that all rows of a table fulfil; none where a row has no time."""
    bounds = None if table["timestamp"].null_count else first_and_last(table["timestamp"])
    if bounds is None:
        return EVERYWHERE
    return sql.SQL('"timestamp" BETWEEN {} AND {}').format(*map(sql.Literal, bounds))


def names_of(stream: str) -> sql.Composed:
    """Return the columns of a stream's table, as a list in SQL."""
    return sql.SQL(", ").join(map(sql.Identifier, columns(stream)))


def _select(stream: str, table: str, condition: sql.Composable) -> sql.Composed:
    return sql.SQL("SELECT {} FROM {} WHERE {}").format(names_of(stream), sql.Identifier(table), condition)


def _subtract(connection: Connection, one: sql.Composed, other: sql.Composed) -> Rest:
    return _first_of(connection, sql.SQL("({}) EXCEPT ALL ({})").format(one, other))


def _first_of(connection: Connection, rows: sql.Composed) -> Rest:
    found = connection.execute(
        sql.SQL(
            'SELECT count(*) OVER (), instrument, "timestamp" FROM ({}) AS rest'
            ' ORDER BY "timestamp", instrument LIMIT {}'
        ).format(rows, sql.Literal(_NAMED))
    ).fetchall()
    if not found:
        return Rest()
    named = [f"{instrument} {time.isoformat() if time else None}" for _, instrument, time in found]
    if found[0][0] > _NAMED:
        named.append("…")
    return Rest(found[0][0], ", ".join(named))
