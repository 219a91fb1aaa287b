"""One connection for as long as the recorder runs: a session after another, each with its own books and chain."""

import asyncio
import contextlib
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import msgspec
from websockets.exceptions import WebSocketException

from recorder.deribit import channels
from recorder.deribit.book import Applied, Book
from recorder.deribit.feed import Feed
from recorder.deribit.messages import (
    BookData,
    Notification,
    TickerData,
    TradeData,
    decode_book,
    decode_created,
    decode_state,
    decode_ticker,
    decode_trades,
)
from recorder.deribit.session import RpcError, Session, Silent, open_session
from recorder.runtime.backoff import Backoff
from recorder.runtime.logging import Logger

# A session that lived this long after its subscriptions were granted, and brought data, was useful.
USEFUL_AFTER_S = 10.0
# A book that has waited this long for a snapshot is subscribed anew. Snapshots of 131 books came within 0.6 s.
SNAPSHOT_PATIENCE_S = 15.0
# A clean stop waits this long for the exchange to confirm that nothing more will come.
LEAVE_TIMEOUT_S = 2.0
# How many names a warning spells out.
NAMES_IN_A_LINE = 5


@dataclass(frozen=True)
class Plan:
    """What a connection is to carry."""

    instruments: tuple[str, ...]  # book and ticker of each
    trades: str | None = None  # the wide trades channel
    instrument_state: str | None = None
    instrument_creation: str | None = None

    @property
    def channels(self) -> list[str]:
        """Every channel of the plan."""
        wide = [self.trades, self.instrument_state, self.instrument_creation]
        return [
            *(channel for channel in wide if channel),
            *(channels.book(name) for name in self.instruments),
            *(channels.ticker(name) for name in self.instruments),
        ]


@dataclass
class Health:
    """What a person or a pool wants to know of a connection."""

    connected: bool = False
    attempts: int = 0
    reconnects: int = 0
    messages: int = 0
    last_message_us: int = 0
    connected_once: asyncio.Event = field(default_factory=asyncio.Event)


class Subscription(NamedTuple):
    """What is done with the messages of one channel."""

    family: Literal["book", "ticker", "trades", "other"]
    instrument: str | None  # None: the channel is of many
    decode: Callable[[bytes], Notification[Any]]
    take: Callable[[Any, int], None]  # the data, and when it was received


_CHANNEL = re.compile(rb'"channel"\s*:\s*"([^"]{1,128})"')


class Connection:
    """Connects, subscribes to its plan, follows its books, and reconnects with back-off, until cancelled."""

    def __init__(
        self,
        url: str,
        *,
        feed: Feed,
        plan: Callable[[Session], Awaitable[Plan]],
        now_us: Callable[[], int],
        log: Logger,
    ) -> None:
        self.health = Health()
        self._url = url
        self._feed = feed
        self._plan = plan
        self._now_us = now_us
        self._log = log
        self._backoff = Backoff()
        self._subscriptions: dict[str, Subscription] = {}  # by channel
        self._books: dict[str, Book] = {}
        self._waiting_since_s: dict[str, float] = {}  # books that wait for a snapshot
        self._broken = asyncio.Event()
        self._granted_at_s: float | None = None
        self._session: Session | None = None

    async def run(self) -> None:
        """Keep a session alive. Ends only by cancellation."""
        while True:
            self.health.attempts += 1
            cause: Literal["disconnect", "silence"] = "disconnect"
            detail = ""
            try:
                async with open_session(self._url, notify=self._on_notification, reject=self._on_garbage) as session:
                    self.health.connected = True
                    self.health.connected_once.set()
                    self._session = session
                    await self._serve(session)
            except Silent as exc:
                cause, detail = "silence", str(exc)
            except (OSError, TimeoutError, WebSocketException, RpcError, msgspec.DecodeError) as exc:
                detail = str(exc) or type(exc).__name__
            self._session = None
            self._session_ended(cause, detail)
            delay_s = self._backoff.next_delay_s()
            self._log.warning(
                "exchange.lost" if self.health.connected else "exchange.unreachable",
                url=self._url,
                error=detail,
                retry_in_s=round(delay_s, 1),
            )
            self.health.connected = False
            await asyncio.sleep(delay_s)
            self.health.reconnects += self.health.connected_once.is_set()

    async def leave(self) -> None:
        """Unsubscribe from everything before a clean stop: what was sent until the reply has been received."""
        if self._session is not None:
            with contextlib.suppress(TimeoutError, OSError, WebSocketException, RpcError):
                async with asyncio.timeout(LEAVE_TIMEOUT_S):
                    await self._session.call("public/unsubscribe_all")

    async def _serve(self, session: Session) -> None:
        plan = await self._plan(session)
        self._subscriptions = self._subscriptions_of(plan)
        self._books = {name: Book() for name in plan.instruments}
        asked = plan.channels
        granted, exchange_us = await session.subscribe(asked)
        self._granted_at_s = time.monotonic()
        self._waiting_since_s = {
            name: self._granted_at_s
            for name in plan.instruments
            if channels.book(name) in granted and self._books[name].change_id is None
        }
        if left_out := [channel for channel in asked if channel not in granted]:
            self._log.warning("subscribe.left_out", count=len(left_out), channels=left_out[:NAMES_IN_A_LINE])
        self._feed.subscribed(
            books={name for name in plan.instruments if channels.book(name) in granted},
            tickers={name for name in plan.instruments if channels.ticker(name) in granted},
            trades=plan.trades in granted,
            exchange_us=exchange_us,
        )
        self._log.info("subscribed", instruments=len(plan.instruments), channels=len(granted))
        await self._resync_books(session)

    async def _resync_books(self, session: Session) -> None:
        """Give broken books a snapshot: unsubscribe and subscribe, since a second subscribe alone brings none."""
        while True:
            try:
                async with asyncio.timeout(SNAPSHOT_PATIENCE_S):
                    await self._broken.wait()
            except TimeoutError:
                pass
            self._broken.clear()
            now_s = time.monotonic()
            overdue = [name for name, since_s in self._waiting_since_s.items() if since_s <= now_s]
            if not overdue:
                continue
            for name in overdue:
                self._waiting_since_s[name] = now_s + SNAPSHOT_PATIENCE_S
                self._books[name].forget()
            names = [channels.book(name) for name in overdue]
            await session.unsubscribe(names)
            granted, _ = await session.subscribe(names)
            if len(granted) < len(names):
                self._log.warning("subscribe.left_out", count=len(names) - len(granted))

    def _session_ended(self, cause: Literal["disconnect", "silence"], detail: str) -> None:
        granted_at_s, self._granted_at_s = self._granted_at_s, None
        if granted_at_s is None:
            return
        if time.monotonic() - granted_at_s >= USEFUL_AFTER_S and self.health.last_message_us:
            self._backoff.reset()
        self._feed.disconnected(cause=cause, since_us=self.health.last_message_us or self._now_us(), detail=detail)

    def _subscriptions_of(self, plan: Plan) -> dict[str, Subscription]:
        found: dict[str, Subscription] = {}
        for name in plan.instruments:
            found[channels.book(name)] = Subscription("book", name, decode_book, self._on_book)
            found[channels.ticker(name)] = Subscription("ticker", name, decode_ticker, self._on_ticker)
        if plan.trades:
            found[plan.trades] = Subscription("trades", None, decode_trades, self._on_trades)
        if plan.instrument_state:
            found[plan.instrument_state] = Subscription("other", None, decode_state, self._feed.instrument_state)
        if plan.instrument_creation:
            found[plan.instrument_creation] = Subscription(
                "other", None, decode_created, self._feed.instrument_created
            )
        return found

    # The hot path: one call of _on_notification for each message.

    def _on_notification(self, channel: str, frame: bytes) -> None:
        now_us = self._now_us()
        known = self._subscriptions.get(channel)
        if known is None:
            self._reject(frame, f"nobody subscribed to {channel!r}", "other", None)
            return
        try:
            params = known.decode(frame).params
            _expect(params.channel, channel)
            if known.instrument is not None:
                _expect(params.data.instrument_name, known.instrument)
        except msgspec.DecodeError as exc:
            self._reject(frame, str(exc), known.family, known.instrument)
        else:
            known.take(params.data, now_us)
        health = self.health
        health.messages += 1
        health.last_message_us = now_us

    def _on_ticker(self, data: TickerData, now_us: int) -> None:
        self._feed.ticker(data, now_us)

    def _on_book(self, data: BookData, now_us: int) -> None:
        instrument = data.instrument_name
        book = self._books[instrument]
        last = book.change_id
        applied = book.apply(data)
        if applied is Applied.NEW:
            prev_change_id = data.prev_change_id
            if data.is_snapshot:
                prev_change_id = None
                self._waiting_since_s.pop(instrument, None)
            self._feed.quote(instrument, data.timestamp, book.top, data.change_id, prev_change_id, now_us)
        elif applied is Applied.BROKEN:
            assert last is not None
            assert data.prev_change_id is not None
            self._feed.book_broken(instrument, self.health.last_message_us, last + 1, data.prev_change_id)
            self._ask_resync(instrument)

    def _on_trades(self, trades: list[TradeData], now_us: int) -> None:
        self._feed.trades(trades, now_us, self.health.last_message_us or now_us)

    def _on_garbage(self, frame: bytes, reason: str, *, garbage: bool) -> None:
        """A frame that is no message may still show whose it was."""
        match = _CHANNEL.search(frame)
        known = self._subscriptions.get(match[1].decode(errors="replace")) if match else None
        if garbage and known is not None:
            self._reject(frame, reason, known.family, known.instrument)
        else:
            self._reject(frame, reason, "unknown" if garbage else "other", None)

    def _reject(self, frame: bytes, reason: str, family: str, instrument: str | None) -> None:
        since_us = self.health.last_message_us or self._now_us()
        self._feed.rejected(frame, reason, family=family, instrument=instrument, since_us=since_us)
        if family == "book" and instrument is not None:
            self._books[instrument].forget()
            self._ask_resync(instrument)

    def _ask_resync(self, instrument: str) -> None:
        self._waiting_since_s[instrument] = 0.0
        self._broken.set()


def _expect(found: str, expected: str) -> None:
    if found != expected:
        raise msgspec.ValidationError(f"it is of {found!r}, but came where {expected!r} belongs")
