"""What a session and the request methods need to know of what is played: a market or a captured file."""

from collections.abc import Callable
from typing import Protocol

from recorder.simulator.trades import Trades

Send = Callable[[str, bytes], None]  # channel, whole message


class Stream(Protocol):
    """What one connection is sent."""

    def subscribe(self, channels: list[str]) -> None:
        """Begin to send channels that were granted and not held, each with what it begins with."""

    def unsubscribe(self, channels: list[str]) -> None:
        """Send these no more."""

    async def run(self) -> None:
        """Send what this connection is owed by itself; may return at once."""

    def close(self) -> None:
        """The connection is gone."""


class Feed(Protocol):
    """Everything about what is played. Texts are JSON as it goes over the wire."""

    @property
    def trades(self) -> Trades:
        """What the history host has."""

    @property
    def main_trades(self) -> Trades:
        """What the main host still has."""

    def grants(self, channel: str) -> bool:
        """Say whether a channel exists here."""

    def open(self, number: int, send: Send) -> Stream:
        """Begin to serve a connection."""

    async def run(self) -> None:
        """Live until cancelled."""

    def has_currency(self, currency: str) -> bool:
        """Say whether options of this currency are traded here."""

    def knows(self, name: str) -> bool:
        """Say whether an option is or was listed."""

    def status(self) -> str:
        """Return what public/status answers."""

    def instruments(self, currency: str) -> list[str]:
        """List the options of a currency, or of `any`."""

    def instrument(self, name: str) -> str | None:
        """Return one option; None if there is none of that name."""

    def summaries(self, currency: str) -> list[str]:
        """Return the rows of get_book_summary_by_currency."""

    def ticker(self, name: str) -> str | None:
        """Return an option's ticker; None if there is none of that name."""

    def order_book(self, name: str, depth: int) -> str | None:
        """Return an option's book with its ticker; None if there is none of that name."""
