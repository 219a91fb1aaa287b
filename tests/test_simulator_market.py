"""The simulated market is a market: pure, from a seed, and written as awkwardly as Deribit writes."""

import argparse
import json
import re
from datetime import UTC, datetime
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recorder.runtime.errors import SettingsError
from recorder.simulator import wire
from recorder.simulator.book import ASK, BID, Book, Change, merge
from recorder.simulator.chain import expiries, parse_name
from recorder.simulator.faults import RULES, grammar, parse, spoil
from recorder.simulator.limits import Limits
from recorder.simulator.live import window_us
from recorder.simulator.market import Market, Step
from recorder.simulator.options import Options, add_arguments
from recorder.simulator.pricing import mark

NOON_US = 1_795_348_800_000_000  # 2026-11-22T12:00:00Z
STEP_US = 20_000


def market(*, count: int = 742, seed: int = 1, rate: float = 965.0) -> Market:
    return Market(
        currency="ETH", count=count, seed=seed, now_us=NOON_US, messages_per_s=rate, window_us=window_us(rate, count)
    )


def live(of: Market, seconds: float) -> list[Step]:
    steps = []
    for _ in range(int(seconds * 1_000_000 / STEP_US)):
        steps.append(Step())
        of.step(of.now_us + STEP_US, steps[-1])
    return steps


def test_the_same_seed_is_the_same_market() -> None:
    """Two markets of one seed do the same; another seed does something else."""
    said = []
    for seed in (1, 1, 2):
        one = market(count=40, seed=seed)
        live(one, 2)
        said.append([wire.ticker(option) for option in one.options.values()])

    assert said[0] == said[1] != said[2]


def test_a_chain_looks_like_deribits() -> None:
    """742 options over about a dozen expiries; many without open interest, some with one side or none."""
    options = list(market().options.values())
    sides = [(bool(option.book.sides[BID]), bool(option.book.sides[ASK])) for option in options]
    untraded = sum(option.open_interest == 0 for option in options)

    assert len({option.contract.name for option in options}) == 742
    assert 11 <= len({option.contract.expiration_ms for option in options}) <= 13
    assert 90 < untraded < 220
    assert sides.count((False, True)) > 20
    assert sides.count((False, False)) > 5


def test_books_are_never_crossed_and_prices_are_on_the_grid() -> None:
    """After a busy while each best bid is below its best ask, at prices that Deribit allows."""
    busy = market(count=50, rate=2000.0)
    live(busy, 5)
    for option in busy.options.values():
        bid, ask = option.book.best(BID), option.book.best(ASK)
        assert bid is None or ask is None or bid[0] < ask[0]
        for ticks in (*option.book.sides[BID], *option.book.sides[ASK]):
            assert ticks > 0
            assert ticks < 50 or ticks % 5 == 0


def test_change_ids_rise_over_all_books_with_jumps_beyond_32_bits() -> None:
    """One counter is shared by all books."""
    ids = [change.change_id for step in live(market(), 5) for _, change in step.changes]

    assert ids == sorted(set(ids))
    assert ids[0] > 2**32
    assert max(after - before for before, after in pairwise(ids)) > 100


def test_trade_sequences_have_no_hole() -> None:
    """Per instrument each trade_seq is one above the last, from the history on."""
    traded = market(count=100, rate=2000.0)
    live(traded, 8)
    for name in traded.options:
        seqs = [trade.seq for trade in traded.hosts.history.of(name)]
        assert seqs == list(range(seqs[0], seqs[0] + len(seqs))) if seqs else True
    assert len(traded.hosts.history.of(None)) > 60


def test_expired_options_leave_by_themselves() -> None:
    """At 08:00 UTC the options of that day are delivered and listed no more."""
    daily = market(count=48)
    first_ms = min(option.contract.expiration_ms for option in daily.options.values())
    step = Step()
    daily.step(first_ms * 1000, step)

    assert step.states
    assert {option.state for option in step.states} == {"delivered"}
    assert len(daily.options) == 48 - len(step.states)
    assert all(option.contract.expiration_ms > first_ms for option in daily.options.values())


def test_a_new_listing_begins_its_chain_at_zero() -> None:
    """New options have no orders and no history; nobody else's change_id is theirs."""
    listing = market(count=20)
    step = Step()
    new = [listing.options[name] for name in listing.list_more(step, 5)]

    assert step.created == new
    assert {option.book.change_id for option in new} == {0}
    assert {option.trade_seq for option in new} == {0}
    assert len(listing.options) == 25


def test_expiries_are_at_eight_and_named_as_deribit_names_them() -> None:
    """Days, Fridays and last Fridays at 08:00 UTC; the name's day is not zero padded."""
    dates = expiries(NOON_US // 1000)
    names = {option.contract.expiry_name for option in market().options.values()}

    assert dates[0] == (datetime(2026, 11, 23, 8, tzinfo=UTC), "day")
    assert (datetime(2026, 11, 27, 8, tzinfo=UTC), "month") in dates
    assert all(date.hour == 8 for date, _ in dates)
    assert "ETH-4DEC26" in names


def test_a_name_is_read_as_it_was_made() -> None:
    """parse_name gives back the expiry, strike and kind of every option of a chain."""
    for option in market().options.values():
        found = parse_name(option.contract.name)
        assert found is not None
        assert (found.expiration_ms, found.strike, found.call) == (
            option.contract.expiration_ms,
            option.contract.strike,
            option.contract.call,
        )
    assert parse_name("ETH-PERPETUAL") is None


def test_call_and_put_agree() -> None:
    """Put-call parity holds: the difference is the forward less the strike."""
    call, put = (mark(forward=2700, strike=2500, years=0.1, iv=60, call=kind) for kind in (True, False))

    assert (call.price - put.price) * 2700 == pytest.approx(200)
    assert call.delta - put.delta == pytest.approx(1)


# Windows


@given(st.lists(st.tuples(st.sampled_from([10, 20, 30]), st.sampled_from([0.0, 1.0, 2.0])), min_size=1, max_size=12))
def test_a_merged_window_does_what_its_changes_do(events: list[tuple[int, float]]) -> None:
    """Applying the one message of a window to the book before it gives the book after it."""
    book, changes = Book(1, 1), []
    book.sides[BID][20] = 5.0
    before = dict(book.sides[BID])
    for number, (ticks, amount) in enumerate(events):
        changes.append(Change(number + 2, number, book.differences(BID, {ticks: amount}), []))
    merged = merge(changes)
    for level in merged.bids:
        assert (level.action == "new") == (level.ticks not in before)
        if level.action == "delete":
            del before[level.ticks]
        else:
            before[level.ticks] = level.amount

    assert before == book.sides[BID]
    assert merged.change_id == len(events) + 1
    assert [level.ticks for level in merged.bids] == sorted((level.ticks for level in merged.bids), reverse=True)


@pytest.mark.parametrize(
    ("rate", "instruments", "expected_us"), [(965, 742, 100_000), (2000, 50, 25_000), (9e4, 1, 5_000)]
)
def test_windows_are_as_short_as_the_rate_needs(rate: float, instruments: int, expected_us: float) -> None:
    """100 ms, unless twice ten messages a second for each option are too few."""
    assert window_us(rate, instruments) == expected_us


# Numbers and messages


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_read_back_exactly(value: float) -> None:
    """Whatever form a number is written in, it is the same number."""
    assert json.loads(wire.number(value)) == value
    assert json.loads(wire.amount(value)) == value


def test_numbers_come_in_every_form() -> None:
    """Plain, with .0, and with exponents."""
    written = [wire.amount(value) for value in (2800.0, 80_600.0, 1000.0, 250.0, 10.0)]

    assert written == ["2800", "8.06e4", "1.0e3", "250.0", "10"]
    assert wire.number(0.00028) == "2.8e-4"


def test_an_empty_side_is_null_or_zero() -> None:
    """Both forms occur, and all three members of a side agree."""
    tickers = [json.loads(wire.ticker(option)) for option in market().options.values() if not option.book.sides[BID]]
    forms = {(ticker["best_bid_price"], ticker["best_bid_amount"], ticker["bid_iv"]) for ticker in tickers}

    assert forms == {(None, None, None), (0.0, 0.0, 0.0)}


def test_the_order_of_keys_is_not_stable() -> None:
    """Tickers of one market begin with different members."""
    assert len({wire.ticker(option)[:6] for step in live(market(count=50), 2) for option in step.tickers}) > 5


# What can be ordered


def arguments(*flags: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(flags)


def test_flags_become_options() -> None:
    """Every flag reaches its option; what is not given keeps its default."""
    options = Options.from_args(arguments("--port", "0", "--rate", "2000", "--for", "5", "--currency", "btc"))
    keeps = Options.from_args(arguments("--main-keeps", "60")).main_keeps

    assert keeps == 60
    assert (options.port, options.rate, options.for_s, options.currency) == (0, 2000.0, 5.0, "BTC")
    assert Options.from_args(arguments()) == Options()
    assert Options(instruments=100).messages_per_s == pytest.approx(130)


def test_every_wrong_flag_is_told_at_once() -> None:
    """All problems come in one error, each with flag, value and rule."""
    flags = ("--port", "x", "--instruments", "1001", "--rate", "0", "--faults", "gap", "--capture", "nowhere")
    with pytest.raises(SettingsError) as error:
        Options.from_args(arguments(*flags))

    assert len(error.value.problems) == 5
    assert "--port x: expected a port from 0 to 65535" in error.value.problems


def test_a_rate_that_no_window_can_carry_is_refused() -> None:
    """200 messages/s an option is the most; more would silently not be reached."""
    with pytest.raises(SettingsError, match="10 instruments carry at most 2000"):
        Options.from_args(arguments("--instruments", "10", "--rate", "2001"))

    assert Options.from_args(arguments("--instruments", "10", "--rate", "2000")).messages_per_s == 2000


@pytest.mark.parametrize(
    "spec",
    [
        "x:every=1",
        "gap:every=0",
        "gap:soon=1",
        "silence:at=1",
        "gap:at=1,for=2",
        "gap:for=2",
        "gap:at=1,count=2",
        "list:at=1,count=2.5",
        "maintenance:every=9",
    ],
)
def test_a_wrong_fault_is_refused(spec: str) -> None:
    """Unknown kinds and keys, zero, and missing times are errors."""
    with pytest.raises(ValueError, match=r"\w"):
        parse(spec)


def test_faults_come_when_they_were_ordered() -> None:
    """`every` repeats from its first period, `at` comes once, both together shift the first."""
    every, once, both = parse("gap:every=3; silence:at=10,for=40; disconnect:at=1,every=5")

    assert [every.due_s(times) for times in range(3)] == [3, 6, 9]
    assert [once.due_s(times) for times in range(2)] == [10, None]
    assert [both.due_s(times) for times in range(2)] == [1, 6]


def test_a_storm_has_a_size() -> None:
    """`count` is a default of the kind unless it is given; a market's faults need a market."""
    given, usual, none = parse("sweep:at=1,count=30;expire:at=1;kill:at=1")

    assert (given.count, usual.count, none.count) == (30, 128, None)
    with pytest.raises(SettingsError, match="without list, lock"):
        Options.from_args(arguments("--capture", __file__, "--faults", "kill:at=1;list:at=2;lock:at=1,for=1"))


def test_every_fault_is_explained() -> None:
    """A line of --help for each, with what it takes."""
    lines = {line.split()[0].rstrip(","): line for line in grammar().splitlines() if re.match(r"  \w", line)}

    assert lines.keys() == RULES.keys()
    assert "count=1500" in lines["sweep"]
    assert ", for " in lines["maintenance"]


def test_every_spoilt_form_is_another() -> None:
    """Five forms in turn, each different from the right message; only the unknown channel lets it follow."""
    channel = "book.ETH-1.100ms"
    right = wire.notification(channel, '{"change_id":2,"prev_change_id":1,"bids":[["new",0.1,5]],"asks":[]}')
    forms = [spoil(right, channel, turn) for turn in range(5)]

    assert len({form for form, _, _ in forms}) == 5
    assert all(spoilt != right for _, spoilt, _ in forms)
    assert [instead for _, _, instead in forms] == [True, True, True, True, False]
    assert json.loads(forms[3][1])["params"]["data"]["bids"] == [["new", "not a price", 5]]


def test_credits_refill_with_time() -> None:
    """Ten subscribe calls at once and no more; a second later three again; other calls have their own pool."""
    limits = Limits(0.0)
    burst = [limits.spend("public/subscribe", 0.0) for _ in range(11)]
    later = [limits.spend("public/subscribe", 1.0) for _ in range(4)]

    assert burst == [True] * 10 + [False]
    assert later == [True] * 3 + [False]
    assert all(limits.spend("public/ticker", 1.0) for _ in range(100))
    assert not limits.spend("public/ticker", 1.0)
