"""One instrument's order book as one connection sees it, and whether its chain holds. Pure."""

from enum import Enum, auto
from typing import NamedTuple

from recorder.deribit.messages import Action, BookData

Levels = list[tuple[Action, float, float]]


class Top(NamedTuple):
    """The top of the book; None where a side is empty."""

    bid_price: float | None
    bid_size: float | None
    ask_price: float | None
    ask_size: float | None


class Applied(Enum):
    """What a notification meant to a book."""

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
        self._bids: dict[float, float] = {}
        self._asks: dict[float, float] = {}
        self.change_id: int | None = None  # None: waiting for a snapshot

    def apply(self, data: BookData) -> Applied:
        """Take one notification."""
        if data.is_snapshot:
            self._bids.clear()
            self._asks.clear()
        elif self.change_id is None:
            return Applied.WAITING
        elif data.prev_change_id != self.change_id:
            if data.change_id <= self.change_id:
                return Applied.REPEATED
            self.change_id = None
            return Applied.BROKEN
        _set_levels(self._bids, data.bids)
        _set_levels(self._asks, data.asks)
        self.change_id = data.change_id
        return Applied.NEW

    def forget(self) -> None:
        """Wait for a snapshot again."""
        self.change_id = None

    @property
    def top(self) -> Top:
        """The best level of each side."""
        bid = max(self._bids, default=None)
        ask = min(self._asks, default=None)
        return Top(
            bid,
            None if bid is None else self._bids[bid],
            ask,
            None if ask is None else self._asks[ask],
        )


def _set_levels(side: dict[float, float], levels: Levels) -> None:
    for action, price, amount in levels:
        if action == "delete" or amount == 0.0:
            side.pop(price, None)
        else:
            side[price] = amount
