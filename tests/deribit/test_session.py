"""One session against a simulated exchange, and against servers that misbehave."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.datastructures import Headers
from websockets.exceptions import (
    ConnectionClosed,
    ConnectionClosedError,
    InvalidProxy,
    InvalidStatus,
    InvalidURI,
    SecurityError,
)
from websockets.frames import Close
from websockets.http11 import Response

from recorder.deribit import connection as connection_module
from recorder.deribit import session as session_module
from recorder.deribit import trouble
from recorder.deribit.channels import Assignment
from recorder.deribit.connection import Connection
from recorder.deribit.messages import InstrumentData
from recorder.deribit.pacer import Pacer
from recorder.deribit.session import Reply, RpcError, Silent, chunks, open_session
from recorder.deribit.universe import Listing, Universe, choose
from recorder.runtime.logging import get_logger
from recorder.simulator.options import Options
from recorder.simulator.run import serving

pytestmark = pytest.mark.anyio


def nothing(*_args: object, **_kwargs: object) -> None:
    pass


def test_subscriptions_are_cut_to_what_a_call_may_carry() -> None:
    """At most 400 channels and 30 kB, none lost, none twice."""
    names = [f"ticker.ETH-25DEC26-{n}-C.100ms" for n in range(2000)]
    pieces = list(chunks(names))

    assert [name for piece in pieces for name in piece] == names
    assert max(map(len, pieces)) == 400
    long = [f"{n:0200d}" for n in range(400)]
    assert all(sum(len(name) + 3 for name in piece) < 30_000 for piece in chunks(long))
    assert list(chunks([])) == []


async def test_calls_are_matched_and_refusals_are_told() -> None:
    """Replies find their call though they interleave; an error carries code and reason."""
    async with (
        serving(Options(port=0, instruments=20)) as exchange,
        open_session(exchange.url, notify=nothing, reject=nothing) as session,
    ):
        first, second = await asyncio.gather(
            session.call("public/get_instruments", currency="ETH", kind="option", expired=False),
            session.call("public/get_book_summary_by_currency", currency="ETH", kind="option"),
        )
        assert b"strike" in bytes(first.result)
        assert b"open_interest" in bytes(second.result)
        with pytest.raises(RpcError, match=r"public/ticker was refused with -32602 .*instrument not found"):
            await session.call("public/ticker", instrument_name="NO-SUCH")


async def test_channels_that_the_exchange_leaves_out_are_seen() -> None:
    """Asked is compared with granted."""
    async with (
        serving(Options(port=0, instruments=20)) as exchange,
        open_session(exchange.url, notify=nothing, reject=nothing) as session,
    ):
        granted, us_out = await session.subscribe(["platform_state", "book.NO-SUCH.100ms", "platform_stat"])

        assert granted == {"platform_state"}
        assert us_out is not None


async def test_heartbeats_are_answered() -> None:
    """The exchange closes whoever does not answer its test_request; we are still there after many."""
    async with (
        serving(Options(port=0, instruments=20, heartbeat_speed=50)) as exchange,
        open_session(exchange.url, notify=nothing, reject=nothing) as session,
    ):
        await asyncio.sleep(1.5)  # at 50 times the speed: seven heartbeats
        await session.call("public/test")
        assert len(exchange.connections) == 1


async def test_a_connection_whose_heartbeats_stop_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """An open socket proves nothing."""
    monkeypatch.setattr(session_module, "SILENCE_LIMIT_S", 0.3)

    async with serving(Options(port=0, instruments=5)) as exchange:
        with pytest.raises(Silent):
            await stay(exchange.url)


async def test_a_lost_socket_ends_what_is_under_way() -> None:
    """Whoever uses a session is not left waiting."""
    async with serving(Options(port=0, instruments=5)) as exchange:
        asyncio.get_running_loop().call_later(0.3, exchange.kill_connections)
        with pytest.raises(ConnectionClosed):
            await stay(exchange.url)


async def stay(url: str) -> None:
    async with open_session(url, notify=nothing, reject=nothing):
        await asyncio.sleep(30)


@asynccontextmanager
async def accepts_and_closes() -> AsyncIterator[tuple[str, list[float]]]:
    """A server that lets everyone in and shows them out."""
    times: list[float] = []

    async def close(socket: ServerConnection) -> None:
        times.append(time.monotonic())
        await socket.close(1013)

    async with serve(close, "127.0.0.1", 0) as server:
        yield f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}", times


def connect(url: str, feed: "FeedOfNothing", now_us: Callable[[], int] = lambda: 1) -> Connection:
    return Connection(0, url, feed=feed, pacer=Pacer(), changed=nothing, now_us=now_us, log=get_logger("test"))


async def test_a_server_that_accepts_and_closes_is_not_stormed() -> None:
    """A handshake is no success: the delay grows all the same."""
    async with accepts_and_closes() as (url, times):
        task = asyncio.create_task(connect(url, FeedOfNothing()).run())
        await asyncio.sleep(4)
        task.cancel()

    assert len(times) == 3  # at 0, 1 and 3 s
    assert times[1] - times[0] >= 1
    assert times[2] - times[1] >= 2


class FeedOfNothing:
    """A Feed that counts."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return lambda *_args, **_kwargs: self.calls.append(name)


async def test_a_session_that_brought_nothing_is_told_since_it_began() -> None:
    """Not when it was lost; nor since the last message of the session before."""
    told = asyncio.get_running_loop().create_future()
    feed: Any = FeedOfNothing()
    feed.disconnected = lambda _connection, *, since_us, **_why: told.set_result(since_us)

    async def grant_and_close(socket: ServerConnection) -> None:
        async for text in socket:
            request = json.loads(text)
            result = request["params"].get("channels", "ok")
            await socket.send(json.dumps({"jsonrpc": "2.0", "id": request["id"], "result": result}))
            if "channels" in request["params"]:
                await asyncio.sleep(0.5)
                await socket.close()

    async with serve(grant_and_close, "127.0.0.1", 0) as server:
        url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        ours = Connection(
            0, url, feed=feed, pacer=Pacer(), changed=nothing, now_us=lambda: time.time_ns() // 1000,
            log=get_logger("test"),
        )  # fmt: skip
        ours.health.last_message_us = 1
        ours.assign(Assignment(frozenset({"ETH-1"})))
        begun_us = time.time_ns() // 1000
        task = asyncio.create_task(ours.run())
        async with asyncio.timeout(30):
            since_us = await told
        task.cancel()
        lost_us = time.time_ns() // 1000

    assert begun_us <= since_us < lost_us - 500_000


async def test_a_book_that_gets_no_snapshot_is_subscribed_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """A break unsubscribes and subscribes that book alone, on the same connection."""
    monkeypatch.setattr(connection_module, "SNAPSHOT_PATIENCE_S", 0.2)
    feed = FeedOfNothing()
    async with serving(Options(port=0, instruments=5, rate=200)) as exchange:
        names = await option_names(exchange.url)

        ours = connect(exchange.url, feed)
        ours.assign(Assignment(frozenset(names)))
        task = asyncio.create_task(ours.run())
        while "book_broken" not in feed.calls:
            exchange.skip_change(names[0])
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.5)
        task.cancel()

    assert feed.calls.count("subscribed") == 1
    assert "disconnected" not in feed.calls


async def test_how_long_messages_wait_in_the_process_is_known() -> None:
    """A handler that takes long shows as the wait of what came with its message, and the heartbeat has an age."""
    feed = FeedOfNothing()
    feed.ticker = lambda *_args: time.sleep(0.05)  # type: ignore[attr-defined]
    async with serving(Options(port=0, instruments=5, rate=200)) as exchange:
        ours = connect(exchange.url, feed)
        ours.assign(Assignment(frozenset(await option_names(exchange.url))))
        before = ours.heartbeat_age_s
        task = asyncio.create_task(ours.run())
        while ours.health.messages < 20:  # noqa: ASYNC110 - nothing announces a message
            await asyncio.sleep(0.01)
        age_s = ours.heartbeat_age_s
        task.cancel()

    assert ours.health.longest_wait_s > 0.05
    assert before is None
    assert age_s is not None


async def test_a_change_or_a_trade_that_is_read_late_was_sent_so_much_earlier() -> None:
    """After a process stood still one of them may be all that a closed connection left to read, and no ticker."""
    feed, behind_us = FeedOfNothing(), 3_000_000
    heard: dict[str, list[int]] = {"quote": [], "trades": []}
    async with serving(Options(port=0, instruments=5, rate=200)) as exchange:
        ours = connect(exchange.url, feed, lambda: time.time_ns() // 1000 + behind_us)
        feed.ticker = lambda *_args: None  # type: ignore[attr-defined]
        read = ours._on_notification  # noqa: SLF001 - what is read between two tickers

        def noting(channel: str, frame: bytes) -> None:
            ours.health.lag_us = ours.health.late_us = 0  # as of a ticker from before
            now_us = time.time_ns() // 1000
            read(channel, frame)
            kind = {"book": "quote", "trades": "trades"}.get(channel.partition(".")[0])
            if kind and b'"snapshot"' not in frame:
                heard[kind].append(ours.health.heard_until_us(now_us) - now_us)

        ours._on_notification = noting  # type: ignore[method-assign] # noqa: SLF001
        extra = ("trades.option.ETH.100ms",)
        ours.assign(Assignment(frozenset(await option_names(exchange.url)), frozenset(extra)))
        task = asyncio.create_task(ours.run())
        async with asyncio.timeout(20):
            while not all(len(found) > 5 for found in heard.values()):  # noqa: ASYNC110 - nothing announces a message
                await asyncio.sleep(0.05)
        task.cancel()

    assert max(*heard["quote"], *heard["trades"]) < behind_us / 2


async def option_names(url: str) -> list[str]:
    async with open_session(url, notify=nothing, reject=nothing) as session:
        ours = universe(url, Path("u.json"))
        await ours.fetch(session.call)
        return list(choose(ours.listing, 0))


def universe(source: str, cache: Path) -> Universe:
    return Universe(currency="ETH", kind="option", cache=cache, source=source, log=get_logger("test"))


def listing(**open_interest: float) -> Listing:
    rows = {
        name: InstrumentData(name, kind="option", strike=float(n), expiration_timestamp=n % 2, option_type="call")
        for n, name in enumerate(sorted(open_interest))
    }
    return Listing(rows, open_interest)


def test_the_choice_is_by_open_interest_and_stable_on_ties() -> None:
    """Most first; equals by expiry, strike, type; 0 is all; the order of the reply does not matter."""
    some = listing(a=0, b=5, c=0, d=9, e=0)
    turned = Listing(dict(reversed(some.instruments.items())), some.open_interest)

    assert choose(some, 3) == ("d", "b", "a")
    assert choose(turned, 5) == choose(some, 0) == ("d", "b", "a", "c", "e")


def test_who_is_chosen_stays_so_near_the_edge() -> None:
    """A rank a little below the edge does not cost a place; one far below, or an expiry, does."""
    names = {f"i{n:02d}": 100.0 - n for n in range(20)}
    before = choose(listing(**names), 10)
    slipped = listing(**{**names, "i09": 88.5})  # from 10th to 12th
    fallen = listing(**{**names, "i09": 1.0})

    assert set(choose(slipped, 10, before)) == set(before)
    assert set(choose(slipped, 10)) == set(before) - {"i09"} | {"i10"}
    assert set(choose(fallen, 10, before)) == set(before) - {"i09"} | {"i10"}
    slipped.instruments["i00"].state = "delivered"
    assert set(choose(slipped, 10, before)) == set(before) - {"i00"} | {"i10"}


class Refusing:
    """An exchange that has had enough of us."""

    async def call(self, method: str, **_params: object) -> Reply:
        raise RpcError(method, 10028, "too_many_requests", b"null")


async def test_a_stale_list_is_better_than_none(tmp_path: Path) -> None:
    """When the exchange refuses, the remembered list serves, if it is of the same exchange and market."""
    fresh, stale = universe("here", tmp_path / "u.json"), universe("here", tmp_path / "u.json")
    async with (
        serving(Options(port=0, instruments=20)) as exchange,
        open_session(exchange.url, notify=nothing, reject=nothing) as session,
    ):
        assert await fresh.fetch(session.call)
    assert not await stale.fetch(Refusing().call)

    assert choose(stale.listing, 0) == choose(fresh.listing, 0)
    with pytest.raises(RpcError):
        await universe("elsewhere", tmp_path / "u.json").fetch(Refusing().call)


@pytest.mark.parametrize(
    ("reason", "what", "least_s"),
    [
        (ConnectionRefusedError("refused"), "network", 0),
        (Silent(), "silent", 0),
        (RpcError("m", 10028, "too_many_requests", b"null"), "too_many_requests", 10),
        (RpcError("m", 11056, "disabled", b"null"), "unauthenticated_disabled", 30),
        (RpcError("m", 11051, "system_maintenance", b"null"), "maintenance", 5),
        (RpcError("m", 10040, "retry", b"null"), "retry", 0),
        (RpcError("m", 10041, "settlement_in_progress", b"null"), "settlement_in_progress", 0),
        (RpcError("m", 13028, "temporarily_unavailable", b"null"), "temporarily_unavailable", 0),
        (ConnectionClosedError(Close(1008, "connection_too_slow"), None), "too_slow", 0),
        (ConnectionClosedError(None, None), "closed", 0),
        (InvalidStatus(Response(429, "Too Many Requests", Headers())), "too_many_connections", 30),
        (InvalidStatus(Response(503, "Service Unavailable", Headers())), "maintenance", 5),
    ],
)
def test_trouble_has_a_name_and_a_least_delay(reason: Exception, what: str, least_s: float) -> None:
    """Each is told apart, and none is made worse by trying again too soon."""
    name, detail = trouble.explain(reason)

    assert name == what
    assert detail
    assert trouble.least_delay_s(name) == least_s


@pytest.mark.parametrize(
    "reason",
    [
        InvalidURI("wss://s3cr3t@host/ws", "username provided without password"),
        InvalidProxy("ftp://me:s3cr3t@host", "scheme ftp isn't supported"),
        SecurityError("cannot follow redirect to non-secure URI ws://host/ws?key=s3cr3t"),
    ],
)
def test_a_trouble_tells_no_secret(reason: Exception) -> None:
    """What the library says of the URL of the exchange, of a proxy, or of where it was sent on to."""
    _, detail = trouble.explain(reason)

    assert "://" in detail
    assert "***" in detail
    assert "s3cr3t" not in detail


async def test_a_cancellation_is_not_lost_where_the_socket_fails_in_the_same_moment() -> None:
    """Who is told to end in the moment in which its session is lost ends, and does not begin another one."""
    lost = asyncio.Event()

    async def fail() -> None:
        await lost.wait()
        raise ConnectionError("closed")

    async def body() -> None:
        async with session_module.ended_by_first() as tasks:
            tasks.create_task(fail())
            await asyncio.sleep(10)

    for cancelled, expected in ((False, ConnectionError), (True, asyncio.CancelledError)):
        lost.clear()
        task = asyncio.create_task(body())
        await asyncio.sleep(0.01)
        lost.set()
        await asyncio.sleep(0)  # it has failed, and nobody has heard of it yet
        if cancelled:
            task.cancel()
        with pytest.raises(expected):
            await task
