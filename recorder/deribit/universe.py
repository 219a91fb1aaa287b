"""Which instruments there are, and which of them to record: the top N by open interest, followed as they change."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from recorder.deribit.messages import UNREADABLE, BookSummary, InstrumentData, decode_instruments, decode_summaries
from recorder.deribit.session import Reply, RpcError
from recorder.runtime import disk
from recorder.runtime.logging import Logger
from recorder.runtime.redact import redact

# What the exchange says of an instrument that is over. Everything else, also what is not known yet, is live: an
# option has expired when the exchange says so, never by the local clock.
ENDED_STATES = frozenset({"delivered", "archivized", "closed", "terminated"})
# An instrument that is chosen stays so until it ranks this much below the edge, so that the set does not flap.
HYSTERESIS = 0.2

Call = Callable[..., Awaitable[Reply]]


@dataclass(frozen=True)
class Listing:
    """The instruments of one kind and currency, as the exchange listed them."""

    instruments: dict[str, InstrumentData] = field(default_factory=dict)
    open_interest: dict[str, float] = field(default_factory=dict)
    exchange_us: int | None = None  # when the exchange sent the list; None if it did not say

    @property
    def live(self) -> list[InstrumentData]:
        """Those that are not over."""
        return [data for data in self.instruments.values() if data.state not in ENDED_STATES]


def choose(listing: Listing, top_n: int, chosen: Iterable[str] = ()) -> tuple[str, ...]:
    """Return the `top_n` live instruments (0: all) by open interest, keeping those chosen before near the edge.

    A median of 124 of the top 830 ETH options have none: ties are broken by expiry, strike and type, so that the
    same listing always gives the same choice.
    """

    def rank(data: InstrumentData) -> tuple[float, int, float, str, str]:
        return (
            -listing.open_interest.get(data.instrument_name, 0.0),
            data.expiration_timestamp or 0,
            data.strike or 0.0,
            data.option_type or "",
            data.instrument_name,
        )

    ranked = [data.instrument_name for data in sorted(listing.live, key=rank)]
    if not top_n:
        return tuple(ranked)
    before = set(chosen)
    near = set(ranked[: top_n + round(top_n * HYSTERESIS)])
    kept = [name for name in ranked if name in before & near][:top_n]
    filled = set(kept) | set([name for name in ranked if name not in before & near][: top_n - len(kept)])
    return tuple(name for name in ranked if name in filled)


class Universe:
    """The listing as it is now: fetched, kept up to date by what the exchange announces, and remembered."""

    def __init__(self, *, currency: str, kind: str, cache: Path, source: str, log: Logger) -> None:
        """Remember listings in the file `cache`; `source` (the exchange's URL) says whose they are."""
        self.listing = Listing()
        self._currency, self._kind = currency, kind
        self._cache = cache
        self._key = f"{redact(source)} {currency} {kind}"  # it goes into a file that others may read
        self._log = log
        self._announced: dict[str, InstrumentData] = {}  # since the list was asked for the last time

    async def fetch(self, call: Call) -> bool:
        """Fetch the list and its open interest; where that is refused the remembered list serves.

        Returns:
            Whether the list is fresh.

        Raises:
            RpcError, TimeoutError, UNREADABLE: it could not be had, and none is remembered.
        """
        asked = {"currency": self._currency, "kind": self._kind}
        self._announced.clear()
        try:
            instruments = await call("public/get_instruments", **asked, expired=False)
            summaries = await call("public/get_book_summary_by_currency", **asked)
            self.listing = Listing(
                # What was announced while the replies were on their way may not be in them.
                _of_kind(decode_instruments(instruments.result), self._kind) | self._announced,
                _open_interest(decode_summaries(summaries.result)),
                instruments.us_out,
            )
        except (RpcError, TimeoutError, *UNREADABLE) as exc:
            stale = self.listing if self.listing.instruments else self._remembered()
            self._log.warning("universe.stale", error=str(exc) or type(exc).__name__, remembered=stale is not None)
            if stale is None:
                raise
            self.listing = stale
            return False
        await asyncio.to_thread(self._remember, self.listing)
        return True

    def add(self, data: InstrumentData) -> None:
        """Take in a new listing, or an instrument in a new state."""
        if data.kind in ("", self._kind):
            self.listing.instruments[data.instrument_name] = data
            self._announced[data.instrument_name] = data

    def _remember(self, listing: Listing) -> None:
        content = {
            "key": self._key,
            "fetched_unix_s": time.time(),
            "instruments": list(listing.instruments.values()),
            "open_interest": listing.open_interest,
        }
        try:
            disk.make_dir(self._cache.parent)
            disk.replace_file(self._cache, msgspec.json.encode(content))
        except OSError as exc:
            self._log.warning("universe.not_remembered", error=str(exc))

    def _remembered(self) -> Listing | None:
        try:
            content = json.loads(self._cache.read_bytes())
            if content["key"] != self._key:
                return None
            instruments = msgspec.convert(content["instruments"], list[InstrumentData])
            open_interest = {str(name): float(value) for name, value in content["open_interest"].items()}
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return Listing(_of_kind(instruments, self._kind), open_interest)


def _of_kind(instruments: Sequence[InstrumentData], kind: str) -> dict[str, InstrumentData]:
    return {data.instrument_name: data for data in instruments if data.kind in ("", kind)}


def _open_interest(summaries: Iterable[BookSummary]) -> dict[str, float]:
    return {row.instrument_name: row.open_interest or 0.0 for row in summaries}
