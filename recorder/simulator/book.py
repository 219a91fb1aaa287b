"""One order book and what changed in it: levels by price, a chain of change ids. Pure.

Prices are whole ten-thousandths of the coin, so that equal prices are equal.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

TICKS_PER_COIN = 10_000
# Deribit: the tick of ETH options is 0.0001 below 0.005 and 0.0005 above.
_COARSE_FROM, _COARSE_STEP = 50, 5

BID, ASK = 0, 1


class Level(NamedTuple):
    """One entry of a book message; amount is 0.0 for a delete."""

    action: str  # new, change, delete
    ticks: int
    amount: float


class Change(NamedTuple):
    """What one event did to a book."""

    change_id: int
    timestamp_ms: int
    bids: list[Level]
    asks: list[Level]


class Book:
    """The levels of one instrument, and the id and time of its last change."""

    __slots__ = ("change_id", "sides", "timestamp_ms")

    def __init__(self, change_id: int, timestamp_ms: int) -> None:
        self.change_id = change_id
        self.timestamp_ms = timestamp_ms
        self.sides: tuple[dict[int, float], dict[int, float]] = ({}, {})

    def best(self, side: int) -> tuple[int, float] | None:
        """Return ticks and amount of the best level of a side; None if it is empty."""
        levels = self.sides[side]
        if not levels:
            return None
        ticks = max(levels) if side == BID else min(levels)
        return ticks, levels[ticks]

    def sorted(self, side: int) -> list[tuple[int, float]]:
        """Return a side's levels, best first."""
        return sorted(self.sides[side].items(), reverse=side == BID)

    def differences(self, side: int, wanted: Mapping[int, float]) -> list[Level]:
        """Set the levels of `wanted` (0: delete) and return those that changed, best first."""
        levels = self.sides[side]
        changed = []
        for ticks in sorted(wanted, reverse=side == BID):
            amount, before = wanted[ticks], levels.get(ticks)
            if amount > 0:
                if amount != before:
                    levels[ticks] = amount
                    changed.append(Level("new" if before is None else "change", ticks, amount))
            elif before is not None:
                del levels[ticks]
                changed.append(Level("delete", ticks, 0.0))
        return changed


def merge(changes: list[Change]) -> Change:
    """Return the one change that does what several in a row do: how a 100 ms window is sent."""
    if len(changes) == 1:
        return changes[0]
    return Change(
        changes[-1].change_id,
        changes[-1].timestamp_ms,
        _merge_levels((level for change in changes for level in change.bids), reverse=True),
        _merge_levels((level for change in changes for level in change.asks), reverse=False),
    )


def floor_ticks(price: float) -> int:
    """Return the highest allowed price at or below, in ticks."""
    return allowed(int(price * TICKS_PER_COIN))


def allowed(ticks: int) -> int:
    """Return the highest allowed price at or below one in ticks."""
    return ticks if ticks < _COARSE_FROM else ticks - ticks % _COARSE_STEP


def step_at(ticks: int) -> int:
    """Return the distance to the next allowed price above."""
    return 1 if ticks < _COARSE_FROM else _COARSE_STEP


def _merge_levels(levels: Iterable[Level], *, reverse: bool) -> list[Level]:
    first: dict[int, Level] = {}
    last: dict[int, Level] = {}
    for level in levels:
        first.setdefault(level.ticks, level)
        last[level.ticks] = level
    merged = []
    for ticks in sorted(last, reverse=reverse):
        was_there, is_there = first[ticks].action != "new", last[ticks].action != "delete"
        if was_there or is_there:  # what came and went within the window is never seen
            action = ("change" if was_there else "new") if is_there else "delete"
            merged.append(Level(action, ticks, last[ticks].amount))
    return merged
