"""What makers do to a book: quotes about the mark, orders behind them, and sides left empty. Pure.

Each function says which levels it wants, by side and price in ticks, an amount of 0 being a delete.
"""

import random

from recorder.simulator.book import ASK, BID, TICKS_PER_COIN, allowed, floor_ticks, step_at
from recorder.simulator.option import Option

_MOST_LEVELS = 10
_TOP_SHARE = 0.55  # of the events, how many move the top
_LEAVING_SHARE = 0.004
_AMOUNTS = (1, 2, 5, 10, 25, 75, 100, 250, 1000, 80_600)

Wanted = dict[int, dict[int, float]]


def move(option: Option, rng: random.Random) -> Wanted:
    """Move the top of a book, or something behind it."""
    side = rng.choice((BID, ASK))
    levels, best = option.book.sides[side], option.book.best(side)
    if best is None or rng.random() < _TOP_SHARE:
        return quote(option, side, rng)
    if rng.random() < _LEAVING_SHARE:
        return {side: dict.fromkeys(levels, 0.0)}
    away = rng.randint(1, 8) * step_at(best[0])
    ticks = allowed(best[0] - away if side == BID else best[0] + away)
    if len(levels) >= _MOST_LEVELS:
        return {side: {option.book.sorted(side)[-1][0]: 0.0}}
    if ticks <= 0:
        return {}
    gone = ticks in levels and rng.random() < 0.5
    return {side: {ticks: 0.0 if gone else _amount(rng)}}


def quote(option: Option, side: int, rng: random.Random) -> Wanted:
    """Set a new best price on one side of the mark, and remove what it crosses or undercuts."""
    price, sides = option.mark.price, option.book.sides
    half = price * rng.uniform(0.005, 0.04) + rng.uniform(0.5, 3) / TICKS_PER_COIN
    if side == BID:
        ticks = floor_ticks(max(0.0, price - half))
        wanted = {level: 0.0 for level in sides[BID] if level > ticks}
        crossed = {level: 0.0 for level in sides[ASK] if level <= ticks}
    else:
        ticks = floor_ticks(price + half)
        ticks += step_at(ticks)
        wanted = {level: 0.0 for level in sides[ASK] if level < ticks}
        crossed = {level: 0.0 for level in sides[BID] if level >= ticks}
    if ticks > 0:  # nobody bids for what is worth less than a tick: a book with one side
        wanted[ticks] = _amount(rng)
    return {side: wanted, 1 - side: crossed}


def first_orders(option: Option, rng: random.Random) -> None:
    """Fill an empty book."""
    for side in (BID, ASK):
        for each, wanted in quote(option, side, rng).items():
            option.book.differences(each, wanted)
    for side in (BID, ASK):
        best = option.book.best(side)
        for _ in range(rng.randrange(6) if best else 0):
            ticks = allowed(best[0] + rng.randint(1, 12) * (5 if side == ASK else -5)) if best else 0
            if ticks > 0:
                option.book.sides[side][ticks] = _amount(rng)


def _amount(rng: random.Random) -> float:
    return float(rng.choice((*_AMOUNTS, rng.randint(1, 4999))))
