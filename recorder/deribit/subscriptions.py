"""What a channel's messages are, and who takes them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from recorder.deribit import channels
from recorder.deribit.channels import Assignment
from recorder.deribit.feed import Family, Feed
from recorder.deribit.messages import (
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


class Subscription(NamedTuple):
    """What is done with the messages of one channel."""

    family: Family
    instrument: str | None  # None: the channel is of many
    decode: Callable[[bytes], Notification[Any]]
    take: Callable[[Any, int], None]  # the data, and when it was received

    def read(self, channel: str, frame: bytes) -> Any:
        """Return the data of a message.

        Raises:
            UNREADABLE: it is not one of this channel.
        """
        params = self.decode(frame).params
        _expect(params.channel, channel)
        if self.instrument is not None:
            _expect(params.data.instrument_name, self.instrument)
        return params.data


def subscriptions_of(
    assignment: Assignment,
    *,
    on_book: Callable[[BookData, int], None],
    on_ticker: Callable[[TickerData, int], None],
    on_trades: Callable[[list[TradeData], int], None],
    on_platform: Callable[[PlatformData, int], None],
    feed: Feed,
) -> dict[str, Subscription]:
    """Return the subscription of each channel that is assigned."""
    found: dict[str, Subscription] = {}
    for name in assignment.instruments:
        found[channels.book(name)] = Subscription("book", name, decode_book, on_book)
        found[channels.ticker(name)] = Subscription("ticker", name, decode_ticker, on_ticker)
    for channel in assignment.wide:
        if channels.is_trades(channel):
            found[channel] = Subscription("trades", None, decode_trades, on_trades)
        elif channels.is_state(channel):
            found[channel] = Subscription("other", None, decode_state, feed.instrument_state)
        elif channels.is_creation(channel):
            found[channel] = Subscription("other", None, decode_created, feed.instrument_created)
        else:
            found[channel] = Subscription("other", None, decode_platform, on_platform)
    return found


def _expect(found: str, expected: str) -> None:
    if found != expected:
        raise msgspec.ValidationError(f"it is of {found!r}, but came where {expected!r} belongs")
