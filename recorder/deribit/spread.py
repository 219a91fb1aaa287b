"""Which connections carry which instruments. Pure: it is told who is usable, and says who is to carry what.

Instruments stay where they are when the set changes; only what is new, or lost its connection, is placed, on the
connections with the least load. Load is evened out only towards a connection that has far less than its share: one
that was away and is back.

Calls are scarce (three a second, for all connections together), so few instruments go to few connections. Spread over
all others, what one of 32 lost would take 31 calls, ten seconds in which it is recorded nowhere, or not twice.
"""

import math
from collections.abc import Iterable, Mapping

CHANNELS_PER_INSTRUMENT = 2  # book and ticker
MOST_CONNECTIONS = 32  # an IP may have so many, HTTP requests included
# A connection is filled up when it has less than this much of the average load.
FAR_LESS = 0.75
# Another connection is asked to carry what is placed for each so many instruments.
PLACED_TOGETHER = 8

Placement = Mapping[str, frozenset[int]]  # instrument -> the connections that carry it


def connections_needed(instruments: int, *, max_channels: int, redundancy: int, wide_channels: int) -> int:
    """Return how many connections carry so many instruments; at least one for each copy.

    Wide channels (trades, lifecycle) come on top, once for each copy.
    """
    channels = redundancy * (CHANNELS_PER_INSTRUMENT * instruments + wide_channels)
    return min(MOST_CONNECTIONS, max(redundancy, math.ceil(channels / max_channels)))


def place(current: Placement, instruments: Iterable[str], *, usable: Iterable[int], redundancy: int) -> Placement:
    """Return who is to carry what.

    Args:
        current: who carries what now; connections that are not usable lose what they carry.
        instruments: what is to be carried, in the order in which it is placed.
        usable: the connections that may carry; with none of them everything stays as it is.
        redundancy: on how many connections each instrument is, as far as there are so many.
    """
    alive = sorted(set(usable))
    wanted = list(dict.fromkeys(instruments))
    if not alive:
        return {name: current.get(name, frozenset()) for name in wanted}
    kept = {name: current.get(name, frozenset()) & frozenset(alive) for name in wanted}
    load = {number: sum(number in carriers for carriers in kept.values()) for number in alive}
    copies = min(redundancy, len(alive))
    missing = sum(max(0, copies - len(carriers)) for carriers in kept.values())
    takers = sorted(alive, key=lambda n: (load[n], n))[: max(copies, math.ceil(missing / PLACED_TOGETHER))]
    placed = {}
    for name in wanted:
        carriers = set(kept[name])
        while len(carriers) < copies:
            number = min((n for n in takers if n not in carriers), key=lambda n: (load[n], n))
            carriers.add(number)
            load[number] += 1
        placed[name] = frozenset(carriers)
    return placed


def moves(placement: Placement, *, usable: Iterable[int]) -> list[tuple[str, int, int]]:
    """Return (instrument, from, to) for what should move to connections with far less than their share.

    They are to be made before they are broken: carried by both, until the new one flows.
    """
    load = dict.fromkeys(sorted(set(usable)), 0)
    carried: dict[int, list[str]] = {number: [] for number in load}
    for name, carriers in placement.items():
        for number in carriers & load.keys():
            load[number] += 1
            carried[number].append(name)
    if len(load) < 2:
        return []
    share = sum(load.values()) / len(load)
    found = []
    moved = set()  # each instrument at most once: what follows from a move is seen only when it was made
    for target in [number for number, count in load.items() if count < FAR_LESS * share]:
        while load[target] + 1 <= share:
            source = max(load, key=lambda n: (load[n], -n))
            movable = next(
                (name for name in reversed(carried[source]) if target not in placement[name] and name not in moved),
                None,
            )
            if source == target or movable is None or load[source] - 1 < load[target] + 1:
                break
            carried[source].remove(movable)
            moved.add(movable)
            load[source] -= 1
            load[target] += 1
            found.append((movable, source, target))
    return found
