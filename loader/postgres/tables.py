"""The table of a stream: its columns are the tape's, then `segment`; a table changed by hand is told by name."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from psycopg import sql

from loader.errors import SchemaConflict
from loader.postgres.session import Connection
from recorder.segments.schemas import SCHEMAS, stream_kind

SEGMENT = "segment"

_TYPES = {
    pa.timestamp("us", tz="UTC"): "timestamp with time zone",
    pa.string(): "text",
    pa.float64(): "double precision",
    pa.int64(): "bigint",
    pa.int32(): "integer",
    pa.bool_(): "boolean",
}
# PostgreSQL cuts longer names off; the longest that is added to a market is "_instruments".
_LONGEST_MARKET = 63 - len("_instruments")

_COLUMNS = """
SELECT attname, format_type(atttypid, atttypmod), attnotnull AND NOT atthasdef AND attidentity = ''
FROM pg_attribute WHERE attrelid = to_regclass(%s) AND attnum > 0 AND NOT attisdropped ORDER BY attnum
"""


@dataclass(frozen=True)
class Column:
    """One column as the database has it."""

    name: str
    type: str
    demanded: bool  # NOT NULL and without a default


def market_of(stream: str) -> str | None:
    """Return the market of a stream (`eth_option`); None for `data_gaps`, which all markets share."""
    kind = stream_kind(stream)
    return None if kind in (None, "gaps") else stream.removesuffix(f"_{kind}")


def can_be_table(stream: str) -> bool:
    """Return whether the names of its market's tables fit into PostgreSQL."""
    return len(market_of(stream) or "") <= _LONGEST_MARKET


def columns(stream: str) -> dict[str, str]:
    """Return the columns of a stream's table and their types, in order."""
    schema = SCHEMAS[stream_kind(stream) or ""]
    return {**{field.name: _TYPES[field.type] for field in schema}, SEGMENT: "integer"}


def conflicts(stream: str, found: Sequence[Column]) -> list[tuple[str, str]]:
    """Compare a table with its stream; return what is wrong and what to do about it. Pure.

    Columns that were added are fine as long as a row may come without them.
    """
    if not found:
        return [(f"the table {stream} is missing", "put it back, or load into a new database with replay")]
    there = {column.name: column for column in found}
    wanted = columns(stream)
    problems = [
        (
            f"the table {stream} has no column {name}",
            f'put it back: ALTER TABLE {stream} ADD COLUMN "{name}" {kind}',
        )
        for name, kind in wanted.items()
        if name not in there
    ]
    problems += [
        (
            f"the column {name} of the table {stream} is {there[name].type}, not {kind}",
            "change its type back, or make a view with the type you want",
        )
        for name, kind in wanted.items()
        if name in there and there[name].type != kind
    ]
    problems += [
        (
            f"the added column {column.name} of the table {stream} is NOT NULL without a default",
            f'make it nullable: ALTER TABLE {stream} ALTER COLUMN "{column.name}" DROP NOT NULL',
        )
        for column in found
        if column.name not in wanted and column.demanded
    ]
    return problems


def check_table(connection: Connection, stream: str, schema: str | None = None) -> None:
    """Compare a stream's table with the tape.

    Args:
        connection: to the database.
        stream: whose table.
        schema: where it must be: one that is gone there is not the next one in the search path; None where the server
            looks by itself.

    Raises:
        SchemaConflict: naming the column and the remedy.
    """
    name = sql.Identifier(*([schema] if schema else []), stream).as_string(connection)
    rows = connection.execute(_COLUMNS, [name]).fetchall()
    problems = conflicts(stream, [Column(*row) for row in rows])
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise SchemaConflict(problems[0][0] + more, remedy=problems[0][1])


def copy_statement(stream: str, table: str | None = None) -> sql.Composed:
    """Return the COPY of a stream's rows into its table, or into one of the same columns."""
    names: Any = sql.SQL(", ").join(map(sql.Identifier, columns(stream)))
    return sql.SQL("COPY {} ({}) FROM STDIN (FORMAT BINARY)").format(sql.Identifier(table or stream), names)
