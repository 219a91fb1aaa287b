"""Loads what is on the tape and not in the ledger: groups of segments, each in one transaction with its ledger rows.

Data flows one way: the tape is listed, the ledger asked, files are put into groups, read and sorted ahead in a
thread, sent, and settled. A backlog is sent over several connections side by side.

A segment that was taken must still be on the tape after a power loss, or its rows might be recorded a second time
under another id (trades are fetched again). Its bytes were fsynced before it got its name here; its name may not have
been. So the folder is fsynced before a segment is read: a power loss then finds it as it was taken, and a recovery
that would have sealed it anew, with fewer rows where a crash left some that only memory held, finds it sealed.
"""

import contextlib
import time
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from uuid import UUID

from loader import from_archive
from loader.archive.read import Archive
from loader.errors import ArchiveAway, ArchiveDamaged, LedgerChanged
from loader.inbox import Candidate, Inbox
from loader.lacking import lacking
from loader.postgres import filters, ledger
from loader.postgres.capabilities import Capabilities, ask, choose
from loader.postgres.migrate import migrate
from loader.postgres.session import Connection, set_up_session
from loader.prepare import (
    Group,
    Numbered,
    Prepared,
    Refused,
    Unwanted,
    Wanted,
    in_chunks,
    in_groups,
    prepare,
    read_ahead,
)
from loader.sender import Connect, Outcome, Sender, Target
from loader.stop import Stop
from recorder.runtime import disk
from recorder.runtime.data_dir import DataDir
from recorder.runtime.logging import get_logger
from recorder.segments.encode import Identity
from recorder.segments.manifest import Manifest
from recorder.segments.reader import read_identity, read_segment

# Files asked for in the ledger at a time.
CHUNK = 1000
# From this many segments a pass is summed up in one more line.
MANY_SEGMENTS = 20
# From this many groups on a pass is a backlog, and worth more connections.
BACKLOG_GROUPS = 4

log = get_logger("loader")


@dataclass
class Tally:
    """What was done so far."""

    segments: int = 0
    rows: int = 0
    skipped: int = 0  # in the ledger already, by name or by id
    refused: dict[str, str] = field(default_factory=dict)  # file -> reason, as of now
    waiting: dict[str, Candidate] = field(default_factory=dict)  # by name, oldest first: not settled yet
    away: str = "not reached yet"  # why the database is; empty while it is there
    loaded_at_s: float = 0.0  # when a segment was last loaded, by the wall clock
    listed_bytes: int = 0  # of the files of this pass, and of what is to come from the archive after it
    done_bytes: int = 0  # of those of them that were looked at


class Loader:
    """Loads a tape into one database."""

    def __init__(
        self,
        connection: Connection,
        data_dir: DataDir,
        *,
        stop: Stop,
        tally: Tally,
        connect: Connect | None = None,
        wanted: Wanted | None = None,
        target: Target | None = None,
        archive: Archive | None = None,
    ) -> None:
        """Find out what server this is, and bring its schema up to date.

        Args:
            connection: the one that asks the ledger, and loads what is no backlog.
            data_dir: the tape.
            stop: may ask for the end.
            tally: it is kept up to date.
            connect: makes the connections of a backlog; None for none.
            wanted: which segments; None for all.
            target: where rows go; None for the ordinary.
            archive: `finish` loads what only that has; None for none.

        Raises:
            DatabaseUnfit: it cannot take the tape.
            FilterConflict: its schema is for other instruments than those that are to be loaded.
        """
        self._connection = connection
        self._data_dir = data_dir
        self.inbox = Inbox(data_dir)
        self._stop = stop
        self._tally = tally
        self._wanted = wanted or Wanted()
        self._archive = archive
        # What was salvaged waits for the archive, which may have the whole.
        self._put_off: dict[Candidate, Identity | None] = {}
        # After a reconnect the ledger is asked anew, and this run's own segments are found there.
        tally.skipped = -tally.segments
        target = target or Target()
        self.capabilities: Capabilities = choose(ask(connection))
        set_up_session(connection, target.schema)
        if target.schema:
            instruments = filters.agree(connection, target.schema, target.instruments)
            self._wanted = replace(self._wanted, instruments=instruments)
        migrate(connection, self.capabilities.kind)
        if not target.schema:
            filters.refuse_part(connection)  # only now: a filter that comes later finds the ledger, and is refused
        ledger.mend_sequence(connection)
        ledger.forgive_loaded(connection)
        self._sender = Sender(connection, self.capabilities, target, connect, stop)
        self._newest = ledger.newest(connection)
        self._folders: list[str] = []
        self._archived_bytes = 0  # of what is to come from the archive

    def expect(self) -> None:
        """Count what only the archive has and `finish` will load, so that from the start all that is to be is told.

        That an archive is away is told when it is needed.
        """
        if self._archive is None:
            return
        on_tape = {one.name for one in self.inbox.unsettled()}
        with contextlib.suppress(ArchiveAway):
            parts = lacking(self._connection, self._archive, on_tape, wanted=self._wanted)
            self._archived_bytes = sum(one.size_bytes for part in parts for one in part.segments)

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
        listed = [candidate for candidate in self.inbox.unsettled() if self._wanted.file(candidate)]
        self._list_refused()
        self._tally.waiting = {one.name: one for one in listed}
        self._tally.done_bytes = 0
        self._tally.listed_bytes = sum(one.size_bytes for one in listed) + self._archived_bytes
        self._put_off = {}
        for chunk in in_chunks(listed, CHUNK):
            fresh = self._not_in_ledger(chunk)
            if self._archive:
                salvages = {one: identity for one, identity in fresh.items() if identity and identity.salvages}
                self._put_off |= salvages
                fresh = {one: identity for one, identity in fresh.items() if one not in salvages}
            self._load_files(fresh)
        self._sender.refresh_bars()
        segments, rows = self._tally.segments - before[0], self._tally.rows - before[1]
        if segments >= MANY_SEGMENTS:
            seconds = time.monotonic() - begun
            log.info(
                "pass.done", segments=segments, rows=rows, seconds=round(seconds, 3), rows_per_s=round(rows / seconds)
            )
        return segments

    def finish(self) -> None:
        """Once nothing more is to come of the tape: load what only the archive has, and put the database in order."""
        if self._archive:
            self._load_archived(self._archive)
            self._load_files(self._put_off)
            self._sender.refresh_bars()
        self._sender.compress_again()

    def _load_files(self, fresh: dict[Candidate, Identity | None]) -> None:
        """Load what is not in the ledger, by who each file claims to be."""
        _make_durable(fresh)
        numbers = ledger.take_numbers(self._connection, len(fresh)) if fresh else []
        files = [
            Numbered(candidate, number, salvage=bool(identity and identity.salvages))
            for (candidate, identity), number in zip(fresh.items(), numbers, strict=True)
        ]
        groups = in_groups(files)
        with closing(read_ahead(groups, self._prepare)) as prepared:
            self._send(prepared, backlog=len(groups) >= BACKLOG_GROUPS)

    def _load_archived(self, archive: Archive) -> None:
        """Load what the archive has and the ledger lacks, part by part; what the tape has whole is loaded before.

        Raises:
            ArchiveAway: the archive cannot be used just now.
            As load_new.
        """
        for manifest in archive.walk():
            self._stop.check()
            if not self._wanted.part(manifest):
                continue
            numbers = self._lacking(manifest)
            try:
                prepared = from_archive.groups(archive, manifest, numbers, self._wanted)
                self._send(prepared, backlog=manifest.rows > from_archive.GROUP_ROWS * BACKLOG_GROUPS)
            except ArchiveDamaged as exc:
                self._refuse_part(manifest.part_name, exc.what)
        for name, why in archive.damaged.items():
            self._refuse_part(name, why)

    def _lacking(self, manifest: Manifest) -> dict[str, int]:
        """Return the wanted segments of a part that the ledger lacks, each with a number for it."""
        ids = from_archive.wanted_ids(manifest, self._wanted)
        known = ledger.known_ids(self._connection, ids)
        self._tally.skipped += sum(segment_id in known for segment_id in ids)
        lacking = [segment_id for segment_id in ids if segment_id not in known]
        return dict(zip(lacking, ledger.take_numbers(self._connection, len(lacking)), strict=True)) if lacking else {}

    def _refuse_part(self, name: str, why: str) -> None:
        self._tally.refused[name] = why
        log.error("part.refused", name=name, reason=why)

    def _send(self, prepared: Iterable[Prepared], *, backlog: bool) -> None:
        with closing(self._sender.send(prepared, backlog=backlog)) as done:
            for item, outcome in done:
                self._stop.check()
                self._settle(item, outcome)

    def _prepare(self, files: Sequence[Numbered]) -> Prepared:
        return prepare(files, self._wanted)

    def _check_ledger(self) -> None:
        """Notice a backup that was put in this database's place while the connection lasted.

        A backup is what was there at one moment: if it has the newest segment it has the others.
        """
        if self._newest and not ledger.known_ids(self._connection, [self._newest]):
            raise LedgerChanged("the newest segment is not in the ledger any more: was an older backup restored?")

    def _list_refused(self) -> None:
        """Bring the list of what is refused in line with the tape, as far as a listing tells."""
        for name in [name for name in self._tally.refused if not self.inbox.has(name)]:  # moved, or open again
            ledger.forgive(self._connection, [name])
            del self._tally.refused[name]
        if self._folders != self.inbox.folders():
            self._folders = self.inbox.folders()
            ledger.forgive_folders(self._connection, self._folders)
        for place, why in self.inbox.unreadable.items():
            folder = Candidate(self._data_dir.root / place, place, place.partition("/")[0], (0, 0, 0))
            self._refuse(Refused(folder, why, None, again=True))

    def _not_in_ledger(self, chunk: list[Candidate]) -> dict[Candidate, Identity | None]:
        """Settle what the ledger has, by name first, for that needs no file to be opened; return the rest."""
        names = ledger.known_files(self._connection, chunk)
        identities = {one: _identity_of(one) for one in chunk if one.name not in names}
        claimed = [identity.segment_id for identity in identities.values() if identity]
        known, held = ledger.known_ids(self._connection, claimed), ledger.held(self._connection, claimed)
        fresh = {}
        for candidate in chunk:
            identity = identities.get(candidate)
            segment_id = identity.segment_id if identity else None
            if candidate.name not in names and segment_id not in known:
                fresh[candidate] = identity
            elif why := _other_content(candidate, held.get(segment_id or "")):
                self._refuse(Refused(candidate, why, segment_id))
            else:
                self._skip(candidate)
        return fresh

    def _settle(self, item: Prepared, outcome: Outcome) -> None:
        group = item.group
        if item.alone and (group is None or outcome.failure):
            self._settle_one_by_one(item)
            return
        for one in item.aside:
            if isinstance(one, Refused):
                self._refuse(one)
            elif isinstance(one, Unwanted):
                self._done(one.candidate)
        if group is None:
            return  # nothing of it was to be loaded
        if outcome.failure:
            (segment,) = group.segments
            self._refuse(Refused(segment.candidate, outcome.failure.what, segment.identity.segment_id))
        elif outcome.way is None:
            self._skip(group.segments[0].candidate)
        else:
            self._count(group)

    def _settle_one_by_one(self, item: Prepared) -> None:
        """Load the segments of a group each by itself, so that what is wrong with one is told of that one."""
        segments = item.group.segments if item.group else ()
        known = ledger.known_ids(self._connection, [segment.identity.segment_id for segment in segments])
        there = {segment.candidate for segment in segments if segment.identity.segment_id in known}
        for candidate, make in item.alone:
            self._stop.check()
            if candidate in there:
                self._skip(candidate)
            else:
                again = make()
                self._send([again], backlog=False)

    def _count(self, group: Group) -> None:
        for segment in group.segments:
            self._done(segment.candidate)
            self._tally.segments += 1
            self._tally.rows += segment.rows
            self._tally.loaded_at_s = time.time()
            self._tally.refused.pop(segment.candidate.name, None)
            log.info("segment.loaded", stream=group.stream, name=segment.candidate.path.name, rows=segment.rows)
        self._newest = group.segments[-1].identity.segment_id

    def _done(self, candidate: Candidate) -> None:
        self.inbox.settle(candidate, for_good=True)
        self._tally.waiting.pop(candidate.name, None)
        self._tally.done_bytes += candidate.size_bytes

    def _skip(self, candidate: Candidate) -> None:
        self._done(candidate)
        self._tally.skipped += 1
        if self._tally.refused.pop(candidate.name, None):
            ledger.forgive(self._connection, [candidate.name])

    def _refuse(self, refused: Refused) -> None:
        candidate = refused.candidate
        self._tally.waiting.pop(candidate.name, None)
        if not refused.again:
            self.inbox.settle(candidate, for_good=False)
            self._tally.done_bytes += candidate.size_bytes
        if self._tally.refused.get(candidate.name) == refused.reason:
            return
        ledger.refuse(self._connection, candidate, refused.reason, refused.segment_id)
        self._tally.refused[candidate.name] = refused.reason
        log.error("segment.refused", name=candidate.name, reason=refused.reason)


def _make_durable(candidates: Iterable[Candidate]) -> None:
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


def _identity_of(candidate: Candidate) -> Identity | None:
    """Return who a file is as its first bytes claim it; what is wrong with the file comes up later."""
    try:
        identity = read_identity(candidate.path)
        return replace(identity, segment_id=str(UUID(identity.segment_id))) if identity else None
    except (OSError, ValueError):
        return None
