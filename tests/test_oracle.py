"""The oracle accepts what is possible, and nothing else."""

from typing import Any

import pytest

from recorder.runtime.data_dir import DataDir
from tests.oracle import TradesMade, expected, judge, judge_trades
from tests.segment_tools import NOON_US, batches, tape_in
from tests.test_tape_state import gap

NOON_MS = NOON_US // 1000
TRADE = {
    "instrument_name": "A", "trade_id": "1", "trade_seq": 1, "timestamp": NOON_MS, "direction": "buy", "price": 0.1,
    "amount": 1.0,
}  # fmt: skip


def ticker(price: float) -> dict[str, Any]:
    return {"instrument_name": "A", "timestamp": NOON_MS, "underlying_price": price}


def tape_of(data_dir: DataDir, *, tickers: list[tuple[int, float]], trade_at: int, price: float | None) -> None:
    """Tickers that were received so many microseconds after noon, and a trade with the price of one of them."""
    tape = tape_in(data_dir)
    ticker_rows = [(NOON_US, "A", NOON_US + at, value, *[None] * 21) for at, value in tickers]
    trade_row = (NOON_US, "A", NOON_US + trade_at, "1", 1, 0.1, 1.0, "buy", None, price, *[None] * 8, "live")
    tape.write_round(batches(eth_option_tickers=ticker_rows, eth_option_trades=[trade_row]), now_us=NOON_US)
    tape.seal_all()


@pytest.mark.parametrize(
    ("trade_at", "right"),
    [(5, {None}), (10, {None, 1.0}), (15, {1.0}), (20, {1.0, 2.0}), (25, {2.0})],
)
@pytest.mark.parametrize("told", [None, 1.0, 2.0, 3.0])
def test_over_two_sockets_the_tape_says_which_ticker_came_before_a_trade(
    data_dir: DataDir, trade_at: int, right: set[float | None], told: float | None
) -> None:
    """Only its newest price is right; of two within a microsecond either; on one socket the one that was sent."""
    tape_of(data_dir, tickers=[(10, 1.0), (20, 2.0)], trade_at=trade_at, price=told)
    messages = [(1, "ticker.A", ticker(1.0)), (1, "ticker.A", ticker(2.0))]
    over_two = judge(expected([*messages, (2, "trades.", [TRADE])]), data_dir.root)["trades"]
    over_one = judge(expected([*messages, (1, "trades.", [TRADE])]), data_dir.root)["trades"]

    assert over_two.same == (told in right)
    assert over_one.same == (told == 2.0)


@pytest.mark.parametrize(
    ("first", "fates", "wrong"),
    [
        (3, [("void", 3, 4)], []),
        (3, [("void", 3, 3), ("lost", 4, 4)], ["('A', 4) is called lost, not void"]),
        (3, [("healed", 3, 3), ("void", 4, 4)], ["('A', 3) is called healed, not void"]),
        (2, [("void", 2, 4)], ["('A', 2) is called void, not healed"]),
        (3, [("void", 3, 3)], ["gap g of A 3 to 4 has the fates", "('A', 4) is a hole that nothing tells"]),
        (4, [("void", 4, 4)], ["('A', 3) is a hole that nothing tells"]),
        (3, [("void", 3, 4), ("void", 3, 3)], ["gap g of A 3 to 4 has the fates", "('A', 3) was told 2 times"]),
    ],
)
def test_a_fate_that_is_not_true_is_named(
    data_dir: DataDir, first: int, fates: list[tuple[str, int, int]], wrong: list[str]
) -> None:
    """Of a number that is there, that never was while a later trade shows it, or that no row tells; and no number."""
    tape = tape_in(data_dir)
    trades = [(NOON_US, "A", NOON_US, str(n), n, 0.1, 1.0, "buy", *[None] * 10, "live") for n in (1, 2, 5)]
    states = [gap(0, "open", first, 4), *(gap(no, *fate) for no, fate in enumerate(fates, 1))]
    tape.write_round(batches(data_gaps=states, eth_option_trades=trades), now_us=NOON_US)
    tape.seal_all()
    made = dict.fromkeys([("A", 1), ("A", 2), ("A", 5)], NOON_US) | {("A", 9): NOON_US - 4_000_000}
    truth = TradesMade(made, {("A", 3), ("A", 4)}, listened_us=(0, NOON_US - 2_000_000))
    found = judge_trades(truth, data_dir.root, main_keeps_s=10)

    assert len(found) == len(wrong), found
    assert all(text.startswith(start) for text, start in zip(found, wrong, strict=True)), found


def test_what_is_not_as_it_was_made_is_named(data_dir: DataDir) -> None:
    """A trade that is missing, twice, invented, or of other values."""
    tape = tape_in(data_dir)
    trades = [(NOON_US, "A", NOON_US, str(n), n, 0.1, 1.0, "buy", *[None] * 10, "live") for n in (1, 1, 2, 3)]
    tape.write_round(batches(eth_option_trades=trades), now_us=NOON_US)
    tape.seal_all()
    made = dict.fromkeys([("A", 1), ("A", 2), ("A", 4)], NOON_US)
    truth = TradesMade(made, values={("A", 2): ("other",)}, listened_us=(0, 2 * NOON_US))

    assert judge_trades(truth, data_dir.root) == [
        "('A', 1) is on the tape 2 times",
        "('A', 3) was never made",
        "('A', 2) has other values",
        "('A', 4) is missing",
    ]
