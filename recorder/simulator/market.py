"""A market from a seed: the same seed and times give the same books, tickers and trades. Pure.

Time enters as a parameter. One `step` says what happened since the step before it; how often that is sent
to whom is the business of `recorder.simulator.live`.
"""

import math
import random
from dataclasses import dataclass, field, replace

from recorder.simulator import maker
from recorder.simulator.book import ASK, BID, Book, Change, Level, floor_ticks
from recorder.simulator.chain import MS_PER_YEAR, Contract, make_chain
from recorder.simulator.option import Option
from recorder.simulator.pricing import Mark, mark, smile
from recorder.simulator.printer import Printer
from recorder.simulator.trades import Hosts, Trade

US_PER_S = 1_000_000
_START_PRICES = {"BTC": 64_000.0, "ETH": 2_700.0}
_OTHER_START_PRICE = 150.0
# Deribit: ids are one counter shared by many books, about 1.4e11 to 1.9e11, jumps of hundreds to thousands.
_FIRST_CHANGE_ID, _LONGEST_JUMP = 140_000_000_000, 3_000
_UNTRADED_SHARE = 0.18  # of the live ETH options had no open interest (median of 931 chains, 2026)
_UNMADE_SHARE, _UNMADE_WEIGHT = 0.03, 0.001  # nobody makes a market in some: their books stay empty
_TRADES_PER_S = 0.5  # at least, so that a short run has some
_RENEWAL_S = 1.0  # a ticker renews so often even if its book is still
_RENEWAL_BUDGET = 0.8  # of a low rate that tickers may take
_INDEX_S, _PLATFORM_S = 1.0, 0.38  # measured: 60 index and 151 platform_state frames in 57 s
_LONGEST_STEP_S = 1.0  # what a sleeping machine missed did not happen
_EVENTS_PER_OPTION = 4  # a step gives up here: more events in one moment would add no message


@dataclass(slots=True)
class Step:
    """What happened in one step."""

    changes: list[tuple[Option, Change]] = field(default_factory=list)
    tickers: dict[Option, None] = field(default_factory=dict)
    trades: list[Trade] = field(default_factory=list)
    index_due: bool = False
    platform_due: bool = False
    states: list[Option] = field(default_factory=list)
    created: list[Option] = field(default_factory=list)


class Market:
    """All options of one currency, their history of trades, and the index they follow."""

    def __init__(
        self,
        *,
        currency: str,
        count: int,
        seed: int,
        now_us: int,
        messages_per_s: float,
        window_us: float,
        main_keeps_s: float = 0.0,
    ) -> None:
        self.currency = currency
        self.rng = random.Random(seed)  # noqa: S311 - a market from a seed is the point
        self.index = _START_PRICES.get(currency, _OTHER_START_PRICE)
        self.at_the_money_iv = 62.0
        self.now_us = now_us
        self.hosts = Hosts(main_keeps_s=main_keeps_s)
        self.locked = False  # no book moves and nothing trades
        self.names: set[str] = set()  # of all that ever were listed
        self._rate, self._window_us = messages_per_s, window_us
        self._owed = self._renewals_due = self._trades_due = 0.0
        self._index_us = self._platform_us = self._trade_us = now_us
        self._change_id = _FIRST_CHANGE_ID + self.rng.randrange(10**9)
        self._printer = Printer(currency=currency, hosts=self.hosts, rng=self.rng)
        self._next_id = 400_000 + self.rng.randrange(10**4)
        self.options: dict[str, Option] = {}
        self._order: list[Option] = []  # the same, shuffled: whose ticker renews next
        self._turn = 0
        chain = make_chain(
            currency=currency,
            count=count,
            now_ms=now_us // 1000,
            index=self.index,
            rng=self.rng,
            first_id=self._next_id,
        )
        for contract in chain:
            self._list(contract)
        self._printer.print_history(self.options.values(), now_ms=now_us // 1000, index=self.index)
        self._reweigh()

    def step(self, now_us: int, step: Step) -> None:
        """Let the market live until `now_us` and add what happened to `step`."""
        now_us = max(now_us, self.now_us)  # an exchange's clock does not go back
        elapsed_s = min((now_us - self.now_us) / US_PER_S, _LONGEST_STEP_S)
        self.now_us = now_us
        self._drift(elapsed_s)
        if now_us // 1000 >= self._next_expiry_ms:
            self.expire(step, [o for o in self._order if o.contract.expiration_ms <= now_us // 1000])
        if not self.options:
            return
        # What could not be sent in full windows is not owed for ever.
        self._owed = min(self._owed + self._rate * elapsed_s, 2 + 3 * self._rate * elapsed_s)
        self._notices(step)
        self._renew(step, elapsed_s)
        if self.locked:
            return
        self._trade(step, elapsed_s)
        budget = _EVENTS_PER_OPTION * len(self._order)
        while self._owed > 0 and budget:
            budget -= 1
            option = self.any_option(self.rng)
            self._change(step, option, maker.move(option, self.rng))

    def print_trade(self, step: Step, option: Option, *, amount: float) -> Trade:
        """Let an option trade outside of its book; whether anybody is sent that is not decided here."""
        trade = self._print(option, max(1, floor_ticks(option.mark.price)), amount, "buy")
        self._ticker(step, option)
        return trade

    def any_option(self, rng: random.Random) -> Option:
        """Return an option, the busier the likelier."""
        return rng.choices(self._order, cum_weights=self._weights)[0]

    def buy_or_sell(self, step: Step, option: Option, *, entries: int = 1) -> None:
        """Trade on one option: each entry takes from the best level; several are a sweep in one ms."""
        side = self.rng.choice((BID, ASK))
        if option.book.best(side) is None:
            side = 1 - side
        wanted: dict[int, float] = {}
        levels = option.book.sorted(side)
        for entry in range(entries):
            if not levels:
                break
            ticks, there = levels[0]
            amount = float(self.rng.randint(1, max(1, int(there))))
            if entry + 1 < entries and len(levels) > 1:
                amount = there
                levels.pop(0)
            wanted[ticks] = max(0.0, there - amount)
            step.trades.append(self._print(option, ticks, amount, "buy" if side == ASK else "sell"))
        self._change(step, option, {side: wanted})

    def list_more(self, step: Step, count: int) -> list[str]:
        """List `count` new options at odd strikes beside the listed ones, and return their names."""
        contracts = [option.contract for option in self._order]
        names: list[str] = []
        while len(names) < count:
            beside = self.rng.choice(contracts)
            strike, kind = int(beside.strike) + self.rng.randint(1, 999), self.rng.choice("CP")
            contract = replace(
                beside,
                name=f"{beside.expiry_name}-{strike}-{kind}",
                instrument_id=self._next_id,
                creation_ms=self.now_us // 1000,
                strike=float(strike),
                call=kind == "C",
            )
            if contract.name not in self.names:
                step.created.append(self._list(contract, fresh=True))
                names.append(contract.name)
        self._reweigh()
        return names

    def expire(self, step: Step, options: list[Option]) -> None:
        """Let options be delivered: they say so once and are listed no more."""
        for option in options:
            option.state = "delivered"
            option.timestamp_ms = self.now_us // 1000
            step.states.append(option)
            del self.options[option.contract.name]
        self.hosts.deliver({option.contract.name for option in options})
        self._reweigh()

    def rerank(self) -> None:
        """Deal the open interest out anew."""
        interests = [option.open_interest for option in self._order]
        self.rng.shuffle(interests)
        for option, interest in zip(self._order, interests, strict=True):
            option.open_interest = interest

    # What happens by itself

    def _drift(self, elapsed_s: float) -> None:
        year_share = math.sqrt(max(elapsed_s, 0.0) / (365 * 86_400))
        self.index *= math.exp(self.rng.gauss(0, 0.62) * year_share)
        self.at_the_money_iv = min(max(self.at_the_money_iv + self.rng.gauss(0, 90) * year_share, 35), 110)

    def _notices(self, step: Step) -> None:
        if self.now_us - self._index_us >= _INDEX_S * US_PER_S:
            self._index_us = self.now_us
            step.index_due = True
            self._owed -= 1
        if self.now_us - self._platform_us >= _PLATFORM_S * US_PER_S:
            self._platform_us = self.now_us
            step.platform_due = True
            self._owed -= 1

    def _renew(self, step: Step, elapsed_s: float) -> None:
        interval_s = max(_RENEWAL_S, len(self._order) / (_RENEWAL_BUDGET * self._rate))
        self._renewals_due += elapsed_s * len(self._order) / interval_s
        while self._renewals_due >= 1:
            self._renewals_due -= 1
            self._turn = (self._turn + 1) % len(self._order)
            option = self._order[self._turn]
            option.mark = self._price(option.contract)
            option.index = self.index
            self._ticker(step, option)

    def _trade(self, step: Step, elapsed_s: float) -> None:
        self._trades_due += elapsed_s * max(_TRADES_PER_S, self._rate / 200)
        while self._trades_due >= 1:
            self._trades_due -= 1
            option = self.any_option(self.rng)
            entries = 1 if self.rng.random() < 0.75 else self.rng.randint(2, 5)
            self.buy_or_sell(step, option, entries=entries)
            self._owed -= self._new_message_share(self._trade_us)
            self._trade_us = self.now_us

    # What an event does

    def _change(self, step: Step, option: Option, wanted: dict[int, dict[int, float]]) -> None:
        book = option.book
        before = book.best(BID), book.best(ASK)
        bids = book.differences(BID, wanted.get(BID, {}))
        asks = book.differences(ASK, wanted.get(ASK, {}))
        if not bids and not asks:
            return
        self._note(step, option, bids, asks)
        if before != (book.best(BID), book.best(ASK)):
            self._ticker(step, option)

    def _note(self, step: Step, option: Option, bids: list[Level], asks: list[Level]) -> None:
        self._change_id += self.rng.randrange(1, _LONGEST_JUMP)
        option.book.change_id, option.book.timestamp_ms = self._change_id, self.now_us // 1000
        step.changes.append((option, Change(self._change_id, option.book.timestamp_ms, bids, asks)))
        self._owed -= self._new_message_share(option.book_us)
        option.book_us = self.now_us

    def _ticker(self, step: Step, option: Option) -> None:
        option.version += 1
        option.timestamp_ms = self.now_us // 1000
        step.tickers[option] = None
        self._owed -= self._new_message_share(option.ticker_us)
        option.ticker_us = self.now_us

    def _new_message_share(self, before_us: int) -> float:
        """Return how likely a window's end lies between two events, so that they are two messages.

        Connections cut their windows at any phase; over all of them this is exact, and the rate is reached.
        """
        return min(1.0, (self.now_us - before_us) / self._window_us)

    def _print(self, option: Option, ticks: int, amount: float, direction: str) -> Trade:
        return self._printer.print(
            option,
            ticks=ticks,
            amount=amount,
            direction=direction,
            timestamp_ms=self.now_us // 1000,
            index=self.index,
        )

    # How an option comes to be

    def _list(self, contract: Contract, *, fresh: bool = False) -> Option:
        rng, now_ms = self.rng, self.now_us // 1000
        self._next_id += 1
        self._change_id += rng.randrange(1, _LONGEST_JUMP)
        price = self._price(contract)
        traded = not fresh and rng.random() > _UNTRADED_SHARE
        made = rng.random() > _UNMADE_SHARE
        option = Option(
            contract=contract,
            # The last change of a quiet book is seconds to minutes old. A new listing has none: its first
            # change was seen on the wire with prev_change_id 0.
            book=Book(0, now_ms) if fresh else Book(self._change_id, now_ms - rng.randrange(200_000)),
            mark=price,
            index=self.index,
            weight=0.3 + math.exp(-8 * abs(abs(price.delta) - 0.5)) if made else _UNMADE_WEIGHT,
            open_interest=float(1 + int(math.exp(rng.gauss(4.6, 1.9)))) if traded else 0.0,
            trade_seq=0,
            settlement_price=None if fresh or rng.random() < 0.05 else round(price.price, 6),
            timestamp_ms=now_ms,
        )
        self.options[contract.name] = option
        self.names.add(contract.name)
        if made and not fresh:
            maker.first_orders(option, rng)
        return option

    def _price(self, contract: Contract) -> Mark:
        years = (contract.expiration_ms - self.now_us // 1000) / MS_PER_YEAR
        forward = self.index * math.exp(0.05 * max(years, 0.0))
        iv = smile(forward=forward, strike=contract.strike, years=years, at_the_money=self.at_the_money_iv)
        return mark(forward=forward, strike=contract.strike, years=years, iv=iv, call=contract.call)

    def _reweigh(self) -> None:
        self._order = list(self.options.values())
        self.rng.shuffle(self._order)
        self._turn = 0
        self._weights = []
        total = 0.0
        for option in self._order:
            total += option.weight
            self._weights.append(total)
        self._next_expiry_ms = min((o.contract.expiration_ms for o in self._order), default=2**62)
