"""The public request methods that work over both the socket and HTTP: from parameters to a result, or an error.

Deribit documentation and probes of production, 2026-09: codes, texts and `data` of the errors.
"""

import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from recorder.simulator import wire
from recorder.simulator.feed import Feed
from recorder.simulator.trades import TradeQuery, Trades

VERSION = "1.2.26"
WEBSOCKET_ONLY = frozenset(
    "public/" + name
    for name in ("subscribe", "unsubscribe", "unsubscribe_all", "set_heartbeat", "disable_heartbeat", "hello")
)
_CURRENCIES = ("BTC", "ETH", "USDC", "USDT", "EURR")
_KINDS = ("option", "future", "spot", "future_combo", "option_combo", "combo", "any")
_DEPTHS = (1, 5, 10, 20, 50, 100, 1000, 10_000)
_MOST_TRADES = 1_000


class RpcError(Exception):
    """A request that is answered with an error."""

    def __init__(self, code: int, message: str, data: object = None) -> None:
        super().__init__(message)
        self.code, self.message, self.data = code, message, data

    @property
    def body(self) -> str:
        """The member of the response."""
        error: dict[str, object] = {"code": self.code, "message": self.message}
        if self.data is not None:
            error["data"] = self.data
        return f'"error":{wire.json(error)}'


def invalid(param: str, reason: str) -> RpcError:
    """Return the error for a wrong parameter."""
    return RpcError(-32602, "Invalid params", {"reason": reason, "param": param})


class Params:
    """The parameters of a request, read with their rules; numbers may be text in a query string."""

    def __init__(self, values: Mapping[str, object], *, from_query: bool = False) -> None:
        self._values, self._from_query = values, from_query

    def text(self, name: str, default: str | None = None) -> str:
        """Return a text; required without a default."""
        value = self._values.get(name, default)
        if value is None:
            raise invalid(name, "missing value")
        if not isinstance(value, str):
            raise invalid(name, "must be a string")
        return value

    def one_of(self, name: str, allowed: tuple[str, ...], default: str | None = None) -> str:
        """Return one of the allowed texts."""
        value = self.text(name, default)
        if value not in allowed:
            raise invalid(name, f"invalid {name}")
        return value

    def integer(self, name: str) -> int | None:
        """Return a whole number; None if it was not given."""
        value = self._values.get(name)
        if self._from_query and isinstance(value, str) and value.lstrip("-").isdecimal():
            value = int(value)
        if value is None or (isinstance(value, int) and not isinstance(value, bool)):
            return value
        raise invalid(name, "must be an integer")

    def flag(self, name: str) -> bool:
        """Return a truth value, false by default."""
        value = self._values.get(name, False)
        if self._from_query and value in ("true", "false"):
            value = value == "true"
        if not isinstance(value, bool):
            raise invalid(name, "must be a boolean")
        return value

    def texts(self, name: str) -> list[str]:
        """Return a required list of texts."""
        value = self._values.get(name)
        if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
            raise invalid(name, "must be an array of strings" if name in self._values else "missing value")
        return value


class Host(NamedTuple):
    """Who is asked: two hosts answer the same methods, but do not remember the same trades."""

    feed: Feed
    trades: Trades


def answer(host: Host, method: str, params: Params) -> str:
    """Return the result of a method as JSON.

    Raises:
        RpcError: what is answered instead.
    """
    call = _METHODS.get(method)
    if call is None:
        if method.startswith("private/"):
            raise RpcError(13009, "unauthorized", {"reason": "invalid_token", "param": "token"})
        raise RpcError(-32601, "Method not found")
    return call(host, params)


def _get_instruments(host: Host, params: Params) -> str:
    currency = params.one_of("currency", (*_CURRENCIES, "any"), "any")
    kind, expired = params.one_of("kind", _KINDS, "any"), params.flag("expired")
    return _array(host.feed.instruments(currency) if kind in ("option", "any") and not expired else [])


def _get_book_summary(host: Host, params: Params) -> str:
    currency, kind = params.one_of("currency", _CURRENCIES), params.one_of("kind", _KINDS, "any")
    return _array(host.feed.summaries(currency) if kind in ("option", "any") else [])


def _known(found: str | None) -> str:
    if found is None:
        raise invalid("instrument_name", "instrument not found")
    return found


def _get_order_book(host: Host, params: Params) -> str:
    depth = params.integer("depth") or 5
    if depth not in _DEPTHS:
        raise invalid("depth", "invalid depth")
    return _known(host.feed.order_book(params.text("instrument_name"), depth))


def _trades_by_instrument(host: Host, params: Params) -> str:
    name = params.text("instrument_name")
    if not host.feed.knows(name):
        raise invalid("instrument_name", "instrument not found")
    return _trades_page(host, params, name)


def _trades_by_instrument_and_time(host: Host, params: Params) -> str:
    _require_times(params)
    return _trades_by_instrument(host, params)


def _trades_by_currency(host: Host, params: Params) -> str:
    currency, kind = params.one_of("currency", _CURRENCIES), params.one_of("kind", _KINDS, "any")
    if kind not in ("option", "any") or not host.feed.has_currency(currency):
        return '{"trades":[],"has_more":false}'
    return _trades_page(host, params, None)


def _trades_by_currency_and_time(host: Host, params: Params) -> str:
    _require_times(params)
    return _trades_by_currency(host, params)


def _require_times(params: Params) -> None:
    for name in ("start_timestamp", "end_timestamp"):
        if params.integer(name) is None:
            raise invalid(name, "missing value")


def _trades_page(host: Host, params: Params, instrument: str | None) -> str:
    count = params.integer("count")
    count = 10 if count is None else count
    if not 1 <= count <= _MOST_TRADES:
        raise invalid("count", "value must be >= 1 and <= 1000")
    seqs = (params.integer("start_seq"), params.integer("end_seq")) if instrument else (None, None)
    times = params.integer("start_timestamp"), params.integer("end_timestamp")
    numbers = _trade_number(params, "start_id"), _trade_number(params, "end_id")
    sorting = params.one_of("sorting", ("asc", "desc", "default"), "default")
    # Without a sorting the newest come first, unless a start is named: then they come from there on.
    from_start = any(bounds[0] is not None for bounds in (seqs, times, numbers))
    query = TradeQuery(
        count=count,
        ascending=sorting == "asc" or (sorting == "default" and from_start),
        seqs=seqs,
        times_ms=times,
        numbers=numbers,
    )
    page, has_more = query.page(host.trades.of(instrument))
    trades = ",".join(map(wire.trade, page))
    return f'{{"trades":[{trades}],"has_more":{"true" if has_more else "false"}}}'


def _trade_number(params: Params, name: str) -> int | None:
    text = params.text(name, "")
    if not text:
        return None
    digits = text.rpartition("-")[2]
    if not digits.isdecimal():
        raise invalid(name, "wrong format")
    return int(digits)


def _array(entries: list[str]) -> str:
    return f"[{','.join(entries)}]"


_METHODS: dict[str, Callable[[Host, Params], str]] = {
    "public/test": lambda _host, _params: f'{{"version":"{VERSION}"}}',
    "public/status": lambda host, _params: host.feed.status(),
    "public/get_time": lambda _host, _params: str(time.time_ns() // 1_000_000),
    "public/get_instruments": _get_instruments,
    "public/get_instrument": lambda host, params: _known(host.feed.instrument(params.text("instrument_name"))),
    "public/get_book_summary_by_currency": _get_book_summary,
    "public/ticker": lambda host, params: _known(host.feed.ticker(params.text("instrument_name"))),
    "public/get_order_book": _get_order_book,
    "public/get_last_trades_by_instrument": _trades_by_instrument,
    "public/get_last_trades_by_instrument_and_time": _trades_by_instrument_and_time,
    "public/get_last_trades_by_currency": _trades_by_currency,
    "public/get_last_trades_by_currency_and_time": _trades_by_currency_and_time,
}
