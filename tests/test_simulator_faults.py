"""What is ordered to go wrong goes wrong, and the journal says what was withheld."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosedError

from recorder.simulator.faults import parse
from recorder.simulator.live import Live
from recorder.simulator.run import serving
from tests.test_simulator import WIDE_TRADES, client, get, names, options

pytestmark = pytest.mark.anyio


def faults_in(journal: Path) -> list[Any]:
    lines = [json.loads(line) for line in journal.read_bytes().splitlines()]
    return [line for line in lines if line.get("event") == "fault"]


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
        assert isinstance(exchange.feed, Live)
        name = names(exchange)[0]
        await deribit.subscribe(WIDE_TRADES)
        exchange.skip_trade()
        exchange.feed.print_trades(name, 3)
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
    lines = [json.loads(line) for line in journal.read_bytes().splitlines()]
    kinds = [line.get("kind", "message" if "message" in line else line["event"]) for line in lines]

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
