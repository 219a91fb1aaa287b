"""Back-off: 1, 2, 4, 8 … 60 s with jitter. Pure: the caller waits, and decides what success is."""

import random

FIRST_S = 1.0
MOST_S = 60.0


class Backoff:
    """The delays of one thing that is tried again and again.

    `reset` is for a *useful* success only. A server that accepts and closes at once would otherwise be tried
    in a tight loop: 880 connections in 2 s were seen from a client that reset at each handshake.
    """

    def __init__(self, *, first_s: float = FIRST_S, most_s: float = MOST_S, seed: int | None = None) -> None:
        self._first_s, self._most_s = first_s, most_s
        self._random = random.Random(seed)  # noqa: S311 - jitter is no secret
        self.failures = 0

    def next_delay_s(self) -> float:
        """Return how long to wait after one more failure: the step, plus up to a tenth of it."""
        step = min(self._first_s * 2.0 ** min(self.failures, 32), self._most_s)
        self.failures += 1
        return min(step * (1 + self._random.random() / 10), self._most_s)

    def reset(self) -> None:
        """Start from the first delay again."""
        self.failures = 0
