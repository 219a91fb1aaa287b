"""One JSON-RPC session on one socket: calls matched by id, subscriptions compared, heartbeats answered.

Facts: Deribit documentation, "JSON-RPC overview", "Market data collection best practices", "Rate limits";
numbers measured on the production feed in 2026-09.
"""

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Any, Protocol

import msgspec
from msgspec import Raw
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from recorder.deribit.messages import UNREADABLE, Envelope, decode_envelope, decode_names, peek_channel
from recorder.deribit.pacer import Pacer
from recorder.runtime.version import version

HEARTBEAT_INTERVAL_S = 10  # the least Deribit allows; a test_request then comes every 10.6 s
SILENCE_LIMIT_S = 35.0  # three heartbeats missed: quiet books send nothing, so only heartbeats prove life
CALL_TIMEOUT_S = 20.0
OPEN_TIMEOUT_S = 10.0
MAX_FRAME_BYTES = 32 * 1024 * 1024  # a full instrument list is 5.1 MB; the library's default is 1 MiB
RECEIVE_QUEUE_FRAMES = 1024  # past it the socket is not read: TCP holds the rest back

LATEST_US = 253_402_300_799_999_999  # the end of the year 9999: no time is later

# The exchange takes 500 channels and 32 kB a call.
SUBSCRIBE_MOST_CHANNELS = 400
SUBSCRIBE_MOST_BYTES = 30_000

Notify = Callable[[str, bytes], None]


class Reject(Protocol):
    """Takes a frame that is of no use, and why; `garbage` if it could not even be decoded."""

    def __call__(self, frame: bytes, reason: str, *, garbage: bool) -> None: ...  # noqa: D102


class RpcError(Exception):
    """Deribit refused a call."""

    def __init__(self, method: str, code: int, message: str, data: bytes) -> None:
        super().__init__(method, code, message, data)
        self.method, self.code, self.message, self.data = method, code, message, data

    def __str__(self) -> str:
        return f"{self.method} was refused with {self.code} {self.message} {self.data.decode(errors='replace')}"


class Silent(Exception):
    """No heartbeat came for SILENCE_LIMIT_S: the connection is dead although the socket is open."""

    def __str__(self) -> str:
        return f"no heartbeat for {SILENCE_LIMIT_S:.0f} s"


class Reply(msgspec.Struct, frozen=True):
    """A call's result, and when the exchange sent it (microseconds since 1970; None if it does not say)."""

    result: Raw
    us_out: int | None


class Socket(ClientConnection):
    """Notes when its newest bytes came from the system, so that it can be told how long a message waited in here."""

    arrived_s = 0.0  # of time.monotonic()

    def data_received(self, data: bytes) -> None:
        """Take bytes; the loop calls it when it gets to them."""
        self.arrived_s = time.monotonic()
        super().data_received(data)


class Session:
    """Use it through `open_session`, which reads the socket in the background."""

    def __init__(self, socket: Socket, notify: Notify, reject: Reject, pacer: Pacer) -> None:
        self._socket = socket
        self._notify = notify
        self._reject = reject
        self._ids = itertools.count(1)
        self._waiting: dict[int | str, asyncio.Future[Envelope]] = {}
        self._pacer = pacer
        self.last_heartbeat_s = time.monotonic()
        self._answers: set[asyncio.Task[None]] = set()
        self.refusal: RpcError | None = None  # of what was called for the session's own sake

    @property
    def waited_s(self) -> float:
        """How long the message that is being handled has waited in the process: no bytes come before its end."""
        return time.monotonic() - self._socket.arrived_s

    async def call(self, method: str, **params: Any) -> Reply:
        """Make one call.

        Raises:
            RpcError: Deribit refused it.
            TimeoutError: no reply within CALL_TIMEOUT_S.
            ConnectionClosed: the socket is gone.
        """
        number = next(self._ids)
        request = {"jsonrpc": "2.0", "id": number, "method": method, "params": params}
        future = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        try:
            await self._socket.send(msgspec.json.encode(request).decode())
            async with asyncio.timeout(CALL_TIMEOUT_S):
                envelope = await future
        finally:
            del self._waiting[number]
        if envelope.error is not None:
            error = envelope.error
            raise RpcError(method, error.code, error.message, bytes(error.data))
        us_out = envelope.usOut
        return Reply(envelope.result, us_out if us_out is not None and 0 <= us_out <= LATEST_US else None)

    async def turns(self, calls: int) -> None:
        """Wait until so many calls of subscribe or unsubscribe may be made at once, with `paced=False`."""
        for _ in range(calls):
            await self._pacer.wait()

    async def subscribe(self, channels: Iterable[str], *, paced: bool = True) -> tuple[set[str], int | None]:
        """Subscribe in calls of allowed size and pace.

        Returns:
            The channels granted (Deribit leaves out a bad one without a word: compare), and when the last
            grant was sent.
        """
        granted: set[str] = set()
        us_out = None
        for chunk in chunks(channels):
            if paced:
                await self._pacer.wait()
            reply = await self.call("public/subscribe", channels=chunk)
            granted.update(decode_names(reply.result))
            us_out = reply.us_out
        return granted, us_out

    async def unsubscribe(self, channels: Iterable[str], *, paced: bool = True) -> set[str]:
        """Unsubscribe likewise; returns the channels that really were subscribed."""
        left: set[str] = set()
        for chunk in chunks(channels):
            if paced:
                await self._pacer.wait()
            left.update(decode_names((await self.call("public/unsubscribe", channels=chunk)).result))
        return left

    async def start_heartbeat(self) -> None:
        """Ask for heartbeats; from here on their absence ends the session."""
        await self.call("public/set_heartbeat", interval=HEARTBEAT_INTERVAL_S)
        self.last_heartbeat_s = time.monotonic()

    async def read(self) -> None:
        """Read frames until the socket closes.

        Raises:
            ConnectionClosed: always, in the end.
        """
        receive = self._socket.recv
        while True:
            frame = await receive(decode=False)
            channel = peek_channel(frame)
            if channel is not None:
                self._notify(channel, frame)
                continue
            try:
                envelope = decode_envelope(frame)
            except UNREADABLE as exc:
                self._reject(frame, str(exc), garbage=True)
                continue
            if envelope.method == "subscription" and envelope.params is not None:
                self._notify(envelope.params.channel, frame)
            else:
                self._other(envelope, frame)

    async def watch(self) -> None:
        """Wait until heartbeats stop.

        Raises:
            Silent: when they have.
        """
        while (left_s := self.last_heartbeat_s + SILENCE_LIMIT_S - time.monotonic()) > 0:  # noqa: ASYNC110 - nothing sets an event when nothing comes
            await asyncio.sleep(left_s)
        raise Silent

    def _other(self, envelope: Envelope, frame: bytes) -> None:
        if envelope.method == "heartbeat":
            self.last_heartbeat_s = time.monotonic()
            if envelope.params is not None and envelope.params.type == "test_request":
                task = asyncio.get_running_loop().create_task(self._answer())
                self._answers.add(task)
                task.add_done_callback(self._answers.discard)
        elif envelope.id is not None and (future := self._waiting.get(envelope.id)) is not None:
            if not future.done():
                future.set_result(envelope)
        else:
            # A reply that came after its time-out, an error without an id, or a method nobody told us of.
            self._reject(frame, "neither an expected reply, a heartbeat, nor a notification", garbage=False)

    async def _answer(self) -> None:
        """Answer a test_request within the 10 s that Deribit allows."""
        with contextlib.suppress(ConnectionClosed, TimeoutError):  # read() and watch() end the session
            try:
                await self.call("public/test")
            except RpcError as exc:
                self.refusal = exc  # the close that follows says less


@contextlib.asynccontextmanager
async def open_session(
    url: str, *, notify: Notify, reject: Reject, pacer: Pacer | None = None
) -> AsyncIterator[Session]:
    """Connect, and read in the background while the body runs.

    The body is cancelled, and its context left with the reason, when the socket closes or falls silent.

    Args:
        url: `wss://…/ws/api/v2`.
        notify: called for each notification with its channel, not validated, and the frame; it must not block.
        reject: called for each frame that is no message, with the reason.
        pacer: shared by all sessions from one IP; a session alone has its own.

    Raises:
        OSError, TimeoutError, websockets.exceptions.WebSocketException: no connection, or it was lost.
        Silent: its heartbeats stopped.
        RpcError: the heartbeat was refused.
    """
    async with connect(
        url,
        create_connection=Socket,
        user_agent_header=f"ticktape/{version()}",
        # Limits
        max_size=MAX_FRAME_BYTES,
        max_queue=RECEIVE_QUEUE_FRAMES,
        # Timeouts
        open_timeout=OPEN_TIMEOUT_S,
        close_timeout=2,
        ping_interval=None,  # Deribit's own heartbeat proves more: it comes from behind the proxy in front
        # Inflating costs as much CPU a message as everything else together; the feed is below 1 MB/s.
        compression=None,
    ) as socket:
        assert isinstance(socket, Socket)
        session = Session(socket, notify, reject, pacer or Pacer())
        async with ended_by_first() as tasks:
            tasks.create_task(session.read())
            await session.start_heartbeat()
            tasks.create_task(session.watch())
            yield session


@contextlib.asynccontextmanager
async def ended_by_first() -> AsyncIterator[asyncio.TaskGroup]:
    """Be a task group whose children never end but by failing; raises the first failure bare.

    Where one fails in the moment in which the body is cancelled from outside, a TaskGroup raises the failure alone
    (CPython 3.11), and the cancellation is lost: whoever was told to end would go on.
    """
    try:
        async with asyncio.TaskGroup() as group:
            yield group
            raise _Left
    except* _Left:
        pass
    except* BaseException as failures:  # noqa: BLE001 - raised again, bare
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise asyncio.CancelledError from None
        raise _first(failures) from None


class _Left(Exception):
    """The body is done: end the children."""


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    inner = group.exceptions[0]
    return _first(inner) if isinstance(inner, BaseExceptionGroup) else inner


def chunks(channels: Iterable[str]) -> Iterator[list[str]]:
    """Cut a list of channels into pieces that one call may carry."""
    chunk: list[str] = []
    size_bytes = 200  # the frame around the names
    for channel in channels:
        if len(chunk) == SUBSCRIBE_MOST_CHANNELS or size_bytes + len(channel) + 3 > SUBSCRIBE_MOST_BYTES:
            yield chunk
            chunk, size_bytes = [], 200
        chunk.append(channel)
        size_bytes += len(channel) + 3
    if chunk:
        yield chunk
