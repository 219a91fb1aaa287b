"""Trades that are owed: what was jumped over or missed in a time, from the first suspicion to its told fate."""

from collections import deque
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet

from recorder.gaps import Cause, Fate, Gap, GapLog
from recorder.lanes import Lane
from recorder.segments.schemas import Row
from recorder.trades_had import Range, TradesHad, without

# Two connections cut their 100 ms windows at different moments: what one jumps over the other brings within this.
JUMP_GRACE_US = 1_000_000


class TradesOwed:
    """Decides for every trade whether it is new, and keeps the gaps in numbers of the trades stream."""

    def __init__(self, lane: Lane, gaps: GapLog, had: TradesHad, *, since_us: int, now_us: Callable[[], int]) -> None:
        """Take up what the tape leaves open; a hole that no gap tells (a crash came first) gets its gap now."""
        self.had = had
        self._lane = lane
        self._gaps = gaps
        self._now_us = now_us
        self._begun_us = now_us()
        # When an instrument's last two live trades were received, and when the last was made or received, if that was
        # before: what follows it is later than both.
        self._last_us: dict[str, tuple[int, int, int]] = {}
        self._jumps: deque[tuple[int, str, Range, int]] = deque()  # due, instrument, hole, since
        # Gaps whose fate is known, and how far the trades buffer must be durable before it is told.
        self._settled: dict[str, tuple[int, Gap, list[tuple[Fate, int, int]]]] = {}
        self.lost_in: set[str] = set()  # gap_ids of which some number was lost, for the holes in time they came of
        self.newest_ending_us = 0  # when an instrument was last seen to be over
        self.complete_before_us = 0  # what instruments not known here traded before this was settled and forgotten
        self._live: AbstractSet[str] = frozenset()
        self._ended_us: dict[str, int] = {}  # instruments that are over, and since when
        for gap in gaps.open_gaps:
            if gap.stream == lane.stream and gap.instrument and gap.first_missing and gap.last_missing:
                had.owe(gap.instrument, gap.first_missing, gap.last_missing)
        for name, one in list(had.by_instrument.items()):
            for hole in list(one.holes):
                self.owe(name, *hole, "crash", since_us)

    def take(self, row: Row, instrument: str, trade_seq: int, received_us: int, since_us: int, *, live: bool) -> bool:
        """Take a trade's row unless it is had; False if there was no room for it."""
        new = self.had.add(instrument, trade_seq)
        if new is False:
            return True
        taken = self._lane.add(row, received_us, live)
        if not taken:
            self.had.remove(instrument, trade_seq)
        _, last_us, whole_until_us = self._last_us.get(instrument, (0, 0, self._begun_us))
        if isinstance(new, tuple):
            # Other channels brought something since, but this instrument was whole only up to its last trade.
            self._jumps.append((received_us + JUMP_GRACE_US, instrument, new, min(since_us, whole_until_us)))
        if taken:
            self._filled(instrument, trade_seq)
        if live:
            self._last_us[instrument] = (last_us, received_us, min(received_us, int(row[0])))
            if instrument in self._ended_us:  # its last trades may come after the word that it is over
                self._ended_us[instrument] = received_us
        return taken

    def tick(self, now_us: int) -> None:
        """Tell fates and jumps that are due; called before each flush round."""
        self._tell_settled(now_us)
        self._tell_jumps(now_us)

    def clock_stepped(self, step_us: int) -> None:
        """Carry over what waits, and what was seen, by the clock as it was before a step."""
        self._begun_us += step_us
        self.newest_ending_us += step_us if self.newest_ending_us else 0
        self.complete_before_us += step_us if self.complete_before_us else 0
        self._jumps = deque((due + step_us, name, hole, us + step_us) for due, name, hole, us in self._jumps)
        self._ended_us = {name: us + step_us for name, us in self._ended_us.items()}
        self._last_us = {
            name: (before_us + step_us if before_us else 0, last_us + step_us, min(whole_until_us, last_us + step_us))
            for name, (before_us, last_us, whole_until_us) in self._last_us.items()
        }

    def tell_jumps(self) -> None:
        """Tell every jump now: the run ends."""
        self._tell_jumps(2**63)

    def owe(self, instrument: str, first: int, last: int, cause: Cause, since_us: int) -> set[str]:
        """Open gaps for what of [first, last] is neither had nor told; return all open gap_ids that concern it.

        What lies between these numbers and those that are known exists too, and is told with them.
        """
        one = self.had.by_instrument.get(instrument)
        if one is not None:
            first, last = min(first, one.newest + 1), max(last, one.first - 1)
        self.had.owe(instrument, first, last)
        known = self._gaps.find(stream=self._lane.stream, instrument=instrument)
        told = [(gap.first_missing or 0, gap.last_missing or 0) for gap in known]
        for a, b in without(self.had.missing(instrument, first, last), told):
            known.append(self._open_trades_gap(instrument, (a, b), cause, since_us))
        return {gap.gap_id for gap in known if (gap.first_missing or 0) <= last and (gap.last_missing or 0) >= first}

    def begin(self, instrument: str, newest: int) -> None:
        """Owe what follows an instrument's newest trade as of now."""
        one = self.had.by_instrument.get(instrument)
        if one is None:
            self.had.begin(instrument, newest)
        elif one.first > newest + 1:  # a live trade was faster than the answer
            self.owe(instrument, newest + 1, one.first - 1, "sequence_break", self._now_us())

    def give_up(self, gap: Gap, *, void: Sequence[Range], lost: Sequence[Range]) -> None:
        """Settle a gap of which every number is fetched, void, or lost.

        Does nothing while one is open, or if the gap has its fate already: what was asked for may have come live.
        """
        assert gap.instrument is not None
        assert gap.first_missing is not None
        assert gap.last_missing is not None
        if gap.gap_id in self._settled or not self._gaps.is_open(gap):
            return
        missing = self.had.missing(gap.instrument, gap.first_missing, gap.last_missing)
        if not without(missing, [*void, *lost]):
            runs = runs_of_fate(gap.first_missing, gap.last_missing, void=void, lost=lost)
            self._settled[gap.gap_id] = (self._lane.buffer.position, gap, runs)

    # Instruments come and go for as long as the recorder runs

    def listed(self, live: AbstractSet[str], now_us: int) -> None:
        """Learn which instruments there are: the others are over, and bring no trade any more."""
        if self._live - live:
            self.newest_ending_us = now_us
        self._live = frozenset(live)
        for name in self.had.by_instrument.keys() - live:
            self._ended_us.setdefault(name, now_us)
        for name in self._ended_us.keys() & live:
            del self._ended_us[name]

    def forget_ended(self, before_us: int) -> None:
        """Forget instruments that were over before this and are owed nothing: nobody asks for their time again."""
        for name, ended_us in list(self._ended_us.items()):
            one = self.had.by_instrument.get(name)
            owed = one is not None and bool(one.holes)
            if ended_us < before_us and not owed and not self._gaps.find(stream=self._lane.stream, instrument=name):
                self.had.forget(name)
                self._last_us.pop(name, None)
                del self._ended_us[name]
                self.complete_before_us = max(self.complete_before_us, ended_us)

    def _tell_jumps(self, now_us: int) -> None:
        """Open gaps for what was jumped over and has not come since.

        A crash before that leaves a hole on the tape that no gap tells: the next start finds it in what is had.
        """
        while self._jumps and self._jumps[0][0] <= now_us:
            _, instrument, hole, since_us = self._jumps.popleft()
            # A hole in time explains a jump if the instrument has not traded since it ended.
            before_us = self._last_us.get(instrument, (0, 0, 0))[0]
            holes_in_time = self._gaps.find(stream=self._lane.stream)
            why = next((gap for gap in holes_in_time if gap.ended_us is None or before_us < gap.ended_us), None)
            cause: Cause = why.cause if why else "sequence_break"
            self.owe(instrument, *hole, cause, why.started_us if why else since_us)

    def _open_trades_gap(self, instrument: str, hole: Range, cause: Cause, started_us: int) -> Gap:
        return self._gaps.open(
            self._lane.stream,
            instrument,
            cause,
            started_us=started_us,
            now_us=self._now_us(),
            first_missing=hole[0],
            last_missing=hole[1],
        )

    def _filled(self, instrument: str, trade_seq: int) -> None:
        """Settle the gaps that a trade has filled to the last number, once that trade is durable."""
        for gap in self._gaps.find(stream=self._lane.stream, instrument=instrument):
            first, last = gap.first_missing, gap.last_missing
            if first is None or last is None or not first <= trade_seq <= last:
                continue
            self._settled.pop(gap.gap_id, None)  # a fate that does not know of this trade
            if not self.had.missing(instrument, first, last):
                self._settled[gap.gap_id] = (self._lane.buffer.position, gap, [("healed", first, last)])

    def _tell_settled(self, now_us: int) -> None:
        """Write the fate of gaps whose trades are durable: the round that writes it begins with the gaps."""
        durable = self._lane.buffer.durable
        for gap_id, (position, gap, runs) in list(self._settled.items()):
            if position <= durable:
                del self._settled[gap_id]
                for fate, first, last in runs:
                    if fate != "healed" and gap.instrument is not None:
                        self.had.close(gap.instrument, first, last)  # decided: not owed again
                    if fate == "lost":
                        self.lost_in.add(gap_id)
                self._gaps.settle_runs(gap, runs, now_us=now_us)

    @property
    def settling(self) -> bool:
        """Whether the fate of some gap waits for its trades to be durable."""
        return bool(self._settled)


def runs_of_fate(
    first: int, last: int, *, void: Sequence[Range], lost: Sequence[Range]
) -> list[tuple[Fate, int, int]]:
    """Return (fate, first, last) for each run of numbers in [first, last] with one fate; the rest is healed."""
    runs: list[tuple[Fate, int, int]] = [("void", *some) for some in void]
    runs += [("lost", *some) for some in lost]
    runs += [("healed", *some) for some in without([(first, last)], [*void, *lost])]
    return sorted(runs, key=lambda run: run[1])
