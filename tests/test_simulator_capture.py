"""A captured file is played as it is: every message of the asked channels, no other, byte for byte."""

import asyncio
import json
import re
from pathlib import Path

import pytest

from recorder.runtime.errors import TicktapeError
from recorder.simulator.run import serving
from tests.test_simulator import WIDE_TRADES, client, options

pytestmark = pytest.mark.anyio

CALL, PUT, OTHER = "ETH-30JUL21-2800-C", "ETH-27AUG21-4000-P", "BTC-30JUL21-24000-P"


def line(second: float, channel: str, data: str) -> str:
    message = f'{{"jsonrpc":"2.0","method":"subscription","params":{{"channel":"{channel}","data":{data}}}}}'
    return f"{1626993723 + second}: {message}"


def book(name: str, change_id: int, prev: int | None, bids: str) -> str:
    kind = '"type":"snapshot"' if prev is None else f'"type":"change","prev_change_id":{prev}'
    ids = f'"timestamp":1626993723632,"instrument_name":"{name}","change_id":{change_id}'
    return f'{{{kind},{ids},"bids":{bids},"asks":[]}}'


@pytest.fixture
def capture(tmp_path: Path) -> Path:
    """A small file in the form of the real one: exponents, an empty book, another currency, a trade."""
    path = tmp_path / "capture.txt"
    ticker = '{"timestamp":1626993723632,"open_interest":1.2685e4,"instrument_name":"%s","mark_price":1.972e-3}'
    lines = [
        "wss://www.deribit.com/ws/api/v2 <-> 1626993723.4",
        'wss://www.deribit.com/ws/api/v2 <- 1626993723.7: {"jsonrpc":"2.0","id":0,"method":"public/subscribe"}',
        f'1626993723.8: {{"jsonrpc":"2.0","id":0,"result":["ticker.{CALL}.raw"],"testnet":false}}',
        line(0.1, f"ticker.{CALL}.raw", ticker % CALL),
        line(0.2, f"ticker.{OTHER}.raw", ticker % OTHER),
        line(0.3, f"book.{CALL}.raw", book(CALL, 10, None, '[["new",1.5e-3,4.714e3],["new",0.001,861.0]]')),
        line(0.4, f"book.{PUT}.raw", book(PUT, 11, None, "[]")),
        line(0.5, f"book.{CALL}.raw", book(CALL, 20, 10, '[["delete",1.5e-3,0.0],["new",0.0005,1]]')),
        line(
            0.6,
            f"trades.{CALL}.raw",
            f'[{{"trade_seq":1,"trade_id":"ETH-1","timestamp":1,"price":2e-3,"instrument_name":"{CALL}"}}]',
        ),
    ]
    path.write_text("\n".join(lines))
    return path


def played(path: Path, currency: str) -> list[tuple[str, str]]:
    """Channel and data of what a client of books and tickers must get, read another way than the simulator."""
    pattern = re.compile(rf'"channel":"((?:book|ticker)\.{currency}-.*?)\.raw","data":(.*)\}}\}}$')
    return [
        (f"{found[1]}.100ms", found[2]) for text in path.read_text().splitlines() if (found := pattern.search(text))
    ]


def received(frames: list[str]) -> list[tuple[str, str]]:
    pattern = re.compile(r'"channel":"(.*?)","data":(.*)\}\}$')
    return [(found[1], found[2]) for frame in frames if (found := pattern.search(frame))]


async def test_the_universe_comes_from_the_captured_names(capture: Path) -> None:
    """Instruments and open interest are those of the file, for the asked currency only."""
    async with serving(options(capture=capture)) as exchange, client(exchange) as deribit:
        instruments = (await deribit.call("public/get_instruments", currency="ETH", kind="option"))["result"]
        summary = (await deribit.call("public/get_book_summary_by_currency", currency="ETH"))["result"]
        bitcoin = (await deribit.call("public/get_book_summary_by_currency", currency="BTC"))["result"]

    assert {row["instrument_name"]: row["strike"] for row in instruments} == {CALL: 2800.0, PUT: 4000.0}
    assert instruments[0]["expiration_timestamp"] == 1627632000000
    assert {row["instrument_name"]: row["open_interest"] for row in summary} == {CALL: 12685.0, PUT: 0.0}
    assert [row["instrument_name"] for row in bitcoin] == [OTHER]


async def test_every_message_is_played_in_order_and_untouched(capture: Path) -> None:
    """Books and tickers come as captured, numbers as written; the wide channel carries the trade."""
    async with serving(options(capture=capture, speed=1000.0)) as exchange, client(exchange) as deribit:
        channels = [f"{kind}.{name}.100ms" for name in (CALL, PUT) for kind in ("book", "ticker")]
        granted = await deribit.subscribe(*channels, WIDE_TRADES, "platform_state", "ticker.ETH-1JAN22-1-C.100ms")
        trades = await deribit.data(WIDE_TRADES)

    assert set(granted) == {*channels, WIDE_TRADES, "platform_state"}
    assert received(deribit.frames)[:-1] == played(capture, "ETH")
    assert [trade["trade_id"] for trade in trades] == ["ETH-1"]


async def test_coming_back_to_a_book_gives_what_was_played(capture: Path) -> None:
    """After the end of the file the connection stays, and a book begins again with its last state."""
    async with serving(options(capture=capture, speed=1000.0)) as exchange, client(exchange) as deribit:
        channel = f"book.{CALL}.100ms"
        await deribit.subscribe(channel, WIDE_TRADES)
        await deribit.data(WIDE_TRADES)
        await deribit.call("public/unsubscribe", channels=[channel])
        await deribit.subscribe(channel)
        await deribit.call("public/set_heartbeat", interval=10)
        while (beat := await deribit.receive())["method"] != "heartbeat":
            pass
        snapshot = deribit.seen(channel)[-1]

    assert snapshot["change_id"] == 20
    assert snapshot["type"] == "snapshot"
    assert snapshot["bids"] == [["new", 0.001, 861.0], ["new", 0.0005, 1]]
    assert beat["params"]["type"] == "heartbeat"


async def test_a_file_without_messages_is_refused(tmp_path: Path) -> None:
    """Anything but a capture ends with one line."""
    path = tmp_path / "notes.txt"
    path.write_text("nothing captured here\n")
    with pytest.raises(TicktapeError, match="holds no captured message"):
        async with serving(options(capture=path)):
            pass


async def test_the_real_capture_is_played_whole(samples: Path) -> None:
    """Of 30 s of production, 46 book and 89 ticker messages arrive, byte for byte, over two currencies."""
    path = samples / "production-2021-07-22.ws.txt"
    counts = {"book": 0, "ticker": 0}
    async with serving(options(capture=path, speed=100.0)) as exchange:
        for currency in ("ETH", "BTC"):
            async with client(exchange) as deribit:
                rows = await deribit.call("public/get_book_summary_by_currency", currency=currency)
                expected = played(path, currency)
                listed = [row["instrument_name"] for row in rows["result"]]
                await deribit.subscribe(*(f"{kind}.{name}.100ms" for name in listed for kind in ("book", "ticker")))
                while len(deribit.frames) < len(expected):
                    await deribit.receive()
                await asyncio.sleep(0.1)
                await deribit.call("public/test")
            assert received(deribit.frames) == expected
            for frame in deribit.frames:
                counts[json.loads(frame)["params"]["channel"].partition(".")[0]] += 1

    assert counts == {"book": 46, "ticker": 89}
