"""Keeps calls within the exchange's credits. They count by IP, so one pacer serves all connections."""

import asyncio
import time

# A subscribe costs 3,000 of 30,000 credits that refill at 10,000/s: a burst of ten, then one in 0.3 s. Others on the
# same IP have credits too, so not all are used. (Deribit documentation, "Rate limits".)
SUBSCRIBE_BURST = 8
SUBSCRIBE_PACE_S = 0.35


class Pacer:
    """A bucket of calls: so many at once, then one each `pace_s`."""

    def __init__(self, *, burst: int = SUBSCRIBE_BURST, pace_s: float = SUBSCRIBE_PACE_S) -> None:
        self._burst = burst
        self._pace_s = pace_s
        self._free_at_s = 0.0  # when the bucket would be full again

    async def wait(self) -> None:
        """Wait for one's turn."""
        now_s = time.monotonic()
        self._free_at_s = max(self._free_at_s, now_s) + self._pace_s
        wait_s = self._free_at_s - now_s - self._burst * self._pace_s
        if wait_s > 0:
            await asyncio.sleep(wait_s)
