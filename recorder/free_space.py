"""How long the disk lasts at the rate of the last hour: pure, told by the flusher what it saw after each round."""

from collections import deque
from itertools import pairwise
from statistics import median

WINDOW_S = 3600.0  # over which the rate is taken
# Of as many parts of it the middle rate counts. What is written once (a day's archive, a copy, a backlog that is
# loaded) is in one or two of them, and so is a pause of the feed; over the whole window either would foretell wrongly
# for as long as the window is.
PARTS = 5
SAMPLE_EVERY_S = 10.0
RATE_KNOWN_AFTER_S = 1200.0  # parts of four minutes
WARN_BELOW_H = 24.0
WARN_BELOW_BYTES = 1_000_000_000  # whatever the rate: other programs need some too
WARN_EVERY_S = 3600.0
BYTES_PER_GB = 1e9


class FreeSpace:
    """Samples of the free space of one file system, at most WINDOW_S old."""

    def __init__(self) -> None:
        self.samples: deque[tuple[float, int, int]] = deque()  # monotonic s, free bytes, bytes written by us
        self._written_bytes = 0
        self._warned_s = -WARN_EVERY_S

    def add(self, now_s: float, free_bytes: int, written_bytes: int) -> None:
        """Note what was free after a round that wrote so much."""
        self._written_bytes += written_bytes
        if self.samples and now_s - self.samples[-1][0] < SAMPLE_EVERY_S:
            return
        self.samples.append((now_s, free_bytes, self._written_bytes))
        while now_s - self.samples[0][0] > WINDOW_S:
            self.samples.popleft()

    @property
    def free_bytes(self) -> int | None:
        """What was free when last looked at; None before that."""
        return self.samples[-1][1] if self.samples else None

    @property
    def hours_left(self) -> float | None:
        """Hours until the disk is full; None while the rate is not known, or nothing is used up.

        The rate of a part is the greater of what the recorder writes and what the file system loses: somebody else
        may be filling it, and somebody who empties it now and then (prune) must not hide what is coming.
        """
        last = len(self.samples) - 1
        if last < PARTS or self.samples[-1][0] - self.samples[0][0] < RATE_KNOWN_AFTER_S:
            return None
        bounds = [self.samples[last * part // PARTS] for part in range(PARTS + 1)]
        bytes_per_s = median(
            max(written - written_before, free_before - free) / (at_s - before_s)
            for (before_s, free_before, written_before), (at_s, free, written) in pairwise(bounds)
        )
        return bounds[-1][1] / bytes_per_s / 3600 if bytes_per_s > 0 else None

    def warning_due(self, now_s: float) -> bool:
        """Whether to warn now: too little is left, and nobody was told for an hour."""
        hours, free = self.hours_left, self.free_bytes
        short = (hours is not None and hours < WARN_BELOW_H) or (free is not None and free < WARN_BELOW_BYTES)
        if not short or now_s - self._warned_s < WARN_EVERY_S:
            return False
        self._warned_s = now_s
        return True
