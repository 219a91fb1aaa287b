"""Trades that are owed: which holes are told, since when, and what is forgotten."""

from typing import Any

import pytest

from recorder.buffers import Buffer
from recorder.gaps import Gap, GapLog
from recorder.lanes import Lane
from recorder.runtime.data_dir import DataDir
from recorder.segments.schemas import GAPS_STREAM
from recorder.tape_state import TapeState
from recorder.trades_had import TradesHad
from recorder.trades_owed import JUMP_GRACE_US, TradesOwed, runs_of_fate
from tests.segment_tools import NOON_US, batches, tape_in
from tests.test_tape_state import TRADES, gap, trade

NAME = "A"


class Books:
    """The owed trades of one lane, and the gap rows that they give."""

    def __init__(self, *open_gaps: Gap, had: TradesHad | None = None, limit_rows: int = 100) -> None:
        self.rows: list[tuple[Any, ...]] = []
        self.gaps = GapLog(self.rows.append, open_gaps)
        self.buffer = Buffer(TRADES, limit_rows)
        lane = Lane(self.buffer, self.gaps, refetchable=True)
        self.owed = TradesOwed(lane, self.gaps, had or TradesHad(), since_us=1, now_us=lambda: NOON_US)

    def take(self, seq: int, *, at_us: int = 0, since_us: int = 0, live: bool = True) -> bool:
        """Take a trade, by default one that comes live."""
        return self.owed.take(trade(seq), NAME, seq, NOON_US + at_us, NOON_US + since_us, live=live)

    def tick(self, at_us: int = JUMP_GRACE_US) -> None:
        """Make everything durable, and tell what is due."""
        self.buffer.take()
        self.buffer.settle(())
        self.owed.tick(NOON_US + at_us)

    def told(self) -> list[tuple[Any, ...]]:
        """(status, first_missing, last_missing) of each row for the instrument."""
        return [(row[7], row[10], row[11]) for row in self.rows if row[1] == NAME]


def test_a_hole_begins_with_the_last_trade_of_its_instrument() -> None:
    """By the exchange's time of that trade; what other channels brought since then says nothing of it."""
    books = Books()
    books.take(1, at_us=5)
    books.take(3, at_us=3_600_000_000, since_us=3_599_999_999)
    books.tick(2 * 3_600_000_000)

    assert [row[8] - NOON_US for row in books.rows] == [0]
    assert books.told() == [("open", 2, 2)]


def test_what_lies_between_a_find_and_what_is_known_is_told_with_it() -> None:
    """Numbers are consecutive: those that nobody has seen yet exist too."""
    books = Books()
    books.take(10)
    books.owed.owe(NAME, 13, 14, "crash", NOON_US)
    books.owed.owe(NAME, 5, 6, "crash", NOON_US)

    assert books.told() == [("open", 11, 14), ("open", 5, 9)]
    assert books.owed.had.by_instrument[NAME].holes == [(5, 9), (11, 14)]


def test_a_trade_before_the_first_tells_what_lies_between() -> None:
    """The first that came need not have been the first that was made."""
    books = Books()
    books.take(10)
    books.take(6)
    books.take(8)
    books.tick()

    assert books.told() == [("open", 7, 7), ("open", 9, 9)]


def test_a_trade_that_was_dropped_is_not_forgotten() -> None:
    """Though it was the only one of its instrument: it is owed."""
    books = Books(limit_rows=0)

    assert not books.take(7)
    assert books.owed.had.missing(NAME, 1, 7) == [(7, 7)]


def test_a_trade_that_comes_after_all_undoes_a_fate_that_is_not_told_yet() -> None:
    """The two hosts did not have it, but the channel was only late."""
    books = Books()
    books.take(1)
    books.take(4)
    books.tick()
    [told] = books.gaps.find(stream=TRADES, instrument=NAME)
    books.take(5)  # not durable yet, so that nothing is told yet
    books.owed.give_up(told, void=[(2, 3)], lost=[])
    books.take(2)
    books.tick()
    books.owed.give_up(told, void=[(3, 3)], lost=[])
    books.tick()

    assert books.told() == [("open", 2, 3), ("healed", 2, 2), ("void", 3, 3)]


def test_what_is_decided_is_not_owed_again() -> None:
    """Neither what is void nor what is lost; and a fate is told only once all numbers have one."""
    books = Books()
    books.take(1)
    books.take(6)
    books.tick()
    [told] = books.gaps.find(stream=TRADES, instrument=NAME)
    books.owed.give_up(told, void=[(2, 3)], lost=[])
    books.tick()
    assert books.told() == [("open", 2, 5)]
    books.owed.give_up(told, void=[(2, 3)], lost=[(4, 5)])
    books.tick()

    assert books.told()[1:] == [("void", 2, 3), ("lost", 4, 5)]
    assert books.owed.owe(NAME, 1, 6, "crash", NOON_US) == set()
    assert books.owed.had.by_instrument[NAME].holes == []


def test_a_fate_that_was_told_meanwhile_is_not_told_again() -> None:
    """What the hosts were asked for may come live before they answer."""
    books = Books()
    books.take(1)
    books.take(3)
    books.tick()
    [told] = books.gaps.find(stream=TRADES, instrument=NAME)
    books.take(2)
    books.tick()
    books.owed.give_up(told, void=[], lost=[])
    books.tick()

    assert books.told() == [("open", 2, 2), ("healed", 2, 2)]


def test_fates_come_in_runs_whatever_their_width() -> None:
    """A million of millions of numbers is three rows."""
    assert runs_of_fate(1, 10**12, void=[(5, 10**11)], lost=[]) == [
        ("healed", 1, 4),
        ("void", 5, 10**11),
        ("healed", 10**11 + 1, 10**12),
    ]


@pytest.mark.parametrize("owed", [True, False])
def test_only_who_is_owed_nothing_is_forgotten(owed: bool) -> None:
    """And only who is over since before the time that can still be asked for."""
    books = Books()
    books.owed.listed({NAME, "B"}, NOON_US)
    books.take(1)
    books.take(3)  # what it jumped over is not told yet
    if not owed:
        books.take(2)
        books.tick()
    books.owed.listed({"B"}, NOON_US + 1)
    books.owed.forget_ended(NOON_US + 1)
    assert NAME in books.owed.had.by_instrument
    books.owed.forget_ended(NOON_US + 2)

    assert (NAME in books.owed.had.by_instrument) == owed
    assert books.owed.newest_ending_us == NOON_US + 1


def test_who_trades_is_not_forgotten() -> None:
    """Its last trades may come after the word that it is over; and a list may be wrong."""
    books = Books()
    books.owed.listed({NAME}, NOON_US)
    books.take(1)
    books.owed.listed(set(), NOON_US + 1)
    books.take(2, at_us=5)
    books.owed.forget_ended(NOON_US + 4)
    assert NAME in books.owed.had.by_instrument
    books.owed.listed({NAME}, NOON_US + 6)
    books.owed.forget_ended(NOON_US + 100)

    assert NAME in books.owed.had.by_instrument


def test_a_start_knows_when_a_gap_was_told(data_dir: DataDir) -> None:
    """With the cache and without it: what is found late is not given up at once."""
    tape = tape_in(data_dir)
    tape.write_round(batches(**{GAPS_STREAM: [gap(7, "open", 2, 4)]}), now_us=NOON_US)
    tape.seal_all()
    TapeState(data_dir, TRADES).save()
    for _ in ("with the cache", "without it"):
        assert [one.opened_us for one in TapeState(data_dir, TRADES).open_gaps] == [NOON_US + 7]
        (data_dir.state / "trades.arrow").unlink(missing_ok=True)
