"""The exchange as a server: every connection, what they share, and what can be done to them.

Deribit documentation, connection management: 32 connections an IP at the same time; the next gets HTTP 429.
Faults of the whole exchange are the main host's; the history host, which is another one, goes on.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from http import HTTPStatus

from websockets.asyncio.server import ServerConnection
from websockets.http11 import Request, Response

from recorder.runtime.errors import TicktapeError
from recorder.simulator import rest, wire
from recorder.simulator.feed import Feed
from recorder.simulator.journal import Journal
from recorder.simulator.limits import Limits
from recorder.simulator.live import Live
from recorder.simulator.orders import Fate
from recorder.simulator.session import Session
from recorder.simulator.tampering import Tampering

WEBSOCKET_PATH = "/ws/api/v2"
MOST_CONNECTIONS = 32
# Deribit's codes are not known: `service restart` for maintenance, `going away` for a server that will not have us.
_RESTART, _GOING_AWAY = 1012, 1001
_REFUSALS = {"maintenance": HTTPStatus.SERVICE_UNAVAILABLE, "too_many": HTTPStatus.TOO_MANY_REQUESTS}


class Exchange:
    """A running simulated exchange: addresses to connect to, and verbs for tests."""

    def __init__(self, feed: Feed, journal: Journal, *, heartbeat_speed: float) -> None:
        self.feed, self.journal = feed, journal
        self.tampering = Tampering(journal)
        self.heartbeat_speed = heartbeat_speed
        self.troubles: Counter[str] = Counter()  # how many of each kind go on
        self.url = self.history_url = ""
        self._sessions: dict[int, Session] = {}
        self._opened = 0
        # Deribit keeps one budget for a client without authentication, whatever it connects by; the history
        # is another host.
        self._limits: dict[str, tuple[Limits, Limits]] = {}

    # What is there

    @property
    def numbers(self) -> list[int]:
        """The numbers of the open connections, oldest first."""
        return list(self._sessions)

    @property
    def connections(self) -> list[Session]:
        """The open connections, oldest first."""
        return list(self._sessions.values())

    @property
    def live(self) -> Live:
        """The market that is played; a captured file takes no orders."""
        if not isinstance(self.feed, Live):
            raise TicktapeError("a captured file is played as it was", remedy="order this of a market")
        return self.feed

    # What can be done to connections

    def kill(self, number: int, *, kind: str = "kill") -> None:
        """Cut one connection without a close frame."""
        self.journal.event("fault", kind=kind, connection=number)
        self._sessions[number].kill("killed")

    def kill_connections(self) -> None:
        """Cut all."""
        for number in self.numbers:
            self.kill(number)

    async def half_open(self, number: int, for_s: float) -> None:
        """Play dead on one connection for a while, without closing it; then whatever comes on it is refused.

        What was not sent cannot arrive any more: a connection that goes on would have brought it.
        """
        await self._quieten("half_open", [self._sessions[number]], for_s)
        if number in self._sessions:
            self._sessions[number].kill("half_open")

    def send_raw(self, text: str) -> None:
        """Send any text to every connection."""
        self.journal.event("fault", kind="raw", sent=text)
        for session in self.connections:
            session.send(text.encode())

    def skip_change(self, instrument: str) -> None:
        """Withhold the next change of a book from every connection that holds it now."""
        channel = f"book.{instrument}.100ms"
        holders = {number for number, session in self._sessions.items() if channel in session.channels}
        self.tampering.skip(channel, holders)

    def duplicate(self, number: int, family: str) -> None:
        """Send the next `book.`, `ticker.` or `trades.` message of a connection twice."""
        self.tampering.arm("duplicate", number, family)

    def reorder(self, number: int, family: str) -> None:
        """Let the next such message of a connection be overtaken: by another instrument's, or by later trades."""
        self.tampering.arm("reorder", number, family)

    # What can be done to the market

    def skip_trade(self) -> None:
        """Withhold the next trade, whichever it is; the history has it."""
        self.live.orders.skip_trade()

    def print_trades(self, name: str, count: int) -> None:
        """Let an option trade so many times within one millisecond."""
        self.live.orders.trade(name, [Fate.LIVE] * count)

    def withhold_trades(self, name: str, count: int) -> None:
        """Let an option trade so often; nobody is sent it, the history has it."""
        self.live.orders.trade(name, [Fate.WITHHELD] * count)

    def void_trades(self, name: str, count: int) -> None:
        """Skip so many numbers of an option: they never exist."""
        self.live.orders.trade(name, [Fate.VOID] * count)

    def mix_trades(self, name: str, fates: Sequence[Fate]) -> None:
        """Give consecutive numbers of an option each its own fate."""
        self.live.orders.mix(name, fates)

    def sweep(self, name: str, count: int, *, withheld: tuple[int, int] = (0, 0)) -> None:
        """Let an option trade so often in one millisecond; withhold the places from the first up to the second."""
        self.live.orders.sweep(name, count, withheld=withheld)

    def list_options(self, count: int) -> list[str]:
        """List new options and return their names."""
        return self.live.orders.list_options(count)

    def expire_options(self, names: Iterable[str], *, last_trade_withheld: bool = False) -> None:
        """Let options be delivered now, if asked each right after a trade that is withheld."""
        self.live.orders.expire_options(names, last_trade_withheld=last_trade_withheld)

    def forget_trade(self, name: str) -> None:
        """Withhold a trade of an option and deliver it after one more; neither host has any trade of it."""
        self.live.orders.forget_trade(name)

    def rerank(self) -> None:
        """Deal the open interest out anew."""
        self.live.orders.rerank()

    # What can be done to the exchange, for a while

    async def trouble(self, kind: str, for_s: float) -> None:
        """Play the fault of this name."""
        troubles = {
            "silence": self.silence,
            "maintenance": self.maintenance,
            "lock": self.lock,
            "unauthenticated": self.unauthenticated,
            "settlement": lambda for_s: self.refuse("settlement", for_s),
            "unavailable": lambda for_s: self.refuse("unavailable", for_s),
            "accept_close": self.accept_close,
            "too_many": self.too_many,
        }
        await troubles[kind](for_s)

    async def silence(self, for_s: float) -> None:
        """Play dead on every connection of now."""
        await self._quieten("silence", self.connections, for_s)

    async def maintenance(self, for_s: float) -> None:
        """Tell of it, close every connection, and refuse new ones."""
        async with self._during("maintenance", for_s):
            self._tell("platform_state", '{"maintenance":true}')
            self._end_all(_RESTART, "maintenance")

    async def lock(self, for_s: float) -> None:
        """Lock the index: its books do not move and nothing trades."""
        market = self.live.market
        state = f'{{"locked":%s,"price_index":"{market.currency.lower()}_usd","reasons":[]}}'
        async with self._during("lock", for_s):
            market.locked = True
            self._tell("platform_state", state % "true")
        market.locked = self.troubles["lock"] > 0
        self._tell("platform_state", state % "false")

    async def unauthenticated(self, for_s: float) -> None:
        """Disable what clients without authentication may ask."""
        channel, state = "platform_state.public_methods_state", '{"allow_unauthenticated_public_requests":%s}'
        async with self._during("unauthenticated", for_s):
            self._tell(channel, state % "false")
        self._tell(channel, state % "true")

    async def refuse(self, kind: str, for_s: float) -> None:
        """Refuse calls for a settlement, or as unavailable; what is subscribed flows on."""
        async with self._during(kind, for_s):
            pass

    async def accept_close(self, for_s: float) -> None:
        """Close every connection, and each new one as soon as it is open."""
        async with self._during("accept_close", for_s):
            self._end_all(_GOING_AWAY, "")

    async def too_many(self, for_s: float) -> None:
        """Refuse new connections with 429, and end those that ask anything."""
        async with self._during("too_many", for_s):
            pass

    def end(self) -> None:
        """Before the server closes: connections that play dead would not answer."""
        for session in self.connections:
            if session.silent:
                session.kill("end")

    @asynccontextmanager
    async def _during(self, kind: str, for_s: float, **facts: object) -> AsyncIterator[None]:
        """Enter with a trouble begun; leave when its time is over."""
        self.journal.event("fault", kind=kind, for_s=for_s, **facts)
        self.troubles[kind] += 1
        try:
            yield
            await asyncio.sleep(for_s)
        finally:
            self.troubles[kind] -= 1
            self.journal.event("fault", kind=f"{kind} over", **facts)

    async def _quieten(self, kind: str, sessions: list[Session], for_s: float) -> None:
        async with self._during(kind, for_s, connections=[session.number for session in sessions]):
            for session in sessions:
                session.set_silent(silent=True)
        for session in sessions:
            if session.number in self._sessions:
                session.set_silent(silent=False)

    def _tell(self, channel: str, data: str) -> None:
        for session in self.connections:
            if channel in session.channels:
                session.send_data(channel, wire.notification(channel, data))

    def _end_all(self, code: int, reason: str) -> None:
        for session in self.connections:
            session.end(code, reason)

    # What the server calls

    def on_request(self, connection: ServerConnection, request: Request) -> Response | None:
        """Answer plain HTTP, refuse what is too much or elsewhere, let a WebSocket pass."""
        path = request.path.partition("?")[0]
        if path.startswith(rest.PREFIX):
            _, limits = self._limits_of(connection)
            return rest.reply(self.feed, limits, self.journal, request.path, asyncio.get_running_loop().time())
        if path != WEBSOCKET_PATH:
            return rest.respond(HTTPStatus.NOT_FOUND, b"")
        for kind, status in _REFUSALS.items():
            if self.troubles[kind]:
                self.journal.event("refused", kind=kind)
                return rest.respond(status, b"")
        if len(self._sessions) >= MOST_CONNECTIONS:
            self.journal.event("limit", kind="connections")
            return rest.respond(HTTPStatus.TOO_MANY_REQUESTS, b"")
        return None

    async def on_connection(self, connection: ServerConnection) -> None:
        """Serve one client."""
        if self.troubles["accept_close"]:
            self.journal.event("refused", kind="accept_close")
            await connection.close(_GOING_AWAY)
            return
        self._opened += 1
        number = self._opened
        limits, _ = self._limits_of(connection)
        session = self._sessions[number] = Session(number, connection, self, limits)
        try:
            await session.serve()
        finally:
            del self._sessions[number]
            self.tampering.forget(number)

    def _limits_of(self, connection: ServerConnection) -> tuple[Limits, Limits]:
        """Return the budgets of a client, for the socket and for the history."""
        host = str(connection.remote_address[0])
        now_s = asyncio.get_running_loop().time()
        return self._limits.setdefault(host, (Limits(now_s), Limits(now_s)))
