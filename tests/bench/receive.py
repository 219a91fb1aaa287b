"""Messages per CPU-second of the recorder's whole way, beside bare `websockets` receive loops.

The way: sockets → decode → rows → fsynced segments. Both read the same frames from the same server over as many
sockets, as fast as they can, each in a process of its own; CPU is the process's, its writer thread included, from the
first frame to the last. Every instrument is equally busy however many there are, so the mix of messages is the same.
"""

import asyncio
import contextlib
import json
import multiprocessing as mp
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection as Pipe
from typing import Any, Self

from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from recorder.deribit.session import RECEIVE_QUEUE_FRAMES
from recorder.simulator.feed import Stream
from recorder.simulator.journal import Journal
from recorder.simulator.live import PHASES, Live, window_us

CHAINS = ((50, 1), (50, 2), (1000, 1), (1000, 2))  # instruments, redundancy
MESSAGES = 100_000
MESSAGES_PER_OPTION_S = 40
ROUNDS = 5
GOAL = 0.45  # of the bare loop, for 50 instruments on one connection
_SPAWN = mp.get_context("spawn")


def run(share: float) -> dict[str, Any]:
    """Return a row for each chain: the best of some rounds, and their ratio.

    All take turns in each round, so that a machine which is slower for a minute is so for all.
    """
    count = int(MESSAGES * share)
    with contextlib.ExitStack() as servers:
        chains = [servers.enter_context(_Chain(*chain, count)) for chain in CHAINS]
        for _ in range(ROUNDS):
            for chain in chains:
                chain.measure()
        rows = [chain.row() for chain in chains]
    for row in rows:
        row["cpu_beside_first_row"] = round(row["recorder_cpu_us"] / rows[0]["recorder_cpu_us"], 2)
    return {
        "reference": "bare websockets receive loops over the same frames on as many sockets",
        "goal_of_first_row": GOAL,
        "rows": rows,
    }


class _Chain:
    """One number of instruments, and on how many connections each is; with its server."""

    def __init__(self, instruments: int, redundancy: int, count: int) -> None:
        self._instruments, self._redundancy, self._count = instruments, redundancy, count
        self._bare: list[float] = []
        self._whole: list[float] = []
        self._here, there = _SPAWN.Pipe()
        self._server = _SPAWN.Process(target=_serve, args=(there, instruments, redundancy, count), daemon=True)

    def __enter__(self) -> Self:
        self._server.start()
        self._port = self._here.recv()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.terminate()

    def measure(self) -> None:
        """Let the recorder receive, and then the bare loops, over what the recorder was just sent."""
        self._whole.append(_measured(_record, self._port, self._redundancy, self._count))
        self._bare.append(_measured(_receive_bare, self._port, self._here.recv(), self._count))

    def row(self) -> dict[str, Any]:
        """Return what was measured."""
        reference, ours = max(self._bare), max(self._whole)
        return {
            "instruments": self._instruments,
            "redundancy": self._redundancy,
            "messages": self._count,
            "bare_messages_per_cpu_s": round(reference),
            "recorder_messages_per_cpu_s": round(ours),
            "recorder_cpu_us": round(1e6 / ours, 1),
            "ratio": round(ours / reference, 3),
        }


def _measured(client: Callable[[Pipe, int, int, int], None], port: int, number: int, count: int) -> float:
    here, there = _SPAWN.Pipe()
    process = _SPAWN.Process(target=client, args=(there, port, number, count))
    process.start()
    cpu_s = here.recv()
    process.join()
    return count / float(cpu_s)


def _receive_bare(out: Pipe, port: int, sockets: int, count: int) -> None:
    received, begun = 0, 0.0

    async def receive(number: int) -> None:
        nonlocal received, begun
        async with connect(
            f"ws://127.0.0.1:{port}", compression=None, ping_interval=None, max_queue=RECEIVE_QUEUE_FRAMES
        ) as socket:
            await socket.send(json.dumps({"id": 1, "method": "again", "params": {"socket": number}}))
            while received < count:
                await socket.recv(decode=False)
                begun = begun or time.process_time()
                received += 1

    async def receive_all() -> float:
        tasks = [asyncio.create_task(receive(number)) for number in range(sockets)]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        cpu_s = time.process_time() - begun
        for task in tasks:
            task.cancel()
        return cpu_s

    out.send(asyncio.run(receive_all()))


def _record(out: Pipe, port: int, redundancy: int, count: int) -> None:
    from recorder.record import Recorder  # noqa: PLC0415 - only in the process that is measured
    from recorder.runtime import logging  # noqa: PLC0415
    from recorder.runtime.data_dir import DataDir  # noqa: PLC0415
    from recorder.settings import RecorderSettings  # noqa: PLC0415

    logging.configure(level="ERROR", form="json")

    async def record(folder: str) -> float:
        settings = RecorderSettings(
            deribit_ws_url=f"ws://127.0.0.1:{port}", top_n_instruments=0, redundancy=redundancy,
            buffer_size_quotes=10**6, buffer_size_tickers=10**6,
        )  # fmt: skip
        recorder = Recorder(settings, DataDir(folder), "bench", logging.get_logger("bench"))
        running = asyncio.create_task(recorder.run(run_for_s=None, connect_timeout_s=None))
        while recorder.received == 0:  # noqa: ASYNC110 - nothing announces a first message
            await asyncio.sleep(0.005)
        begun, at_first = time.process_time(), recorder.received
        while recorder.received < count:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        cpu_s = (time.process_time() - begun) / (recorder.received - at_first)
        recorder.stop()
        await running
        return cpu_s * count

    with tempfile.TemporaryDirectory() as folder, DataDir(folder).lock("bench"):
        out.send(asyncio.run(record(folder)))


def _serve(out: Pipe, instruments: int, redundancy: int, count: int) -> None:
    asyncio.run(_Server(out, instruments, redundancy, count).run())


class _Server:
    """Waits until every channel is subscribed, makes what each socket is to be sent, and sends it at once."""

    def __init__(self, out: Pipe, instruments: int, redundancy: int, count: int) -> None:
        self._out, self._instruments, self._count = out, instruments, count
        self._channels = 2 * instruments * redundancy  # book and ticker of each
        self._last_frames: list[list[bytes]] = []  # what each socket was sent last
        self._sending: set[asyncio.Task[None]] = set()
        self._begin()

    async def run(self) -> None:
        """Serve until cancelled."""
        async with serve(self._answer, "127.0.0.1", 0, compression=None, ping_interval=None) as server:
            self._out.send(server.sockets[0].getsockname()[1])
            await asyncio.Future()

    def _begin(self) -> None:
        self._live = Live(
            currency="ETH",
            instruments=self._instruments,
            messages_per_s=MESSAGES_PER_OPTION_S * self._instruments,
            seed=1,
            journal=Journal(None),
        )
        self._streams: dict[ServerConnection, tuple[Stream, list[bytes]]] = {}
        self._awaited = self._channels

    async def _answer(self, socket: ServerConnection) -> None:
        with contextlib.suppress(ConnectionClosed):
            await self._converse(socket)

    async def _converse(self, socket: ServerConnection) -> None:
        async for text in socket:
            request = json.loads(text)
            params = request.get("params", {})
            match request["method"]:
                case "again":
                    self._send(socket, self._last_frames[params["socket"]])
                    continue
                case "public/subscribe":
                    result: Any = params["channels"]
                case "public/get_instruments":
                    result = [json.loads(row) for row in self._live.instruments("ETH")]
                case "public/get_book_summary_by_currency":
                    result = [json.loads(row) for row in self._live.summaries("ETH")]
                case _:
                    result = "ok"
            await socket.send(json.dumps({"jsonrpc": "2.0", "id": request["id"], "result": result}))
            if request["method"] == "public/subscribe":
                self._subscribe(socket, params["channels"])

    def _subscribe(self, socket: ServerConnection, channels: list[str]) -> None:
        if socket not in self._streams:
            frames: list[bytes] = []
            stream = self._live.open(len(self._streams), lambda _channel, frame: frames.append(frame))
            self._streams[socket] = stream, frames
        # Nothing but ticks: what else the recorder asks for it does not count.
        ticks = [channel for channel in channels if channel.startswith(("book", "ticker", "trades"))]
        self._streams[socket][0].subscribe(ticks)
        self._awaited -= sum(channel.startswith(("book", "ticker")) for channel in channels)
        if self._awaited == 0:
            self._make_frames()
            self._last_frames = [frames for _, frames in self._streams.values()]
            for each, (_, frames) in self._streams.items():
                self._send(each, frames)
            self._out.send(len(self._last_frames))
            self._begin()

    def _make_frames(self) -> None:
        """Let the market live until it has sent enough, in Deribit's shapes and mix."""
        step_us = window_us(MESSAGES_PER_OPTION_S * self._instruments, self._instruments) / PHASES
        begun_us, turn = self._live.market.now_us, 0
        while sum(len(frames) for _, frames in self._streams.values()) < self._count:
            turn += 1
            self._live.advance(int(begun_us + turn * step_us), turn % PHASES)

    def _send(self, socket: ServerConnection, frames: list[bytes]) -> None:
        async def send() -> None:
            with contextlib.suppress(ConnectionClosed):  # who has enough goes
                for frame in frames:
                    await socket.send(frame, text=True)

        task = asyncio.create_task(send())
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)
