"""Prices that agree with each other: Black-76 for options quoted in their own coin. Pure."""

import math
from typing import NamedTuple

_ROOT_TWO = math.sqrt(2)
_ROOT_TWO_PI = math.sqrt(2 * math.pi)
_DAYS_PER_YEAR = 365.0
# Just before expiry the formula divides by nothing; a minute is near enough to it.
_LEAST_YEARS = 1 / (365 * 24 * 60)


class Mark(NamedTuple):
    """What an option is worth and how that moves, in Deribit's units."""

    forward: float  # USD
    iv: float  # percent
    price: float  # in the coin
    delta: float
    gamma: float
    vega: float  # USD for one percent of volatility
    theta: float  # USD a day
    rho: float  # USD for one percent of interest


def mark(*, forward: float, strike: float, years: float, iv: float, call: bool) -> Mark:
    """Price an option with Black-76, interest zero, as Deribit does."""
    years = max(years, _LEAST_YEARS)
    spread = iv / 100 * math.sqrt(years)
    d1 = math.log(forward / strike) / spread + spread / 2
    d2 = d1 - spread
    density = math.exp(-d1 * d1 / 2) / _ROOT_TWO_PI
    sign = 1 if call else -1
    in_money, exercised = _normal(sign * d1), _normal(sign * d2)
    usd = max(0.0, sign * (forward * in_money - strike * exercised))
    return Mark(
        forward=forward,
        iv=iv,
        price=usd / forward,
        delta=sign * in_money,
        gamma=density / (forward * spread),
        vega=forward * density * math.sqrt(years) / 100,
        theta=-forward * density * iv / 100 / (2 * math.sqrt(years)) / _DAYS_PER_YEAR,
        rho=sign * strike * years * exercised / 100,
    )


def smile(*, forward: float, strike: float, years: float, at_the_money: float) -> float:
    """Return the volatility in percent at a strike: skewed to the puts, dearer in both wings."""
    root = math.sqrt(max(years, 1 / _DAYS_PER_YEAR))
    distance = math.log(strike / forward) / root
    term = at_the_money * (1 - 0.06 * math.log(root + 0.2))
    return min(max(term * (1 - 0.05 * distance + 0.06 * distance * distance), 20.0), 250.0)


def _normal(x: float) -> float:
    return (1 + math.erf(x / _ROOT_TWO)) / 2
