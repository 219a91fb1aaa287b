"""Rows of the tape from Deribit's messages, in the order of `recorder.segments.schemas`. Pure."""

from recorder.deribit.book import Top
from recorder.deribit.messages import Greeks, InstrumentData, Stats, TickerData, TradeData
from recorder.segments.schemas import Row

_NO_GREEKS, _NO_STATS = Greeks(), Stats()
US_PER_MS = 1000


def quote_row(
    instrument: str,
    timestamp_ms: int,
    received_us: int,
    top: Top,
    newest: tuple[float | None, float | None],
    change_id: int,
    prev_change_id: int | None,
) -> Row:
    """The top of a book; `newest` is the newest ticker's (underlying_price, mark_price)."""
    return (timestamp_ms * US_PER_MS, instrument, received_us, *top, *newest, change_id, prev_change_id)


def ticker_row(data: TickerData, received_us: int) -> Row:
    """One ticker notification. An empty side is null with its iv, whether the wire said null, 0.0, or nothing."""
    greeks = data.greeks or _NO_GREEKS
    bid_price, bid_size, bid_iv = data.best_bid_price, data.best_bid_amount, data.bid_iv
    ask_price, ask_size, ask_iv = data.best_ask_price, data.best_ask_amount, data.ask_iv
    if not bid_price and not bid_size:
        bid_price = bid_size = bid_iv = None
    if not ask_price and not ask_size:
        ask_price = ask_size = ask_iv = None
    return (
        data.timestamp * US_PER_MS,
        data.instrument_name,
        received_us,
        data.underlying_price,
        data.underlying_index,
        data.index_price,
        data.mark_price,
        data.mark_iv,
        bid_iv,
        ask_iv,
        bid_price,
        bid_size,
        ask_price,
        ask_size,
        data.open_interest,
        greeks.delta,
        greeks.gamma,
        greeks.vega,
        greeks.theta,
        greeks.rho,
        data.last_price,
        data.settlement_price,
        data.interest_rate,
        (data.stats or _NO_STATS).volume,
        data.state,
    )


def trade_row(data: TradeData, received_us: int, underlying_price: float | None, source: str) -> Row:
    """One trade; `underlying_price` is the newest ticker's, `source` is live or backfill."""
    return (
        data.timestamp * US_PER_MS,
        data.instrument_name,
        received_us,
        data.trade_id,
        data.trade_seq,
        data.price,
        data.amount,
        data.direction,
        data.iv,
        underlying_price,
        data.index_price,
        data.mark_price,
        data.tick_direction,
        data.liquidation,
        data.contracts,
        None if data.block_trade_id is None else str(data.block_trade_id),
        data.block_trade_leg_count,
        data.combo_id,
        source,
    )


def instrument_row(data: InstrumentData, timestamp_us: int, received_us: int, *, recorded: bool) -> Row:
    """An instrument in its present state; `timestamp_us` is the exchange's time of saying so."""
    return (
        timestamp_us,
        data.instrument_name,
        received_us,
        data.option_type,
        data.strike,
        _ms_to_us(data.expiration_timestamp),
        _ms_to_us(data.creation_timestamp),
        data.tick_size,
        data.contract_size,
        data.min_trade_amount,
        data.quote_currency,
        data.settlement_currency,
        data.settlement_period,
        data.price_index,
        data.instrument_id,
        data.state if data.state is not None else _state_of(data.is_active),
        recorded,
    )


def _ms_to_us(moment_ms: int | None) -> int | None:
    return None if moment_ms is None else moment_ms * US_PER_MS


def _state_of(is_active: bool | None) -> str | None:  # noqa: FBT001 - it is the field
    """Older replies have `is_active` and no state."""
    if is_active is None:
        return None
    return "open" if is_active else "inactive"
