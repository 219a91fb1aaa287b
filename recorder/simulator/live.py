"""The market on the wire: each connection is sent what changed within its own 100 ms windows.

Time is cut into fifths of a window. After each fifth the market moves, and the connections whose phase it is
are sent what came together since their last one; so two connections cut their windows at different moments,
and all of it follows one clock. If the process is late, the fifths are made up for: the rate holds.
"""

import asyncio
import re
import time
from collections import deque
from collections.abc import Iterable
from functools import partial

from recorder.simulator import wire
from recorder.simulator.feed import Send, Stream
from recorder.simulator.journal import Journal
from recorder.simulator.market import US_PER_S, Market, Step
from recorder.simulator.orders import Orders
from recorder.simulator.stream import BY_NAME, LiveStream, Window
from recorder.simulator.trades import Trades

PHASES = 5
_WINDOW_US = 100_000
# Windows this full leave room for events that fall into one window and are sent as one message.
_FULLEST_SHARE = 0.5
_SHORTEST_WINDOW_US = 5_000
_LATEST_S = 2.0  # what is later than this is skipped: the machine slept
_SUMMARY_S = 2.0  # get_book_summary_by_currency is a snapshot of about this age


def window_us(messages_per_s: float, instruments: int) -> float:
    """Return how long the windows are: 100 ms, or as short as the rate needs."""
    fullest = _FULLEST_SHARE * 2 * instruments / messages_per_s * US_PER_S
    return min(_WINDOW_US, max(_SHORTEST_WINDOW_US, fullest))


class Live:
    """A `Feed` of a seeded market."""

    def __init__(
        self,
        *,
        currency: str,
        instruments: int,
        messages_per_s: float,
        seed: int,
        journal: Journal,
        main_keeps_s: float = 0.0,
    ) -> None:
        window = window_us(messages_per_s, instruments)
        self.market = Market(
            currency=currency,
            count=instruments,
            seed=seed,
            now_us=time.time_ns() // 1000,
            messages_per_s=messages_per_s,
            window_us=window,
            main_keeps_s=main_keeps_s,
        )
        self.orders = Orders(self.market, journal, seed=seed)
        self._step_us = window / PHASES
        self._recent: deque[Step] = deque(maxlen=PHASES)
        self._streams: dict[int, LiveStream] = {}
        self._handed: set[int] = set()  # the numbers of recent trades that were given to a connection
        self._journal = journal
        self._published: tuple[float, list[str]] = (0.0, [])
        kinds, currencies = r"(option|any)", f"({currency}|any)"
        self._wide = re.compile(
            rf"^(trades\.option\.{currency}\.100ms|instrument\.(state|creation)\.{kinds}\.{currencies}"
            rf"|platform_state|platform_state\.public_methods_state|deribit_price_index\.{currency.lower()}_usd)$"
        )

    @property
    def trades(self) -> Trades:
        """What the history host has."""
        return self.market.hosts.history

    @property
    def main_trades(self) -> Trades:
        """What the main host has."""
        return self.market.hosts.main(self.market.now_us // 1000)

    def grants(self, channel: str) -> bool:
        """Say whether a channel exists: of a listed option, or one of the wide ones."""
        found = BY_NAME.match(channel)
        return (found is not None and found[2] in self.market.options) or bool(self._wide.match(channel))

    def open(self, number: int, send: Send) -> Stream:
        """Begin to serve a connection."""
        stream = LiveStream(self.market, send, handed=self._handed, close=partial(self._streams.pop, number, None))
        self._streams[number] = stream
        return stream

    async def run(self) -> None:
        """Let time pass until cancelled."""
        try:
            await self._live()
        finally:
            self._tell_unsent((*self._recent, self.orders.take()))

    async def _live(self) -> None:
        loop = asyncio.get_running_loop()
        begun_s, begun_us, count, turn = loop.time(), time.time_ns() // 1000, 0, 0
        while True:
            count += 1
            wait_s = begun_s + count * self._step_us / US_PER_S - loop.time()
            if wait_s < -_LATEST_S:
                begun_s, begun_us, count = loop.time(), time.time_ns() // 1000, 0
                continue
            await asyncio.sleep(max(0.0, wait_s))
            turn += 1  # goes on, so that no connection's window is cut twice or left out
            self.advance(begun_us + int(count * self._step_us), turn % PHASES)

    def advance(self, now_us: int, phase: int) -> None:
        """Move the market to `now_us`, and send the connections of this phase what came since their last window."""
        step = self.orders.take()
        self.market.step(now_us, step)
        self.orders.keep_back(step)
        for event, options in (("delivered", step.states), ("listed", step.created)):
            if options:
                self._journal.event(event, instruments=[option.contract.name for option in options])
        if len(self._recent) == PHASES:  # every connection has had its window over the oldest
            self._tell_unsent((self._recent[0],))
        self._recent.append(step)
        streams = [stream for number, stream in self._streams.items() if number % PHASES == phase]
        if streams:
            window = Window(self._recent, self.market)
            for stream in streams:
                stream.send_window(window)

    def _tell_unsent(self, steps: Iterable[Step]) -> None:
        for trade in (trade for step in steps for trade in step.trades):
            if trade.number in self._handed:
                self._handed.remove(trade.number)
            else:
                self._journal.unsent_trade(wire.trade(trade).encode())

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

    def has_currency(self, currency: str) -> bool:
        """Say whether options of this currency are traded here."""
        return currency == self.market.currency

    def knows(self, name: str) -> bool:
        """Say whether an option is or was listed."""
        return name in self.market.names

    def status(self) -> str:
        """Return what public/status answers."""
        if not self.market.locked:
            return '{"locked":"false"}'
        return f'{{"locked":"partial","locked_indices":["{self.market.currency.lower()}_usd"]}}'
