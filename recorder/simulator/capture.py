"""A captured file played as it was: every message of the asked channels, in its order, its numbers untouched.

The file has a line for each message: `<unix seconds>: <json>`; lines of another form (the connection and the
request come first) and replies are passed over. Only the interval in the channel's name is changed, from the
captured one to `100ms`. Each connection is played the whole file, from half a second after its last subscribe
call; nothing is invented, but a book that is subscribed to again begins with a snapshot of what was played.
"""

import asyncio
import re
from dataclasses import dataclass
from pathlib import Path

import msgspec
from msgspec import Raw, Struct

from recorder.runtime.errors import TicktapeError
from recorder.simulator import wire
from recorder.simulator.captured_book import BookState
from recorder.simulator.chain import Contract, parse_name
from recorder.simulator.feed import Send, Stream
from recorder.simulator.trades import Trades

_LINE = re.compile(rb"^(\d+(?:\.\d+)?): (\{.*\})\s*$")
_INTERVAL = ".100ms"
_SETTLE_S = 0.5  # after the last subscribe call, so that all channels are there


class _Params(Struct):
    channel: str
    data: Raw


class _Notification(Struct):
    method: str
    params: _Params


class _Named(Struct):
    instrument_name: str


@dataclass(frozen=True, slots=True)
class Message:
    """One captured notification."""

    at_s: float
    channel: str  # as it is asked for here
    instrument: str
    data: bytes


class Captured:
    """A `Feed` of a captured file."""

    def __init__(self, messages: list[Message], *, speed: float) -> None:
        self.messages, self.speed = messages, speed
        self.trades = self.main_trades = Trades()  # a capture is no history
        self._contracts: dict[str, Contract] = {}
        self._tickers: dict[str, bytes] = {}  # the first of each, which the summary is made from
        self._books: dict[str, BookState] = {}
        for message in messages:
            contract = parse_name(message.instrument)
            if contract is not None:
                self._contracts.setdefault(message.instrument, contract)
            if message.channel.startswith("ticker."):
                self._tickers.setdefault(message.instrument, message.data)
            if message.channel.startswith("book."):
                self._books.setdefault(message.instrument, BookState(message.data))

    @classmethod
    def read(cls, path: Path, *, speed: float) -> "Captured":
        """Read a file.

        Raises:
            TicktapeError: if it cannot be read or holds no message.
        """
        try:
            lines = path.read_bytes().splitlines()
        except OSError as exc:
            raise TicktapeError(f"cannot read {path}: {exc.strerror}") from exc
        messages = [message for line in lines for message in _read_line(line)]
        if not messages:
            raise TicktapeError(f"{path} holds no captured message", remedy="expected lines `<unix seconds>: <json>`")
        return cls(messages, speed=speed)

    def grants(self, channel: str) -> bool:
        """Say whether a channel exists: of a captured instrument, or one of the wide ones."""
        family, _, rest = channel.partition(".")
        if family in ("book", "ticker", "trades") and rest.removesuffix(_INTERVAL) in self._contracts:
            return channel.endswith(_INTERVAL)
        currencies = {contract.currency for contract in self._contracts.values()}
        return bool(
            re.fullmatch(rf"trades\.option\.({'|'.join(currencies)})\.100ms", channel)
            or re.fullmatch(rf"instrument\.(state|creation)\.(option|any)\.({'|'.join(currencies)}|any)", channel)
            or re.fullmatch(rf"deribit_price_index\.({'|'.join(currencies).lower()})_usd", channel)
            or channel in ("platform_state", "platform_state.public_methods_state")
        )

    def open(self, number: int, send: Send) -> Stream:  # noqa: ARG002 - every connection is played the same
        """Begin to serve a connection."""
        return CapturedStream(self, send)

    async def run(self) -> None:
        """Nothing: each stream keeps its own time."""

    def has_currency(self, currency: str) -> bool:
        """Say whether options of this currency were captured."""
        return any(contract.currency == currency for contract in self._contracts.values())

    def knows(self, name: str) -> bool:
        """Say whether an option was captured."""
        return name in self._contracts

    def status(self) -> str:
        """Return what public/status answers."""
        return '{"locked":"false"}'

    def wide_trades(self, instrument: str) -> str | None:
        """Return the wide trades channel that an instrument's trades belong to."""
        contract = self._contracts.get(instrument)
        return f"trades.option.{contract.currency}{_INTERVAL}" if contract else None

    def instruments(self, currency: str) -> list[str]:
        """List the captured options of a currency, or of `any`."""
        return [
            wire.instrument(contract, "open")
            for contract in self._contracts.values()
            if currency in (contract.currency, "any")
        ]

    def instrument(self, name: str) -> str | None:
        """Return one option."""
        contract = self._contracts.get(name)
        return wire.instrument(contract, "open") if contract else None

    def summaries(self, currency: str) -> list[str]:
        """Return a row for each option of a currency, with the open interest of its first ticker."""
        return [
            _summary(contract, self._tickers.get(name, b"{}"))
            for name, contract in self._contracts.items()
            if contract.currency == currency
        ]

    def ticker(self, name: str) -> str | None:
        """Return an option's first captured ticker."""
        found = self._tickers.get(name)
        return found.decode() if found is not None else None

    def order_book(self, name: str, depth: int) -> str | None:
        """Return an option's first captured book."""
        found = self._books.get(name)
        return found.order_book(name, depth) if found is not None else None


class CapturedStream:
    """What one connection is played."""

    def __init__(self, captured: Captured, send: Send) -> None:
        self._captured, self._send = captured, send
        self._channels: set[str] = set()
        self._books: dict[str, BookState] = {}
        self._asked = asyncio.Event()
        self._begun = False

    def subscribe(self, channels: list[str]) -> None:
        """Wait for more, or, if the playing has begun, send what was played so far of these books."""
        self._channels.update(channels)
        if not channels:
            return  # an answer that granted nothing puts nothing off
        if not self._begun:
            self._asked.set()
            return
        for channel in channels:
            name = channel.removeprefix("book.").removesuffix(_INTERVAL)
            if channel.startswith("book.") and name in self._books:
                self._send_data(channel, self._books[name].snapshot(name))

    def unsubscribe(self, channels: list[str]) -> None:
        """Send these no more."""
        self._channels.difference_update(channels)

    def close(self) -> None:
        """Nothing is kept elsewhere."""

    async def run(self) -> None:
        """Play the file once."""
        await self._asked.wait()
        while self._asked.is_set():
            self._asked.clear()
            await asyncio.sleep(_SETTLE_S)
        self._begun = True
        loop, messages = asyncio.get_running_loop(), self._captured.messages
        begun_s = loop.time()
        for message in messages:
            due_s = begun_s + (message.at_s - messages[0].at_s) / self._captured.speed
            if due_s > loop.time():
                await asyncio.sleep(due_s - loop.time())
            self._play(message)

    def _play(self, message: Message) -> None:
        if message.channel.startswith("book."):
            if message.instrument in self._books:
                self._books[message.instrument].apply(message.data)
            else:
                self._books[message.instrument] = BookState(message.data)
        if message.channel in self._channels:
            self._send_data(message.channel, message.data)
        if message.channel.startswith("trades."):
            wide = self._captured.wide_trades(message.instrument)
            if wide in self._channels and wide is not None:
                self._send_data(wide, message.data)

    def _send_data(self, channel: str, data: bytes) -> None:
        self._send(
            channel,
            b'{"jsonrpc":"2.0","method":"subscription","params":{"channel":"%b","data":%b}}'
            % (channel.encode(), data),
        )


def _read_line(line: bytes) -> list[Message]:
    """Return the message of a line, in a list; of any other line an empty one."""
    found = _LINE.match(line)
    if found is None:
        return []
    try:
        notification = msgspec.json.decode(found[2], type=_Notification)
    except msgspec.MsgspecError:
        return []  # the reply, which lists channels and is no message of one
    data = bytes(notification.params.data)
    channel = re.sub(r"\.[^.]+$", _INTERVAL, notification.params.channel)
    is_array = data.lstrip().startswith(b"[")
    named = msgspec.json.decode(data, type=list[_Named])[0] if is_array else msgspec.json.decode(data, type=_Named)
    return [Message(float(found[1]), channel, named.instrument_name, data)]


def _summary(contract: Contract, ticker: bytes) -> str:
    """Make a row of get_book_summary_by_currency from a captured ticker, its numbers as they were written."""
    found = msgspec.json.decode(ticker, type=dict[str, Raw])
    raw = {
        "open_interest": found.get("open_interest", Raw(b"0.0")),
        "mark_price": found.get("mark_price", Raw(b"0.0")),
        "mark_iv": found.get("mark_iv", Raw(b"0.0")),
        "underlying_price": found.get("underlying_price", Raw(b"0.0")),
        "underlying_index": found.get("underlying_index", Raw(b'""')),
        "estimated_delivery_price": found.get("estimated_delivery_price", Raw(b"0.0")),
        "interest_rate": found.get("interest_rate", Raw(b"0.0")),
        "last": found.get("last_price", Raw(b"null")),
        "bid_price": _nothing_is_null(found.get("best_bid_price")),
        "ask_price": _nothing_is_null(found.get("best_ask_price")),
    }
    return wire.json(
        {
            "instrument_name": contract.name,
            "base_currency": contract.currency,
            "quote_currency": contract.currency,
            "creation_timestamp": msgspec.json.decode(found.get("timestamp", Raw(b"0"))),
            "volume": 0.0,
            "volume_usd": 0.0,
            "high": None,
            "low": None,
            "price_change": None,
            "mid_price": None,
            **raw,
        }
    )


def _nothing_is_null(price: Raw | None) -> Raw:
    """Write an empty side as the summary does."""
    return Raw(b"null") if price is None or float(bytes(price) or b"0") == 0 else price
