"""Deribit's messages as typed structs: decoding is validation, and unknown fields are passed over.

Facts: Deribit documentation, "JSON-RPC overview" and the channel pages; where the wire differs from it (a field
that is null, absent, or of another type than documented) the struct accepts both. `gc=False`: these hold no cycles,
and thousands come each second.
"""

from collections.abc import Callable
from typing import Annotated, Any, Generic, Literal, TypeVar

import msgspec
from msgspec import Meta, Raw, Struct

Number = float  # bare JSON numbers in any form: 2700, 2700.0, 8.06e4
# What does not fit into a column is refused here, with its reason, rather than where rows become columns.
Int64 = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Int32 = Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)]
Milliseconds = Annotated[int, Meta(ge=0, le=253_402_300_799_999)]  # since 1970, up to the year 9999

# What a decoder raises on a frame that is not what it should be: UnicodeDecodeError where its text is no UTF-8, which
# websockets does not check in frames that it hands on as bytes.
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError)


class Params(Struct, gc=False):
    """What a notification carries: a channel, or a heartbeat's type."""

    channel: str = ""
    type: str = ""


T = TypeVar("T")


class NotificationParams(Struct, Generic[T], gc=False):
    """A channel and its data, typed."""

    channel: str
    data: T


class Notification(Struct, Generic[T], gc=False):
    """A whole notification of a known channel, decoded in one pass."""

    method: Literal["subscription"]
    params: NotificationParams[T]


class RpcErrorBody(Struct, gc=False):
    """An error reply; `data` is an object, a string, or absent."""

    code: int
    message: str = ""
    data: Raw = Raw(b"null")


class Envelope(Struct, gc=False):
    """Any frame: a reply (id), a notification (method "subscription"), or a heartbeat (method "heartbeat")."""

    id: int | str | None = None
    method: str = ""
    params: Params | None = None
    result: Raw = Raw(b"null")
    error: RpcErrorBody | None = None
    usOut: int | None = None  # noqa: N815 - the wire's name: server send time, microseconds


Level = tuple[Literal["new", "change", "delete"], Number, Number]


class BookData(Struct, gc=False):
    """`book.<instrument>.100ms`: the whole book, or what changed since `prev_change_id`."""

    instrument_name: str
    timestamp: Milliseconds  # ms of the last change; may be old on a snapshot
    change_id: Int64
    bids: list[Level] | None = None  # action, price, amount; nothing changed, or an empty side, may be left out
    asks: list[Level] | None = None
    type: Literal["snapshot", "change"] | None = None  # absent before 2021
    prev_change_id: Int64 | None = None

    @property
    def is_snapshot(self) -> bool:
        """A snapshot has no predecessor; 0 is how a new listing's first change says so."""
        return self.type == "snapshot" or not self.prev_change_id


class Stats(Struct, gc=False):
    """A ticker's statistics of 24 h; null where nothing traded."""

    volume: Number | None = None


class Greeks(Struct, gc=False):
    """An option's greeks."""

    delta: Number | None = None
    gamma: Number | None = None
    vega: Number | None = None
    theta: Number | None = None
    rho: Number | None = None


class TickerData(Struct, gc=False):
    """`ticker.<instrument>.100ms`. An empty side is null, 0.0, or absent; ivs are in percent."""

    instrument_name: str
    timestamp: Milliseconds  # ms
    state: str | None = None
    stats: Stats | None = None
    greeks: Greeks | None = None
    underlying_price: Number | None = None
    underlying_index: str | None = None
    index_price: Number | None = None
    mark_price: Number | None = None
    mark_iv: Number | None = None
    bid_iv: Number | None = None
    ask_iv: Number | None = None
    best_bid_price: Number | None = None
    best_bid_amount: Number | None = None
    best_ask_price: Number | None = None
    best_ask_amount: Number | None = None
    open_interest: Number | None = None
    last_price: Number | None = None
    settlement_price: Number | None = None
    interest_rate: Number | None = None


class TradeData(Struct, gc=False):
    """One trade, live or from history."""

    instrument_name: str
    trade_id: str
    trade_seq: Int64  # + 1 per instrument
    timestamp: Milliseconds  # ms; many trades share one
    direction: Literal["buy", "sell"]  # the taker's
    price: Number
    amount: Number
    tick_direction: Int32 | None = None
    mark_price: Number | None = None
    index_price: Number | None = None
    iv: Number | None = None  # percent
    liquidation: str | None = None
    contracts: Number | None = None
    block_trade_id: str | int | None = None
    block_trade_leg_count: Int32 | None = None
    combo_id: str | None = None


class InstrumentData(Struct, gc=False):
    """A row of `get_instruments`, and the data of `instrument.creation`. Older replies lack fields."""

    instrument_name: str
    kind: str = ""
    state: str | None = None
    is_active: bool | None = None
    option_type: str | None = None
    strike: Number | None = None
    expiration_timestamp: Milliseconds | None = None  # ms
    creation_timestamp: Milliseconds | None = None  # ms
    tick_size: Number | None = None
    contract_size: Number | None = None
    min_trade_amount: Number | None = None
    quote_currency: str | None = None
    settlement_currency: str | None = None
    settlement_period: str | None = None
    price_index: str | None = None
    instrument_id: Int64 | None = None
    timestamp: Milliseconds | None = None  # ms; only in instrument.creation


class InstrumentStateData(Struct, gc=False):
    """`instrument.state.<kind>.<currency>`."""

    instrument_name: str
    state: str
    timestamp: Milliseconds  # ms


class PlatformData(Struct, gc=False):
    """`platform_state` and `platform_state.public_methods_state`; both say only what changed, over and over."""

    price_index: str | None = None
    locked: bool | str | None = None  # documented as text, seen as a bool
    maintenance: bool | None = None
    allow_unauthenticated_public_requests: bool | None = None

    def facts(self) -> dict[str, bool]:
        """Return what is said, by name."""
        found = {
            "maintenance": self.maintenance,
            "public_methods": self.allow_unauthenticated_public_requests,
            f"locked {self.price_index or 'all'}": None if self.locked is None else self.locked in (True, "true"),
        }
        return {name: value for name, value in found.items() if value is not None}


class BookSummary(Struct, gc=False):
    """A row of `get_book_summary_by_currency`: the only reply that has everyone's open interest."""

    instrument_name: str
    open_interest: Number | None = None


def _notification_decoder(data: Any) -> Callable[[bytes], Notification[Any]]:
    return msgspec.json.Decoder(Notification[data]).decode


decode_envelope = msgspec.json.Decoder(Envelope).decode
decode_book: Callable[[bytes], Notification[BookData]] = _notification_decoder(BookData)
decode_ticker: Callable[[bytes], Notification[TickerData]] = _notification_decoder(TickerData)
decode_trades: Callable[[bytes], Notification[list[TradeData]]] = _notification_decoder(list[TradeData])
decode_created: Callable[[bytes], Notification[InstrumentData]] = _notification_decoder(InstrumentData)
decode_state: Callable[[bytes], Notification[InstrumentStateData]] = _notification_decoder(InstrumentStateData)
decode_platform: Callable[[bytes], Notification[PlatformData]] = _notification_decoder(PlatformData)
decode_instruments = msgspec.json.Decoder(list[InstrumentData]).decode
decode_summaries = msgspec.json.Decoder(list[BookSummary]).decode
decode_names = msgspec.json.Decoder(list[str]).decode

_CHANNEL_KEY = b'"channel":"'
_CHANNEL_WITHIN_BYTES = 160


def peek_channel(frame: bytes) -> str | None:
    """Guess a notification's channel without decoding it; None if it does not lie where it usually does.

    What is decoded by it states its own channel, which is to be compared.
    """
    start = frame.find(_CHANNEL_KEY, 0, _CHANNEL_WITHIN_BYTES)
    if start < 0:
        return None
    start += len(_CHANNEL_KEY)
    end = frame.find(b'"', start, start + _CHANNEL_WITHIN_BYTES)
    return frame[start:end].decode("utf-8", "replace") if end > 0 else None
