"""What the Parquet archive holds and neither a database nor the tape has: pruned before it was loaded.

Told part by part by manifests and the ledger; no part is read.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from loader.archive.read import Archive
from loader.from_archive import wanted_ids
from loader.postgres import ledger
from loader.postgres.session import Connection
from loader.prepare import Wanted
from recorder.segments.manifest import ArchivedSegment, Manifest


@dataclass(frozen=True)
class Lacking:
    """One part: which of its segments that the tape has not are to be loaded from it."""

    manifest: Manifest
    segments: tuple[ArchivedSegment, ...]
    there: int  # so many others are in the database


def lacking(
    connection: Connection, archive: Archive, on_tape: Collection[str], *, wanted: Wanted, schema: str | None = None
) -> Iterator[Lacking]:
    """Yield what only the archive has, as a replay would load it after the tape.

    Args:
        connection: to the database.
        archive: names what it cannot believe in `damaged`.
        on_tape: names of the files that the tape has: those come from there.
        wanted: which segments.
        schema: that of the ledger; None where the server looks by itself.

    Raises:
        ArchiveAway: it cannot be listed or read.
    """
    has_ledger = ledger.is_there(connection, schema)
    for manifest in archive.walk():
        if not wanted.part(manifest):
            continue
        ids = set(wanted_ids(manifest, wanted))
        left = [one for one in manifest.segments if one.segment_id in ids and one.name not in on_tape]
        if not left:
            continue
        known = _settled(connection, left) if has_ledger else set()
        found = tuple(one for one in left if one.segment_id not in known)
        yield Lacking(manifest, found, len(left) - len(found))


def _settled(connection: Connection, segments: Collection[ArchivedSegment]) -> set[str]:
    """Return the ids of those that are in the database, if only as what was salvaged of them, or they of it."""
    ids = [one.segment_id for one in segments]
    known = ledger.known_ids(connection, [*ids, *(one.salvages for one in segments if one.salvages)])
    parted = ledger.salvaged_of(connection, ids)
    return {one.segment_id for one in segments if {one.segment_id, one.salvages} & known or one.segment_id in parted}
