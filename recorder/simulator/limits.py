"""How much a client may ask: Deribit's credits, by kind of request. Pure.

Deribit documentation, rate limits: `public/subscribe` costs 3,000 of 30,000 credits, refilled 10,000 a second;
other requests 500 of 50,000; `public/get_instruments` 10,000 of 500,000. Without authentication the limits are
kept for each IP. Who goes over them gets 10028 and is cut off.
"""

from dataclasses import dataclass

_REFILL_PER_S = 10_000.0


@dataclass
class Credits:
    """One pool that refills by time."""

    cost: float
    most: float
    left: float
    at_s: float

    def spend(self, now_s: float) -> bool:
        """Pay for one request; False if the pool has not enough."""
        self.left = min(self.most, self.left + (now_s - self.at_s) * _REFILL_PER_S)
        self.at_s = now_s
        if self.left < self.cost:
            return False
        self.left -= self.cost
        return True


class Limits:
    """The pools of one client."""

    def __init__(self, now_s: float) -> None:
        self._others = Credits(500, 50_000, 50_000, now_s)
        self._own = {
            "public/subscribe": Credits(3_000, 30_000, 30_000, now_s),
            "public/get_instruments": Credits(10_000, 500_000, 500_000, now_s),
        }

    def spend(self, method: str, now_s: float) -> bool:
        """Pay for one call of a method; False if it is one too many."""
        return self._own.get(method, self._others).spend(now_s)
