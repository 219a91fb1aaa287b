"""The line a person reads once a minute: what came, what was written, how full, how fast."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from recorder.buffers import Buffer
from recorder.free_space import BYTES_PER_GB
from recorder.segments.tape import Round

EVERY_S = 60.0


@dataclass
class Written:
    """What the flush rounds since the last line did."""

    rounds: int = 0
    rows: dict[str, int] = field(default_factory=dict)
    size_bytes: int = 0
    flush_s: float = 0.0
    slowest_flush_s: float = 0.0
    fsync_s: float = 0.0
    slowest_fsync_s: float = 0.0

    def add(self, done: Round) -> None:
        """Count what a round did, if it was a flush."""
        if done.flush_s is None:
            return
        self.rounds += 1
        for stream, count in done.durable.items():
            self.rows[stream] = self.rows.get(stream, 0) + count
        self.size_bytes += done.size_bytes
        self.flush_s += done.flush_s
        self.slowest_flush_s = max(self.slowest_flush_s, done.flush_s)
        self.fsync_s += done.fsync_s
        self.slowest_fsync_s = max(self.slowest_fsync_s, done.fsync_s)


def line(
    written: Written,
    buffers: Sequence[Buffer],
    *,
    seconds: float,
    received: int,
    rejected: int,
    reconnects: int,
    connections: str,
    lag_ms: int,
    queue_ms: float,
    open_gaps: int,
    disk_free_bytes: int | None,
    disk_hours_left: float | None,
) -> dict[str, object]:
    """Return the fields of the statistics line: counts since the last one, rates over `seconds`."""
    rounds = max(written.rounds, 1)
    return {
        "received_messages": received,
        "written_rows": sum(written.rows.values()),
        "rows_per_s": {stream: round(rows / seconds, 1) for stream, rows in sorted(written.rows.items())},
        "written_mb": round(written.size_bytes / 1e6, 3),
        "buffer_fill_rows": {buffer.stream: len(buffer) for buffer in buffers},
        "buffer_peak_rows": {buffer.stream: buffer.peak_rows for buffer in buffers},
        "dropped_rows": {buffer.stream: buffer.dropped for buffer in buffers if buffer.dropped},
        "rejected": rejected,
        "connections": connections,  # open / all
        "reconnects": reconnects,
        "lag_ms": lag_ms,  # of the newest tickers, received minus the exchange's time; the worst connection
        "queue_ms": queue_ms,  # the longest that a message waited inside this process
        "open_gaps": open_gaps,
        "disk_free_gb": None if disk_free_bytes is None else round(disk_free_bytes / BYTES_PER_GB, 1),
        "disk_hours_left": None if disk_hours_left is None else round(disk_hours_left),
        "flush_ms": round(written.flush_s / rounds * 1e3, 2),
        "flush_max_ms": round(written.slowest_flush_s * 1e3, 2),
        "fsync_ms": round(written.fsync_s / rounds * 1e3, 2),
        "fsync_max_ms": round(written.slowest_fsync_s * 1e3, 2),
    }
