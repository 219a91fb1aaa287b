"""The sealed segments of a day, listed and read: good ones with their rows, the others with a reason."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

import pyarrow as pa

from loader.errors import SegmentRefused
from loader.inbox import Candidate, stream_folders
from loader.prepare import Gone, Refused, first_and_last, read_good
from recorder.runtime.data_dir import DataDir
from recorder.segments.check import Checked
from recorder.segments.encode import Identity
from recorder.segments.layout import SEALED_SUFFIX
from recorder.segments.manifest import ArchivedSegment
from recorder.segments.schemas import SCHEMAS, stream_kind


@dataclass(frozen=True)
class DateFolder:
    """A date folder of a stream on the tape, whatever it is called."""

    stream: str
    name: str  # `date=…`
    mtime_ns: int


@dataclass(frozen=True)
class Piece:
    """One good segment and its rows."""

    candidate: Candidate
    identity: Identity
    segment: ArchivedSegment
    table: pa.Table  # the stream's columns

    @property
    def rows(self) -> int:
        """How many rows it has."""
        return self.segment.rows


def date_folders(data_dir: DataDir) -> Iterator[DateFolder]:
    """Yield the date folders of a tape, by stream, then by date.

    Raises:
        OSError: a folder cannot be listed.
    """
    for folder in stream_folders(data_dir):
        with os.scandir(folder) as found:
            entries = sorted(found, key=lambda entry: entry.name)
        for entry in entries:
            if entry.name.startswith("date=") and entry.is_dir():
                yield DateFolder(folder.name, entry.name, entry.stat().st_mtime_ns)


def candidates(data_dir: DataDir, stream: str, folder: str) -> list[Candidate]:
    """List the sealed files of a date folder in the order of their names.

    Raises:
        OSError: it cannot be listed.
    """
    found = []
    with os.scandir(data_dir.root / stream / folder) as entries:
        for entry in entries:
            if entry.name.endswith(SEALED_SUFFIX) and entry.is_file():
                try:
                    stat = entry.stat()
                except FileNotFoundError:
                    continue  # moved or pruned since it was listed
                look = (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
                path = data_dir.root / stream / folder / entry.name
                found.append(Candidate(path, f"{stream}/{folder}/{entry.name}", stream, look))
    return sorted(found, key=lambda candidate: candidate.name)


def read(candidate: Candidate) -> Piece | Refused | Gone:
    """Read and check one segment. Never raises on what the file holds."""
    good = read_good(candidate)
    if not isinstance(good, tuple):
        return good
    try:
        return _piece(candidate, *good)
    except SegmentRefused as exc:
        return Refused(candidate, exc.what, exc.segment_id)


def _piece(candidate: Candidate, identity: Identity, checked: Checked) -> Piece:
    table = checked.table.replace_schema_metadata(None)
    columns = SCHEMAS[stream_kind(identity.stream) or ""]
    try:
        if not table.schema.equals(columns):
            raise SegmentRefused("its columns are not those of its stream", segment_id=identity.segment_id)
        day = datetime.fromisoformat(identity.started_at).astimezone(UTC).date().isoformat()
        received, times = first_and_last(table["received_at"]), first_and_last(table["timestamp"])
    except (ValueError, OverflowError) as exc:
        why = f"a time of it has no form: {' '.join(str(exc).split())}"
        raise SegmentRefused(why, segment_id=identity.segment_id) from exc
    folder = candidate.path.parent.name
    if folder != f"date={day}":
        # In the archive each segment has one place, by what it says of itself: a copy elsewhere is not doubled there.
        raise SegmentRefused(
            f"it began on {day}, but lies in {folder}: move it to its own folder", segment_id=identity.segment_id
        )
    segment = ArchivedSegment(
        segment_id=identity.segment_id,
        previous=identity.previous,
        recorder=identity.recorder,
        name=candidate.name,
        rows=checked.rows,
        first_received_at=received and received[0],
        last_received_at=received and received[1],
        first_timestamp=times and times[0],
        last_timestamp=times and times[1],
        crc32=checked.crc32,
        size_bytes=candidate.size_bytes,
        mtime=candidate.mtime,
        salvages=identity.salvages,
        started_at=identity.started_at,
        software=identity.software,
    )
    # One chunk for all its flushes: thousands of small buffers would hold the memory of a part a second time.
    return Piece(candidate, identity, segment, table.combine_chunks())
