"""Which segments a replay loads: whole ones that overlap a half-open range [start, end) of received_at."""

from datetime import UTC, datetime, time, timedelta

from loader.load import Tally, Wanted
from loader.prepare import Prepared
from recorder.segments.layout import SegmentName, us_to_datetime


def wanted(start: datetime | None, end: datetime | None) -> Wanted:
    """Return what chooses the segments of a range; an open end takes all there is on that side. Pure."""
    return Wanted(
        file=lambda candidate: may_overlap(candidate.path.name, start, end),
        segment=lambda segment: overlaps(segment, start, end),
    )


def may_overlap(file_name: str, start: datetime | None, end: datetime | None) -> bool:
    """Decide by the name alone whether a segment may have rows of the range; unknown names are looked into.

    A name tells the first row, and no segment crosses midnight UTC.
    """
    name = SegmentName.parse(file_name)
    if name is None:
        return True
    first = us_to_datetime(name.start_us)
    midnight = datetime.combine(first.date(), time(), tzinfo=UTC) + timedelta(days=1)
    return (end is None or first < end) and (start is None or midnight > start)


def overlaps(segment: Prepared, start: datetime | None, end: datetime | None) -> bool:
    """Decide by its rows whether a segment has any of the range."""
    if segment.received is None:
        return False
    first, last = segment.received
    return (end is None or first < end) and (start is None or last >= start)


def summary(tally: Tally) -> str:
    """Return the line that tells what a replay did."""
    return (
        f"loaded {_count(tally.segments, 'segment')} ({_count(tally.rows, 'row')}),"
        f" skipped {_count(tally.skipped, 'segment')} already there, refused {len(tally.refused)}"
    )


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
