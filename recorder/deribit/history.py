"""Trades of the past, asked of the exchange: which instruments traded in a time, and a range of numbers.

The main host is asked on the sockets that are open, the history host (which keeps everything) over HTTP; both
slowly, since the budget is by IP and unpublished. Facts: Deribit documentation, `get_last_trades_by_instrument`,
`get_last_trades_by_currency_and_time`, "Accessing historical trades".
"""

import asyncio
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Awaitable, Callable
from typing import Any, Literal

import msgspec
from msgspec import Struct

from recorder.deribit.messages import Envelope, TradeData, decode_envelope
from recorder.deribit.pacer import Pacer
from recorder.deribit.session import Reply, RpcError

PAGE = 1000  # the most the exchange gives
MOST_PAGES = 500  # of one question: half a million trades, a hundred times a busy day
_TIMEOUT_S = 20.0
_MOST_REPLY_BYTES = 16 * 1024 * 1024
# Public calls cost 500 of 50,000 credits that refill at 10,000/s for a client that is known; less is known of others.
_BURST, _PACE_S = 10, 0.1

Host = Literal["main", "history"]
HOSTS: tuple[Host, Host] = ("main", "history")

Call = Callable[..., Awaitable[Reply]]


class TradesPage(Struct, gc=False):
    """A reply of every method that gives trades."""

    trades: list[TradeData]
    has_more: bool = False


_decode_page = msgspec.json.Decoder(TradesPage).decode


class HistoryRefused(Exception):
    """A host did not answer, or refused; worth trying again later."""


class History:
    """Asks both hosts."""

    def __init__(self, *, call: Call, history_url: str, currency: str, kind: str) -> None:
        """`call` makes a call on any open session."""
        self._call = call
        self._history_url = history_url.rstrip("/")
        self._asked = {"currency": currency, "kind": kind}
        self._pacer = Pacer(burst=_BURST, pace_s=_PACE_S)

    async def by_number(self, host: Host, instrument: str, first: int, last: int) -> list[TradeData]:
        """Return the trades of an instrument with trade_seq in [first, last], as far as the host has them.

        Never by time: many trades share a millisecond.

        Raises:
            HistoryRefused: the host did not answer.
        """
        found: list[TradeData] = []
        at = first
        while at <= last:
            page = await self._ask(
                host,
                "public/get_last_trades_by_instrument",
                instrument_name=instrument,
                start_seq=at,
                end_seq=min(last, at + PAGE - 1),
                count=PAGE,
                sorting="asc",
            )
            found += page.trades
            at += PAGE
        return found

    async def newest(self, host: Host, instrument: str) -> int:
        """Return the newest trade_seq of an instrument that a host knows; 0 if none.

        Raises:
            HistoryRefused: the host did not answer.
        """
        page = await self._ask(host, "public/get_last_trades_by_instrument", instrument_name=instrument, count=1)
        return max((trade.trade_seq for trade in page.trades), default=0)

    async def traded(self, host: Host, start_ms: int, end_ms: int) -> list[TradeData]:
        """Return trades of all instruments in [start, end]: enough to tell who traded, and up to which number.

        Pages by time, so that of more than a thousand trades in one millisecond some may be left out.

        Raises:
            HistoryRefused: the host did not answer, or there were more than MOST_PAGES.
        """
        found: list[TradeData] = []
        at_ms = start_ms
        for _ in range(MOST_PAGES):
            page = await self._ask(
                host,
                "public/get_last_trades_by_currency_and_time",
                **self._asked,
                start_timestamp=at_ms,
                end_timestamp=end_ms,
                count=PAGE,
                sorting="asc",
            )
            found += page.trades
            if not page.has_more or not page.trades:
                return found
            last_ms = max(trade.timestamp for trade in page.trades)
            at_ms = last_ms if last_ms > at_ms else at_ms + 1
        raise HistoryRefused(f"more than {MOST_PAGES * PAGE} trades since {start_ms}")

    async def _ask(self, host: Host, method: str, **params: Any) -> TradesPage:
        await self._pacer.wait()
        try:
            if host == "main":
                return _decode_page((await self._call(method, **params)).result)
            envelope = await asyncio.to_thread(self._get, method, params)
            return _decode_page(envelope.result)
        except (RpcError, TimeoutError, OSError, msgspec.DecodeError) as exc:
            raise HistoryRefused(f"{host} host: {exc or type(exc).__name__}") from exc

    def _get(self, method: str, params: dict[str, Any]) -> Envelope:
        url = f"{self._history_url}/{method}?{urllib.parse.urlencode(params)}"
        try:
            with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as reply:  # noqa: S310 - the setting allows http(s) only
                envelope = decode_envelope(reply.read(_MOST_REPLY_BYTES))
        except urllib.error.HTTPError as exc:
            raise OSError(f"HTTP {exc.code} {exc.reason}") from exc
        if envelope.error is not None:
            raise RpcError(method, envelope.error.code, envelope.error.message, bytes(envelope.error.data))
        return envelope
