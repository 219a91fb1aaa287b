"""The simulated exchange answers as Deribit was seen to answer: over real sockets."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, ConnectionClosedError, InvalidStatus

from recorder.simulator import session
from recorder.simulator.options import Options
from recorder.simulator.run import serving
from recorder.simulator.server import MOST_CONNECTIONS, Exchange

pytestmark = pytest.mark.anyio

WIDE_TRADES = "trades.option.ETH.100ms"


class Client:
    """A client that keeps what it was sent: `frames` as text, in order; answers are found by their id."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.frames: list[str] = []
        self.messages: list[Any] = []
        self._calls = 0

    async def call(self, method: str, **params: Any) -> Any:
        """Send a request and return the whole response."""
        self._calls += 1
        return await self.ask(
            json.dumps({"jsonrpc": "2.0", "id": self._calls, "method": method, "params": params}), self._calls
        )

    async def ask(self, text: str, request_id: object = None) -> Any:
        """Send any text and return the first response with this id, or without one."""
        await self.socket.send(text)
        while True:
            message = await self.receive()
            if message.get("id") == request_id and "usIn" in message:
                return message

    async def receive(self) -> Any:
        """Return the next message of any kind."""
        async with asyncio.timeout(20):
            text = await self.socket.recv(decode=True)
        message = json.loads(text)
        if message.get("method") == "subscription":
            self.frames.append(text)
        return message

    async def data(self, channel: str) -> Any:
        """Return the next data of a channel."""
        while True:
            message = await self.receive()
            if message.get("method") == "subscription" and message["params"]["channel"] == channel:
                return message["params"]["data"]

    async def subscribe(self, *channels: str) -> list[str]:
        """Subscribe and return what was granted."""
        response = await self.call("public/subscribe", channels=list(channels))
        granted: list[str] = response["result"]
        return granted

    async def drain(self) -> None:
        """Receive until the connection ends, which raises; what came is in `messages`."""
        while True:
            self.messages.append(await self.receive())

    def seen(self, channel: str) -> list[Any]:
        """Return the data received so far on a channel."""
        messages = [json.loads(frame)["params"] for frame in self.frames]
        return [message["data"] for message in messages if message["channel"] == channel]


@asynccontextmanager
async def client(exchange: Exchange) -> AsyncIterator[Client]:
    # Without max_queue a client that does not read at once reads nothing at all, not even a pong.
    async with connect(exchange.url, max_size=None, max_queue=None) as socket:
        yield Client(socket)


def options(**changes: Any) -> Options:
    return Options(**{"port": 0, "instruments": 24, "rate": 400.0, "heartbeat_speed": 100.0, **changes})


@pytest.fixture
async def exchange() -> AsyncIterator[Exchange]:
    async with serving(options()) as running:
        yield running


def names(exchange: Exchange) -> list[str]:
    found: list[str] = [json.loads(text)["instrument_name"] for text in exchange.feed.instruments("ETH")]
    return found


async def get(exchange: Exchange, method: str, **params: Any) -> tuple[int, Any]:
    """Ask over HTTP as anything but a websocket client would."""

    def fetch() -> tuple[int, Any]:
        url = urlsplit(exchange.history_url)
        http = HTTPConnection(url.hostname or "", url.port, timeout=10)
        http.request("GET", f"{url.path}/{method}?{urlencode(params)}")
        response = http.getresponse()
        status, body = response.status, json.loads(response.read() or b"null")
        http.close()
        return status, body

    return await asyncio.to_thread(fetch)


# Requests


async def test_a_response_has_the_id_as_it_was_sent_and_microseconds(exchange: Exchange) -> None:
    """A string id comes back as a string; usIn, usOut and usDiff agree."""
    async with client(exchange) as deribit:
        response = await deribit.ask('{"jsonrpc":"2.0","id":"seven","method":"public/test","params":{}}', "seven")

    assert response["result"] == {"version": "1.2.26"}
    assert response["usDiff"] == response["usOut"] - response["usIn"] >= 0
    assert response["testnet"] is False


@pytest.mark.parametrize(
    ("text", "code", "data"),
    [
        ("no json", 11050, "invalid json"),
        ("[]", -32600, None),
        ('{"method":"public/nothing"}', -32601, None),
        ('{"method":"public/ticker"}', -32602, {"param": "instrument_name", "reason": "missing value"}),
        (
            '{"method":"public/ticker","params":{"instrument_name":"ETH-1JAN20-1-C"}}',
            -32602,
            {"param": "instrument_name", "reason": "instrument not found"},
        ),
        (
            '{"method":"public/get_book_summary_by_currency","params":{"currency":"any"}}',
            -32602,
            {"param": "currency", "reason": "invalid currency"},
        ),
        (
            '{"method":"public/set_heartbeat","params":{"interval":9}}',
            -32602,
            {"param": "interval", "reason": "value must be >= 10"},
        ),
        ('{"method":"public/subscribe","params":{"channels":["ticker.X.raw"]}}', 13778, None),
        (
            json.dumps({"method": "public/subscribe", "params": {"channels": ["x"] * 501}}),
            -32600,
            None,
        ),
        ('{"method":"public/test","pad":"' + "x" * 32 * 1024 + '"}', -32600, None),
    ],
)
async def test_errors_are_told_and_the_socket_stays_open(
    exchange: Exchange, text: str, code: int, data: object
) -> None:
    """Each wrong request gets Deribit's code and data, without an id if it had none, and the next one works."""
    async with client(exchange) as deribit:
        response = await deribit.ask(text)
        after = await deribit.call("public/test")

    assert (response["error"]["code"], response["error"].get("data")) == (code, data)
    assert "id" not in response
    assert "result" in after


async def test_the_chain_is_described_without_open_interest_and_ranked_by_the_summary(exchange: Exchange) -> None:
    """get_instruments lists every option without its open interest; the summary has a row for each with it."""
    async with client(exchange) as deribit:
        instruments = (await deribit.call("public/get_instruments", currency="ETH", kind="option"))["result"]
        summary = (await deribit.call("public/get_book_summary_by_currency", currency="ETH", kind="option"))["result"]
        others = (await deribit.call("public/get_instruments", currency="BTC"))["result"]

    assert len(instruments) == 24
    assert {row["instrument_name"] for row in instruments} == {row["instrument_name"] for row in summary}
    assert not any("open_interest" in row for row in instruments)
    assert all(row["open_interest"] >= 0 for row in summary)
    assert others == []


async def test_an_order_book_has_pairs_and_the_ticker(exchange: Exchange) -> None:
    """get_order_book answers price and amount pairs up to the depth, with change_id and open interest."""
    async with client(exchange) as deribit:
        book = (await deribit.call("public/get_order_book", instrument_name=names(exchange)[0], depth=1))["result"]
        ticker = (await deribit.call("public/ticker", instrument_name=names(exchange)[0]))["result"]

    assert len(book["bids"]) <= 1 >= len(book["asks"])
    assert book.keys() - ticker.keys() == {"bids", "asks", "change_id"}


# Subscriptions


async def test_subscribe_leaves_out_what_does_not_exist(exchange: Exchange) -> None:
    """Unknown instruments, intervals and channels are silently absent from the result."""
    name = names(exchange)[0]
    good = {
        f"book.{name}.100ms",
        f"ticker.{name}.100ms",
        WIDE_TRADES,
        "platform_state",
        "deribit_price_index.eth_usd",
    }
    good |= {"instrument.state.option.ETH", "instrument.creation.any.any", "platform_state.public_methods_state"}
    async with client(exchange) as deribit:
        granted = await deribit.subscribe(*good, f"book.{name}.50ms", "ticker.ETH-1JAN20-1-C.100ms", "bogus.channel")
        nothing = await deribit.subscribe("bogus.channel")

    assert set(granted) == good
    assert len(granted) == len(good)
    assert nothing == []


async def test_a_book_begins_with_a_snapshot_only_once(exchange: Exchange) -> None:
    """Subscribing again is acknowledged without a new snapshot; leaving and coming back gives one."""
    channel = f"book.{names(exchange)[0]}.100ms"
    async with client(exchange) as deribit:
        await deribit.subscribe(channel)
        snapshot = await deribit.data(channel)
        assert await deribit.subscribe(channel) == [channel]
        await deribit.data(channel)
        again = await deribit.call("public/unsubscribe", channels=[channel, "bogus.channel"])
        gone = await deribit.call("public/unsubscribe", channels=[channel])
        await deribit.subscribe(channel)
        await deribit.call("public/test")
        types = [data["type"] for data in deribit.seen(channel)]

    assert snapshot["type"] == "snapshot"
    assert "prev_change_id" not in snapshot
    assert {level[0] for level in snapshot["bids"] + snapshot["asks"]} <= {"new"}
    assert again["result"] == [channel]
    assert gone["result"] == []
    assert types.count("snapshot") == 2
    assert types[1] == "change"


async def test_the_first_ticker_comes_twice(exchange: Exchange) -> None:
    """The first message of a ticker channel is sent twice, identically."""
    channel = f"ticker.{names(exchange)[0]}.100ms"
    async with client(exchange) as deribit:
        await deribit.subscribe(channel)
        first, second = await deribit.data(channel), await deribit.data(channel)

    assert first == second


async def test_two_connections_have_whole_chains_of_their_own() -> None:
    """Over seconds each socket's prev_change_id is the change_id before it, though the windows differ."""
    async with (
        serving(options(rate=1500.0)) as exchange,
        client(exchange) as one,
        client(exchange) as two,
    ):
        channels = [f"book.{name}.100ms" for name in names(exchange)]
        for deribit in (one, two):
            await deribit.subscribe(*channels)
        await asyncio.sleep(2)
        for deribit in (one, two):
            assert (await deribit.call("public/unsubscribe_all"))["result"] == "ok"

    sent = []
    for deribit in (one, two):
        chains = {channel: deribit.seen(channel) for channel in channels}
        for chain in chains.values():
            assert [data["prev_change_id"] for data in chain[1:]] == [data["change_id"] for data in chain[:-1]]
        sent.append({data["change_id"] for chain in chains.values() for data in chain})
        assert len(deribit.frames) > 500
    assert sent[0] - sent[1]


async def test_trades_are_numbered_per_instrument_and_kept(exchange: Exchange) -> None:
    """A sweep arrives in one array with one millisecond and numbers in a row; history has the same trades."""
    name = names(exchange)[0]
    async with client(exchange) as deribit:
        await deribit.subscribe(WIDE_TRADES)
        exchange.print_trades(name, 1500)
        live: list[Any] = []
        while len(live) < 1500:
            live += [trade for trade in await deribit.data(WIDE_TRADES) if trade["instrument_name"] == name]
    start = live[0]["trade_seq"]
    status, page = await get(
        exchange,
        "public/get_last_trades_by_instrument",
        instrument_name=name,
        start_seq=start,
        end_seq=start + 1499,
        count=1000,
        sorting="asc",
    )

    assert [trade["trade_seq"] for trade in live] == list(range(start, start + len(live)))
    assert len({trade["timestamp"] for trade in live[:1500]}) == 1
    assert live[0]["trade_id"].startswith("ETH-")
    assert status == 200
    assert page["result"] == {"trades": live[:1000], "has_more": True}


async def test_history_pages_by_sequence_time_and_currency(exchange: Exchange) -> None:
    """Bounds are inclusive; the newest come first unless asked otherwise; a page holds at most 1,000."""
    name = names(exchange)[0]
    exchange.print_trades(name, 30)
    newest = exchange.feed.trades.of(name)[-1].seq
    by_name = {"instrument_name": name}
    _, last = await get(exchange, "public/get_last_trades_by_instrument", **by_name, count=3)
    _, some = await get(
        exchange, "public/get_last_trades_by_instrument", **by_name, end_seq=newest - 5, sorting="desc"
    )
    _, timed = await get(
        exchange,
        "public/get_last_trades_by_currency_and_time",
        currency="ETH",
        kind="option",
        start_timestamp=last["result"]["trades"][0]["timestamp"],
        end_timestamp=2**42,
        count=1000,
    )
    too_many = await get(exchange, "public/get_last_trades_by_instrument", **by_name, count=1001)

    assert [trade["trade_seq"] for trade in last["result"]["trades"]] == [newest, newest - 1, newest - 2]
    assert last["result"]["has_more"] is True
    assert [trade["trade_seq"] for trade in some["result"]["trades"]] == list(range(newest - 5, newest - 15, -1))
    assert len([trade for trade in timed["result"]["trades"] if trade["instrument_name"] == name]) >= 30
    assert too_many[0] == 400
    assert too_many[1]["error"]["data"]["param"] == "count"


async def test_http_refuses_what_needs_a_socket(exchange: Exchange) -> None:
    """A websocket-only method over HTTP is answered 400 with 10030."""
    status, body = await get(exchange, "public/subscribe", channels="x")

    assert (status, body["error"]["code"]) == (400, 10030)


async def test_new_and_expired_options_are_told(exchange: Exchange) -> None:
    """A listing and a delivery come on the lifecycle channels, and the chain follows."""
    old = names(exchange)[0]
    async with client(exchange) as deribit:
        await deribit.subscribe("instrument.state.option.ETH", "instrument.creation.option.ETH")
        [new] = exchange.list_options(1)
        created = await deribit.data("instrument.creation.option.ETH")
        exchange.expire_options([old])
        state = await deribit.data("instrument.state.option.ETH")
        granted = await deribit.subscribe(f"book.{new}.100ms", f"book.{old}.100ms")
        await deribit.call("public/test")
        [book] = deribit.seen(f"book.{new}.100ms")

    assert created["instrument_name"] == new
    assert (state["instrument_name"], state["state"]) == (old, "delivered")
    assert granted == [f"book.{new}.100ms"]
    assert book["type"] == "snapshot"


# The session


async def test_an_answered_heartbeat_keeps_the_socket_open(exchange: Exchange) -> None:
    """test_request comes again and again to a client that answers it, with a heartbeat on an idle socket."""
    kinds: list[str] = []
    async with client(exchange) as deribit:
        assert (await deribit.call("public/set_heartbeat", interval=10))["result"] == "ok"
        while kinds.count("test_request") < 3:
            message = await deribit.receive()
            kinds.append(message["params"]["type"])
            assert message["method"] == "heartbeat"
            if kinds[-1] == "test_request":
                await deribit.call("public/test")

    assert kinds[:2] == ["heartbeat", "test_request"]


async def test_an_unanswered_heartbeat_closes_with_4000(exchange: Exchange) -> None:
    """A client that does not answer test_request is closed with code 4000, `heartbeat close`."""
    async with client(exchange) as deribit:
        await deribit.call("public/set_heartbeat", interval=10)
        with pytest.raises(ConnectionClosedError) as closed:
            await deribit.drain()

    assert closed.value.rcvd is not None
    assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4000, "heartbeat close")


async def test_a_socket_that_wants_nothing_is_dropped(exchange: Exchange) -> None:
    """Without a heartbeat and a subscription the connection ends without a close frame."""
    async with client(exchange) as deribit:
        with pytest.raises(ConnectionClosedError) as closed:
            await deribit.receive()

    assert closed.value.rcvd is None


async def test_asking_too_much_ends_the_session(exchange: Exchange) -> None:
    """More subscribe calls than the credits allow: 10028, and the connection is closed."""
    async with client(exchange) as deribit:
        for number in range(200):
            await deribit.socket.send(
                json.dumps({"id": number, "method": "public/subscribe", "params": {"channels": []}})
            )
        with pytest.raises(ConnectionClosed):
            await deribit.drain()
    answers = deribit.messages

    assert answers[-1]["error"] == {"code": 10028, "message": "too_many_requests"}
    assert 10 <= len(answers) - 1 < 200


async def test_a_slow_reader_is_cut_off(exchange: Exchange, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that does not read is disconnected instead of being waited for."""
    monkeypatch.setattr(session, "MOST_WAITING", 20)
    async with connect(exchange.url, max_size=None, max_queue=1, compression=None, close_timeout=0.1) as socket:
        await socket.send(json.dumps({"method": "public/set_heartbeat", "params": {"interval": 10_000}}))
        async with asyncio.timeout(20):
            while exchange.numbers:
                exchange.send_raw("x" * 1_000_000)
                await asyncio.sleep(0)

    assert exchange.numbers == []


async def test_one_connection_too_many_gets_429(exchange: Exchange) -> None:
    """The 33rd connection is refused by HTTP; the others stay."""
    sockets = [await connect(exchange.url) for _ in range(MOST_CONNECTIONS)]
    with pytest.raises(InvalidStatus) as refused:
        await connect(exchange.url)
    for socket in sockets:
        await socket.close()

    assert refused.value.response.status_code == 429


async def test_a_killed_connection_ends_and_the_others_do_not(exchange: Exchange) -> None:
    """Killing one connection leaves the others as they were."""
    async with client(exchange) as one, client(exchange) as two:
        exchange.kill(exchange.numbers[0])
        with pytest.raises(ConnectionClosedError):
            await one.receive()
        response = await two.call("public/test")

    assert "result" in response


async def test_the_journal_has_what_was_received_in_its_order(tmp_path: Path) -> None:
    """The journal's messages are those that the client received, byte for byte, beside what was subscribed."""
    journal = tmp_path / "journal.jsonl"
    async with serving(options(rate=2000.0, journal=journal)) as exchange, client(exchange) as deribit:
        channels = [f"{kind}.{name}.100ms" for name in names(exchange) for kind in ("book", "ticker")]
        await deribit.subscribe(*channels, WIDE_TRADES)
        for _ in range(50):
            await deribit.data(WIDE_TRADES if exchange.feed.trades.of(None) else channels[0])
            if len(deribit.frames) > 1000:
                break
        await deribit.call("public/unsubscribe_all")
    lines = journal.read_bytes().splitlines()
    prefix = b'"message":'
    messages = [line.partition(prefix)[2][:-1].decode() for line in lines if prefix in line]
    events = [json.loads(line)["event"] for line in lines if prefix not in line]

    assert messages == deribit.frames
    assert len(messages) > 100
    assert [event for event in events if event != "unsent_trade"] == ["open", "subscribed", "unsubscribed", "close"]
