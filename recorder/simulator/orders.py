"""What is made to happen in a market between two of its steps, each of it written into the journal.

A trade that is withheld is sent to nobody and is in the history of both hosts. A number that is void never was a
trade: it is skipped, and the exchange shows later ones of that option.
"""

import random
from collections.abc import Iterable, Sequence
from enum import Enum

from recorder.simulator import wire
from recorder.simulator.faults import Fault
from recorder.simulator.journal import Journal
from recorder.simulator.market import Market, Step
from recorder.simulator.option import Option
from recorder.simulator.trades import Trade

_MIXED_RUN = (3, 8)  # numbers, the shortest and the longest
_SIZES = 9  # so many amounts in turn


class Fate(Enum):
    """What becomes of one trade_seq."""

    LIVE = "live"
    WITHHELD = "withheld"
    VOID = "void"


class Orders:
    """Takes orders between two steps of a market, and hands them over to the next."""

    def __init__(self, market: Market, journal: Journal, *, seed: int) -> None:
        self._market, self._journal = market, journal
        self._rng = random.Random(seed)  # noqa: S311 - of its own, so that orders do not change what follows
        self._step = Step()
        self._trades_to_skip = 0

    def take(self) -> Step:
        """Return what was ordered since the last time."""
        step, self._step = self._step, Step()
        return step

    def keep_back(self, step: Step) -> None:
        """Withhold from a step what `skip_trade` asked for."""
        while self._trades_to_skip and step.trades:
            self._trades_to_skip -= 1
            self._withhold(step.trades.pop(0))

    # Trades

    def trade(self, name: str, fates: Sequence[Fate]) -> None:
        """Let an option go through consecutive numbers, all within one millisecond."""
        option = self._market.options[name]
        for place, fate in enumerate(fates):
            if fate is Fate.VOID:
                option.trade_seq += 1
                self._journal.event("fault", kind="trade_void", instrument=name, trade_seq=option.trade_seq)
                continue
            trade = self._market.print_trade(self._step, option, amount=float(1 + place % _SIZES))
            if fate is Fate.WITHHELD:
                self._withhold(trade)
            else:
                self._step.trades.append(trade)

    def mix(self, name: str, fates: Sequence[Fate]) -> None:
        """Give consecutive numbers of an option each its own fate."""
        facts = {"trade_seq": self._market.options[name].trade_seq + 1, "fates": [fate.value for fate in fates]}
        self._journal.event("fault", kind="trade_mixed", instrument=name, **facts)
        self.trade(name, fates)

    def sweep(self, name: str, count: int, *, withheld: tuple[int, int] = (0, 0)) -> None:
        """Let an option trade so many times within one millisecond, and withhold those from `withheld[0]` on."""
        first, end = withheld
        seq = self._market.options[name].trade_seq + 1
        facts = {"first_withheld": seq + first, "withheld": end - first}
        self._journal.event("fault", kind="sweep", instrument=name, trade_seq=seq, count=count, **facts)
        self.trade(name, [Fate.WITHHELD if first <= place < end else Fate.LIVE for place in range(count)])

    def skip_trade(self) -> None:
        """Withhold the next trade, whichever it is."""
        self._trades_to_skip += 1

    def _withhold(self, trade: Trade) -> None:
        facts = {"instrument": trade.instrument, "trade_seq": trade.seq}
        self._journal.event("fault", wire.trade(trade).encode(), kind="trade_gap", **facts)

    # The chain

    def list_options(self, count: int) -> list[str]:
        """List new options and return their names."""
        names = self._market.list_more(self._step, count)
        self._journal.event("fault", kind="list", instruments=names)
        return names

    def expire_options(self, names: Iterable[str], *, last_trade_withheld: bool = False) -> None:
        """Let options be delivered now, if asked each right after a trade that is withheld."""
        options = [self._market.options[name] for name in names]
        if last_trade_withheld:
            for option in options:
                self.trade(option.contract.name, [Fate.WITHHELD])
        expired = [option.contract.name for option in options]
        self._journal.event(
            "fault", kind="expire_trade_gap" if last_trade_withheld else "expire", instruments=expired
        )
        self._market.expire(self._step, options)

    def forget_trade(self, name: str) -> None:
        """Withhold a trade of an option that then trades once more and is delivered; neither host has any of it."""
        self.trade(name, [Fate.WITHHELD, Fate.LIVE])
        self._journal.event("fault", kind="trade_forgotten", instrument=name)
        self._market.expire(self._step, [self._market.options[name]])
        self._market.hosts.forget({name})

    def rerank(self) -> None:
        """Deal the open interest out anew."""
        self._journal.event("fault", kind="rerank")
        self._market.rerank()

    # As a specification orders them

    def play(self, fault: Fault) -> None:
        """Play one that happens in the market, on options that it chooses; void and mixed runs end in a trade."""
        count = fault.count or 0
        match fault.kind:
            case "trade_gap":
                self.skip_trade()
            case "list":
                self.list_options(count)
            case "expire":
                self.expire_options(self._soonest(count))
            case "rerank":
                self.rerank()
            case kind if self._market.options:
                self._play_on(self._market.any_option(self._rng), kind, count)

    def _play_on(self, option: Option, kind: str, count: int) -> None:
        name = option.contract.name
        match kind:
            case "trade_void":
                self.trade(name, [Fate.VOID, Fate.LIVE])
            case "trade_mixed":
                more = self._rng.choices((Fate.WITHHELD, Fate.VOID), k=self._rng.randint(*_MIXED_RUN) - 2)
                run = [Fate.WITHHELD, Fate.VOID, *more]
                self._rng.shuffle(run)
                self.mix(name, [*run, Fate.LIVE])
            case "sweep":
                self.sweep(name, count, withheld=(count // 3, count - count // 3))
            case "expire_trade_gap":
                self.expire_options([name], last_trade_withheld=True)
            case "trade_forgotten":
                self.forget_trade(name)

    def _soonest(self, count: int) -> list[str]:
        """Return the options that expire first, but never the last one: a chain is not empty."""
        names = sorted(self._market.options, key=lambda name: self._market.options[name].contract.expiration_ms)
        return names[: min(count, len(names) - 1)]
