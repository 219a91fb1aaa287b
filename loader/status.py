"""What is still to be loaded, how far behind the database is, and how fast it was loaded lately."""

import json
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime

from loader.archive.read import Archive
from loader.errors import ArchiveAway
from loader.inbox import Candidate, Inbox
from loader.lacking import count_lacking
from loader.postgres import ledger
from loader.postgres.session import Connection

# The speed is that of the newest this many seconds.
RECENTLY_S = 300
# Files asked for in the ledger at a time.
_CHUNK = 1000

_LOADED = """
SELECT count(*), coalesce(sum(rows), 0)::bigint, max(last_received_at), max(loaded_at),
       coalesce(sum(rows) FILTER (WHERE loaded_at > now() - make_interval(secs => %s)), 0)::bigint, now()
FROM loaded_segments
"""
_REFUSED = "SELECT name, reason FROM refused_segments ORDER BY name"


@dataclass
class Status:
    """A tape beside a database. Times are UTC; those of the database are by its clock."""

    kind: str  # of server, and why
    tape_segments: int = 0
    tape_bytes: int = 0
    backlog_segments: int = 0
    backlog_bytes: int = 0
    backlog_since: str | None = None  # the first row of the oldest file that is not loaded, as its name tells
    archived_only: int = 0  # segments that the archive has, and neither the tape nor the database
    loaded_segments: int = 0
    loaded_rows: int = 0
    newest_row: datetime | None = None  # the newest received_at in the database
    newest_load: datetime | None = None
    lag_s: float | None = None  # from that row to now
    rows_per_s: float = 0.0  # of the last RECENTLY_S
    refused: dict[str, str] = field(default_factory=dict)  # file -> reason
    unreadable: dict[str, str] = field(default_factory=dict)  # folder, archive, or manifest of it -> reason

    def as_json(self) -> str:
        """Return one object."""
        return json.dumps(asdict(self), default=str)

    def as_text(self) -> str:
        """Return a line a fact."""
        behind = "nothing was loaded yet" if self.lag_s is None else f"{self.lag_s:,.1f} s behind now"
        since = f", the oldest of {self.backlog_since}" if self.backlog_since else ""
        lines = [
            f"database   {self.kind}",
            f"loaded     {self.loaded_segments:,} segments, {self.loaded_rows:,} rows; {behind}",
            f"speed      {self.rows_per_s:,.0f} rows/s in the last {RECENTLY_S // 60} minutes",
            f"tape       {self.tape_segments:,} sealed segments, {self.tape_bytes / 1e6:,.1f} MB",
            f"backlog    {self.backlog_segments:,} segments, {self.backlog_bytes / 1e6:,.1f} MB{since}",
        ]
        if self.archived_only:
            only = f"{self.archived_only:,} archived segment{'' if self.archived_only == 1 else 's'}"
            lines.append(f"archive    {only} in neither the database nor the tape: run replay")
        lines += [f"refused    {name}: {reason}" for name, reason in self.refused.items()]
        lines += [f"unreadable {name}: {reason}" for name, reason in self.unreadable.items()]
        return "\n".join(lines)


def look(connection: Connection, inbox: Inbox, kind: str, archive: Archive | None) -> Status:
    """Compare a tape with a database by names and sizes, an archive by its manifests; nothing is changed."""
    status, there = Status(kind), ledger.is_there(connection)
    waiting: list[Candidate] = []
    listed = inbox.unsettled()
    status.unreadable = dict(inbox.unreadable)
    for at in range(0, len(listed), _CHUNK):
        chunk = listed[at : at + _CHUNK]
        known = ledger.known_files(connection, chunk) if there else set()
        waiting += [candidate for candidate in chunk if candidate.name not in known]
    status.tape_segments, status.tape_bytes = len(listed), sum(one.size_bytes for one in listed)
    status.backlog_segments, status.backlog_bytes = len(waiting), sum(one.size_bytes for one in waiting)
    if waiting:
        status.backlog_since = min(one.path.name for one in waiting).partition("-")[0]
    if archive:
        try:
            status.archived_only = count_lacking(connection, archive, {one.name for one in listed})
        except ArchiveAway as exc:
            status.unreadable[archive.shown] = str(exc)
        status.unreadable |= archive.damaged
    if there:
        row = connection.execute(_LOADED, [RECENTLY_S]).fetchone()
        assert row is not None
        status.loaded_segments, status.loaded_rows, newest_row, newest_load, lately, now = row
        status.newest_row = newest_row and newest_row.astimezone(UTC)
        status.newest_load = newest_load and newest_load.astimezone(UTC)
        status.lag_s = None if newest_row is None else (now - newest_row).total_seconds()
        status.rows_per_s = lately / RECENTLY_S
        status.refused = dict(connection.execute(_REFUSED).fetchall())
    return status
