"""Keeps what is recorded in line with what the exchange lists: hourly ranks, new listings, expiries."""

import asyncio
from collections.abc import Callable

from recorder.deribit import channels
from recorder.deribit.messages import UNREADABLE, InstrumentData
from recorder.deribit.pool import Pool
from recorder.deribit.session import RpcError
from recorder.deribit.universe import Listing, Universe, choose
from recorder.runtime.backoff import Backoff
from recorder.runtime.logging import Logger

RANK_EVERY_S = 3600.0
# Announcements come in storms (hundreds at 08:00 UTC): what comes within this is acted on together.
GATHER_S = 0.5
# After a lost lifecycle channel, or in vain, the list is fetched again, but not more often than this: it costs a lot
# of credits.
LIST_AGAIN_AFTER_S = 60.0


class Watchlist:
    """Chooses what the pool carries, and chooses again when something changed."""

    def __init__(
        self,
        pool: Pool,
        universe: Universe,
        *,
        currency: str,
        kind: str,
        top_n: int,
        chosen: Callable[[Listing, tuple[str, ...]], None],
        log: Logger,
    ) -> None:
        """`chosen` is told the listing and the choice before the pool acts on it."""
        self._pool = pool
        self._universe = universe
        self._top_n = top_n
        self._on_chosen = chosen
        self._log = log
        self._chosen: tuple[str, ...] = ()
        self._wide = (
            channels.trades(kind, currency),
            channels.instrument_state(kind, currency),
            channels.instrument_creation(kind, currency),
            channels.PLATFORM_STATE,
            channels.PUBLIC_METHODS_STATE,
        )
        self._changed = asyncio.Event()
        self._list_again = False
        self._backoff = Backoff()

    def changed(self, data: InstrumentData) -> None:
        """An instrument was announced, new or in a new state."""
        self._universe.add(data)
        self._changed.set()

    def missed_some(self) -> None:
        """Announcements may have been missed: the list is to be fetched again."""
        self._list_again = True
        self._changed.set()

    async def run(self) -> None:
        """Choose, and follow, until cancelled."""
        loop = asyncio.get_running_loop()
        # A remembered list is better than none.
        while not (await self._list() or self._universe.listing.instruments):  # noqa: ASYNC110 - no event: an exchange
            await asyncio.sleep(self._backoff.next_delay_s())
        self._choose()
        listed_s = loop.time()
        # Announcements are subscribed to only now that it is known what to record: what was listed between the list
        # and the subscription is in neither, so the list is fetched once more.
        self.missed_some()
        while True:
            try:
                async with asyncio.timeout(max(0.0, listed_s + RANK_EVERY_S - loop.time())):
                    await self._changed.wait()
            except TimeoutError:
                pass  # the ranks are due, and the list with them: announcements may be missed unnoticed
            await asyncio.sleep(GATHER_S)
            self._changed.clear()
            age_s = loop.time() - listed_s
            if age_s >= RANK_EVERY_S or (self._list_again and age_s >= LIST_AGAIN_AFTER_S):
                self._list_again = False  # what is missed from here on may be in the reply or not
                if not await self._list():
                    self._list_again = True
                listed_s = loop.time()
            if self._list_again:
                loop.call_later(listed_s + LIST_AGAIN_AFTER_S - loop.time(), self._changed.set)
            self._choose()

    def _choose(self) -> None:
        before = set(self._chosen)
        self._chosen = choose(self._universe.listing, self._top_n, self._chosen)
        after = set(self._chosen)
        self._on_chosen(self._universe.listing, self._chosen)
        if before != after:
            self._log.info("chosen", instruments=len(after), new=len(after - before), gone=len(before - after))
            self._pool.want(self._chosen, self._wide)

    async def _list(self) -> bool:
        """Fetch the list; False if it is not fresh."""
        try:
            return await self._universe.fetch(self._pool.call)
        except (RpcError, TimeoutError, *UNREADABLE) as exc:
            self._log.warning("universe.refused", error=str(exc) or type(exc).__name__)
            return False
