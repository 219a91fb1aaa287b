"""What the recorder tells Prometheus, and whether it is alive and does its work (docs/operations.md names them all).

The event loop looks at itself once a second; a scrape gets what it saw last, from another thread, and touches nothing
that changes. No metric has a label per instrument: there are a thousand of those, and every day other ones.
"""

import time
from collections import Counter as Count
from collections.abc import Iterable
from pathlib import Path
from typing import get_args

from prometheus_client import CollectorRegistry, Histogram, ProcessCollector
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from recorder.deribit.pool import Pool
from recorder.flusher import Flusher
from recorder.gaps import Cause, Fate
from recorder.intake import Intake
from recorder.runtime.measure import build_info, counter, gauge
from recorder.segments.tape import Round

LOOK_EVERY_S = 1.0
# A loop that did not turn, or a call to the disk that did not return, for so long, hangs.
LOOP_HANGS_AFTER_S = 30.0
DISK_HANGS_AFTER_S = 120.0
# As long as a whole chain never is without a tick, but in maintenance.
QUIET_AFTER_S = 60.0

_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Metrics(Collector):
    """Collects what is told, and what is looked at."""

    def __init__(self, quarantine: Path) -> None:
        """Take where damaged files are put aside, to count them."""
        self.registry = CollectorRegistry()
        self._flush_s = Histogram(
            "recorder_flush_duration_seconds", "A flush round, from the buffers to the disk", buckets=_BUCKETS_S,
            registry=self.registry,
        )  # fmt: skip
        self._fsync_s = Histogram(
            "recorder_fsync_duration_seconds", "All fsyncs of a flush round", buckets=_BUCKETS_S,
            registry=self.registry,
        )  # fmt: skip
        self._quarantine = quarantine
        self._rows: Count[str] = Count()
        self._sealed: Count[str] = Count()
        self._written_bytes = self._failures = self._incidents = 0
        self._flushed_at_s = self._sealed_at_s = 0.0
        self._failing = ""
        self._families: list[Metric] = []
        self._looked_s = time.monotonic()  # until the first look: a loop that never begins to turn hangs, too
        self._hangs = {"disk": ""}
        self._not_ready = {"exchange": "not looked at yet"}
        ProcessCollector(registry=self.registry)
        self.registry.register(self)

    def round(self, done: Round) -> None:
        """Count what a flush or a seal did."""
        if done.flush_s is not None:
            self._flush_s.observe(done.flush_s)
            self._fsync_s.observe(done.fsync_s)
            if done.failure is None:
                self._flushed_at_s = time.time()
        self._rows.update(done.durable)
        self._written_bytes += done.size_bytes
        self._incidents += len(done.incidents)
        self._failures += done.failure is not None
        self._failing = str(done.failure or "")
        for sealed in done.sealed:
            self._sealed[sealed.stream] += 1
            self._sealed_at_s = time.time()

    def look(self, intake: Intake, pool: Pool, flusher: Flusher) -> bool:
        """Look at the recorder, on its event loop; return whether it is alive."""
        now_s = time.monotonic()
        self._looked_s = now_s
        self._families = [*self._of_intake(intake), *_of_pool(pool), *self._of_disk(flusher)]
        silent_s = now_s - flusher.turned_s
        self._hangs = {"disk": f"no answer for {silent_s:.0f} s" if silent_s > DISK_HANGS_AFTER_S else ""}
        self._not_ready = {
            "exchange": "" if pool.connected else "no connection is open",
            "subscriptions": "" if any(one.health.channels for one in pool.connections) else "none is granted",
            "ticks": _quiet(intake),
            "flush": self._failing,
        }
        return not any(self._hangs.values())

    def alive(self) -> dict[str, str]:
        """Return what hangs; called from other threads."""
        silent_s = time.monotonic() - self._looked_s
        return {"loop": f"did not turn for {silent_s:.0f} s" if silent_s > LOOP_HANGS_AFTER_S else "", **self._hangs}

    def ready(self) -> dict[str, str]:
        """Return what keeps it from recording; called from other threads."""
        return {**self.alive(), **self._not_ready}

    def collect(self) -> Iterable[Metric]:
        """Return what was seen last; called from other threads."""
        yield from self._families
        try:
            waiting = sum(1 for path in self._quarantine.rglob("*") if path.is_file())
        except OSError:
            waiting = 0
        yield gauge("recorder_quarantined_files", "Damaged files that were put aside", waiting)
        yield build_info("recorder")

    def _of_intake(self, intake: Intake) -> list[Metric]:
        lanes = {buffer.stream: buffer for buffer in intake.buffers}
        of_gaps: Count[str] = Count(gap.cause for gap in intake.gaps.open_gaps)
        # Each from 0 on: of a series that begins with 1 Prometheus does not see the increase.
        causes, fates = get_args(Cause), get_args(Fate)
        return [
            counter("recorder_messages", "Messages with data that came", intake.received),
            counter("recorder_rejected_messages", "Messages that were kept aside, unread", intake.rejects.count),
            gauge("recorder_last_message_timestamp_seconds", "When the last tick came", intake.last_tick_us / 1e6),
            gauge(
                "recorder_unflushed_rows", "Rows that are not durable yet",
                {stream: len(buffer) for stream, buffer in lanes.items()}, "stream",
            ),
            gauge(
                "recorder_buffer_limit_rows", "Rows past which more are dropped, and told as a gap",
                {stream: buffer.limit_rows for stream, buffer in lanes.items()}, "stream",
            ),
            gauge(
                "recorder_buffer_peak_rows", "The most that were not durable at a flush, within a minute",
                {stream: buffer.peak_rows for stream, buffer in lanes.items()}, "stream",
            ),
            counter(
                "recorder_dropped_rows", "Rows that found no room",
                {stream: buffer.dropped for stream, buffer in lanes.items()}, "stream",
            ),
            gauge(
                "recorder_open_gaps", "Gaps without a fate yet",
                {cause: of_gaps[cause] for cause in causes}, "cause",
            ),
            counter(
                "recorder_gaps", "Gaps that were opened",
                {cause: intake.gaps.opened[cause] for cause in causes}, "cause",
            ),
            counter(
                "recorder_settled_gaps", "Fates that were told of gaps",
                {fate: intake.gaps.settled[fate] for fate in fates}, "status",
            ),
        ]  # fmt: skip

    def _of_disk(self, flusher: Flusher) -> list[Metric]:
        space = flusher.free_space
        found = [
            counter("recorder_rows_written", "Rows that are durable", self._rows, "stream"),
            counter("recorder_written_bytes", "Bytes of segments", self._written_bytes),
            counter("recorder_segments_sealed", "Segments that were finished", self._sealed, "stream"),
            counter("recorder_flush_failures", "Flush rounds that the disk refused", self._failures),
            counter("recorder_disk_incidents", "Troubles with the disk that were survived", self._incidents),
            gauge("recorder_last_flush_timestamp_seconds", "When a flush last succeeded", self._flushed_at_s),
            gauge("recorder_last_seal_timestamp_seconds", "When a segment was last finished", self._sealed_at_s),
        ]
        if space.free_bytes is not None:
            found.append(gauge("recorder_disk_free_bytes", "Free on the disk of DATA_DIR", space.free_bytes))
        if space.hours_left is not None:
            found.append(
                gauge(
                    "recorder_disk_left_seconds", "Until it is full at the rate of the last hour",
                    space.hours_left * 3600,
                )
            )  # fmt: skip
        return found


def _of_pool(pool: Pool) -> list[Metric]:
    health = [connection.health for connection in pool.connections]
    lag_s = max((one.lag_us for one in health if one.connected), default=0) / 1e6
    return [
        gauge("recorder_connections", "Connections that the channels need", len(health)),
        gauge("recorder_open_connections", "Connections that are open", pool.connected),
        counter(
            "recorder_reconnects", "Connections that were lost or refused, and tried again",
            sum(one.reconnects for one in health),
        ),
        gauge("recorder_channels_asked", "Channels that are to be carried", pool.channels_asked),
        gauge("recorder_channels_granted", "Channels that are", sum(one.channels for one in health)),
        gauge("recorder_lag_seconds", "Received minus the exchange's time of the newest ticker; the worst", lag_s),
        gauge(
            "recorder_queue_delay_seconds", "The longest that a message waited in this process, within a minute",
            max((one.longest_wait_s for one in health), default=0.0),
        ),
    ]  # fmt: skip


def _quiet(intake: Intake) -> str:
    if not intake.last_tick_us:
        return "none has come yet"
    silent_s = time.time() - intake.last_tick_us / 1e6
    return f"none for {silent_s:.0f} s" if silent_s > QUIET_AFTER_S else ""
