"""One connection for as long as the recorder runs: a session after another, each with its own books and chain."""

import asyncio
import contextlib
import re
import time
from collections.abc import Callable, Collection
from collections.abc import Set as AbstractSet
from typing import Any, Literal

from websockets.exceptions import WebSocketException

from recorder.deribit import channels, trouble
from recorder.deribit.asking import Asking
from recorder.deribit.book import Applied, Book
from recorder.deribit.channels import Assignment
from recorder.deribit.feed import Family, Feed
from recorder.deribit.health import Health
from recorder.deribit.messages import UNREADABLE, BookData, PlatformData, TickerData, TradeData
from recorder.deribit.pacer import Pacer
from recorder.deribit.session import SUBSCRIBE_MOST_CHANNELS as MOST_CHANNELS
from recorder.deribit.session import Reply, RpcError, Session, Silent, chunks, open_session
from recorder.deribit.subscriptions import Subscription, subscriptions_of
from recorder.runtime.backoff import Backoff
from recorder.runtime.logging import Logger
from recorder.runtime.redact import redact

# A session that lived this long after its subscriptions were granted, and brought data, was useful.
USEFUL_AFTER_S = 10.0
# A book that has waited this long for a snapshot is subscribed anew. Snapshots of 131 books came within 0.6 s.
SNAPSHOT_PATIENCE_S = 15.0
# A clean stop waits this long for the exchange to confirm that nothing more will come.
LEAVE_TIMEOUT_S = 2.0

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
        self._asking = Asking(self._log)
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
        """How long ago the exchange last proved that it sends what there is; None if nothing does.

        Without a session nothing does, nor does a heartbeat once the channels are left.
        """
        if self._session is None or self._leaving:
            return None
        return time.monotonic() - self._session.last_heartbeat_s

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
                url=redact(self._url),
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
        self._asking.begin()
        self._subscriptions.clear()
        self._books.clear()
        self._snapshot_due_s.clear()
        self._session = session
        self.health.began(self._now_us())
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
        """Bring what is held in line with what is assigned, again and again.

        Raises:
            RpcError, TimeoutError: a call was refused before anything was granted, or the session is ended with it.
        """
        while True:
            self._wake.clear()
            await self._subscribe(session)
            await self._unsubscribe(session)
            await self._resync_books(session)
            try:
                async with asyncio.timeout(self._pause_s()):
                    await self._wake.wait()
            except TimeoutError:
                continue

    def _pause_s(self) -> float:
        """How long nothing is to be asked by itself."""
        now_s = time.monotonic()
        due_s = [due_s for due_s in (*self._snapshot_due_s.values(), self._asking.next_s() or 0.0) if due_s > now_s]
        return min([SNAPSHOT_PATIENCE_S, *(at_s - now_s for at_s in due_s)])

    def _refused(self, reason: RpcError | TimeoutError, channels: Collection[str]) -> float:
        """Let these wait, and keep what is held; return when the next call may be made.

        What was granted flows on: to give up the session for a refusal would lose all of it, hand it to other
        connections, and have these refused in their turn.
        """
        is_over = isinstance(reason, RpcError) and reason.code == trouble.SESSION_TERMINATED
        if is_over or self._useful_at_s is None:
            raise reason
        return self._asking.refused(reason, channels)

    async def _subscribe(self, session: Session) -> None:
        assigned = self.assigned
        asked = self._asking.due(assigned.channels - self._held)
        if not asked:
            return
        new = assigned.instruments - self._books.keys()
        self._follow(assigned)  # before it is asked for: a notification can come before the reply
        granted: set[str] = set()
        exchange_us = None
        for chunk in chunks(asked):
            try:
                some, exchange_us = await session.subscribe(chunk)
            except (RpcError, TimeoutError) as exc:
                self._refused(exc, chunk)
            else:
                granted |= some
                self._take_grant(chunk, some)
        self._log_and_tell(asked, granted, new, exchange_us)

    def _follow(self, assigned: Assignment) -> None:
        """Be ready for what comes on these channels."""
        for name in assigned.instruments:
            self._books.setdefault(name, Book())
        self._subscriptions.update(
            subscriptions_of(
                assigned,
                on_book=self._on_book,
                on_ticker=self._on_ticker,
                on_trades=self._on_trades,
                on_platform=self._on_platform,
                feed=self._feed,
            )
        )

    def _take_grant(self, asked: Collection[str], granted: set[str]) -> None:
        """Hold what was granted, and wait for the snapshots of its books."""
        now_s = time.monotonic()
        self._held |= granted
        self.health.channels = len(self._held)
        if granted and self._useful_at_s is None:
            self._useful_at_s = now_s + USEFUL_AFTER_S
        self._asking.answered(asked)
        if left_out := set(asked) - granted:
            self._asking.left_out(left_out)
        for name, book in self._books.items():
            if book.change_id is None and channels.book(name) in granted:
                self._snapshot_due_s.setdefault(name, now_s + SNAPSHOT_PATIENCE_S)

    def _log_and_tell(
        self, asked: Collection[str], granted: set[str], new: AbstractSet[str], exchange_us: int | None
    ) -> None:
        concerned = {name for c in asked if (name := self._subscriptions[c].instrument) is not None}
        books = {name for name in concerned if channels.book(name) in self._held}
        tickers = {name for name in concerned if channels.ticker(name) in self._held}
        self._feed.subscribed(
            self.number,
            books=books,
            tickers=tickers,
            refused=new - (books & tickers),
            trades=any(channels.is_trades(channel) for channel in granted),
            lifecycle=self._lifecycle_held and any(channels.is_lifecycle(channel) for channel in granted),
            exchange_us=exchange_us,
        )
        if granted:
            self._log.info("subscribed", instruments=len(books & tickers), channels=len(granted))

    @property
    def _lifecycle_held(self) -> bool:
        """Whether all announcements come: some alone do not tell which instruments there are."""
        return all(channel in self._held for channel in self.assigned.wide if channels.is_lifecycle(channel))

    async def _unsubscribe(self, session: Session) -> None:
        """Leave what is not assigned, also where it is not known whether it was granted."""
        extra = self._asking.due(self._subscriptions.keys() - self.assigned.channels)
        if not extra:
            return
        # Not held from here on, whatever the answer: what is assigned again meanwhile is asked for again.
        self._held.difference_update(extra)
        self.health.channels = len(self._held)
        try:
            await session.unsubscribe(extra)
        except (RpcError, TimeoutError) as exc:
            self._refused(exc, extra)
            return
        self._asking.answered(extra)
        names = frozenset(name for c in extra if (name := self._subscriptions.pop(c).instrument) is not None)
        for name in names:
            if channels.book(name) not in self._subscriptions:  # the ticker may be left alone, while that one waits
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
        for name in overdue:
            del self._snapshot_due_s[name]
            self._books[name].forget()
        names = [channels.book(name) for name in overdue]
        try:
            await session.unsubscribe(names, paced=False)
        except (RpcError, TimeoutError) as exc:
            self._snapshot_due_s.update(dict.fromkeys(overdue, self._refused(exc, ())))
            return
        self._held.difference_update(names)  # until they are granted again, now or later: `_subscribe` asks for them
        for name in overdue:
            if (
                change_id := self._books[name].change_id
            ) is not None:  # its snapshot came after all, before it was left
                self._feed.book_broken(self.number, name, change_id + 1, change_id)
                self._books[name].forget()
        try:
            granted, _ = await session.subscribe(names, paced=False)
        except (RpcError, TimeoutError) as exc:
            self._refused(exc, names)
        else:
            self._take_grant(names, granted)

    def _overdue(self) -> list[str]:
        """Return the books that should have had a snapshot by now, as many as one call may carry."""
        now_s = time.monotonic()
        overdue = [
            name
            for name, due_s in self._snapshot_due_s.items()
            if due_s <= now_s and channels.book(name) in self._held
        ]
        if len(overdue) > MOST_CHANNELS:
            self._wake.set()  # the others are next
        return overdue[:MOST_CHANNELS]

    # The hot path: one call of _on_notification for each message.

    def _on_notification(self, channel: str, frame: bytes) -> None:
        now_us = self._now_us()
        known = self._subscriptions.get(channel)
        if known is None:
            self._reject(frame, f"nobody subscribed to {channel!r}", "other", None)
            return
        try:
            data = known.read(channel, frame)
        except UNREADABLE as exc:
            self._reject(frame, str(exc), known.family, known.instrument)
        else:
            known.take(data, now_us)
        health = self.health
        health.messages += 1
        health.last_message_us = now_us
        if self._session is not None and (waited_s := self._session.waited_s) > health.longest_wait_s:
            health.longest_wait_s = waited_s

    def _on_ticker(self, data: TickerData, now_us: int) -> None:
        self.health.lag_us, self.health.late_us = now_us - data.timestamp * 1000, 0
        self._feed.ticker(self.number, data, now_us)

    def _on_book(self, data: BookData, now_us: int) -> None:
        instrument = data.instrument_name
        book = self._books[instrument]
        last = book.change_id
        applied = book.apply(data)
        if applied is Applied.NEW:
            self.health.late_us = now_us - data.timestamp * 1000
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
        self.health.late_us = now_us - max((trade.timestamp * 1000 for trade in trades), default=now_us)

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
