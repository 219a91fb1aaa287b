"""`analysis sql`: a statement over the tape, as a table for people or as data for programs."""

import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date, datetime, timedelta
from datetime import time as clock_time
from decimal import Decimal
from itertools import count
from pathlib import Path
from typing import Any, Literal
from uuid import UUID

import duckdb
import pyarrow as pa
import pyarrow.csv

from analysis.errors import BadQuery
from analysis.queries import ready_queries
from analysis.span import Span
from analysis.tables import open_tape, refresh_tape
from recorder.runtime import signals

Form = Literal["table", "json", "csv"]
Ask = Callable[[], duckdb.DuckDBPyRelation]

_TABLES = "tables are listed by: SHOW TABLES"
SHOWN_ROWS = 100  # of a table
_BATCH_ROWS = 10_000
_CLEAR = "\x1b[H\x1b[2J"  # cursor to the upper left corner; erase all


def statement_of(text: str | None, file: Path | None) -> str:
    """Return what to run: what a file holds (`-`: stdin), a ready query if a word is its name, or the text itself.

    Raises:
        BadQuery: the file cannot be read, or there is nothing in it.
    """
    if file is not None:
        try:
            text = sys.stdin.read() if str(file) == "-" else file.read_text()
        except (OSError, UnicodeDecodeError) as exc:
            raise BadQuery(f"{file} cannot be read: {exc}") from exc
    found = (text or "").strip().rstrip(";")
    if not found:
        raise BadQuery("there is nothing to run", remedy=_TABLES)
    return {query.name: query.statement for query in ready_queries()}.get(found, found)


def local(place: str, span: Span, archive: str | None, statement: str) -> Ask:
    """Return who asks the tape, as of the moment in which it is asked.

    Raises:
        NoTape: there is none.
    """
    connection = open_tape(place, span, archive=archive)

    def ask() -> duckdb.DuckDBPyRelation:
        refresh_tape(connection)
        relation = connection.sql(statement)
        if relation is None:
            raise BadQuery("the statement answers nothing", remedy=_TABLES)
        return relation

    return ask


def answer(ask: Ask, form: Form) -> None:
    """Print what a statement answers to stdout.

    Raises:
        BadQuery: with a line that says why.
    """
    with _said_in_a_line():
        relation = ask()
        if form == "table":
            relation.show(max_width=shutil.get_terminal_size((120, 40)).columns, max_rows=SHOWN_ROWS)
        elif form == "csv":
            _write_csv(relation)
        else:
            _write_json(relation)
    sys.stdout.flush()


def write_parquet(ask: Ask, file: Path) -> None:
    """Write what a statement answers to a file that is there when it is whole.

    Raises:
        BadQuery: with a line that says why.
    """
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        draft.touch()  # who asks for minutes should not learn at the end that there is no room for the answer
        with _said_in_a_line():
            ask().write_parquet(str(draft), compression="zstd")
        draft.replace(file)
    except OSError as exc:
        raise BadQuery(f"{file} cannot be written: {exc.strerror}", remedy="choose another folder") from exc
    finally:
        draft.unlink(missing_ok=True)


def watch(ask: Ask, form: Form, every_s: float) -> None:
    """Print the answer again and again, until Ctrl-C; on a terminal each in the place of the one before.

    Raises:
        BadQuery: with a line that says why.
    """
    stop = signals.StopAsked()  # heeded between two answers: an interrupt inside DuckDB may come out as any error
    while not stop.asked:
        begun_s = time.monotonic()
        if sys.stdout.isatty():
            sys.stdout.write(_CLEAR)
        answer(ask, form)
        stop.wait(max(0.0, begun_s + every_s - time.monotonic()))


def list_queries() -> None:
    """Print the ready queries, a line each."""
    width = max(len(query.name) for query in ready_queries())
    for query in sorted(ready_queries()):
        sys.stdout.write(f"{query.name:{width}}  {query.sentence}\n")


@contextmanager
def _said_in_a_line() -> Iterator[None]:
    try:
        yield
    except duckdb.InterruptException as exc:
        raise KeyboardInterrupt from exc
    except duckdb.Error as exc:
        # Where a file cannot be read it tells at which of our lines, too.
        said = str(exc).partition(" Detail: Python exception")[0]
        raise BadQuery(said.strip().replace("\n", " | "), remedy=_TABLES) from exc


def _write_csv(relation: duckdb.DuckDBPyRelation) -> None:
    reader = relation.to_arrow_reader(_BATCH_ROWS)
    try:
        with pa.csv.CSVWriter(sys.stdout.buffer, reader.schema) as writer:
            for batch in reader:
                writer.write_batch(batch)
    except pa.ArrowException as exc:
        raise BadQuery(f"this does not fit into CSV: {exc}", remedy="use --json") from exc


def _write_json(relation: duckdb.DuckDBPyRelation) -> None:
    between = ""
    sys.stdout.write("[")
    for batch in relation.to_arrow_reader(_BATCH_ROWS):
        rows = [_plain(row) for row in _told_apart(batch).to_pylist()]
        if rows:
            sys.stdout.write(between + json.dumps(rows, default=str)[1:-1])
            between = ", "
    sys.stdout.write("]\n")


def _told_apart(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Give columns of one name a number, as DuckDB does in Parquet: an object has each key once."""
    names: list[str] = []
    for name in batch.schema.names:
        others = (f"{name}_{number}" for number in count(1))
        taken = {*batch.schema.names, *names}
        names.append(name if name not in names else next(one for one in others if one not in taken))
    return batch.rename_columns(names)


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
        case datetime() | date() | clock_time():
            return value.isoformat()
        case timedelta():
            return value.total_seconds()
        case bytes():
            return value.hex()
        case UUID():
            return str(value)
        case pa.MonthDayNano():
            return f"P{value.months}M{value.days}DT{Decimal(value.nanoseconds) / 10**9}S"
        case _:
            return value
