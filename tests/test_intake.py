"""What becomes a row when several connections bring the same: each tick once, and nothing waits for a dead one."""

from pathlib import Path
from typing import Any

import pytest

from recorder.deribit.book import Top
from recorder.deribit.messages import TickerData, TradeData
from recorder.intake import HOLD_BACK_US, Intake
from recorder.rejects import Rejects
from recorder.runtime.logging import get_logger
from recorder.trades_had import TradesHad

NAME = "ETH-1"
TOP = Top(1.0, 1.0, 2.0, 1.0)
NOW_US = 1_780_000_000_000_000


class Bench:
    """An intake whose time a test sets."""

    def __init__(self, folder: Path) -> None:
        self.now_us = NOW_US
        self.intake = Intake(
            currency="ETH",
            kind="option",
            buffer_size_quotes=1000,
            buffer_size_trades=1000,
            buffer_size_tickers=1000,
            had=TradesHad(),
            open_gaps=[],
            rejects=Rejects(folder),
            now_us=lambda: self.now_us,
            on_instrument=lambda _: None,
            on_list_missed=lambda: None,
            log=get_logger("test"),
        )

    def quote(self, connection: int, change_id: int, prev: int | None, after_us: int = 0) -> None:
        self.now_us += after_us
        self.intake.quote(connection, NAME, self.now_us // 1000, TOP, change_id, prev, self.now_us)

    def ticker(self, connection: int, timestamp: int, mark_price: float = 1.0) -> None:
        data = TickerData(NAME, timestamp, mark_price=mark_price)
        self.intake.ticker(connection, data, self.now_us)

    def rows(self, kind: str) -> list[dict[str, Any]]:
        found = [buffer for buffer in self.intake.buffers if buffer.stream.endswith(kind)]
        return [row for buffer in found for batch in buffer.take() for row in batch.to_pylist()]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_a_second_connection_waits_for_the_first_to_bring_what_lies_between(bench: Bench) -> None:
    """A new socket's snapshot lies ahead of the chain: the other one closes the gap, and then both flow."""
    bench.quote(0, 10, None)
    bench.quote(1, 14, None)
    bench.quote(0, 15, 10)
    bench.quote(1, 16, 14)
    bench.quote(0, 16, 15)

    assert [(row["prev_change_id"], row["change_id"]) for row in bench.rows("quotes")] == [
        (None, 10),
        (10, 15),
        (14, 16),
    ]
    assert bench.rows("data_gaps") == []


@pytest.mark.fault(11)
def test_a_second_connection_does_not_wait_for_a_dead_one(bench: Bench) -> None:
    """The first is open and silent: after a second the other one counts, and the hole is told by its numbers."""
    bench.quote(0, 10, None)
    bench.quote(1, 14, None, after_us=50_000)
    bench.quote(1, 16, 14, after_us=50_000)
    bench.quote(1, 17, 16, after_us=HOLD_BACK_US)
    bench.quote(1, 18, 17, after_us=50_000)
    gaps = bench.rows("data_gaps")

    assert [row["change_id"] for row in bench.rows("quotes")] == [10, 17, 18]
    assert {(gap["first_missing"], gap["last_missing"]) for gap in gaps} == {(11, 16)}
    assert gaps[-1]["status"] == "lost"
    assert int(gaps[0]["started_at"].timestamp() * 1000) == NOW_US // 1000


@pytest.mark.fault(11, 12)
def test_a_snapshot_that_lies_ahead_for_long_tells_what_its_carrier_missed(bench: Bench) -> None:
    """The first was never sent a change; two new ones bring its snapshot, and no number tells the hole."""
    bench.quote(0, 10, None)
    bench.quote(1, 14, None, after_us=50_000)
    bench.quote(2, 14, None, after_us=HOLD_BACK_US)
    bench.quote(0, 18, 14, after_us=50_000)
    gaps = bench.rows("data_gaps")

    assert [(row["prev_change_id"], row["change_id"]) for row in bench.rows("quotes")] == [
        (None, 10),
        (None, 14),
        (14, 18),
    ]
    assert {(gap["first_missing"], gap["last_missing"]) for gap in gaps} == {(11, 13)}
    assert gaps[-1]["status"] == "lost"
    assert int(gaps[0]["started_at"].timestamp() * 1000) == NOW_US // 1000


def test_a_connection_that_was_dead_before_it_was_lost_is_told_from_then(bench: Bench) -> None:
    """Another one has shown how far the book is, and was lost first: the gap begins with the last row."""
    bench.quote(0, 10, None)
    bench.quote(1, 14, None, after_us=50_000)
    bench.intake.disconnected(1, cause="disconnect", since_us=bench.now_us, detail="")
    bench.now_us += 4_000_000
    bench.intake.disconnected(0, cause="disconnect", since_us=bench.now_us, detail="")
    (gap,) = [gap for gap in bench.rows("data_gaps") if gap["stream"].endswith("quotes")]

    assert int(gap["started_at"].timestamp() * 1000) == NOW_US // 1000


def test_a_broken_book_is_told_from_its_own_last_change(bench: Bench) -> None:
    """What is missing was made after that, whatever other books brought meanwhile."""
    bench.quote(0, 10, None)
    bench.now_us += 4_000_000
    bench.intake.book_broken(0, NAME, 11, 13)
    bench.quote(0, 20, None)
    gap, *_ = bench.rows("data_gaps")

    assert (gap["cause"], gap["first_missing"], gap["last_missing"]) == ("sequence_break", 11, 13)
    assert int(gap["started_at"].timestamp() * 1000) == NOW_US // 1000


def test_no_gap_of_a_clock_that_is_behind_ends_before_it_begins(bench: Bench) -> None:
    """The exchange's time of the last change lies in the future then, and the snapshot comes before it."""
    ahead_ms = NOW_US // 1000 + 2_000
    bench.intake.quote(0, NAME, ahead_ms, TOP, 10, None, NOW_US)
    bench.now_us += 100_000
    bench.intake.book_broken(0, NAME, 11, 13)
    bench.intake.quote(0, NAME, ahead_ms + 200, TOP, 20, None, bench.now_us)
    bench.intake.quote(1, NAME, ahead_ms + 300, TOP, 30, 25, bench.now_us + HOLD_BACK_US)
    bench.intake.quote(1, NAME, ahead_ms + 300, TOP, 30, 25, bench.now_us + 3 * HOLD_BACK_US)
    ended = [gap for gap in bench.rows("data_gaps") if gap["ended_at"] is not None]

    assert {gap["cause"] for gap in ended} == {"sequence_break", "disconnect"}
    assert all(gap["started_at"] <= gap["ended_at"] for gap in ended)


def test_a_ticker_that_another_connection_brought_is_not_recorded_again(bench: Bench) -> None:
    """Also when that one has left meanwhile: windows end at different moments."""
    bench.ticker(0, 1_000)
    bench.ticker(1, 1_000)
    bench.ticker(0, 2_000)
    bench.intake.left(0, {NAME}, trades=False)
    bench.ticker(1, 2_000)
    bench.ticker(1, 2_000, mark_price=2.0)
    bench.ticker(1, 2_000, mark_price=2.0)

    assert [(row["timestamp"].second, row["mark_price"]) for row in bench.rows("tickers")] == [
        (1, 1.0),
        (2, 1.0),
        (2, 2.0),
        (2, 2.0),
    ]


def test_tickers_of_one_time_are_recorded_once_each_however_windows_cut_them(bench: Bench) -> None:
    """One connection brings only the last of two that share a time, the other brings both: two rows."""
    bench.ticker(0, 1_000)
    bench.ticker(1, 1_000)
    bench.ticker(0, 2_000, mark_price=2.0)
    bench.ticker(1, 2_000, mark_price=1.5)
    bench.ticker(1, 2_000, mark_price=2.0)

    assert [row["mark_price"] for row in bench.rows("tickers")] == [1.0, 2.0, 1.5]


def test_a_trade_that_two_connections_bring_is_recorded_once(bench: Bench) -> None:
    """By instrument and trade_seq, live or fetched, in whatever order."""
    one, two = (TradeData(NAME, str(n), n, 1_000, "buy", 1.0, 1.0) for n in (1, 2))
    bench.intake.trades([one, two], bench.now_us, bench.now_us)
    bench.intake.trades([two], bench.now_us, bench.now_us)
    bench.intake.take_trade(one, "backfill", bench.now_us, 0)

    assert [row["trade_seq"] for row in bench.rows("trades")] == [1, 2]
