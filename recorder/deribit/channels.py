"""Channels: their names, and which of them a connection is to carry.

100ms is the finest interval that an unauthenticated client gets.
"""

from dataclasses import dataclass

INTERVAL = "100ms"


def book(instrument: str) -> str:
    """Full-depth book of one instrument."""
    return f"book.{instrument}.{INTERVAL}"


def ticker(instrument: str) -> str:
    """Ticker of one instrument."""
    return f"ticker.{instrument}.{INTERVAL}"


def trades(kind: str, currency: str) -> str:
    """Trades of every instrument of a kind and currency, new listings included."""
    return f"trades.{kind}.{currency}.{INTERVAL}"


def instrument_state(kind: str, currency: str) -> str:
    """Changes of state of every instrument of a kind and currency."""
    return f"instrument.state.{kind}.{currency}"


def instrument_creation(kind: str, currency: str) -> str:
    """New listings of a kind and currency."""
    return f"instrument.creation.{kind}.{currency}"


PLATFORM_STATE = "platform_state"
PUBLIC_METHODS_STATE = "platform_state.public_methods_state"


def is_trades(channel: str) -> bool:
    """Whether a channel carries trades."""
    return channel.startswith("trades.")


def is_state(channel: str) -> bool:
    """Whether a channel carries changes of instruments' states."""
    return channel.startswith("instrument.state.")


def is_creation(channel: str) -> bool:
    """Whether a channel carries new listings."""
    return channel.startswith("instrument.creation.")


def is_lifecycle(channel: str) -> bool:
    """Whether a channel tells which instruments there are."""
    return is_state(channel) or is_creation(channel)


@dataclass(frozen=True)
class Assignment:
    """What a connection is to carry: book and ticker of each instrument, and channels that are of many."""

    instruments: frozenset[str] = frozenset()
    wide: frozenset[str] = frozenset()

    @property
    def channels(self) -> frozenset[str]:
        """Every channel of it."""
        books = map(book, self.instruments)
        tickers = map(ticker, self.instruments)
        return frozenset((*self.wide, *books, *tickers))
