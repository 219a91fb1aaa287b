"""What was sent, written down as it was sent, so that a test can compare.

One JSON object a line:

    {"connection": 1, "sent_us": …, "message": {…}}       a message with data, exactly the bytes sent
    {"connection": 1, "sent_us": …, "event": "open" | "close" | "subscribed" | "unsubscribed", …}
    {"connection": 1, "sent_us": …, "event": "cut", "message": {…}}
    {"sent_us": …, "event": "fault", "kind": …, …}        each fault played, with the message withheld

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

    async def keep_flushed(self) -> None:
        """Flush until cancelled."""
        while self._file is not None:
            await asyncio.sleep(_FLUSH_S)
            self._file.flush()
