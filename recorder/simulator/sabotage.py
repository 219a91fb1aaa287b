"""Plays the faults that were ordered: each at its time, those on messages at the next message that fits."""

import asyncio
import random
from collections.abc import Callable
from typing import Protocol

from recorder.simulator.faults import Fault, spoil
from recorder.simulator.journal import Journal


class Victim(Protocol):
    """What faults are done to."""

    @property
    def numbers(self) -> list[int]:
        """The open connections."""

    def kill(self, number: int) -> None:
        """Cut one."""

    def skip_trade(self) -> None:
        """Do not send the next trade."""

    async def silence(self, for_s: float) -> None:
        """Send nothing for a while."""


class Sabotage:
    """Plays faults at their times, and those on messages at the first message that fits."""

    def __init__(self, faults: tuple[Fault, ...], *, seed: int, journal: Journal) -> None:
        self._faults = faults
        self._rng = random.Random(seed)  # noqa: S311 - the same faults for the same seed
        self._journal = journal
        self._armed: list[tuple[str, int]] = []  # kind, connection
        self._skips: list[tuple[str, set[int]]] = []  # channel, connections that it is done to
        self._forms = 0

    async def run(self, victim: Victim) -> None:
        """Play until cancelled."""
        start_s = asyncio.get_running_loop().time()
        async with asyncio.TaskGroup() as group:
            for fault in self._faults:
                group.create_task(self._play(fault, victim, start_s))

    async def _play(self, fault: Fault, victim: Victim, start_s: float) -> None:
        times = 0
        while (due_s := fault.due_s(times)) is not None:
            times += 1
            await asyncio.sleep(start_s + due_s - asyncio.get_running_loop().time())
            await self._strike(fault, victim)

    async def _strike(self, fault: Fault, victim: Victim) -> None:
        if fault.kind == "trade_gap":
            victim.skip_trade()
        elif fault.kind == "silence":
            await victim.silence(fault.for_s or 0)
        elif numbers := victim.numbers:  # nobody is there: nothing to be done to them
            number = self._rng.choice(numbers)
            if fault.kind == "disconnect":
                self._journal.event("fault", kind="disconnect", connection=number)
                victim.kill(number)
            else:
                self._armed.append((fault.kind, number))

    def forget(self, number: int) -> None:
        """Drop what was meant for a connection that is gone."""
        self._armed = [armed for armed in self._armed if armed[1] != number]

    def skip(self, channel: str, connections: set[int]) -> None:
        """Withhold the next change on a book channel from each of these connections."""
        self._skips.append((channel, connections))

    def filter(self, number: int, channel: str, frame: bytes, send: Callable[[bytes], None]) -> bool:
        """Do to a message what is due; `send` sends something else instead. False: it must not be sent."""
        if not self._armed and not self._skips:
            return True
        is_change = channel.startswith("book.") and b'"type":"change"' in frame
        for skipped, connections in self._skips:
            if is_change and channel == skipped and number in connections:
                connections.discard(number)
                self._skips = [skip for skip in self._skips if skip[1]]
                return self._withhold("gap", number, channel, frame)
        for armed in self._armed:
            kind = armed[0]
            if armed[1] != number or not (is_change if kind == "gap" else channel.startswith(("book.", "ticker."))):
                continue
            self._armed.remove(armed)
            if kind == "gap":
                return self._withhold("gap", number, channel, frame)
            form, spoilt, instead = spoil(frame, channel, self._forms)
            self._forms += 1
            send(spoilt)
            facts = {"form": form, "sent": spoilt.decode()}
            if instead:
                return self._withhold("malformed", number, channel, frame, **facts)
            self._journal.event("fault", kind="malformed", connection=number, channel=channel, **facts)
            return True
        return True

    def _withhold(self, kind: str, number: int, channel: str, frame: bytes, **facts: str) -> bool:
        self._journal.event("fault", frame, kind=kind, connection=number, channel=channel, **facts)
        return False
