"""When a session asks again for what the exchange left out or refused: what it has meanwhile goes on."""

import time
from collections.abc import Collection, Iterable

from recorder.deribit import trouble
from recorder.runtime.backoff import Backoff
from recorder.runtime.logging import Logger

# A channel that the exchange left out is asked for again after this.
ASK_AGAIN_S = 60.0
# How many names a warning spells out.
NAMES_IN_A_LINE = 5


class Asking:
    """The channels of one session that are to be asked for (or left) again, and when.

    A call that is refused concerns its own channels: in a settlement, say, every call is for some seconds, while all
    that was granted before flows on. The delays grow with each refusal until a call is answered.
    """

    def __init__(self, log: Logger) -> None:
        self._log = log
        self._again_s: dict[str, float] = {}
        self._backoff = Backoff()
        self._told: trouble.Trouble | None = None  # what the last refusal was, as logged

    def begin(self) -> None:
        """Begin with a new session."""
        self._again_s.clear()
        self.answered(())

    def due(self, channels: Iterable[str]) -> list[str]:
        """Return those of them that need not wait."""
        now_s = time.monotonic()
        return sorted(channel for channel in channels if self._again_s.get(channel, 0.0) <= now_s)

    def next_s(self) -> float | None:
        """Return when the next of those that wait are due; None if none waits."""
        now_s = time.monotonic()
        return min((at_s for at_s in self._again_s.values() if at_s > now_s), default=None)

    def answered(self, channels: Iterable[str]) -> None:
        """A call for these was answered."""
        self._backoff.reset()
        self._told = None
        for channel in channels:
            self._again_s.pop(channel, None)

    def left_out(self, channels: Collection[str]) -> None:
        """These were not among what was granted: they may be misspelt, over, or not there yet."""
        self._log.warning("subscribe.left_out", count=len(channels), channels=sorted(channels)[:NAMES_IN_A_LINE])
        self._wait(channels, time.monotonic() + ASK_AGAIN_S)

    def refused(self, reason: Exception, channels: Collection[str]) -> float:
        """A whole call for these was refused, or not answered; return when the next may be made."""
        what, detail = trouble.explain(reason)
        delay_s = max(self._backoff.next_delay_s(), trouble.least_delay_s(what))
        if what != self._told:
            self._log.warning(
                "subscribe.refused", reason=what, error=detail, count=len(channels), retry_in_s=round(delay_s, 1)
            )
            self._told = what
        again_s = time.monotonic() + delay_s
        self._wait(channels, again_s)
        return again_s

    def _wait(self, channels: Iterable[str], again_s: float) -> None:
        self._again_s.update(dict.fromkeys(channels, again_s))
