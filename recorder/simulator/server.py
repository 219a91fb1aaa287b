"""The exchange as a server: every connection, what they share, and what can be done to them.

Deribit documentation, connection management: 32 connections an IP at the same time; the next gets HTTP 429.
"""

import asyncio
from collections.abc import Iterable
from http import HTTPStatus

from websockets.asyncio.server import ServerConnection
from websockets.http11 import Request, Response

from recorder.simulator import rest
from recorder.simulator.feed import Feed
from recorder.simulator.journal import Journal
from recorder.simulator.limits import Limits
from recorder.simulator.sabotage import Sabotage
from recorder.simulator.session import Session

WEBSOCKET_PATH = "/ws/api/v2"
MOST_CONNECTIONS = 32


class Exchange:
    """A running simulated exchange: addresses to connect to, and verbs for tests."""

    def __init__(self, feed: Feed, sabotage: Sabotage, journal: Journal, *, heartbeat_speed: float) -> None:
        self.feed, self.sabotage, self.journal = feed, sabotage, journal
        self.heartbeat_speed = heartbeat_speed
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

    # What can be done

    def kill(self, number: int) -> None:
        """Cut one connection without a close frame."""
        self._sessions[number].kill("killed")

    def kill_connections(self) -> None:
        """Cut all."""
        for number in self.numbers:
            self.kill(number)

    def send_raw(self, text: str) -> None:
        """Send any text to every connection."""
        self.journal.event("fault", kind="raw", sent=text)
        for session in self.connections:
            session.send(text.encode())

    def skip_change(self, instrument: str) -> None:
        """Withhold the next change of a book from every connection that holds it now."""
        channel = f"book.{instrument}.100ms"
        holders = {number for number, session in self._sessions.items() if channel in session.channels}
        self.sabotage.skip(channel, holders)

    def skip_trade(self) -> None:
        """Keep the next trade from everyone but the history."""
        self.feed.skip_trade()

    async def silence(self, for_s: float) -> None:
        """Play dead on every connection of now for a while."""
        silenced = self.connections
        self.journal.event("fault", kind="silence", connections=self.numbers, for_s=for_s)
        _silence(silenced, silent=True)
        await asyncio.sleep(for_s)
        _silence((session for session in silenced if session.number in self._sessions), silent=False)
        self.journal.event("fault", kind="silence over", connections=self.numbers)

    # What the server calls

    def on_request(self, connection: ServerConnection, request: Request) -> Response | None:
        """Answer plain HTTP, refuse what is too much or elsewhere, let a WebSocket pass."""
        path = request.path.partition("?")[0]
        if path.startswith(rest.PREFIX):
            _, limits = self._limits_of(connection)
            return rest.reply(self.feed, limits, request.path, asyncio.get_running_loop().time())
        if path != WEBSOCKET_PATH:
            return rest.respond(HTTPStatus.NOT_FOUND, b"")
        if len(self._sessions) >= MOST_CONNECTIONS:
            return rest.respond(HTTPStatus.TOO_MANY_REQUESTS, b"")
        return None

    async def on_connection(self, connection: ServerConnection) -> None:
        """Serve one client."""
        self._opened += 1
        number = self._opened
        limits, _ = self._limits_of(connection)
        session = self._sessions[number] = Session(number, connection, self, limits)
        try:
            await session.serve()
        finally:
            del self._sessions[number]
            self.sabotage.forget(number)

    def _limits_of(self, connection: ServerConnection) -> tuple[Limits, Limits]:
        """Return the budgets of a client, for the socket and for the history."""
        host = str(connection.remote_address[0])
        now_s = asyncio.get_running_loop().time()
        return self._limits.setdefault(host, (Limits(now_s), Limits(now_s)))


def _silence(sessions: Iterable[Session], *, silent: bool) -> None:
    for session in sessions:
        session.set_silent(silent=silent)
