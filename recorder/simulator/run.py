"""Starts a simulated exchange and ends it cleanly: for the command line, and inside of tests."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from websockets.asyncio.server import serve
from websockets.extensions.permessage_deflate import ServerPerMessageDeflateFactory

from recorder.runtime.errors import TicktapeError
from recorder.simulator.capture import Captured
from recorder.simulator.feed import Feed
from recorder.simulator.journal import Journal
from recorder.simulator.live import Live
from recorder.simulator.options import Options
from recorder.simulator.rest import PREFIX
from recorder.simulator.sabotage import Sabotage
from recorder.simulator.server import WEBSOCKET_PATH, Exchange

# Larger than what is answered with an error (32 kB), so that it can be answered.
_LARGEST_REQUEST_BYTES = 1 << 20
_CLOSE_TIMEOUT_S = 2.0
# As seen on the wire: only if the client offers it. The lightest level, for it is paid for each connection.
_DEFLATE = ServerPerMessageDeflateFactory(client_max_window_bits=15, compress_settings={"level": 1})


async def run(options: Options, *, stop: asyncio.Event, ready: Callable[[str], None]) -> None:
    """Be an exchange until `stop`, or for as long as the options say; `ready` gets the address."""
    async with serving(options) as exchange:
        ready(exchange.url)
        with suppress(TimeoutError):
            async with asyncio.timeout(options.for_s):
                await stop.wait()


@asynccontextmanager
async def serving(options: Options) -> AsyncIterator[Exchange]:
    """Be an exchange within a block.

    Raises:
        TicktapeError: if it cannot listen, or a file cannot be read or written.
    """
    with _open_journal(options) as journal:
        feed = _feed(options, journal)
        exchange = Exchange(feed, journal, heartbeat_speed=options.heartbeat_speed)
        sabotage = Sabotage(options.faults, exchange, seed=options.seed)
        listening = _listen(options)
        host, port = listening.getsockname()[:2]
        exchange.url = f"ws://{_bracketed(host)}:{port}{WEBSOCKET_PATH}"
        exchange.history_url = f"http://{_bracketed(host)}:{port}{PREFIX.rstrip('/')}"
        async with asyncio.TaskGroup() as group:
            server = serve(
                exchange.on_connection,
                sock=listening,
                process_request=exchange.on_request,
                compression=None,
                extensions=[_DEFLATE],
                max_size=_LARGEST_REQUEST_BYTES,
                ping_interval=None,  # Deribit's own heartbeat is what proves life
                close_timeout=_CLOSE_TIMEOUT_S,
            )
            async with server:
                own = [group.create_task(task) for task in (feed.run(), sabotage.run(), journal.keep_flushed())]
                try:
                    yield exchange
                finally:
                    for task in own:
                        task.cancel()
                    exchange.end()


def _feed(options: Options, journal: Journal) -> Feed:
    if options.capture is not None:
        return Captured.read(options.capture, speed=options.speed)
    return Live(
        currency=options.currency,
        instruments=options.instruments,
        messages_per_s=options.messages_per_s,
        seed=options.seed,
        journal=journal,
        main_keeps_s=options.main_keeps,
    )


def _open_journal(options: Options) -> Journal:
    try:
        return Journal(options.journal)
    except OSError as exc:
        raise TicktapeError(f"cannot write {options.journal}: {exc.strerror}") from exc


def _listen(options: Options) -> socket.socket:
    try:
        address = socket.getaddrinfo(options.host, options.port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(address[0], address[1])
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address[4])
    except OSError as exc:
        raise TicktapeError(
            f"cannot listen on {options.host}:{options.port}: {exc.strerror}",
            remedy="choose another --port, or 0 for any free one",
        ) from exc
    return listening


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
