"""Bounded buffers between the socket and the disk. At the bound the arriving row is dropped and counted."""

from collections.abc import Sequence

from recorder.segments.tape import Row

WARN_AT = 0.8
WARN_EVERY_S = 60.0


class Buffer:
    """One stream's rows that are not durable yet: those that wait, and those on their way to the disk."""

    def __init__(self, stream: str, limit_rows: int) -> None:
        self.stream = stream
        self.limit_rows = limit_rows
        self.peak_rows = 0
        self.added = 0
        self.dropped = 0
        self._rows: list[Row] = []
        self._in_flight = 0
        self._room = limit_rows  # how many rows may wait while `_in_flight` are on their way
        self._warned_s = -WARN_EVERY_S

    def __len__(self) -> int:
        return len(self._rows) + self._in_flight

    def add(self, row: Row) -> bool:
        """Take a row; False if there is no room for it."""
        if len(self._rows) >= self._room:
            self.dropped += 1
            return False
        self._rows.append(row)
        return True

    def take(self) -> list[Row]:
        """Hand the waiting rows to a flush round; they count against the bound until `settle`."""
        self.peak_rows = max(self.peak_rows, len(self))
        rows, self._rows = self._rows, []
        self._in_flight = len(rows)
        self._room = self.limit_rows - self._in_flight
        self.added += len(rows)
        return rows

    def settle(self, left: Sequence[Row]) -> None:
        """End a round: `left` are the rows that did not reach the disk; they go first next time."""
        self.peak_rows = max(self.peak_rows, len(self))
        if left:
            self._rows = [*left, *self._rows]
            self.added -= len(left)
        self._in_flight = 0
        self._room = self.limit_rows

    def warning_due(self, now_s: float) -> bool:
        """Tell, once a minute, that the buffer is 80 % full."""
        if len(self) < WARN_AT * self.limit_rows or now_s - self._warned_s < WARN_EVERY_S:
            return False
        self._warned_s = now_s
        return True
