"""What the numbers on a tape prove: what is whole, which holes are told, and which are told by nothing. Pure.

A book is whole from one row to the next if the next one begins at, or before, the change that the last one ended
with. Trades of an option are whole if their numbers have no hole. Tickers have neither: nothing proves them.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, pairwise
from typing import Any

Range = tuple[int, int]  # first and last; of times in µs since 1970, or of numbers
FOREVER = 2**62
# That an instrument is left is told before its channels are: rows may come for so long.
_LATE_US = 5_000_000
# A channel that is granted brings at once what there is. Where it does not, a gap row is written within 30 s.
BEGINS_US = 35_000_000


@dataclass(frozen=True)
class Hole:
    """Something that is missing between two rows."""

    stream: str
    instrument: str
    from_us: int  # when the row before it was received; of trades when it was made
    to_us: int
    first: int | None = None  # of trades: which numbers
    last: int | None = None
    cause: str = ""  # of the gap row that tells it; empty: nothing does
    status: str = ""
    begins: bool = False  # there is no row before it: nothing came since the instrument was to be recorded

    @property
    def told(self) -> bool:
        """Whether a gap row tells it."""
        return bool(self.cause)


@dataclass(frozen=True)
class Gap:
    """One row of `data_gaps`, as far as it is needed here."""

    stream: str
    instrument: str | None
    cause: str
    status: str
    from_us: int
    to_us: int  # FOREVER while it lasts
    first: int | None
    last: int | None


@dataclass
class Gaps:
    """All that is told of what was missed."""

    newest: list[Gap] = field(default_factory=list)  # each gap in its newest state
    rows: list[Gap] = field(default_factory=list)  # every state of every gap that names numbers

    def __post_init__(self) -> None:
        self._by_time: dict[tuple[str, str | None], list[Gap]] = defaultdict(list)
        for gap in self.newest:
            if gap.status != "void":  # a step of the clock: nothing was missed in that time
                self._by_time[gap.stream, gap.instrument].append(gap)
        self._by_number: dict[tuple[str, str], list[Gap]] = defaultdict(list)
        for gap in self.rows:
            if gap.instrument is not None and gap.first is not None and gap.last is not None:
                self._by_number[gap.stream, gap.instrument].append(gap)

    def of(self, stream: str, instrument: str) -> list[Gap]:
        """Return the gaps in time in which an instrument's rows of a stream were missed."""
        return [*self._by_time[stream, instrument], *self._by_time[stream, None]]

    def at(self, stream: str, instrument: str, from_us: int, to_us: int, *, lasting: bool = False) -> Gap | None:
        """Return a gap at some time between two rows; with `lasting` a hole in time whose numbers are not told.

        The second row has the earlier time where the clock was set back between them.
        """
        from_us, to_us = min(from_us, to_us), max(from_us, to_us)
        for gap in self.of(stream, instrument):
            if lasting and (gap.first is not None or gap.status not in ("open", "lost")):
                continue
            if gap.from_us <= to_us and from_us <= gap.to_us:
                return gap
        return None

    def numbers(self, stream: str, instrument: str, first: int, last: int) -> list[tuple[Range, Gap | None]]:
        """Cut a run of missing numbers by what is told of each: the newest word of void, lost, or open; or nothing.

        A number that is told as healed, and is not there, is told by nothing.
        """
        told = self._by_number[stream, instrument]
        inside = [gap for gap in told if gap.first is not None and gap.first <= last and first <= (gap.last or 0)]
        edges = {first, last + 1}
        for gap in inside:
            edges |= {max(first, gap.first or first), min(last, gap.last or last) + 1}
        cuts = sorted(edges)
        found: list[tuple[Range, Gap | None]] = []
        for begin, after in pairwise(cuts):
            words = [gap for gap in inside if (gap.first or 0) <= begin and after - 1 <= (gap.last or 0)]
            fate = next((gap for status in _FATES for gap in words if gap.status == status), None)
            found.append(((begin, after - 1), None if fate is None or fate.status == "healed" else fate))
        return found


# A number that is void is that for good; what was healed was had; then what is still open.
_FATES = ("void", "lost", "healed", "open")


def judge_books(
    stream: str, breaks: Iterable[tuple[str, int, int]], gaps: Gaps, left: Mapping[str, Sequence[int]]
) -> list[Hole]:
    """Say of each break in a book's chain which gap row tells it.

    Args:
        stream: of quotes.
        breaks: instrument, and when the rows before and after it were received.
        gaps: what is told.
        left: when an instrument was told not to be recorded any more. Until it is again there is no hole.
    """
    holes = []
    for instrument, from_us, to_us in breaks:
        if any(from_us - _LATE_US <= at_us <= to_us for at_us in left.get(instrument, ())):
            continue
        gap = gaps.at(stream, instrument, from_us, to_us)
        holes.append(
            Hole(stream, instrument, from_us, to_us, cause=gap.cause if gap else "", status=gap.status if gap else "")
        )
    return holes


def judge_beginning(stream: str, instrument: str, spans: Iterable[Range], oldest_us: int, gaps: Gaps) -> list[Hole]:
    """Say where nothing came of an instrument before its first row, though it was recorded and no gap row tells why.

    Args:
        stream: of quotes or tickers, whose channels begin with what there is.
        instrument: of which there is no row before the first of these.
        spans: when it was recorded.
        oldest_us: when its first row was received; FOREVER if there is none.
        gaps: what is told.
    """
    long = [(a, min(b, oldest_us)) for a, b in spans if min(b, oldest_us) - a > BEGINS_US]
    if not long:
        return []
    missed = [(gap.from_us, gap.to_us) for gap in gaps.of(stream, instrument)]
    silent = [(x, y) for a, b in long for x, y in outside(missed_in(missed, a, b), a, b) if y - x > BEGINS_US]
    # What is void is a step of the clock: over it times do not subtract.
    steps = [gap for gap in gaps.newest if gap.status == "void" and gap.stream == stream] if silent else []
    return [
        Hole(stream, instrument, x, y, begins=True)
        for x, y in silent
        if not any(gap.from_us <= y and x <= gap.to_us for gap in steps)
    ]


def judge_trades(stream: str, jumps: Iterable[tuple[str, int, int, int, int]], gaps: Gaps) -> list[Hole]:
    """Say of each jump in an option's trade numbers what is told of those between.

    Args:
        stream: of trades.
        jumps: instrument, the first and last number that is missing, and when the trades around them were made.
        gaps: what is told.
    """
    holes = []
    for instrument, first, last, from_us, to_us in jumps:
        for (begin, end), word in gaps.numbers(stream, instrument, first, last):
            # Before the numbers of a hole in time are known, the hole itself tells.
            gap = word or gaps.at(stream, instrument, from_us, to_us, lasting=True)
            holes.append(
                Hole(
                    stream, instrument, from_us, to_us, begin, end,
                    cause=gap.cause if gap else "", status=gap.status if gap else "",
                )
            )  # fmt: skip
    return holes


def recorded_spans(told: Sequence[tuple[int, bool]], end_us: int) -> list[Range]:
    """Return when an instrument was recorded: from each row that says so to the next that says no, or to the end.

    Args:
        told: when, and whether it was recorded from then on; in the order of time.
        end_us: of what is looked at.
    """
    spans: list[Range] = []
    since: int | None = None
    for at_us, recorded in told:
        if recorded and since is None:
            since = at_us
        elif not recorded and since is not None:
            spans.append((since, at_us))
            since = None
    if since is not None and since < end_us:
        spans.append((since, end_us))
    return spans


def within(spans: Iterable[Range], start_us: int, end_us: int) -> list[Range]:
    """Cut spans to a range."""
    cut = [(max(a, start_us), min(b, end_us)) for a, b in spans]
    return [(a, b) for a, b in cut if a < b]


def covered_us(spans: Sequence[Range], missed: Iterable[Range]) -> int:
    """Return how much of some spans lies outside of what was missed, in µs."""
    total = sum(b - a for a, b in spans)
    for a, b in spans:
        total -= sum(y - x for x, y in union(within(missed_in(missed, a, b), a, b)))
    return total


def outside(missed: Iterable[Range], start_us: int, end_us: int) -> list[Range]:
    """Return what of a range lies outside of what was missed."""
    cuts = [start_us, *chain.from_iterable(union(within(missed, start_us, end_us))), end_us]
    return [(a, b) for a, b in zip(cuts[::2], cuts[1::2], strict=True) if a < b]


def missed_in(missed: Iterable[Range], start_us: int, end_us: int) -> list[Range]:
    """Return those ranges that touch a span."""
    return [(a, b) for a, b in missed if a < end_us and start_us < b]


def union(ranges: Iterable[Range]) -> list[Range]:
    """Join ranges that touch or overlap."""
    joined: list[Range] = []
    for a, b in sorted(ranges):
        if joined and a <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(joined[-1][1], b))
        else:
            joined.append((a, b))
    return joined


def broken_chain(previous: Mapping[str, str], stands_for: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return segments whose predecessor is nowhere: (the segment, the missing one).

    Args:
        previous: by segment_id, the segment_id before it; empty for the first.
        stands_for: by a damaged segment's id, that of what was salvaged of it.
    """
    return [
        (segment_id, before)
        for segment_id, before in previous.items()
        if before and before not in previous and before not in stands_for
    ]


def as_gap(row: Mapping[str, Any]) -> Gap:
    """Make a gap of a row of `data_gaps` whose times are µs."""
    return Gap(
        row["stream"], row["instrument"], row["cause"], row["status"], row["started_us"],
        FOREVER if row["ended_us"] is None else row["ended_us"], row["first_missing"], row["last_missing"],
    )  # fmt: skip
