"""One connection for as long as the recorder runs: a session after another, each with its own books and chain."""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import msgspec
from msgspec import Raw
from websockets.exceptions import WebSocketException

from recorder.deribit import channels
from recorder.deribit.book import Applied, Book
from recorder.deribit.feed import Feed
from recorder.deribit.messages import (
    decode_book,
    decode_instrument,
    decode_instrument_state,
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


Handler = Callable[[Raw, int], None]

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
        self._handlers: dict[str, tuple[str, str | None, Handler]] = {}  # channel -> family, instrument, handler
        self._books: dict[str, Book] = {}
        self._waiting_since_s: dict[str, float] = {}  # books that wait for a snapshot
        self._broken = asyncio.Event()
        self._granted_at_s: float | None = None

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
                    await self._serve(session)
            except Silent as exc:
                cause, detail = "silence", str(exc)
            except (OSError, TimeoutError, WebSocketException, RpcError, msgspec.DecodeError) as exc:
                detail = str(exc) or type(exc).__name__
            finally:
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

    async def _serve(self, session: Session) -> None:
        plan = await self._plan(session)
        self._handlers = self._handlers_for(plan)
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

    def _handlers_for(self, plan: Plan) -> dict[str, tuple[str, str | None, Handler]]:
        found: dict[str, tuple[str, str | None, Handler]] = {}
        for name in plan.instruments:
            found[channels.book(name)] = ("book", name, partial(self._on_book, name))
            found[channels.ticker(name)] = ("ticker", name, partial(self._on_ticker, name))
        if plan.trades:
            found[plan.trades] = ("trades", None, self._on_trades)
        if plan.instrument_state:
            found[plan.instrument_state] = ("other", None, self._on_instrument_state)
        if plan.instrument_creation:
            found[plan.instrument_creation] = ("other", None, self._on_instrument_creation)
        return found

    # The hot path: one call of _on_notification for each message.

    def _on_notification(self, channel: str, data: Raw, frame: bytes) -> None:
        known = self._handlers.get(channel)
        now_us = self._now_us()
        if known is None:
            self._reject(frame, f"nobody subscribed to {channel!r}", "other", None)
            return
        try:
            known[2](data, now_us)
        except msgspec.DecodeError as exc:
            family, instrument, _ = known
            self._reject(frame, str(exc), family, instrument)
        self.health.messages += 1
        self.health.last_message_us = now_us

    def _on_ticker(self, instrument: str, raw: Raw, now_us: int) -> None:
        data = decode_ticker(raw)
        _expect(data.instrument_name, instrument)
        self._feed.ticker(data, now_us)

    def _on_book(self, instrument: str, raw: Raw, now_us: int) -> None:
        data = decode_book(raw)
        _expect(data.instrument_name, instrument)
        book = self._books[instrument]
        last = book.change_id
        match book.apply(data):
            case Applied.NEW:
                snapshot = data.is_snapshot
                if snapshot:
                    self._waiting_since_s.pop(instrument, None)
                self._feed.quote(
                    instrument,
                    data.timestamp,
                    book.top,
                    data.change_id,
                    None if snapshot else data.prev_change_id,
                    now_us,
                )
            case Applied.BROKEN:
                assert last is not None
                assert data.prev_change_id is not None
                self._feed.book_broken(instrument, self.health.last_message_us, last + 1, data.prev_change_id)
                self._ask_resync(instrument)
            case Applied.REPEATED | Applied.WAITING:
                pass

    def _on_trades(self, raw: Raw, now_us: int) -> None:
        self._feed.trades(decode_trades(raw), now_us, self.health.last_message_us or now_us)

    def _on_instrument_state(self, raw: Raw, now_us: int) -> None:
        self._feed.instrument_state(decode_instrument_state(raw), now_us)

    def _on_instrument_creation(self, raw: Raw, now_us: int) -> None:
        self._feed.instrument_created(decode_instrument(raw), now_us)

    def _on_garbage(self, frame: bytes, reason: str, *, garbage: bool) -> None:
        """A frame that is no message may still show whose it was."""
        match = _CHANNEL.search(frame)
        known = self._handlers.get(match[1].decode(errors="replace")) if match else None
        if garbage and known is not None:
            self._reject(frame, reason, known[0], known[1])
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
        raise msgspec.ValidationError(f"data of {found!r} on the channel of {expected!r}")
