"""What the Parquet archive holds and neither a database nor the tape has: pruned before it was loaded.

Told part by part by manifests and the ledger; no part is read.
"""

import contextlib
import threading
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from datetime import datetime

from loader.archive.read import Archive
from loader.errors import DatabaseAway, LoaderError, Stopped
from loader.from_archive import wanted_ids
from loader.inbox import Inbox
from loader.postgres import ledger
from loader.postgres.database import Database
from loader.postgres.retention import retention_of
from loader.postgres.session import Connection
from loader.prepare import Wanted
from loader.stop import Stop
from recorder.runtime.data_dir import DataDir
from recorder.runtime.logging import get_logger
from recorder.segments.manifest import ArchivedSegment, Manifest

# While the database is away it is looked again this often whether it has come.
_LOOK_S = 1.0
# Longer than a stop can take: what is under way is asked each second, or cut.
_END_S = 15.0

log = get_logger("loader")


@dataclass(frozen=True)
class Lacking:
    """One part: which of its segments that the tape has not are to be loaded from it."""

    manifest: Manifest
    segments: tuple[ArchivedSegment, ...]
    there: int  # so many others are in the database


def lacking(
    connection: Connection,
    archive: Archive,
    on_tape: Collection[str],
    *,
    wanted: Wanted | None = None,
    schema: str | None = None,
) -> Iterator[Lacking]:
    """Yield what only the archive has, as a replay would load it after the tape.

    Args:
        connection: to the database.
        archive: names what it cannot believe in `damaged`.
        on_tape: names of the files that the tape has: those come from there.
        wanted: which segments; None for all.
        schema: that of the ledger; None where the server looks by itself.

    Raises:
        ArchiveAway: it cannot be listed or read.
    """
    has_ledger = ledger.is_there(connection, schema)
    for manifest in archive.walk():
        if wanted and not wanted.part(manifest):
            continue
        ids = set(wanted_ids(manifest, wanted)) if wanted else {one.segment_id for one in manifest.segments}
        left = [one for one in manifest.segments if one.segment_id in ids and one.name not in on_tape]
        if not left:
            continue
        known = _settled(connection, left) if has_ledger else set()
        found = tuple(one for one in left if one.segment_id not in known)
        yield Lacking(manifest, found, len(left) - len(found))


def _settled(connection: Connection, segments: Collection[ArchivedSegment]) -> set[str]:
    """Return the ids of those that are in the database, if only as what was salvaged of them, or they were of."""
    ids = [*(one.segment_id for one in segments), *(one.salvages for one in segments if one.salvages)]
    known = ledger.known_ids(connection, ids) | ledger.salvaged_of(connection, ids)
    return {one.segment_id for one in segments if {one.segment_id, one.salvages} & known}


def is_dropped(archived: ArchivedSegment, since: datetime | None) -> bool:
    """Whether a database keeps none of a segment's rows, for retention drops what is older. Pure."""
    return since is not None and archived.last_timestamp is not None and archived.last_timestamp < since


def count_lacking(connection: Connection, archive: Archive, on_tape: Collection[str]) -> int:
    """Return how many segments only the archive has, of those that the database would keep.

    Raises:
        ArchiveAway: it cannot be listed or read.
    """
    count, since = 0, dict[str, datetime | None]()
    for part in lacking(connection, archive, on_tape):
        stream = part.manifest.stream
        if stream not in since:
            since[stream] = retention_of(connection, stream)
        count += sum(not is_dropped(one, since[stream]) for one in part.segments)
    return count


def warn(database: Database, archive: Archive, data_dir: DataDir) -> None:
    """Log how many segments only the archive has: no load brings them. An archive that is away is no failure.

    Raises:
        DatabaseAway: it went away meanwhile.
        Stopped: a signal asked for the end.
    """
    try:
        with database.connect() as connection:
            on_tape = {one.name for one in Inbox(data_dir).unsettled()}
            count = count_lacking(connection, archive, on_tape)
    except (DatabaseAway, Stopped):
        raise
    except LoaderError as exc:
        log.warning("archive.not_asked", reason=str(exc))
        return
    if count:
        log.warning("archive.not_loaded", segments=count, remedy="run replay: no load brings them")


@contextlib.contextmanager
def warned(
    database: Database, archive: Archive | None, data_dir: DataDir, stop: Stop, *, is_away: Callable[[], bool]
) -> Iterator[None]:
    """Warn once the database is there, in a thread: a large archive's manifests take minutes to be read from S3.

    At the block's end the stop is asked for.

    Args:
        database: what to ask; the block may lose and find it again meanwhile.
        archive: None for none.
        data_dir: the tape.
        stop: asked now and then.
        is_away: whether the database is.
    """
    if archive is None:
        yield
        return

    def look() -> None:
        with contextlib.suppress(Stopped):
            while not stop.asked:
                if not is_away():
                    with contextlib.suppress(DatabaseAway):
                        warn(database, archive, data_dir)
                        return
                stop.wait(_LOOK_S)

    thread = threading.Thread(target=look, name="archive-lacking", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.event.set()
        thread.join(_END_S)
