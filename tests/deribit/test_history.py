"""Questions about past trades, to hosts that answer as they should, with an error, with nonsense, or not at all."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
from msgspec import Raw

from recorder.deribit import history
from recorder.deribit.history import History, HistoryRefused
from recorder.deribit.session import Reply, RpcError

pytestmark = pytest.mark.anyio

RPC_ERROR = b'{"jsonrpc":"2.0","error":{"code":%d,"message":"%b","data":{"param":"%b"}}}'


def http(status: bytes, body: bytes, *headers: bytes) -> bytes:
    length = b"Content-Length: %d" % len(body)
    return b"\r\n".join([b"HTTP/1.1 " + status, length, *headers, b"Connection: close", b"", body])


@asynccontextmanager
async def answering(reply: bytes | None) -> AsyncIterator[History]:
    """A history whose host answers every request with these bytes; None: it never answers."""
    waiting: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        if reply is None:
            waiting.append(writer)
            return
        writer.write(reply)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]

    async def call(*_: Any, **__: Any) -> Reply:
        raise TimeoutError

    try:
        yield History(call=call, history_url=f"http://127.0.0.1:{port}/api/v2", currency="ETH", kind="option")
    finally:
        for writer in waiting:
            writer.close()
        server.close()


@pytest.mark.parametrize(
    ("reply", "says", "wait_s"),
    [
        (b"", "closed connection without response", 0.0),
        (b"220 smtp.example.org ESMTP\r\n\r\n", "220 smtp", 0.0),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n40\r\n{\r\n", "IncompleteRead", 0.0),
        (http(b"200 OK", b"<html>"), "JSON is malformed", 0.0),
        (http(b"200 OK", b'{"result":{"trades":[{"trade_seq":1}]}}'), "missing required field", 0.0),
        (http(b"301 Moved", b"", b"Location: gopher://127.0.0.1/"), "gopher", 0.0),
        (http(b"429 Too Many Requests", b""), "HTTP 429", 30.0),
        (http(b"503 Service Unavailable", b"<html>"), "HTTP 503", 5.0),
        (http(b"400 Bad Request", RPC_ERROR % (10028, b"too_many_requests", b"")), "10028 too_many_requests", 10.0),
        (http(b"400 Bad Request", RPC_ERROR % (-32602, b"Invalid params", b"count")), "-32602 Invalid params", 0.0),
    ],
)
async def test_whatever_a_host_does_instead_of_answering_is_a_refusal(reply: bytes, says: str, wait_s: float) -> None:
    """It is named, and who asks too much is told to stay away for longer."""
    async with answering(reply) as hosts:
        with pytest.raises(HistoryRefused, match="history host: ") as refused:
            await hosts.by_number("history", "ETH-1", 1, 5)

    assert says in str(refused.value)
    assert refused.value.wait_s == wait_s


async def test_an_instrument_that_a_host_does_not_know_has_no_trades() -> None:
    """As HTTP 400 with the JSON-RPC error, which is how the history host says so."""
    error = RPC_ERROR % (-32602, b"Invalid params", b"instrument_name")
    async with answering(http(b"400 Bad Request", error)) as hosts:
        assert await hosts.newest("history", "ETH-1") == 0
        assert (await hosts.by_number("history", "ETH-1", 1, 5)).trades == []


async def test_a_main_host_that_refuses_is_left_alone_for_as_long_as_it_says() -> None:
    """A time-out is a refusal like another; too many requests are followed by a pause."""
    failures: list[Exception] = [TimeoutError(), RpcError("m", 10028, "too_many_requests", b"")]

    async def call(*_: Any, **__: Any) -> Reply:
        raise failures.pop(0)

    hosts = History(call=call, history_url="http://127.0.0.1:9", currency="ETH", kind="option")
    waits = []
    for _ in range(2):
        with pytest.raises(HistoryRefused) as refused:
            await hosts.newest("main", "ETH-1")
        waits.append(refused.value.wait_s)

    assert waits == [0.0, 10.0]


async def test_a_host_that_hangs_does_not_hold_up_the_end_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits for it gives up, and the thread that is left is none that Python waits for at exit."""
    monkeypatch.setattr(history, "_WHOLE_TIMEOUT_S", 0.2)
    async with answering(None) as hosts:
        with pytest.raises(HistoryRefused, match="TimeoutError"):
            await hosts.newest("history", "ETH-1")
        left = [thread for thread in threading.enumerate() if thread.name == "history"]

    assert [thread.daemon for thread in left] == [True]


def trade(timestamp_ms: int, name: str, seq: int) -> dict[str, Any]:
    return {
        "instrument_name": name, "trade_id": f"{name}-{seq}", "trade_seq": seq, "timestamp": timestamp_ms,
        "direction": "buy", "price": 0.1, "amount": 1.0,
    }  # fmt: skip


def paging(kept: Sequence[dict[str, Any]]) -> Callable[..., Any]:
    """A main host that gives pages of these by time."""

    async def call(_: str, **asked: Any) -> Reply:
        within = [t for t in kept if asked["start_timestamp"] <= t["timestamp"] <= asked["end_timestamp"]]
        ordered = within if asked["sorting"] == "asc" else within[::-1]
        page = {"trades": ordered[: asked["count"]], "has_more": len(within) > asked["count"]}
        return Reply(Raw(msgspec.json.encode(page)), None)

    return call


async def test_who_traded_is_found_page_after_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through milliseconds that fill pages, from both of their ends; and a question without end is given up."""
    monkeypatch.setattr(history, "PAGE", 4)
    monkeypatch.setattr(history, "_PACE_S", 0.0)
    sweep = [trade(20, "B", seq) for seq in range(1, 7)]
    kept = [
        trade(10, "A", 1),
        trade(20, "C", 1),
        *sweep,
        trade(20, "D", 1),
        *(trade(ms, "A", ms) for ms in range(30, 50)),
    ]
    hosts = History(call=paging(kept), history_url="http://127.0.0.1:9", currency="ETH", kind="option")
    pages = [page async for page in hosts.traded("main", 0, 45)]
    found = {(t.instrument_name, t.trade_seq) for page in pages for t in page}

    assert {name for name, _ in found} == {"A", "B", "C", "D"}
    assert {seq for name, seq in found if name == "A"} == {1, *range(30, 46)}
    assert max(len(page) for page in pages) == 4
    monkeypatch.setattr(history, "MOST_PAGES", 3)
    with pytest.raises(HistoryRefused, match="more than 12 trades since 0"):
        [page async for page in hosts.traded("main", 0, 45)]
