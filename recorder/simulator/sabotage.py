"""Plays the faults that were ordered, each at its time; the victims are chosen from the seed."""

import asyncio
import random
from collections import Counter

from recorder.simulator.faults import RULES, Fault, Sort
from recorder.simulator.server import Exchange
from recorder.simulator.tampering import FAMILIES


class Sabotage:
    """Plays faults against one exchange."""

    def __init__(self, faults: tuple[Fault, ...], exchange: Exchange, *, seed: int) -> None:
        self._faults, self._exchange = faults, exchange
        self._rng = random.Random(seed)  # noqa: S311 - the same faults for the same seed
        self._last: dict[str, int] = {}  # by kind: the connection that it was done to last
        self._turns: Counter[str] = Counter()  # how often each kind was done to a message

    async def run(self) -> None:
        """Play until cancelled."""
        start_s = asyncio.get_running_loop().time()
        async with asyncio.TaskGroup() as group:
            for fault in self._faults:
                group.create_task(self._play(fault, start_s, group))

    async def _play(self, fault: Fault, start_s: float, group: asyncio.TaskGroup) -> None:
        times = 0
        while (due_s := fault.due_s(times)) is not None:
            times += 1
            await asyncio.sleep(start_s + due_s - asyncio.get_running_loop().time())
            match RULES[fault.kind].sort:
                case Sort.MARKET:
                    self._exchange.live.orders.play(fault)
                case Sort.EXCHANGE:  # beside what else is due meanwhile
                    group.create_task(self._exchange.trouble(fault.kind, fault.for_s or 0))
                case Sort.CONNECTION | Sort.MESSAGE if self._exchange.numbers:  # else nobody is there to suffer it
                    self._strike_one(fault, group)

    def _strike_one(self, fault: Fault, group: asyncio.TaskGroup) -> None:
        exchange = self._exchange
        match fault.kind:
            case "disconnect":
                exchange.kill(self._rng.choice(exchange.numbers), kind="disconnect")
            case "kill":
                exchange.kill(self._next_in_turn("kill"))
            case "half_open":
                group.create_task(exchange.half_open(self._next_in_turn("half_open"), fault.for_s or 0))
            case "gap":
                exchange.tampering.arm("gap", self._rng.choice(exchange.numbers), "book.")
            case kind:
                self._arm(kind)

    def _next_in_turn(self, kind: str) -> int:
        numbers, last = self._exchange.numbers, self._last.get(kind, 0)
        self._last[kind] = next((number for number in numbers if number > last), numbers[0])
        return self._last[kind]

    def _arm(self, kind: str) -> None:
        """Choose a connection, and in turn a kind of channel that it holds."""
        families = FAMILIES[:2] if kind == "malformed" else FAMILIES
        session = self._rng.choice(self._exchange.connections)
        held = [family for family in families if any(channel.startswith(family) for channel in session.channels)]
        if held:
            self._exchange.tampering.arm(kind, session.number, held[self._turns[kind] % len(held)])
            self._turns[kind] += 1
