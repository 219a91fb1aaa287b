"""The clock that stamps `received_at`: monotonic, so that a stepped wall clock cannot turn rows around."""

import time
from collections.abc import Callable

# A wall clock that differs by more than this was stepped; less is drift, taken up where a segment begins.
STEP_US = 1_000_000


class Clock:
    """Wall time as of `set`, carried on by the monotonic clock. Microseconds since 1970, UTC."""

    def __init__(
        self, wall_ns: Callable[[], int] = time.time_ns, monotonic_ns: Callable[[], int] = time.monotonic_ns
    ) -> None:
        self._wall_ns, self._monotonic_ns = wall_ns, monotonic_ns
        self._offset_ns = wall_ns() - monotonic_ns()
        self._floor_us = 0

    def now_us(self) -> int:
        """Return the time; never earlier than returned before, but for `set`."""
        now_us = (self._monotonic_ns() + self._offset_ns) // 1000
        if now_us < self._floor_us:
            return self._floor_us
        self._floor_us = now_us
        return now_us

    def step_us(self) -> int:
        """Return by how much the wall clock was stepped (positive: forward), or 0 if it only drifted."""
        error_us = (self._wall_ns() - self._monotonic_ns() - self._offset_ns) // 1000
        return error_us if abs(error_us) > STEP_US else 0

    def slew(self) -> None:
        """Take up drift. Time may stand still for it, but never runs backwards."""
        if self.step_us() == 0:
            self._offset_ns = self._wall_ns() - self._monotonic_ns()

    def set(self) -> None:
        """Take over the wall clock, even backwards: only where every segment begins anew."""
        self._offset_ns = self._wall_ns() - self._monotonic_ns()
        self._floor_us = 0
