"""The options that are listed: names, expiries and strikes as Deribit chooses them. Pure.

Deribit: inverse options are `ETH-DMMMYY-STRIKE-C|P` with the day not zero padded and expire at 08:00 UTC;
11 to 13 expiries (days, weeks, months, quarters) live at a time.
"""

import math
import random
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

_MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
_NAME = re.compile(r"^([A-Z0-9_]+)-(\d{1,2})([A-Z]{3})(\d{2})-(\d+(?:d\d+)?)-([CP])$")
_NICE_STEPS = (1, 2, 5, 10, 25, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000)
_EXPIRY_HOUR = 8
_DAY_MS = 86_400_000
MS_PER_YEAR = 365 * _DAY_MS


@dataclass(frozen=True, slots=True)
class Contract:
    """What never changes about one option."""

    name: str
    currency: str
    instrument_id: int
    expiration_ms: int
    creation_ms: int
    strike: float
    call: bool
    period: str  # day, week, month

    @property
    def expiry_name(self) -> str:
        """The name of the future, or the synthetic one, that this option is priced by."""
        return self.name.rsplit("-", 2)[0]


def make_chain(
    *, currency: str, count: int, now_ms: int, index: float, rng: random.Random, first_id: int
) -> list[Contract]:
    """List `count` options around the money over about a dozen expiries."""
    dates = expiries(now_ms)
    dates = dates[: max(1, min(len(dates), count // 4))]
    pairs = -(-count // 2)
    chain: list[Contract] = []
    for number, (date, period) in enumerate(dates):
        share = pairs // len(dates) + (number < pairs % len(dates))
        expiration_ms = int(date.timestamp() * 1000)
        for strike in _strikes(share, index, (expiration_ms - now_ms) / MS_PER_YEAR):
            for kind in "CP":
                chain.append(
                    Contract(
                        name=f"{currency}-{date.day}{_MONTHS[date.month - 1]}{date:%y}-{strike}-{kind}",
                        currency=currency,
                        instrument_id=first_id + len(chain),
                        expiration_ms=expiration_ms,
                        creation_ms=now_ms - rng.randrange(_DAY_MS // 10, 60 * _DAY_MS),
                        strike=float(strike),
                        call=kind == "C",
                        period=period,
                    )
                )
    return chain[:count]


def expiries(now_ms: int) -> list[tuple[datetime, str]]:
    """Return the expiries after `now_ms` with their settlement period, soonest first."""
    now = datetime.fromtimestamp(now_ms / 1000, UTC)
    first = now.replace(hour=_EXPIRY_HOUR, minute=0, second=0, microsecond=0)
    first += timedelta(days=first <= now)
    fridays = [day for day in (first + timedelta(days=n) for n in range(400)) if day.weekday() == 4]
    monthly = [day for day in fridays if (day + timedelta(days=7)).month != day.month]
    quarterly = [day for day in monthly if day.month % 3 == 0]
    periods: dict[datetime, str] = {}
    for period, days in (
        ("month", quarterly[:4]),
        ("month", monthly[:3]),
        ("week", fridays[:4]),
        ("day", [first + timedelta(days=n) for n in range(3)]),
    ):
        for day in days:
            periods.setdefault(day, period)
    return sorted(periods.items())


def parse_name(name: str) -> Contract | None:
    """Read an option's name; None if it is none. A recorder asks the exchange instead: here we are it."""
    found = _NAME.match(name)
    if found is None or found[3] not in _MONTHS:
        return None
    try:
        date = datetime(2000 + int(found[4]), _MONTHS.index(found[3]) + 1, int(found[2]), 8, tzinfo=UTC)
    except ValueError:
        return None
    return Contract(
        name=name,
        currency=found[1].rpartition("_")[2],  # ETH_USDC options are listed under USDC
        instrument_id=0,
        expiration_ms=int(date.timestamp() * 1000),
        creation_ms=int(date.timestamp() * 1000) - 30 * _DAY_MS,
        strike=float(found[5].replace("d", ".")),
        call=found[6] == "C",
        period="month" if date.weekday() == 4 and (date + timedelta(days=7)).month != date.month else "week",
    )


def _strikes(count: int, index: float, years: float) -> list[int]:
    """Return `count` round strikes about the index, wider apart the later the expiry."""
    width = 5 * 0.65 * math.sqrt(max(years, 1 / 365)) * index
    step = next(step for step in (*_NICE_STEPS, math.ceil(width)) if step * max(count, 1) >= width)
    lowest = max(step, round(index / step) * step - count // 2 * step)
    return [lowest + n * step for n in range(count)]
