"""What becomes a row when several connections bring the same: each tick once, and nothing waits for a dead one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from recorder.chains import DEAD_US, HOLD_BACK_US
from recorder.deribit.book import Top
from recorder.deribit.messages import InstrumentData, TickerData, TradeData
from recorder.deribit.universe import Listing
from recorder.intake import Intake
from recorder.lanes import RESUME_PATIENCE_US, Lane
from recorder.rejects import Rejects
from recorder.runtime.logging import get_logger
from recorder.trades_had import TradesHad

NAME = "ETH-1"
TOP = Top(1.0, 1.0, 2.0, 1.0)
NOW_US = 1_780_000_000_000_000


class Bench:
    """An intake whose time a test sets."""

    def __init__(self, folder: Path, *, now_us: Callable[[], int] | None = None) -> None:
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
            now_us=now_us or (lambda: self.now_us),
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


@pytest.mark.fault(11)
def test_what_a_dead_connection_has_not_brought_of_a_quiet_book_is_told(bench: Bench) -> None:
    """Nothing further comes of it: the gap is told by time, and lasts until the next row."""
    bench.quote(0, 10, None)
    bench.quote(1, 14, None, after_us=50_000)
    bench.intake.tick()
    assert bench.rows("data_gaps") == []
    bench.now_us += DEAD_US
    bench.intake.tick()
    (told,) = bench.rows("data_gaps")
    assert (told["cause"], told["status"]) == ("sequence_break", "open")
    assert (told["first_missing"], told["last_missing"]) == (11, 14)
    assert int(told["started_at"].timestamp() * 1000) == NOW_US // 1000
    bench.quote(1, 16, 14, after_us=50_000)

    assert [(row["prev_change_id"], row["change_id"]) for row in bench.rows("quotes")] == [(None, 10), (14, 16)]
    assert [gap["status"] for gap in bench.rows("data_gaps")] == ["lost"]
    assert bench.intake.quotes.carriers(NAME) == {1}


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


@pytest.mark.fault(11)
def test_a_connection_that_was_ahead_flows_once_what_is_recorded_reaches_it(bench: Bench) -> None:
    """Also where its own book is quiet after that: losing the other one is no gap, and the next row none either."""
    bench.quote(0, 10, None)
    bench.quote(1, 14, None, after_us=50_000)
    assert bench.intake.quotes.carriers(NAME) == {0}
    bench.quote(0, 14, 10, after_us=50_000)
    assert bench.intake.quotes.carriers(NAME) == {0, 1}
    bench.now_us += 5_000_000
    bench.intake.disconnected(0, cause="disconnect", since_us=bench.now_us, detail="")
    bench.quote(1, 18, 14, after_us=50_000)

    assert [(row["prev_change_id"], row["change_id"]) for row in bench.rows("quotes")] == [
        (None, 10),
        (10, 14),
        (14, 18),
    ]
    assert [gap for gap in bench.rows("data_gaps") if gap["stream"].endswith("quotes")] == []


@pytest.mark.parametrize("ending", ["still ahead", "broken", "left", "disconnected", "rejected"])
def test_a_connection_that_is_ahead_does_not_flow_before_it_is_reached(bench: Bench, ending: str) -> None:
    """What was passed over of it is not recorded yet; and what it lost meanwhile nobody will bring."""
    bench.quote(0, 10, None)
    bench.quote(1, 14, None, after_us=50_000)
    if ending == "still ahead":
        bench.quote(1, 16, 14, after_us=50_000)
    elif ending == "broken":
        bench.intake.book_broken(1, NAME, 15, 16)
    elif ending == "left":
        bench.intake.left(1, {NAME}, trades=False)
    elif ending == "disconnected":
        bench.intake.disconnected(1, cause="disconnect", since_us=bench.now_us, detail="")
    else:
        bench.intake.rejected(1, b"", "why", family="book", instrument=NAME, since_us=bench.now_us)
    bench.quote(0, 15, 10, after_us=50_000)

    assert bench.intake.quotes.carriers(NAME) == {0}
    bench.quote(0, 16, 15, after_us=50_000)
    assert bench.intake.quotes.carriers(NAME) == ({0, 1} if ending == "still ahead" else {0})


@pytest.mark.fault(12)
@pytest.mark.parametrize("change_id", [50, 11, 3])
def test_a_snapshot_that_nobody_asked_for_tells_what_it_jumped_over(bench: Bench, change_id: int) -> None:
    """What lies before it may be missing, also where numbers begin anew; the same snapshot again says nothing."""
    bench.quote(0, 10, None)
    bench.quote(0, 10, None, after_us=50_000)
    bench.quote(0, change_id, None, after_us=50_000)
    bench.quote(0, change_id, None, after_us=50_000)
    bench.quote(0, change_id + 1, change_id, after_us=50_000)
    gaps = bench.rows("data_gaps")

    assert [(row["prev_change_id"], row["change_id"]) for row in bench.rows("quotes")] == [
        (None, 10),
        (None, change_id),
        (change_id, change_id + 1),
    ]
    assert [(gap["cause"], gap["status"]) for gap in gaps] == [("sequence_break", "open"), ("sequence_break", "lost")]
    numbers = (11, 49) if change_id == 50 else (None, None)
    assert {(gap["first_missing"], gap["last_missing"]) for gap in gaps} == {numbers}
    assert int(gaps[0]["started_at"].timestamp() * 1000) == NOW_US // 1000


@pytest.mark.fault(12)
def test_a_snapshot_that_nobody_asked_for_waits_for_who_carries_the_book_too(bench: Bench) -> None:
    """The other connection brings what lies between, and nothing is missing."""
    bench.quote(0, 10, None)
    bench.quote(1, 10, None)
    bench.quote(0, 50, None, after_us=50_000)
    bench.quote(1, 50, 10, after_us=50_000)
    bench.quote(0, 51, 50, after_us=50_000)

    assert [(row["prev_change_id"], row["change_id"]) for row in bench.rows("quotes")] == [
        (None, 10),
        (10, 50),
        (50, 51),
    ]
    assert bench.rows("data_gaps") == []


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


def test_a_gap_of_a_clock_that_is_behind_ends_when_the_exchange_says(bench: Bench) -> None:
    """What is missing has times of the exchange, which lie after those of this clock."""
    ahead_us = 2_000_000
    for name in ("quotes", "tickers"):
        lane: Lane = getattr(bench.intake, name)
        lane.expect({NAME}, bench.now_us)
        lane.interrupted("disconnect", since_us=bench.now_us, now_us=bench.now_us)
    whole_ms = (bench.now_us + ahead_us) // 1000
    bench.intake.quote(0, NAME, whole_ms, TOP, 10, None, bench.now_us)
    bench.ticker(0, whole_ms)
    bench.intake.book_broken(0, NAME, 11, 13)
    bench.intake.quote(0, NAME, whole_ms + 100, TOP, 20, None, bench.now_us)
    bench.intake.rejected(0, b"", "why", family="unknown", instrument=None, since_us=bench.now_us)
    bench.ticker(0, whole_ms + 200)
    ended = {(gap["cause"], gap["stream"][11:]): gap["ended_at"] for gap in bench.rows("data_gaps")}

    assert {key: int(at.timestamp() * 1000) - whole_ms for key, at in ended.items()} == {
        ("disconnect", "quotes"): 0,
        ("disconnect", "tickers"): 0,
        ("sequence_break", "quotes"): 100,
        ("rejected", "tickers"): 200,
    }


def test_what_broke_where_it_was_moved_to_is_told_from_the_newest_that_is_known(bench: Bench) -> None:
    """The old connection was left later, but nobody looks at what it brought last."""
    bench.intake.quotes.expect({NAME}, NOW_US)
    bench.intake.tickers.expect({NAME}, NOW_US)
    bench.ticker(0, NOW_US // 1000)
    bench.ticker(1, NOW_US // 1000)
    bench.quote(0, 10, None)
    bench.quote(1, 10, None)
    bench.now_us += 4_000_000
    bench.intake.book_broken(1, NAME, 11, 13)
    bench.intake.rejected(1, b"", "why", family="ticker", instrument=NAME, since_us=bench.now_us)
    bench.intake.left(0, {NAME}, trades=False)
    gaps = bench.rows("data_gaps")

    assert [(gap["cause"], gap["stream"][11:]) for gap in gaps] == [
        ("sequence_break", "quotes"),
        ("sequence_break", "tickers"),
    ]
    assert {int(gap["started_at"].timestamp() * 1000) for gap in gaps} == {NOW_US // 1000}


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


@pytest.mark.parametrize("step_s", [-3600, 3600])
@pytest.mark.fault(15)
def test_what_waits_is_as_far_away_after_a_step_of_the_clock_as_before(bench: Bench, step_s: int) -> None:
    """A jump's grace, the patience with a silent instrument, and with a connection that holds a book back."""
    none: frozenset[str] = frozenset()
    intake = bench.intake
    intake.chosen(Listing({NAME: InstrumentData(NAME), "quiet": InstrumentData("quiet")}), [NAME, "quiet"])
    bench.quote(0, 10, None)
    bench.quote(1, 14, None)
    intake.subscribed(0, books={"quiet"}, tickers=none, refused=none, trades=False, lifecycle=False, exchange_us=None)
    trades = [TradeData(NAME, str(seq), seq, NOW_US // 1000, "buy", 1.0, 1.0) for seq in (1, 3)]
    intake.trades(trades, bench.now_us, bench.now_us)
    before_us = bench.now_us
    bench.now_us += step_s * 1_000_000
    intake.clock_stepped(step_s * 1_000_000, before_us)
    bench.rows("data_gaps")

    def told() -> set[tuple[str, str | None]]:
        intake.tick()
        return {(gap["cause"], gap["instrument"]) for gap in bench.rows("data_gaps")}

    assert told() == set()
    bench.quote(1, 15, 14, after_us=HOLD_BACK_US // 2)
    assert [row["change_id"] for row in bench.rows("quotes")] == [10]
    bench.quote(1, 16, 15, after_us=HOLD_BACK_US // 2)
    assert [row["change_id"] for row in bench.rows("quotes")] == [16]
    assert ("sequence_break", NAME) in told()
    bench.now_us += RESUME_PATIENCE_US
    assert told() == {("silence", "quiet")}


@pytest.mark.fault(11)
def test_tickers_between_a_dead_connection_and_who_took_over_are_told(bench: Bench) -> None:
    """A move ends when the new one flows; that the old one was silent long before shows only when it is given up."""
    bench.ticker(0, NOW_US // 1000)
    heard_us = bench.now_us
    bench.now_us += 10_000_000
    taken_us = bench.now_us - 5_000
    bench.ticker(1, taken_us // 1000)
    bench.now_us += 25_000_000
    bench.intake.disconnected(0, cause="silence", since_us=heard_us, detail="")
    opened, lost = (gap for gap in bench.rows("data_gaps") if gap["stream"].endswith("tickers"))

    assert (opened["instrument"], opened["cause"], lost["status"]) == (NAME, "silence", "lost")
    assert [int(lost[end].timestamp() * 1e6) for end in ("started_at", "ended_at")] == [heard_us, taken_us]


def test_by_a_clock_that_is_ahead_no_ticker_is_told_that_was_brought(bench: Bench) -> None:
    """What was heard is told by the exchange's time, and so is since when the other connection carries it."""
    ahead_us = 60_000_000
    bench.ticker(0, (bench.now_us - ahead_us) // 1000)
    bench.ticker(1, (bench.now_us - ahead_us) // 1000)
    bench.now_us += 25_000_000
    bench.intake.disconnected(0, cause="disconnect", since_us=bench.now_us - ahead_us, detail="")

    assert bench.rows("data_gaps") == []


@pytest.mark.fault(11, 14)
def test_a_full_buffer_and_a_lost_connection_do_not_end_the_recorder(bench: Bench) -> None:
    """A book flows whose snapshot found no room; another connection has shown it since."""
    for number in range(1000):
        bench.quote(0, 10 + number, 9 + number if number else None)
    ms = bench.now_us // 1000
    bench.intake.quote(0, "new", ms, TOP, 5_000, None, bench.now_us)
    bench.intake.quote(1, "new", ms, TOP, 5_004, None, bench.now_us)
    bench.intake.disconnected(0, cause="disconnect", since_us=bench.now_us, detail="")
    told = {gap["cause"] for gap in bench.rows("data_gaps") if gap["stream"].endswith("quotes")}

    assert told == {"overflow", "disconnect"}


@pytest.mark.fault(11)
def test_a_grant_that_is_lost_before_it_brought_anything_is_told_once(bench: Bench) -> None:
    """However long the exchange is away then: one gap of all lasts, and no instrument gets one of its own."""
    both, none = frozenset({"A", "B"}), frozenset[str]()
    intake = bench.intake
    intake.chosen(Listing({name: InstrumentData(name) for name in both}), both)
    intake.subscribed(0, books=both, tickers=both, refused=none, trades=False, lifecycle=False, exchange_us=None)
    bench.now_us += 1_000_000
    intake.disconnected(0, cause="disconnect", since_us=bench.now_us, detail="")
    for _ in range(3):
        bench.now_us += RESUME_PATIENCE_US
        intake.tick()
    told = [gap for gap in bench.rows("data_gaps") if not gap["stream"].endswith("trades")]

    assert [(gap["cause"], gap["instrument"], gap["status"]) for gap in told] == [("disconnect", None, "open")] * 2


def test_tickers_that_another_connection_brought_meanwhile_are_not_told(bench: Bench) -> None:
    """It flowed there before the last that was heard of the one that is lost."""
    bench.ticker(0, 1_000)
    bench.ticker(1, 1_000)
    bench.now_us += 1_000
    bench.intake.disconnected(0, cause="silence", since_us=bench.now_us - 500, detail="")

    assert bench.rows("data_gaps") == []


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
