"""Buffers and lanes: bounds that hold, and gaps that tell what they cost."""

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recorder.buffers import Buffer, Warner
from recorder.gaps import Gap, GapLog
from recorder.lanes import ALL, RESUME_PATIENCE_US, SNAPSHOT_LATE_US, Lane
from tests.segment_tools import NOON_US, QUOTES, quote_rows

ROWS = quote_rows(3000)


@given(st.lists(st.sampled_from(["add", "add many", "take", "settle", "fail"]), max_size=40), st.integers(1, 700))
def test_a_buffer_keeps_order_and_bound(steps: list[str], limit: int) -> None:
    """Rows come out in the order they went in, failed rounds first; what waits or is in flight never exceeds it."""
    buffer = Buffer(QUOTES, limit)
    accepted: list[int] = []
    out: list[int] = []
    flying: list[pa.RecordBatch] | None = None
    for step in steps:
        if step.startswith("add"):
            for _ in range(1 if step == "add" else 300):
                row = ROWS[len(accepted)]
                if len(accepted) < 2900 and buffer.add(row):
                    accepted.append(row[9])
        elif step == "take" and flying is None:
            flying = buffer.take()
        elif flying is not None:
            if step == "settle":
                out += [n for chunk in flying for n in chunk["change_id"].to_pylist()]
                buffer.settle(())
            else:
                buffer.settle(flying)
            flying = None
        assert len(buffer) <= limit
        assert len(buffer) == len(accepted) - len(out)
    if flying is not None:
        buffer.settle(flying)
    out += [n for chunk in buffer.take() for n in chunk["change_id"].to_pylist()]

    assert out == accepted


def test_a_full_buffer_drops_what_arrives_and_counts_it() -> None:
    """The rows that are in it stay; the drop is counted."""
    buffer = Buffer(QUOTES, 2)

    assert [buffer.add(row) for row in ROWS[:4]] == [True, True, False, False]
    assert buffer.dropped == 2
    assert [chunk.num_rows for chunk in buffer.take()] == [2]
    assert not buffer.add(ROWS[4])


def test_a_buffer_at_80_percent_warns_once_a_minute() -> None:
    """Not at each flush."""
    buffer, warner = Buffer(QUOTES, 10), Warner()
    for row in ROWS[:8]:
        buffer.add(row)

    assert [warner.due(buffer, now_s) for now_s in (0.0, 1.0, 59.0, 60.0, 61.0)] == [True, False, False, True, False]


def states(rows: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """(instrument, state_no, cause, status, started_at, ended_at) of each gap row."""
    return [(row[1], row[4], row[6], row[7], row[8] - NOON_US, row[9] and row[9] - NOON_US) for row in rows]


def lane(limit: int = 1000, **kind: bool) -> tuple[Lane, list[tuple[Any, ...]]]:
    rows: list[tuple[Any, ...]] = []
    return Lane(Buffer(QUOTES, limit), GapLog(rows.append), **{"refetchable": False, **kind}), rows


def test_an_overflow_is_one_gap_from_the_first_drop_to_the_next_accepted_row() -> None:
    """What was dropped in between is lost, and said so."""
    quotes, rows = lane(2)
    for offset, row in enumerate(ROWS[:5]):
        quotes.add(row, NOON_US + offset)
    quotes.buffer.take()
    quotes.buffer.settle(())
    quotes.add(ROWS[5], NOON_US + 9)

    assert states(rows) == [(None, 0, "overflow", "open", 2, None), (None, 1, "overflow", "lost", 2, 9)]


@pytest.mark.parametrize("fresh", [True, False])
def test_an_overflow_begins_when_the_exchange_made_what_was_dropped(fresh: bool) -> None:
    """Which is before it came; but of a snapshot, or what was fetched, that may be long ago."""
    quotes, rows = lane(1)
    late_us = ROWS[1][0] + 70_000
    quotes.add(ROWS[0], late_us - 1)
    quotes.add(ROWS[1], late_us, fresh)

    assert rows[0][8] == (ROWS[1][0] if fresh else late_us)


def test_an_interruption_ends_when_every_instrument_flows_again() -> None:
    """One gap for all, from the last message to the last first snapshot; a second loss meanwhile is the same gap."""
    quotes, rows = lane()
    quotes.expect({"A", "B"}, NOON_US)
    for name in ("A", "B"):
        quotes.flows(0, name, NOON_US - 1)
    quotes.lost(0, "disconnect", since_us=NOON_US, now_us=NOON_US + 5)
    quotes.flows(0, "A", NOON_US + 6)
    quotes.lost(0, "silence", since_us=NOON_US + 6, now_us=NOON_US + 7)
    for at_us, name in ((10, "A"), (12, "B")):
        quotes.flows(0, name, NOON_US + at_us)

    assert states(rows) == [(None, 0, "disconnect", "open", 0, None), (None, 1, "disconnect", "lost", 0, 12)]


def test_a_connection_of_several_opens_gaps_for_its_own_instruments() -> None:
    """What flows on another connection has none, and each gap ends by itself."""
    quotes, rows = lane()
    quotes.expect({"A", "B", "C"}, NOON_US)
    for connection, name in ((0, "A"), (0, "B"), (1, "B"), (1, "C")):
        quotes.flows(connection, name, NOON_US)
    quotes.lost(0, "disconnect", since_us=NOON_US + 1, now_us=NOON_US + 2)
    quotes.flows(1, "A", NOON_US + 3)

    assert states(rows) == [("A", 0, "disconnect", "open", 1, None), ("A", 1, "disconnect", "lost", 1, 3)]
    assert [quotes.carriers(name) for name in "ABC"] == [{1}, {1}, {1}]


def test_a_hole_on_one_of_two_connections_is_none() -> None:
    """A broken book opens a gap only where it was the last that was whole."""
    quotes, rows = lane()
    quotes.flows(0, "A", NOON_US)
    quotes.flows(1, "A", NOON_US)
    quotes.stops(0, "A", "sequence_break", since_us=NOON_US, now_us=NOON_US + 1)
    assert rows == []
    quotes.stops(1, "A", "sequence_break", since_us=NOON_US, now_us=NOON_US + 2, first_missing=5, last_missing=9)

    assert states(rows) == [("A", 0, "sequence_break", "open", 0, None)]
    assert rows[0][10:12] == (5, 9)


def test_what_is_left_on_purpose_is_no_gap() -> None:
    """A move, and an instrument that is no longer chosen, lose nothing."""
    quotes, rows = lane()
    quotes.expect({"A"}, NOON_US)
    for connection, name in ((0, "A"), (1, "A"), (0, "B")):
        quotes.flows(connection, name, NOON_US)
    quotes.left(0, ["A", "B"], NOON_US + 1)
    quotes.lost(0, "disconnect", since_us=NOON_US + 2, now_us=NOON_US + 3)

    assert rows == []


def test_who_stays_silent_does_not_hold_up_the_others() -> None:
    """After a while a silent instrument gets a gap of its own, which ends when it flows."""
    quotes, rows = lane()
    quotes.interrupted("crash", since_us=NOON_US, now_us=NOON_US)
    quotes.expect({"A", "B"}, NOON_US)
    quotes.subscribed(0, {"A", "B"}, NOON_US + 1)
    quotes.flows(0, "A", NOON_US + 2)
    later_us = RESUME_PATIENCE_US + 2
    quotes.tick(NOON_US + later_us)
    quotes.flows(0, "B", NOON_US + later_us + 5)

    assert states(rows) == [
        (None, 0, "crash", "open", 0, None),
        ("B", 0, "silence", "open", 0, None),
        (None, 1, "crash", "lost", 0, later_us),
        ("B", 1, "silence", "lost", 0, later_us + 5),
    ]


def test_who_left_the_choice_does_not_hold_up_the_others() -> None:
    """Options may expire while all are waited for: the gap ends with the list that says so."""
    quotes, rows = lane()
    quotes.interrupted("disconnect", since_us=NOON_US, now_us=NOON_US)
    quotes.expect({"A", "B"}, NOON_US)
    quotes.subscribed(0, {"A", "B"}, NOON_US + 1)
    quotes.flows(0, "A", NOON_US + 2)
    quotes.expect({"A"}, NOON_US + 5)

    assert states(rows) == [(None, 0, "disconnect", "open", 0, None), (None, 1, "disconnect", "lost", 0, 5)]


@pytest.mark.fault(12)
@pytest.mark.parametrize("chained", [True, False])
def test_a_first_snapshot_that_comes_late_is_told_since_the_book_was_subscribed(chained: bool) -> None:
    """What changed before it was passed over; a ticker that comes late is the first that there was."""
    quotes, rows = lane(chained=chained)
    quotes.expect({"A", "B"}, NOON_US)
    quotes.subscribed(0, {"A", "B"}, NOON_US)
    quotes.flows(0, "A", NOON_US + SNAPSHOT_LATE_US)
    quotes.flows(0, "B", NOON_US + SNAPSHOT_LATE_US + 1)
    told = [("B", 0, "silence", "open", 0, None), ("B", 1, "silence", "lost", 0, SNAPSHOT_LATE_US + 1)]

    assert states(rows) == (told if chained else [])


@pytest.mark.fault(11)
def test_a_connection_that_is_lost_before_it_brought_anything_is_told_since_its_grant() -> None:
    """From then on the instrument is said to be recorded; each has a gap of its own, unless it is the gap of all."""
    quotes, rows = lane()
    quotes.expect({"A", "B", "C"}, NOON_US)
    quotes.subscribed(0, {"A", "B"}, NOON_US, refused={"C"})
    quotes.lost(0, "disconnect", since_us=NOON_US + 3, now_us=NOON_US + 4)
    assert states(rows) == [(None, 0, "disconnect", "open", 0, None)]
    for at_us, name in ((6, "A"), (7, "B"), (8, "C")):
        quotes.flows(1, name, NOON_US + at_us)
    quotes.expect({"A", "B", "C", "D", "E"}, NOON_US + 9)
    quotes.subscribed(0, {"D"}, NOON_US + 10)
    quotes.subscribed(1, {"E"}, NOON_US + 11)
    quotes.lost(0, "disconnect", since_us=NOON_US + 20, now_us=NOON_US + 21)
    quotes.left(1, {"E"}, NOON_US + 22)
    quotes.lost(1, "disconnect", since_us=NOON_US + 23, now_us=NOON_US + 24)
    quotes.flows(2, "D", NOON_US + 30)

    assert states(rows)[1:] == [
        (None, 1, "disconnect", "lost", 0, 8),
        ("D", 0, "disconnect", "open", 10, None),
        ("A", 0, "disconnect", "open", 23, None),
        ("B", 0, "disconnect", "open", 23, None),
        ("C", 0, "disconnect", "open", 23, None),
        ("D", 1, "disconnect", "lost", 10, 30),
    ]


@pytest.mark.fault(11)
def test_the_gap_of_all_begins_with_the_first_grant_that_brought_nothing() -> None:
    """A book waited for its snapshot already when the connection was lost."""
    quotes, rows = lane(chained=True)
    quotes.expect({"A", "B"}, NOON_US)
    quotes.flows(0, "A", NOON_US)
    quotes.subscribed(0, {"A", "B"}, NOON_US + 1)
    quotes.lost(0, "disconnect", since_us=NOON_US + 5, now_us=NOON_US + 6)
    quotes.flows(0, "B", NOON_US + SNAPSHOT_LATE_US + 7)
    quotes.flows(0, "A", NOON_US + SNAPSHOT_LATE_US + 8)

    assert states(rows) == [
        (None, 0, "disconnect", "open", 1, None),
        (None, 1, "disconnect", "lost", 1, SNAPSHOT_LATE_US + 8),
    ]


def test_trades_that_may_still_be_fetched_stay_open() -> None:
    """Their gap ends in time, not in fate."""
    trades, rows = lane(refetchable=True)
    trades.expect([ALL], NOON_US)
    trades.interrupted("disconnect", since_us=NOON_US, now_us=NOON_US)
    trades.flows(0, ALL, NOON_US + 3)

    assert states(rows) == [(None, 0, "disconnect", "open", 0, None), (None, 1, "disconnect", "open", 0, 3)]
    trades.lost(0, "disconnect", since_us=NOON_US + 8, now_us=NOON_US + 9)
    assert states(rows)[2:] == [(None, 0, "disconnect", "open", 8, None)]


def test_an_overflow_that_outlasts_its_run_ends_in_the_next() -> None:
    """The gap is taken up from the tape, and the first accepted row ends it."""
    quotes, rows = lane(1)
    for offset, row in enumerate(ROWS[:2]):
        quotes.add(row, NOON_US + offset)
    gap = Gap(rows[0][3], QUOTES, None, "overflow", NOON_US + 1)
    told: list[tuple[Any, ...]] = []
    Lane(Buffer(QUOTES, 10), GapLog(told.append, [gap]), refetchable=False).add(ROWS[2], NOON_US + 50)

    assert states(told) == [(None, 1, "overflow", "lost", 1, 50)]


def test_a_flood_of_rejected_frames_is_one_gap() -> None:
    """From the first to the next good row; what comes in between adds no rows."""
    tickers, rows = lane()
    for offset in range(1000):
        tickers.missed("rejected", since_us=NOON_US, now_us=NOON_US + offset)
    tickers.add(ROWS[0], NOON_US + 2000)

    assert states(rows) == [(None, 0, "rejected", "open", 0, None), (None, 1, "rejected", "lost", 0, 2000)]


def test_the_gap_of_an_instrument_that_left_ends_with_it() -> None:
    """Nobody waits for ever for a book that is no longer recorded."""
    quotes, rows = lane()
    quotes.expect({"A", "B"}, NOON_US)
    quotes.flows(0, "A", NOON_US)
    quotes.flows(0, "B", NOON_US)
    quotes.stops(0, "A", "sequence_break", since_us=NOON_US, now_us=NOON_US + 1)
    quotes.expect({"B"}, NOON_US + 7)

    assert states(rows) == [("A", 0, "sequence_break", "open", 0, None), ("A", 1, "sequence_break", "lost", 0, 7)]
