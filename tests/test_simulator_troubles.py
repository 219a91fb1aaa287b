"""The whole exchange in trouble, for a while: what clients see of it, and what the journal says."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, ConnectionClosedError, ConnectionClosedOK, InvalidStatus

from recorder.runtime.errors import TicktapeError
from recorder.simulator.faults import parse
from recorder.simulator.market import Step
from recorder.simulator.run import serving
from recorder.simulator.server import Exchange
from tests.test_simulator import WIDE_TRADES, Client, client, get, names, options
from tests.test_simulator_faults import faults_in, faults_now, lines_now
from tests.test_simulator_market import NOON_US, market

pytestmark = pytest.mark.anyio

METHODS_STATE = "platform_state.public_methods_state"
FOR_EVER_S = 3600.0


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "journal.jsonl"


@pytest.fixture
async def exchange(journal: Path) -> AsyncIterator[Exchange]:
    async with serving(options(journal=journal)) as running:
        yield running


@asynccontextmanager
async def during(trouble: Any) -> AsyncIterator[asyncio.Task[None]]:
    """Let a trouble begin, and end it with the block if it has not ended by then."""
    task = asyncio.create_task(trouble)
    await asyncio.sleep(0)
    yield task
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def refusal(exchange: Exchange) -> int:
    """The HTTP status with which a new connection is refused."""
    with pytest.raises(InvalidStatus) as refused:
        await connect(exchange.url)
    return refused.value.response.status_code


async def state(deribit: Client, channel: str, key: str) -> Any:
    """Wait for a message of a channel that has a member, and return it."""
    while True:
        data = await deribit.data(channel)
        if key in data and data.get("price_index") != "alt_usdc":
            return data


async def test_maintenance_is_told_then_closed_then_refused(exchange: Exchange, journal: Path) -> None:
    """platform_state says so, every connection ends with 1012, connecting gives 503; then all is well."""
    async with client(exchange) as deribit:
        await deribit.subscribe("platform_state")
        async with during(exchange.maintenance(FOR_EVER_S)):
            told = await state(deribit, "platform_state", "maintenance")
            with pytest.raises(ConnectionClosedError) as closed:
                await deribit.drain()
            status = await refusal(exchange)
            history, _ = await get(exchange, "public/test")
        async with client(exchange) as again:
            answer = await again.call("public/test")
    kinds = [line.get("kind") for line in lines_now(exchange, journal) if line.get("event") in ("fault", "refused")]

    assert told == {"maintenance": True}
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1012
    assert (status, history) == (503, 200)
    assert "result" in answer
    assert kinds == ["maintenance", "maintenance", "maintenance over"]


async def test_a_locked_index_is_told_and_its_books_are_quiet() -> None:
    """platform_state says true and false, public/status agrees; between them no book moves and nothing trades."""
    async with serving(options(rate=2000.0)) as exchange, client(exchange) as deribit:
        await deribit.subscribe("platform_state", WIDE_TRADES, *(f"book.{name}.100ms" for name in names(exchange)))
        async with during(exchange.lock(0.5)) as lock:
            locked = await state(deribit, "platform_state", "locked")
            status = await deribit.call("public/status")
            await asyncio.sleep(0.2)
            await deribit.call("public/test")
            before = len(deribit.seen(WIDE_TRADES)), exchange.live.market.options[names(exchange)[0]].book.change_id
            quiet_from = len(deribit.frames)
            await lock
        opened = await state(deribit, "platform_state", "locked")
        quiet = [json.loads(frame)["params"]["channel"] for frame in deribit.frames[quiet_from:]]
        await deribit.data(WIDE_TRADES)

    assert before[1] > 0
    assert (locked["price_index"], locked["locked"], opened["locked"]) == ("eth_usd", True, False)
    assert status["result"] == {"locked": "partial", "locked_indices": ["eth_usd"]}
    assert set(quiet) <= {"platform_state"}


def test_a_locked_market_only_renews_its_tickers() -> None:
    """Marks follow the index; no book changes and no trade happens."""
    locked, step = market(count=50, rate=2000.0), Step()
    locked.locked = True
    locked.step(NOON_US + 900_000, step)

    assert step.tickers
    assert not step.changes
    assert not step.trades


async def test_unauthenticated_calls_can_be_switched_off(exchange: Exchange) -> None:
    """All but test and set_heartbeat are answered 11056 while it lasts; beginning and end are told."""
    async with client(exchange) as deribit:
        await deribit.subscribe(METHODS_STATE)
        trouble = asyncio.create_task(exchange.unauthenticated(0.2))
        off = await deribit.data(METHODS_STATE)
        refused, allowed = await answers(deribit, names(exchange)[0])
        on = await deribit.data(METHODS_STATE)
        await trouble
        after = await deribit.call("public/get_instruments", currency="ETH")

    assert (off, on) == (
        {"allow_unauthenticated_public_requests": False},
        {"allow_unauthenticated_public_requests": True},
    )
    assert [answer["error"]["code"] for answer in refused] == [11056] * 4
    assert all("result" in answer for answer in (*allowed, after))


async def answers(deribit: Client, name: str) -> tuple[list[Any], list[Any]]:
    """Make calls that a trouble refuses, and those that keep a session alive."""
    refused = [
        await deribit.call(method, currency="ETH", instrument_name=name, channels=["platform_state"])
        for method in ("public/get_instruments", "public/ticker", "public/subscribe", "public/unsubscribe")
    ]
    return refused, [
        await deribit.call("public/test"),
        await deribit.call("public/set_heartbeat", interval=10),
    ]


@pytest.mark.parametrize(("kind", "code"), [("settlement", 10041), ("unavailable", 13028)])
async def test_calls_are_refused_for_a_while_and_what_is_subscribed_flows_on(
    exchange: Exchange, kind: str, code: int
) -> None:
    """As at 08:00 UTC: no call is served for some seconds, and nobody is cut off."""
    async with client(exchange) as deribit:
        await deribit.subscribe(WIDE_TRADES, *(f"book.{name}.100ms" for name in names(exchange)))
        async with during(exchange.trouble(kind, FOR_EVER_S)):
            refused, allowed = await answers(deribit, names(exchange)[0])
            before = len(deribit.frames)
            while len(deribit.frames) < before + 20:
                await deribit.receive()
        after = await deribit.call("public/get_instruments", currency="ETH")

    assert [answer["error"]["code"] for answer in refused] == [code] * 4
    assert all("result" in answer for answer in (*allowed, after))


async def test_a_server_that_accepts_and_closes(exchange: Exchange, journal: Path) -> None:
    """Connections of now end; each new one opens, and is closed before it can ask anything."""
    async with client(exchange) as before, during(exchange.accept_close(FOR_EVER_S)):
        with pytest.raises(ConnectionClosedOK):
            await before.drain()
        for _ in range(3):
            async with client(exchange) as deribit:
                with pytest.raises(ConnectionClosedOK):
                    await deribit.receive()
    refused = [line["kind"] for line in lines_now(exchange, journal) if line.get("event") == "refused"]

    assert refused == ["accept_close"] * 3


async def test_too_many_requests_at_every_door(exchange: Exchange, journal: Path) -> None:
    """Connecting gives 429; a call on an open connection 10028 and the end; it is no fault of the client's."""
    async with client(exchange) as deribit, during(exchange.too_many(FOR_EVER_S)):
        answer = await deribit.call("public/test")
        with pytest.raises(ConnectionClosed):
            await deribit.drain()
        status = await refusal(exchange)

    assert answer["error"]["code"] == 10028
    assert status == 429
    assert not [line for line in lines_now(exchange, journal) if line.get("event") == "limit"]


async def test_a_half_open_connection_is_silent_alone_and_then_reset(exchange: Exchange, journal: Path) -> None:
    """One connection neither sends nor answers a ping, the other goes on; afterwards the one is refused."""
    async with client(exchange) as one, client(exchange) as two:
        for deribit in (one, two):
            await deribit.call("public/test")
        await one.subscribe(*(f"ticker.{name}.100ms" for name in names(exchange)))
        async with during(exchange.half_open(exchange.numbers[0], 0.3)) as trouble:
            pong = asyncio.ensure_future(await one.socket.ping())
            await two.call("public/test")
            await (await two.socket.ping())
            was_silent = not pong.done()
            await trouble
        with pytest.raises(ConnectionClosed):
            await pong
        await two.call("public/test")
    [begun, over] = faults_now(exchange, journal)
    unsent = [line for line in lines_now(exchange, journal) if line.get("event") == "unsent"]

    assert was_silent
    assert (begun["kind"], begun["connections"], over["kind"]) == ("half_open", [1], "half_open over")
    assert {line["connection"] for line in unsent} == {1}
    assert {line["message"]["params"]["channel"].partition(".")[0] for line in unsent} == {"ticker"}


async def test_an_exchange_ends_at_once_with_a_connection_that_plays_dead(exchange: Exchange, journal: Path) -> None:
    """Nobody waits for an answer from a socket that is not read."""
    socket = await connect(exchange.url)
    async with during(exchange.half_open(1, FOR_EVER_S)):
        pass
    assert exchange.connections[0].silent
    exchange.end()
    await socket.wait_closed()

    assert socket.close_code == 1006
    assert faults_now(exchange, journal)[0]["kind"] == "half_open"


async def test_connections_are_killed_in_turn(journal: Path) -> None:
    """`kill` takes one after the other, a new one in its place at the end of the row."""
    async with serving(options(journal=journal, faults=parse("kill:every=0.1"))) as exchange:
        sockets = [await connect(exchange.url) for _ in range(3)]
        for place in (0, 1):
            await sockets[place].wait_closed()
        sockets.append(await connect(exchange.url))
        for socket in sockets:
            await socket.wait_closed()
    killed = [fault["connection"] for fault in faults_in(journal)]

    assert killed == [1, 2, 3, 4]


async def test_timed_faults_can_be_ordered(journal: Path) -> None:
    """Each begins at its time and ends after its own, several beside each other."""
    kinds = (
        "silence", "maintenance", "lock", "unauthenticated", "settlement", "unavailable", "accept_close", "too_many",
    )  # fmt: skip
    spec = ";".join(f"{kind}:at=0.05,for=0.05" for kind in kinds)
    async with serving(options(journal=journal, faults=parse(spec))) as exchange:
        while len(faults_now(exchange, journal)) < 2 * len(kinds):  # noqa: ASYNC110 - a file announces nothing
            await asyncio.sleep(0.05)
        assert not +exchange.troubles
        async with client(exchange) as deribit:
            assert "result" in await deribit.call("public/test")

    assert {fault["kind"] for fault in faults_in(journal)} == {*kinds, *(f"{kind} over" for kind in kinds)}


async def test_a_captured_file_takes_no_orders(tmp_path: Path) -> None:
    """What happens in a market cannot be made to happen in a capture."""
    path = tmp_path / "capture.txt"
    data = '{"timestamp":1,"instrument_name":"ETH-30JUL21-2800-C"}'
    path.write_text(
        f'1.5: {{"method":"subscription","params":{{"channel":"ticker.ETH-30JUL21-2800-C.raw","data":{data}}}}}'
    )
    async with serving(options(capture=path)) as exchange:
        with pytest.raises(TicktapeError, match="played as it was"):
            exchange.rerank()


# What a client must not do


async def test_going_over_a_limit_is_written_down(exchange: Exchange, journal: Path) -> None:
    """Too many channels in a call, too large a frame, too many calls: each is an event, with the connection."""
    async with client(exchange) as deribit:
        await deribit.call("public/subscribe", channels=["x"] * 501)
        await deribit.ask('{"method":"public/test","pad":"' + "x" * 32 * 1024 + '"}')
        for _ in range(12):
            await deribit.socket.send('{"id":1,"method":"public/subscribe","params":{"channels":[]}}')
        with pytest.raises(ConnectionClosed):
            await deribit.drain()
    for _ in range(101):
        await get(exchange, "public/get_time")
    limits = [line for line in lines_now(exchange, journal) if line.get("event") == "limit"]

    assert [limit["kind"] for limit in limits[:3]] == ["channels", "frame", "credits"]
    assert {limit["connection"] for limit in limits[:3]} == {1}
    assert limits[0]["channels"] == 501
    assert limits[2]["method"] == "public/subscribe"


async def test_subscribing_to_what_is_held_is_written_down(exchange: Exchange, journal: Path) -> None:
    """Only the channels that this connection held; another connection may hold them too."""
    channel = f"book.{names(exchange)[0]}.100ms"
    async with client(exchange) as one, client(exchange) as two:
        await one.subscribe(channel)
        await two.subscribe(channel)
        await one.subscribe(channel, "platform_state")
        await one.call("public/unsubscribe", channels=[channel])
        await one.subscribe(channel)
    again = [line for line in lines_now(exchange, journal) if line.get("event") == "subscribed_again"]

    assert [(line["connection"], line["channels"]) for line in again] == [(1, [channel])]
