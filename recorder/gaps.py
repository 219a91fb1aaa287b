"""Gaps as data: which are open, and a row for each change. Pure."""

import uuid
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from recorder.segments.schemas import Row

Cause = Literal[
    "disconnect", "sequence_break", "crash", "stopped", "rejected", "overflow", "disk_full", "clock_step", "silence"
]
Fate = Literal["healed", "void", "lost"]


@dataclass
class Gap:
    """An open gap. Times are microseconds since 1970; `first_missing`/`last_missing` are change ids or trade_seqs."""

    gap_id: str
    stream: str
    instrument: str | None  # None: every recorded instrument of the stream
    cause: Cause
    started_us: int
    ended_us: int | None = None
    first_missing: int | None = None
    last_missing: int | None = None
    detail: str | None = None
    state_no: int = 0
    opened_us: int | None = None  # when it was told, which may be long after it started; None: not known

    def row(self, status: str, now_us: int, *, first: int | None, last: int | None) -> Row:
        """Return the row of the gap's present state."""
        return (
            now_us,
            self.instrument,
            now_us,
            self.gap_id,
            self.state_no,
            self.stream,
            self.cause,
            status,
            self.started_us,
            self.ended_us,
            first,
            last,
            self.detail,
        )


class GapLog:
    """The gaps that are open. Every opening and settlement hands one row to `emit`."""

    def __init__(self, emit: Callable[[Row], object], taken_up: Iterable[Gap] = ()) -> None:
        """Begin with the gaps that the tape says are open."""
        self.opened: Counter[str] = Counter()  # by cause, in this run
        self.settled: Counter[str] = Counter()  # by fate
        self._emit = emit
        # By stream and instrument, then by id: found for every trade, however many are open.
        self._open: dict[tuple[str, str | None], dict[str, Gap]] = {}
        for gap in taken_up:
            self._of(gap)[gap.gap_id] = gap

    def find(self, *, stream: str, instrument: str | None = None) -> list[Gap]:
        """Return the open gaps of a stream; those of one instrument, or (None) those that concern every one."""
        return list(self._open.get((stream, instrument), {}).values())

    def is_open(self, gap: Gap) -> bool:
        """Whether a gap has no fate yet."""
        return gap.gap_id in self._open.get((gap.stream, gap.instrument), {})

    @property
    def open_gaps(self) -> list[Gap]:
        """Every open gap."""
        return [gap for gaps in self._open.values() for gap in gaps.values()]

    def open(
        self,
        stream: str,
        instrument: str | None,
        cause: Cause,
        *,
        started_us: int,
        now_us: int,
        first_missing: int | None = None,
        last_missing: int | None = None,
        detail: str | None = None,
    ) -> Gap:
        """Open a gap; `started_us` is the last moment at which nothing was missing yet."""
        gap = Gap(str(uuid.uuid4()), stream, instrument, cause, started_us, None, first_missing, last_missing, detail)
        gap.opened_us = now_us
        self.opened[cause] += 1
        self._of(gap)[gap.gap_id] = gap
        self._emit(gap.row("open", now_us, first=first_missing, last=last_missing))
        return gap

    def end(self, gap: Gap, *, ended_us: int, now_us: int) -> None:
        """Say until when a gap lasted, while it stays open because something may still be fetched."""
        gap.ended_us = ended_us
        gap.state_no += 1
        self._emit(gap.row("open", now_us, first=gap.first_missing, last=gap.last_missing))

    def settle(self, gap: Gap, fate: Fate, *, now_us: int, ended_us: int | None = None) -> None:
        """Give the whole gap its fate."""
        if ended_us is not None:
            gap.ended_us = ended_us
        gap.state_no += 1
        self._close(gap)
        self.settled[fate] += 1
        self._emit(gap.row(fate, now_us, first=gap.first_missing, last=gap.last_missing))

    def settle_runs(self, gap: Gap, runs: Iterable[tuple[Fate, int, int]], *, now_us: int) -> None:
        """Give the numbers of a gap their fates, one row for each run (fate, first, last), in order."""
        gap.ended_us = gap.ended_us or now_us
        self._close(gap)
        for fate, first, last in runs:
            gap.state_no += 1
            self.settled[fate] += 1
            self._emit(gap.row(fate, now_us, first=first, last=last))

    def clock_stepped(self, step_us: int) -> None:
        """Let open gaps grow old as if the clock had not been set."""
        for gap in self.open_gaps:
            if gap.opened_us is not None:
                gap.opened_us += step_us

    def _of(self, gap: Gap) -> dict[str, Gap]:
        return self._open.setdefault((gap.stream, gap.instrument), {})

    def _close(self, gap: Gap) -> None:
        of_one = self._of(gap)
        del of_one[gap.gap_id]
        if not of_one:  # instruments come and go for as long as the recorder runs
            del self._open[gap.stream, gap.instrument]
