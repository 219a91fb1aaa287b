"""Records a tape with holes of every cause, at seeded moments: the exchange, the disk, and the clock misbehave."""

import json
import random
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tests.fix_programs import PATIENCE_S, Program, Programs, until
from tests.journal_holes import TRADES, Tape
from tests.oracle import journal_events

# What the exchange does wrong in a cycle: a second each, and what ends a connection when none is half open any more.
CYCLES = (
    ("malformed", "gap", "half_open", "trade_gap", "kill"),
    ("malformed", "trade_void", "half_open", "trade_forgotten", "disconnect"),
    ("malformed", "gap", "half_open", "trade_mixed", "kill"),
)
OF_EXCHANGE = {"disconnect", "sequence_break", "rejected", "silence"}
CAUSES = OF_EXCHANGE | {"crash", "stopped", "overflow", "disk_full", "clock_step"}
SMALL = ("--buffer-size-quotes", 1000, "--buffer-size-tickers", 1000)
# Runs of the recorder: with what, what happens in it, and how it ends. The next begins at once.
ROUND = (
    ((), "exchange", "crash"),
    ((*SMALL, "--flush-interval-sec", 2.5), "overflow", "stopped"),
    (SMALL, "disk_full", "crash"),
)
# The clock is wrong when nothing else is: by when something was sent nobody could tell then which gap row it is in.
LAST = ((), "clock_steps", "stopped")
HOLES_IN_A_ROUND, HOLES_IN_THE_LAST = 5, 3
SILENT_AFTER_S, LOST_AFTER_S, SWEEP_EVERY_S, ASK_AGAIN_S = 3, 6, 2, 2
ENDED_AT_S = 3 + SILENT_AFTER_S + 2  # in a cycle
CYCLE_S = ENDED_AT_S + 1
SETTLED_AFTER_S = 2 * SWEEP_EVERY_S + 5  # what shows by nothing else shows by two sweeps


class Recording:
    """A simulated exchange, and one run of the recorder after another on the same tape."""

    def __init__(self, programs: Programs, folder: Path, seed: int) -> None:
        """Take what to start, and where."""
        self.tape, self.journal = folder / "tape", folder / "journal"
        self.made: Counter[str] = Counter()  # holes, by what made them
        self._programs = programs
        self._rng = random.Random(seed)
        self._seed = seed
        self._clock, self._full_disk = folder / "wrong_by_s", folder / "full"
        self._url = ""
        self._quiet_at_s = 0.0  # when nothing more was ordered
        self._set_clock(0)

    def make(self, holes: int, *, rounds: int) -> None:
        """Record until so many holes are made, and every trade has its fate."""
        orders = list(self._orders(holes - rounds * HOLES_IN_A_ROUND - HOLES_IN_THE_LAST))
        exchange, self._url = self._programs.simulate(
            "--instruments", 24, "--rate", 1400, "--seed", self._seed, "--journal", self.journal,
            "--heartbeat-speed", 10, "--faults", ";".join(orders),
        )  # fmt: skip
        self._quiet_at_s = time.monotonic() + len(orders) / len(CYCLES[0]) * CYCLE_S + 5
        for arguments, what, end in (*ROUND * rounds, LAST):
            recorder = self._start(*arguments)
            getattr(self, f"_{what}")(recorder)
            time.sleep(self._rng.uniform(0, 1))
            if end == "crash":
                recorder.kill()
            else:
                assert recorder.stop() == 0
            self.made[end] += 1
            time.sleep(self._rng.uniform(0, 0.5))
        recorder = self._start()
        until(self._is_settled, "every trade to have its fate", patience_s=120, every_s=0.5)
        assert recorder.stop() == 0
        exchange.stop()
        # A message can be withheld only while somebody is there.
        played = Counter(event["kind"] for event in journal_events(self.journal, "fault"))
        self.made.update(Counter(order.partition(":")[0] for order in orders) & played)

    def _orders(self, count: int) -> Iterator[str]:
        """Order faults of the exchange at seeded moments."""
        cycles = [(3 + n * CYCLE_S, cycle) for n, cycle in enumerate(CYCLES * count)]
        kinds = [(begin_s, number, kind) for begin_s, cycle in cycles for number, kind in enumerate(cycle)]
        for begin_s, number, kind in kinds[:count]:
            last = number == len(CYCLES[0]) - 1
            at_s = begin_s + (ENDED_AT_S if last else number + self._rng.uniform(0, 1))
            yield f"{kind}:at={at_s:.2f}" + f",for={SILENT_AFTER_S + 2}" * (kind == "half_open")

    def _start(self, *arguments: str | float) -> Program:
        recorder = self._programs.start(
            "tests.stepped_clock", "tests.faults.driver", "tests.impatient", LOST_AFTER_S, SWEEP_EVERY_S,
            ASK_AGAIN_S, "record", "--deribit-ws-url", self._url, "--data-dir", self.tape,
            "--recorder-name", "test", "--top-n-instruments", 0, "--max-channels-per-connection", 20,
            "--trade-void-after-sec", 2, "--segment-max-age-sec", 1, "--flush-interval-sec", 0.3, *arguments,
            CLOCK_FILE=str(self._clock), SILENCE_LIMIT_S=str(SILENT_AFTER_S),
            FAULTS=json.dumps({"full_while": str(self._full_disk)}),
        )  # fmt: skip
        recorder.until_event("subscribed")
        return recorder

    # What happens in a run

    def _exchange(self, _recorder: Program) -> None:
        """Let the exchange do what was ordered, until it shows."""
        until(
            lambda: self._told().keys() >= OF_EXCHANGE,
            "what the exchange did",
            patience_s=2 * PATIENCE_S,
            every_s=0.3,
        )

    def _overflow(self, _recorder: Program) -> None:
        """Flush so seldom that the buffers are too small."""
        before = self._told()["overflow"]
        until(lambda: self._told()["overflow"] > before, "an overflow that is told and over", every_s=0.3)
        self.made["overflow"] += 1

    def _disk_full(self, recorder: Program) -> None:
        """Leave no room on the disk until the buffers are too small."""
        rows = self._told().total()
        until(lambda: self._told().total() > rows, "the crash or stop before it to be told", every_s=0.3)
        before = self._told()["disk_full"]
        self._full_disk.touch()
        recorder.until_event("buffer.filling")
        time.sleep(self._rng.uniform(0.5, 1))
        self._full_disk.unlink()
        until(lambda: self._told()["disk_full"] > before, "a full disk that is told and over", every_s=0.3)
        self.made["disk_full"] += 1

    def _clock_steps(self, recorder: Program) -> None:
        """Set the wall clock ahead, and right again a little later."""
        time.sleep(max(0.0, self._quiet_at_s - time.monotonic()))
        for number, wrong_by_s in enumerate((self._rng.uniform(4, 8), 0)):
            time.sleep(self._rng.uniform(1, 2))
            self._set_clock(wrong_by_s)
            recorder.until_event("clock.stepped", number + 1)
            self.made["clock_step"] += 1

    def _set_clock(self, wrong_by_s: float) -> None:
        draft = self._clock.with_suffix(".new")
        draft.write_text(str(wrong_by_s))
        draft.replace(self._clock)

    def _told(self) -> Counter[str]:
        """Count the gaps that are over, by cause, as far as they are sealed."""
        return Counter(gap.cause for gap in Tape.read(self.tape).gaps if gap.status != "open")

    def _is_settled(self) -> bool:
        last_us = max(event["sent_us"] for event in journal_events(self.journal, "fault"))
        is_quiet = time.time() > last_us / 1e6 + SETTLED_AFTER_S
        return is_quiet and not any(
            gap.status == "open" and gap.stream == TRADES for gap in Tape.read(self.tape).gaps
        )
