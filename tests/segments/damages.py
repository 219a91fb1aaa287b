"""The ways in which a segment's bytes may be damaged, each with what must survive it."""

import random
from collections.abc import Iterator
from itertools import combinations
from typing import NamedTuple

from tests.segments.judge import Original

PAGE_BYTES = 4096


class Case(NamedTuple):
    """One damaged segment."""

    what: str
    data: bytes
    kept: frozenset[int]  # the groups whose rows must be returned


def cuts(original: Original, places: range) -> Iterator[Case]:
    """Cut the file at every place."""
    for at in places:
        kept = frozenset(n for n, group in enumerate(original.groups) if group.end <= at)
        yield Case(f"cut at {at}", original.data[:at], kept)


def flip(original: Original, at: int, bit: int) -> Case:
    """Flip one bit."""
    data = bytearray(original.data)
    data[at] ^= 1 << bit
    return Case(f"bit {bit} of byte {at}", bytes(data), original.unchanged(bytes(data)))


def zeroed_pages(original: Original, offsets: range) -> Iterator[Case]:
    """Fill 4 KiB with zeros."""
    for at in offsets:
        size = min(PAGE_BYTES, len(original.data) - at)
        data = original.data[:at] + bytes(size) + original.data[at + size :]
        if data != original.data:
            yield Case(f"page of zeros at {at}", data, original.unchanged(data))


def rearranged(original: Original, order: list[int], what: str, kept: frozenset[int]) -> Case:
    """Put the groups in another order, leave some out, or repeat some."""
    places = [original.groups[number] for number in order]
    groups = b"".join(original.data[place.start : place.end] for place in places)
    return Case(what, original.data[: original.header_end] + groups + original.data[original.end :], kept)


def swapped(original: Original) -> Iterator[Case]:
    """Swap every two groups. Each is still proven by the one before it, wherever that lies."""
    count = len(original.groups)
    for one, other in combinations(range(count), 2):
        order = list(range(count))
        order[one], order[other] = order[other], order[one]
        yield rearranged(original, order, f"groups {one} and {other} swapped", frozenset(range(count)))


def repeated(original: Original) -> Iterator[Case]:
    """Repeat every group, after itself and at the end."""
    count = len(original.groups)
    everything = frozenset(range(count))
    for number in range(count):
        order = [*range(number + 1), *range(number, count)]
        yield rearranged(original, order, f"group {number} twice in a row", everything)
        yield rearranged(original, [*range(count), number], f"group {number} again at the end", everything)


def repeated_behind_damage(original: Original) -> Iterator[Case]:
    """Damage the rows of the second group, and repeat every later one, where the chain began anew."""
    count = len(original.groups)
    second = original.groups[1]
    for number in range(2, count):
        data = bytearray(rearranged(original, [*range(number + 1), *range(number, count)], "", frozenset()).data)
        data[(second.start + second.commit) // 2] ^= 4
        yield Case(f"group 1 damaged, group {number} twice", bytes(data), frozenset(range(count)) - {1})


def missing(original: Original) -> Iterator[Case]:
    """Take out every run of groups. What followed them is proven by nothing, what came after that is."""
    count = len(original.groups)
    for first in range(count):
        for last in range(first, count):
            lost = {*range(first, last + 1), last + 1}
            order = [n for n in range(count) if not first <= n <= last]
            if order and not (last == count - 1 and not original.sealed):  # a live file without its end is shorter
                yield rearranged(original, order, f"groups {first} to {last} missing", frozenset(order) - lost)


def moved_in(original: Original, other: Original) -> Iterator[Case]:
    """Put every run of groups of another segment in the place of this one's, and between them."""
    count = len(original.groups)
    everything = frozenset(range(count))
    for first in range(count):
        for last in range(first, count):
            run = other.data[other.groups[first].start : other.groups[last].end]
            data = original.data[: original.groups[first].start] + run + original.data[original.groups[last].end :]
            kept = everything - {*range(first, last + 2)}
            yield Case(f"groups {first} to {last} of another segment in their place", data, kept)
            at = original.groups[first].start
            data = original.data[:at] + run + original.data[at:]
            yield Case(f"groups {first} to {last} of another segment before {first}", data, everything)


def appended(original: Original, rng: random.Random, times: int) -> Iterator[Case]:
    """Append random bytes."""
    everything = frozenset(range(len(original.groups)))
    for _ in range(times):
        size = rng.choice((1, 7, 8, 100, PAGE_BYTES, 20_000))
        yield Case(f"{size} random bytes appended", original.data + rng.randbytes(size), everything)


def believed_lengths(original: Original) -> Iterator[Case]:
    """Let every length before a message claim more than there is, up to 2 GiB."""
    places = [8, *(at for group in original.groups for at in (group.start, group.commit))]
    for at in places:
        for length in (2**31 - 8, 2**31 - 1, 2**24, -1, -(2**31), 0, len(original.data)):
            data = bytearray(original.data)
            data[at + 4 : at + 8] = length.to_bytes(4, "little", signed=True)
            yield Case(f"length {length} at {at}", bytes(data), original.unchanged(bytes(data)))


def every_kind(original: Original, other: Original, rng: random.Random, *, flips: int) -> Iterator[Case]:
    """Some of each, where each case is dear."""
    size = len(original.data)
    for at in sorted(rng.randrange(original.header_end, size) for _ in range(flips)):
        yield next(cuts(original, range(at, at + 1)))
    for at in sorted(rng.randrange(size) for _ in range(flips)):
        yield flip(original, at, rng.randrange(8))
    yield from zeroed_pages(original, range(0, size, PAGE_BYTES))
    for kind in (swapped, repeated, missing):
        yield from rng.sample(list(kind(original)), 3)
    yield from rng.sample(list(moved_in(original, other)), 4)
    yield from appended(original, rng, 3)
    yield from rng.sample(list(believed_lengths(original)), 4)
