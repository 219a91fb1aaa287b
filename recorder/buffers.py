"""Bounded buffers between the socket and the disk. At the bound the arriving row is dropped and counted."""

from collections.abc import Sequence

import pyarrow as pa

from recorder.segments.schemas import SCHEMAS, Row, rows_to_batch, stream_kind

WARN_AT = 0.8
WARN_EVERY_S = 60.0

# Rows become columns this many at a time, while their values are still in the processor's cache: a second of a whole
# chain at once costs five times as much a row, and keeps tens of thousands of Python objects alive meanwhile.
CHUNK_ROWS = 256


class Buffer:
    """One stream's rows that are not durable yet: those that wait, and those on their way to the disk."""

    def __init__(self, stream: str, limit_rows: int) -> None:
        self.stream = stream
        self.limit_rows = limit_rows
        self.peak_rows = 0
        self.dropped = 0
        self.durable = 0  # rows that reached the disk
        self._schema = SCHEMAS[stream_kind(stream) or ""]
        self._rows: list[Row] = []
        self._chunks: list[pa.RecordBatch] = []
        self._in_flight_rows = 0
        self._room_rows = limit_rows  # how long `_rows` may get beside what is in chunks and in flight

    def __len__(self) -> int:
        return self.limit_rows - self._room_rows + len(self._rows)

    def add(self, row: Row) -> bool:
        """Take a row; False if there is no room for it."""
        rows = self._rows
        waiting = len(rows)
        if waiting >= self._room_rows:
            self.dropped += 1
            return False
        rows.append(row)
        if waiting == CHUNK_ROWS - 1:
            self._make_chunk()
        return True

    @property
    def position(self) -> int:
        """How many rows were ever taken: `durable` reaches it when all of them are on disk."""
        return self.durable + len(self)

    def take(self) -> list[pa.RecordBatch]:
        """Hand the waiting rows to a flush round; they count against the bound until `settle`."""
        self.peak_rows = max(self.peak_rows, len(self))
        self._make_chunk()
        chunks, self._chunks = self._chunks, []
        self._in_flight_rows = _count(chunks)
        return chunks

    def settle(self, left: Sequence[pa.RecordBatch]) -> None:
        """End a round: `left` are the rows that did not reach the disk; they go first next time."""
        self.peak_rows = max(self.peak_rows, len(self))
        self._chunks = [*left, *self._chunks]
        written = self._in_flight_rows - _count(left)
        self._room_rows += written
        self.durable += written
        self._in_flight_rows = 0

    def _make_chunk(self) -> None:
        if self._rows:
            self._chunks.append(rows_to_batch(self._schema, self._rows))
            self._room_rows -= len(self._rows)
            self._rows = []


class Warner:
    """Tells once a minute that a buffer is 80 % full."""

    def __init__(self) -> None:
        self._warned_s: dict[str, float] = {}

    def due(self, buffer: Buffer, now_s: float) -> bool:
        """Whether to warn of this buffer now."""
        if (
            len(buffer) < WARN_AT * buffer.limit_rows
            or now_s - self._warned_s.get(buffer.stream, -1e9) < WARN_EVERY_S
        ):
            return False
        self._warned_s[buffer.stream] = now_s
        return True


def _count(chunks: Sequence[pa.RecordBatch]) -> int:
    return sum(chunk.num_rows for chunk in chunks)
