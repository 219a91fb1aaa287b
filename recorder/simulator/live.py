"""The market on the wire: each connection is sent what changed within its own 100 ms windows.

Time is cut into fifths of a window. After each fifth the market moves, and the connections whose phase it is
are sent what came together since their last one; so two connections cut their windows at different moments,
and all of it follows one clock. If the process is late, the fifths are made up for: the rate holds.
"""

import asyncio
import re
import time
from collections import deque

from recorder.simulator import wire
from recorder.simulator.book import Change, merge
from recorder.simulator.feed import Send, Stream
from recorder.simulator.journal import Journal
from recorder.simulator.market import US_PER_S, Market, Step
from recorder.simulator.option import Option
from recorder.simulator.trades import Trade, Trades

PHASES = 5
_WINDOW_US = 100_000
# Windows this full leave room for events that fall into one window and are sent as one message.
_FULLEST_SHARE = 0.5
_SHORTEST_WINDOW_US = 5_000
_LATEST_S = 2.0  # what is later than this is skipped: the machine slept
_SUMMARY_S = 2.0  # get_book_summary_by_currency is a snapshot of about this age
_BY_NAME = re.compile(r"^(book|ticker|trades)\.([^.]+)\.100ms$")


def window_us(messages_per_s: float, instruments: int) -> float:
    """Return how long the windows are: 100 ms, or as short as the rate needs."""
    fullest = _FULLEST_SHARE * 2 * instruments / messages_per_s * US_PER_S
    return min(_WINDOW_US, max(_SHORTEST_WINDOW_US, fullest))


class Live:
    """A `Feed` of a seeded market."""

    def __init__(
        self, *, currency: str, instruments: int, messages_per_s: float, seed: int, journal: Journal
    ) -> None:
        window = window_us(messages_per_s, instruments)
        self.market = Market(
            currency=currency,
            count=instruments,
            seed=seed,
            now_us=time.time_ns() // 1000,
            messages_per_s=messages_per_s,
            window_us=window,
        )
        self._step_us = window / PHASES
        self._recent: deque[Step] = deque(maxlen=PHASES)
        self._streams: dict[int, LiveStream] = {}
        self._next = Step()  # takes what is ordered between two steps
        self._trades_to_skip = 0
        self._journal = journal
        self._published: tuple[float, list[str]] = (0.0, [])
        kinds, currencies = r"(option|any)", f"({currency}|any)"
        self._wide = re.compile(
            rf"^(trades\.option\.{currency}\.100ms|instrument\.(state|creation)\.{kinds}\.{currencies}"
            rf"|platform_state|platform_state\.public_methods_state|deribit_price_index\.{currency.lower()}_usd)$"
        )

    @property
    def trades(self) -> Trades:
        """The history of trades."""
        return self.market.trades

    def grants(self, channel: str) -> bool:
        """Say whether a channel exists: of a listed option, or one of the wide ones."""
        found = _BY_NAME.match(channel)
        return (found is not None and found[2] in self.market.options) or bool(self._wide.match(channel))

    def open(self, number: int, send: Send) -> Stream:
        """Begin to serve a connection."""
        self._streams[number] = LiveStream(number, self, send)
        return self._streams[number]

    def closed(self, number: int) -> None:
        """Forget a connection."""
        del self._streams[number]

    async def run(self) -> None:
        """Let time pass until cancelled."""
        loop = asyncio.get_running_loop()
        begun_s, begun_us, count = loop.time(), time.time_ns() // 1000, 0
        while True:
            count += 1
            wait_s = begun_s + count * self._step_us / US_PER_S - loop.time()
            if wait_s < -_LATEST_S:
                begun_s, begun_us, count = loop.time(), time.time_ns() // 1000, 0
                continue
            await asyncio.sleep(max(0.0, wait_s))
            self.advance(begun_us + int(count * self._step_us), count % PHASES)

    def advance(self, now_us: int, phase: int) -> None:
        """Move the market to `now_us`, and send the connections of this phase what came since their last window."""
        step, self._next = self._next, Step()
        self.market.step(now_us, step)
        while self._trades_to_skip and step.trades:
            self._trades_to_skip -= 1
            self._journal.event("fault", wire.trade(step.trades.pop(0)).encode(), kind="trade_gap")
        self._recent.append(step)
        streams = [stream for number, stream in self._streams.items() if number % PHASES == phase]
        if streams:
            window = Window(self._recent, self.market)
            for stream in streams:
                stream.send_window(window)

    # Queries

    def instruments(self, currency: str) -> list[str]:
        """List the options of a currency, or of `any`."""
        if currency not in (self.market.currency, "any"):
            return []
        return [wire.instrument(option.contract, option.state) for option in self.market.options.values()]

    def instrument(self, name: str) -> str | None:
        """Return one option."""
        option = self.market.options.get(name)
        return wire.instrument(option.contract, option.state) if option else None

    def summaries(self, currency: str) -> list[str]:
        """Return a row for each option, as of up to two seconds ago."""
        if currency != self.market.currency:
            return []
        now_s = time.monotonic()
        if not self._published[1] or now_s - self._published[0] > _SUMMARY_S:
            now_ms = self.market.now_us // 1000
            rows = [wire.summary(option, now_ms) for option in self.market.options.values()]
            self._published = now_s, rows
        return self._published[1]

    def ticker(self, name: str) -> str | None:
        """Return an option's ticker."""
        option = self.market.options.get(name)
        return wire.ticker(option) if option else None

    def order_book(self, name: str, depth: int) -> str | None:
        """Return an option's book with its ticker."""
        option = self.market.options.get(name)
        return wire.order_book(option, depth) if option else None

    # To order

    def skip_trade(self) -> None:
        """Keep the next trade from everyone but the history."""
        self._trades_to_skip += 1

    def print_trades(self, name: str, count: int) -> None:
        """Let an option trade so many times within one millisecond."""
        self.market.print_trades(self._next, self.market.options[name], count)

    def list_options(self, count: int) -> list[str]:
        """List new options and return their names."""
        return self.market.list_more(self._next, count)

    def expire_options(self, names: list[str]) -> None:
        """Let options be delivered now."""
        self.market.expire(self._next, [self.market.options[name] for name in names])


class Window:
    """What happened within one window, put together once for all that are sent it."""

    def __init__(self, steps: deque[Step], market: Market) -> None:
        self.changes: dict[Option, list[Change]] = {}
        self.tickers: dict[Option, None] = {}
        self.trades: list[Trade] = []
        self.wide: list[tuple[str, str]] = []
        for step in steps:
            for option, change in step.changes:
                self.changes.setdefault(option, []).append(change)
            self.tickers.update(step.tickers)
            self.trades += step.trades
            self._add_notices(step, market)

    def _add_notices(self, step: Step, market: Market) -> None:
        now_ms, currency = market.now_us // 1000, market.currency
        if step.index_due:
            name = f"{currency.lower()}_usd"
            data = f'{{"timestamp":{now_ms},"price":{wire.number(round(market.index, 2))},"index_name":"{name}"}}'
            self.wide.append((f"deribit_price_index.{name}", data))
        if step.platform_due:
            self.wide.append(("platform_state", '{"locked":false,"price_index":"alt_usdc","reasons":[]}'))
        for option in step.states:
            data = (
                f'{{"instrument_name":"{option.contract.name}","state":"{option.state}",'
                f'"timestamp":{option.timestamp_ms}}}'
            )
            self._add_for_any("state", data, currency)
        for option in step.created:
            data = wire.instrument(option.contract, option.state, option.timestamp_ms)
            self._add_for_any("creation", data, currency)

    def _add_for_any(self, topic: str, data: str, currency: str) -> None:
        for kind in ("option", "any"):
            self.wide += [(f"instrument.{topic}.{kind}.{name}", data) for name in (currency, "any")]


class LiveStream:
    """What one connection is sent of the market, each book in its own unbroken chain."""

    def __init__(self, number: int, live: Live, send: Send) -> None:
        self._number, self._live, self._send = number, live, send
        self._books: dict[str, int] = {}  # by instrument: the change_id that was sent last
        self._tickers: dict[str, int] = {}  # by instrument: the version that was sent last
        self._trades: set[str] = set()  # instruments
        self._wide: set[str] = set()

    def subscribe(self, channels: list[str]) -> None:
        """Send a snapshot for each book, and each ticker twice, as Deribit was seen to do."""
        for channel in channels:
            found = _BY_NAME.match(channel)
            option = self._live.market.options.get(found[2]) if found else None
            if found is None:
                self._wide.add(channel)
            elif option is None:  # delivered in this very moment
                continue
            elif found[1] == "book":
                self._books[option.contract.name] = option.book.change_id
                self._send(channel, wire.notification(channel, wire.book_snapshot(option), option.version))
            elif found[1] == "ticker":
                self._tickers[option.contract.name] = option.version
                message = wire.notification(channel, wire.ticker(option), option.version)
                self._send(channel, message)
                self._send(channel, message)
            else:
                self._trades.add(found[2])

    def unsubscribe(self, channels: list[str]) -> None:
        """Send these no more."""
        for channel in channels:
            found = _BY_NAME.match(channel)
            if found is None:
                self._wide.discard(channel)
            elif found[1] == "trades":
                self._trades.discard(found[2])
            else:
                (self._books if found[1] == "book" else self._tickers).pop(found[2], None)

    async def run(self) -> None:
        """Nothing: the feed's one clock drives every stream."""

    def close(self) -> None:
        """Forget the connection."""
        self._live.closed(self._number)

    def send_window(self, window: Window) -> None:
        """Send what one window brought for the channels that are held."""
        for option, changes in window.changes.items():
            sent_id = self._books.get(option.contract.name)
            if sent_id is not None:
                self._send_changes(option, [change for change in changes if change.change_id > sent_id], sent_id)
        for option in window.tickers:
            if self._tickers.get(option.contract.name, option.version) != option.version:
                self._tickers[option.contract.name] = option.version
                channel = f"ticker.{option.contract.name}.100ms"
                self._send(channel, wire.notification(channel, wire.ticker(option), option.version))
        if window.trades:
            self._send_trades(window.trades)
        for channel, data in window.wide:
            if channel in self._wide:
                self._send(channel, wire.notification(channel, data))

    def _send_changes(self, option: Option, changes: list[Change], sent_id: int) -> None:
        if changes:
            change = merge(changes)
            self._books[option.contract.name] = change.change_id
            channel = f"book.{option.contract.name}.100ms"
            data = wire.book_change(option, change, sent_id)
            self._send(channel, wire.notification(channel, data, change.change_id))

    def _send_trades(self, trades: list[Trade]) -> None:
        wide = f"trades.option.{self._live.market.currency}.100ms"
        if wide in self._wide:
            self._send(wide, wire.notification(wide, _array(trades), trades[-1].number))
        if self._trades:
            by_name: dict[str, list[Trade]] = {}
            for trade in trades:
                by_name.setdefault(trade.instrument, []).append(trade)
            for name in by_name.keys() & self._trades:
                channel = f"trades.{name}.100ms"
                self._send(channel, wire.notification(channel, _array(by_name[name]), by_name[name][-1].number))


def _array(trades: list[Trade]) -> str:
    return f"[{','.join(map(wire.trade, trades))}]"
