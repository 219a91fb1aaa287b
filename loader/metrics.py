"""What the loader tells Prometheus, and whether it does its work (docs/operations.md names them all)."""

import time
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from loader.inbox import Candidate
from loader.load import Tally
from recorder.runtime.measure import build_info, counter, gauge
from recorder.segments.layout import US_PER_SEC, SegmentName

# A segment is loaded a few seconds after it was sealed: behind by so much, something keeps it from that.
BEHIND_AFTER_S = 600.0


class Metrics(Collector):
    """Shows a tally as it is when it is asked for; called from other threads than the one that loads."""

    def __init__(self, tally: Tally) -> None:
        """Take what is counted."""
        self.registry = CollectorRegistry()
        self._tally = tally
        ProcessCollector(registry=self.registry)
        self.registry.register(self)

    def ready(self) -> dict[str, str]:
        """Return what keeps it from loading."""
        oldest_s = _oldest_s(list(self._tally.waiting.values()))
        behind_s = time.time() - oldest_s if oldest_s else 0.0
        return {
            "database": self._tally.away,
            "backlog": f"the oldest segment is of {behind_s:.0f} s ago" if behind_s > BEHIND_AFTER_S else "",
        }

    def collect(self) -> Iterable[Metric]:
        """Return all metrics."""
        tally = self._tally
        waiting = list(tally.waiting.values())  # one step of the interpreter: the other thread cannot be in between
        yield counter("loader_segments_loaded", "Segments that were loaded", tally.segments)
        yield counter("loader_rows_loaded", "Rows that were loaded", tally.rows)
        yield gauge("loader_database_up", "Whether the database is there", not tally.away)
        yield gauge("loader_refused_segments", "Segments that cannot be loaded as they are", len(tally.refused))
        yield gauge("loader_backlog_segments", "Sealed segments that are not loaded", len(waiting))
        yield gauge("loader_backlog_bytes", "Bytes of those", sum(one.size_bytes for one in waiting))
        yield gauge(
            "loader_oldest_pending_segment_timestamp_seconds", "The first row of the oldest of those; 0 if none",
            _oldest_s(waiting),
        )  # fmt: skip
        yield gauge("loader_last_load_timestamp_seconds", "When a segment was last loaded", tally.loaded_at_s)
        yield build_info("loader")


def _oldest_s(waiting: list[Candidate]) -> float:
    starts_us = [name.start_us for one in waiting if (name := SegmentName.parse(one.path.name))]
    return min(starts_us, default=0) / US_PER_SEC
