"""What trades are had, against the simplest model: a set."""

from hypothesis import given
from hypothesis import strategies as st

from recorder.trades_had import TradesHad

NAME = "ETH-1"


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 30)), max_size=80))
def test_a_trade_is_new_exactly_once(steps: list[tuple[bool, int]]) -> None:
    """However trades arrive, repeat, and are dropped again, each is new once until it is un-had."""
    had, model = TradesHad(), set[int]()
    for drop, seq in steps:
        if drop:
            if seq in model:
                had.remove(NAME, seq)
                model.discard(seq)
        else:
            assert (had.add(NAME, seq) is not False) == (seq not in model)
            model.add(seq)

    one = had.by_instrument.get(NAME)
    if one is None:
        assert model == set()
        return
    holes = {n for first, last in one.holes for n in range(first, last + 1)}
    assert set(range(one.first, one.newest + 1)) - holes == model
    assert one.holes == sorted(one.holes)
    assert all(a[1] + 1 < b[0] for a, b in zip(one.holes, one.holes[1:], strict=False))


def test_a_jump_tells_what_it_skipped() -> None:
    """The first trade owes nothing; a later one names the range between."""
    had = TradesHad()

    assert had.add(NAME, 10) is True
    assert had.add(NAME, 11) is True
    assert had.add(NAME, 15) == (12, 14)
    assert had.missing(NAME, 1, 15) == [(12, 14)]
    assert had.missing(NAME, 14, 20) == [(14, 14), (16, 20)]
    assert had.add(NAME, 13) is True
    assert had.missing(NAME, 1, 15) == [(12, 12), (14, 14)]
    assert had.add(NAME, 13) is False


def test_what_is_owed_is_missing_until_it_is_had() -> None:
    """Numbers that are known to exist are holes, below, above, and of instruments never seen."""
    had = TradesHad()
    had.begin(NAME, 5)
    assert had.add(NAME, 8) == (6, 7)
    had.owe(NAME, 4, 10)
    assert had.missing(NAME, 4, 10) == [(4, 7), (9, 10)]
    had.owe("ETH-2", 3, 4)
    assert had.missing("ETH-2", 3, 4) == [(3, 4)]
    assert [had.add("ETH-2", seq) for seq in (4, 3, 3)] == [True, True, False]
