"""Who carries what: even, stubborn, and never a gap by our own doing."""

from hypothesis import given
from hypothesis import strategies as st

from recorder.deribit.spread import connections_needed, moves, place

NAMES = [f"i{n}" for n in range(60)]


def load(placement: dict[str, frozenset[int]], connections: int) -> list[int]:
    return [sum(number in carriers for carriers in placement.values()) for number in range(connections)]


def test_as_many_connections_as_the_channels_need() -> None:
    """Two channels an instrument, times the copies; at least one for each copy, at most 32."""
    needed = [
        connections_needed(count, max_channels=400, redundancy=copies, wide_channels=5)
        for count, copies in ((0, 1), (50, 1), (50, 2), (1000, 1), (1000, 2), (9000, 2))
    ]

    assert needed == [1, 1, 2, 6, 11, 32]


def test_instruments_are_spread_evenly() -> None:
    """No connection has two more than another."""
    assert load(dict(place({}, NAMES, usable=range(7), redundancy=1)), 7) == [9, 9, 9, 9, 8, 8, 8]


@given(
    steps=st.lists(st.tuples(st.sets(st.sampled_from(NAMES)), st.sets(st.integers(0, 4))), min_size=1, max_size=8),
    redundancy=st.integers(1, 2),
)
def test_what_can_stay_stays(steps: list[tuple[set[str], set[int]]], redundancy: int) -> None:
    """However set and connections change: each copy on a usable connection, and nobody is moved needlessly."""
    current: dict[str, frozenset[int]] = {}
    for names, usable in steps:
        placed = dict(place(current, sorted(names), usable=usable, redundancy=redundancy))

        assert placed.keys() == names
        for name, carriers in placed.items():
            before = current.get(name, frozenset())
            if usable:
                assert carriers <= usable
                assert len(carriers) >= min(redundancy, len(usable))
                assert before & usable <= carriers
            else:
                assert carriers == before
        current = placed


def test_a_connection_that_is_back_is_filled_up_by_moves() -> None:
    """Moves even out the load, each from a connection that has the instrument to one that has not."""
    placement = dict(place({}, NAMES, usable=range(3), redundancy=1))
    without = dict(place(placement, NAMES, usable=(0, 2), redundancy=1))
    found = moves(without, usable=range(3))
    for name, source, target in found:
        assert source in without[name]
        assert target not in without[name]
        without[name] = without[name] - {source} | {target}

    assert load(without, 3) == [20, 20, 20]
    assert moves(without, usable=range(3)) == []


def test_few_instruments_go_to_few_connections() -> None:
    """What one of 32 lost is handed over in as few calls as leave the others about even, not in 31."""
    names = [f"i{n}" for n in range(960)]
    placement = dict(place({}, names, usable=range(32), redundancy=1))
    without = dict(place(placement, names, usable=range(1, 32), redundancy=1))
    takers = {number for name in names if 0 in placement[name] for number in without[name]}

    assert len(takers) == 4
    assert max(load(without, 32)) == 38


@given(st.dictionaries(st.sampled_from(NAMES), st.frozensets(st.integers(0, 5), min_size=1, max_size=2)))
def test_moves_never_double_or_lose_a_copy(placement: dict[str, frozenset[int]]) -> None:
    """After all of them every instrument is on as many connections as before."""
    after = dict(placement)
    for name, source, target in moves(placement, usable=range(6)):
        assert source in after[name]
        assert target not in after[name]
        after[name] = after[name] - {source} | {target}

    assert {name: len(carriers) for name, carriers in after.items()} == {n: len(c) for n, c in placement.items()}
