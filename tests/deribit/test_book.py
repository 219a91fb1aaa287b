"""The order book and its chain."""

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recorder.deribit.book import Applied, Book, Top
from recorder.deribit.messages import BookData


def data(**fields: object) -> BookData:
    base = {"instrument_name": "X", "timestamp": 1, "bids": [], "asks": []}
    return msgspec.json.decode(json.dumps({**base, **fields}), type=BookData)


SNAPSHOT = data(
    type="snapshot", change_id=10, bids=[["new", 0.02, 5.0], ["new", 0.01, 1]], asks=[["new", 0.03, 8.06e4]]
)


def test_a_snapshot_and_changes_give_the_top() -> None:
    """Levels are set, changed, and deleted on both sides."""
    book = Book()

    assert book.apply(SNAPSHOT) is Applied.SNAPSHOT
    assert book.top == Top(0.02, 5.0, 0.03, 80600.0)
    book.apply(data(type="change", change_id=99, prev_change_id=10, bids=[["delete", 0.02, 0.0]]))
    assert book.top == Top(0.01, 1.0, 0.03, 80600.0)
    book.apply(data(type="change", change_id=120, prev_change_id=99, asks=[["delete", 0.03, 0.0]], bids=[]))
    assert book.top == Top(0.01, 1.0, None, None)


def test_a_hole_in_the_chain_breaks_the_book_until_a_snapshot() -> None:
    """Only prev_change_id counts; after a hole nothing is believed but a snapshot."""
    book = Book()
    book.apply(SNAPSHOT)

    assert book.apply(data(type="change", change_id=30, prev_change_id=20)) is Applied.BROKEN
    assert book.apply(data(type="change", change_id=40, prev_change_id=30)) is Applied.WAITING
    assert book.apply(data(type="snapshot", change_id=50)) is Applied.SNAPSHOT
    assert book.top == Top(None, None, None, None)


def test_what_is_delivered_twice_is_taken_once() -> None:
    """A repeated change is no hole."""
    book = Book()
    book.apply(SNAPSHOT)
    change = data(type="change", change_id=30, prev_change_id=10)

    assert [book.apply(change), book.apply(change)] == [Applied.NEW, Applied.REPEATED]


@pytest.mark.parametrize(
    "fields",
    [
        {"type": "change", "prev_change_id": 0},
        {},
        {"type": "snapshot", "prev_change_id": 20},
        {"prev_change_id": None},
    ],
)
def test_all_forms_of_a_snapshot_are_known(fields: dict[str, object]) -> None:
    """A new listing's change on 0, the old form without type, and one that states a predecessor all begin a book."""
    assert Book().apply(data(change_id=7, **fields)) is Applied.SNAPSHOT


def test_the_first_change_of_an_empty_new_book_is_no_second_snapshot() -> None:
    """An empty book's snapshot may have the id 0, and what follows it says so."""
    book = Book()
    book.apply(data(type="snapshot", change_id=0))
    change = data(type="change", change_id=7, prev_change_id=0, bids=[["new", 0.02, 5.0]])

    assert book.apply(change) is Applied.NEW
    assert book.top.bid_price == 0.02


LEVEL = st.tuples(
    st.sampled_from(["new", "change", "delete"]),
    st.integers(1, 9).map(lambda n: n / 100),
    st.integers(0, 3).map(float),
)


@given(st.lists(st.tuples(st.lists(LEVEL, max_size=4), st.lists(LEVEL, max_size=4)), max_size=20))
def test_the_best_price_is_that_of_all_levels(changes: list[tuple[list[tuple[str, float, float]], ...]]) -> None:
    """However levels come and go, the top is the highest bid and the lowest ask."""
    book = Book()
    book.apply(data(type="snapshot", change_id=1))
    sides: tuple[dict[float, float], dict[float, float]] = ({}, {})
    for number, levels in enumerate(changes, 2):
        book.apply(data(type="change", change_id=number, prev_change_id=number - 1, bids=levels[0], asks=levels[1]))
        for side, some in zip(sides, levels, strict=True):
            for action, price, amount in some:
                if action == "delete" or amount == 0:
                    side.pop(price, None)
                else:
                    side[price] = amount
        bid, ask = max(sides[0], default=None), min(sides[1], default=None)

        assert book.top == (bid, sides[0].get(bid or 0), ask, sides[1].get(ask or 0))
