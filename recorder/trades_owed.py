"""Trades that are owed: what was jumped over or missed in a time, from the first suspicion to its told fate."""

from collections import deque
from collections.abc import Callable
from collections.abc import Set as AbstractSet

from recorder.gaps import Cause, Fate, Gap, GapLog
from recorder.lanes import Lane
from recorder.segments.schemas import Row
from recorder.trades_had import TradesHad, without

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
        self._last_us: dict[str, tuple[int, int]] = {}  # when an instrument's last two live trades were received
        self._jumps: deque[tuple[int, str, tuple[int, int], int]] = deque()  # due, instrument, hole, since
        # Gaps whose fate is known, and how far the trades buffer must be durable before it is told.
        self._settled: dict[str, tuple[int, Gap, list[tuple[Fate, int, int]]]] = {}
        self.lost_in: set[str] = set()  # gap_ids of which some number was lost
        for gap in gaps.open_gaps:
            if gap.stream == lane.stream and gap.instrument and gap.first_missing and gap.last_missing:
                had.owe(gap.instrument, gap.first_missing, gap.last_missing)
        for name, one in list(had.by_instrument.items()):
            for hole in one.holes:
                self.owe(name, *hole, "crash", since_us)

    def take(self, row: Row, instrument: str, trade_seq: int, received_us: int, since_us: int, *, live: bool) -> bool:
        """Take a trade's row unless it is had; False if there was no room for it."""
        new = self.had.add(instrument, trade_seq)
        if new is False:
            return True
        taken = self._lane.add(row, received_us)
        if not taken:
            self.had.remove(instrument, trade_seq)
        if isinstance(new, tuple):
            self._jumps.append((received_us + JUMP_GRACE_US, instrument, new, since_us))
        if taken:
            self._filled(instrument, trade_seq)
        if live:
            self._last_us[instrument] = (self._last_us.get(instrument, (0, 0))[1], received_us)
        return taken

    def tick(self, now_us: int) -> None:
        """Tell fates and jumps that are due; called before each flush round."""
        self._tell_settled(now_us)
        self._tell_jumps(now_us)

    def tell_jumps(self) -> None:
        """Tell every jump now: the run ends."""
        self._tell_jumps(2**63)

    def owe(self, instrument: str, first: int, last: int, cause: Cause, since_us: int) -> set[str]:
        """Open gaps for what of [first, last] is neither had nor told; return all open gap_ids that concern it."""
        self.had.owe(instrument, first, last)
        known = self._gaps.find(stream=self._lane.stream, instrument=instrument)
        told = [(gap.first_missing or 0, gap.last_missing or 0) for gap in known]
        for a, b in without(self.had.missing(instrument, first, last), told):
            known.append(self._open_trades_gap(instrument, (a, b), cause, since_us))
        return {gap.gap_id for gap in known if (gap.first_missing or 0) <= last and (gap.last_missing or 0) >= first}

    def begin(self, instrument: str, newest: int) -> None:
        """Owe what follows an instrument's newest trade as of now."""
        had = self.had.by_instrument.get(instrument)
        if had is None:
            self.had.begin(instrument, newest)
        elif had.first > newest + 1:  # a live trade was faster than the answer
            hole = (newest + 1, had.first - 1)
            self.had.owe(instrument, *hole)
            self._open_trades_gap(instrument, hole, "sequence_break", self._now_us())

    def give_up(self, gap: Gap, *, void: AbstractSet[int], lost: AbstractSet[int]) -> None:
        """Settle a gap of which every number is fetched, void, or lost; do nothing while one is open."""
        assert gap.instrument is not None
        assert gap.first_missing is not None
        assert gap.last_missing is not None
        ranges = self.had.missing(gap.instrument, gap.first_missing, gap.last_missing)
        if {n for a, b in ranges for n in range(a, b + 1)} <= void | lost:
            runs = runs_of_fate(gap.first_missing, gap.last_missing, void=void, lost=lost)
            self._settled[gap.gap_id] = (self._lane.buffer.position, gap, runs)

    def _tell_jumps(self, now_us: int) -> None:
        """Open gaps for what was jumped over and has not come since.

        A crash before that leaves a hole on the tape that no gap tells: the next start finds it in what is had.
        """
        while self._jumps and self._jumps[0][0] <= now_us:
            _, instrument, hole, since_us = self._jumps.popleft()
            # A hole in time explains a jump if the instrument has not traded since it ended.
            before_us = self._last_us.get(instrument, (0, 0))[0]
            holes_in_time = self._gaps.find(stream=self._lane.stream)
            why = next((gap for gap in holes_in_time if gap.ended_us is None or before_us < gap.ended_us), None)
            cause: Cause = why.cause if why else "sequence_break"
            self.owe(instrument, *hole, cause, why.started_us if why else since_us)

    def _open_trades_gap(self, instrument: str, hole: tuple[int, int], cause: Cause, started_us: int) -> Gap:
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
            if not self.had.missing(instrument, first, last):
                self._settled[gap.gap_id] = (self._lane.buffer.position, gap, [("healed", first, last)])

    def _tell_settled(self, now_us: int) -> None:
        """Write the fate of gaps whose trades are durable: the round that writes it begins with the gaps."""
        durable = self._lane.buffer.durable
        for gap_id, (position, gap, runs) in list(self._settled.items()):
            if position <= durable:
                del self._settled[gap_id]
                if any(fate == "lost" for fate, _, _ in runs):
                    self.lost_in.add(gap_id)
                self._gaps.settle_runs(gap, runs, now_us=now_us)

    @property
    def settling(self) -> bool:
        """Whether the fate of some gap waits for its trades to be durable."""
        return bool(self._settled)


def runs_of_fate(
    first: int, last: int, *, void: AbstractSet[int], lost: AbstractSet[int]
) -> list[tuple[Fate, int, int]]:
    """Return (fate, first, last) for each run of numbers in [first, last] with one fate; the rest is healed."""
    runs: list[tuple[Fate, int, int]] = []
    for number in range(first, last + 1):
        fate: Fate = "void" if number in void else "lost" if number in lost else "healed"
        if runs and runs[-1][0] == fate:
            runs[-1] = (fate, runs[-1][1], number)
        else:
            runs.append((fate, number, number))
    return runs
