"""Which segments a replay loads: whole ones that overlap a half-open range [start, end) of received_at."""

from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import UTC, datetime, time, timedelta

from loader.archive.read import Archive
from loader.archive.read import overlaps as part_overlaps
from loader.inbox import Candidate, Inbox
from loader.lacking import Lacking, lacking
from loader.load import Tally
from loader.postgres import ledger
from loader.postgres.session import Connection
from loader.prepare import Segment, Wanted
from recorder.segments.layout import SegmentName, us_to_datetime
from recorder.segments.schemas import stream_kind


def wanted(
    start: datetime | None,
    end: datetime | None,
    streams: Collection[str] = (),
    instruments: tuple[str, ...] | None = None,
) -> Wanted:
    """Return what chooses the segments of a range; an open end takes all there is on that side. Pure.

    Args:
        start: the first received_at.
        end: the first one that is not wanted any more.
        streams: names (`eth_option_trades`) or kinds (`trades`); empty for all.
        instruments: names or patterns with *; None for all.
    """
    return Wanted(
        file=lambda candidate: of_streams(candidate.stream, streams) and may_overlap(candidate.path.name, start, end),
        segment=lambda segment: overlaps(segment, start, end),
        part=lambda part: of_streams(part.stream, streams) and part_overlaps(part, start, end),
        instruments=instruments,
    )


def of_streams(stream: str, streams: Collection[str]) -> bool:
    """Decide whether a stream is one of those named, or of a kind that is named; none named means all."""
    return not streams or stream in streams or stream_kind(stream) in streams


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


def overlaps(segment: Segment, start: datetime | None, end: datetime | None) -> bool:
    """Decide by its rows whether a segment has any of the range."""
    if segment.received is None:
        return False
    first, last = segment.received
    return (end is None or first < end) and (start is None or last >= start)


@dataclass
class Plan:
    """What a replay would load: by stream, how many segments, and how many bytes of their files."""

    files: dict[str, int] = field(default_factory=dict)
    bytes: dict[str, int] = field(default_factory=dict)
    there: int = 0  # files that the database has
    damaged: dict[str, str] = field(default_factory=dict)  # manifest of the archive -> reason

    def add(self, candidate: Candidate) -> None:
        """Count a file that would be loaded."""
        self._add(candidate.stream, candidate.size_bytes)

    def add_archived(self, part: Lacking) -> None:
        """Count what would be loaded from a part of the archive."""
        self.there += part.there
        for segment in part.segments:
            self._add(part.manifest.stream, segment.size_bytes)

    def _add(self, stream: str, size_bytes: int) -> None:
        self.files[stream] = self.files.get(stream, 0) + 1
        self.bytes[stream] = self.bytes.get(stream, 0) + size_bytes


def plan(
    connection: Connection, inbox: Inbox, chosen: Wanted, *, archive: Archive | None, schema: str | None = None
) -> Plan:
    """Find out what a replay would load; nothing is changed, in the database neither.

    Args:
        connection: looks into the schema.
        inbox: of the tape, told by the names of files.
        chosen: which segments.
        archive: told by its manifests; None for none.
        schema: that of a replay into one; it need not be there.

    Raises:
        ArchiveAway: the archive cannot be listed or read.
    """
    found = Plan()
    listed = [candidate for candidate in inbox.unsettled() if chosen.file(candidate)]
    known = ledger.known_files(connection, listed) if ledger.is_there(connection, schema) else set()
    for candidate in listed:
        if candidate.name in known:
            found.there += 1
        else:
            found.add(candidate)
    if archive:
        on_tape = {candidate.name for candidate in listed}
        for part in lacking(connection, archive, on_tape, wanted=chosen, schema=schema):
            found.add_archived(part)
        found.damaged = dict(archive.damaged)
    return found


def plan_as_text(planned: Plan) -> str:
    """Return a line for each stream, and one for all."""
    lines = [
        f"{stream}: {_count(files, 'segment')}, {planned.bytes[stream] / 1e6:,.1f} MB"
        for stream, files in sorted(planned.files.items())
    ]
    lines += [f"damaged: {name}: {why}" for name, why in sorted(planned.damaged.items())]
    total = sum(planned.files.values())
    lines.append(f"would load {_count(total, 'segment')}; {_count(planned.there, 'segment')} already there")
    return "\n".join(lines)


def summary(tally: Tally) -> str:
    """Return the line that tells what a replay did."""
    return (
        f"loaded {_count(tally.segments, 'segment')} ({_count(tally.rows, 'row')}),"
        f" skipped {_count(tally.skipped, 'segment')} already there, refused {len(tally.refused)}"
    )


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
