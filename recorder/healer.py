"""Fetches the trades that were missed, and settles the gaps that tell of them: healed, void, or lost.

Two kinds of hole. A hole in *numbers* (trade_seq jumped) says exactly what is missing, and exactly that is asked.
A hole in *time* (a lost connection, a crash, a stop) says nothing: first it is asked who traded meanwhile and up to
which number, which gives holes in numbers; the time gap stays open until these are settled.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from recorder.deribit.history import HOSTS, History, HistoryRefused, Host
from recorder.deribit.messages import TradeData
from recorder.gaps import Cause, Fate, Gap
from recorder.intake import Intake
from recorder.lanes import ALL
from recorder.runtime.backoff import Backoff
from recorder.runtime.logging import Logger
from recorder.trades_had import Range

US_PER_S = 1_000_000
# A trade that was not delivered shows when the next one comes, which may be hours, or never for an option that
# expires: so every so often it is asked who traded, and at once when options have expired.
SWEEP_EVERY_S = 60.0
# A hole begins with the last message received; what happened at the exchange a little before may be missing too.
MARGIN_BEFORE_MS = 60_000
# Trades younger than the end of a hole come live; asking at once would race with them.
SETTLE_S = 3.0
MARGIN_AFTER_MS = 1_000
# When a hole is asked again that the hosts could not fill: after twice as long each time, up to the second number.
# What is missing may show up, or a later trade that proves that it does not exist; it has a day for it.
ASK_AGAIN_S, ASK_AGAIN_MOST_S = 30.0, 600.0
# Where a host refuses to answer, a hole is given up after its day, but only when this run has asked so often: one
# refusal after a start proves nothing of a day.
TRIES_WHILE_REFUSED = 5
POLL_S = 1.0
# So many of a kind before it is another's turn: a thousand instruments to learn must not hold up a hole, nor a
# thousand holes the sweep.
GAPS_AT_ONCE, NAMES_AT_ONCE = 50, 20
# An option that is over is remembered for so long: stragglers, and clocks that differ.
FORGET_AFTER_S = 3600.0


@dataclass
class Case:
    """What was tried for one gap."""

    tries: int = 0
    ask_at_s: float = 0.0
    # What both hosts, each having shown a later trade, did not have, and since when.
    absent_since_s: dict[Range, float] = field(default_factory=dict)
    parts: set[str] | None = None  # of a hole in time: the gap_ids of the holes in numbers that came of it


class Healer:
    """Works through the open gaps of the trades stream, one after another, beside the live feed."""

    def __init__(
        self,
        intake: Intake,
        history: History,
        *,
        # Limits
        void_after_s: float,
        lost_after_s: float,
        # Edges
        now_us: Callable[[], int],
        log: Logger,
    ) -> None:
        self._intake = intake
        self._history = history
        self._void_after_s = void_after_s
        self._lost_after_s = lost_after_s
        self._now_us = now_us
        self._log = log
        self._cases: dict[str, Case] = {}
        self._backoff = Backoff()
        self._asked_newest: set[str] = set()
        self._swept_us: int | None = None  # up to when it was asked who traded

    async def run(self) -> None:
        """Heal until cancelled."""
        while True:
            await asyncio.sleep(POLL_S)
            refused = False
            # Each by itself: what one asks may be refused for ever, the others go on.
            for step in (self._heal, self._sweep, self._learn_where_to_begin):
                try:
                    await step()
                except HistoryRefused as exc:
                    refused = True
                    delay_s = max(self._backoff.next_delay_s(), exc.wait_s)
                    self._log.warning("history.refused", error=str(exc), retry_in_s=round(delay_s, 1))
                    await asyncio.sleep(delay_s)
            if not refused:
                self._backoff.reset()
            self._forget()

    async def _heal(self) -> None:
        """Work on the gaps that are due."""
        for _ in range(GAPS_AT_ONCE):
            due = self._next_due()
            if due is None:
                return
            gap, case = due
            case.tries += 1
            case.ask_at_s = time.monotonic() + ask_again_s(case.tries)
            await (self._heal_time(gap, case) if gap.instrument is None else self._heal_numbers(gap, case))

    def _next_due(self) -> tuple[Gap, Case] | None:
        """Return the gap to work on: what was never tried goes before what both hosts lack."""
        stream = self._intake.trades_lane.stream
        gaps = {gap.gap_id: gap for gap in self._intake.gaps.open_gaps if gap.stream == stream}
        self._cases = {gap_id: self._cases.get(gap_id) or Case() for gap_id in gaps}
        now_s = time.monotonic()
        due = [(case.tries, gap_id) for gap_id, case in self._cases.items() if case.ask_at_s <= now_s]
        if not due:
            return None
        gap_id = min(due)[1]
        return gaps[gap_id], self._cases[gap_id]

    # Holes in time

    async def _heal_time(self, gap: Gap, case: Case) -> None:
        case.ask_at_s = time.monotonic() + POLL_S  # nothing is asked again: its parts are asked for by themselves
        if gap.ended_us is None or self._now_us() < gap.ended_us + SETTLE_S * US_PER_S:
            return
        if case.parts is None:
            # From where it was last asked, if that is longer ago: a sweep may have been refused for a while.
            swept_us = self._swept_us if self._swept_us is not None else gap.started_us
            case.parts = await self._who_traded(min(gap.started_us, swept_us), gap.ended_us, gap.cause)
            self._swept_us = max(swept_us, gap.ended_us)
        if not case.parts & {open_gap.gap_id for open_gap in self._intake.gaps.open_gaps}:
            fate: Fate = "lost" if case.parts & self._intake.owed.lost_in else "healed"
            self._intake.gaps.settle(gap, fate, now_us=self._now_us())
            self._log.info("gap.settled", cause=gap.cause, fate=fate, parts=len(case.parts))

    async def _sweep(self) -> None:
        """Ask who traded since the last time, though nothing seemed to be missing.

        When options expire this is done at once, since the next trade that would show a missed one never comes. The
        newest number of each could be asked instead, at two calls an option; this is two calls for a whole storm, and
        the history host has the trades of all of them, also where the main host has forgotten them by then.
        """
        now_us = self._now_us()
        end_us = now_us - int(SETTLE_S * US_PER_S)
        if self._swept_us is None:
            self._swept_us = end_us  # what was before is told by a hole in time, or was before recording began
        self._swept_us = min(self._swept_us, end_us)  # the clock may have been set back
        lane = self._intake.trades_lane
        holes = self._intake.gaps.find(stream=lane.stream)
        if not lane.carriers(ALL) or any(end_us < (hole.ended_us or 0) <= now_us for hole in holes):
            return  # a hole in time asks for what it hides, with its own cause
        ended = self._swept_us < self._intake.owed.newest_ending_us <= end_us
        if ended or end_us - self._swept_us >= SWEEP_EVERY_S * US_PER_S:
            await self._who_traded(self._swept_us, end_us, "sequence_break")
            self._swept_us = end_us

    async def _who_traded(self, start_us: int, end_us: int, cause: Cause) -> set[str]:
        """Ask both hosts who traded in a time; return the open gaps in numbers that it comes down to."""
        parts = set()
        for host in HOSTS:
            parts |= await self._owe_what_traded(host, start_us, end_us, cause)
        return parts

    async def _owe_what_traded(self, host: Host, start_us: int, end_us: int, cause: Cause) -> set[str]:
        numbers: dict[str, tuple[int, int, int]] = {}  # lowest, highest, and when the first of them traded
        start_ms, end_ms = start_us // 1000 - MARGIN_BEFORE_MS, end_us // 1000 + MARGIN_AFTER_MS
        async for page in self._history.traded(host, start_ms, end_ms):
            for trade in page:
                if not self._is_before_recording(trade):
                    seq, ms = trade.trade_seq, trade.timestamp
                    low, high, first_ms = numbers.get(trade.instrument_name, (seq, seq, ms))
                    numbers[trade.instrument_name] = min(low, seq), max(high, seq), min(first_ms, ms)
        parts = set()
        for name, (low, high, first_ms) in numbers.items():
            parts |= self._intake.owed.owe(name, low, high, cause, min(start_us, first_ms * 1000))
        return parts

    def _is_before_recording(self, trade: TradeData) -> bool:
        owed = self._intake.owed
        had = owed.had.by_instrument.get(trade.instrument_name)
        if had is None:
            return trade.timestamp * 1000 < max(self._intake.recording_since_us, owed.complete_before_us)
        return trade.trade_seq < had.first and trade.timestamp * 1000 < self._intake.recording_since_us

    # Holes in numbers

    async def _heal_numbers(self, gap: Gap, case: Case) -> None:
        if gap.instrument is None or gap.first_missing is None or gap.last_missing is None:
            self._intake.gaps.settle(gap, "lost", now_us=self._now_us())
            return
        name, first, last = gap.instrument, gap.first_missing, gap.last_missing
        newest: dict[Host, int] = {}
        refused: HistoryRefused | None = None
        for host in HOSTS:
            try:
                newest[host] = await self._fetch(host, name, first, last, gap.started_us)
            except HistoryRefused as exc:
                refused = exc  # the other one may have it
        missing = self._intake.owed.had.missing(name, first, last)
        void: list[Range] | None = None  # None: it cannot be told
        if missing and refused is None:
            try:
                if await self._show_later(name, missing[-1][1], newest):
                    void = self._void(case, missing)
            except HistoryRefused as exc:
                refused = exc
        may_give_up = refused is None or case.tries >= TRIES_WHILE_REFUSED
        lost = missing if void is None and may_give_up and self._is_old(gap) else []
        # Also where nothing is missing: a crash may have come between the last of its trades and its fate.
        self._intake.owed.give_up(gap, void=void or [], lost=lost)
        if refused is not None:
            raise refused

    def _void(self, case: Case, missing: list[Range]) -> list[Range]:
        """Return what both hosts have lacked for long enough; the rest is asked again when it may be."""
        now_s = time.monotonic()
        case.absent_since_s = {part: _since_s(case.absent_since_s, part, now_s) for part in missing}
        void = [part for part, since_s in case.absent_since_s.items() if since_s + self._void_after_s <= now_s]
        if len(void) < len(missing):
            youngest_s = max(case.absent_since_s.values())
            case.ask_at_s = max(youngest_s + self._void_after_s, now_s + POLL_S)
        return void

    async def _fetch(self, host: Host, name: str, first: int, last: int, since_us: int) -> int:
        """Record what a host has of the missing numbers; return the newest number on its pages, 0 if none."""
        had = self._intake.owed.had
        newest = 0
        missing = had.missing(name, first, last)
        while missing:
            # One more than is missing: a host that shows the next trade would have shown these.
            page = await self._history.by_number(host, name, missing[0][0], missing[-1][1] + 1)
            reached = max((trade.trade_seq for trade in page.trades), default=0)
            newest = max(newest, reached)
            for trade in page.trades:
                if trade.instrument_name == name and first <= trade.trade_seq <= last:
                    await self._until_room()
                    self._intake.take_trade(trade, "backfill", self._now_us(), since_us)
            if not page.has_more or reached < missing[0][0]:
                break
            missing = had.missing(name, reached + 1, last)
        return newest

    async def _show_later(self, name: str, last: int, newest: dict[Host, int]) -> bool:
        """Whether each host shows a trade after the last that is missing: on a page of before, or if asked."""
        for host, shown in newest.items():
            if shown <= last and await self._history.newest(host, name) <= last:
                return False
        return True

    async def _until_room(self) -> None:
        """Leave half of the buffer to what comes live."""
        buffer = self._intake.trades_lane.buffer
        while len(buffer) >= buffer.limit_rows // 2:  # noqa: ASYNC110 - no event: a disk
            await asyncio.sleep(POLL_S / 10)

    def _is_old(self, gap: Gap) -> bool:
        """Whether it was long enough to be fetched: since it was told, for it may have been found late."""
        opened_us = gap.opened_us if gap.opened_us is not None else gap.started_us
        return self._now_us() - opened_us > self._lost_after_s * US_PER_S

    # Instruments come and go

    async def _learn_where_to_begin(self) -> None:
        """Ask for the newest trade of an instrument that has brought none yet: what follows it is owed."""
        begun = self._intake.begun_without_trades()
        self._asked_newest.intersection_update(begun)
        for name in [name for name in begun if name not in self._asked_newest][:NAMES_AT_ONCE]:
            newest = await self._history.newest("main", name) or await self._history.newest("history", name)
            self._asked_newest.add(name)
            if newest:  # where neither shows a trade, its first live one is where it begins
                self._intake.owed.begin(name, newest)

    def _forget(self) -> None:
        """Forget instruments that are over, as far back as nobody will ask who traded, and fates nobody waits for."""
        owed = self._intake.owed
        owed.lost_in &= {gap_id for case in self._cases.values() for gap_id in case.parts or ()}
        if self._swept_us is not None:
            holes = self._intake.gaps.find(stream=self._intake.trades_lane.stream)
            asked_from_us = min([self._swept_us, *(gap.started_us for gap in holes)]) - MARGIN_BEFORE_MS * 1000
            owed.forget_ended(asked_from_us - int(FORGET_AFTER_S * US_PER_S))


def ask_again_s(tries: int) -> float:
    """Return how long a hole is left alone that was asked for so often, in vain."""
    return min(ASK_AGAIN_S * 2.0 ** min(tries - 1, 32), ASK_AGAIN_MOST_S)


def _since_s(absent_since_s: dict[Range, float], part: Range, now_s: float) -> float:
    """Return since when a range is absent: as long as the one that it was a part of, when others of it came."""
    return next((s for (a, b), s in absent_since_s.items() if a <= part[0] and part[1] <= b), now_s)
