"""Trades as they were printed: what the live channel sends and what the history answers, from one record."""

from collections import deque
from dataclasses import dataclass
from itertools import islice

# So that a simulator that runs for weeks stays the same size; what is older is no longer in the history.
MOST_KEPT = 200_000


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
    """The newest trades of one currency, by instrument and in all."""

    def __init__(self) -> None:
        self._by_instrument: dict[str, deque[Trade]] = {}
        self._all: deque[Trade] = deque()

    def add(self, trade: Trade) -> None:
        """Keep one more, and forget the oldest if there are too many."""
        self._by_instrument.setdefault(trade.instrument, deque()).append(trade)
        self._all.append(trade)
        if len(self._all) > MOST_KEPT:
            oldest = self._all.popleft().instrument
            self._by_instrument[oldest].popleft()
            if not self._by_instrument[oldest]:
                del self._by_instrument[oldest]

    def of(self, instrument: str | None) -> deque[Trade]:
        """Return what is kept of one instrument, or of all, oldest first."""
        return self._all if instrument is None else self._by_instrument.get(instrument, deque())


@dataclass(frozen=True, kw_only=True)
class TradeQuery:
    """A page of history: inclusive bounds, the most entries, and the end it is read from."""

    count: int
    ascending: bool
    seqs: tuple[int | None, int | None] = (None, None)
    times_ms: tuple[int | None, int | None] = (None, None)
    numbers: tuple[int | None, int | None] = (None, None)

    def page(self, trades: deque[Trade]) -> tuple[list[Trade], bool]:
        """Return the page, in the order asked for, and whether more lies beyond it."""
        ordered = iter(trades) if self.ascending else reversed(trades)
        found = list(islice(filter(self._matches, ordered), self.count + 1))
        return found[: self.count], len(found) > self.count

    def _matches(self, trade: Trade) -> bool:
        return (
            _within(trade.seq, self.seqs)
            and _within(trade.timestamp_ms, self.times_ms)
            and _within(trade.number, self.numbers)
        )


def _within(value: int, bounds: tuple[int | None, int | None]) -> bool:
    low, high = bounds
    return (low is None or value >= low) and (high is None or value <= high)
