"""Messages in Deribit's JSON, byte by byte, with what makes them awkward to read.

Deribit documentation and production captures 2021 to 2026: numbers come as `2700`, `2700.0`, `8.06e4` and
`2.8e-4`; the order of keys is not stable; an empty side is null or 0.0; fields are added without notice.
"""

from functools import lru_cache

import msgspec

from recorder.simulator.book import ASK, BID, TICKS_PER_COIN, Change, Level
from recorder.simulator.chain import Contract
from recorder.simulator.option import Option
from recorder.simulator.pricing import Mark
from recorder.simulator.trades import Trade

_FIRST_STARBASE_ID = 225_000_000_000_000_000  # over 2^53, as seen


def number(value: float) -> str:
    """Write a float as Erlang does: the shorter of plain and exponent form."""
    text = repr(value)
    if value.is_integer() and abs(value) >= 1000:
        digits = text[:-2] if text.endswith(".0") else f"{value:.0f}"
        head = digits.rstrip("0")
        sign, head = ("-", head[1:]) if head[0] == "-" else ("", head)
        short = f"{sign}{head[0]}.{head[1:] or '0'}e{len(digits.lstrip('-')) - 1}"
        return short if len(short) < len(text) else text
    if text.startswith("0.000"):
        zeros = len(text) - 2 - len(text[2:].lstrip("0"))
        head = text[2:].lstrip("0")
        return f"{head[0]}.{head[1:] or '0'}e-{zeros + 1}"
    return text


@lru_cache(maxsize=100_000)
def amount(value: float) -> str:
    """Write an amount in one of the forms that Deribit mixes."""
    if value and value.is_integer():
        match int(value) % 7:
            case 0 | 3 | 4:
                return str(int(value))
            case 1:
                return repr(value)
    return number(value)


@lru_cache(maxsize=100_000)
def price(ticks: int) -> str:
    """Write a price that is given in ticks."""
    return number(ticks / TICKS_PER_COIN)


def notification(channel: str, data: str, turn: int = 0) -> bytes:
    """Frame what a channel carries; `turn` chooses the order of the keys."""
    if turn & 1:
        return (
            f'{{"params":{{"data":{data},"channel":"{channel}"}},"method":"subscription","jsonrpc":"2.0"}}'.encode()
        )
    return f'{{"jsonrpc":"2.0","method":"subscription","params":{{"channel":"{channel}","data":{data}}}}}'.encode()


def heartbeat(kind: str) -> bytes:
    """Frame a heartbeat or a test_request, which are no subscription messages."""
    return f'{{"params":{{"type":"{kind}"}},"method":"heartbeat","jsonrpc":"2.0"}}'.encode()


def response(request_id: object, body: str, *, in_us: int, out_us: int, turn: int = 0) -> bytes:
    """Frame an answer; `body` is the member `"result":…` or `"error":…`; no id if the request had none."""
    members = ['"jsonrpc":"2.0"', body, f'"usIn":{in_us}', f'"usOut":{out_us}', f'"usDiff":{out_us - in_us}']
    members.append('"testnet":false')
    if request_id is not None:
        members.insert(1, f'"id":{json(request_id)}')
    return _object(members, turn).encode()


def json(value: object) -> str:
    """Encode anything else."""
    return msgspec.json.encode(value).decode()


# Books


def book_snapshot(option: Option) -> str:
    """Write a whole book: all levels `new`, best first, no prev_change_id."""
    sides = (
        ",".join(f'["new",{price(ticks)},{amount(size)}]' for ticks, size in option.book.sorted(side))
        for side in (BID, ASK)
    )
    return _book(option, "snapshot", "", option.book.change_id, option.book.timestamp_ms, *sides)


def book_change(option: Option, change: Change, prev_change_id: int) -> str:
    """Write what one window did to a book."""
    prev = f'"prev_change_id":{prev_change_id},'
    bids, asks = _levels(change.bids), _levels(change.asks)
    return _book(option, "change", prev, change.change_id, change.timestamp_ms, bids, asks)


def _book(option: Option, kind: str, prev: str, change_id: int, timestamp_ms: int, bids: str, asks: str) -> str:
    return (
        f'{{"type":"{kind}","timestamp":{timestamp_ms},{prev}"instrument_name":"{option.contract.name}",'
        f'"change_id":{change_id},"bids":[{bids}],"asks":[{asks}]}}'
    )


def _levels(levels: list[Level]) -> str:
    return ",".join(f'["{level.action}",{price(level.ticks)},{amount(level.amount)}]' for level in levels)


def order_book(option: Option, depth: int) -> str:
    """Write the answer of get_order_book: price and amount pairs, and all that a ticker has."""
    sides = (
        ",".join(f"[{price(ticks)},{amount(size)}]" for ticks, size in option.book.sorted(side)[:depth])
        for side in (BID, ASK)
    )
    bids, asks = sides
    members = [f'"bids":[{bids}]', f'"asks":[{asks}]', f'"change_id":{option.book.change_id}']
    return _object(members + _ticker_members(option), 0)


# Tickers


def ticker(option: Option) -> str:
    """Write an option's ticker."""
    return _object(_ticker_members(option), option.version)


def _ticker_members(option: Option) -> list[str]:
    mark, contract, index = option.mark, option.contract, number(round(option.index, 2))
    members = [
        f'"instrument_name":"{contract.name}"',
        f'"timestamp":{option.timestamp_ms}',
        f'"state":"{option.state}"',
        f'"stats":{{{_stats(option)}}}',
        f'"greeks":{{{_greeks(mark)}}}',
        f'"index_price":{index}',
        f'"estimated_delivery_price":{index}',
        f'"last_price":{_maybe(option.last_price)}',
        f'"min_price":{number(max(0.0001, round(mark.price - 0.04, 4)))}',
        f'"max_price":{number(round(mark.price + 0.04, 4))}',
        f'"open_interest":{amount(option.open_interest)}',
        f'"mark_price":{number(round(mark.price, 4))}',
        f'"mark_iv":{round(mark.iv, 2)}',
        f'"underlying_price":{number(round(mark.forward, 4))}',
        f'"underlying_index":"{contract.expiry_name}"',
        '"interest_rate":0.0',
        *_side(option, BID, "bid"),
        *_side(option, ASK, "ask"),
    ]
    if option.settlement_price is not None:  # absent on new instruments
        members.append(f'"settlement_price":{number(option.settlement_price)}')
    return members


def _side(option: Option, side: int, name: str) -> tuple[str, ...]:
    best = option.book.best(side)
    if best is None:
        # The documentation says null, captures show 0.0: whoever reads this must know both.
        none = "null" if option.contract.instrument_id % 2 else "0.0"
        return f'"best_{name}_price":{none}', f'"best_{name}_amount":{none}', f'"{name}_iv":{none}'
    ticks, size = best
    # Near enough: volatility moves with the price by vega.
    usd = (ticks / TICKS_PER_COIN - option.mark.price) * option.mark.forward
    iv = min(max(option.mark.iv + usd / max(option.mark.vega, 0.05), 0.0), 500.0)
    return (
        f'"best_{name}_price":{price(ticks)}',
        f'"best_{name}_amount":{amount(size)}',
        f'"{name}_iv":{round(iv, 2)}',
    )


def _greeks(mark: Mark) -> str:
    return (
        f'"delta":{mark.delta:.5f},"gamma":{mark.gamma:.5f},"vega":{mark.vega:.5f},'
        f'"theta":{mark.theta:.5f},"rho":{mark.rho:.5f}'
    )


def _stats(option: Option) -> str:
    return (
        f'"high":{_maybe(option.high)},"low":{_maybe(option.low)},"price_change":{_price_change(option)},'
        f'"volume":{amount(option.volume)},"volume_usd":{number(option.volume_usd)}'
    )


def _price_change(option: Option) -> str:
    """Return the change over the day in percent; null if nothing traded."""
    if option.first_price is None or option.last_price is None:
        return "null"
    return number(round((option.last_price / option.first_price - 1) * 100, 4))


def _maybe(value: float | None) -> str:
    return "null" if value is None else number(value)


# Trades, instruments, and the summary


def trade_id(currency: str, serial: int) -> str:
    """Return the id of a trade: with its currency, except for BTC."""
    return str(serial) if currency == "BTC" else f"{currency}-{serial}"


def trade(entry: Trade) -> str:
    """Write one trade, with the fields that some have and some have not."""
    members = [
        f'"trade_seq":{entry.seq}',
        f'"trade_id":"{trade_id(entry.currency, entry.number)}"',
        f'"timestamp":{entry.timestamp_ms}',
        f'"tick_direction":{entry.tick_direction}',
        f'"price":{number(entry.price)}',
        f'"mark_price":{number(entry.mark_price)}',
        f'"iv":{entry.iv}',
        f'"instrument_name":"{entry.instrument}"',
        f'"index_price":{number(entry.index_price)}',
        f'"direction":"{entry.direction}"',
        f'"contracts":{amount(entry.amount)}',
        f'"amount":{amount(entry.amount)}',
        f'"starbase_match_id":{_FIRST_STARBASE_ID + entry.number}',
        f'"starbase_timestamp":{entry.timestamp_ms * 1_000_000 + entry.number % 1_000_000}',
    ]
    if entry.special == 0:
        members.append(f'"liquidation":"{("M", "T", "MT")[entry.seq % 3]}"')
    elif entry.special == 1:
        members += [f'"block_trade_id":"BLOCK-{entry.number}"', '"block_trade_leg_count":2']
    elif entry.special == 2:
        members += [f'"combo_id":"{entry.currency}-CS-{entry.seq}"', f'"combo_trade_id":"{entry.number}"']
    return _object(members, entry.seq)


def instrument(contract: Contract, state: str, timestamp_ms: int | None = None) -> str:
    """Write an option as get_instruments lists it; with a timestamp as instrument.creation tells it."""
    coin, is_small = contract.currency, contract.currency != "BTC"
    fields: dict[str, object] = {
        "kind": "option",
        "instrument_name": contract.name,
        "instrument_id": contract.instrument_id,
        "state": state,
        "is_active": state == "open",
        "base_currency": coin,
        "quote_currency": coin,
        "counter_currency": "USD",
        "settlement_currency": coin,
        "price_index": f"{coin.lower()}_usd",
        "option_type": "call" if contract.call else "put",
        "strike": contract.strike,
        "expiration_timestamp": contract.expiration_ms,
        "creation_timestamp": contract.creation_ms,
        "settlement_period": contract.period,
        "instrument_type": "reversed",
        "contract_size": 1.0 if is_small else 0.1,
        "min_trade_amount": 1 if is_small else 0.1,
        "tick_size": 0.0001,
        "tick_size_steps": [{"above_price": 0.005, "tick_size": 0.0005}],
        "maker_commission": 0.0003,
        "taker_commission": 0.0003,
        "block_trade_commission": 0.0003,
        "block_trade_min_trade_amount": 250 if is_small else 25,
        "block_trade_tick_size": 0.0001,
        "rfq": False,
        "underlying_type": "index",
        "product_group": "inverse_options",
        "index_id": 2,
        "lot_size": 1,
        "instrument_uuid": f"00000000-0000-4000-8000-{contract.instrument_id:012d}",
    }
    if timestamp_ms is not None:
        fields["timestamp"] = timestamp_ms
    return json(fields)


def summary(option: Option, now_ms: int) -> str:
    """Write an option's row of get_book_summary_by_currency."""
    bid, ask = option.book.best(BID), option.book.best(ASK)
    middle = None if bid is None or ask is None else (bid[0] + ask[0]) / 2 / TICKS_PER_COIN
    contract, index = option.contract, number(round(option.index, 2))
    members = [
        f'"instrument_name":"{contract.name}"',
        f'"base_currency":"{contract.currency}"',
        f'"quote_currency":"{contract.currency}"',
        f'"creation_timestamp":{now_ms}',
        f'"open_interest":{amount(option.open_interest)}',
        f'"volume":{amount(option.volume)}',
        f'"volume_usd":{number(option.volume_usd)}',
        f'"high":{_maybe(option.high)}',
        f'"low":{_maybe(option.low)}',
        f'"last":{_maybe(option.last_price)}',
        f'"price_change":{_price_change(option)}',
        f'"bid_price":{"null" if bid is None else price(bid[0])}',
        f'"ask_price":{"null" if ask is None else price(ask[0])}',
        f'"mid_price":{_maybe(middle)}',
        f'"mark_price":{number(round(option.mark.price, 6))}',
        f'"mark_iv":{round(option.mark.iv, 2)}',
        f'"underlying_price":{number(round(option.mark.forward, 4))}',
        f'"underlying_index":"{contract.expiry_name}"',
        f'"estimated_delivery_price":{index}',
        '"interest_rate":0.0',
    ]
    return _object(members, contract.instrument_id)


def _object(members: list[str], turn: int) -> str:
    """Join members beginning at any of them: no reader may rely on an order."""
    start = turn % len(members)
    return f"{{{','.join(members[start:] + members[:start])}}}"
