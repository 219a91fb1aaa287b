"""The numbers behind the charts of `analysis report`: what plain counts of the rows give."""

from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC
from pathlib import Path

import duckdb
import pytest

import analysis
from analysis.report import figures
from analysis.report.axis import Axis, axis_over
from recorder.segments.layout import datetime_to_us
from recorder.segments.schemas import SCHEMAS
from tests.fix_report import CALL, FAR, LATER, NEAR, PUT, QUOTES, TICKERS, TRADES, Rows


@pytest.fixture
def con(market_tape: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    with analysis.open(market_tape) as connection:
        yield connection


@pytest.fixture
def axis(market_rows: Rows) -> Axis:
    times = [one[2] for stream in (QUOTES, TRADES, TICKERS) for one in market_rows[stream]]
    return axis_over(min(times), max(times))


def test_rates_are_plain_counts(con: duckdb.DuckDBPyConnection, market_rows: Rows, axis: Axis) -> None:
    """Of every bucket, by when a row came, and a trade by when it was made; edges by the part that there is."""
    for stream, column in ((QUOTES, 2), (TICKERS, 2), (TRADES, 0)):
        found = figures.rates(con, stream, axis)
        counted: dict[int, int] = defaultdict(int)
        for one in market_rows[stream]:
            counted[one[column] // axis.width_us] += 1
        expected = [counted[number] / axis.covered_s(number) for number in axis.numbers]

        assert found["rows_per_s"] == pytest.approx(expected, abs=0.001)
        assert found["time_ms"] == [number * axis.width_us / 1000 for number in axis.numbers]
        assert sum(found["rows_per_s"]) > 0


def nearest_rank(values: list[float], share: float) -> float:
    """Return the least value that at least this share of all does not exceed."""
    ordered = sorted(values)
    return next(value for place, value in enumerate(ordered, 1) if place >= share * len(ordered) - 1e-9)


def test_latency_is_a_percentile_of_what_came(con: duckdb.DuckDBPyConnection, market_rows: Rows, axis: Axis) -> None:
    """To three digits; nothing where nothing came."""
    figures.take_market(con, "eth_option", [QUOTES, TRADES, TICKERS], axis)
    found = figures.latency(con, axis)
    late: dict[int, list[float]] = defaultdict(list)
    for one in market_rows[QUOTES]:
        late[one[2] // axis.width_us].append((one[2] - one[0]) / 1000)

    for share, name in ((0.5, "p50"), (0.95, "p95"), (0.99, "p99")):
        expected = [nearest_rank(late[number], share) if late[number] else None for number in axis.numbers]
        assert [value is None for value in found[name]] == [value is None for value in expected]
        there = [value for value in expected if value is not None]
        assert [value for value in found[name] if value is not None] == pytest.approx(there, rel=0.006)


def test_spreads_are_medians_by_expiry(con: duckdb.DuckDBPyConnection, market_rows: Rows, axis: Axis) -> None:
    """Of quotes with both sides, in percent of the price between them; the nearest expiry first."""
    figures.take_market(con, "eth_option", [QUOTES, TRADES, TICKERS], axis)
    found = figures.spreads(con, axis)
    percent: dict[tuple[str, int], list[float]] = defaultdict(list)
    for one in market_rows[QUOTES]:
        if one[3] is not None:
            percent["e1" if one[1] == LATER else "e0", one[2] // axis.width_us].append(
                100 * (one[5] - one[3]) / ((one[5] + one[3]) / 2)
            )

    assert [moment and moment.astimezone(UTC) for moment in found.expiries] == [NEAR, FAR]
    assert found.left_out == 0
    for name in ("e0", "e1"):
        for number, value in zip(axis.numbers, found.columns[name], strict=True):
            values = percent[name, number]
            expected = nearest_rank(values, 0.5) if values else None
            assert value == (expected if expected is None else pytest.approx(expected, rel=0.006))


def test_volume_is_what_takers_bought_and_sold(con: duckdb.DuckDBPyConnection, market_rows: Rows, axis: Axis) -> None:
    """By when the exchange made the trade; what was made before or after is counted apart."""
    figures.take_market(con, "eth_option", [QUOTES, TRADES, TICKERS], axis)
    size, side = SCHEMAS["trades"].names.index("size"), SCHEMAS["trades"].names.index("side")
    found = figures.volume(con, axis)
    for name, word in (("bought", "buy"), ("sold", "sell")):
        expected = [
            sum(one[size] for one in market_rows[TRADES] if one[side] == word and one[0] // axis.width_us == number)
            for number in axis.numbers
        ]
        assert found[name] == expected
    assert figures.trades_elsewhere(con, axis) == 0
    half = Axis(axis.start_us, (axis.start_us + axis.end_us) // 2, axis.width_us)
    inside = sum(figures.volume(con, half)["trades"])
    assert 0 < inside == len(market_rows[TRADES]) - figures.trades_elsewhere(con, half)


def test_ivs_and_open_interest_are_those_of_the_newest_tickers(con: duckdb.DuckDBPyConnection, axis: Axis) -> None:
    """An iv of 0 is none; expired options are left out."""
    figures.take_market(con, "eth_option", [QUOTES, TRADES, TICKERS], axis)
    near, far = figures.smiles(con)
    assert (near.expiry.astimezone(UTC), near.underlying_price) == (NEAR, 2950.0)
    assert near.columns == {
        "strike": [3000.0, 3000.0], "option_type": ["call", "put"], "instrument": [CALL, PUT],
        "mark_iv": [61.0, 62.0], "bid_iv": [None, None], "ask_iv": [66.0, 67.0],
    }  # fmt: skip
    assert far.columns["mark_iv"] == [50.0]
    assert figures.term_structure(con)["mark_iv"] == [61.0, 50.0]
    assert figures.open_interest(con) == {"strike": [2000.0, 3000.0], "calls": [7.0, 110.0], "puts": [0.0, 40.0]}

    after = Axis(axis.start_us, datetime_to_us(NEAR), axis.width_us)
    figures.take_market(con, "eth_option", [QUOTES, TRADES, TICKERS], after)
    assert [one.expiry.astimezone(UTC) for one in figures.smiles(con)] == [FAR]
    assert figures.open_interest(con)["strike"] == [2000.0]
