"""What an archive run does: which days, which segments, in which parts, under which names. Pure."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from datetime import date as Date  # noqa: N812 - `date` is what the days here are called by
from typing import Protocol, TypeVar

from loader.inbox import Candidate
from recorder.segments.encode import Identity
from recorder.segments.manifest import PART_SUFFIX, ArchivedSegment, Manifest

# By then its last segments are sealed: at midnight, or after a crash by the start that follows. One that is sealed
# later still makes a new part.
FINISHED_AFTER = timedelta(hours=1)
# Rows of one part. They are held in memory while they are sorted: at 1,000,000 tickers, the widest rows, a process
# that did nothing else took 560 MB, and a loader that archives beside its loading has its own needs.
MOST_ROWS = 750_000
# What readers skip by, and what is written and compared at a time.
ROW_GROUP_ROWS = 128 * 1024


class HasRows(Protocol):
    """Something that has rows."""

    @property
    def rows(self) -> int:
        """How many."""


Piece = TypeVar("Piece", bound=HasRows)


@dataclass(frozen=True)
class Choice:
    """Which days were asked for."""

    date: Date | None = None  # this one only, finished or not
    today: bool = False  # those that are not finished too

    def wants(self, day: Date, now: datetime) -> bool:
        """Decide about one day."""
        if self.date is not None:
            return day == self.date
        return self.today or is_finished(day, now)


def is_finished(day: Date, now: datetime) -> bool:
    """Whether a UTC day is over, and long enough for its segments to be sealed."""
    midnight = datetime.combine(day, time(), tzinfo=UTC) + timedelta(days=1)
    return now >= midnight + FINISHED_AFTER


def date_of(folder: str) -> Date | None:
    """Return the day of a folder `date=YYYY-MM-DD`; None if its name is another."""
    try:
        day = Date.fromisoformat(folder.removeprefix("date="))
    except ValueError:
        return None
    return day if folder == f"date={day.isoformat()}" else None


class Known:
    """Which segments of a stream's day are in its archive, and what was salvaged of which."""

    def __init__(self, manifests: Iterable[Manifest]) -> None:
        self._files: dict[str, ArchivedSegment] = {}
        self._ids: set[str] = set()
        self._salvaged: dict[str, str] = {}  # the damaged one -> what was salvaged of it
        for manifest in manifests:
            for segment in manifest.segments:
                self._files[segment.name] = segment
                self._add(segment.segment_id, segment.salvages)

    def add(self, identity: Identity) -> None:
        """Count a segment as archived: it is in a part that is being made."""
        self._add(identity.segment_id, identity.salvages)

    def _add(self, segment_id: str, salvages: str) -> None:
        self._ids.add(segment_id)
        if salvages:
            self._salvaged[salvages] = segment_id

    def has_file(self, candidate: Candidate) -> bool:
        """Whether a file is in the archive, by its name, size, and time alone."""
        held = self._files.get(candidate.name)
        return held is not None and (held.size_bytes, held.mtime) == (candidate.size_bytes, candidate.mtime)

    def has(self, segment_id: str, salvages: str) -> bool:
        """Whether a segment's rows are in the archive, or those of the damaged one that it was salvaged of.

        What was salvaged of that one before counts for all that is salvaged of it later: they hold the same rows.
        """
        return segment_id in self._ids or salvages in self._ids or salvages in self._salvaged

    def why_not(self, segment_id: str) -> str:
        """Return why a segment that is not in the archive must not go there; "" if it may."""
        part = self._salvaged.get(segment_id)
        return f"a part of it was salvaged and archived already, as {part}" if part else ""


def in_parts(pieces: Iterable[Piece], most_rows: int = MOST_ROWS) -> Iterator[list[Piece]]:
    """Cut segments, in their order, into parts of at most so many rows; a larger segment is a part by itself.

    Lazy: no more than one piece beyond a part is taken, for each holds its rows. The same pieces give the same parts.
    """
    part: list[Piece] = []
    rows = 0
    for piece in pieces:
        if part and rows + piece.rows > most_rows:
            yield part
            part, rows = [], 0
        part.append(piece)
        rows += piece.rows
    if part:
        yield part


def name_part(segments: Iterable[ArchivedSegment]) -> str:
    """Return the file name of a part: when its first segment starts, and a hash of which segments are in it.

    The same segments give the same name, so that what was cut off in the middle is made again in its own place.
    """
    segments = list(segments)
    started_at = datetime.fromisoformat(segments[0].started_at).astimezone(UTC)
    ids = "\n".join(segment.segment_id for segment in segments)
    return f"{started_at:%Y%m%dT%H%M%S%fZ}-{hashlib.sha256(ids.encode()).hexdigest()[:12]}{PART_SUFFIX}"
