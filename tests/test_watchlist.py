"""What is chosen follows what the exchange lists, also where the list could not be had: a real pool and exchange."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from recorder import watchlist
from recorder.deribit.universe import Universe
from recorder.runtime.logging import get_logger
from recorder.simulator import session as simulated
from recorder.simulator.run import serving
from recorder.simulator.server import Exchange
from recorder.watchlist import Watchlist
from tests.test_healer import become
from tests.test_refusals import Desk, refusing
from tests.test_simulator import names, options

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchlist, "GATHER_S", 0.02)
    monkeypatch.setattr(watchlist, "LIST_AGAIN_AFTER_S", 0.2)
    # All but a list can be had.
    subscribe = {"public/subscribe", "public/unsubscribe"}
    monkeypatch.setattr(simulated, "NEVER_REFUSED", simulated.NEVER_REFUSED | subscribe)


@pytest.fixture
async def exchange() -> AsyncIterator[Exchange]:
    async with serving(options(instruments=12)) as running:
        yield running


@asynccontextmanager
async def watching(exchange: Exchange, desk: Desk, folder: Path) -> AsyncIterator[None]:
    """Record all that is listed within a block, from when all of it flows."""
    async with starting(desk, folder):
        await become(desk.flows(names(exchange)), "all to flow")
        await asyncio.sleep(0.5)  # the list is fetched twice at a start
        yield


@asynccontextmanager
async def starting(desk: Desk, folder: Path) -> AsyncIterator[None]:
    log = get_logger("test")
    found = Universe(currency="ETH", kind="option", cache=folder / "u.json", source="here", log=log)
    watch = Watchlist(desk.pool, found, currency="ETH", kind="option", top_n=0, chosen=desk.intake.chosen, log=log)
    desk.on_list_missed = watch.missed_some
    async with desk.recording():
        task = asyncio.create_task(watch.run())
        yield
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.mark.fault(12, 13)
async def test_a_list_that_was_missed_is_asked_for_until_it_is_had(exchange: Exchange, tmp_path: Path) -> None:
    """Listed while the announcements were lost, and the list is refused afterwards: recorded all the same."""
    desk = Desk(exchange, tmp_path)
    async with watching(exchange, desk, tmp_path):
        async with refusing(exchange, "settlement"):
            exchange.kill_connections()
            await become(lambda: not desk.pool.connected, "the loss")
            new = exchange.list_options(3)
            await become(lambda: desk.pool.connected, "another connection")
            await asyncio.sleep(1)
            assert not any(desk.flows([name])() for name in new)
        await become(desk.flows(new), "the new ones to flow")


@pytest.mark.fault(13)
async def test_the_hourly_list_shows_what_was_never_announced(
    exchange: Exchange, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An announcement that the exchange did not send costs an hour at most."""
    monkeypatch.setattr(watchlist, "RANK_EVERY_S", 1.0)
    grants = exchange.feed.grants
    monkeypatch.setattr(exchange.feed, "grants", lambda c: grants(c) and not c.startswith("instrument."))
    desk = Desk(exchange, tmp_path)
    async with watching(exchange, desk, tmp_path):
        new = exchange.list_options(3)
        await become(desk.flows(new), "the new ones to flow")


@pytest.mark.fault(12)
async def test_a_start_on_the_remembered_list_asks_until_it_has_a_fresh_one(
    exchange: Exchange, tmp_path: Path
) -> None:
    """What was listed since, while no recorder ran, is recorded once the list can be had."""
    async with watching(exchange, Desk(exchange, tmp_path), tmp_path):
        remembered = names(exchange)
    new = exchange.list_options(3)
    desk = Desk(exchange, tmp_path)
    async with refusing(exchange, "settlement") as trouble, starting(desk, tmp_path):
        await become(desk.flows(remembered), "the remembered ones to flow")
        await asyncio.sleep(1)
        trouble.cancel()
        await become(desk.flows(new), "the new ones to flow")
