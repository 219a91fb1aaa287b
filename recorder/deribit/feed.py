"""What a connection tells, and to whom: the one seam between Deribit's protocol and the recorder."""

from collections.abc import Set as AbstractSet
from typing import Literal, Protocol

from recorder.deribit.book import Top
from recorder.deribit.messages import InstrumentData, InstrumentStateData, TickerData, TradeData


class Feed(Protocol):
    """Receives what connections observe; times ending in `_us` are the recorder's clock.

    No method may block or raise: they are called from the socket's read loop.
    """

    def quote(
        self,
        instrument: str,
        timestamp_ms: int,
        top: Top,
        change_id: int,
        prev_change_id: int | None,
        received_us: int,
    ) -> None:
        """The top of a book after one notification; `prev_change_id` is None on a snapshot."""

    def ticker(self, data: TickerData, received_us: int) -> None:
        """One ticker notification."""

    def trades(self, trades: list[TradeData], received_us: int, since_us: int) -> None:
        """Live trades; `since_us` is when the connection's message before came."""

    def instrument_created(self, data: InstrumentData, received_us: int) -> None:
        """A new listing."""

    def instrument_state(self, data: InstrumentStateData, received_us: int) -> None:
        """A change of an instrument's state."""

    def book_broken(self, instrument: str, since_us: int, first_missing: int, last_missing: int) -> None:
        """A hole in a book's chain: change ids in [first_missing, last_missing] were not seen."""

    def subscribed(
        self, *, books: AbstractSet[str], tickers: AbstractSet[str], trades: bool, exchange_us: int | None
    ) -> None:
        """A session carries these from now on."""

    def disconnected(self, *, cause: Literal["disconnect", "silence"], since_us: int, detail: str) -> None:
        """A session that was subscribed is gone; `since_us` is when its last message came."""

    def rejected(self, frame: bytes, reason: str, *, family: str, instrument: str | None, since_us: int) -> None:
        """A frame that could not be understood.

        `family` is book, ticker or trades where the channel is known; `unknown` where it may have been any; and
        `other` where it was no tick.
        """
