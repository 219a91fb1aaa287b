"""The checksum of rows is the same number in PostgreSQL and in numpy, and changes with any value."""

import math
from collections.abc import Iterator
from typing import Any

import psycopg
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import sql

from loader import checksum
from loader.postgres.copy import copy_rows, encode, numbered
from loader.postgres.session import Connection
from loader.postgres.tables import columns, copy_statement
from recorder.segments.schemas import SCHEMAS, rows_to_batch
from tests.fix_postgres import fresh_database, make_rows

STREAMS = {kind: "data_gaps" if kind == "gaps" else f"eth_option_{kind}" for kind in SCHEMAS}

# 1000 BC, before 1970 and 2000, and far ahead, in microseconds since 1970.
TIMES = st.integers(-93_000_000_000_000_000, 90_000_000_000_000_000) | st.sampled_from(
    [-1, 0, 946_684_799_999_999, 946_684_800_000_000, 1_780_000_000_000_000]
)
FLOATS = st.floats(width=64) | st.sampled_from([0.0, -0.0, math.inf, -math.inf, math.nan, 5e-324, -2.2e-308])
TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20) | st.integers(
    0, 60
).map("x".__mul__)
VALUES = {
    pa.timestamp("us", tz="UTC"): TIMES,
    pa.string(): TEXTS,
    pa.float64(): FLOATS,
    pa.int64(): st.integers(-(2**63), 2**63 - 1) | st.sampled_from([-(2**63), 2**63 - 1, -1, 0, 2**32]),
    pa.int32(): st.integers(-(2**31), 2**31 - 1),
    pa.bool_(): st.booleans(),
}


def rows_of(kind: str) -> st.SearchStrategy[list[tuple[Any, ...]]]:
    """Return a strategy for rows of a kind of stream, each value of which may be null."""
    return st.lists(st.tuples(*(st.none() | VALUES[field.type] for field in SCHEMAS[kind])), max_size=12)


def as_table(kind: str, rows: list[tuple[Any, ...]]) -> pa.Table:
    return pa.Table.from_batches([rows_to_batch(SCHEMAS[kind], rows)])


@pytest.fixture(scope="module")
def connection(postgres: str) -> Iterator[Connection]:
    """Yield a connection to a database in which every kind of stream has a table that takes nulls everywhere."""
    for url in fresh_database(postgres):
        with psycopg.connect(url, autocommit=True) as connection:
            for stream in STREAMS.values():
                made = ", ".join(f'"{name}" {kind}' for name, kind in columns(stream).items())
                connection.execute(f"CREATE TABLE {stream} ({made})".encode())
            yield connection


def by_server(connection: Connection, stream: str, table: pa.Table) -> int:
    """Return what the server sums up of these rows."""
    with connection.transaction(force_rollback=True):
        copy_rows(connection, copy_statement(stream), encode(numbered(table, 1)), lambda: None)
        row = connection.execute(
            sql.SQL("SELECT {} FROM {}").format(checksum.sum_in_sql(stream), sql.Identifier(stream))
        ).fetchone()
    assert row is not None
    return checksum.from_sql(row[0])


@pytest.mark.parametrize("kind", SCHEMAS)
def test_the_sums_of_hostile_rows_are_equal(connection: Connection, kind: str) -> None:
    """Nulls, NaN, infinities, both zeros, denormals, texts of any length, limits of integers, times before 2000."""

    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
    @given(rows_of(kind))
    def check(rows: list[tuple[Any, ...]]) -> None:
        table = as_table(kind, rows)
        assert checksum.of_stream(STREAMS[kind], table) == by_server(connection, STREAMS[kind], table)

    check()


def test_rows_of_several_batches_add_up(connection: Connection) -> None:
    """More rows than are hashed at a time, in slices that begin within their buffers."""
    table = as_table("trades", make_rows("eth_option_trades", checksum.BATCH_ROWS + 100))
    expected = by_server(connection, STREAMS["trades"], table)
    assert checksum.of_stream(STREAMS["trades"], table) == expected
    parts = [table.slice(start, 5000) for start in range(0, table.num_rows, 5000)]
    assert sum(checksum.of_stream(STREAMS["trades"], part) for part in parts) % checksum.MODULUS == expected
    assert checksum.of_stream(STREAMS["trades"], pa.concat_tables(parts[::-1])) == expected


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("bid_price", math.nextafter(7 / 8, 1)),  # one unit in the last place
        ("bid_price", None),
        ("received_at", 1_780_000_000_007_001),  # one microsecond
        ("instrument", "ETH-2"),
        ("prev_change_id", None),
    ],
)
def test_the_least_change_of_a_value_is_seen(column: str, value: Any) -> None:
    """One in a hundred rows."""
    rows = [
        (1_780_000_000_000_000 + number, "ETH-1", 1_780_000_000_000_000 + number * 1000, *[number / 8] * 6, number, 1)
        for number in range(100)
    ]
    changed = list(rows[7])
    changed[SCHEMAS["quotes"].names.index(column)] = value
    before = checksum.of_stream(STREAMS["quotes"], as_table("quotes", rows))
    after = checksum.of_stream(STREAMS["quotes"], as_table("quotes", [*rows[:7], tuple(changed), *rows[8:]]))
    assert before != after


def test_values_that_changed_places_are_seen() -> None:
    """Though both columns hold the same values as before."""
    first, second = ((1, "ETH-1", 5, *[price] * 6, change, 1) for price, change in ((1.5, 10), (2.5, 11)))
    swapped = [(*first[:3], *second[3:9], *first[9:]), (*second[:3], *first[3:9], *second[9:])]
    before, after = (
        checksum.of_stream(STREAMS["quotes"], as_table("quotes", rows)) for rows in ([first, second], swapped)
    )
    assert before != after


def test_a_server_is_asked_before_its_sums_are_believed(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that hashes another way is not believed."""
    assert checksum.agrees(connection)
    monkeypatch.setattr(checksum, "_START", 1)
    assert not checksum.agrees(connection)
