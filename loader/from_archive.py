"""Segments of the Parquet archive, made ready to be sent like those of the tape: a replay needs no tape."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from loader.archive.read import Archive
from loader.inbox import Candidate
from loader.postgres.copy import encode
from loader.postgres.tables import SEGMENT
from loader.prepare import GROUP_SEGMENTS, Group, Prepared, Segment, Wanted, by_instrument, of_instruments
from recorder.segments.encode import Identity
from recorder.segments.manifest import ArchivedSegment, Manifest

# What goes into one transaction; about what loader.prepare puts together of a tape.
GROUP_ROWS = 200_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def wanted_ids(manifest: Manifest, wanted: Wanted) -> list[str]:
    """Return the ids of a part's segments that are to be loaded."""
    return [one.segment_id for one in manifest.segments if wanted.segment(_segment(manifest, one, 0))]


def groups(archive: Archive, manifest: Manifest, numbers: Mapping[str, int], wanted: Wanted) -> Iterator[Prepared]:
    """Yield groups of a part's segments, ready to be sent.

    Args:
        archive: where the part lies.
        manifest: of the part.
        numbers: by segment_id, what the column `segment` says of those that are to be loaded.
        wanted: which rows.

    Raises:
        ArchiveAway: the archive cannot be read just now.
        ArchiveDamaged: the part is not there, or not what was written.
    """
    chosen = [
        _segment(manifest, archived, numbers[archived.segment_id])
        for archived in manifest.segments
        if archived.segment_id in numbers
    ]
    if not chosen:
        return
    rows = archive.rows(manifest)
    for together in _together(chosen):
        yield _prepared(archive, manifest, rows, together, wanted)


def rows_by_segment(archive: Archive, manifest: Manifest) -> Iterator[tuple[ArchivedSegment, pa.Table]]:
    """Yield the segments of a part, each with its rows in the columns of the tape; no more than the part is held.

    Raises:
        ArchiveAway: the archive cannot be read just now.
        ArchiveDamaged: the part is not there, or not what was written.
    """
    rows = archive.rows(manifest)
    ids = pa.array([one.segment_id for one in manifest.segments], pa.string())
    places = pc.index_in(rows[SEGMENT], value_set=ids).to_numpy()
    rows = rows.drop_columns([SEGMENT])
    order = np.argsort(places, kind="stable")
    ends = np.cumsum(np.bincount(places, minlength=len(ids)))
    for place, archived in enumerate(manifest.segments):
        yield archived, rows.take(pa.array(order[ends[place - 1] if place else 0 : ends[place]]))


def _together(segments: Sequence[Segment]) -> list[list[Segment]]:
    """Put segments together, in their order, as many as one transaction is to take; a salvaged one alone. Pure."""
    found: list[list[Segment]] = []
    rows = 0
    for segment in segments:
        alone = bool(segment.identity.salvages) or (bool(found) and bool(found[-1][0].identity.salvages))
        if not found or alone or rows + segment.rows > GROUP_ROWS or len(found[-1]) == GROUP_SEGMENTS:
            found.append([])
            rows = 0
        found[-1].append(segment)
        rows += segment.rows
    return found


def _prepared(
    archive: Archive, manifest: Manifest, rows: pa.Table, segments: Sequence[Segment], wanted: Wanted
) -> Prepared:
    ids = pa.array([segment.identity.segment_id for segment in segments], pa.string())
    numbers = pa.array([segment.number for segment in segments], pa.int32())
    # None for rows of other segments of the part.
    number = pc.take(numbers, pc.index_in(rows[SEGMENT], value_set=ids))
    table = rows.set_column(rows.num_columns - 1, pa.field(SEGMENT, pa.int32()), number)
    table = of_instruments(table.filter(pc.is_valid(number)), wanted.instruments)
    counts = {one["values"]: one["counts"] for one in pc.value_counts(table[SEGMENT]).to_pylist()}
    group = Group(
        stream=manifest.stream,
        segments=tuple(replace(segment, rows=counts.get(segment.number, 0)) for segment in segments),
        rows=table.num_rows,
        instruments=pc.count_distinct(table["instrument"]).as_py(),
        encoded=encode(by_instrument(table)),
    )
    alone = ((one.candidate, partial(_alone, archive, manifest, one, wanted)) for one in segments)
    return Prepared(group, (), alone=tuple(alone) if len(segments) > 1 else ())


def _alone(archive: Archive, manifest: Manifest, segment: Segment, wanted: Wanted) -> Prepared:
    return _prepared(archive, manifest, archive.rows(manifest), [segment], wanted)


def _segment(manifest: Manifest, archived: ArchivedSegment, number: int) -> Segment:
    mtime_ns = round((archived.mtime - _EPOCH).total_seconds() * 1e6) * 1000
    return Segment(
        candidate=Candidate(Path(archived.name), archived.name, manifest.stream, (archived.size_bytes, mtime_ns, 0)),
        identity=Identity(
            segment_id=archived.segment_id,
            previous=archived.previous,
            stream=manifest.stream,
            recorder=archived.recorder,
            started_at=archived.started_at,
            software=archived.software,
            salvages=archived.salvages,
        ),
        number=number,
        rows=archived.rows,
        received=_range(archived.first_received_at, archived.last_received_at),
        times=_range(archived.first_timestamp, archived.last_timestamp),
        crc32=archived.crc32,
    )


def _range(first: datetime | None, last: datetime | None) -> tuple[datetime, datetime] | None:
    return None if first is None or last is None else (first, last)
