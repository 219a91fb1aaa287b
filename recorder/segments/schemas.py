"""The five kinds of stream and their columns; they never change within one format version."""

import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

import pyarrow as pa

GAPS_STREAM = "data_gaps"

Row = tuple[Any, ...]  # values in column order; times as integer microseconds since 1970

_TIME = pa.timestamp("us", tz="UTC")
_F, _I, _N, _S, _B = pa.float64(), pa.int64(), pa.int32(), pa.string(), pa.bool_()


def _schema(**columns: pa.DataType) -> pa.Schema:
    first = [("timestamp", _TIME), ("instrument", _S), ("received_at", _TIME)]
    return pa.schema([*first, *columns.items()])


# Nothing is declared non-null: what a stream lacks is null, and later columns must be nullable anyway.
# Instruments are plain strings: polars refuses delta dictionaries.
SCHEMAS: Mapping[str, pa.Schema] = MappingProxyType({
    "gaps": _schema(
        gap_id=_S, state_no=_N, stream=_S, cause=_S, status=_S, started_at=_TIME, ended_at=_TIME,
        first_missing=_I, last_missing=_I, detail=_S,
    ),
    "instruments": _schema(
        option_type=_S, strike=_F, expiration_timestamp=_TIME, creation_timestamp=_TIME, tick_size=_F,
        contract_size=_F, min_trade_amount=_F, quote_currency=_S, settlement_currency=_S,
        settlement_period=_S, price_index=_S, instrument_id=_I, state=_S, recorded=_B,
    ),
    "trades": _schema(
        trade_id=_S, trade_seq=_I, price=_F, size=_F, side=_S, iv=_F, underlying_price=_F, index_price=_F,
        mark_price=_F, tick_direction=_N, liquidation=_S, contracts=_F, block_trade_id=_S,
        block_trade_leg_count=_N, combo_id=_S, source=_S,
    ),
    "tickers": _schema(
        underlying_price=_F, underlying_index=_S, index_price=_F, mark_price=_F, mark_iv=_F, bid_iv=_F,
        ask_iv=_F, bid_price=_F, bid_size=_F, ask_price=_F, ask_size=_F, open_interest=_F, delta=_F, gamma=_F,
        vega=_F, theta=_F, rho=_F, last_price=_F, settlement_price=_F, interest_rate=_F, volume=_F, state=_S,
    ),
    "quotes": _schema(
        bid_price=_F, bid_size=_F, ask_price=_F, ask_size=_F, underlying_price=_F, mark_price=_F,
        change_id=_I, prev_change_id=_I,
    ),
})  # fmt: skip

# The order of a flush round: no row after a hole reaches the disk before the row that names the hole.
FLUSH_ORDER = ("gaps", "instruments", "trades", "tickers", "quotes")

_STREAM_NAME = re.compile(r"^[a-z0-9_]{1,64}_(quotes|trades|tickers|instruments)$")


def stream_name(currency: str, kind: str, stream_kind: str) -> str:
    """Return a stream's full name: `eth_option_quotes`, or `data_gaps` whatever the market."""
    return GAPS_STREAM if stream_kind == "gaps" else f"{currency}_{kind}_{stream_kind}".lower()


def stream_kind(stream: str) -> str | None:
    """Return which kind of stream a full name is (a key of SCHEMAS), or None if it is none of ours."""
    if stream == GAPS_STREAM:
        return "gaps"
    match = _STREAM_NAME.match(stream)
    return match[1] if match else None


def flush_rank(stream: str) -> int:
    """Return a stream's place in a flush round.

    Raises:
        ValueError: the name is no stream's.
    """
    return FLUSH_ORDER.index(stream_kind(stream) or "")


def rows_to_batch(schema: pa.Schema, rows: Iterable[Row]) -> pa.RecordBatch:
    """Turn rows into a record batch."""
    columns = list(zip(*rows, strict=True)) or [()] * len(schema)
    return pa.RecordBatch.from_arrays(
        [pa.array(values, type=field.type) for values, field in zip(columns, schema, strict=True)],
        schema=schema,
    )
