"""A half-open range of time, and which files can have rows of it. Pure: files are told by their names alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from analysis.errors import BadQuery
from recorder.segments.layout import SegmentName, us_to_datetime
from recorder.segments.manifest import Manifest
from recorder.segments.schemas import stream_kind

# Of instruments the newest state before a range is needed in it, of gaps a state that was told after it.
_NEVER_CUT = frozenset({"instruments", "gaps"})
_DAY = timedelta(days=1)


class Bound(NamedTuple):
    """What a row must fulfil: a time of it, and from when or until when."""

    column: str
    sign: str  # `>=` or `<`
    moment: datetime  # UTC

    def holds(self, column: Any) -> Any:
        """Return the condition in the terms of whoever the column is of: Arrow, DuckDB, polars, or Spark."""
        return column >= self.moment if self.sign == ">=" else column < self.moment


@dataclass(frozen=True)
class Span:
    """[start, end) of `received_at`; of trades, which may have come later, of `timestamp`. None: open.

    Raises:
        BadQuery: it ends before it begins.
    """

    start: datetime | None = None
    end: datetime | None = None

    def __post_init__(self) -> None:
        if self.start is not None and self.end is not None and self.end < self.start:
            raise BadQuery(f"the range ends at {self.end}, before it begins at {self.start}")

    def bounds(self, stream: str) -> list[Bound]:
        """Return what rows of a stream must fulfil; nothing if all are wanted."""
        kind = stream_kind(stream)
        if kind in _NEVER_CUT:
            return []
        column = "timestamp" if kind == "trades" else "received_at"
        given = ((">=", self.start), ("<", self.end))
        return [Bound(column, sign, moment.astimezone(UTC)) for sign, moment in given if moment is not None]

    def files(self, stream: str, paths: Sequence[Path]) -> list[Path]:
        """Return those sealed files that can have rows of the range, in their order; names not ours are kept.

        A segment ends before the next one of its run begins, and at midnight UTC.
        """
        if stream_kind(stream) in _NEVER_CUT or not paths:
            return list(paths)
        named = [(path, SegmentName.parse(path.name)) for path in paths]
        of_run = sorted((name.recorder, name.start_us, path, name) for path, name in named if name is not None)
        following: dict[Path, SegmentName] = {}
        for (*_, path, name), (*_, after) in pairwise(of_run):
            # What was salvaged of one segment has its time and the next number, and ends nothing.
            if (after.recorder, after.seq) == (name.recorder, name.seq + 1) and after.start_us > name.start_us:
                following[path] = after
        return [path for path, name in named if name is None or self._may_hold(stream, name, following.get(path))]

    def part(self, manifest: Manifest) -> bool:
        """Whether a part of the archive can have rows of the range."""
        kind = stream_kind(manifest.stream)
        if kind in _NEVER_CUT:
            return True
        for segment in manifest.segments:
            first, last = (
                (segment.first_timestamp, segment.last_timestamp)
                if kind == "trades"
                else (segment.first_received_at, segment.last_received_at)
            )
            if first is not None and last is not None and self._overlaps(first, last):
                return True
        return False

    def _may_hold(self, stream: str, name: SegmentName, following: SegmentName | None) -> bool:
        first = us_to_datetime(name.start_us)
        last = datetime.combine(first.date(), time(), tzinfo=UTC) + _DAY
        if following is not None:
            last = min(last, us_to_datetime(following.start_us))
        if stream_kind(stream) == "trades":  # healed ones come later than they were made, never before
            return self.start is None or last >= self.start
        return self._overlaps(first, last)

    def _overlaps(self, first: datetime, last: datetime) -> bool:
        return (self.end is None or first < self.end) and (self.start is None or last >= self.start)
