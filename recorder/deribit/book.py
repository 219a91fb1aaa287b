"""One instrument's order book as one connection sees it, and whether its chain holds. Pure."""

from collections.abc import Callable
from enum import Enum, auto
from typing import NamedTuple

from recorder.deribit.messages import BookData, Level


class Top(NamedTuple):
    """The top of the book; None where a side is empty."""

    bid_price: float | None
    bid_size: float | None
    ask_price: float | None
    ask_size: float | None


class Applied(Enum):
    """What a notification meant to a book."""

    SNAPSHOT = auto()  # the book begins anew: its top is a row without predecessor
    NEW = auto()  # the book moved on: its top is a row
    REPEATED = auto()  # delivered before; nothing new
    BROKEN = auto()  # the chain has a hole: the book is not to be believed until the next snapshot
    WAITING = auto()  # a change while waiting for a snapshot


class Book:
    """Price levels of both sides, full depth.

    Continuity is `prev_change_id == change_id of the notification before` and nothing else: one counter is
    shared by many books, so that jumps of thousands are normal.
    """

    def __init__(self) -> None:
        self._bids = Side(max)
        self._asks = Side(min)
        self.change_id: int | None = None  # None: waiting for a snapshot

    def apply(self, data: BookData) -> Applied:
        """Take one notification."""
        # A new listing's first change says that it follows 0, which is also the id of its empty book's snapshot.
        snapshot = data.is_snapshot and not (data.type == "change" and data.prev_change_id == self.change_id)
        if snapshot:
            self._bids.clear()
            self._asks.clear()
        elif self.change_id is None:
            return Applied.WAITING
        elif data.prev_change_id != self.change_id:
            if data.change_id <= self.change_id:
                return Applied.REPEATED
            self.change_id = None
            return Applied.BROKEN
        if data.bids:
            self._bids.set(data.bids)
        if data.asks:
            self._asks.set(data.asks)
        self.change_id = data.change_id
        return Applied.SNAPSHOT if snapshot else Applied.NEW

    def forget(self) -> None:
        """Wait for a snapshot again."""
        self.change_id = None

    @property
    def top(self) -> Top:
        """The best level of each side."""
        bids, asks = self._bids, self._asks
        bid, ask = bids.best, asks.best
        return Top(
            bid,
            None if bid is None else bids.levels[bid],
            ask,
            None if ask is None else asks.levels[ask],
        )


class Side:
    """One side's levels, and the best price of them: looked for again only when the best one is gone."""

    __slots__ = ("_choose", "best", "levels")

    def __init__(self, choose: Callable[..., float | None]) -> None:
        """Let `choose` (max or min) say which price is best."""
        self._choose = choose
        self.levels: dict[float, float] = {}
        self.best: float | None = None

    def clear(self) -> None:
        """Empty the side."""
        self.levels.clear()
        self.best = None

    def set(self, changes: list[Level]) -> None:
        """Set the size at each price; 0 or `delete` removes it."""
        levels, best = self.levels, self.best
        for action, price, amount in changes:
            if action == "delete" or amount == 0.0:
                levels.pop(price, None)
            else:
                levels[price] = amount
                if best is not None:
                    best = self._choose(best, price)
        if best is None or best not in levels:
            best = self._choose(levels, default=None)
        self.best = best
