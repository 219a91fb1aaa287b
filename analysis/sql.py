"""`analysis sql`: one statement over the tape, as a table for people or as data for programs."""

import json
import math
import shutil
import sys
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, Literal
from uuid import UUID

import duckdb
import pyarrow as pa
import pyarrow.csv

from analysis.errors import BadQuery
from analysis.span import Span
from analysis.tape import open_tape

Form = Literal["table", "json", "csv"]


def sql(root: str, statement: str, form: Form) -> None:
    """Print what a statement answers to stdout.

    Raises:
        NoTape, BadQuery: with a line that says why.
    """
    connection = open_tape(root, Span())
    try:
        relation = connection.sql(statement)
        if relation is None:  # an empty statement
            raise BadQuery("there is nothing to run", remedy="tables are listed by: SHOW TABLES")
        if form == "table":
            relation.show(max_width=shutil.get_terminal_size((120, 40)).columns, max_rows=100)
            return
        table = relation.to_arrow_table()
    except duckdb.Error as exc:
        raise BadQuery(str(exc).strip().replace("\n", " | "), remedy="tables are listed by: SHOW TABLES") from exc
    if form == "csv":
        try:
            pa.csv.write_csv(table, sys.stdout.buffer)
        except pa.ArrowInvalid as exc:
            raise BadQuery(f"this does not fit into CSV: {exc}", remedy="use --json") from exc
    else:
        json.dump([_plain(row) for row in table.to_pylist()], sys.stdout, default=str)
        sys.stdout.write("\n")


def _plain(value: Any) -> Any:
    """Turn a value into what JSON has; numbers that are none become null."""
    match value:
        case dict():
            return {key: _plain(inner) for key, inner in value.items()}
        case list():
            return [_plain(inner) for inner in value]
        case float():
            return value if math.isfinite(value) else None
        case Decimal():
            return int(value) if value == value.to_integral_value() else float(value)
        case datetime() | date() | time():
            return value.isoformat()
        case timedelta():
            return value.total_seconds()
        case bytes():
            return value.hex()
        case UUID():
            return str(value)
        case _:
            return value
