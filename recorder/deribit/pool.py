"""As many connections as the channels need, each instrument on one (or two) of them, whatever happens to any.

Where none is open, one alone tries, and the others follow when what it asked for was granted. Back-off is each
connection's own, so all of them together would try an exchange that refuses them up to 32 times a step. The one that
was lost last tries: its back-off is that of a connection that worked until now. While any is open the exchange
answers, so that what ends another is taken for that one's own trouble, and it tries by itself.
"""

import asyncio
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from websockets.exceptions import WebSocketException

from recorder.deribit.channels import Assignment
from recorder.deribit.connection import Connection
from recorder.deribit.feed import Feed
from recorder.deribit.pacer import SUBSCRIBE_BURST, Pacer
from recorder.deribit.session import Reply
from recorder.deribit.spread import Placement, connections_needed, moves, place
from recorder.runtime.logging import Logger

# How often a move is looked after (the new connection flows within a window or two), or one that tries for all.
_POLL_S = 0.25
# A move whose new connection has not brought book and ticker by then is given up, since others wait for its end.
# As long as that again none is begun: it would be the same.
MOVE_PATIENCE_S = 60.0
# So much of the burst of subscribe calls is there at the start. Credits are by IP: a recorder that is killed and
# started again and again would find them spent by itself, and be cut off.
_FIRST_BURST = 2
# Calls are asked of another connection when one is lost in the middle of them.
_CALL_TRIES = 3


class Pool:
    """Keeps connections and says what each carries."""

    def __init__(
        self,
        url: str,
        *,
        feed: Feed,
        flows_on: Callable[[str, int], bool],
        book_flows_on: Callable[[str, int], bool],
        # Limits
        max_channels: int,
        redundancy: int,
        # Edges
        now_us: Callable[[], int],
        log: Logger,
    ) -> None:
        """`flows_on(instrument, connection)` tells whether an instrument is whole there, `book_flows_on` its book."""
        self.connections: list[Connection] = []
        self.connected_once = asyncio.Event()
        self._url = url
        self._feed = feed
        self._flows_on = flows_on
        self._book_flows_on = book_flows_on
        self._max_channels = max_channels
        self._redundancy = redundancy
        self._now_us = now_us
        self._log = log
        self._pacer = Pacer()
        self._wanted: tuple[str, ...] = ()
        self._wide: tuple[str, ...] = ()
        self._placement: Placement = {}
        self._wide_placement: Placement = {}
        self._moves: dict[str, tuple[int, int]] = {}  # instrument -> from, to: carried by both meanwhile
        self._moves_late_s = 0.0  # when those that go on, all begun together, have taken too long
        self._moves_after_s = 0.0  # when others may be begun, where some were given up
        self._tasks: dict[int, asyncio.Task[None]] = {}  # of the connections that try, or are open
        # Connections that were not heard of since they were made, or since all were lost. They count as usable: what
        # they carry is not handed to others before they had their turn.
        self._hoped: set[int] = set()
        self._changed = asyncio.Event()
        self._one_is_open = asyncio.Event()

    @property
    def connected(self) -> int:
        """How many connections are open."""
        return sum(connection.health.connected for connection in self.connections)

    @property
    def channels_asked(self) -> int:
        """How many channels all connections are to carry."""
        return sum(len(connection.assigned.channels) for connection in self.connections)

    def want(self, instruments: Iterable[str], wide: Iterable[str]) -> None:
        """Say what is to be carried: instruments (book and ticker each), and channels that are of many."""
        self._wanted, self._wide = tuple(instruments), tuple(wide)
        self._changed.set()

    async def run(self) -> None:
        """Keep the connections until cancelled."""
        for _ in range(SUBSCRIBE_BURST - _FIRST_BURST):
            await self._pacer.wait()  # takes no time: these are of the burst
        async with asyncio.TaskGroup() as group:
            while True:
                self._grow()
                self._settle()
                self._start(group)
                self._changed.clear()
                followed = self._moves or (self._hoped and self.connected)
                try:
                    async with asyncio.timeout(_POLL_S if followed else None):
                        await self._changed.wait()
                except TimeoutError:
                    continue

    async def call(self, method: str, **params: Any) -> Reply:
        """Make a call on any connection that is open; waits for one.

        Raises:
            RpcError: the exchange refused it.
            TimeoutError: it was not answered.
        """
        for _ in range(_CALL_TRIES):
            await self._one_is_open.wait()
            connection = min(
                (c for c in self.connections if c.health.connected), key=lambda c: c.health.channels, default=None
            )
            if connection is None:
                continue
            try:
                return await connection.call(method, **params)
            except (OSError, WebSocketException):
                await asyncio.sleep(0)  # lost meanwhile: another one
        raise TimeoutError(f"{method}: the connection was lost {_CALL_TRIES} times")

    def heard_until_us(self, number: int) -> int:
        """Return until when everything was heard that the exchange sent on a connection."""
        connection = self.connections[number]
        return connection.health.heard_until_us(self._now_us(), connection.heartbeat_age_s)

    def clock_stepped(self, step_us: int) -> None:
        """Carry over what the connections measured by the clock as it was before a step."""
        for connection in self.connections:
            connection.health.clock_stepped(step_us)

    async def leave(self) -> None:
        """Leave every channel before a clean stop."""
        await asyncio.gather(*(connection.leave() for connection in self.connections))

    def _grow(self) -> None:
        needed = connections_needed(
            len(self._wanted),
            max_channels=self._max_channels,
            redundancy=self._redundancy,
            wide_channels=len(self._wide),
        )
        while len(self.connections) < needed:
            number = len(self.connections)
            connection = Connection(
                number,
                self._url,
                feed=self._feed,
                pacer=self._pacer,
                changed=partial(self._on_changed, number),
                now_us=self._now_us,
                log=self._log,
            )
            self.connections.append(connection)
            self._hoped.add(number)

    def _start(self, group: asyncio.TaskGroup) -> None:
        """Let connections try that have not: the first by itself, the others when one has proved useful."""
        waiting = sorted(self._hoped - self._tasks.keys())
        if self._tasks and waiting and not any(map(self._is_useful, self.connections)):
            return
        for number in waiting if self._tasks else waiting[:1]:
            self._tasks[number] = group.create_task(self.connections[number].run())

    def _is_useful(self, connection: Connection) -> bool:
        """Whether the exchange does more than to open a connection: it granted what was asked for."""
        if not connection.health.connected:
            return False
        asks = any(
            connection.number in carriers for carriers in (*self._placement.values(), *self._wide_placement.values())
        )
        return connection.health.channels > 0 or bool(self._wide and not asks)

    def _on_changed(self, number: int) -> None:
        """A connection was opened or lost, or could not be opened."""
        self._hoped.discard(number)
        if self.connected:
            self.connected_once.set()
            self._one_is_open.set()
        else:
            self._one_is_open.clear()
            self._leave_to(number)
        self._settle()
        self._changed.set()

    def _leave_to(self, number: int) -> None:
        """None is open: leave it to one to try. As nobody carries anything, all of it is spread anew."""
        self._hoped = {connection.number for connection in self.connections} - {number}
        for other in self._hoped & self._tasks.keys():
            self._tasks.pop(other).cancel()
        self._moves.clear()
        self._placement, self._wide_placement = {}, {}

    def _settle(self) -> None:
        """Say what each connection carries. At once when one is lost: its instruments are handed to the others."""
        # Where none is open, that is no reason to hand what one carries to others that are not open either.
        usable = [
            connection.number
            for connection in self.connections
            if not self.connected or not connection.health.failed or connection.number in self._hoped
        ]
        self._finish_moves(usable)
        self._placement = place(self._placement, self._wanted, usable=usable, redundancy=self._redundancy)
        self._wide_placement = place(self._wide_placement, self._wide, usable=usable, redundancy=self._redundancy)
        if not self._moves and time.monotonic() >= self._moves_after_s:
            self._begin_moves([number for number in usable if self.connections[number].health.connected])
        for connection in self.connections:
            number = connection.number
            connection.assign(
                Assignment(
                    frozenset(name for name, carriers in self._placement.items() if number in carriers),
                    frozenset(name for name, carriers in self._wide_placement.items() if number in carriers),
                )
            )

    def _begin_moves(self, usable: list[int]) -> None:
        """Even out the load: first make (both carry it), and when the new one flows, break."""
        found = moves(self._placement, usable=usable)
        if found:
            placement = dict(self._placement)
            for name, source, target in found:
                self._moves[name] = (source, target)
                placement[name] |= {target}
            self._placement = placement
            self._moves_late_s = time.monotonic() + MOVE_PATIENCE_S
            self._log.info("moves.begun", instruments=len(found))

    def _finish_moves(self, usable: list[int]) -> None:
        placement = dict(self._placement)
        now_s = time.monotonic()
        for name, (source, target) in list(self._moves.items()):
            carriers = placement.get(name, frozenset())
            if name not in placement or source not in carriers or source not in usable:
                del self._moves[name]  # nothing left to break
                self._resync_if_alone(name, target)
            elif target not in usable or target not in carriers:
                del self._moves[name]
                placement[name] = carriers - {target}
            elif self._flows_on(name, target):
                del self._moves[name]
                placement[name] = carriers - {source}
            elif now_s > self._moves_late_s:
                del self._moves[name]
                better = self._book_flows_on(name, target) and not self._book_flows_on(name, source)
                placement[name] = carriers - {source if better else target}
                self._moves_after_s = now_s + MOVE_PATIENCE_S
        self._placement = placement

    def _resync_if_alone(self, name: str, target: int) -> None:
        """The old one was lost before the new one flowed: its snapshot, then passed over, is needed after all."""
        # A book that flows is not left, whatever became of the ticker: what it brings meanwhile would be missing.
        if not self._book_flows_on(name, target) and target < len(self.connections):
            self.connections[target].resync(name)
