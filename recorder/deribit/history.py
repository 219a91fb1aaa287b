"""Trades of the past, asked of the exchange: which instruments traded in a time, and a range of numbers.

The main host is asked on the sockets that are open, the history host (which keeps everything) over HTTP; both
slowly, since the budget is by IP and unpublished. Facts: Deribit documentation, `get_last_trades_by_instrument`,
`get_last_trades_by_currency_and_time`, "Accessing historical trades".
"""

import asyncio
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from functools import partial
from http.client import HTTPException
from typing import Any, Literal, TypeVar

import msgspec
from msgspec import Struct

from recorder.deribit.messages import UNREADABLE, TradeData, decode_envelope
from recorder.deribit.pacer import Pacer
from recorder.deribit.session import Reply, RpcError
from recorder.deribit.trouble import Trouble, explain, least_delay_s

PAGE = 1000  # the most the exchange gives
MOST_PAGES = 500  # of one question: half a million trades, a hundred times a busy day
_TIMEOUT_S = 20.0  # of each wait for the network
_WHOLE_TIMEOUT_S = 60.0  # of a reply that trickles in
_MOST_REPLY_BYTES = 16 * 1024 * 1024
# Public calls cost 500 of 50,000 credits that refill at 10,000/s for a client that is known, so 20 a second; less is
# known of others. Half of it is left to what else is asked, and to others on the same IP.
_BURST, _PACE_S = 10, 0.1
# How a host says that it does not know an instrument: a main host may have forgotten an expired one.
_INVALID_PARAMS, _NOT_FOUND = -32602, 13020
_BY_STATUS: dict[int, Trouble] = {429: "too_many_connections", 502: "maintenance", 503: "maintenance"}

Host = Literal["main", "history"]
HOSTS: tuple[Host, Host] = ("main", "history")

Call = Callable[..., Awaitable[Reply]]
T = TypeVar("T")


class TradesPage(Struct, gc=False):
    """A reply of every method that gives trades."""

    trades: list[TradeData]
    has_more: bool = False


_decode_page = msgspec.json.Decoder(TradesPage).decode


class HistoryRefused(Exception):
    """A host did not answer, or refused; worth trying again, but not sooner than after `wait_s`."""

    def __init__(self, host: Host, reason: str, *, wait_s: float = 0.0) -> None:
        super().__init__(host, reason)
        self.host, self.reason, self.wait_s = host, reason, wait_s

    def __str__(self) -> str:
        return f"{self.host} host: {self.reason}"


class History:
    """Asks both hosts."""

    def __init__(self, *, call: Call, history_url: str, currency: str, kind: str) -> None:
        """`call` makes a call on any open session."""
        self._call = call
        self._history_url = history_url.rstrip("/")
        self._asked = {"currency": currency, "kind": kind}
        self._pacer = Pacer(burst=_BURST, pace_s=_PACE_S)

    async def by_number(self, host: Host, instrument: str, first: int, last: int) -> TradesPage:
        """Return a page of what a host has of an instrument's trade_seqs in [first, last], the lowest first.

        Never by time: many trades share a millisecond.

        Raises:
            HistoryRefused: the host did not answer.
        """
        return await self._ask(
            host,
            "public/get_last_trades_by_instrument",
            instrument_name=instrument,
            start_seq=first,
            end_seq=last,
            count=PAGE,
            sorting="asc",
        )

    async def newest(self, host: Host, instrument: str) -> int:
        """Return the newest trade_seq of an instrument that a host knows; 0 if none.

        Raises:
            HistoryRefused: the host did not answer.
        """
        page = await self._ask(host, "public/get_last_trades_by_instrument", instrument_name=instrument, count=1)
        return max((trade.trade_seq for trade in page.trades), default=0)

    async def traded(self, host: Host, start_ms: int, end_ms: int) -> AsyncIterator[list[TradeData]]:
        """Give pages of the trades of all instruments in [start, end]: enough to tell who traded, up to which number.

        Pages by time, so some trades come twice. A millisecond that fills a page is read from both ends: left out is
        only who traded in it alone, and there between the first and the last thousand.

        Raises:
            HistoryRefused: the host did not answer, or there were more than MOST_PAGES.
        """
        method = "public/get_last_trades_by_currency_and_time"
        at_ms = start_ms
        for _ in range(MOST_PAGES):
            asked = {**self._asked, "start_timestamp": at_ms, "count": PAGE}
            page = await self._ask(host, method, **asked, end_timestamp=end_ms, sorting="asc")
            yield page.trades
            if not page.has_more or not page.trades:
                return
            last_ms = max(trade.timestamp for trade in page.trades)
            if last_ms > at_ms:
                at_ms = last_ms
            else:
                yield (await self._ask(host, method, **asked, end_timestamp=at_ms, sorting="desc")).trades
                at_ms += 1
        raise HistoryRefused(host, f"more than {MOST_PAGES * PAGE} trades since {start_ms}")

    async def _ask(self, host: Host, method: str, **params: Any) -> TradesPage:
        await self._pacer.wait()
        try:
            if host == "main":
                return _decode_page((await self._call(method, **params)).result)
            async with asyncio.timeout(_WHOLE_TIMEOUT_S):
                return await _in_daemon_thread(partial(self._get, method, params))
        except RpcError as exc:
            if _is_unknown_instrument(exc):
                return TradesPage([])
            raise HistoryRefused(host, str(exc), wait_s=least_delay_s(explain(exc)[0])) from exc
        except urllib.error.HTTPError as exc:
            what = _BY_STATUS.get(exc.code, "refused")
            raise HistoryRefused(host, f"HTTP {exc.code} {exc.reason}", wait_s=least_delay_s(what)) from exc
        except (*_NO_ANSWER, *UNREADABLE) as exc:
            raise HistoryRefused(host, str(exc) or type(exc).__name__) from exc

    def _get(self, method: str, params: dict[str, Any]) -> TradesPage:
        url = f"{self._history_url}/{method}?{urllib.parse.urlencode(params)}"
        try:
            with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as reply:  # noqa: S310 - the setting allows http(s) only
                body = reply.read(_MOST_REPLY_BYTES)
        except urllib.error.HTTPError as refusal:
            with refusal:  # an error comes as HTTP 400 with the reply that says which
                body = refusal.read(_MOST_REPLY_BYTES)
            with suppress(*UNREADABLE):
                _raise_error(method, body)
            raise
        _raise_error(method, body)
        return _decode_page(decode_envelope(body).result)


# What a network, or whoever answers in a host's name, does instead of answering. HTTPException is no OSError.
_NO_ANSWER = (TimeoutError, OSError, HTTPException, ValueError)


def _raise_error(method: str, body: bytes) -> None:
    error = decode_envelope(body).error
    if error is not None:
        raise RpcError(method, error.code, error.message, bytes(error.data))


def _is_unknown_instrument(exc: RpcError) -> bool:
    return exc.code == _NOT_FOUND or (exc.code == _INVALID_PARAMS and b'"instrument_name"' in exc.data)


async def _in_daemon_thread(call: Callable[[], T]) -> T:
    """Make a blocking call. A host that hangs must not hold up the end of the process, as asyncio's threads do."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def tell(outcome: Callable[[asyncio.Future[T]], None]) -> None:
        if not future.done():  # or nobody waits any more
            outcome(future)

    def run() -> None:
        outcome: Callable[[asyncio.Future[T]], None]
        try:
            result = call()
            outcome = lambda waiting: waiting.set_result(result)  # noqa: E731 - the same name twice
        except (*_NO_ANSWER, RpcError, *UNREADABLE) as exc:
            failure = exc
            outcome = lambda waiting: waiting.set_exception(failure)  # noqa: E731
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(tell, outcome)

    threading.Thread(target=run, name="history", daemon=True).start()
    return await future
