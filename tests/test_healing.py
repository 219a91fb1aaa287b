"""Trades that were missed: fetched, or told as void or lost, each as it is true, and none twice."""

import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.fix_programs import Program, Programs, until
from tests.oracle import gap_states, journal_events, judge_trades, tape_rows, trades_made
from tests.test_record import count, gaps

TRADES = "eth_option_trades"


@dataclass(frozen=True)
class Run:
    """How long, and how much goes wrong."""

    instruments: int
    faults: str
    kills: int
    between: int  # trades, at least
    pause_s: int  # and seconds: a process that begins anew knows nothing of what the one before it has asked
    channels: int  # of a connection
    main_keeps_s: int
    lost_after_s: int
    sweep_every_s: int
    ask_again_s: int

    @property
    def quiet_s(self) -> int:
        """After the last fault: what shows by nothing else shows by two sweeps."""
        return 2 * self.sweep_every_s + 5


SMALL = Run(
    instruments=60,
    faults="trade_gap:every=0.5,until=9;trade_void:every=1.5,until=9;trade_mixed:every=2,until=9;"
    "sweep:at=12,count=1500;expire_trade_gap:at=5,every=3,until=9;trade_forgotten:at=6,every=2,until=12;"
    "kill:every=4,until=9;reorder:every=1,until=9;duplicate:every=1,until=9",
    kills=2,
    between=20,
    pause_s=1,
    channels=60,
    main_keeps_s=12,
    lost_after_s=8,
    sweep_every_s=3,
    ask_again_s=3,
)
FULL = Run(
    instruments=200,
    faults="trade_gap:every=0.5,until=120;trade_void:every=1.5,until=120;trade_mixed:every=2,until=120;"
    "sweep:every=25,count=1500,until=120;expire_trade_gap:every=6,until=120;trade_forgotten:every=15,until=120;"
    "list:every=10,count=8,until=120;kill:every=9,until=120;reorder:every=1,until=120;duplicate:every=1,until=120",
    kills=4,
    between=120,
    pause_s=8,
    channels=150,
    main_keeps_s=45,
    lost_after_s=90,
    sweep_every_s=60,
    ask_again_s=30,
)


@pytest.mark.timeout(600)
@pytest.mark.fault(11, 12)
def test_trades_that_were_missed_get_their_true_fate(programs: Programs, tmp_path: Path, full: bool) -> None:
    """Withheld, void, mixed, forgotten, 1,500 in a millisecond, on options that expire, through crashes."""
    run = FULL if full else SMALL
    journal, tape = tmp_path / "journal", tmp_path / "tape"
    exchange, url = programs.simulate(
        "--instruments", run.instruments, "--rate", 800, "--seed", 12, "--journal", journal,
        "--main-keeps", run.main_keeps_s, "--faults", run.faults,
    )  # fmt: skip
    for number in range(run.kills):
        recorder = record_impatiently(programs, url, tape, run)
        begun = count(tape, TRADES)
        until(lambda before=begun: count(tape, TRADES) > before + run.between, "trades", patience_s=120)  # type: ignore[misc]
        time.sleep(run.pause_s)
        recorder.kill()
        if full and number == run.kills - 1:
            time.sleep(run.main_keeps_s + 2)  # then only the history host has what was missed
    recorder = record_impatiently(programs, url, tape, run)
    until(lambda: is_settled(journal, tape, run), "fates", patience_s=400, every_s=1.0)
    assert recorder.stop() == 0
    exchange.stop()
    truth = trades_made(journal)
    fates = Counter(
        status
        for states in gap_states(tape, TRADES).values()
        for _, name, _, status, *_ in states
        if name is not None and status != "open"
    )
    sources = Counter(row[0] for row in tape_rows(tape, TRADES, ["source"]))
    print(f"{len(truth.made)} trades, {len(truth.void)} void numbers; fates {dict(fates)}; rows {dict(sources)}")

    assert judge_trades(truth, tape, main_keeps_s=run.main_keeps_s) == []
    # In a short run what the hosts forget may all be while a recorder is down; who never knew of it cannot tell it.
    assert {"healed", "void"} | ({"lost"} if full else set()) <= set(fates)
    assert fates.total() >= (200 if full else 15)
    assert sources["backfill"] >= 500
    assert journal_events(journal, "limit") == []


def record_impatiently(programs: Programs, url: str, tape: Path, run: Run) -> Program:
    """Record a whole simulated chain over several connections, by a recorder that gives up soon."""
    recorder = programs.start(
        "tests.impatient", run.lost_after_s, run.sweep_every_s, run.ask_again_s, "record",
        "--deribit-ws-url", url, "--data-dir", tape, "--recorder-name", "test", "--top-n-instruments", 0,
        "--max-channels-per-connection", run.channels, "--trade-void-after-sec", 2,
    )  # fmt: skip
    recorder.until_event("subscribed")
    return recorder


def is_settled(journal: Path, tape: Path, run: Run) -> bool:
    """Whether the faults are over, and every gap of the trades has its fate."""
    last_us = max(entry["sent_us"] for entry in journal_events(journal, "fault"))
    is_quiet = time.time() > last_us / 1e6 + run.quiet_s
    return is_quiet and not any(gap["status"] == "open" for gap in gaps(tape) if gap["stream"] == TRADES)
