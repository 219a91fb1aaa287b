"""Messages per CPU-second of the recorder's whole way, beside a bare `websockets` receive loop.

The way: socket → decode → rows → fsynced segments. Both read the same frames from the same server, as fast as they
can, each in a process of its own; CPU is the process's, its writer thread included, from the first frame to the last.
"""

import asyncio
import json
import multiprocessing as mp
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection as Pipe
from typing import Any

from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve

from recorder.deribit.session import RECEIVE_QUEUE_FRAMES
from recorder.simulator.journal import Journal
from recorder.simulator.live import Live, window_us

INSTRUMENTS = 50
MESSAGES = 200_000
ROUNDS = 3
_SPAWN = mp.get_context("spawn")


def run(share: float) -> dict[str, Any]:
    """Return the best of three rounds of each, measured in turn, and their ratio."""
    count = int(MESSAGES * share)
    here, there = _SPAWN.Pipe()
    server = _SPAWN.Process(target=_serve, args=(there, count), daemon=True)
    server.start()
    port = here.recv()
    bare, whole = [], []
    for _ in range(ROUNDS):
        bare.append(_measured(_receive_bare, port, count))
        whole.append(_measured(_record, port, count))
    server.terminate()
    reference, ours = max(bare), max(whole)
    return {
        "reference": "a bare websockets receive loop over the same frames",
        "messages": count,
        "instruments": INSTRUMENTS,
        "bare_messages_per_cpu_s": round(reference),
        "recorder_messages_per_cpu_s": round(ours),
        "ratio": round(ours / reference, 3),
        "goal": 0.45,
    }


def _measured(client: Callable[[Pipe, int, int], None], port: int, count: int) -> float:
    here, there = _SPAWN.Pipe()
    process = _SPAWN.Process(target=client, args=(there, port, count))
    process.start()
    cpu_s = here.recv()
    process.join()
    return count / float(cpu_s)


def _receive_bare(out: Pipe, port: int, count: int) -> None:
    async def receive() -> float:
        async with connect(
            f"ws://127.0.0.1:{port}", compression=None, ping_interval=None, max_queue=RECEIVE_QUEUE_FRAMES
        ) as socket:
            await socket.send(json.dumps({"id": 1, "method": "public/subscribe", "params": {"channels": []}}))
            await socket.recv()
            begun = time.process_time()
            for _ in range(count):
                await socket.recv(decode=False)
            return time.process_time() - begun

    out.send(asyncio.run(receive()))


def _record(out: Pipe, port: int, count: int) -> None:
    from recorder.record import Recorder  # noqa: PLC0415 - only in the process that is measured
    from recorder.runtime import logging  # noqa: PLC0415
    from recorder.runtime.data_dir import DataDir  # noqa: PLC0415
    from recorder.settings import RecorderSettings  # noqa: PLC0415

    logging.configure(level="ERROR", form="json")

    async def record(folder: str) -> float:
        settings = RecorderSettings(
            deribit_ws_url=f"ws://127.0.0.1:{port}", top_n_instruments=0, buffer_size_quotes=10**6,
            buffer_size_tickers=10**6,
        )  # fmt: skip
        recorder = Recorder(settings, DataDir(folder), "bench", logging.get_logger("bench"))
        running = asyncio.create_task(recorder.run(run_for_s=None, connect_timeout_s=None))
        while recorder.received == 0:  # noqa: ASYNC110 - nothing announces a first message
            await asyncio.sleep(0.005)
        begun, at_first = time.process_time(), recorder.received
        while recorder.received < count:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        cpu_s = time.process_time() - begun
        recorder.stop()
        await running
        return cpu_s * count / (count - at_first)

    with tempfile.TemporaryDirectory() as folder, DataDir(folder).lock("bench"):
        out.send(asyncio.run(record(folder)))


def _serve(out: Pipe, count: int) -> None:
    asyncio.run(_serving(out, count))


async def _serving(out: Pipe, count: int) -> None:
    exchange, frames = _frames(count)

    async def answer(socket: ServerConnection) -> None:
        async for text in socket:
            request = json.loads(text)
            match request["method"]:
                case "public/subscribe":
                    result: Any = request["params"]["channels"]
                case "public/get_instruments":
                    result = [json.loads(row) for row in exchange.instruments("ETH")]
                case "public/get_book_summary_by_currency":
                    result = [json.loads(row) for row in exchange.summaries("ETH")]
                case _:
                    result = "ok"
            await socket.send(json.dumps({"jsonrpc": "2.0", "id": request["id"], "result": result}))
            if request["method"] == "public/subscribe":
                for frame in frames:
                    await socket.send(frame, text=True)

    async with serve(answer, "127.0.0.1", 0, compression=None, ping_interval=None) as server:
        out.send(server.sockets[0].getsockname()[1])
        await asyncio.Future()


def _frames(count: int) -> tuple[Live, list[bytes]]:
    """Make frames in Deribit's shapes and mix: one connection's view of a simulated market."""
    rate = 2000
    live = Live(currency="ETH", instruments=INSTRUMENTS, messages_per_s=rate, seed=1, journal=Journal(None))
    frames: list[bytes] = []
    stream = live.open(0, lambda _channel, frame: frames.append(frame))
    names = list(live.market.options)
    stream.subscribe([f"{kind}.{name}.100ms" for name in names for kind in ("book", "ticker")])
    stream.subscribe(["trades.option.ETH.100ms"])
    step_us = window_us(rate, INSTRUMENTS) / 5
    now_us, number = live.market.now_us, 0
    while len(frames) < count:
        number += 1
        live.advance(int(now_us + number * step_us), number % 5)
    return live, frames[:count]
