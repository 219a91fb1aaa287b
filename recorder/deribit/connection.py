"""One connection for as long as the recorder runs: a session after another, each with its own books and chain."""

import asyncio
import contextlib
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import msgspec
from websockets.exceptions import WebSocketException

from recorder.deribit import channels, trouble
from recorder.deribit.book import Applied, Book
from recorder.deribit.channels import Assignment
from recorder.deribit.feed import Family, Feed
from recorder.deribit.messages import (
    UNREADABLE,
    BookData,
    Notification,
    PlatformData,
    TickerData,
    TradeData,
    decode_book,
    decode_created,
    decode_platform,
    decode_state,
    decode_ticker,
    decode_trades,
)
from recorder.deribit.pacer import Pacer
from recorder.deribit.session import SUBSCRIBE_MOST_CHANNELS, Reply, RpcError, Session, Silent, open_session
from recorder.runtime.backoff import Backoff
from recorder.runtime.logging import Logger

# A session that lived this long after its subscriptions were granted, and brought data, was useful.
USEFUL_AFTER_S = 10.0
# A book that has waited this long for a snapshot is subscribed anew. Snapshots of 131 books came within 0.6 s.
SNAPSHOT_PATIENCE_S = 15.0
# A channel that the exchange left out is asked for again after this.
ASK_AGAIN_S = 60.0
# A clean stop waits this long for the exchange to confirm that nothing more will come.
LEAVE_TIMEOUT_S = 2.0
# How many names a warning spells out.
NAMES_IN_A_LINE = 5


@dataclass
class Health:
    """What a person or a pool wants to know of a connection."""

    connected: bool = False
    failed: bool = False  # the last attempt failed, or the session was lost, and no new one is open yet
    reconnects: int = 0
    began_us: int = 0  # when its session was opened
    messages: int = 0
    last_message_us: int = 0  # of the session that is open
    lag_us: int = 0  # of the newest ticker: received minus the exchange's time
    longest_wait_s: float = 0.0  # of a message inside this process, since somebody set it to 0
    channels: int = 0

    def heard_until_us(self, now_us: int) -> int:
        """Until when, by the exchange's clock, nothing can be missing of what it sent: its begin if nothing came yet.

        A process that stood still reads late what was sent before: `last_message_us` alone lies after it.
        """
        return (self.last_message_us or self.began_us or now_us) - max(self.lag_us, 0)


class Subscription(NamedTuple):
    """What is done with the messages of one channel."""

    family: Family
    instrument: str | None  # None: the channel is of many
    decode: Callable[[bytes], Notification[Any]]
    take: Callable[[Any, int], None]  # the data, and when it was received


_CHANNEL = re.compile(rb'"channel"\s*:\s*"([^"]{1,128})"')


class Connection:
    """Connects, subscribes to what it is assigned, follows its books, and reconnects, until cancelled."""

    def __init__(
        self,
        number: int,
        url: str,
        *,
        feed: Feed,
        pacer: Pacer,
        changed: Callable[[], None],
        now_us: Callable[[], int],
        log: Logger,
    ) -> None:
        """`changed` is called when the connection is opened or lost."""
        self.number = number
        self.health = Health()
        self._url = url
        self._feed = feed
        self._pacer = pacer
        self._changed = changed
        self._now_us = now_us
        self._log = log.bind(connection=number)
        self._backoff = Backoff()
        self.assigned = Assignment()
        self._wake = asyncio.Event()
        self._leaving = False
        # Of the session that is open:
        self._session: Session | None = None
        self._held: set[str] = set()
        self._ask_again_s: dict[str, float] = {}  # channels that were left out, and when to ask again
        self._subscriptions: dict[str, Subscription] = {}  # by channel
        self._books: dict[str, Book] = {}
        self._snapshot_due_s: dict[str, float] = {}  # books that wait for a snapshot, and until when
        self._useful_at_s: float | None = None

    def assign(self, assignment: Assignment) -> None:
        """Say what to carry from now on; of no effect once it leaves."""
        if assignment != self.assigned and not self._leaving:
            self.assigned = assignment
            self._wake.set()

    def resync(self, instrument: str) -> None:
        """Get a new snapshot of a book."""
        if instrument in self._books:
            self._snapshot_due_s[instrument] = 0.0
            self._wake.set()

    @property
    def heartbeat_age_s(self) -> float | None:
        """How long ago the exchange last proved that it is there; None without a session."""
        return None if self._session is None else time.monotonic() - self._session.last_heartbeat_s

    async def call(self, method: str, **params: Any) -> Reply:
        """Make a call on the session that is open.

        Raises:
            RpcError, TimeoutError: it was refused or not answered.
            OSError, WebSocketException: there is no session, or it was lost.
        """
        if self._session is None:
            raise ConnectionError("not connected")
        return await self._session.call(method, **params)

    async def run(self) -> None:
        """Keep a session alive. Ends only by cancellation."""
        while True:
            cause: Literal["disconnect", "silence"] = "disconnect"
            reason: Exception
            try:
                async with open_session(
                    self._url, notify=self._on_notification, reject=self._on_garbage, pacer=self._pacer
                ) as session:
                    self._session_began(session)
                    await self._serve(session)
            except Silent as exc:
                cause, reason = "silence", exc
            except (OSError, TimeoutError, WebSocketException, RpcError, *UNREADABLE) as exc:
                reason = exc
            if self._session is not None and self._session.refusal is not None:
                reason = self._session.refusal
            was_connected = self.health.connected
            what, detail = trouble.explain(reason)
            self._session_ended(cause, detail)
            delay_s = max(self._backoff.next_delay_s(), trouble.least_delay_s(what))
            self._log.warning(
                "exchange.lost" if was_connected else "exchange.unreachable",
                url=self._url,
                reason=what,
                error=detail,
                retry_in_s=round(delay_s, 1),
            )
            if self._leaving:
                await asyncio.Future()  # nothing is begun anew before a stop
            await asyncio.sleep(delay_s)
            self.health.reconnects += 1

    async def leave(self) -> None:
        """Unsubscribe from everything before a clean stop: what was sent until the reply has been received."""
        self._leaving = True
        if self._session is not None:
            with contextlib.suppress(TimeoutError, OSError, WebSocketException, RpcError):
                async with asyncio.timeout(LEAVE_TIMEOUT_S):
                    await self._session.call("public/unsubscribe_all")

    def _session_began(self, session: Session) -> None:
        self._held.clear()
        self._ask_again_s.clear()
        self._subscriptions.clear()
        self._books.clear()
        self._snapshot_due_s.clear()
        self._session = session
        self.health.connected, self.health.failed = True, False
        self.health.began_us, self.health.last_message_us = self._now_us(), 0
        self._changed()

    def _session_ended(self, cause: Literal["disconnect", "silence"], detail: str) -> None:
        was_open, self._session = self._session is not None, None
        self.health.connected, self.health.failed, self.health.channels = False, True, 0
        if self._useful_at_s is not None:
            if time.monotonic() >= self._useful_at_s and self.health.last_message_us:
                self._backoff.reset()
            self._useful_at_s = None
        if was_open:  # what it brought before its last grant was answered was recorded too
            since_us = self.health.heard_until_us(self._now_us())
            self._feed.disconnected(self.number, cause=cause, since_us=since_us, detail=detail)
        self._changed()

    async def _serve(self, session: Session) -> None:
        """Bring what is held in line with what is assigned, again and again."""
        while True:
            self._wake.clear()
            await self._subscribe(session)
            await self._unsubscribe(session)
            await self._resync_books(session)
            try:
                async with asyncio.timeout(SNAPSHOT_PATIENCE_S):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def _subscribe(self, session: Session) -> None:
        now_s = time.monotonic()
        assigned = self.assigned
        asked = [c for c in sorted(assigned.channels - self._held) if self._ask_again_s.get(c, 0.0) <= now_s]
        if not asked:
            return
        new = Assignment(
            frozenset(n for n in assigned.instruments if n not in self._books), assigned.wide - self._held
        )
        # Before they are asked for: a notification can come before the reply.
        for name in assigned.instruments:
            self._books.setdefault(name, Book())
        self._subscriptions.update(self._subscriptions_of(Assignment(assigned.instruments, assigned.wide)))
        granted, exchange_us = await session.subscribe(asked)
        self._held |= granted
        self.health.channels = len(self._held)
        if self._useful_at_s is None:
            self._useful_at_s = time.monotonic() + USEFUL_AFTER_S
        due_s = time.monotonic() + SNAPSHOT_PATIENCE_S
        for name in assigned.instruments:
            if channels.book(name) in granted and self._books[name].change_id is None:
                self._snapshot_due_s.setdefault(name, due_s)
        left_out = [channel for channel in asked if channel not in granted]
        if left_out:
            self._log.warning("subscribe.left_out", count=len(left_out), channels=left_out[:NAMES_IN_A_LINE])
            for channel in left_out:
                self._ask_again_s[channel] = now_s + ASK_AGAIN_S
        books = {name for name in assigned.instruments if channels.book(name) in granted}
        tickers = {name for name in assigned.instruments if channels.ticker(name) in granted}
        self._feed.subscribed(
            self.number,
            books=books,
            tickers=tickers,
            refused=new.instruments - (books & tickers),
            trades=any(channels.is_trades(channel) for channel in granted),
            lifecycle=any(channels.is_lifecycle(channel) for channel in granted),
            exchange_us=exchange_us,
        )
        self._log.info("subscribed", instruments=len(books & tickers), channels=len(granted))

    async def _unsubscribe(self, session: Session) -> None:
        extra = self._held - self.assigned.channels
        if not extra:
            return
        await session.unsubscribe(sorted(extra))
        self._held -= extra
        self.health.channels = len(self._held)
        names = frozenset(
            sub.instrument for c in extra if (sub := self._subscriptions.pop(c, None)) and sub.instrument is not None
        )
        for name in names:
            self._books.pop(name, None)
            self._snapshot_due_s.pop(name, None)
        self._feed.left(self.number, names, trades=any(channels.is_trades(channel) for channel in extra))
        self._log.info("unsubscribed", instruments=len(names), channels=len(extra))

    async def _resync_books(self, session: Session) -> None:
        """Give broken books a snapshot: unsubscribe and subscribe, since a second subscribe alone brings none."""
        if not self._overdue():
            return
        # Both turns before anything is left: calls may wait for seconds, and a book that is left brings nothing.
        await session.turns(2)
        overdue = self._overdue()  # some may have had their snapshot meanwhile: these flow
        now_s = time.monotonic()
        for name in overdue:
            self._snapshot_due_s[name] = now_s + SNAPSHOT_PATIENCE_S
            self._books[name].forget()
        names = [channels.book(name) for name in overdue]
        await session.unsubscribe(names, paced=False)
        granted, _ = await session.subscribe(names, paced=False)
        if lost := set(names) - granted:
            self._held -= lost
            self._log.warning("subscribe.left_out", count=len(lost), channels=sorted(lost)[:NAMES_IN_A_LINE])

    def _overdue(self) -> list[str]:
        """Return the books that should have had a snapshot by now, as many as one call may carry."""
        now_s = time.monotonic()
        overdue = [name for name, due_s in self._snapshot_due_s.items() if due_s <= now_s]
        if len(overdue) > SUBSCRIBE_MOST_CHANNELS:
            self._wake.set()  # the others are next
        return overdue[:SUBSCRIBE_MOST_CHANNELS]

    def _subscriptions_of(self, assignment: Assignment) -> dict[str, Subscription]:
        found: dict[str, Subscription] = {}
        for name in assignment.instruments:
            found[channels.book(name)] = Subscription("book", name, decode_book, self._on_book)
            found[channels.ticker(name)] = Subscription("ticker", name, decode_ticker, self._on_ticker)
        for channel in assignment.wide:
            if channels.is_trades(channel):
                found[channel] = Subscription("trades", None, decode_trades, self._on_trades)
            elif channels.is_state(channel):
                found[channel] = Subscription("other", None, decode_state, self._feed.instrument_state)
            elif channels.is_creation(channel):
                found[channel] = Subscription("other", None, decode_created, self._feed.instrument_created)
            else:
                found[channel] = Subscription("other", None, decode_platform, self._on_platform)
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
        except UNREADABLE as exc:
            self._reject(frame, str(exc), known.family, known.instrument)
        else:
            known.take(params.data, now_us)
        health = self.health
        health.messages += 1
        health.last_message_us = now_us
        if self._session is not None and (waited_s := self._session.waited_s) > health.longest_wait_s:
            health.longest_wait_s = waited_s

    def _on_ticker(self, data: TickerData, now_us: int) -> None:
        self.health.lag_us = now_us - data.timestamp * 1000
        self._feed.ticker(self.number, data, now_us)

    def _on_book(self, data: BookData, now_us: int) -> None:
        instrument = data.instrument_name
        book = self._books[instrument]
        last = book.change_id
        applied = book.apply(data)
        if applied is Applied.NEW:
            change_id, prev_change_id = data.change_id, data.prev_change_id
            if self._snapshot_due_s:  # a book that goes on needs no snapshot: it would be left while it flows
                self._snapshot_due_s.pop(instrument, None)
            self._feed.quote(self.number, instrument, data.timestamp, book.top, change_id, prev_change_id, now_us)
        elif applied is Applied.SNAPSHOT:
            self._snapshot_due_s.pop(instrument, None)
            self._feed.quote(self.number, instrument, data.timestamp, book.top, data.change_id, None, now_us)
        elif applied is Applied.BROKEN:
            assert last is not None
            assert data.prev_change_id is not None
            self._feed.book_broken(self.number, instrument, last + 1, data.prev_change_id)
            self.resync(instrument)

    def _on_trades(self, trades: list[TradeData], now_us: int) -> None:
        self._feed.trades(trades, now_us, self.health.heard_until_us(now_us))

    def _on_platform(self, data: PlatformData, _now_us: int) -> None:
        if facts := data.facts():
            self._feed.platform(facts)

    def _on_garbage(self, frame: bytes, reason: str, *, garbage: bool) -> None:
        """A frame that is no message may still show whose it was."""
        match = _CHANNEL.search(frame)
        known = self._subscriptions.get(match[1].decode(errors="replace")) if match else None
        if garbage and known is not None:
            self._reject(frame, reason, known.family, known.instrument)
        else:
            self._reject(frame, reason, "unknown" if garbage else "other", None)

    def _reject(self, frame: bytes, reason: str, family: Family, instrument: str | None) -> None:
        since_us = self.health.heard_until_us(self._now_us())
        self._feed.rejected(self.number, frame, reason, family=family, instrument=instrument, since_us=since_us)
        if family == "book" and instrument is not None:
            self._books[instrument].forget()
            self.resync(instrument)


def _expect(found: str, expected: str) -> None:
    if found != expected:
        raise msgspec.ValidationError(f"it is of {found!r}, but came where {expected!r} belongs")
