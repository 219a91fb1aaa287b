"""Compares the database with the tape, and with the archive of what left it; changes neither, unless told to repair.

Each stream's table is read once, and gives a count and a checksum for each segment. Only where these are not those of
the tape are rows compared one by one, to say which. The archive is read a part at a time, and only parts that hold
something the tape did not show whole.
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum

import pyarrow as pa

from loader import checksum
from loader.archive.read import Archive
from loader.compare import Entry, Sum, difference, expected_rows, nothing, rows_of, sum_here, sums_there
from loader.errors import ArchiveAway, ArchiveDamaged, SegmentRefused
from loader.from_archive import rows_by_segment
from loader.inbox import Candidate, Inbox
from loader.lacking import is_dropped
from loader.postgres import ledger
from loader.postgres.filters import held, refuse_part
from loader.postgres.retention import retention_of
from loader.postgres.session import Connection, set_up_session
from loader.postgres.tables import check_table
from loader.prepare import judge, of_instruments
from loader.repair import NotRepaired, Repair
from loader.stop import Stop
from recorder.runtime.data_dir import DataDir
from recorder.runtime.logging import get_logger
from recorder.segments.check import Checked
from recorder.segments.manifest import ArchivedSegment, Manifest
from recorder.segments.reader import read_segment

_LEDGER = "SELECT segment_id::text, segment, stream, name, rows, first_received_at, crc32 FROM loaded_segments"
_SALVAGED = "SELECT segment_id::text, salvages::text FROM salvaged_segments"
_OF_ROOTS = "SELECT salvages::text, segment_id::text FROM loaded_segments WHERE salvages IS NOT NULL"
_ROW_BY_ROW = "this server's checksums are not as they are computed here: every segment was compared row by row"
_NO_ENTRY = "not in the database's ledger"
_OWN = "rows without a segment's number: no loader wrote them, and none removes them"

log = get_logger("loader")


class Verdict(StrEnum):
    """What was found about one segment."""

    EQUAL = "equal"
    REPAIRED = "repaired"  # it was different, and is equal now
    MISSING = "missing"  # on the tape or in the archive, and not in the ledger
    DIFFERENT = "different"
    UNREADABLE = "unreadable"  # damaged or refused: could not be compared
    NOT_HERE = "not on the tape here"  # nor in the archive: pruned without it, or of another tape; no error
    DROPPED = "dropped by retention"  # older than all that the database keeps; no error
    FOREIGN = "foreign"  # rows that belong to no segment of the ledger


@dataclass(frozen=True)
class Finding:
    """One segment, or the foreign rows of one stream."""

    stream: str
    name: str
    verdict: Verdict
    tape_rows: int = 0
    database_rows: int = 0
    detail: str = ""
    dropped_rows: int = 0  # of the tape's, left out for retention has dropped them


class Audit:
    """One audit over one connection."""

    def __init__(
        self,
        connection: Connection,
        data_dir: DataDir,
        *,
        stop: Stop,
        repair: bool = False,
        schema: str | None = None,
        archive: Archive | None = None,
    ) -> None:
        """Take what is to be compared.

        Args:
            connection: to the database; no transaction is open on it.
            data_dir: the tape.
            stop: asked now and then.
            repair: whether the database is made equal where it is not.
            schema: that of a replay, which has what was asked for; None for the whole tape's.
            archive: what left the tape is compared with it; None for none.

        Raises:
            FilterConflict: the schema is none that a replay has made; or, without a name, is one.
        """
        self._instruments = None
        if schema:
            self._instruments = held(connection, schema)
            set_up_session(connection, schema)
        else:
            refuse_part(connection)
        self._schema = schema
        self._connection = connection
        self._data_dir = data_dir
        self._archive = archive
        self._stop = stop
        self._repairs = repair
        self._hashed = True
        self._ledger: dict[str, Entry] = {}
        self._salvages: dict[str, str] = {}
        self._of_roots: dict[str, str] = {}  # by a damaged segment's id, the salvage of it that was loaded
        self._sums: dict[str, dict[int | None, Sum]] = {}  # stream -> segment number -> its rows
        self._since: dict[str, datetime | None] = {}  # stream -> before when retention has dropped rows
        self._seen: set[str] = set()
        self._whole: set[str] = set()  # what the tape has shown whole
        self.notes: list[str] = []  # how it was compared, where that is not as usual

    def findings(self) -> Iterator[Finding]:
        """Yield what is found, segment by segment, then what the ledger has and neither tape nor archive.

        Raises:
            SchemaConflict: a table is not the tape's.
            psycopg.Error: the database failed; nothing can be said.
        """
        # The tape is listed first: what is sealed and loaded after that is left for the next audit.
        inbox = Inbox(self._data_dir)
        candidates = sorted(inbox.unsettled(), key=lambda one: (one.stream, one.path.name, one.name))
        self._hashed = checksum.agrees(self._connection)
        if not self._hashed:
            self.notes.append(_ROW_BY_ROW)
        self._read_database()
        for place, why in inbox.unreadable.items():
            yield Finding(place.partition("/")[0], place, Verdict.UNREADABLE, detail=why)
        yield from self._of_tape(candidates)
        if self._archive:
            yield from self._of_archive(self._archive)
        for segment_id, entry in self._ledger.items():
            if segment_id not in self._seen:
                yield _absent(entry, self._there(entry).rows, self._since[entry.stream])
        for stream in self._sums:
            yield from self._foreign(stream)

    def _of_tape(self, candidates: Iterable[Candidate]) -> Iterator[Finding]:
        for candidate in candidates:
            self._stop.check()
            try:
                checked = read_segment(candidate.path)
            except FileNotFoundError:
                continue  # pruned or repaired since it was listed
            except OSError as exc:
                yield Finding(candidate.stream, candidate.name, Verdict.UNREADABLE, detail=str(exc))
                continue
            found = self._segment(candidate, checked)
            if found.verdict != Verdict.MISSING or not self._schema:
                yield found

    def _read_database(self) -> None:
        """Read the ledger and sum up the rows of each segment as of one moment, so that a loader may go on."""
        with self._connection.transaction():
            self._connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            if not ledger.is_there(self._connection, self._schema):
                return  # nothing was ever loaded here
            for row in self._connection.execute(_LEDGER):
                self._ledger[row[0]] = Entry(*row)
            self._salvages = dict(self._connection.execute(_SALVAGED).fetchall())
            self._of_roots = dict(self._connection.execute(_OF_ROOTS).fetchall())
            for stream in sorted({entry.stream for entry in self._ledger.values()}):
                self._stop.check()
                check_table(self._connection, stream, self._schema)
                self._sums[stream] = sums_there(self._connection, stream, hashed=self._hashed)
                self._since[stream] = retention_of(self._connection, stream)

    def _segment(self, candidate: Candidate, checked: Checked) -> Finding:
        stream, name = candidate.stream, candidate.name
        try:
            identity = judge(checked, stream)
        except SegmentRefused as exc:
            if checked.identity and exc.segment_id:
                self._seen.add(exc.segment_id)
            return Finding(stream, name, Verdict.UNREADABLE, checked.rows, detail=exc.what)
        held_as = self._held_as(identity.segment_id, identity.salvages)
        if held_as is None:
            self._whole.add(identity.segment_id)
            return Finding(stream, name, Verdict.MISSING, checked.rows, detail=f"{_NO_ENTRY}: run load")
        entry = self._ledger[held_as]
        # Put back from a copy of the tape that was taken while it was recorded: the archive may have all of it.
        shorter = entry.crc32 != checked.crc32 and entry.rows > checked.rows
        if not shorter:
            self._whole.add(identity.segment_id)
        # What was salvaged is less than what was loaded before the damage: the database may have more.
        other = shorter or held_as != identity.segment_id
        return self._compare(entry, name, checked.table, checked.crc32, other=other, salvages=identity.salvages)

    def _of_archive(self, archive: Archive) -> Iterator[Finding]:
        try:
            for manifest in archive.walk():
                self._stop.check()
                try:
                    yield from self._part(archive, manifest)
                except ArchiveDamaged as exc:
                    yield Finding(manifest.stream, manifest.part_name, Verdict.UNREADABLE, detail=exc.what)
        except ArchiveAway as exc:
            yield Finding("archive", archive.shown, Verdict.UNREADABLE, detail=str(exc))
        for name, why in archive.damaged.items():
            yield Finding("archive", name, Verdict.UNREADABLE, detail=why)

    def _part(self, archive: Archive, manifest: Manifest) -> Iterator[Finding]:
        """Judge those segments of a part that the tape did not show whole."""
        left: dict[str, Entry] = {}
        for archived in manifest.segments:
            if archived.segment_id in self._whole:
                continue
            held_as = self._held_as(archived.segment_id, archived.salvages)
            entry = self._ledger[held_as] if held_as else None
            if is_dropped(archived, self._kept_since(manifest.stream)) and not (entry and self._there(entry).rows):
                self._seen.add(held_as or archived.segment_id)
                yield Finding(manifest.stream, archived.name, Verdict.DROPPED, dropped_rows=archived.rows)
            elif entry:
                left[archived.segment_id] = entry
            elif found := self._lacking(manifest.stream, archived):
                yield found
        if not left:
            return
        for archived, table in rows_by_segment(archive, manifest):
            self._stop.check()
            if archived.segment_id in left:
                entry = left[archived.segment_id]
                # Of another state of it, loaded or archived before a power loss, either may have more.
                other = entry.segment_id != archived.segment_id or entry.crc32 != archived.crc32
                yield self._compare(
                    entry, archived.name, table, archived.crc32, other=other, salvages=archived.salvages
                )

    def _lacking(self, stream: str, archived: ArchivedSegment) -> Finding | None:
        """Judge a segment that is archived and not in the ledger."""
        name, rows = archived.name, archived.rows
        if self._schema:
            return None  # of a replay, which has what was asked for
        if part := self._of_roots.get(archived.segment_id):
            detail = f"only what was salvaged of it is there: {self._ledger[part].name}"
            return Finding(stream, name, Verdict.DIFFERENT, rows, detail=detail)
        if archived.segment_id not in self._seen and os.access(self._data_dir.root / name, os.F_OK):
            return None  # sealed since the tape was listed: left for the next audit
        return Finding(stream, name, Verdict.MISSING, rows, detail=f"{_NO_ENTRY}, but archived: run replay")

    def _kept_since(self, stream: str) -> datetime | None:
        if stream not in self._since:  # the ledger has nothing of it
            self._since[stream] = retention_of(self._connection, stream)
        return self._since[stream]

    def _compare(
        self, entry: Entry, name: str, table: pa.Table, crc32: str, *, other: bool, salvages: str
    ) -> Finding:
        """Compare a segment's rows with those of an entry, and repair these if that is asked for.

        Args:
            entry: under which they are in the database.
            name: of the segment.
            table: all its rows.
            crc32: what its last commit states.
            other: the entry is of another segment, or of another state of it, and may have more.
            salvages: the damaged segment that this one was salvaged of; "" if it was not.
        """
        self._seen.add(entry.segment_id)
        stream, there = entry.stream, self._there(entry)
        table = of_instruments(table, self._instruments)
        whole = table.num_rows
        table = expected_rows(table, self._since[stream])
        dropped = whole - table.num_rows
        if dropped and not table.num_rows and not there.rows:
            return Finding(stream, name, Verdict.DROPPED, dropped_rows=dropped)
        # Another salvage of the same segment may have added rows, too.
        salvaged = other or (bool(salvages) and entry.rows > whole)
        detail = "" if self._same(entry, table, there) else self._differs(entry, table, there, salvaged=salvaged)
        verdict, rows = Verdict.DIFFERENT if detail else Verdict.EQUAL, there.rows
        if detail and self._repairs:
            repair = Repair(self._connection, hashed=self._hashed, stop=self._stop)
            try:
                if salvaged:
                    rows += repair.add(entry, table)
                    # What is compared with it later, another salvage of the segment, must know of these rows.
                    self._ledger[entry.segment_id] = replace(entry, rows=max(entry.rows, rows))
                    added = sums_there(self._connection, stream, hashed=self._hashed, where=rows_of(entry.number))
                    self._sums[stream].update(added)
                else:
                    rows = repair.reload(entry, table, rows=whole, crc32=crc32, there=rows)
                verdict = Verdict.REPAIRED
                log.info("segment.repaired", segment=name, was=detail)
            except NotRepaired as exc:
                detail = f"{detail}; not repaired: {exc.what}"
        return Finding(stream, name, verdict, table.num_rows, rows, detail, dropped)

    def _held_as(self, segment_id: str, salvages: str) -> str | None:
        """Return the ledger's id under which a segment's rows are in the database."""
        followed: str | None = segment_id if segment_id in self._ledger else self._salvages.get(segment_id, salvages)
        for _ in range(len(self._salvages) + 1):  # a salvage of a salvage; never in a circle
            if not followed or followed in self._ledger:
                break
            followed = self._salvages.get(followed)
        return followed if followed in self._ledger else self._of_roots.get(salvages)

    def _there(self, entry: Entry) -> Sum:
        return self._sums[entry.stream].get(entry.number, nothing(hashed=self._hashed))

    def _same(self, entry: Entry, table: pa.Table, there: Sum) -> bool:
        return self._hashed and sum_here(entry.stream, table, hashed=True) == there

    def _differs(self, entry: Entry, table: pa.Table, there: Sum, *, salvaged: bool) -> str:
        """Compare row by row; return in what they differ, if they do."""
        found = difference(
            self._connection, entry.stream, entry.number, table=table, there=there.rows, check=self._stop.check
        )
        return str(found) if found.matters(salvaged=salvaged) else ""

    def _foreign(self, stream: str) -> Iterator[Finding]:
        known = {entry.number for entry in self._ledger.values() if entry.stream == stream}
        strange = {number: there.rows for number, there in self._sums[stream].items() if number not in known}
        if own := strange.pop(None, 0):
            yield Finding(stream, "", Verdict.FOREIGN, 0, own, f"{own} {_OWN}")
        rows = sum(strange.values())
        if not rows:
            return
        detail = f"{rows} rows of no segment that was loaded"
        if not self._repairs:
            yield Finding(stream, "", Verdict.FOREIGN, 0, rows, detail)
            return
        repair = Repair(self._connection, hashed=self._hashed, stop=self._stop)
        removed = repair.remove_foreign(stream, [number for number in strange if number is not None])
        log.info("rows.removed", stream=stream, rows=removed, reason="of no segment that was loaded")
        yield Finding(stream, "", Verdict.REPAIRED, 0, 0, f"{detail}; removed {removed}")


def _absent(entry: Entry, rows: int, since: datetime | None) -> Finding:
    """Judge a segment that the ledger has and the tape has not. Pure."""
    if rows == entry.rows:
        return Finding(entry.stream, entry.name, Verdict.NOT_HERE, entry.rows, rows)
    begins_before = since and entry.first_received_at and entry.first_received_at < since
    if begins_before and rows < entry.rows:
        return Finding(entry.stream, entry.name, Verdict.DROPPED, rows, rows, dropped_rows=entry.rows - rows)
    detail = f"the ledger says {entry.rows} rows; {Verdict.NOT_HERE}"
    return Finding(entry.stream, entry.name, Verdict.DIFFERENT, entry.rows, rows, detail)


def equal(findings: Iterable[Finding]) -> bool | None:
    """Return the verdict over all: yes, no, or None if some could not be compared. Pure."""
    return equal_of({finding.verdict for finding in findings})


def equal_of(verdicts: set[Verdict]) -> bool | None:
    """Return the verdict over all verdicts. Pure."""
    if verdicts & {Verdict.MISSING, Verdict.DIFFERENT, Verdict.FOREIGN}:
        return False
    return None if Verdict.UNREADABLE in verdicts else True
