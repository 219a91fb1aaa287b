"""Deribit's messages as typed structs: decoding is validation, and unknown fields are passed over.

Facts: Deribit documentation, "JSON-RPC overview" and the channel pages; where the wire differs from it (a field
that is null, absent, or of another type than documented) the struct accepts both.
"""

from typing import Literal

import msgspec
from msgspec import Raw, Struct

Number = float  # bare JSON numbers in any form: 2700, 2700.0, 8.06e4


class Params(Struct):
    """What a notification carries: the channel and its data, or a heartbeat's type."""

    channel: str = ""
    data: Raw = Raw(b"null")
    type: str = ""


class RpcErrorBody(Struct):
    """An error reply; `data` is an object, a string, or absent."""

    code: int
    message: str = ""
    data: Raw = Raw(b"null")


class Envelope(Struct):
    """Any frame: a reply (id), a notification (method "subscription"), or a heartbeat (method "heartbeat")."""

    id: int | str | None = None
    method: str = ""
    params: Params | None = None
    result: Raw = Raw(b"null")
    error: RpcErrorBody | None = None
    usOut: int | None = None  # noqa: N815 - the wire's name: server send time, microseconds


Action = Literal["new", "change", "delete"]


class BookData(Struct):
    """`book.<instrument>.100ms`: the whole book, or what changed since `prev_change_id`."""

    instrument_name: str
    timestamp: int  # ms of the last change; may be old on a snapshot
    change_id: int
    bids: list[tuple[Action, Number, Number]]
    asks: list[tuple[Action, Number, Number]]
    type: Literal["snapshot", "change"] | None = None  # absent before 2021
    prev_change_id: int | None = None

    @property
    def is_snapshot(self) -> bool:
        """A snapshot has no predecessor; 0 is how a new listing's first change says so."""
        return self.type == "snapshot" or not self.prev_change_id


class Stats(Struct):
    """A ticker's statistics of 24 h; null where nothing traded."""

    volume: Number | None = None


class Greeks(Struct):
    """An option's greeks."""

    delta: Number | None = None
    gamma: Number | None = None
    vega: Number | None = None
    theta: Number | None = None
    rho: Number | None = None


class TickerData(Struct):
    """`ticker.<instrument>.100ms`. An empty side is null, 0.0, or absent; ivs are in percent."""

    instrument_name: str
    timestamp: int  # ms
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


class TradeData(Struct):
    """One trade, live or from history."""

    instrument_name: str
    trade_id: str
    trade_seq: int  # + 1 per instrument
    timestamp: int  # ms; many trades share one
    direction: Literal["buy", "sell"]  # the taker's
    price: Number
    amount: Number
    tick_direction: int | None = None
    mark_price: Number | None = None
    index_price: Number | None = None
    iv: Number | None = None  # percent
    liquidation: str | None = None
    contracts: Number | None = None
    block_trade_id: str | int | None = None
    block_trade_leg_count: int | None = None
    combo_id: str | None = None


class InstrumentData(Struct):
    """A row of `get_instruments`, and the data of `instrument.creation`. Older replies lack fields."""

    instrument_name: str
    kind: str = ""
    state: str | None = None
    is_active: bool | None = None
    option_type: str | None = None
    strike: Number | None = None
    expiration_timestamp: int | None = None  # ms
    creation_timestamp: int | None = None  # ms
    tick_size: Number | None = None
    contract_size: Number | None = None
    min_trade_amount: Number | None = None
    quote_currency: str | None = None
    settlement_currency: str | None = None
    settlement_period: str | None = None
    price_index: str | None = None
    instrument_id: int | None = None
    timestamp: int | None = None  # ms; only in instrument.creation


class InstrumentStateData(Struct):
    """`instrument.state.<kind>.<currency>`."""

    instrument_name: str
    state: str
    timestamp: int  # ms


class BookSummary(Struct):
    """A row of `get_book_summary_by_currency`: the only reply that has everyone's open interest."""

    instrument_name: str
    open_interest: Number | None = None


decode_envelope = msgspec.json.Decoder(Envelope).decode
decode_book = msgspec.json.Decoder(BookData).decode
decode_ticker = msgspec.json.Decoder(TickerData).decode
decode_trades = msgspec.json.Decoder(list[TradeData]).decode
decode_instruments = msgspec.json.Decoder(list[InstrumentData]).decode
decode_instrument = msgspec.json.Decoder(InstrumentData).decode
decode_instrument_state = msgspec.json.Decoder(InstrumentStateData).decode
decode_summaries = msgspec.json.Decoder(list[BookSummary]).decode
decode_names = msgspec.json.Decoder(list[str]).decode
