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
from recorder.gaps import Cause, Fate, Gap
from recorder.intake import Intake
from recorder.lanes import ALL
from recorder.runtime.backoff import Backoff
from recorder.runtime.logging import Logger

US_PER_S = 1_000_000
# A trade that was not delivered shows when the next one comes, which may be hours, or never for an option that
# expires: so every so often it is asked who traded.
SWEEP_EVERY_S = 60.0
# A hole begins with the last message received; what happened at the exchange a little before may be missing too.
MARGIN_BEFORE_MS = 60_000
# Trades younger than the end of a hole come live; asking at once would race with them.
SETTLE_S = 3.0
MARGIN_AFTER_MS = 1_000
# How often a hole is asked again that the hosts could not fill.
ASK_AGAIN_S = 30.0
POLL_S = 1.0


@dataclass
class Case:
    """What was tried for one gap."""

    tries: int = 0
    ask_at_s: float = 0.0
    # When both hosts, each having shown a later trade, said that a number does not exist: first time, by number.
    absent_since_s: dict[int, float] = field(default_factory=dict)
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
            try:
                while (due := self._next_due()) is not None:
                    gap, case = due
                    case.tries += 1
                    case.ask_at_s = time.monotonic() + ASK_AGAIN_S
                    await (self._heal_time(gap, case) if gap.instrument is None else self._heal_numbers(gap, case))
                await self._sweep()
                await self._learn_where_to_begin()
                self._backoff.reset()
            except HistoryRefused as exc:
                delay_s = self._backoff.next_delay_s()
                self._log.warning("history.refused", error=str(exc), retry_in_s=round(delay_s, 1))
                await asyncio.sleep(delay_s)

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

    async def _heal_time(self, gap: Gap, case: Case) -> None:
        case.ask_at_s = time.monotonic() + POLL_S  # nothing is asked again: its parts are asked for by themselves
        if gap.ended_us is None or self._now_us() < gap.ended_us + SETTLE_S * US_PER_S:
            return
        if case.parts is None:
            case.parts = await self._who_traded(gap)
        if not case.parts & {open_gap.gap_id for open_gap in self._intake.gaps.open_gaps}:
            fate: Fate = "lost" if case.parts & self._intake.owed.lost_in else "healed"
            self._intake.gaps.settle(gap, fate, now_us=self._now_us())
            self._log.info("gap.settled", cause=gap.cause, fate=fate, parts=len(case.parts))
        elif self._is_old(gap):
            self._intake.gaps.settle(gap, "lost", now_us=self._now_us())

    async def _who_traded(self, gap: Gap) -> set[str]:
        """Ask both hosts who traded in a hole in time; return the gaps in numbers that it comes down to."""
        assert gap.ended_us is not None
        parts = set()
        for host in HOSTS:
            parts |= await self._owe_what_traded(host, gap.started_us, gap.ended_us, gap.cause)
        return parts

    async def _sweep(self) -> None:
        """Ask who traded since the last time, though nothing seemed to be missing."""
        end_us = self._now_us() - int(SETTLE_S * US_PER_S)
        if self._swept_us is None or not self._intake.trades_lane.carriers(ALL):
            self._swept_us = end_us  # what was before is told by a hole in time, or was before recording began
        elif end_us - self._swept_us >= SWEEP_EVERY_S * US_PER_S:
            for host in HOSTS:
                await self._owe_what_traded(host, self._swept_us, end_us, "sequence_break")
            self._swept_us = end_us

    async def _owe_what_traded(self, host: Host, start_us: int, end_us: int, cause: Cause) -> set[str]:
        """Open gaps for the trades of a time that are not had; return all open gap_ids that concern them."""
        numbers: dict[str, set[int]] = {}
        start_ms, end_ms = start_us // 1000 - MARGIN_BEFORE_MS, end_us // 1000 + MARGIN_AFTER_MS
        for trade in await self._history.traded(host, start_ms, end_ms):
            had = self._intake.owed.had.by_instrument.get(trade.instrument_name)
            before_us = self._intake.recording_since_us
            if (had is None or trade.trade_seq < had.first) and trade.timestamp * 1000 < before_us:
                continue  # traded before recording began
            numbers.setdefault(trade.instrument_name, set()).add(trade.trade_seq)
        parts = set()
        for name, seqs in numbers.items():
            parts |= self._intake.owed.owe(name, min(seqs), max(seqs), cause, start_us)
        return parts

    async def _heal_numbers(self, gap: Gap, case: Case) -> None:
        if gap.instrument is None or gap.first_missing is None or gap.last_missing is None:
            self._intake.gaps.settle(gap, "lost", now_us=self._now_us())
            return
        name, first, last = gap.instrument, gap.first_missing, gap.last_missing
        shown_later = {host for host in HOSTS if await self._fetch(host, name, first, last)}
        missing = [n for a, b in self._intake.owed.had.missing(name, first, last) for n in range(a, b + 1)]
        now_s = time.monotonic()
        if shown_later == set(HOSTS):
            case.absent_since_s = {n: case.absent_since_s.get(n, now_s) for n in missing}
        void = {n for n in missing if now_s - case.absent_since_s.get(n, now_s) >= self._void_after_s}
        lost = set(missing) - void if self._is_old(gap) else set()
        if missing and void | lost >= set(missing):
            self._intake.owed.give_up(gap, void=void, lost=lost)
        elif case.absent_since_s:
            since_s = now_s - min(case.absent_since_s.values())
            case.ask_at_s = now_s + max(self._void_after_s - since_s, POLL_S)

    async def _fetch(self, host: Host, name: str, first: int, last: int) -> bool:
        """Record what a host has of the missing numbers; whether it showed a later trade of that instrument."""
        shown_later = False
        for a, b in self._intake.owed.had.missing(name, first, last):
            # One more than is missing: a host that shows the next trade would have shown these.
            for trade in await self._history.by_number(host, name, a, b + 1):
                if trade.trade_seq > b:
                    shown_later = True
                elif not self._intake.take_trade(trade, "backfill", self._now_us(), 0):
                    return False  # the buffer is full: another time
        if not shown_later and self._intake.owed.had.missing(name, first, last):
            shown_later = await self._history.newest(host, name) > last
        return shown_later

    async def _learn_where_to_begin(self) -> None:
        """Ask for the newest trade of an instrument that has brought none yet: what follows it is owed."""
        for name in self._intake.begun_without_trades():
            if name not in self._asked_newest:
                self._asked_newest.add(name)
                newest = await self._history.newest("main", name) or await self._history.newest("history", name)
                if newest:  # where neither shows a trade, its first live one is where it begins
                    self._intake.owed.begin(name, newest)

    def _is_old(self, gap: Gap) -> bool:
        return self._now_us() - gap.started_us > self._lost_after_s * US_PER_S
