"""The healer with what it keeps its books in, beside two hosts that answer as they do; no socket, no disk."""

import asyncio
import threading
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any

import msgspec
import pytest

from recorder import healer
from recorder.deribit import history
from recorder.deribit.history import History
from recorder.deribit.messages import InstrumentData, TradeData
from recorder.deribit.session import Reply, RpcError
from recorder.deribit.universe import Listing
from recorder.gaps import Gap
from recorder.healer import Healer
from recorder.intake import Intake
from recorder.rejects import Rejects
from recorder.runtime.backoff import Backoff
from recorder.runtime.logging import get_logger
from recorder.simulator import methods, rest, wire
from recorder.simulator.methods import Host, Params
from recorder.simulator.orders import Fate
from recorder.simulator.run import serving
from recorder.simulator.server import Exchange
from recorder.trades_had import Had, TradesHad
from recorder.trades_owed import JUMP_GRACE_US
from tests.fix_programs import PATIENCE_S
from tests.test_simulator import names, options

pytestmark = pytest.mark.anyio

TRADES = "eth_option_trades"
DAY_US = 86_400_000_000
BY_CURRENCY = "public/get_last_trades_by_currency_and_time"
BY_INSTRUMENT = "public/get_last_trades_by_instrument"
LIVE, WITHHELD, VOID = Fate.LIVE, Fate.WITHHELD, Fate.VOID


class Desk:
    """An intake and its healer; the test hands over live trades, and keeps the rows that would go to the disk."""

    def __init__(
        self,
        exchange: Exchange,
        folder: Path,
        *,
        had: TradesHad | None = None,
        open_gaps: Iterable[Gap] = (),
        recording_since_us: int | None = 0,
        buffer_rows: int = 100_000,
        void_after_s: float = 0.05,
        lost_after_s: float = 86_400.0,
    ) -> None:
        self.exchange = exchange
        self.ahead_us = 0  # of the wall clock
        self.calls: list[tuple[str, dict[str, Any]]] = []  # of the main host
        self.refuses: dict[str, RpcError] = {}  # by method
        self.rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.intake = Intake(
            currency="ETH",
            kind="option",
            buffer_size_quotes=1000,
            buffer_size_trades=buffer_rows,
            buffer_size_tickers=1000,
            had=had or TradesHad(),
            open_gaps=open_gaps,
            recording_since_us=recording_since_us,
            rejects=Rejects(folder),
            now_us=self.now_us,
            on_instrument=lambda _: None,
            on_list_missed=lambda: None,
            log=get_logger("test"),
        )
        self.healer = Healer(
            self.intake,
            History(call=self.call, history_url=exchange.history_url, currency="ETH", kind="option"),
            void_after_s=void_after_s,
            lost_after_s=lost_after_s,
            now_us=self.now_us,
            log=get_logger("test"),
        )

    def now_us(self) -> int:
        return time.time_ns() // 1000 + self.ahead_us

    async def call(self, method: str, **params: Any) -> Reply:
        """Be the main host."""
        self.calls.append((method, params))
        await asyncio.sleep(0)
        if method in self.refuses:
            raise self.refuses[method]
        feed = self.exchange.feed
        answer = methods.answer(Host(feed, feed.main_trades), method, Params(params))
        return Reply(msgspec.Raw(answer.encode()), None)

    def asked(self, method: str) -> int:
        return sum(name == method for name, _ in self.calls)

    def subscribe(self) -> None:
        """Be granted the channel of all trades."""
        none: frozenset[str] = frozenset()
        self.intake.subscribed(
            0, books=none, tickers=none, refused=none, trades=True, lifecycle=True, exchange_us=None
        )

    def listed(self, *, without: Iterable[str] = ()) -> None:
        """Take over the exchange's list as it is now."""
        found = {name: InstrumentData(name) for name in names(self.exchange) if name not in without}
        self.intake.chosen(Listing(found), ())

    def live(self, name: str, *seqs: int) -> None:
        """Bring trades of an option as its channel does."""
        trades = [trade for trade in self.made(name) if trade.trade_seq in seqs]
        assert len(trades) == len(seqs)
        self.intake.trades(trades, self.now_us(), self.now_us())

    def made(self, name: str) -> list[TradeData]:
        kept = self.exchange.feed.trades.of(name)
        return [msgspec.json.decode(wire.trade(trade), type=TradeData) for trade in kept]

    def flush(self) -> None:
        """Let what waits become durable."""
        self.intake.tick()
        for buffer in self.intake.buffers:
            for batch in buffer.take():
                self.rows[buffer.stream] += batch.to_pylist()
            buffer.settle(())

    @asynccontextmanager
    async def healing(self) -> AsyncIterator[None]:
        """Let it heal and flush within a block."""
        tasks = [asyncio.create_task(self.healer.run()), asyncio.create_task(self._flushing())]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
            # The exchange is still there for what is on its way.
            await become(lambda: "history" not in {thread.name for thread in threading.enumerate()}, "an answer")
            assert all(isinstance(end, asyncio.CancelledError) for end in ended), ended

    async def _flushing(self) -> None:
        while True:
            self.flush()
            await asyncio.sleep(0.01)

    def seqs(self, name: str) -> list[int]:
        """The numbers of an option that are on the tape, in order."""
        return sorted(row["trade_seq"] for row in self.rows[TRADES] if row["instrument"] == name)

    def fates(self, name: str | None) -> list[tuple[str, int | None, int | None]]:
        """What was told of an option's gaps, or of those of all: status, first, last."""
        rows = [row for row in self.rows["data_gaps"] if row["stream"] == TRADES and row["instrument"] == name]
        return [(row["status"], row["first_missing"], row["last_missing"]) for row in rows]


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("POLL_S", 0.01), ("ASK_AGAIN_S", 0.02), ("ASK_AGAIN_MOST_S", 0.02), ("SETTLE_S", 0.0)):
        monkeypatch.setattr(healer, name, value)
    monkeypatch.setattr(healer, "Backoff", partial(Backoff, first_s=0.01, most_s=0.02))
    monkeypatch.setattr(history, "_PACE_S", 0.0)


@pytest.fixture
async def exchange() -> AsyncIterator[Exchange]:
    """An exchange on which nothing happens by itself."""
    async with serving(options(rate=1.0)) as running:
        running.live.market.locked = True
        yield running


async def become(condition: Any, what: str) -> None:
    """Wait until something is true."""
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not condition():  # noqa: ASYNC110 - whatever it is
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"waited in vain for {what}") from None


def number(exchange: Exchange, name: str) -> int:
    """The next trade_seq of an option."""
    return exchange.live.market.options[name].trade_seq + 1


# Holes in numbers


async def test_a_mixed_hole_gets_its_runs(exchange: Exchange, tmp_path: Path) -> None:
    """What the hosts have is fetched once, what they never had is void, and none of it is owed again."""
    desk, name = Desk(exchange, tmp_path), names(exchange)[0]
    desk.subscribe()
    n = number(exchange, name)
    exchange.mix_trades(name, [LIVE, WITHHELD, VOID, VOID, WITHHELD, LIVE])
    desk.live(name, n, n + 5)
    desk.ahead_us = 2 * JUMP_GRACE_US
    async with desk.healing():
        await become(lambda: len(desk.fates(name)) > 1, "its fate")

    told = [("healed", n + 1, n + 1), ("void", n + 2, n + 3), ("healed", n + 4, n + 4)]
    assert desk.fates(name) == [("open", n + 1, n + 4), *told]
    assert desk.seqs(name) == [n, n + 1, n + 4, n + 5]
    assert desk.intake.owed.owe(name, n, n + 5, "crash", 0) == set()


async def test_a_void_number_needs_the_same_answer_of_both_hosts_twice(exchange: Exchange, tmp_path: Path) -> None:
    """Where the main host shows no later trade the second time, as it forgot them, the hole stays open."""
    desk, name = Desk(exchange, tmp_path, void_after_s=0.3), names(exchange)[0]
    desk.subscribe()
    n = number(exchange, name)
    exchange.mix_trades(name, [LIVE, VOID, LIVE])
    desk.live(name, n, n + 2)
    desk.ahead_us = 2 * JUMP_GRACE_US
    async with desk.healing():
        await become(lambda: desk.asked(BY_INSTRUMENT), "the first answer")
        exchange.expire_options([name])
        asked = desk.asked(BY_INSTRUMENT)
        await become(lambda: desk.asked(BY_INSTRUMENT) > asked + 6, "more answers")

    assert desk.fates(name) == [("open", n + 1, n + 1)]


async def test_what_neither_host_has_any_more_is_lost_after_a_day(exchange: Exchange, tmp_path: Path) -> None:
    """Not sooner, and not while another number of the hole can still be fetched."""
    desk, name = Desk(exchange, tmp_path), names(exchange)[0]
    desk.subscribe()
    n = number(exchange, name)
    exchange.mix_trades(name, [LIVE])
    before = desk.made(name)[-1]
    exchange.forget_trade(name)
    last = msgspec.structs.replace(before, trade_seq=n + 2)
    desk.intake.trades([before, last], desk.now_us(), desk.now_us())
    desk.ahead_us = 2 * JUMP_GRACE_US
    async with desk.healing():
        await become(lambda: desk.asked(BY_INSTRUMENT) > 5, "some answers")
        assert desk.fates(name) == [("open", n + 1, n + 1)]
        desk.ahead_us += DAY_US
        await become(lambda: len(desk.fates(name)) > 1, "its fate")

    assert desk.fates(name)[1:] == [("lost", n + 1, n + 1)]
    assert desk.intake.owed.owe(name, n, n + 2, "crash", 0) == set()


@pytest.mark.parametrize("host", ["main", "history"])
@pytest.mark.fault(12)
async def test_what_a_host_refuses_for_a_day_is_lost_too(
    exchange: Exchange, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    """Never void, since one host alone does not prove it; what the other one has is healed."""
    desk, name = Desk(exchange, tmp_path), names(exchange)[0]
    desk.subscribe()
    if host == "main":
        desk.refuses[BY_INSTRUMENT] = RpcError(BY_INSTRUMENT, 11094, "internal_server_error", b"")
    else:
        monkeypatch.setattr(rest, "reply", lambda *_: rest.respond(HTTPStatus.INTERNAL_SERVER_ERROR, b""))
    n = number(exchange, name)
    exchange.mix_trades(name, [LIVE, WITHHELD, VOID, LIVE])
    desk.live(name, n, n + 3)
    desk.ahead_us = 2 * JUMP_GRACE_US
    async with desk.healing():
        await become(lambda: desk.asked(BY_INSTRUMENT) > 7, "some answers")
        assert desk.fates(name) == [("open", n + 1, n + 2)]
        desk.ahead_us += DAY_US
        await become(lambda: len(desk.fates(name)) > 1, "its fate")

    assert desk.fates(name)[1:] == [("healed", n + 1, n + 1), ("lost", n + 2, n + 2)]
    assert desk.seqs(name) == [n, n + 1, n + 3]


async def test_a_hole_of_any_width_costs_as_much_as_is_in_it(exchange: Exchange, tmp_path: Path) -> None:
    """A jump by a million of millions is one question a host, and holds up no other hole."""
    desk, (name, other) = Desk(exchange, tmp_path), names(exchange)[:2]
    desk.subscribe()
    n, m = number(exchange, name), number(exchange, other)
    exchange.mix_trades(name, [LIVE])
    exchange.mix_trades(other, [LIVE, WITHHELD, LIVE])
    desk.live(name, n)
    far = msgspec.structs.replace(desk.made(name)[-1], trade_seq=n + 10**12)
    desk.intake.trades([far], desk.now_us(), desk.now_us())
    desk.live(other, m, m + 2)
    desk.ahead_us = 2 * JUMP_GRACE_US
    async with desk.healing():
        await become(lambda: len(desk.fates(other)) > 1, "the other's fate")

    assert desk.fates(name) == [("open", n + 1, n + 10**12 - 1)]
    assert desk.seqs(other) == [m, m + 1, m + 2]


async def test_what_is_fetched_leaves_room_for_what_comes_live(exchange: Exchange, tmp_path: Path) -> None:
    """1,800 missed trades go through a buffer of 1,000 rows half by half; none is dropped, nothing overflows."""
    desk, name = Desk(exchange, tmp_path, buffer_rows=1000), names(exchange)[0]
    desk.subscribe()
    n = number(exchange, name)
    exchange.sweep(name, 1802, withheld=(1, 1801))
    desk.live(name, n, n + 1801)
    desk.ahead_us = 2 * JUMP_GRACE_US
    longest = 0
    async with desk.healing():
        while len(desk.fates(name)) < 2:
            longest = max(longest, len(desk.intake.trades_lane.buffer))
            await asyncio.sleep(0)

    assert desk.fates(name)[1:] == [("healed", n + 1, n + 1800)]
    assert desk.seqs(name) == list(range(n, n + 1802))
    assert desk.fates(None) == []
    assert longest <= 500


async def test_a_host_that_does_not_know_an_instrument_has_no_trade_of_it(exchange: Exchange, tmp_path: Path) -> None:
    """The main host may answer that for an option that is over: the history host is asked all the same."""
    desk, name = Desk(exchange, tmp_path), names(exchange)[0]
    desk.subscribe()
    reason = b'{"reason":"instrument not found","param":"instrument_name"}'
    desk.refuses[BY_INSTRUMENT] = RpcError(BY_INSTRUMENT, -32602, "Invalid params", reason)
    n = number(exchange, name)
    exchange.mix_trades(name, [LIVE, WITHHELD, LIVE])
    desk.live(name, n, n + 2)
    desk.ahead_us = 2 * JUMP_GRACE_US
    async with desk.healing():
        await become(lambda: len(desk.fates(name)) > 1, "its fate")

    assert desk.fates(name)[1:] == [("healed", n + 1, n + 1)]


async def test_what_is_always_refused_holds_up_nothing_else(exchange: Exchange, tmp_path: Path) -> None:
    """What the main host refuses is asked of the other one; and who traded, though a hole waits for its answer."""
    desk, (name, other) = Desk(exchange, tmp_path), names(exchange)[:2]
    desk.intake.chosen(Listing({other: InstrumentData(other)}), ())
    desk.subscribe()
    desk.refuses[BY_INSTRUMENT] = RpcError(BY_INSTRUMENT, 11094, "internal_server_error", b"")
    n, m = number(exchange, name), number(exchange, other)
    exchange.mix_trades(name, [LIVE, VOID, LIVE])
    async with desk.healing():
        await become(lambda: desk.asked(BY_INSTRUMENT), "the first refusal")
        desk.live(name, n, n + 2)
        desk.ahead_us = 2 * JUMP_GRACE_US
        await become(lambda: desk.asked(BY_INSTRUMENT) > 5, "more of them")
        exchange.withhold_trades(other, 1)
        desk.ahead_us = 70_000_000
        await become(lambda: len(desk.fates(other)) > 1, "the fate of the other one")

    assert desk.seqs(other) == [m]
    assert desk.fates(name) == [("open", n + 1, n + 1)]


async def test_what_no_host_has_is_asked_for_less_and_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many such holes must not use up the calls that others need."""
    monkeypatch.undo()

    assert [healer.ask_again_s(tries) for tries in (1, 2, 3, 5, 6, 99, 10**6)] == [30, 60, 120, 480, 600, 600, 600]


# Crashes and stops


async def test_a_crash_between_the_last_trade_and_its_fate(exchange: Exchange, tmp_path: Path) -> None:
    """A gap that is open on a tape that has all of its numbers is told as healed by the next run."""
    had = TradesHad()
    had.by_instrument["A"] = Had(1, 9)
    desk = Desk(exchange, tmp_path, had=had, open_gaps=[Gap("g", TRADES, "A", "crash", 1, 2, 3, 5)])
    async with desk.healing():
        await become(lambda: desk.fates("A"), "its fate")

    assert desk.fates("A") == [("healed", 3, 5)]
    assert desk.calls == []


async def test_after_two_days_without_a_recorder_what_was_missed_is_healed(
    exchange: Exchange, tmp_path: Path
) -> None:
    """However long ago a hole began, it is lost only after it could be fetched for a day."""
    name = names(exchange)[0]
    n = number(exchange, name)
    exchange.mix_trades(name, [WITHHELD, VOID, WITHHELD, LIVE])
    now_us = time.time_ns() // 1000
    had = TradesHad()
    had.by_instrument[name] = Had(1, n - 1)  # the market may have traded it before, within these two days
    stopped = Gap("stop", TRADES, None, "stopped", now_us - 2 * DAY_US, opened_us=now_us - 2 * DAY_US)
    desk = Desk(exchange, tmp_path, had=had, open_gaps=[stopped], void_after_s=0.3)
    desk.subscribe()
    async with desk.healing():
        await become(lambda: desk.fates(None) and desk.fates(None)[-1][0] != "open", "the fate of the stop")

    assert desk.fates(name)[1:] == [("healed", n, n), ("void", n + 1, n + 1), ("healed", n + 2, n + 3)]
    assert desk.fates(None)[-1][0] == "healed"
    assert desk.seqs(name) == [n, n + 2, n + 3]


async def test_a_hole_that_is_found_late_is_not_given_up_at_once(exchange: Exchange, tmp_path: Path) -> None:
    """A day is counted from when it was told, not from when it began."""
    name = names(exchange)[0]
    n = number(exchange, name)
    exchange.forget_trade(name)
    now_us = time.time_ns() // 1000
    had = TradesHad()
    had.by_instrument[name] = Had(n - 1, n + 1, [(n, n)])
    told = Gap("g", TRADES, name, "crash", now_us - 9 * DAY_US, now_us, n, n, opened_us=now_us)
    desk = Desk(exchange, tmp_path, had=had, open_gaps=[told])
    async with desk.healing():
        await become(lambda: desk.asked(BY_INSTRUMENT) > 5, "some answers")
        assert desk.fates(name) == []
        desk.ahead_us = DAY_US
        await become(lambda: desk.fates(name), "its fate")

    assert desk.fates(name) == [("lost", n, n)]


async def test_what_was_missed_before_a_hole_is_found_if_nobody_could_ask_before(
    exchange: Exchange, tmp_path: Path
) -> None:
    """The hosts refused to say who traded, then the connection was lost: what both hide is asked together."""
    desk, name = Desk(exchange, tmp_path), names(exchange)[0]
    desk.listed()
    desk.subscribe()
    n = number(exchange, name)
    desk.refuses[BY_CURRENCY] = RpcError(BY_CURRENCY, 11094, "internal_server_error", b"")
    async with desk.healing():
        await become(lambda: desk.asked(BY_INSTRUMENT) >= 24, "where to begin")
        exchange.withhold_trades(name, 1)
        desk.ahead_us = 300_000_000
        await become(lambda: desk.asked(BY_CURRENCY), "a refusal")
        desk.intake.disconnected(0, cause="disconnect", since_us=desk.now_us(), detail="")
        await asyncio.sleep(0.1)
        desk.refuses.clear()
        desk.subscribe()
        await become(lambda: len(desk.fates(name)) > 1, "its fate")
        await become(lambda: desk.fates(None)[-1][0] == "healed", "the fate of the disconnection")

    assert desk.seqs(name) == [n]


async def test_recording_begins_when_the_channel_is_granted(exchange: Exchange, tmp_path: Path) -> None:
    """What was traded between the start of a new tape and the grant is not owed; what is missed later is."""
    desk, (before, after) = Desk(exchange, tmp_path, recording_since_us=None), names(exchange)[:2]
    await asyncio.sleep(0.2)
    exchange.withhold_trades(before, 1)
    await asyncio.sleep(0.2)
    desk.listed()
    desk.subscribe()
    async with desk.healing():
        await become(lambda: desk.asked(BY_INSTRUMENT) >= 24, "where to begin")
        await asyncio.sleep(0.2)
        exchange.withhold_trades(after, 1)
        desk.ahead_us = 70_000_000
        await become(lambda: len(desk.fates(after)) > 1, "the later one")

    assert len(desk.seqs(after)) == 1
    assert desk.fates(before) == []
    assert desk.seqs(before) == []


# Options that expire


async def test_a_trade_missed_on_an_option_that_expires_is_found_at_once(exchange: Exchange, tmp_path: Path) -> None:
    """A storm of expiries costs one question to each host, not one an option; the main host has forgotten them."""
    desk, gone = Desk(exchange, tmp_path), names(exchange)[:16]
    desk.listed()
    desk.subscribe()
    async with desk.healing():
        await become(lambda: desk.asked(BY_INSTRUMENT) >= 24, "where to begin")
        before = desk.asked(BY_CURRENCY)
        numbers = {name: number(exchange, name) for name in gone}
        exchange.expire_options(gone, last_trade_withheld=True)
        desk.listed(without=gone)
        await become(lambda: all(len(desk.fates(name)) > 1 for name in gone), "their fates")

    assert desk.asked(BY_CURRENCY) - before <= 2
    for name in gone:
        assert desk.fates(name)[1:] == [("healed", numbers[name], numbers[name])]
        assert desk.seqs(name) == [numbers[name]]


async def test_an_option_that_is_over_is_forgotten_but_its_trades_do_not_come_twice(
    exchange: Exchange, tmp_path: Path
) -> None:
    """When nothing of it is owed and nobody will ask for its time; even if a clock that is set back makes one ask."""
    desk, (name, other) = Desk(exchange, tmp_path), names(exchange)[:2]
    desk.listed()
    desk.subscribe()
    n, m = number(exchange, name), number(exchange, other)
    exchange.mix_trades(name, [LIVE, WITHHELD, LIVE])
    exchange.mix_trades(other, [LIVE])
    desk.live(name, n, n + 2)
    desk.live(other, m)
    had = desk.intake.owed.had.by_instrument
    desk.ahead_us = 2 * JUMP_GRACE_US
    async with desk.healing():
        exchange.expire_options([name])
        desk.listed(without=[name])
        await become(lambda: len(desk.fates(name)) > 1, "its fate")
        assert name in had
        desk.ahead_us += 2 * 3_600_000_000
        await become(lambda: name not in had, "it to be forgotten")
        desk.ahead_us -= 2 * 3_600_000_000
        asked = desk.asked(BY_CURRENCY)
        desk.intake.owed.newest_ending_us = desk.now_us() + 100_000
        await become(lambda: desk.asked(BY_CURRENCY) > asked, "another sweep")
        await asyncio.sleep(0.2)

    assert desk.seqs(name) == [n, n + 1, n + 2]
    assert other in had
    assert number(exchange, other) == m + 1


async def test_who_else_traded_in_the_millisecond_of_a_sweep_is_found(exchange: Exchange, tmp_path: Path) -> None:
    """A page by time is full of one option's 1,500 trades; the other one trades last in that millisecond."""
    desk, (name, other) = Desk(exchange, tmp_path), names(exchange)[:2]
    desk.listed()
    desk.subscribe()
    m = number(exchange, other)
    async with desk.healing():
        await become(lambda: desk.asked(BY_INSTRUMENT) >= 24, "where to begin")
        exchange.sweep(name, 1500, withheld=(0, 1500))
        exchange.withhold_trades(other, 1)
        exchange.list_options(1)
        desk.ahead_us = 70_000_000
        await become(lambda: desk.seqs(other), "the other one")

    assert desk.seqs(other) == [m]


async def test_learning_where_to_begin_does_not_hold_up_a_hole(
    exchange: Exchange, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of many instruments a few are asked at a time."""
    monkeypatch.setattr(healer, "NAMES_AT_ONCE", 2)
    desk, name = Desk(exchange, tmp_path), names(exchange)[-1]
    desk.listed()
    desk.subscribe()
    n = number(exchange, name)
    exchange.mix_trades(name, [LIVE, WITHHELD, LIVE])
    async with desk.healing():
        await become(lambda: len(desk.calls) >= 1, "the first question")
        desk.live(name, n, n + 2)
        desk.ahead_us = 2 * JUMP_GRACE_US
        await become(lambda: desk.asked(BY_INSTRUMENT) >= 24, "the last one")
    by_number = [index for index, (_, params) in enumerate(desk.calls) if "start_seq" in params]

    assert by_number[0] < 12
