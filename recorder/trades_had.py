"""What trades are had: decides for every trade, live or fetched, from any connection, whether it is new. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass, field

Range = tuple[int, int]  # first and last, inclusive


@dataclass(slots=True)
class Had:
    """One instrument's trades: all of [first, newest] but the holes. `holes` are disjoint, in order."""

    first: int
    newest: int
    holes: list[Range] = field(default_factory=list)


class TradesHad:
    """The trade_seqs of every instrument that are on the tape or on their way to it."""

    def __init__(self) -> None:
        self.by_instrument: dict[str, Had] = {}

    def add(self, instrument: str, trade_seq: int) -> Range | bool:
        """Take a trade.

        Returns:
            False if it is had already; True if it is new; (first, last) if it is new and shows that these,
            inclusive, were missed.
        """
        had = self.by_instrument.get(instrument)
        if had is None:
            self.by_instrument[instrument] = Had(trade_seq, trade_seq)
            return True
        if trade_seq == had.newest + 1:
            had.newest = trade_seq
            return True
        if trade_seq > had.newest:
            hole = (had.newest + 1, trade_seq - 1)
            had.holes = _merge([*had.holes, hole])
            had.newest = trade_seq
            return hole
        if trade_seq < had.first:
            # Older than what recording began with: new, though nobody owed it. What lies between is missed.
            hole, had.first = (trade_seq + 1, had.first - 1), trade_seq
            if hole[0] > hole[1]:
                return True
            had.holes = _merge([hole, *had.holes])
            return hole
        return _fill(had.holes, trade_seq)

    def remove(self, instrument: str, trade_seq: int) -> None:
        """Un-have a trade that was dropped before it reached the disk: it exists, so it is a hole."""
        had = self.by_instrument[instrument]
        had.holes = _merge([*had.holes, (trade_seq, trade_seq)])

    def forget(self, instrument: str) -> None:
        """Know nothing of an instrument any more. Its trades would be new: for one that brings none any more."""
        self.by_instrument.pop(instrument, None)

    def begin(self, instrument: str, newest: int) -> None:
        """Owe everything of an instrument that follows `newest` (0: from its first trade), if nothing is had yet."""
        self.by_instrument.setdefault(instrument, Had(newest + 1, newest))

    def owe(self, instrument: str, first: int, last: int) -> None:
        """Know that [first, last] exist: what of it is not had is a hole from now on."""
        had = self.by_instrument.setdefault(instrument, Had(first, first - 1))
        if first < had.first:
            had.holes = _merge([(first, had.first - 1), *had.holes])
            had.first = first
        if last > had.newest:
            had.holes = _merge([*had.holes, (had.newest + 1, last)])
            had.newest = last

    def close(self, instrument: str, first: int, last: int) -> None:
        """Owe no longer what is void or lost."""
        had = self.by_instrument.get(instrument)
        if had is not None:
            had.holes = without(had.holes, [(first, last)])

    def missing(self, instrument: str, first: int, last: int) -> list[Range]:
        """Return what of [first, last] is not had, as inclusive ranges."""
        had = self.by_instrument.get(instrument)
        if had is None:
            return [(first, last)]
        holes = [*had.holes, (had.newest + 1, last)]  # what is beyond the newest is not had either
        return [(max(a, first), min(b, last)) for a, b in holes if max(a, first) <= min(b, last)]

    def fold(self, rows: Iterable[tuple[str, int]]) -> None:
        """Take over trades that a segment holds."""
        for instrument, trade_seq in rows:
            self.add(instrument, trade_seq)


def _fill(holes: list[Range], trade_seq: int) -> bool:
    for index, (first, last) in enumerate(holes):
        if first <= trade_seq <= last:
            parts = [(first, trade_seq - 1), (trade_seq + 1, last)]
            holes[index : index + 1] = [part for part in parts if part[0] <= part[1]]
            return True
    return False


def without(ranges: Iterable[Range], holes: Iterable[Range]) -> list[Range]:
    """Return what of inclusive ranges lies in none of the others."""
    left = list(ranges)
    for a, b in holes:
        left = [
            part
            for first, last in left
            for part in ((first, min(last, a - 1)), (max(first, b + 1), last))
            if part[0] <= part[1]
        ]
    return left


def _merge(holes: list[Range]) -> list[Range]:
    merged: list[Range] = []
    for first, last in sorted(holes):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    return merged
