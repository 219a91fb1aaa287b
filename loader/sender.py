"""Sends groups to one database, a backlog side by side, and looks after what they leave there."""

import contextlib
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from datetime import UTC, datetime

from loader.errors import SegmentRefused
from loader.postgres import columnstore, policies
from loader.postgres.capabilities import Capabilities
from loader.postgres.columnstore import Way
from loader.postgres.lines import side_by_side
from loader.postgres.migrate import migrate
from loader.postgres.session import Connection, set_up_session
from loader.postgres.tables import check_table, market_of
from loader.prepare import Group, Prepared
from loader.stop import Stop
from loader.transaction import Apart, load_group
from recorder.runtime.logging import get_logger
from recorder.runtime.memory import release_unused

# Bars are looked after this often though no old rows came: another loader's replay may have been interrupted, rows
# repaired, or a refresh refused.
BARS_EVERY_S = 3600.0

log = get_logger("loader")

Times = tuple[datetime, datetime]
Connect = Callable[[], AbstractContextManager[Connection]]


@dataclass(frozen=True)
class Target:
    """Where rows go in a database, and how."""

    schema: str | None = None  # None: where the server looks by itself
    instruments: tuple[str, ...] | None = None  # with a schema: which of them it is for; None for all
    direct_compress: bool = True  # a backlog may go into the columnstore directly, where the server can do that
    retention_days: float | None = None  # rows are kept for so long; None: as the database has it
    connections: int = 1  # for a backlog, besides the one that asks the ledger


@dataclass(frozen=True)
class Outcome:
    """What became of one group."""

    way: Way | None  # None if nothing was loaded
    failure: Apart | SegmentRefused | None = None


class Sender:
    """Sends groups over one connection, or over several."""

    def __init__(
        self, connection: Connection, capabilities: Capabilities, target: Target, connect: Connect | None, stop: Stop
    ) -> None:
        """Take what is there.

        Args:
            connection: for what is no backlog, and for tables and policies.
            capabilities: of the server.
            target: where rows go.
            connect: makes the connections of a backlog; None for none.
            stop: asked now and then.
        """
        self._connection = connection
        self._capabilities = capabilities
        self._target = target
        self._connect = connect
        self._stop = stop
        self._compress = target.direct_compress and capabilities.direct_compress
        self._checked_streams: set[str] = set()
        # By the monotonic clock. The first pass does it: one that was killed may have left bars of what it loaded.
        self._bars_due_s = 0.0
        # By stream, the times of what went in unordered.
        self._unordered: dict[str, Times] = {}

    def send(self, prepared: Iterable[Prepared], *, backlog: bool) -> Generator[tuple[Prepared, Outcome], None, None]:
        """Load groups; yield each with what became of it, in their order.

        Raises:
            SchemaConflict, MigrationConflict: a table does not fit.
            psycopg.Error: the database failed.
        """
        ready = self._with_tables(prepared)
        if backlog and self._connect:
            lines = side_by_side(ready, self.load, self._line, count=self._target.connections)
            with closing(lines) as done:
                for item, outcome in done:
                    self._note(item.group, outcome.way)
                    yield item, outcome
        else:
            for item in ready:
                outcome = self.load(self._connection, item)
                self._note(item.group, outcome.way)
                yield item, outcome

    def load(self, connection: Connection, item: Prepared) -> Outcome:
        """Load one group; called in the threads of several connections at once."""
        if item.group is None:
            return Outcome(None)
        begun = time.monotonic()
        try:
            way = load_group(connection, item.group, self._stop, compress=self._compress)
        except (Apart, SegmentRefused) as exc:
            return Outcome(None, exc)
        finally:
            item.group.encoded.drop()
            release_unused()
        if way:
            log.debug(
                "group.loaded",
                stream=item.group.stream, segments=len(item.group.segments), rows=item.group.rows, way=way,
                seconds=round(time.monotonic() - begun, 3),
            )  # fmt: skip
        return Outcome(way)

    def refresh_bars(self) -> None:
        """Bring bars up to date where the policies do not look back to, if rows came there or it is time again."""
        if self._capabilities.kind == "timescale" and time.monotonic() >= self._bars_due_s:
            policies.refresh_bars(self._connection, self._stop)
            self._bars_due_s = time.monotonic() + BARS_EVERY_S

    def compress_again(self) -> None:
        """Put in order what went into the columnstore directly, where nothing more is to come: see columnstore."""
        times, self._unordered = self._unordered, {}
        columnstore.compress_again(
            self._connection, [(stream, *of) for stream, of in sorted(times.items())], self._stop.check
        )

    def _with_tables(self, prepared: Iterable[Prepared]) -> Iterator[Prepared]:
        """See to it that the table of each group is there, and is the tape's, before it is loaded."""
        for item in prepared:
            self._stop.check()
            if item.group and item.group.stream not in self._checked_streams:
                stream = item.group.stream
                market = market_of(stream)
                if market:
                    migrate(self._connection, self._capabilities.kind, market)
                check_table(self._connection, stream, self._target.schema)
                if market and self._target.retention_days:
                    self._set_retention(stream, self._target.retention_days)
                self._checked_streams.add(stream)
            yield item

    def _set_retention(self, stream: str, days: float) -> None:
        # The server's kind is not the table's: one that was made before the extension stays as it is.
        if self._capabilities.kind == "timescale" and policies.is_hypertable(self._connection, stream):
            policies.set_retention(self._connection, stream, days)
        else:
            log.warning(
                "retention.impossible",
                stream=stream, reason="its table is none of TimescaleDB's: rows stay until somebody deletes them",
            )  # fmt: skip

    @contextlib.contextmanager
    def _line(self) -> Iterator[Connection]:
        assert self._connect is not None
        with self._connect() as connection:
            set_up_session(connection, self._target.schema)
            yield connection

    def _note(self, group: Group | None, way: Way | None) -> None:
        if group is None or way is None or group.times is None:
            return
        if group.times[0] < datetime.now(UTC) - policies.LEFT_TO_POLICIES:
            self._bars_due_s = 0.0
        if way != Way.ROWSTORE:
            first, last = self._unordered.get(group.stream, group.times)
            self._unordered[group.stream] = (min(first, group.times[0]), max(last, group.times[1]))
