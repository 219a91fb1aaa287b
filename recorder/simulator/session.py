"""One client's connection: its requests answered, its channels sent, its heartbeat kept, as Deribit does.

Deribit documentation and probes of production, 2026-09. Requests are answered in order; every second call of
subscribe is answered after the first messages of its channels, because on the wire that happens too.
"""

import asyncio
import random
import time
from collections import Counter, deque
from contextlib import suppress
from typing import Protocol

import msgspec
from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed

from recorder.simulator import methods, wire
from recorder.simulator.feed import Feed
from recorder.simulator.journal import Journal
from recorder.simulator.limits import Limits
from recorder.simulator.methods import Host, Params, RpcError
from recorder.simulator.tampering import Tampering

MOST_CHANNELS_PER_CALL = 500
LARGEST_FRAME_BYTES = 32 * 1024
# A reader that is this far behind is cut off; a thousand instruments begin with about 3,000 messages.
MOST_WAITING = 20_000
LEAST_HEARTBEAT_S = 10
_FIRST_TEST_SHARE, _TEST_AFTER_S, _ANSWER_WITHIN_S = 1.2, 0.6, 10.0
_IDLE_S = 60.5  # without heartbeat and subscription
_POLICY_VIOLATION = 1008  # Deribit's own code for a terminated session is not known
# What is answered instead in each trouble, to every call but those that keep a session alive.
_REFUSALS = {
    "unauthenticated": (11056, "unauthenticated_public_requests_temporarily_disabled"),
    "settlement": (10041, "settlement_in_progress"),
    "unavailable": (13028, "temporarily_unavailable"),
}
NEVER_REFUSED = frozenset({"public/test", "public/set_heartbeat"})
_YIELD_EVERY = 64  # messages; a burst must not hold up the others


class House(Protocol):
    """What all connections share."""

    feed: Feed
    tampering: Tampering
    journal: Journal
    heartbeat_speed: float
    troubles: Counter[str]


class _TradesData(msgspec.Struct):
    data: list[msgspec.Raw]


class _TradesMessage(msgspec.Struct):
    params: _TradesData


class Session:
    """One connection, from its opening to its end."""

    def __init__(self, number: int, socket: ServerConnection, house: House, limits: Limits) -> None:
        self.number = number
        self.channels: dict[str, None] = {}
        self.silent = False
        self._socket, self._house, self._limits = socket, house, limits
        self._rng = random.Random(number)  # noqa: S311 - only an order of channels
        self._stream = house.feed.open(number, self.send_data)
        self._waiting: deque[tuple[bytes, bool]] = deque()  # message, whether it carries data
        self._filled = asyncio.Event()
        self._ending: tuple[int, str] | None = None  # once all that waits is sent
        self._cut_for = ""
        self._heart: asyncio.Task[None] | None = None
        self._unanswered = False
        self._sent = self._data_sent = self._subscribe_calls = 0
        self._heard_s = asyncio.get_running_loop().time()
        self._tasks = asyncio.TaskGroup()

    async def serve(self) -> None:
        """Serve the client until either side ends it."""
        journal = self._house.journal
        journal.event("open", connection=self.number)
        try:
            async with self._tasks as tasks:
                own = [tasks.create_task(run()) for run in (self._write, self._stream.run, self._leave_if_idle)]
                with suppress(ConnectionClosed):
                    async for text in self._socket:
                        self._receive(text)
                for task in (*own, self._heart):
                    if task is not None:
                        task.cancel()
        finally:
            self._stream.close()
            self._drop_waiting()
            journal.event(
                "close",
                connection=self.number,
                code=self._socket.close_code,
                reason=self._cut_for or self._socket.close_reason,
            )

    def send_data(self, channel: str, message: bytes) -> None:
        """Send what a channel carries, unless a fault is done to it."""
        instead = self._house.tampering.apply(self.number, channel, message)
        if instead is None:
            self.send(message, is_data=True)
        else:
            for each, is_data in instead:
                self.send(each, is_data=is_data)

    def send(self, message: bytes, *, is_data: bool = False) -> None:
        """Send anything; a client that reads too slowly is cut off."""
        if self.silent or self._cut_for or (is_data and self._ending is not None):
            self._tell_unsent(message, is_data)
            return
        if len(self._waiting) >= MOST_WAITING:
            self._limit("slow_reader", waiting=len(self._waiting))
            self._tell_unsent(message, is_data)
            self.kill("connection_too_slow")
            return
        self._waiting.append((message, is_data))
        self._filled.set()

    def kill(self, reason: str) -> None:
        """End the connection without a close frame."""
        self._cut_for = self._cut_for or reason
        self._drop_waiting()
        self._socket.transport.abort()

    def end(self, code: int, reason: str) -> None:
        """Close the connection once all that waits is sent."""
        self._ending = self._ending or (code, reason)
        self._filled.set()

    def set_silent(self, *, silent: bool) -> None:
        """Play dead: nothing is sent and nothing is read, so that not even a ping is answered."""
        self.silent = silent
        self._unanswered = False
        if silent:
            self._drop_waiting()
            self._socket.transport.pause_reading()
        elif not self._socket.transport.is_closing():
            self._socket.transport.resume_reading()

    def _drop_waiting(self) -> None:
        held = [(message, True) for message in self._house.tampering.release(self.number)]
        for message, is_data in (*self._waiting, *held):
            self._tell_unsent(message, is_data)
        self._waiting.clear()

    def _tell_unsent(self, message: bytes, is_data: bool) -> None:  # noqa: FBT001 - the pair that waits
        """Write down the trades of a message that was meant to be sent and never will be.

        Of a connection that plays dead all of it: its client believes that it is subscribed.
        """
        if is_data and b'"channel":"trades.' in message:
            for trade in msgspec.json.decode(message, type=_TradesMessage).params.data:
                self._house.journal.unsent_trade(bytes(trade))
        elif is_data and self.silent and (b'"channel":"book.' in message or b'"channel":"ticker.' in message):
            self._house.journal.event("unsent", message, connection=self.number)

    def _limit(self, kind: str, **facts: object) -> None:
        """Write down that the client went over a limit."""
        self._house.journal.event("limit", kind=kind, connection=self.number, **facts)

    # Tasks

    async def _write(self) -> None:
        with suppress(ConnectionClosed):
            while self._ending is None or self._waiting:
                await self._filled.wait()
                self._filled.clear()
                while self._waiting:
                    await self._send_one(*self._waiting.popleft())
            await self._socket.close(*self._ending)

    async def _send_one(self, message: bytes, is_data: bool) -> None:  # noqa: FBT001 - the pair that waits
        try:
            await self._socket.send(message, text=True)
        except (ConnectionClosed, asyncio.CancelledError):
            if is_data:
                self._house.journal.event("cut", message, connection=self.number)
            raise
        if is_data:
            self._house.journal.message(self.number, message)
            self._data_sent += 1
        self._sent += 1
        if self._sent % _YIELD_EVERY == 0:
            await asyncio.sleep(0)

    async def _leave_if_idle(self) -> None:
        loop = asyncio.get_running_loop()
        while (left_s := self._heard_s + _IDLE_S / self._house.heartbeat_speed - loop.time()) > 0:
            await asyncio.sleep(left_s)
            if self._heart is not None or self.channels:
                self._heard_s = loop.time()
        self.kill("idle")

    async def _beat(self, interval_s: float) -> None:
        speed = self._house.heartbeat_speed
        data_before = self._data_sent
        await asyncio.sleep(interval_s * _FIRST_TEST_SHARE / speed)
        while True:
            if self._data_sent == data_before:  # only on an idle socket
                self.send(wire.heartbeat("heartbeat"))
            self._unanswered = not self.silent
            self.send(wire.heartbeat("test_request"))
            await asyncio.sleep(_ANSWER_WITHIN_S / speed)
            if self._unanswered:
                await self._socket.close(4000, "heartbeat close")
                return
            data_before = self._data_sent
            await asyncio.sleep((interval_s + _TEST_AFTER_S - _ANSWER_WITHIN_S) / speed)

    # Requests

    def _receive(self, text: str | bytes) -> None:
        self._heard_s = asyncio.get_running_loop().time()
        if self._ending is not None:
            return
        in_us = time.time_ns() // 1000
        request_id: object = None
        after: list[str] = []
        try:
            if len(text) > LARGEST_FRAME_BYTES:
                self._limit("frame", bytes=len(text))
                raise RpcError(-32600, "request entity too large")
            request = _parse(text)
            request_id = request.get("id")
            method, params = _read(request)
            self._admit(method)
            body = f'"result":{self._call(method, params, after)}'
        except RpcError as exc:
            body = exc.body
        reply = wire.response(
            request_id, body, in_us=in_us, out_us=time.time_ns() // 1000, turn=self._sent + len(body)
        )
        if self._subscribe_calls % 2 == 0:
            self._stream.subscribe(after)
            self.send(reply)
        else:
            self.send(reply)
            self._stream.subscribe(after)

    def _admit(self, method: str) -> None:
        """Let a call pass, unless the client asks too much or a fault forbids it."""
        troubles = self._house.troubles
        is_affordable = self._limits.spend(method, self._heard_s)
        if not is_affordable:
            self._limit("credits", method=method)
        if not is_affordable or troubles["too_many"]:
            self._ending = _POLICY_VIOLATION, "too_many_requests"
            raise RpcError(10028, "too_many_requests")
        for trouble, (code, message) in _REFUSALS.items():
            if troubles[trouble] and method not in NEVER_REFUSED:
                self._house.journal.event("call_refused", connection=self.number, method=method, code=code)
                raise RpcError(code, message)

    def _call(self, method: str, params: Params, after: list[str]) -> str:
        match method:
            case "public/subscribe":
                return wire.json(self._subscribe(params.texts("channels"), after))
            case "public/unsubscribe":
                return wire.json(self._unsubscribe(params.texts("channels")))
            case "public/unsubscribe_all":
                self._unsubscribe(list(self.channels))
                return '"ok"'
            case "public/hello":
                params.text("client_name")
                params.text("client_version")
                return f'{{"version":"{methods.VERSION}"}}'
            case "public/set_heartbeat":
                self._set_heartbeat(params)
                return '"ok"'
            case "public/disable_heartbeat":
                self._stop_heart()
                return '"ok"'
            case "public/test":
                self._unanswered = False
        feed = self._house.feed
        return methods.answer(Host(feed, feed.main_trades), method, params)

    def _subscribe(self, asked: list[str], new: list[str]) -> list[str]:
        """Hold what exists, silently leave out the rest, and say what is held, in another order."""
        if len(asked) > MOST_CHANNELS_PER_CALL:
            self._limit("channels", channels=len(asked))
            raise RpcError(-32600, "request entity too large")
        if any(channel.endswith(".raw") for channel in asked):
            raise RpcError(13778, "raw_subscriptions_not_available_for_unauthorized")
        self._subscribe_calls += 1
        granted = [channel for channel in dict.fromkeys(asked) if self._house.feed.grants(channel)]
        new += [channel for channel in granted if channel not in self.channels]
        if held := [channel for channel in granted if channel in self.channels]:
            self._house.journal.event("subscribed_again", connection=self.number, channels=held)
        self.channels.update(dict.fromkeys(granted))
        self._house.journal.event("subscribed", connection=self.number, channels=new)
        self._rng.shuffle(granted)
        return granted

    def _unsubscribe(self, asked: list[str]) -> list[str]:
        held = [channel for channel in dict.fromkeys(asked) if channel in self.channels]
        for message in self._house.tampering.release(self.number):
            self.send(message, is_data=True)
        for channel in held:
            del self.channels[channel]
        self._stream.unsubscribe(held)
        self._house.journal.event("unsubscribed", connection=self.number, channels=held)
        return held

    def _set_heartbeat(self, params: Params) -> None:
        interval_s = params.integer("interval")
        if interval_s is None or interval_s < LEAST_HEARTBEAT_S:
            reason = "missing value" if interval_s is None else f"value must be >= {LEAST_HEARTBEAT_S}"
            raise methods.invalid("interval", reason)
        self._stop_heart()
        self._heart = self._tasks.create_task(self._beat(interval_s))

    def _stop_heart(self) -> None:
        self._unanswered = False
        if self._heart is not None:
            self._heart.cancel()
            self._heart = None


def _parse(text: str | bytes) -> dict[str, object]:
    try:
        request = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise RpcError(11050, "bad_request", "invalid json") from None
    if not isinstance(request, dict):  # batches are not allowed
        raise RpcError(-32600, "Invalid Request")
    return request


def _read(request: dict[str, object]) -> tuple[str, Params]:
    method, params = request.get("method"), request.get("params", {})
    if not isinstance(method, str):
        raise RpcError(-32600, "Invalid Request")
    if not isinstance(params, dict):
        raise methods.invalid("params", "must be an object")
    return method, Params(params)
