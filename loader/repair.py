"""Makes the rows of a segment in the database those of the tape again: one transaction each, compared at its end.

Never removed are rows of a segment that was damaged after it was loaded, since the database has more of it than the
tape; and rows without a number, which no loader ever wrote.
"""

import random
from collections.abc import Callable, Sequence
from typing import TypeVar

import pyarrow as pa
from psycopg import sql

from loader.compare import TEMPORARY, Entry, fill_temporary, names_of, nothing, rows_of, sum_here, sums_there, within
from loader.errors import LoaderError
from loader.postgres import columnstore
from loader.postgres.columnstore import Way
from loader.postgres.copy import copy_rows, encode, numbered
from loader.postgres.database import DATA_ERRORS, ROLLED_BACK
from loader.postgres.session import Connection
from loader.postgres.tables import copy_statement
from loader.stop import Stop
from loader.transaction import MOST_ROLLBACKS

# The ledger row is held first: nobody else repairs the segment meanwhile.
_HOLD = "SELECT segment FROM loaded_segments WHERE segment_id = %s FOR UPDATE"
_KEEP = "UPDATE loaded_segments SET rows = %s, crc32 = %s WHERE segment_id = %s AND (rows, crc32) <> (%s, %s)"
# One salvage of a segment may have rows that the one under whose number they come never had.
_GROW = sql.SQL(
    "UPDATE loaded_segments SET rows = greatest(rows, (SELECT count(*) FROM {} WHERE {}))"
    " WHERE segment_id = %s AND salvages IS NOT NULL"
)
# A row that is changed in the columnstore is unpacked with all the others of its batch; 100,000 are the most else.
_UNPACK_ALL = """
SELECT set_config(name, '0', true) FROM pg_settings
WHERE name = 'timescaledb.max_tuples_decompressed_per_dml_transaction'
"""

T = TypeVar("T")


class NotRepaired(LoaderError):
    """A segment is as it was: its repair was given up."""


class Repair:
    """Repairs over one connection."""

    def __init__(self, connection: Connection, *, hashed: bool, stop: Stop) -> None:
        """Take the connection, on which no transaction is open.

        Args:
            connection: to the database.
            hashed: whether the server's checksums are to be believed.
            stop: asked now and then.
        """
        self._connection = connection
        self._hashed = hashed
        self._stop = stop

    def reload(self, entry: Entry, table: pa.Table, *, rows: int, crc32: str, there: int) -> int:
        """Put rows of the tape in the place of those of a number; return how many it has now.

        Args:
            entry: the number.
            table: those of its rows that the database should have.
            rows: how many the segment has, also where retention has dropped some of them.
            crc32: what its last commit states.
            there: how many rows the number had when they were counted.

        Raises:
            NotRepaired: nothing was changed, and why.
        """
        return self._transaction(lambda: self._reload(entry, table, (rows, crc32), there))

    def add(self, entry: Entry, table: pa.Table) -> int:
        """Add those rows of the tape that a number lacks, and remove none; return how many were added.

        Raises:
            NotRepaired: nothing was changed, and why.
        """
        return self._transaction(lambda: self._add(entry, table))

    def remove_foreign(self, stream: str, numbers: Sequence[int]) -> int:
        """Remove the rows of numbers that the ledger still has not; return how many they were."""
        return self._transaction(lambda: self._remove_foreign(stream, numbers))

    def _transaction(self, work: Callable[[], T]) -> T:
        for attempt in range(MOST_ROLLBACKS):
            try:
                with self._connection.transaction():
                    self._connection.execute(_UNPACK_ALL)
                    columnstore.go(self._connection, Way.ROWSTORE)
                    return work()
            except ROLLED_BACK:
                if attempt == MOST_ROLLBACKS - 1:
                    raise
                self._stop.wait(random.uniform(0, 0.05 * 2**attempt))  # noqa: S311 - jitter is no secret
            except DATA_ERRORS as exc:
                raise NotRepaired(f"the database does not take its rows: {' '.join(str(exc).split())}") from exc
        raise AssertionError("unreachable: the last attempt returned or raised")

    def _reload(self, entry: Entry, table: pa.Table, said: tuple[int, str], there: int) -> int:
        self._hold(entry)
        removed, looked_at = self._reach(entry, table, there)
        self._connection.execute(sql.SQL("DELETE FROM {} WHERE {}").format(sql.Identifier(entry.stream), removed))
        copy_rows(
            self._connection, copy_statement(entry.stream), encode(numbered(table, entry.number)), self._stop.check
        )
        self._connection.execute(_KEEP, [*said, entry.segment_id, *said])
        sums = sums_there(self._connection, entry.stream, hashed=self._hashed, where=looked_at)
        found = sums.get(entry.number, nothing(hashed=self._hashed))
        if found != sum_here(entry.stream, table, hashed=self._hashed):
            raise NotRepaired(f"the database has made other rows of the {table.num_rows} sent: is there a trigger?")
        if not self._hashed:
            fill_temporary(self._connection, entry.stream, table, entry.number, self._stop.check)
            self._check_nothing_lacks(entry, table)
        return found.rows

    def _add(self, entry: Entry, table: pa.Table) -> int:
        self._hold(entry)
        fill_temporary(self._connection, entry.stream, table, entry.number, self._stop.check)
        added = self._connection.execute(
            sql.SQL("INSERT INTO {} ({}) {}").format(
                sql.Identifier(entry.stream), names_of(entry.stream), _lacking(entry, table)
            )
        ).rowcount
        self._check_nothing_lacks(entry, table)
        self._connection.execute(
            _GROW.format(sql.Identifier(entry.stream), rows_of(entry.number)), [entry.segment_id]
        )
        return added

    def _remove_foreign(self, stream: str, numbers: Sequence[int]) -> int:
        # Asked again: a loader may have written the ledger row of one since they were listed.
        return self._connection.execute(
            sql.SQL(
                "DELETE FROM {0} WHERE segment = ANY(%s::int[]) AND NOT EXISTS (SELECT FROM loaded_segments AS known"
                " WHERE known.segment = {0}.segment AND known.stream = %s)"
            ).format(sql.Identifier(stream)),
            [list(numbers), stream],
        ).rowcount

    def _check_nothing_lacks(self, entry: Entry, table: pa.Table) -> None:
        lacking = sql.SQL("SELECT FROM ({}) AS lacking LIMIT 1").format(_lacking(entry, table))
        if self._connection.execute(lacking).fetchone() is not None:
            raise NotRepaired("the database has made other rows of those sent: is there a trigger?")

    def _hold(self, entry: Entry) -> None:
        if self._connection.execute(_HOLD, [entry.segment_id]).fetchone() != (entry.number,):
            raise NotRepaired("it is not in the ledger any more")

    def _reach(self, entry: Entry, table: pa.Table, there: int) -> tuple[sql.Composed, sql.Composed]:
        """Return which rows are to be removed, and which looked at afterwards; with literal bounds where they can be.

        Without, all that is compressed would be unpacked, and each segment would cost a scan of its table.
        """
        of_number = rows_of(entry.number)
        near = sql.SQL("{} AND {}").format(of_number, within(table))
        stream = sql.Identifier(entry.stream)
        count = sql.SQL("SELECT count(*) FROM {} WHERE {}").format(stream, near)
        if self._connection.execute(count).fetchone() == (there,):
            return near, near
        row = self._connection.execute(
            sql.SQL(
                'SELECT count(*) = count("timestamp"), min("timestamp"), max("timestamp") FROM {} WHERE {}'
            ).format(stream, of_number)
        ).fetchone()
        assert row is not None
        all_have_one, first, last = row
        if not all_have_one or first is None:
            return of_number, of_number
        bounds = sql.SQL('{} AND "timestamp" BETWEEN {} AND {}')
        return bounds.format(of_number, sql.Literal(first), sql.Literal(last)), of_number


def _lacking(entry: Entry, table: pa.Table) -> sql.Composed:
    """Return the query for those rows of the temporary table that a number has not, or not as often."""
    return sql.SQL("SELECT {0} FROM {1} EXCEPT ALL SELECT {0} FROM {2} WHERE {3} AND {4}").format(
        names_of(entry.stream),
        sql.Identifier(TEMPORARY),
        sql.Identifier(entry.stream),
        rows_of(entry.number),
        within(table),
    )
