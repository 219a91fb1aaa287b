"""Which instruments to record: the top N by open interest, fetched from the exchange and remembered."""

import asyncio
import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from recorder.deribit.messages import (
    BookSummary,
    InstrumentData,
    decode_instruments,
    decode_summaries,
)
from recorder.deribit.session import RpcError, Session
from recorder.runtime import disk
from recorder.runtime.logging import Logger

MAX_AGE_S = 3600.0


@dataclass(frozen=True)
class Listing:
    """The instruments of one kind and currency, as the exchange listed them."""

    instruments: tuple[InstrumentData, ...]
    open_interest: dict[str, float]
    exchange_us: int | None  # when the exchange sent the list; None if it did not say


def choose(listing: Listing, top_n: int) -> tuple[str, ...]:
    """Return the `top_n` instruments (0: all) by open interest.

    A median of 124 of the top 830 ETH options have none: ties are broken by expiry, strike and type, so that
    the same listing always gives the same choice.
    """

    def rank(data: InstrumentData) -> tuple[float, int, float, str, str]:
        return (
            -listing.open_interest.get(data.instrument_name, 0.0),
            data.expiration_timestamp or 0,
            data.strike or 0.0,
            data.option_type or "",
            data.instrument_name,
        )

    ranked = sorted(listing.instruments, key=rank)
    return tuple(data.instrument_name for data in (ranked[:top_n] if top_n else ranked))


class Universe:
    """The listing, at most an hour old where the exchange allows; a stale one is better than none."""

    def __init__(self, *, currency: str, kind: str, cache: Path, source: str, log: Logger) -> None:
        """Remember listings in the file `cache`; `source` (the exchange's URL) says whose they are."""
        self._currency, self._kind = currency, kind
        self._cache = cache
        self._key = f"{source} {currency} {kind}"
        self._log = log
        self._listing: Listing | None = None
        self._fetched_s = 0.0

    async def listing(self, session: Session) -> Listing:
        """Return the listing, fetched anew if it is older than an hour.

        Raises:
            RpcError, TimeoutError, msgspec.DecodeError: it could not be had, and none is remembered.
        """
        if self._listing is not None and time.monotonic() - self._fetched_s < MAX_AGE_S:
            return self._listing
        try:
            self._listing = await self._fetch(session)
            self._fetched_s = time.monotonic()
        except (RpcError, TimeoutError, msgspec.DecodeError) as exc:
            stale = self._listing or self._remembered()
            self._log.warning("universe.stale", error=str(exc) or type(exc).__name__, remembered=stale is not None)
            if stale is None:
                raise
            self._listing = stale
        else:
            await asyncio.to_thread(self._remember, self._listing)
        return self._listing

    async def _fetch(self, session: Session) -> Listing:
        asked = {"currency": self._currency, "kind": self._kind}
        instruments = await session.call("public/get_instruments", **asked, expired=False)
        summaries = await session.call("public/get_book_summary_by_currency", **asked)
        return Listing(
            instruments=_of_kind(decode_instruments(instruments.result), self._kind),
            open_interest=_open_interest(decode_summaries(summaries.result)),
            exchange_us=instruments.us_out,
        )

    def _remember(self, listing: Listing) -> None:
        content = {
            "key": self._key,
            "fetched_unix_s": time.time(),
            "instruments": listing.instruments,
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
        return Listing(tuple(instruments), open_interest, None)


def _of_kind(instruments: Sequence[InstrumentData], kind: str) -> tuple[InstrumentData, ...]:
    return tuple(data for data in instruments if data.kind in ("", kind))


def _open_interest(summaries: Iterable[BookSummary]) -> dict[str, float]:
    return {row.instrument_name: row.open_interest or 0.0 for row in summaries}
