"""Calls that the exchange refuses while what was granted flows on: a real pool and intake, a simulated exchange."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from recorder.deribit import asking, channels, trouble
from recorder.deribit import session as session_module
from recorder.deribit.messages import InstrumentData
from recorder.deribit.pool import Pool
from recorder.deribit.universe import Listing
from recorder.intake import Intake
from recorder.rejects import Rejects
from recorder.runtime.backoff import Backoff
from recorder.runtime.logging import get_logger
from recorder.simulator import session as simulated
from recorder.simulator.run import serving
from recorder.simulator.server import Exchange
from recorder.trades_had import TradesHad
from tests.test_healer import become
from tests.test_simulator import names, options
from tests.test_simulator_troubles import FOR_EVER_S, during

pytestmark = pytest.mark.anyio

WIDE = (
    channels.trades("option", "ETH"),
    channels.instrument_state("option", "ETH"),
    channels.instrument_creation("option", "ETH"),
)


class Desk:
    """A pool that records into an intake; the test keeps the rows that would go to the disk."""

    def __init__(self, exchange: Exchange, folder: Path, *, max_channels: int = 400) -> None:
        self.ahead_us = 0
        self.on_list_missed: Callable[[], None] = lambda: None
        self.gaps: list[dict[str, Any]] = []
        self.quotes: list[dict[str, Any]] = []
        clock = asyncio.get_running_loop().time

        def now_us() -> int:
            return 1_780_000_000_000_000 + int(clock() * 1e6) + self.ahead_us

        self.intake = Intake(
            currency="ETH",
            kind="option",
            buffer_size_quotes=100_000,
            buffer_size_trades=100_000,
            buffer_size_tickers=100_000,
            had=TradesHad(),
            open_gaps=[],
            rejects=Rejects(folder),
            now_us=now_us,
            on_instrument=lambda _: None,
            on_list_missed=lambda: self.on_list_missed(),  # noqa: PLW0108 - it is set later
            log=get_logger("test"),
        )
        self.pool = Pool(
            exchange.url,
            feed=self.intake,
            flows_on=self.intake.flows_on,
            book_flows_on=lambda name, connection: connection in self.intake.quotes.carriers(name),
            max_channels=max_channels,
            redundancy=1,
            now_us=now_us,
            log=get_logger("test"),
        )

    def want(self, wanted: Iterable[str]) -> None:
        """Choose, as the watchlist does."""
        chosen = tuple(wanted)
        self.intake.chosen(Listing({name: InstrumentData(name) for name in chosen}), chosen)
        self.pool.want(chosen, WIDE)

    def flows(self, wanted: Iterable[str]) -> Callable[[], bool]:
        lanes = self.intake.quotes, self.intake.tickers
        return lambda: all(lane.carriers(name) for lane in lanes for name in wanted)

    @property
    def reconnects(self) -> int:
        return sum(connection.health.reconnects for connection in self.pool.connections)

    def flush(self) -> None:
        self.intake.tick()
        for buffer in self.intake.buffers:
            rows = [row for batch in buffer.take() for row in batch.to_pylist()]
            buffer.settle(())
            self.gaps += rows if buffer.stream == "data_gaps" else []
            self.quotes += rows if buffer.stream.endswith("quotes") else []

    def told(self) -> set[tuple[str, str | None]]:
        """Which gaps of books and tickers were told: cause and instrument."""
        self.flush()
        return {(gap["cause"], gap["instrument"]) for gap in self.gaps if not gap["stream"].endswith("trades")}

    @asynccontextmanager
    async def recording(self) -> AsyncIterator[None]:
        """Let the pool run within a block."""
        task = asyncio.create_task(self.pool.run())
        try:
            yield
        finally:
            task.cancel()
            (end,) = await asyncio.gather(task, return_exceptions=True)
            assert isinstance(end, asyncio.CancelledError), end


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trouble, "_LEAST_DELAY_S", {})
    monkeypatch.setattr(asking, "ASK_AGAIN_S", 0.2)
    monkeypatch.setattr(asking, "Backoff", partial(Backoff, first_s=0.05, most_s=0.2))


@pytest.fixture
async def exchange() -> AsyncIterator[Exchange]:
    async with serving(options(instruments=12)) as running:
        yield running


def refusing(exchange: Exchange, kind: str) -> Any:
    return during(exchange.trouble(kind, FOR_EVER_S))


@pytest.fixture
def refused(exchange: Exchange, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The methods of the calls that were refused so far."""
    calls: list[str] = []
    tell = exchange.journal.event

    def watch(event: str, *args: Any, **facts: Any) -> None:
        if event == "call_refused":
            calls.append(facts["method"])
        tell(event, *args, **facts)

    monkeypatch.setattr(exchange.journal, "event", watch)
    return calls


@pytest.mark.parametrize("kind", ["unauthenticated", "settlement", "unavailable"])
@pytest.mark.fault(12)
async def test_a_refused_subscribe_costs_nothing_that_flows(
    exchange: Exchange, tmp_path: Path, refused: list[str], kind: str
) -> None:
    """What was granted goes on without a gap on its session; what was refused is recorded once it is granted."""
    desk, listed = Desk(exchange, tmp_path), names(exchange)
    kept, new = listed[:6], listed[6:]
    async with desk.recording():
        desk.want(kept)
        await become(desk.flows(kept), "the first to flow")
        async with refusing(exchange, kind):
            desk.want([*kept, *new])
            await become(lambda: refused.count("public/subscribe") > 2, "some refusals")
            received = desk.intake.received
            await become(lambda: desk.intake.received > received + 50, "messages meanwhile")
            assert desk.flows(kept)()
            assert not any(desk.flows([name])() for name in new)
        await become(desk.flows(listed), "the refused ones to flow")
        desk.want(kept)
        await become(lambda: desk.pool.connections[0].health.channels == 2 * len(kept) + len(WIDE), "a leaving")

    assert desk.reconnects == 0
    assert desk.told() == set()


@pytest.mark.fault(12)
async def test_a_snapshot_that_comes_after_its_ticker_was_left_ends_nothing(
    exchange: Exchange, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call that was given up may take effect late: the book's channel still waits when the ticker is left."""
    desk, (name, *others) = Desk(exchange, tmp_path), names(exchange)[:6]
    book, ticker = channels.book(name), channels.ticker(name)
    async with desk.recording():
        desk.want([name, *others])
        await become(desk.flows([name, *others]), "all to flow")
        (connection,) = desk.pool.connections
        # So it is after a subscribe of the book alone that was not answered in time, which no fault makes to order.
        inside = vars(connection)
        monkeypatch.setattr(asking, "ASK_AGAIN_S", 1.0)
        inside["_held"].discard(book)
        inside["_asking"].left_out([book])
        desk.want(others)
        await become(lambda: ticker not in inside["_subscriptions"], "the ticker to be left")
        assert book in inside["_subscriptions"]
        await become(lambda: book not in inside["_subscriptions"], "the book to be left")

    assert desk.reconnects == 0


@pytest.mark.fault(12)
async def test_what_stays_refused_is_told_as_a_gap_of_its_own(
    exchange: Exchange, tmp_path: Path, refused: list[str]
) -> None:
    """It is to be recorded, and nothing comes."""
    desk, listed = Desk(exchange, tmp_path), names(exchange)
    async with desk.recording():
        desk.want(listed[:6])
        await become(desk.flows(listed[:6]), "the first to flow")
        async with refusing(exchange, "settlement"):
            desk.want(listed[:7])
            await become(lambda: len(refused) > 1, "refusals")
            desk.ahead_us += 31_000_000
            assert desk.told() == {("silence", listed[6])}
        await become(desk.flows(listed[:7]), "all to flow")
        desk.flush()

    assert {gap["status"] for gap in desk.gaps} == {"open", "lost"}


@pytest.mark.parametrize("refuses", ["both", "subscribe"])
@pytest.mark.fault(12)
async def test_a_book_that_is_not_taken_back_is_asked_for_until_it_is(
    exchange: Exchange, tmp_path: Path, refused: list[str], monkeypatch: pytest.MonkeyPatch, refuses: str
) -> None:
    """A break in a settlement: the book's own gap lasts until its snapshot; nothing else has one."""
    if refuses == "subscribe":
        monkeypatch.setattr(simulated, "NEVER_REFUSED", simulated.NEVER_REFUSED | {"public/unsubscribe"})
    desk, listed = Desk(exchange, tmp_path), names(exchange)
    async with desk.recording():
        desk.want(listed)
        await become(desk.flows(listed), "all to flow")
        await become(lambda: desk.intake.received > 300, "messages")
        desk.flush()
        ((broken, _),) = Counter(row["instrument"] for row in desk.quotes).most_common(1)  # it moves again soon
        async with refusing(exchange, "settlement"):
            exchange.skip_change(broken)
            await become(lambda: len(refused) > 3, "some refusals")
            assert not desk.intake.quotes.carriers(broken)
            assert desk.flows(set(listed) - {broken})()
        await become(desk.flows(listed), "the broken one to flow")

    assert set(refused) == {"public/unsubscribe" if refuses == "both" else "public/subscribe"}
    assert desk.reconnects == 0
    assert desk.told() == {("sequence_break", broken)}
    of_one = [row for row in desk.quotes if row["instrument"] == broken]
    assert [row["prev_change_id"] for row in of_one].count(None) == 2


@pytest.mark.fault(12)
async def test_a_call_that_is_not_answered_costs_nothing_that_flows(
    exchange: Exchange, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its channels, which may have been granted, are asked for again; the session stays."""
    desk, listed = Desk(exchange, tmp_path), names(exchange)
    async with desk.recording():
        desk.want(listed[:6])
        await become(desk.flows(listed[:6]), "the first to flow")
        monkeypatch.setattr(session_module, "CALL_TIMEOUT_S", 0.1)
        (session,) = exchange.connections
        calls: list[bytes] = []
        send = session.send

        def swallow(message: bytes, *, is_data: bool = False) -> None:
            if b'"result":[' in message and len(calls) < 3:
                calls.append(message)
            else:
                send(message, is_data=is_data)

        monkeypatch.setattr(session, "send", swallow)
        desk.want(listed)
        await become(lambda: desk.pool.connections[0].health.channels == 2 * len(listed) + len(WIDE), "a grant")
        await become(desk.flows(listed), "all to flow")

    assert len(calls) == 3
    assert desk.reconnects == 0
    assert desk.told() == set()


async def test_a_session_of_which_nothing_was_granted_ends(
    exchange: Exchange, tmp_path: Path, refused: list[str]
) -> None:
    """It has nothing to lose: another one is tried after a while."""
    desk, listed = Desk(exchange, tmp_path), names(exchange)
    async with desk.recording():
        async with refusing(exchange, "settlement"):
            desk.want(listed)
            await become(lambda: desk.reconnects, "another session")
        await become(desk.flows(listed), "all to flow")

    assert refused


async def test_one_refusal_is_one_line(
    exchange: Exchange, tmp_path: Path, refused: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """By the name of what it was; the next one of that name is told when a call was answered in between."""
    desk, listed = Desk(exchange, tmp_path), names(exchange)
    async with desk.recording():
        desk.want(listed[:6])
        await become(desk.flows(listed[:6]), "the first to flow")
        for count in (8, 10):
            before = len(refused)
            async with refusing(exchange, "settlement"):
                desk.want(listed[:count])
                await become(lambda n=before: len(refused) > n + 2, "some refusals")
            await become(desk.flows(listed[:count]), "all to flow")
    printed = capsys.readouterr()
    lines = [line for line in (printed.out + printed.err).splitlines() if "subscribe.refused" in line]

    assert len(lines) == 2
    assert all("settlement_in_progress" in line for line in lines)
