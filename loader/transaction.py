"""One transaction: the ledger rows of a group of segments first, their rows second, counted before the commit."""

import random

import psycopg

from loader.errors import LedgerChanged, LoaderError, SegmentRefused
from loader.postgres import columnstore, ledger
from loader.postgres.columnstore import Way
from loader.postgres.copy import copy_rows
from loader.postgres.database import DATA_ERRORS, ROLLED_BACK
from loader.postgres.session import Connection
from loader.postgres.tables import check_table, copy_statement
from loader.prepare import Group
from loader.stop import Stop

# A deadlock is another transaction's good luck; ten in a row are somebody's bug.
MOST_ROLLBACKS = 10


class Apart(LoaderError):
    """A group cannot be loaded as one: its segments are to be loaded one by one. Nothing was loaded."""


def load_group(connection: Connection, group: Group, stop: Stop, *, compress: bool) -> Way | None:
    """Load a group in one transaction; again, where the server rolled it back in favour of another one.

    Args:
        connection: no transaction is open on it.
        group: what to load.
        stop: asked now and then.
        compress: whether the server has a columnstore that rows can go into directly.

    Returns:
        How its rows went in; None if they were there before, or came from another loader meanwhile.

    Raises:
        Apart: of a group of several; one of them may be what is wrong, or there already.
        SegmentRefused: the database does not take the rows that were sent, or they are there in part.
        SchemaConflict: its table has other columns than the stream; nothing is loaded.
        LedgerChanged: the ledger's numbers are behind its rows.
    """
    for attempt in range(MOST_ROLLBACKS):
        try:
            return _load(connection, group, stop, compress=compress)
        except ROLLED_BACK:
            if attempt == MOST_ROLLBACKS - 1:
                raise
            stop.wait(random.uniform(0, 0.05 * 2**attempt))  # noqa: S311 - jitter is no secret
        except DATA_ERRORS as exc:
            if exc.diag.table_name == ledger.TABLE:
                raise LedgerChanged(f"its next number is taken: {' '.join(str(exc).split())}") from exc
            # A table that was changed by hand is no segment's fault.
            check_table(connection, group.stream)
            raise SegmentRefused(f"the database does not take its rows: {' '.join(str(exc).split())}") from exc
        except (psycopg.ProgrammingError, psycopg.InternalError):
            # What a type's own reader says of bytes that are another type's is an internal error, too.
            check_table(connection, group.stream)
            raise
    raise AssertionError("unreachable: the last attempt returned or raised")


def _load(connection: Connection, group: Group, stop: Stop, *, compress: bool) -> Way | None:
    with connection.transaction():
        if any(segment.identity.salvages for segment in group.segments) and _is_there(connection, group):
            return None
        inserted = ledger.insert(connection, group.segments)
        if inserted != len(group.segments):
            if len(group.segments) > 1:
                raise Apart("some of its segments are there, or came from another loader meanwhile")
            return None
        # Now, for who loads a salvage has held the ledger up to here, and is seen.
        if parts := ledger.salvaged_by(connection, [segment.identity.segment_id for segment in group.segments]):
            if len(group.segments) > 1:
                raise Apart("a part of one of its segments was salvaged")
            raise SegmentRefused(f"a part of it was salvaged and loaded already, as {parts[0]}")
        way = Way.ROWSTORE
        if compress:
            way = columnstore.way_of(
                connection, group.stream, group.times, rows=group.rows, instruments=group.instruments
            )
            columnstore.go(connection, way)
        taken = copy_rows(connection, copy_statement(group.stream), group.encoded, stop.check)
        if taken != group.rows:
            raise SegmentRefused(f"the database took {taken} of its {group.rows} rows: is there a trigger?")
        # Now, for the COPY holds the table as it is: of a column whose type was changed to another one of eight bytes
        # PostgreSQL would have taken the bytes for what they are not.
        check_table(connection, group.stream)
        _forgive(connection, group)
    return way


def _is_there(connection: Connection, group: Group) -> bool:
    """Return whether a salvage's rows are there under another id; if not, nobody brings them before it is committed.

    A segment and its salvages have no key in common on which one loader would wait for the other.
    """
    if len(group.segments) > 1:
        raise Apart("one of its segments was salvaged of another")
    (segment,) = group.segments
    ledger.hold(connection)
    holder = ledger.holder(connection, segment.identity)
    if holder is None:
        return False
    ledger.note_salvage(connection, segment.candidate, segment.identity.segment_id, holder)
    _forgive(connection, group)
    return True


def _forgive(connection: Connection, group: Group) -> None:
    names = [segment.candidate.name for segment in group.segments]
    ledger.forgive(connection, names, [one.identity.salvages for one in group.segments if one.identity.salvages])
