"""What of an instrument's recorded time lies outside of gap rows, bucket by bucket. Pure."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from analysis.proof import Gap, Range, union, within
from analysis.report.axis import Axis


@dataclass(frozen=True)
class Cell:
    """One bucket, or several alike: from when to when, in µs since 1970, and what is missing there."""

    from_us: int
    until_us: int
    share: float = 1.0  # of the time in which the instrument was recorded: what lies outside of gap rows
    cause: str = ""  # of the gaps that took most of what is missing; empty: nothing is


def cells(axis: Axis, spans: Sequence[Range], gaps: Iterable[Gap]) -> list[Cell]:
    """Return the buckets of one instrument, those that follow each other and are alike as one.

    Args:
        axis: the buckets.
        spans: when the instrument was to be recorded.
        gaps: those that concern it. Time that several of them tell as missing is missing once.
    """
    recorded = union(within(spans, axis.start_us, axis.end_us))
    ranges: dict[str, list[Range]] = defaultdict(list)
    for gap in gaps:
        ranges[gap.cause] += [part for span in recorded for part in within([(gap.from_us, gap.to_us)], *span)]
    by_cause = {cause: _by_bucket(axis, union(found)) for cause, found in ranges.items()}
    missed_us = _by_bucket(axis, union(part for found in ranges.values() for part in found))
    found: list[Cell] = []
    for number, recorded_us in _by_bucket(axis, recorded).items():
        begin, end = number * axis.width_us, (number + 1) * axis.width_us
        parts = within(recorded, begin, end)
        cell = Cell(parts[0][0], parts[-1][1])
        if number in missed_us:
            cause = max(by_cause, key=lambda one: by_cause[one].get(number, 0))
            cell = replace(cell, share=round(1 - missed_us[number] / recorded_us, 4), cause=cause)
        if found and _alike(found[-1], cell):
            found[-1] = replace(found[-1], until_us=cell.until_us)
        else:
            found.append(cell)
    return found


def _alike(before: Cell, after: Cell) -> bool:
    return before.until_us == after.from_us and (before.share, before.cause) == (after.share, after.cause)


def _by_bucket(axis: Axis, ranges: Iterable[Range]) -> dict[int, int]:
    """Return how many µs of some ranges, none of which overlap, lie in each bucket that they touch."""
    found: dict[int, int] = defaultdict(int)
    for begin, end in ranges:
        for number in range(begin // axis.width_us, (end - 1) // axis.width_us + 1):
            of_bucket = within([(begin, end)], number * axis.width_us, (number + 1) * axis.width_us)
            found[number] += sum(b - a for a, b in of_bucket)
    return dict(sorted(found.items()))
