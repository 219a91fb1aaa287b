"""Prints trades: their numbers, and what each does to its option. Pure."""

import random
from collections.abc import Iterable

from recorder.simulator.book import TICKS_PER_COIN, floor_ticks
from recorder.simulator.option import Option
from recorder.simulator.trades import Hosts, Trade

_FIRST_TRADE_NUMBER = 284_830_839
_DAY_MS = 86_400_000


class Printer:
    """Prints the trades of one currency into what both hosts remember."""

    def __init__(self, *, currency: str, hosts: Hosts, rng: random.Random) -> None:
        self._currency, self._hosts, self._rng = currency, hosts, rng
        self._number = _FIRST_TRADE_NUMBER + rng.randrange(10**6)

    def print(
        self, option: Option, *, ticks: int, amount: float, direction: str, timestamp_ms: int, index: float
    ) -> Trade:
        """Print one trade."""
        price = ticks / TICKS_PER_COIN
        last = option.last_price if option.last_price is not None else price
        option.trade_seq += 1
        self._number += 1
        trade = Trade(
            instrument=option.contract.name,
            currency=self._currency,
            number=self._number,
            seq=option.trade_seq,
            timestamp_ms=timestamp_ms,
            direction=direction,
            tick_direction=0 if price > last else 2 if price < last else self._rng.choice((1, 3)),
            price=price,
            amount=amount,
            iv=round(option.mark.iv, 2),
            mark_price=round(option.mark.price, 4),
            index_price=round(index, 2),
            special=self._rng.randrange(60),
        )
        option.last_price = price
        option.first_price = price if option.first_price is None else option.first_price
        option.high = max(price, option.high or price)
        option.low = min(price, option.low or price)
        option.volume += amount
        option.volume_usd = round(option.volume_usd + price * amount * index, 2)
        option.open_interest += amount if self._rng.random() < 0.6 else -min(amount, option.open_interest)
        self._hosts.add(trade)
        return trade

    def print_history(self, options: Iterable[Option], *, now_ms: int, index: float) -> None:
        """Print trades of the last day, so that there is a history before anybody listens."""
        rng = self._rng
        prints: list[tuple[int, Option]] = []
        for option in options:
            if option.open_interest > 0:
                option.trade_seq = rng.randrange(3_000)
                if rng.random() < 0.8:
                    option.last_price = max(1, floor_ticks(option.mark.price)) / TICKS_PER_COIN
                if rng.random() < 0.45:
                    prints += [(rng.randrange(_DAY_MS), option) for _ in range(rng.randint(1, 4))]
        for age_ms, option in sorted(prints, key=lambda past: (-past[0], past[1].contract.name)):
            self.print(
                option,
                ticks=max(1, floor_ticks(option.mark.price)),
                amount=float(rng.randint(1, 40)),
                direction=rng.choice(("buy", "sell")),
                timestamp_ms=now_ms - age_ms,
                index=index,
            )
