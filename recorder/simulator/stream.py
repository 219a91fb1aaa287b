"""What a connection is sent of a market: whatever came together in its windows, each book in a chain of its own."""

import re
from collections.abc import Callable, Iterable

from recorder.simulator import wire
from recorder.simulator.book import Change, merge
from recorder.simulator.feed import Send
from recorder.simulator.market import Market, Step
from recorder.simulator.option import Option
from recorder.simulator.trades import Trade

BY_NAME = re.compile(r"^(book|ticker|trades)\.([^.]+)\.100ms$")


class Window:
    """What happened within one window, put together once for all that are sent it."""

    def __init__(self, steps: Iterable[Step], market: Market) -> None:
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

    def __init__(self, market: Market, send: Send, *, handed: set[int], close: Callable[[], object]) -> None:
        """Serve a connection.

        Args:
            market: What it is sent of.
            send: Called with each channel and message.
            handed: Gets the number of each trade that is sent.
            close: Called once the connection is gone.
        """
        self._market, self._send, self._handed, self._close = market, send, handed, close
        self._books: dict[str, int] = {}  # by instrument: the change_id that was sent last
        self._tickers: dict[str, int] = {}  # by instrument: the version that was sent last
        self._trades: set[str] = set()  # instruments
        self._wide: set[str] = set()

    def subscribe(self, channels: list[str]) -> None:
        """Send a snapshot for each book, and each ticker twice, as Deribit was seen to do."""
        for channel in channels:
            found = BY_NAME.match(channel)
            option = self._market.options.get(found[2]) if found else None
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
            found = BY_NAME.match(channel)
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
        self._close()

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
        wide = f"trades.option.{self._market.currency}.100ms"
        if wide in self._wide:
            self._send_array(wide, trades)
        if self._trades:
            by_name: dict[str, list[Trade]] = {}
            for trade in trades:
                by_name.setdefault(trade.instrument, []).append(trade)
            for name in by_name.keys() & self._trades:
                self._send_array(f"trades.{name}.100ms", by_name[name])

    def _send_array(self, channel: str, trades: list[Trade]) -> None:
        self._handed.update(trade.number for trade in trades)
        data = f"[{','.join(map(wire.trade, trades))}]"
        self._send(channel, wire.notification(channel, data, trades[-1].number))
