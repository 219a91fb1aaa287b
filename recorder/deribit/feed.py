"""What connections tell, and to whom: the one seam between Deribit's protocol and the recorder."""

from collections.abc import Set as AbstractSet
from typing import Literal, Protocol

from recorder.deribit.book import Top
from recorder.deribit.messages import InstrumentData, InstrumentStateData, TickerData, TradeData

Family = Literal["book", "ticker", "trades", "other", "unknown"]


class Feed(Protocol):
    """Receives what connections observe, each with its number; times ending in `_us` are the recorder's clock.

    No method may block or raise: they are called from the sockets' read loops.
    """

    def quote(
        self,
        connection: int,
        instrument: str,
        timestamp_ms: int,
        top: Top,
        change_id: int,
        prev_change_id: int | None,
        received_us: int,
    ) -> None:
        """The top of a book after one notification; `prev_change_id` is None on a snapshot."""

    def ticker(self, connection: int, data: TickerData, received_us: int) -> None:
        """One ticker notification."""

    def trades(self, trades: list[TradeData], received_us: int, since_us: int) -> None:
        """Live trades; all that was sent until `since_us` was heard before."""

    def instrument_created(self, data: InstrumentData, received_us: int) -> None:
        """A new listing."""

    def instrument_state(self, data: InstrumentStateData, received_us: int) -> None:
        """A change of an instrument's state."""

    def book_broken(self, connection: int, instrument: str, first_missing: int, last_missing: int) -> None:
        """A hole in a book's chain: change ids in [first_missing, last_missing] were not seen."""

    def subscribed(
        self,
        connection: int,
        *,
        books: AbstractSet[str],
        tickers: AbstractSet[str],
        refused: AbstractSet[str],
        trades: bool,
        lifecycle: bool,
        exchange_us: int | None,
    ) -> None:
        """A session carries these from now on; `refused` are instruments of which a channel was left out."""

    def left(self, connection: int, instruments: AbstractSet[str], *, trades: bool) -> None:
        """A session gave these up on purpose."""

    def disconnected(
        self, connection: int, *, cause: Literal["disconnect", "silence"], since_us: int, detail: str
    ) -> None:
        """A session that was subscribed is gone; everything was heard that the exchange sent until `since_us`."""

    def rejected(
        self, connection: int, frame: bytes, reason: str, *, family: Family, instrument: str | None, since_us: int
    ) -> None:
        """A frame that could not be understood.

        `family` is book, ticker or trades where the channel is known; `unknown` where it may have been any; and
        `other` where it was no tick.
        """

    def platform(self, facts: dict[str, bool]) -> None:
        """What the exchange says of itself: `maintenance`, `locked <index>`, `public_methods`."""
