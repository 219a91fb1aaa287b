"""What is ordered to go wrong goes wrong, and the journal says what was withheld."""

import asyncio
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosedError

from recorder.simulator.faults import parse
from recorder.simulator.run import serving
from recorder.simulator.server import Exchange
from tests.test_simulator import WIDE_TRADES, client, get, names, options

pytestmark = pytest.mark.anyio


def lines_in(journal: Path) -> list[Any]:
    return [json.loads(line) for line in journal.read_bytes().splitlines()]


def faults_in(journal: Path) -> list[Any]:
    return [line for line in lines_in(journal) if line.get("event") == "fault"]


def lines_now(exchange: Exchange, journal: Path) -> list[Any]:
    """Read a journal that is being written."""
    exchange.journal.flush()
    return lines_in(journal)


def faults_now(exchange: Exchange, journal: Path) -> list[Any]:
    exchange.journal.flush()
    return faults_in(journal)


async def test_a_skipped_change_breaks_one_chain(tmp_path: Path) -> None:
    """The next prev_change_id is the change_id of the message that was withheld."""
    journal = tmp_path / "journal.jsonl"
    async with serving(options(rate=1000.0, journal=journal)) as exchange, client(exchange) as deribit:
        channel = f"book.{names(exchange)[0]}.100ms"
        await deribit.subscribe(channel)
        before = await deribit.data(channel)
        exchange.skip_change(names(exchange)[0])
        while (after := await deribit.data(channel))["prev_change_id"] == before["change_id"]:
            before = after
    [fault] = faults_in(journal)
    withheld = fault["message"]["params"]["data"]

    assert (fault["kind"], fault["channel"], fault["connection"]) == ("gap", channel, 1)
    assert withheld["prev_change_id"] == before["change_id"]
    assert after["prev_change_id"] == withheld["change_id"] != before["change_id"]


async def test_a_gap_to_order_breaks_a_chain(tmp_path: Path) -> None:
    """`gap:at` withholds a book change of some connection."""
    journal = tmp_path / "journal.jsonl"
    ordered = options(rate=1000.0, journal=journal, faults=parse("gap:at=0.3"))
    async with serving(ordered) as exchange, client(exchange) as deribit:
        channels = [f"book.{name}.100ms" for name in names(exchange)]
        await deribit.subscribe(*channels)
        newest: dict[str, int] = {}
        broken = False
        while not broken:
            message = await deribit.receive()
            data = message["params"]["data"]
            broken = data.get("prev_change_id") != newest.get(data["instrument_name"])
            newest[data["instrument_name"]] = data["change_id"]

    assert [fault["kind"] for fault in faults_in(journal)] == ["gap"]


async def test_a_skipped_trade_is_only_in_the_history(tmp_path: Path) -> None:
    """The trade is missing from the live channel and answered by the history."""
    journal = tmp_path / "journal.jsonl"
    async with serving(options(journal=journal)) as exchange, client(exchange) as deribit:
        name = names(exchange)[0]
        await deribit.subscribe(WIDE_TRADES)
        exchange.skip_trade()
        exchange.print_trades(name, 3)
        live: list[int] = []
        while len(live) < 2:
            trades = await deribit.data(WIDE_TRADES)
            live += [trade["trade_seq"] for trade in trades if trade["instrument_name"] == name]
        bounds = {"start_seq": live[0] - 1, "end_seq": live[1], "sorting": "asc"}
        _, page = await get(exchange, "public/get_last_trades_by_instrument", instrument_name=name, **bounds)
    [fault] = faults_in(journal)

    assert [trade["trade_seq"] for trade in page["result"]["trades"]] == [live[0] - 1, live[0], live[1]]
    assert fault["kind"] == "trade_gap"
    assert fault["message"] == page["result"]["trades"][0]


async def test_disconnects_come_without_a_close_frame() -> None:
    """`disconnect` cuts a connection as a broken network does."""
    async with serving(options(faults=parse("disconnect:every=0.1"))) as exchange, client(exchange) as deribit:
        await deribit.subscribe("platform_state")
        with pytest.raises(ConnectionClosedError) as closed:
            await deribit.drain()

    assert closed.value.rcvd is None


async def test_silence_is_half_open(tmp_path: Path) -> None:
    """Nothing is sent and no ping is answered until it is over; then the connection goes on."""
    journal = tmp_path / "journal.jsonl"
    async with serving(options(rate=1000.0, journal=journal)) as exchange, client(exchange) as deribit:
        await deribit.subscribe(*(f"ticker.{name}.100ms" for name in names(exchange)))
        silence = asyncio.create_task(exchange.silence(0.3))
        await asyncio.sleep(0)
        pong = asyncio.ensure_future(await deribit.socket.ping())
        await asyncio.sleep(0.1)
        answered_within = pong.done()
        await silence
        await pong
        await deribit.call("public/test")
        await deribit.receive()
        await deribit.call("public/unsubscribe_all")
    lines = lines_in(journal)
    kinds = [line.get("kind", line.get("event", "message")) for line in lines]
    kinds = [kind for kind in kinds if kind not in ("unsent_trade", "unsent")]

    assert not answered_within
    assert kinds.index("silence over") == kinds.index("silence") + 1
    assert "message" in kinds[kinds.index("silence over") :]


async def test_malformed_messages_come_in_every_form(tmp_path: Path) -> None:
    """Five forms in turn are sent as the journal says, and the right messages are told."""
    journal = tmp_path / "journal.jsonl"
    ordered = options(rate=1000.0, journal=journal, faults=parse("malformed:every=0.05"))
    texts: list[str] = []
    async with serving(ordered) as exchange, client(exchange) as deribit:
        await deribit.subscribe(*(f"book.{name}.100ms" for name in names(exchange)))
        while not any("surprise." in text for text in texts):
            texts.append(await deribit.socket.recv(decode=True))
    faults = faults_in(journal)

    assert [fault["form"] for fault in faults[:5]] == [
        "not json",
        "truncated",
        "wrong types",
        "bad price",
        "unknown channel",
    ]
    assert {fault["sent"] for fault in faults[:5]} <= set(texts)
    assert all("message" in fault for fault in faults[:4])


async def test_raw_text_reaches_every_connection() -> None:
    """A test can send anything to everyone."""
    async with serving(options()) as exchange, client(exchange) as one, client(exchange) as two:
        for deribit in (one, two):
            await deribit.call("public/test")
        exchange.send_raw('{"anything":1}')

        assert await one.receive() == await two.receive() == {"anything": 1}


async def test_a_message_comes_twice(tmp_path: Path) -> None:
    """The next message of the kind is sent twice in a row, and the journal has both."""
    journal = tmp_path / "journal.jsonl"
    async with serving(options(rate=1000.0, journal=journal)) as exchange, client(exchange) as deribit:
        channel = f"book.{names(exchange)[0]}.100ms"
        await deribit.subscribe(channel)
        await deribit.data(channel)
        exchange.duplicate(1, "book.")
        first, second = None, await deribit.data(channel)
        while first != second:
            first, second = second, await deribit.data(channel)
        frame = deribit.frames[-1]
        await deribit.data(channel)
    [fault] = faults_in(journal)
    sent = [line["message"]["params"]["data"] for line in lines_in(journal) if "message" in line]

    assert first == second
    assert (fault["kind"], fault["channel"], fault["sent"]) == ("duplicate", channel, frame)
    assert sent.count(first) == 2
    assert deribit.seen(channel)[-1]["prev_change_id"] == second["change_id"]


async def test_messages_of_two_instruments_change_places(tmp_path: Path) -> None:
    """The one that was first comes second; every chain stays whole."""
    journal = tmp_path / "journal.jsonl"
    async with serving(options(rate=1000.0, journal=journal)) as exchange, client(exchange) as deribit:
        channels = [f"book.{name}.100ms" for name in names(exchange)]
        await deribit.subscribe(*channels)
        await deribit.call("public/test")
        exchange.reorder(1, "book.")
        while not (swapped := faults_now(exchange, journal)):
            await deribit.receive()
        await deribit.call("public/unsubscribe_all")
        order = [json.loads(frame)["params"]["channel"] for frame in deribit.frames]
        chains = [deribit.seen(channel) for channel in channels]
    earlier, later = swapped[0]["channels"]

    assert earlier != later
    assert any(pair == (earlier, later) for pair in pairwise(order))
    for chain in chains:
        assert [data["prev_change_id"] for data in chain[1:]] == [data["change_id"] for data in chain[:-1]]


async def test_messages_of_one_trades_channel_change_places(tmp_path: Path) -> None:
    """The trades of a window are overtaken by those of a later one."""
    journal = tmp_path / "journal.jsonl"
    async with serving(options(rate=1.0, journal=journal)) as exchange, client(exchange) as deribit:
        name = names(exchange)[0]
        await deribit.subscribe(WIDE_TRADES)
        exchange.reorder(1, "trades.")
        first = exchange.live.market.options[name].trade_seq + 1
        for _ in range(2):
            exchange.print_trades(name, 1)
            await asyncio.sleep(0.25)
        live = [await deribit.data(WIDE_TRADES) for _ in range(2)]
    [fault] = faults_in(journal)

    assert [trade["trade_seq"] for trades in live for trade in trades] == [first + 1, first]
    assert (fault["kind"], fault["channels"]) == ("reorder", [WIDE_TRADES, WIDE_TRADES])


async def test_what_is_held_back_is_not_lost(tmp_path: Path) -> None:
    """A message that waits to be overtaken comes before its channel is left, or is told as unsent."""
    journal = tmp_path / "journal.jsonl"
    async with serving(options(rate=1.0, journal=journal)) as exchange, client(exchange) as deribit:
        name = names(exchange)[0]
        first = exchange.live.market.options[name].trade_seq + 1
        await deribit.subscribe(WIDE_TRADES)
        for _ in range(2):
            exchange.reorder(1, "trades.")
            exchange.print_trades(name, 1)
            await asyncio.sleep(0.25)
            if not deribit.seen(WIDE_TRADES):
                await deribit.call("public/unsubscribe", channels=[WIDE_TRADES])
                await deribit.subscribe(WIDE_TRADES)
        exchange.kill(1)
        with pytest.raises(ConnectionClosedError):
            await deribit.drain()
        received = [trade["trade_seq"] for trades in deribit.seen(WIDE_TRADES) for trade in trades]
    unsent = [line["trade"]["trade_seq"] for line in lines_in(journal) if line.get("event") == "unsent_trade"]

    assert received == [first]
    assert unsent == [first + 1]


async def test_doubled_and_reordered_messages_can_be_ordered(tmp_path: Path) -> None:
    """Books, tickers and trades take turns, on what a connection holds."""
    journal = tmp_path / "journal.jsonl"
    ordered = options(rate=4000.0, journal=journal, faults=parse("duplicate:every=0.05;reorder:every=0.07"))
    async with serving(ordered) as exchange, client(exchange) as deribit:
        quotes = [f"{kind}.{name}.100ms" for name in names(exchange) for kind in ("book", "ticker")]
        await deribit.subscribe(WIDE_TRADES, *quotes)
        async with asyncio.timeout(20):
            while not is_varied(faults_now(exchange, journal)):
                for _ in range(500):
                    await deribit.receive()


def is_varied(faults: list[Any]) -> bool:
    doubled = {fault["channel"].partition(".")[0] for fault in faults if fault["kind"] == "duplicate"}
    swapped = {fault["channels"][0].startswith("trades") for fault in faults if fault["kind"] == "reorder"}
    return doubled == {"book", "ticker", "trades"} and swapped == {True, False}
