"""Rows as PostgreSQL takes them: both ways of sending them give the same, and lose nothing."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import psycopg
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loader.postgres import copy
from loader.postgres.migrate import migrate
from loader.postgres.tables import columns, copy_statement
from recorder.segments.schemas import SCHEMAS, rows_to_batch
from tests.fix_postgres import fresh_database, make_rows

# What both Arrow and PostgreSQL have: text without NUL, times until the year 9999.
_VALUES = {
    pa.timestamp("us", tz="UTC"): st.integers(-(10**15), 253_402_300_799_999_999),
    pa.string(): st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40),
    pa.float64(): st.floats(),
    pa.int64(): st.integers(-(2**63), 2**63 - 1),
    pa.int32(): st.integers(-(2**31), 2**31 - 1),
    pa.bool_(): st.booleans(),
}


def rows_of(kind: str) -> st.SearchStrategy[list[tuple[Any, ...]]]:
    """Rows of a stream with every kind of value in every column."""
    schema = SCHEMAS[kind]
    first = _VALUES[schema[0].type]
    return st.lists(st.tuples(first, *(st.none() | _VALUES[field.type] for field in list(schema)[1:])), max_size=20)


@pytest.fixture(scope="module")
def connection(postgres: str) -> Iterator[psycopg.Connection[Any]]:
    """Yield a connection to a database that has the tables of one market."""
    for url in fresh_database(postgres):
        with psycopg.connect(url, autocommit=True) as connection:
            migrate(connection, "plain")
            migrate(connection, "plain", "eth_option")
            yield connection


def sent(connection: psycopg.Connection[Any], stream: str, rows: copy.Rows) -> list[tuple[Any, ...]]:
    """Send rows; return what the table has then, as text, in which nothing is equal that differs."""
    with connection.transaction(force_rollback=True):
        copy.copy_rows(connection, copy_statement(stream), rows, lambda: None)
        names = ", ".join(f'"{name}"::text' for name in columns(stream))
        return sorted(connection.execute(f"SELECT {names} FROM {stream}".encode()).fetchall(), key=repr)


@pytest.mark.skipif(not copy.HAS_PGPQ, reason="pgpq has no wheel for this machine: only psycopg's way is used here")
@pytest.mark.parametrize("kind", ["trades", "instruments", "quotes"])
@given(data=st.data())
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
def test_both_ways_send_the_same_rows(connection: psycopg.Connection[Any], kind: str, data: st.DataObject) -> None:
    """Nulls, NaN, infinities, the limits of integers, any text: equal either way, and equal to what was sent."""
    rows = data.draw(rows_of(kind))
    table = pa.Table.from_batches([rows_to_batch(SCHEMAS[kind], rows)]).append_column(
        "segment", pa.array([7] * len(rows), pa.int32())
    )
    stream = f"eth_option_{kind}"
    encoded = sent(connection, stream, copy.EncodedRows(table))
    assert sent(connection, stream, copy.PlainRows(table)) == encoded
    assert len(encoded) == len(rows)
    assert {row[1] for row in encoded} == {row[1] for row in rows}
    assert {row[-1] for row in encoded} <= {"7"}


def test_values_arrive_as_they_are(connection: psycopg.Connection[Any]) -> None:
    """One row of extremes, read back by another way than it was written."""
    row: list[Any] = [None] * len(SCHEMAS["trades"])
    row[0] = 253_402_300_799_999_999
    given = {"instrument": "naïve 🜚", "trade_seq": -(2**63), "price": float("nan"), "size": float("-inf")}
    for name, value in {**given, "tick_direction": 2**31 - 1}.items():
        row[SCHEMAS["trades"].get_field_index(name)] = value
    table = pa.Table.from_batches([rows_to_batch(SCHEMAS["trades"], [tuple(row)])])
    with connection.transaction(force_rollback=True):
        connection.execute("SET LOCAL TIME ZONE 'UTC'")
        rows = copy.encode(copy.numbered(table, 5))
        assert copy.copy_rows(connection, copy_statement("eth_option_trades"), rows, lambda: None) == 1
        got = connection.execute(
            'SELECT "timestamp", instrument, trade_seq, price, size, tick_direction, trade_id, segment'
            " FROM eth_option_trades"
        ).fetchone()
    assert got is not None
    assert got[0] == datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)
    assert got[1:3] == ("naïve 🜚", -(2**63))
    assert got[3] != got[3]
    assert got[4:] == (float("-inf"), 2**31 - 1, None, 5)


def test_rows_are_loaded_without_pgpq(connection: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where pgpq is not there psycopg sends the same rows, of several batches."""
    monkeypatch.setattr(copy, "BATCH_ROWS", 100)
    table = pa.Table.from_batches([rows_to_batch(SCHEMAS["quotes"], make_rows("eth_option_quotes", 350))])
    want = sent(connection, "eth_option_quotes", copy.encode(copy.numbered(table, 1)))
    monkeypatch.setattr(copy, "HAS_PGPQ", False)
    plain = copy.encode(copy.numbered(table, 1))
    assert isinstance(plain, copy.PlainRows)
    assert sent(connection, "eth_option_quotes", plain) == want
    assert len(want) == 350
