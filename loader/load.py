"""Loads what is on the tape and not in the ledger: each segment in one transaction with its ledger row.

A segment that was taken must still be on the tape after a power loss, or its rows might be recorded a second time
under another id (trades are fetched again). Its bytes were fsynced before it got its name here; its name may not have
been. So the folder is fsynced before a segment is read: a power loss then finds it as it was taken, and a recovery
that would have sealed it anew, with fewer rows where a crash left some that only memory held, finds it sealed.
"""

import contextlib
import random
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from uuid import UUID

import psycopg

from loader.errors import LedgerChanged, SegmentRefused
from loader.inbox import Candidate, Inbox
from loader.postgres import ledger
from loader.postgres.capabilities import Capabilities, ask, choose
from loader.postgres.copy import copy_rows
from loader.postgres.database import DATA_ERRORS, ROLLED_BACK
from loader.postgres.migrate import migrate
from loader.postgres.session import Connection, set_up_session
from loader.postgres.tables import check_table, copy_statement, market_of
from loader.prepare import Gone, Item, Prepared, Refused, in_chunks, read_ahead
from loader.stop import Stop
from recorder.runtime import disk
from recorder.runtime.data_dir import DataDir
from recorder.runtime.logging import get_logger
from recorder.segments.reader import read_identity, read_segment

# Files asked for in the ledger at a time.
CHUNK = 500
# A deadlock is another transaction's good luck; ten in a row are somebody's bug.
MOST_ROLLBACKS = 10
# From this many segments a pass is summed up in one more line.
MANY_SEGMENTS = 20

log = get_logger("loader")


@dataclass
class Tally:
    """What was done so far."""

    segments: int = 0
    rows: int = 0
    skipped: int = 0  # in the ledger already, by name or by id
    refused: dict[str, str] = field(default_factory=dict)  # file -> reason, as of now


def _all(_item: object) -> bool:
    return True


@dataclass(frozen=True)
class Wanted:
    """Which segments are to be loaded: by what a file's name tells, then by what its rows tell."""

    file: Callable[[Candidate], bool] = _all
    segment: Callable[[Prepared], bool] = _all


class Loader:
    """Loads a tape over one connection."""

    def __init__(
        self, connection: Connection, data_dir: DataDir, *, stop: Stop, tally: Tally, wanted: Wanted | None = None
    ) -> None:
        """Find out what server this is, and bring its schema up to date.

        Raises:
            DatabaseUnfit: it cannot take the tape.
        """
        self._connection = connection
        self._data_dir = data_dir
        self._inbox = Inbox(data_dir)
        self._stop = stop
        self._tally = tally
        self._wanted = wanted or Wanted()
        self._checked_streams: set[str] = set()
        # After a reconnect the ledger is asked anew, and this run's own segments are found there.
        tally.skipped = -tally.segments
        self.capabilities: Capabilities = choose(ask(connection))
        set_up_session(connection)
        migrate(connection, self.capabilities.kind)
        ledger.mend_sequence(connection)
        ledger.forgive_loaded(connection)
        self._newest = ledger.newest(connection)
        self._folders: list[str] = []

    def load_new(self) -> int:
        """Load what is new on the tape; return how many segments were.

        Raises:
            Stopped: a signal asked for the end; what was committed stays.
            DatabaseUnfit: a table does not fit.
            LedgerChanged: the database is not the one of the last pass; connect anew.
            psycopg.Error: the database failed; what is in the ledger is loaded, nothing else.
        """
        begun, before = time.monotonic(), (self._tally.segments, self._tally.rows)
        self._check_ledger()
        listed = [candidate for candidate in self._inbox.unsettled() if self._wanted.file(candidate)]
        self._list_refused()
        for chunk in in_chunks(listed, CHUNK):
            fresh = self._not_in_ledger(chunk)
            _make_durable(fresh)
            numbers = ledger.take_numbers(self._connection, len(fresh)) if fresh else []
            with closing(read_ahead(zip(fresh, numbers, strict=True))) as items:
                for item in items:
                    self._stop.check()
                    self._settle(item)
        segments, rows = self._tally.segments - before[0], self._tally.rows - before[1]
        if segments >= MANY_SEGMENTS:
            seconds = time.monotonic() - begun
            log.info(
                "pass.done", segments=segments, rows=rows, seconds=round(seconds, 3), rows_per_s=round(rows / seconds)
            )
        return segments

    def _check_ledger(self) -> None:
        """Notice a backup that was put in this database's place while the connection lasted.

        A backup is what was there at one moment: if it has the newest segment it has the others.
        """
        if self._newest and not ledger.known_ids(self._connection, [self._newest]):
            raise LedgerChanged("the newest segment is not in the ledger any more: was an older backup restored?")

    def _list_refused(self) -> None:
        """Bring the list of what is refused in line with the tape, as far as a listing tells."""
        for name in [name for name in self._tally.refused if not self._inbox.has(name)]:  # moved, or open again
            ledger.forgive(self._connection, name)
            del self._tally.refused[name]
        if self._folders != self._inbox.folders():
            self._folders = self._inbox.folders()
            ledger.forgive_folders(self._connection, self._folders)
        for place, why in self._inbox.unreadable.items():
            folder = Candidate(self._data_dir.root / place, place, place.partition("/")[0], (0, 0, 0))
            self._refuse(Refused(folder, why, None, again=True))

    def _not_in_ledger(self, chunk: list[Candidate]) -> list[Candidate]:
        """Settle what the ledger has, by name first, for that needs no file to be opened; return the rest."""
        names = ledger.known_files(self._connection, chunk)
        ids = {one.name: _identity_of(one) for one in chunk if one.name not in names}
        claimed = [segment_id for segment_id in ids.values() if segment_id]
        known, held = ledger.known_ids(self._connection, claimed), ledger.held(self._connection, claimed)
        fresh = []
        for candidate in chunk:
            segment_id = None if candidate.name in names else ids[candidate.name]
            if candidate.name not in names and segment_id not in known:
                fresh.append(candidate)
            elif why := _other_content(candidate, held.get(segment_id or "")):
                self._refuse(Refused(candidate, why, segment_id))
            else:
                self._skip(candidate)
        return fresh

    def _settle(self, item: Item) -> None:
        if isinstance(item, Gone):
            return  # the next listing will not have it
        if isinstance(item, Refused):
            self._refuse(item)
        elif not self._wanted.segment(item):
            self._inbox.settle(item.candidate, for_good=True)
        else:
            try:
                self._load(item)
            except SegmentRefused as exc:
                self._refuse(Refused(item.candidate, exc.what, item.identity.segment_id))

    def _load(self, segment: Prepared) -> None:
        stream = segment.identity.stream
        if stream not in self._checked_streams:
            market = market_of(stream)
            if market:
                migrate(self._connection, self.capabilities.kind, market)
            check_table(self._connection, stream)
            self._checked_streams.add(stream)
        begun = time.monotonic()
        if not self._in_one_transaction(segment):
            self._skip(segment.candidate)
            return
        self._inbox.settle(segment.candidate, for_good=True)
        self._newest = segment.identity.segment_id
        self._tally.segments += 1
        self._tally.rows += segment.rows
        self._tally.refused.pop(segment.candidate.name, None)
        log.info(
            "segment.loaded",
            stream=stream, name=segment.candidate.path.name, rows=segment.rows,
            seconds=round(time.monotonic() - begun, 3),
        )  # fmt: skip

    def _in_one_transaction(self, segment: Prepared) -> bool:
        """Return False if the segment's rows are in the database already."""
        stream = segment.identity.stream
        for attempt in range(MOST_ROLLBACKS):
            try:
                return load_segment(self._connection, segment, self._stop.check)
            except ROLLED_BACK:
                if attempt == MOST_ROLLBACKS - 1:
                    raise
                self._stop.wait(random.uniform(0, 0.05 * 2**attempt))  # noqa: S311 - jitter is no secret
            except DATA_ERRORS as exc:
                if exc.diag.table_name == ledger.TABLE:
                    raise LedgerChanged(f"its next number is taken: {' '.join(str(exc).split())}") from exc
                # A table that was changed by hand is no segment's fault.
                check_table(self._connection, stream)
                raise SegmentRefused(f"the database does not take its rows: {' '.join(str(exc).split())}") from exc
            except (psycopg.ProgrammingError, psycopg.InternalError):
                # What a type's own reader says of bytes that are another type's is an internal error, too.
                check_table(self._connection, stream)
                raise
        raise AssertionError("unreachable: the last attempt returned or raised")

    def _skip(self, candidate: Candidate) -> None:
        self._inbox.settle(candidate, for_good=True)
        self._tally.skipped += 1
        if self._tally.refused.pop(candidate.name, None):
            ledger.forgive(self._connection, candidate.name)

    def _refuse(self, refused: Refused) -> None:
        candidate = refused.candidate
        if not refused.again:
            self._inbox.settle(candidate, for_good=False)
        if self._tally.refused.get(candidate.name) == refused.reason:
            return
        ledger.refuse(self._connection, candidate, refused.reason, refused.segment_id)
        self._tally.refused[candidate.name] = refused.reason
        log.error("segment.refused", name=candidate.name, reason=refused.reason)


def load_segment(connection: Connection, segment: Prepared, check: Callable[[], None]) -> bool:
    """Load one segment: ledger row first, rows second, counted before the commit.

    Returns:
        Whether its rows came now; False if they were there before, or came from another loader meanwhile.

    Raises:
        SegmentRefused: the rows that the database took are not those that were sent, or they are there in part.
        SchemaConflict: its table has other columns than the stream; nothing is loaded.
    """
    identity, candidate = segment.identity, segment.candidate
    with connection.transaction():
        if identity.salvages and ledger.known_ids(connection, [identity.salvages]):
            ledger.note_salvage(connection, candidate, identity)
            ledger.forgive(connection, candidate.name, identity.salvages)
            return False
        if part := ledger.salvaged_by(connection, identity.segment_id):
            raise SegmentRefused(f"a part of it was salvaged and loaded already, as {part}")
        if not ledger.insert(
            connection, candidate, identity,
            number=segment.number, rows=segment.rows, received=segment.received, crc32=segment.crc32,
        ):  # fmt: skip
            return False
        taken = copy_rows(connection, copy_statement(identity.stream), segment.encoded, check)
        if taken != segment.rows:
            raise SegmentRefused(f"the database took {taken} of its {segment.rows} rows: is there a trigger?")
        # Now, for the COPY holds the table as it is: of a column whose type was changed to another one of eight bytes
        # PostgreSQL would have taken the bytes for what they are not.
        check_table(connection, identity.stream)
        ledger.forgive(connection, candidate.name, identity.salvages)
    return True


def _make_durable(candidates: list[Candidate]) -> None:
    """See to it that a power loss does not take a name under which a segment is about to be taken."""
    for folder in {candidate.path.parent for candidate in candidates}:
        with contextlib.suppress(OSError):  # of a medium that cannot be written nothing can be lost; or it is gone
            disk.fsync_dir(folder)


def _other_content(candidate: Candidate, held: tuple[int, int] | None) -> str:
    """Return what is wrong if a good file has other rows than were loaded under its id. It may be a copy, or damaged
    since: that is no matter of the loader's, whose rows are safe.
    """  # noqa: D205
    size_bytes, rows = held or (candidate.size_bytes, 0)
    if candidate.size_bytes == size_bytes:
        return ""
    try:
        checked = read_segment(candidate.path)
    except OSError:
        return ""
    if checked.damage or not checked.sealed or checked.rows == rows:
        return ""
    return f"it has {checked.rows} rows, but was loaded with {rows}: its segment_id was used twice"


def _identity_of(candidate: Candidate) -> str | None:
    """Return a file's segment_id as its first bytes claim it; what is wrong with the file comes up later."""
    try:
        identity = read_identity(candidate.path)
        return str(UUID(identity.segment_id)) if identity else None
    except (OSError, ValueError):
        return None
