"""The recorder dies at every call that changes its disk, and at any time: nothing acknowledged is lost or doubled."""

import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
import pytest

from tests.faults.driver import acknowledged, keys_of
from tests.fix_programs import Program, Programs, until
from tests.oracle import journal_events
from tests.test_pool import accounted_for, causes, nothing_is_owed
from tests.test_record import gaps, unexplained_holes

# So that every sort of call comes within seconds.
HASTE = ("--flush-interval-sec", "0.1", "--segment-max-age-sec", "1", "--top-n-instruments", "0")
QUOTE = ["instrument", "change_id", "prev_change_id", "received_at"]
Record = Callable[[str, object], None]


def start(programs: Programs, url: str, tape: Path, *arguments: str | float, **faults: Any) -> Program:
    """Start a recorder on a disk with faults."""
    history = url.replace("ws://", "http://").removesuffix("/ws/api/v2") + "/api/v2"
    return programs.start(
        "tests.faults.driver", "recorder", "record", "--deribit-ws-url", url, "--deribit-history-url", history,
        "--data-dir", tape, "--recorder-name", "test", *HASTE, *arguments,
        FAULTS=json.dumps({"acknowledged": str(tape.with_name("acknowledged")), **faults}, default=str),
    )  # fmt: skip


def finish(programs: Programs, url: str, tape: Path) -> None:
    """One run without a fault, ended cleanly."""
    last = start(programs, url, tape)
    last.until_event("subscribed")
    time.sleep(1)
    assert last.stop() == 0


def judge(tape: Path) -> int:
    """I1, I2, I5; returns how many rows were acknowledged."""
    wanted, rows = acknowledged(tape.with_name("acknowledged")), 0
    for stream, keys in wanted.items():
        found = Counter(map(tuple, keys_of(stream, ds.dataset(tape / stream, format="ipc").to_table())))
        rows += len(keys)

        assert keys <= found.keys(), (stream, "acknowledged rows are lost", list(keys - found.keys())[:3])
        assert max(found.values()) == 1, (stream, "rows twice", found.most_common(3))
    quotes = ds.dataset(tape / "eth_option_quotes", format="ipc").to_table(columns=QUOTE)
    chain = [tuple(row.values()) for row in quotes.to_pylist()]

    assert unexplained_holes([(*r[:3], int(r[3].timestamp() * 1e6)) for r in chain], gaps(tape)) == []
    return rows


def test_it_dies_at_each_call_that_changes_the_disk(
    programs: Programs, tmp_path: Path, full: bool, record_property: Record
) -> None:
    """Start, die at the n-th call, start again, die at the next: I1, I2, I5, and every start comes up."""
    tape, journal = tmp_path / "tape", tmp_path / "journal"
    _, url = programs.simulate("--instruments", 20, "--rate", 400, "--journal", journal)
    step = 1 if full else 15
    points = [(number, after) for number in range(1, 160, step) for after in (False, True)]
    reached = 0
    for number, after in points if full else points[::2] + points[1::6]:
        recorder = start(programs, url, tape, kill_at=number, after=after)
        recorder.process.wait(30)
        reached += recorder.process.returncode == -9

    assert reached > len(points) // 3
    finish(programs, url, tape)
    assert judge(tape) > 100
    assert journal_events(journal, "limit") == []
    record_property("fault", "1")
    record_property("cases", reached)


@pytest.mark.parametrize("ending", ["stop", "disconnect"])
@pytest.mark.fault(1, 11, 14)
def test_a_gap_does_not_hide_what_is_lost_with_its_own_round(programs: Programs, tmp_path: Path, ending: str) -> None:
    """A gap of all is durable, the rows before it are not when the process dies: the next start tells these too."""
    tape, journal, now = tmp_path / "tape", tmp_path / "journal", tmp_path / "now"
    exchange, url = programs.simulate(
        "--instruments", 20, "--rate", 400, "--seed", 4, "--journal", journal,
        *(("--faults", "maintenance:at=9,for=6") if ending == "disconnect" else ()),
    )  # fmt: skip
    recorder = start(programs, url, tape, "--flush-interval-sec", 5, kill_after_gaps=now)
    until(lambda: list((tape / "live").glob("*_quotes/*")), "the first round")
    now.touch()
    if ending == "stop":
        time.sleep(1.5)
        recorder.process.send_signal(signal.SIGTERM)
    assert recorder.process.wait(30) == -9
    last = start(programs, url, tape, "--trade-void-after-sec", 2)
    until(lambda: nothing_is_owed(tape), "trades to heal", every_s=0.5)
    assert last.stop() == 0
    exchange.stop()

    accounted_for(journal, tape)
    assert ("crash" in causes(tape)) == (ending == "disconnect")


@pytest.mark.fault(1, 11)
def test_a_crash_tells_what_a_half_open_connection_had_not_brought(programs: Programs, tmp_path: Path) -> None:
    """It is killed while one connection is open and dead and another flows: the crash gap begins with the first."""
    tape, journal = tmp_path / "tape", tmp_path / "journal"
    exchange, url = programs.simulate(
        "--instruments", 40, "--rate", 800, "--seed", 4, "--journal", journal, "--faults", "half_open:at=7,for=60"
    )
    recorder = start(programs, url, tape, "--max-channels-per-connection", 50)
    until(lambda: journal_events(journal, "fault"), "the connection to go dead")
    time.sleep(4)
    recorder.kill()
    last = start(programs, url, tape, "--trade-void-after-sec", 2)
    until(lambda: any(gap["cause"] == "crash" and gap["status"] == "lost" for gap in gaps(tape)), "the gap's end")
    until(lambda: nothing_is_owed(tape), "trades to heal", every_s=0.5)
    assert last.stop() == 0
    exchange.stop()

    accounted_for(journal, tape)
    dead_us = journal_events(journal, "fault")[0]["sent_us"]
    begun_us = {
        gap["stream"]: int(gap["started_at"].timestamp() * 1e6)
        for gap in gaps(tape)
        if gap["cause"] == "crash" and gap["instrument"] is None
    }
    assert begun_us.keys() == {f"eth_option_{kind}" for kind in ("quotes", "tickers", "trades")}
    assert max(begun_us.values()) <= dead_us
    assert begun_us["eth_option_tickers"] > dead_us - 2_000_000


def test_it_dies_at_any_time(programs: Programs, tmp_path: Path, full: bool, record_property: Record) -> None:
    """SIGKILL after random times: I1, I2, I5."""
    tape, seed = tmp_path / "tape", int.from_bytes(os.urandom(3))
    print("seed", seed)
    rng, times = random.Random(seed), 200 if full else 6
    _, url = programs.simulate("--instruments", 20, "--rate", 400)
    for _ in range(times):
        recorder = start(programs, url, tape)
        time.sleep(rng.uniform(0.3, 3.0))
        recorder.kill()

    finish(programs, url, tape)
    assert judge(tape) > 100
    record_property("fault", "1")
    record_property("cases", times)
