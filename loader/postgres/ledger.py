"""What of the tape is in a database: the statements of loaded_segments, salvaged_segments, refused_segments.

A segment's ledger row is written before its rows, in one transaction: a second loader waits on the key, then skips.
"""

from collections.abc import Sequence

from psycopg import sql

from loader.inbox import Candidate
from loader.postgres.session import Connection
from loader.prepare import Segment
from recorder.runtime.version import software
from recorder.segments.encode import Identity

TABLE = "loaded_segments"

_KNOWN_FILES = """
SELECT name, size_bytes, mtime FROM loaded_segments WHERE name = ANY(%(names)s)
UNION ALL
SELECT name, size_bytes, mtime FROM salvaged_segments WHERE name = ANY(%(names)s)
"""
_KNOWN_IDS = """
SELECT segment_id::text FROM loaded_segments WHERE segment_id = ANY(%(ids)s::uuid[])
UNION
SELECT segment_id::text FROM salvaged_segments WHERE segment_id = ANY(%(ids)s::uuid[])
"""
# The whole first: whatever was salvaged of it is a part of it. What was loaded itself is for its own key to tell.
_HOLDER = """
SELECT holder::text
FROM (SELECT segment_id FROM loaded_segments WHERE segment_id = %(root)s::uuid OR salvages = %(root)s::uuid
      UNION ALL
      SELECT salvages FROM salvaged_segments WHERE segment_id = %(root)s::uuid) AS there (holder)
WHERE holder <> %(own)s::uuid
ORDER BY holder <> %(root)s::uuid, holder LIMIT 1
"""
_HELD = "SELECT segment_id::text, size_bytes, rows FROM loaded_segments WHERE segment_id = ANY(%s::uuid[])"
_SALVAGED_OF = "SELECT salvages::text FROM loaded_segments WHERE salvages = ANY(%s::uuid[])"
# A promoted logical replica, or a restore of the rows alone, has the ledger and not the place of its sequence.
_MEND_SEQUENCE = """
SELECT setval(sequence, newest)
FROM (SELECT max(segment) AS newest FROM loaded_segments) AS ledger,
     (SELECT pg_get_serial_sequence('loaded_segments', 'segment')::regclass AS sequence) AS place
WHERE newest > coalesce(pg_sequence_last_value(sequence), 0)
"""
_TAKE_NUMBERS = """
SELECT nextval(pg_get_serial_sequence('loaded_segments', 'segment'))::int FROM generate_series(1, %s)
"""
_INSERT = """
INSERT INTO loaded_segments (segment_id, segment, stream, recorder, name, rows, first_received_at, last_received_at,
                             crc32, software, salvages, size_bytes, mtime)
SELECT * FROM unnest(%s::uuid[], %s::int[], %s::text[], %s::text[], %s::text[], %s::bigint[], %s::timestamptz[],
    %s::timestamptz[], %s::text[], %s::text[], %s::uuid[], %s::bigint[], %s::timestamptz[])
ON CONFLICT (segment_id) DO NOTHING
"""
_NOTE_SALVAGE = """
INSERT INTO salvaged_segments (segment_id, salvages, name, size_bytes, mtime) VALUES (%s, %s, %s, %s, %s)
ON CONFLICT (segment_id) DO NOTHING
"""
_REFUSE = """
INSERT INTO refused_segments (name, reason, size_bytes, mtime, segment_id, software) VALUES (%s, %s, %s, %s, %s, %s)
ON CONFLICT (name) DO UPDATE SET (reason, size_bytes, mtime, segment_id, refused_at, software)
    = (excluded.reason, excluded.size_bytes, excluded.mtime, excluded.segment_id, now(), excluded.software)
"""
_FORGIVE = "DELETE FROM refused_segments WHERE name = ANY(%s) OR segment_id = ANY(%s::uuid[])"
_FORGIVE_FOLDERS = "DELETE FROM refused_segments WHERE name = ANY(%s)"
_FORGIVE_LOADED = """
DELETE FROM refused_segments AS refused USING loaded_segments AS loaded
WHERE loaded.name = refused.name AND loaded.loaded_at > refused.refused_at
"""


def is_there(connection: Connection, schema: str | None = None) -> bool:
    """Return whether anything was ever loaded here.

    Args:
        connection: to the database.
        schema: where the ledger is: while it is not there, that of the next schema of the search path is not meant;
            None where the server looks by itself.
    """
    name = sql.Identifier(*([schema] if schema else []), TABLE).as_string(connection)
    return connection.execute("SELECT to_regclass(%s) IS NOT NULL", [name]).fetchone() == (True,)


def known_files(connection: Connection, candidates: Sequence[Candidate]) -> set[str]:
    """Return the names of those files that are in the ledger just as they are: name, size, and mtime."""
    rows = connection.execute(_KNOWN_FILES, {"names": [candidate.name for candidate in candidates]}).fetchall()
    there = set(rows)
    return {
        candidate.name for candidate in candidates if (candidate.name, candidate.size_bytes, candidate.mtime) in there
    }


def known_ids(connection: Connection, ids: Sequence[str]) -> set[str]:
    """Return those segment ids whose rows are in the database, be it under the id of what they salvage."""
    return {row[0] for row in connection.execute(_KNOWN_IDS, {"ids": list(ids)}).fetchall()}


def holder(connection: Connection, identity: Identity) -> str | None:
    """Return under which id the rows of a salvage are here: that of the whole, or of another salvage of it.

    Of a damaged segment and all that was ever salvaged of it one counts, for they hold the same rows.
    """
    row = connection.execute(_HOLDER, {"root": identity.salvages, "own": identity.segment_id}).fetchone()
    return row[0] if row else None


def held(connection: Connection, ids: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Return what was loaded under these ids themselves: segment_id -> (bytes of the file, rows)."""
    rows = connection.execute(_HELD, [list(ids)]).fetchall()
    return {segment_id: (size_bytes, count) for segment_id, size_bytes, count in rows}


def newest(connection: Connection) -> str | None:
    """Return the id of the segment that was loaded last, or nearly so where several loaders load."""
    row = connection.execute("SELECT segment_id::text FROM loaded_segments ORDER BY segment DESC LIMIT 1").fetchone()
    return row[0] if row else None


def mend_sequence(connection: Connection) -> None:
    """Let the numbers of new segments begin after those that are taken."""
    connection.execute(_MEND_SEQUENCE)


def salvaged_by(connection: Connection, ids: Sequence[str]) -> list[str]:
    """Return the names of loaded segments that hold a part of the rows of one of these."""
    rows = connection.execute("SELECT name FROM loaded_segments WHERE salvages = ANY(%s::uuid[])", [list(ids)])
    return [row[0] for row in rows.fetchall()]


def salvaged_of(connection: Connection, ids: Sequence[str]) -> set[str]:
    """Return those segment ids of which only a part is in the database: what was salvaged of them."""
    rows = connection.execute(_SALVAGED_OF, [list(ids)]).fetchall()
    return {row[0] for row in rows}


def hold(connection: Connection) -> None:
    """Wait until all that others are loading is committed, and keep them from loading until the transaction ends.

    The lock is one that every INSERT into the ledger waits for, so who loads no salvage has nothing to do for it.
    """
    connection.execute("LOCK TABLE loaded_segments IN SHARE ROW EXCLUSIVE MODE")


def take_numbers(connection: Connection, count: int) -> list[int]:
    """Take numbers for the column `segment`: known before the ledger row is written, so that rows can be encoded
    while another segment is loaded. One that is not used in the end is no loss.
    """  # noqa: D205
    return [row[0] for row in connection.execute(_TAKE_NUMBERS, [count]).fetchall()]


def insert(connection: Connection, segments: Sequence[Segment]) -> int:
    """Write the ledger rows of segments, in their order; return how many were not there, nor came from another loader
    while this one waited.
    """  # noqa: D205
    rows = [
        (
            segment.identity.segment_id, segment.number, segment.identity.stream, segment.identity.recorder,
            segment.candidate.name, segment.rows, *(segment.received or (None, None)), segment.crc32, software(),
            segment.identity.salvages or None, segment.candidate.size_bytes, segment.candidate.mtime,
        )
        for segment in segments
    ]  # fmt: skip
    return connection.execute(_INSERT, [list(column) for column in zip(*rows, strict=True)]).rowcount


def note_salvage(connection: Connection, candidate: Candidate, segment_id: str, holder: str) -> None:
    """Write down under which other id what there is of a salvage's rows is here."""
    connection.execute(_NOTE_SALVAGE, [segment_id, holder, candidate.name, candidate.size_bytes, candidate.mtime])


def refuse(connection: Connection, candidate: Candidate, reason: str, segment_id: str | None) -> None:
    """List a file as refused, with its newest reason."""
    connection.execute(
        _REFUSE, [candidate.name, reason, candidate.size_bytes, candidate.mtime, segment_id, software()]
    )


def forgive(connection: Connection, names: Sequence[str], salvages: Sequence[str] = ()) -> None:
    """Take files off the list of refused ones; also the damaged ones that good ones salvage."""
    connection.execute(_FORGIVE, [list(names), list(salvages)])


def forgive_folders(connection: Connection, places: Sequence[str]) -> None:
    """Take folders off the list that can be looked into again."""
    connection.execute(_FORGIVE_FOLDERS, [list(places)])


def forgive_loaded(connection: Connection) -> None:
    """Take off the list what another loader has loaded since."""
    connection.execute(_FORGIVE_LOADED)
