"""Two hosts remember trades, each in its way; every number has a fate, and the journal knows all of them."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from recorder.simulator import trades
from recorder.simulator.faults import parse
from recorder.simulator.orders import Fate
from recorder.simulator.run import serving
from recorder.simulator.server import Exchange
from recorder.simulator.trades import Bounds, Hosts, Trade, TradeQuery, Trades
from tests.test_simulator import WIDE_TRADES, Client, client, get, names, options
from tests.test_simulator_faults import faults_in, lines_in

anyio = pytest.mark.anyio
BY_INSTRUMENT = "public/get_last_trades_by_instrument"
BY_CURRENCY = "public/get_last_trades_by_currency"
STATES = "instrument.state.option.ETH"


def trade(seq: int, timestamp_ms: int, *, instrument: str = "A", number: int | None = None) -> Trade:
    return Trade(
        instrument=instrument,
        currency="ETH",
        number=seq if number is None else number,
        seq=seq,
        timestamp_ms=timestamp_ms,
        direction="buy",
        tick_direction=0,
        price=0.1,
        amount=1.0,
        iv=60.0,
        mark_price=0.1,
        index_price=2700.0,
        special=9,
    )


def seqs_of(entries: Any) -> list[int]:
    return [entry["trade_seq"] for entry in entries]


# What is remembered


BOUNDS = st.tuples(st.none() | st.integers(0, 12), st.none() | st.integers(0, 12))


@given(st.lists(st.integers(0, 2), max_size=10), BOUNDS, BOUNDS, st.integers(1, 5), st.booleans())
def test_a_page_is_what_a_search_through_all_finds(
    later_ms: list[int], seqs: Bounds, times_ms: Bounds, count: int, ascending: bool
) -> None:
    """Inclusive bounds on number and time, from either end, several trades to a millisecond."""
    kept = [trade(place, sum(later_ms[: place + 1])) for place in range(len(later_ms))]
    within = [
        each
        for each in kept
        if all(
            (low is None or low <= value) and (high is None or value <= high)
            for value, (low, high) in ((each.seq, seqs), (each.timestamp_ms, times_ms))
        )
    ]
    expected = within if ascending else within[::-1]
    page, has_more = TradeQuery(count=count, ascending=ascending, seqs=seqs, times_ms=times_ms).page(kept)

    assert page == expected[:count]
    assert has_more == (len(expected) > count)


def test_the_main_host_forgets_by_age_and_the_history_does_not() -> None:
    """A trade is forgotten when it is older than the setting, by instrument and in all."""
    hosts = Hosts(main_keeps_s=10)
    kept = [trade(seq, seq * 1000, instrument="AB"[seq % 2]) for seq in range(20)]
    for each in kept:
        hosts.add(each)
    main = hosts.main(25_000)

    assert main.of(None) == kept[15:]
    assert main.of("A") == [kept[16], kept[18]]
    assert hosts.history.of(None) == kept
    assert Hosts().main(2**42).of(None) == []


def test_a_delivered_option_leaves_the_main_host() -> None:
    """Its trades are gone by instrument and in all; the others stay."""
    hosts = Hosts()
    for seq in range(6):
        hosts.add(trade(seq, seq, instrument="AB"[seq % 2]))
    hosts.deliver({"A", "never traded"})

    assert [each.instrument for each in hosts.main(0).of(None)] == ["B"] * 3
    assert hosts.main(0).of("A") == []
    assert len(hosts.history.of("A")) == 3


def test_a_history_stays_within_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest trades go, of each instrument the same as of all."""
    monkeypatch.setattr(trades, "MOST_KEPT", 20)
    monkeypatch.setattr(trades, "_FORGOTTEN_AT_ONCE", 5)
    kept = Trades()
    for seq in range(100):
        kept.add(trade(seq, seq, instrument="A" if seq < 50 else "B"))

    assert [each.seq for each in kept.of(None)] == [each.seq for each in kept.of("B")]
    assert 15 <= len(kept.of(None)) <= 20
    assert kept.of(None)[-1].seq == 99
    assert kept.of("A") == []


@anyio
async def test_an_expired_option_is_only_in_the_history() -> None:
    """After its delivery the socket answers no trade of it, by name or in all; GET answers every one."""
    async with serving(options()) as exchange, client(exchange) as deribit:
        name, other = names(exchange)[:2]
        await deribit.subscribe(STATES)
        exchange.print_trades(name, 4)
        exchange.print_trades(other, 4)
        before = await deribit.call(BY_INSTRUMENT, instrument_name=name, count=4, sorting="asc")
        exchange.expire_options([name])
        state = await deribit.data(STATES)
        after = await deribit.call(BY_INSTRUMENT, instrument_name=name)
        everything = await deribit.call(BY_CURRENCY, currency="ETH", kind="option", count=1000)
        _, history = await get(exchange, BY_INSTRUMENT, instrument_name=name, count=4, sorting="asc")
        unknown = await deribit.call(BY_INSTRUMENT, instrument_name="ETH-1JAN20-1-C")

    assert state["instrument_name"] == name
    assert len(before["result"]["trades"]) == 4
    assert after["result"] == {"trades": [], "has_more": False}
    assert {name, other} & {entry["instrument_name"] for entry in everything["result"]["trades"]} == {other}
    assert history["result"]["trades"][-4:] == before["result"]["trades"][-4:]
    assert unknown["error"]["data"]["reason"] == "instrument not found"


@anyio
async def test_the_main_host_keeps_what_it_is_told_to() -> None:
    """With a setting of an hour the socket has no older trade; GET has those of the whole day."""
    async with serving(options(instruments=100, main_keeps=3600)) as exchange, client(exchange) as deribit:
        query = {"currency": "ETH", "kind": "option", "count": 1000, "sorting": "asc"}
        main = (await deribit.call(BY_CURRENCY, **query))["result"]["trades"]
        now_ms = (await deribit.call("public/get_time"))["result"]
        _, history = await get(exchange, BY_CURRENCY, **query)
    ages_ms = [now_ms - entry["timestamp"] for entry in history["result"]["trades"]]

    assert max(ages_ms) > 3_600_000
    assert all(now_ms - entry["timestamp"] < 3_601_000 for entry in main)
    assert len(main) < len(ages_ms)


# What becomes of each number


async def live_seqs(deribit: Client, name: str, until: int) -> list[int]:
    """Receive trades of an option up to a number."""
    seqs: list[int] = []
    while not seqs or seqs[-1] < until:
        seqs += seqs_of(entry for entry in await deribit.data(WIDE_TRADES) if entry["instrument_name"] == name)
    return seqs


async def seqs_in_history(exchange: Exchange, name: str, first: int, last: int) -> list[int]:
    """Ask for a range by number, page after page."""
    found: list[int] = []
    has_more = True
    while has_more:
        bounds = {"start_seq": found[-1] + 1 if found else first, "end_seq": last, "count": 1000, "sorting": "asc"}
        _, answer = await get(exchange, BY_INSTRUMENT, instrument_name=name, **bounds)
        found += seqs_of(answer["result"]["trades"])
        has_more = answer["result"]["has_more"]
    return found


def newest_seq(exchange: Exchange, name: str) -> int:
    return exchange.live.market.options[name].trade_seq


@anyio
async def test_numbers_have_the_fates_they_were_given(tmp_path: Path) -> None:
    """Live ones are sent, withheld ones only in the history, void ones nowhere; the journal tells which."""
    journal = tmp_path / "journal.jsonl"
    fates = [Fate.LIVE, Fate.WITHHELD, Fate.VOID, Fate.VOID, Fate.WITHHELD, Fate.LIVE]
    async with serving(options(journal=journal, rate=1.0)) as exchange, client(exchange) as deribit:
        name = names(exchange)[0]
        await deribit.subscribe(WIDE_TRADES)
        first = newest_seq(exchange, name) + 1
        exchange.mix_trades(name, fates)
        exchange.withhold_trades(name, 1)
        exchange.void_trades(name, 1)
        exchange.print_trades(name, 1)
        last = first + len(fates) + 2
        live = await live_seqs(deribit, name, last)
        history = await seqs_in_history(exchange, name, first, last)
    faults = faults_in(journal)
    withheld = [fault["message"]["trade_seq"] for fault in faults if fault["kind"] == "trade_gap"]
    void = [(fault["instrument"], fault["trade_seq"]) for fault in faults if fault["kind"] == "trade_void"]

    assert faults[0]["fates"] == [fate.value for fate in fates]
    assert live == [first, first + 5, first + 8]
    assert withheld == [first + 1, first + 4, first + 6]
    assert void == [(name, first + 2), (name, first + 3), (name, first + 7)]
    assert history == sorted(live + withheld)


@anyio
async def test_a_sweep_is_one_millisecond_that_time_cannot_page(tmp_path: Path) -> None:
    """1,500 trades share a millisecond, the middle ones are withheld; by number all are had, by time 1,000."""
    journal = tmp_path / "journal.jsonl"
    async with serving(options(journal=journal, rate=1.0)) as exchange, client(exchange) as deribit:
        name = names(exchange)[0]
        await deribit.subscribe(WIDE_TRADES)
        first = newest_seq(exchange, name) + 1
        exchange.sweep(name, 1500, withheld=(200, 1300))
        live = await live_seqs(deribit, name, first + 1499)
        stamps = {entry["timestamp"] for entries in deribit.seen(WIDE_TRADES) for entry in entries}
        history = await seqs_in_history(exchange, name, first, first + 1499)
        moment = {"start_timestamp": max(stamps), "end_timestamp": max(stamps), "count": 1000}
        _, timed = await get(exchange, f"{BY_INSTRUMENT}_and_time", instrument_name=name, **moment)

    assert live == [*range(first, first + 200), *range(first + 1300, first + 1500)]
    assert history == list(range(first, first + 1500))
    assert len(timed["result"]["trades"]) == 1000
    assert timed["result"]["has_more"] is True
    assert len([fault for fault in faults_in(journal) if fault["kind"] == "trade_gap"]) == 1100


@anyio
async def test_an_option_can_expire_right_after_a_trade_nobody_saw(tmp_path: Path) -> None:
    """The state is told, the last trade is not: only the history shows that there was one."""
    journal = tmp_path / "journal.jsonl"
    async with serving(options(journal=journal, rate=1.0)) as exchange, client(exchange) as deribit:
        name = names(exchange)[0]
        await deribit.subscribe(WIDE_TRADES, STATES)
        last = newest_seq(exchange, name) + 1
        exchange.expire_options([name], last_trade_withheld=True)
        state = await deribit.data(STATES)
        history = await seqs_in_history(exchange, name, last, last + 10)
    delivered = [line["instruments"] for line in lines_in(journal) if line.get("event") == "delivered"]

    assert (state["instrument_name"], state["state"]) == (name, "delivered")
    assert not [
        entry for entries in deribit.seen(WIDE_TRADES) for entry in entries if entry["instrument_name"] == name
    ]
    assert history == [last]
    assert delivered == [[name]]


# What can be ordered of a market


@anyio
async def test_storms_can_be_ordered(tmp_path: Path) -> None:
    """Those that expire first are delivered at once, new ones are listed at once; the journal names them."""
    journal = tmp_path / "journal.jsonl"
    ordered = options(journal=journal, faults=parse("expire:at=0.2,count=9;list:at=0.4,count=30;rerank:at=0.2"))
    async with serving(ordered) as exchange, client(exchange) as deribit:
        before = names(exchange)
        await deribit.subscribe(STATES, "instrument.creation.any.any")
        while len(deribit.seen(STATES)) < 9 or len(deribit.seen("instrument.creation.any.any")) < 30:
            await deribit.receive()
        gone = {data["instrument_name"] for data in deribit.seen(STATES)}
        after = names(exchange)
    faults = {fault["kind"]: fault for fault in faults_in(journal)}

    assert gone == set(before) - set(after) == set(faults["expire"]["instruments"])
    assert set(faults["list"]["instruments"]) == set(after) - set(before)
    assert len(after) == 24 - 9 + 30
    assert "rerank" in faults


@anyio
async def test_a_rerank_deals_the_same_interest_out_anew() -> None:
    """The amounts stay, but not with whom."""
    async with serving(options(rate=0.001)) as exchange:
        held = {name: option.open_interest for name, option in exchange.live.market.options.items()}
        exchange.rerank()
        dealt = {name: option.open_interest for name, option in exchange.live.market.options.items()}

    assert sorted(held.values()) == sorted(dealt.values())
    assert held != dealt


@anyio
async def test_trades_that_nobody_was_sent_are_written_down(tmp_path: Path) -> None:
    """Without a connection, without a subscription, and between the last window and the end."""
    journal = tmp_path / "journal.jsonl"
    async with serving(options(journal=journal, rate=1.0)) as exchange:
        name = names(exchange)[0]
        first = newest_seq(exchange, name) + 1
        exchange.print_trades(name, 2)
        async with client(exchange) as deribit:
            exchange.print_trades(name, 2)
            await deribit.call("public/test")
        exchange.print_trades(name, 2)
    told = [line["trade"] for line in lines_in(journal) if line.get("event") == "unsent_trade"]

    assert seqs_of(entry for entry in told if entry["instrument_name"] == name) == list(range(first, first + 6))


async def follow(exchange: Exchange) -> None:
    """Be a client that comes back whatever happens."""
    while True:
        try:
            async with client(exchange) as deribit:
                await deribit.subscribe(WIDE_TRADES, *(f"book.{name}.100ms" for name in names(exchange)))
                await deribit.drain()
        except (ConnectionClosed, InvalidHandshake, OSError, TimeoutError):
            await asyncio.sleep(0.05)


@anyio
async def test_every_number_can_be_told_from_the_journal_alone(tmp_path: Path) -> None:
    """While connections come and go: sent, cut, withheld and unsent are all trades there are, void all the rest."""
    journal = tmp_path / "journal.jsonl"
    faults = (
        "kill:every=0.3;half_open:every=0.5,for=0.4;maintenance:at=1,for=0.3;trade_gap:every=0.2;trade_void:every=0.2;"
        "trade_mixed:every=0.3;sweep:at=0.5,count=90;expire_trade_gap:every=0.7;expire:at=1.2,count=5;list:at=0.9,count=9;"
        "reorder:every=0.1;duplicate:every=0.2;disconnect:every=0.9;lock:at=2,for=0.2"
    )
    ordered = options(journal=journal, rate=3000.0, faults=parse(faults))
    async with serving(ordered) as exchange:
        begun = {name: option.trade_seq for name, option in exchange.live.market.options.items()}
        clients = [asyncio.create_task(follow(exchange)) for _ in range(2)]
        await asyncio.sleep(3)
        for task in clients:
            task.cancel()
        await asyncio.gather(*clients, return_exceptions=True)
    told: set[tuple[str, int]] = set()
    void: set[tuple[str, int]] = set()
    for line in lines_in(journal):
        void |= {(line["instrument"], line["trade_seq"])} if line.get("kind") == "trade_void" else set()
        told |= {(entry["instrument_name"], entry["trade_seq"]) for entry in trades_in(line)}
    made = exchange.feed.trades.of(None)
    since = {(entry.instrument, entry.seq) for entry in made if entry.seq > begun.get(entry.instrument, 0)}
    numbers: dict[str, list[int]] = {}
    for name, seq in told | void:
        numbers.setdefault(name, []).append(seq)

    assert {fault.kind for fault in ordered.faults} <= {line.get("kind") for line in lines_in(journal)}
    assert told == since
    assert not told & void
    assert len(void) > 10
    for name, seqs in numbers.items():
        assert sorted(seqs) == list(range(begun.get(name, 0) + 1, max(seqs) + 1))


def trades_in(line: Any) -> list[Any]:
    """The trades that a line of the journal tells of."""
    message = line.get("message", {})
    if line.get("event") == "unsent_trade":
        return [line["trade"]]
    if line.get("kind") == "trade_gap":
        return [message]
    is_trades = message.get("params", {}).get("channel") == WIDE_TRADES
    return list(message["params"]["data"]) if is_trades else []


@anyio
async def test_a_trade_can_be_forgotten_by_both_hosts(tmp_path: Path) -> None:
    """The next one is sent, so that the hole shows; then the option is over, and nobody has any trade of it."""
    journal = tmp_path / "journal.jsonl"
    async with serving(options(journal=journal, rate=1.0)) as exchange, client(exchange) as deribit:
        name = names(exchange)[0]
        await deribit.subscribe(WIDE_TRADES, STATES)
        first = newest_seq(exchange, name) + 1
        exchange.forget_trade(name)
        live = await live_seqs(deribit, name, first + 1)
        history = await seqs_in_history(exchange, name, 1, first + 9)
        main = await deribit.call(BY_INSTRUMENT, instrument_name=name)
    forgotten = [fault["instrument"] for fault in faults_in(journal) if fault["kind"] == "trade_forgotten"]

    assert live == [first + 1]
    assert history == main["result"]["trades"] == []
    assert forgotten == [name]


def test_a_fault_that_comes_again_and_again_can_end() -> None:
    """At the last of its times that is not after `until`, which says nothing of what comes once."""
    [fault] = parse("trade_gap:at=1,every=2,until=5")

    assert [fault.due_s(times) for times in range(4)] == [1.0, 3.0, 5.0, None]
    with pytest.raises(ValueError, match="takes until=SECONDS only with every=SECONDS"):
        parse("trade_gap:at=1,until=5")
