"""Moves from one connection to another: made before they are broken, in books and in tickers."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from recorder.deribit import asking, pool
from recorder.simulator.run import serving
from recorder.simulator.server import Exchange
from tests.test_healer import become
from tests.test_refusals import WIDE, Desk
from tests.test_simulator import names, options

pytestmark = pytest.mark.anyio


@pytest.fixture
async def exchange() -> AsyncIterator[Exchange]:
    async with serving(options(instruments=12)) as running:
        yield running


async def hand_over(desk: Desk, exchange: Exchange, listed: list[str]) -> None:
    """Record on two connections, and let the second take all from the first, which is cut."""
    desk.want(listed)
    await become(desk.flows(listed), "all to flow")
    exchange.kill(exchange.numbers[0])
    await become(lambda: all(desk.intake.tickers.carriers(name) == {1} for name in listed), "the handing over")
    desk.told()
    desk.gaps.clear()


@pytest.fixture
def without_tickers(exchange: Exchange, monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Say whether the exchange leaves out the channels of tickers from now on."""
    monkeypatch.setattr(asking, "ASK_AGAIN_S", 0.2)
    grants = exchange.feed.grants

    def leave_out(yes: bool) -> None:
        monkeypatch.setattr(exchange.feed, "grants", lambda c: grants(c) and not (yes and c.startswith("ticker.")))

    return leave_out


@pytest.mark.fault(12)
async def test_a_move_waits_for_both_book_and_ticker(
    exchange: Exchange, tmp_path: Path, without_tickers: Callable[[bool], None]
) -> None:
    """While the new connection is not granted the tickers the old one carries on, and no gap opens."""
    desk, listed = Desk(exchange, tmp_path, max_channels=16), names(exchange)
    async with desk.recording():
        await hand_over(desk, exchange, listed)
        without_tickers(True)
        one, other = desk.pool.connections
        await become(lambda: one.assigned.instruments, "moves")
        moved = one.assigned.instruments
        await become(lambda: all(desk.intake.quotes.carriers(name) == {0, 1} for name in moved), "books to flow")
        await asyncio.sleep(0.6)
        assert one.assigned.instruments == moved
        assert other.assigned.instruments == set(listed)
        without_tickers(False)
        await become(lambda: other.assigned.instruments == set(listed) - moved, "the moves")
        await become(lambda: other.health.channels == 2 * (len(listed) - len(moved)) + len(WIDE), "a leaving")

    assert desk.flows(listed)()
    assert desk.told() == set()


async def test_a_move_to_where_the_ticker_never_comes_is_given_up(
    exchange: Exchange, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without_tickers: Callable[[bool], None]
) -> None:
    """The new connection leaves what it has again, and the old one has carried it all the time."""
    monkeypatch.setattr(pool, "MOVE_PATIENCE_S", 0.5)
    desk, listed = Desk(exchange, tmp_path, max_channels=16), names(exchange)
    async with desk.recording():
        await hand_over(desk, exchange, listed)
        without_tickers(True)
        one, other = desk.pool.connections
        await become(lambda: one.assigned.instruments, "moves")
        await become(lambda: not one.assigned.instruments and one.health.channels == 0, "their end")
        assert other.assigned.instruments == set(listed)
        assert desk.flows(listed)()

    assert desk.told() == set()
