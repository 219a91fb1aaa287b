"""What was sent, written down as it was sent, so that a test can compare.

One JSON object a line:

    {"connection": 1, "sent_us": …, "message": {…}}       a message with data, exactly the bytes sent
    {"connection": 1, "sent_us": …, "event": "open" | "close" | "subscribed" | "unsubscribed", …}
    {"connection": 1, "sent_us": …, "event": "cut", "message": {…}}
    {"sent_us": …, "event": "fault", "kind": …, …}        each fault played, with the message withheld
    {"sent_us": …, "event": "limit", "kind": …, …}        a client went over a limit
    {"sent_us": …, "event": "subscribed_again", …}        it asked for channels that this connection held
    {"sent_us": …, "event": "refused", "kind": …}         a connection that a fault did not let in
    {"sent_us": …, "event": "listed" | "delivered", "instruments": […]}
    {"sent_us": …, "event": "unsent_trade", "trade": {…}}
    {"connection": 1, "sent_us": …, "event": "unsent", "message": {…}}      of a book or ticker, while it played dead

Every trade that was made is here: in a message, in a fault of kind `trade_gap`, in a `cut`, or as an `unsent_trade`:
nobody held its channel, or the connection that did was lost before it was sent (another may have been sent it).
Every number that never was a trade is a fault of kind `trade_void`, with `instrument` and `trade_seq`. A trade that
was made within a tenth of a second before its channel was subscribed to may be in a message, too.

A message is written right after its send returned, so in the order sent: it was in the hands of the operating
system. A client whose connection is then killed may still miss the last of them. A message whose send was
broken off may have arrived or not: that is a `cut`. Flushed at least every second, and at the end.
"""

import asyncio
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

_BUFFER_BYTES = 1 << 20
_FLUSH_S = 0.5


class Journal:
    """A file of JSON lines; without a path it costs a comparison."""

    def __init__(self, path: Path | None) -> None:
        self._file = path.open("wb", buffering=_BUFFER_BYTES) if path else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        if self._file is not None:
            self._file.close()

    def message(self, connection: int, frame: bytes) -> None:
        """Write down a message that was sent."""
        if self._file is not None:
            self._file.write(
                b'{"connection":%d,"sent_us":%d,"message":%b}\n' % (connection, time.time_ns() // 1000, frame)
            )

    def event(self, event: str, message: bytes | None = None, /, **facts: object) -> None:
        """Write down anything else; `message` is a message that was withheld or cut off."""
        if self._file is not None:
            raw = {"message": msgspec.Raw(message)} if message is not None else {}
            line = {"event": event, "sent_us": time.time_ns() // 1000, **facts, **raw}
            self._file.write(msgspec.json.encode(line) + b"\n")

    def unsent_trade(self, trade: bytes) -> None:
        """Write down a trade that somebody was not sent."""
        # Not as `message`: those are whole messages.
        self.event("unsent_trade", trade=msgspec.Raw(trade))

    def flush(self) -> None:
        """Let readers see all that was written down."""
        if self._file is not None:
            self._file.flush()

    async def keep_flushed(self) -> None:
        """Flush until cancelled."""
        while self._file is not None:
            await asyncio.sleep(_FLUSH_S)
            self.flush()
