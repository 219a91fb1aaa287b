"""Trades as they were printed: what the live channel sends and what both hosts answer, from one record.

Deribit: the main host keeps recent public trades, the history host all. How long the main host keeps those of an
expired option is not known; here it forgets them at once, which is the worst that a client must cope with.
"""

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from operator import attrgetter

# So that a simulator that runs for weeks stays the same size; what is older is no longer in the history.
MOST_KEPT = 200_000
_FORGOTTEN_AT_ONCE = MOST_KEPT // 10

Bounds = tuple[int | None, int | None]
_seq, _number, _timestamp_ms = attrgetter("seq"), attrgetter("number"), attrgetter("timestamp_ms")


@dataclass(frozen=True, slots=True)
class Trade:
    """One entry of the tape of an option."""

    instrument: str
    currency: str
    number: int  # of trade_id, per currency
    seq: int  # + 1 per instrument
    timestamp_ms: int
    direction: str
    tick_direction: int
    price: float
    amount: float
    iv: float
    mark_price: float
    index_price: float
    special: int  # decides whether this is a block trade, a leg of a combo, a liquidation, or none


class Trades:
    """Trades of one currency, by instrument and in all, oldest first: numbers and times never fall."""

    def __init__(self) -> None:
        self._by_instrument: dict[str, list[Trade]] = {}
        self._all: list[Trade] = []

    def add(self, trade: Trade) -> None:
        """Keep one more, and forget the oldest if there are too many."""
        self._by_instrument.setdefault(trade.instrument, []).append(trade)
        self._all.append(trade)
        if len(self._all) > MOST_KEPT:
            self._forget_oldest(_FORGOTTEN_AT_ONCE)

    def of(self, instrument: str | None) -> Sequence[Trade]:
        """Return what is kept of one instrument, or of all, oldest first."""
        return self._all if instrument is None else self._by_instrument.get(instrument, [])

    def forget(self, instruments: Collection[str]) -> None:
        """Forget all of some instruments."""
        if any(self._by_instrument.pop(name, None) for name in instruments):
            self._all = [trade for trade in self._all if trade.instrument not in instruments]

    def forget_before(self, timestamp_ms: int) -> None:
        """Forget what is older than this."""
        if self._all and self._all[0].timestamp_ms < timestamp_ms:
            self._forget_oldest(bisect_left(self._all, timestamp_ms, key=_timestamp_ms))

    def _forget_oldest(self, count: int) -> None:
        gone = Counter(trade.instrument for trade in self._all[:count])
        del self._all[:count]
        for name, number in gone.items():
            del self._by_instrument[name][:number]
            if not self._by_instrument[name]:
                del self._by_instrument[name]


class Hosts:
    """What the two hosts remember: the history host everything, the main host only what is recent."""

    def __init__(self, *, main_keeps_s: float = 0.0) -> None:
        """Begin with nothing.

        Args:
            main_keeps_s: The age at which the main host forgets a trade; 0: never.
        """
        self.history, self._main = Trades(), Trades()
        self._main_keeps_ms = int(main_keeps_s * 1000)

    def add(self, trade: Trade) -> None:
        """Keep one more on both."""
        self.history.add(trade)
        self._main.add(trade)

    def deliver(self, instruments: Collection[str]) -> None:
        """Let the main host forget expired options."""
        self._main.forget(instruments)

    def forget(self, instruments: Collection[str]) -> None:
        """Let both hosts forget all of some instruments."""
        self._main.forget(instruments)
        self.history.forget(instruments)

    def main(self, now_ms: int) -> Trades:
        """Return what the main host has at this time."""
        if self._main_keeps_ms:
            self._main.forget_before(now_ms - self._main_keeps_ms)
        return self._main


@dataclass(frozen=True, kw_only=True)
class TradeQuery:
    """A page of history: inclusive bounds, the most entries, and the end it is read from."""

    count: int
    ascending: bool
    seqs: Bounds = (None, None)  # only of one instrument: over several they do not rise
    times_ms: Bounds = (None, None)
    numbers: Bounds = (None, None)

    def page(self, trades: Sequence[Trade]) -> tuple[list[Trade], bool]:
        """Return the page, in the order asked for, and whether more lies beyond it."""
        start, stop = 0, len(trades)
        for (low, high), key in ((self.seqs, _seq), (self.times_ms, _timestamp_ms), (self.numbers, _number)):
            if low is not None:
                start = max(start, bisect_left(trades, low, key=key))
            if high is not None:
                stop = min(stop, bisect_right(trades, high, key=key))
        has_more = stop - start > self.count
        if self.ascending:
            return list(trades[start : min(stop, start + self.count)]), has_more
        return list(trades[max(start, stop - self.count) : max(start, stop)][::-1]), has_more
