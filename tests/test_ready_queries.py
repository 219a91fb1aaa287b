"""The ready queries: a file each, with a sentence, over every tape; their answers where its numbers are known."""

import math
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pytest

import analysis
from analysis.queries import ready_queries
from recorder.segments.layout import datetime_to_us
from recorder.segments.schemas import SCHEMAS
from tests.fix_postgres import record

NOON = datetime(2026, 11, 1, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
CALL, PUT, FAR = "ETH-27NOV26-3000-C", "ETH-27NOV26-3000-P", "ETH-25DEC26-2000-C"
EXPIRED = "ETH-1NOV26-3000-C"
NOVEMBER, DECEMBER = datetime(2026, 11, 27, 8, tzinfo=UTC), datetime(2026, 12, 25, 8, tzinfo=UTC)


def row(kind: str, at: datetime, instrument: str | None, late_ms: int = 10, **values: Any) -> tuple[Any, ...]:
    """Return a row of which only the named columns have a value."""
    first = {"timestamp": at, "instrument": instrument, "received_at": at + timedelta(milliseconds=late_ms)}
    names = SCHEMAS[kind].names
    assert values.keys() <= set(names)
    return tuple(
        datetime_to_us(value) if isinstance(value, datetime) else value
        for value in ({**first, **values}.get(name) for name in names)
    )


def quote(
    at: datetime, instrument: str, bid: float | None, ask: float | None, change_id: int, *, mark: float | None = None,
    late_ms: int = 10,
) -> tuple[Any, ...]:  # fmt: skip
    return row(
        "quotes", at, instrument, late_ms, bid_price=bid, ask_price=ask, mark_price=mark, change_id=change_id,
        prev_change_id=change_id - 1,
    )  # fmt: skip


def option(
    instrument: str, kind: str, strike: float, expiry: datetime, at: datetime, *, state: str, index: str = "eth_usd"
) -> tuple[Any, ...]:
    return row(
        "instruments", at, instrument, option_type=kind, strike=strike, expiration_timestamp=expiry, state=state,
        recorded=True, price_index=index,
    )  # fmt: skip


def ticker(at: datetime, instrument: str, mark_iv: float, open_interest: float) -> tuple[Any, ...]:
    return row("tickers", at, instrument, mark_iv=mark_iv, open_interest=open_interest, underlying_price=2950.0)


def trade(at: datetime, instrument: str, number: int, price: float, size: float, side: str, iv: float | None) -> Any:
    return row(
        "trades", at, instrument, trade_seq=number, price=price, size=size, side=side, iv=iv, trade_id=f"{number}"
    )


def gap(number: int, status: str) -> tuple[Any, ...]:
    return row(
        "gaps", NOON, None, gap_id="g", state_no=number, stream="eth_option_quotes", cause="crash", status=status
    )


@pytest.fixture(scope="module")
def tape(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a tape of two minutes of three options."""
    root = tmp_path_factory.mktemp("ready") / "tape"
    record(root, [{
        "eth_option_quotes": [
            quote(NOON, CALL, 0.09, 0.11, 1),
            quote(NOON + 20 * MINUTE / 60, CALL, 0.10, 0.14, 2, mark=0.10),
            quote(NOON + 40 * MINUTE / 60, CALL, None, 0.2, 3),
            quote(NOON + 59 * MINUTE / 60, CALL, 0.07, 0.09, 4, mark=0.10, late_ms=30),
            quote(NOON + MINUTE, CALL, 0.08, 0.10, 5),
            quote(NOON + MINUTE, PUT, 0.01, 0.03, 6, mark=0.025, late_ms=20),
        ],
        "eth_option_trades": [
            trade(NOON, CALL, 1, 0.1, 10.0, "buy", 60.0),
            trade(NOON + MINUTE / 2, CALL, 2, 0.2, 30.0, "sell", 80.0),
            trade(NOON + MINUTE, PUT, 1, 0.02, 5.0, "buy", 70.0),
        ],
        "eth_option_tickers": [
            ticker(NOON, CALL, 60.0, 100.0), ticker(NOON + MINUTE, CALL, 61.0, 110.0), ticker(NOON, PUT, 62.0, 40.0),
            ticker(NOON, FAR, 50.0, 7.0), ticker(NOON, EXPIRED, 90.0, 900.0),
        ],
        "eth_option_instruments": [
            option(CALL, "call", 3000.0, NOVEMBER, NOON, state="created"),
            option(CALL, "call", 3000.0, NOVEMBER, NOON + MINUTE, state="open"),
            option(PUT, "put", 3000.0, NOVEMBER, NOON, state="open"),
            option(FAR, "call", 2000.0, DECEMBER, NOON, state="open"),
            option(EXPIRED, "call", 3000.0, NOON + MINUTE / 2, NOON, state="open"),
        ],
        "data_gaps": [gap(0, "open"), gap(1, "healed")],
    }])  # fmt: skip
    return root


@pytest.fixture
def con(tape: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    with analysis.open(tape) as connection:
        yield connection


def ask(con: duckdb.DuckDBPyConnection, statement: str) -> list[tuple[Any, ...]]:
    return [tuple(rounded(value) for value in found) for found in con.sql(statement).fetchall()]


def rounded(value: Any) -> Any:
    return round(value, 9) if isinstance(value, float) else value


ANSWERS: dict[str, list[tuple[Any, ...]]] = {
    "FROM bars": [
        (CALL, NOON, 0.1, 0.12, 0.08, 0.08, 3),
        (CALL, NOON + MINUTE, 0.09, 0.09, 0.09, 0.09, 1),
        (PUT, NOON + MINUTE, 0.02, 0.02, 0.02, 0.02, 1),
    ],
    "SELECT instrument, minute, least, mean, most, quotes FROM spreads": [
        (CALL, NOON, 0.02, rounded(0.08 / 3), 0.04, 3),
        (CALL, NOON + MINUTE, 0.02, 0.02, 0.02, 1),
        (PUT, NOON + MINUTE, 0.02, 0.02, 0.02, 1),
    ],
    "SELECT mean_percent FROM spreads": [
        (rounded((20 + 100 / 3 + 25) / 3),), (rounded(200 / 9),), (100.0,)
    ],
    "FROM widest": [(PUT, 100.0, 0.02, 1), (CALL, rounded((200 / 9 + 25) / 2), 0.02, 4)],
    "FROM mid_and_mark": [
        (CALL, 0.0, 20.0, 0.08, 0.1, 2),
        (PUT, -20.0, 20.0, 0.02, 0.025, 1),
    ],
    "FROM trade_flow": [
        (NOON, "call", 10.0, 30.0, 7.0, 75.0, 2, "eth_usd"),
        (NOON + MINUTE, "put", 5.0, 0.0, 0.1, 70.0, 1, "eth_usd"),
    ],
    "FROM most_active": [(CALL, 40.0, 2, 0.2, 5), (PUT, 5.0, 1, 0.02, 1)],
    "SELECT expiry, strike, option_type, instrument, timestamp, mark_iv, open_interest FROM smile": [
        (NOVEMBER, 3000.0, "call", CALL, NOON + MINUTE, 61.0, 110.0),
        (NOVEMBER, 3000.0, "put", PUT, NOON, 62.0, 40.0),
        (DECEMBER, 2000.0, "call", FAR, NOON, 50.0, 7.0),
    ],
    "FROM term_structure": [
        (NOVEMBER, 3000.0, 61.0, 2950.0, CALL, "eth_usd"), (DECEMBER, 2000.0, 50.0, 2950.0, FAR, "eth_usd"),
    ],
    "FROM open_interest": [(NOVEMBER, 3000.0, 110.0, 40.0, "eth_usd"), (DECEMBER, 2000.0, 7.0, 0.0, "eth_usd")],
    "SELECT instrument, age_s, quotes FROM staleness": [(CALL, 0.01, 5), (PUT, 0.0, 1)],
    "SELECT stream, minute, rows_per_s FROM rates": [
        ("quotes", NOON, rounded(4 / 60)), ("quotes", NOON + MINUTE, rounded(2 / 60)),
        ("tickers", NOON, rounded(4 / 60)), ("tickers", NOON + MINUTE, rounded(1 / 60)),
        ("trades", NOON, rounded(2 / 60)), ("trades", NOON + MINUTE, rounded(1 / 60)),
    ],
    "SELECT minute, p50_ms, most_ms FROM latency": [(NOON, 10.0, 30.0), (NOON + MINUTE, 15.0, 20.0)],
    "SELECT gap_id, state_no, status FROM gaps": [("g", 1, "healed")],
    "SELECT instrument, state, strike FROM options ORDER BY instrument": [
        (EXPIRED, "open", 3000.0), (FAR, "open", 2000.0), (CALL, "open", 3000.0), (PUT, "open", 3000.0),
    ],
}  # fmt: skip


@pytest.mark.parametrize("statement", ANSWERS)
def test_a_ready_query_answers_what_its_sentence_says(con: duckdb.DuckDBPyConnection, statement: str) -> None:
    """On a tape whose answers were worked out by hand."""
    assert ask(con, statement) == ANSWERS[statement]


def test_markets_of_one_tape_are_not_mixed(tmp_path: Path) -> None:
    """Two indexes, and options that expire at the same time: each has lines of its own; a trade may have no iv."""
    root, bitcoin = tmp_path / "tape", "BTC-27NOV26-90000-C"
    record(root, [{
        "eth_option_tickers": [ticker(NOON, CALL, 60.0, 100.0)],
        "eth_option_instruments": [option(CALL, "call", 3000.0, NOVEMBER, NOON, state="open")],
        "eth_option_trades": [
            trade(NOON, CALL, 1, 0.1, 10.0, "buy", 60.0), trade(NOON, CALL, 2, 0.1, 90.0, "buy", None),
        ],
        "btc_option_tickers": [ticker(NOON, bitcoin, 40.0, 5.0)],
        "btc_option_instruments": [
            option(bitcoin, "call", 90000.0, NOVEMBER, NOON, state="open", index="btc_usd")
        ],
        "btc_option_trades": [trade(NOON, bitcoin, 1, 0.2, 1.0, "sell", 41.0)],
    }])  # fmt: skip
    with analysis.open(root) as con:
        assert ask(con, "SELECT expiry, instrument, mark_iv, price_index FROM term_structure") == [
            (NOVEMBER, bitcoin, 40.0, "btc_usd"), (NOVEMBER, CALL, 60.0, "eth_usd"),
        ]  # fmt: skip
        assert ask(con, "SELECT strike, calls, price_index FROM open_interest") == [
            (3000.0, 100.0, "eth_usd"), (90000.0, 5.0, "btc_usd"),
        ]  # fmt: skip
        assert ask(con, "SELECT premium, mean_iv_percent, trades, price_index FROM trade_flow") == [
            (0.2, 41.0, 1, "btc_usd"), (10.0, 60.0, 2, "eth_usd"),
        ]  # fmt: skip


def test_every_ready_query_is_tried_and_says_in_a_line_what_it_answers() -> None:
    """None without a sentence, none without an answer above."""
    tried = " ".join(ANSWERS).split()
    for query in ready_queries():
        assert query.name in tried
        assert query.sentence.endswith("."), query.name
        assert not query.statement.startswith("--"), query.name


def test_the_smile_is_that_of_the_moment_at_which_the_range_ends(tape: Path) -> None:
    """Tickers after it are not among the rows."""
    with analysis.open(tape, end=NOON + MINUTE / 2) as con:
        assert ask(con, f"SELECT mark_iv, open_interest FROM smile WHERE instrument = '{CALL}'") == [(60.0, 100.0)]


def test_a_tape_without_anything_answers_with_no_rows(tmp_path: Path) -> None:
    """And not with an error."""
    with analysis.open(tmp_path) as con:
        for query in ready_queries():
            assert con.sql(f"FROM {query.name}").fetchall() == [], query.name


def test_the_last_percentile_is_between_its_neighbours(con: duckdb.DuckDBPyConnection) -> None:
    """Interpolated, as PostgreSQL's percentile_cont does it."""
    ((p95, p99),) = con.sql("SELECT p95_ms, p99_ms FROM latency ORDER BY minute LIMIT 1").fetchall()
    assert math.isclose(p95, 27.0)
    assert math.isclose(p99, 29.4)
