"""Compares the database with the tape, segment by segment and row by row; changes neither.

A segment's rows are sent into a temporary table and subtracted from the table's, both ways. Rows that belong to no
segment of the ledger are found by counting each stream's table once.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

import pyarrow.compute as pc
from psycopg import sql

from loader.errors import SegmentRefused
from loader.inbox import Candidate, Inbox
from loader.postgres.copy import copy_rows, encode
from loader.postgres.session import Connection
from loader.postgres.tables import check_table, columns, copy_statement
from loader.prepare import judge
from loader.stop import Stop
from recorder.runtime.data_dir import DataDir
from recorder.segments.check import Checked
from recorder.segments.reader import read_segment

_LEDGER = "SELECT segment_id::text, segment, stream, name, rows FROM loaded_segments"
_SALVAGED = "SELECT segment_id::text, salvages::text FROM salvaged_segments"
_TEMPORARY = "audited_rows"


class Verdict(StrEnum):
    """What was found about one segment."""

    EQUAL = "equal"
    MISSING = "missing"  # not in the ledger
    DIFFERENT = "different"
    UNREADABLE = "unreadable"  # damaged or refused: could not be compared
    NOT_HERE = "not on the tape here"  # in the ledger only: pruned, or of another tape; no error
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


@dataclass(frozen=True)
class Entry:
    """A ledger row, as far as it is needed here."""

    number: int
    stream: str
    name: str
    rows: int


@dataclass(frozen=True)
class Rest:
    """Rows that are on one side only."""

    rows: int = 0
    first: str = ""  # instrument and time of the first


class Audit:
    """One audit over one connection."""

    def __init__(self, connection: Connection, data_dir: DataDir, *, stop: Stop) -> None:
        self._connection = connection
        self._data_dir = data_dir
        self._stop = stop
        self._ledger: dict[str, Entry] = {}
        self._salvages: dict[str, str] = {}
        self._counts: dict[str, dict[int | None, int]] = {}  # stream -> segment number -> rows
        self._seen: set[str] = set()

    def findings(self) -> Iterator[Finding]:
        """Yield what is found, segment by segment, then what the ledger has and the tape has not.

        Raises:
            SchemaConflict: a table is not the tape's.
            psycopg.Error: the database failed; nothing can be said.
        """
        # The tape is listed first: what is sealed and loaded after that is left for the next audit.
        inbox = Inbox(self._data_dir)
        candidates = sorted(inbox.unsettled(), key=lambda one: (one.stream, one.path.name, one.name))
        self._read_database()
        for place, why in inbox.unreadable.items():
            yield Finding(place.partition("/")[0], place, Verdict.UNREADABLE, detail=why)
        for candidate in candidates:
            self._stop.check()
            try:
                checked = read_segment(candidate.path)
            except FileNotFoundError:
                continue  # pruned or repaired since it was listed
            except OSError as exc:
                yield Finding(candidate.stream, candidate.name, Verdict.UNREADABLE, detail=str(exc))
                continue
            yield self._segment(candidate, checked)
        for segment_id, entry in self._ledger.items():
            if segment_id not in self._seen:
                rows = self._count(entry)
                verdict = Verdict.NOT_HERE if rows == entry.rows else Verdict.DIFFERENT
                detail = "" if rows == entry.rows else f"the ledger says {entry.rows} rows; {Verdict.NOT_HERE}"
                yield Finding(entry.stream, entry.name, verdict, entry.rows, rows, detail)
        yield from self._foreign()

    def _read_database(self) -> None:
        """Read the ledger and count the rows of each segment as of one moment, so that a loader may go on."""
        with self._connection.transaction():
            self._connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            if self._connection.execute("SELECT to_regclass('loaded_segments')").fetchone() == (None,):
                return  # nothing was ever loaded here
            for segment_id, number, stream, name, rows in self._connection.execute(_LEDGER):
                self._ledger[segment_id] = Entry(number, stream, name, rows)
            self._salvages = dict(self._connection.execute(_SALVAGED).fetchall())
            for stream in sorted({entry.stream for entry in self._ledger.values()}):
                check_table(self._connection, stream)
                self._counts[stream] = dict(
                    self._connection.execute(
                        sql.SQL("SELECT segment, count(*) FROM {} GROUP BY segment").format(sql.Identifier(stream))
                    ).fetchall()
                )

    def _segment(self, candidate: Candidate, checked: Checked) -> Finding:
        try:
            identity = judge(checked, candidate.stream)
        except SegmentRefused as exc:
            if checked.identity and exc.segment_id:
                self._seen.add(exc.segment_id)
            return Finding(candidate.stream, candidate.name, Verdict.UNREADABLE, checked.rows, detail=exc.what)
        held_as = self._held_as(identity.segment_id, identity.salvages)
        if held_as is None:
            return Finding(
                candidate.stream, candidate.name, Verdict.MISSING, checked.rows, detail="not in the database's ledger"
            )
        self._seen.add(held_as)
        entry = self._ledger[held_as]
        there = self._count(entry)
        only_tape, only_database = self._difference(checked, entry)
        # What was salvaged is less than what was loaded before the damage: the database may have more.
        whole = held_as == identity.segment_id
        equal = not only_tape.rows and (not whole or (not only_database.rows and there == checked.rows))
        detail = "" if equal else _detail(only_tape, only_database, there - checked.rows)
        return Finding(
            candidate.stream,
            candidate.name,
            Verdict.EQUAL if equal else Verdict.DIFFERENT,
            checked.rows,
            there,
            detail,
        )

    def _held_as(self, segment_id: str, salvages: str) -> str | None:
        """Return the ledger's id under which a segment's rows are in the database."""
        followed: str | None = segment_id if segment_id in self._ledger else self._salvages.get(segment_id, salvages)
        for _ in range(len(self._salvages) + 1):  # a salvage of a salvage; never in a circle
            if not followed or followed in self._ledger:
                break
            followed = self._salvages.get(followed)
        return followed if followed in self._ledger else None

    def _count(self, entry: Entry) -> int:
        return self._counts[entry.stream].get(entry.number, 0)

    def _difference(self, checked: Checked, entry: Entry) -> tuple[Rest, Rest]:
        """Return the rows of the tape that the table lacks, and those of the table that the tape lacks."""
        table = checked.table
        names = sql.SQL(", ").join(map(sql.Identifier, columns(entry.stream)))
        there = sql.SQL("SELECT {} FROM {} WHERE segment = {}").format(
            names, sql.Identifier(entry.stream), sql.Literal(entry.number)
        )
        # Bounded in time, for the chunks and the index of that time; rows outside show in the count.
        times = pc.min_max(table["timestamp"])
        if times["min"].is_valid and table["timestamp"].null_count == 0:
            there += sql.SQL(' AND "timestamp" BETWEEN {} AND {}').format(
                sql.Literal(times["min"].as_py()), sql.Literal(times["max"].as_py())
            )
        here = sql.SQL("SELECT {} FROM {}").format(names, sql.Identifier(_TEMPORARY))
        with self._connection.transaction(force_rollback=True):
            self._connection.execute(
                sql.SQL("CREATE TEMPORARY TABLE {} ON COMMIT DROP AS SELECT {} FROM {} WITH NO DATA").format(
                    sql.Identifier(_TEMPORARY), names, sql.Identifier(entry.stream)
                )
            )
            copy_rows(
                self._connection,
                copy_statement(entry.stream, _TEMPORARY),
                encode(table, entry.number),
                self._stop.check,
            )
            return self._subtract(here, there), self._subtract(there, here)

    def _subtract(self, one: sql.Composed, other: sql.Composed) -> Rest:
        row = self._connection.execute(
            sql.SQL("SELECT count(*) OVER (), * FROM (({}) EXCEPT ALL ({})) AS rest ORDER BY 2, 3 LIMIT 1").format(
                one, other
            )
        ).fetchone()
        return Rest(row[0], f"{row[2]} {row[1].isoformat() if row[1] else None}") if row else Rest()

    def _foreign(self) -> Iterator[Finding]:
        numbers = {entry.number for entry in self._ledger.values()}
        for stream, counts in self._counts.items():
            rows = sum(count for number, count in counts.items() if number not in numbers)
            if rows:
                yield Finding(stream, "", Verdict.FOREIGN, 0, rows, f"{rows} rows of no segment that was loaded")


def equal(findings: Sequence[Finding]) -> bool | None:
    """Return the verdict over all: yes, no, or None if some could not be compared. Pure."""
    verdicts = {finding.verdict for finding in findings}
    if verdicts & {Verdict.MISSING, Verdict.DIFFERENT, Verdict.FOREIGN}:
        return False
    return None if Verdict.UNREADABLE in verdicts else True


def _detail(only_tape: Rest, only_database: Rest, surplus: int) -> str:
    parts = []
    if only_tape.rows:
        parts.append(f"rows of the tape that the database lacks: {only_tape.rows}, first {only_tape.first}")
    if only_database.rows:
        parts.append(f"rows of the database that the tape lacks: {only_database.rows}, first {only_database.first}")
    return "; ".join(parts) or f"rows of the database at other times than the tape's: {surplus}"
