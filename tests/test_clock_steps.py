"""The recorder, as a process, under a wall clock that is set back while it runs or while it does not."""

import time
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.dataset as ds
import pytest

import analysis
from recorder.runtime.data_dir import DataDir
from recorder.segments.layout import sealed_files
from recorder.segments.reader import read_identity
from tests.fix_programs import Program, Programs, until
from tests.oracle import journal_events, tape_rows, trades_made

HOUR_S = 3600.0
STREAMS = ("quotes", "trades", "tickers")


class Clock:
    """The wall clock of the recorder: how wrong it is."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "wrong_by_s"
        self.set(0.0)

    def set(self, wrong_by_s: float) -> None:
        draft = self.file.with_suffix(".new")
        draft.write_text(str(wrong_by_s))
        draft.replace(self.file)


@pytest.fixture
def clock(tmp_path: Path) -> Clock:
    return Clock(tmp_path)


@pytest.fixture
def record(programs: Programs, clock: Clock) -> Callable[..., Program]:
    """Start a recorder under that clock and wait until it is subscribed."""

    def start(url: str, tape: Path, *arguments: object) -> Program:
        program = programs.start(
            "tests.stepped_clock", "recorder", "record", "--deribit-ws-url", url, "--data-dir", tape,
            "--recorder-name", "test", "--flush-interval-sec", 0.2, *map(str, arguments), CLOCK_FILE=str(clock.file),
        )  # fmt: skip
        program.until_event("subscribed")
        return program

    return start


def rows(tape: Path, stream: str, query: str) -> list[dict[str, Any]]:
    """Ask the tape, live segments included; nothing while it lacks the stream."""
    with analysis.open(tape) as con:
        if (stream,) not in con.sql("SHOW TABLES").fetchall():
            return []
        return list(con.sql(query).to_arrow_table().to_pylist())


def count(tape: Path, kind: str) -> int:
    found = rows(tape, f"eth_option_{kind}", f"SELECT count(*) AS n FROM eth_option_{kind}")
    return int(found[0]["n"]) if found else 0


def gaps(tape: Path, cause: str) -> list[dict[str, Any]]:
    """Gaps of one cause in their newest state; times as integer microseconds."""
    found = rows(
        tape,
        "data_gaps",
        "SELECT stream, instrument, status, detail, epoch_us(started_at) AS started, epoch_us(ended_at) AS ended"
        f" FROM gaps WHERE cause = '{cause}'",
    )
    return [{**gap, "stream": gap["stream"].removeprefix("eth_option_")} for gap in found]


def chain(tape: Path, stream: str) -> list[Path]:
    """A stream's segments in the order they were written; fails if there is more than one order."""
    files = {path: read_identity(path) for path in sealed_files(DataDir(tape), stream)}
    after = {identity.previous: path for path, identity in files.items() if identity}
    assert len(after) == len(files)
    order, at = [], ""
    while (path := after.get(at)) is not None:
        order.append(path)
        identity = files[path]
        assert identity is not None
        at = identity.segment_id
    assert len(order) == len(files)
    return order


def heard_until_us(path: Path) -> int:
    """Until when, by the exchange's clock, a segment holds all that was sent."""
    times, received = ds.dataset(path, format="ipc").to_table(columns=["timestamp", "received_at"]).columns
    return min(int(pc.max(times).value), int(received[-1].value))


@pytest.mark.fault(15)
def test_a_crash_after_a_step_backwards_loses_and_doubles_nothing(
    programs: Programs, clock: Clock, record: Callable[..., Program], tmp_path: Path
) -> None:
    """An hour ahead, set right, sealed on both sides, kill -9: the gap begins where what was written ends."""
    clock.set(HOUR_S)
    journal, tape = tmp_path / "journal", tmp_path / "tape"
    exchange, url = programs.simulate("--instruments", 30, "--rate", 400, "--seed", 8, "--journal", journal)
    first = record(url, tape, "--segment-max-age-sec", 1)
    until(lambda: count(tape, "quotes") > 200, "quotes")
    clock.set(0.0)
    first.until_event("clock.stepped")
    stepped_at, before = time.time(), count(tape, "quotes")
    sealed = len(sealed_files(DataDir(tape), "eth_option_quotes"))
    until(lambda: len(sealed_files(DataDir(tape), "eth_option_quotes")) > sealed + 2, "seals after the step")
    first.kill()
    segments = {kind: len(sealed_files(DataDir(tape), f"eth_option_{kind}")) for kind in STREAMS}
    second = record(url, tape)
    until(lambda: len(gaps(tape, "crash")) >= 3, "the gaps of the crash")
    until(lambda: any(gap["status"] == "lost" for gap in gaps(tape, "crash")), "the gap's end")
    until(lambda: count(tape, "quotes") > before + 500, "more quotes")
    until(lambda: all(gap["status"] != "open" for gap in gaps(tape, "crash") if gap["instrument"] is None), "healing")
    assert second.stop() == 0
    exchange.stop()

    for gap in gaps(tape, "crash"):
        if gap["instrument"] is None:
            ends = [heard_until_us(path) for path in chain(tape, f"eth_option_{gap['stream']}")]
            # What was sealed before the crash, or the one that recovery sealed, if the stream had one; a bit earlier
            # where the kill came between a round and its line, or a book was held back.
            last = ends[segments[gap["stream"]] - 1 : segments[gap["stream"]] + 1]
            assert any(end - 1_500_000 < gap["started"] <= end for end in last)
            assert gap["started"] < (stepped_at + HOUR_S / 2) * 1e6
            assert gap["started"] <= gap["ended"]
    chain(tape, "data_gaps")
    chain(tape, "eth_option_instruments")
    trades = Counter(tape_rows(tape, "eth_option_trades", ["instrument", "trade_seq"]))
    assert set(trades.values()) == {1}
    assert set(trades) <= trades_made(journal).made.keys()
    for name in {name for name, _ in trades}:
        seqs = sorted(seq for other, seq in trades if other == name)
        assert all(b == a + 1 for a, b in pairwise(seqs))


@pytest.mark.parametrize("end", ["crash", "stopped"])
@pytest.mark.fault(15)
def test_a_clock_set_back_while_nothing_is_recorded_is_told(
    programs: Programs, clock: Clock, record: Callable[..., Program], tmp_path: Path, end: str
) -> None:
    """An hour ahead until a crash or a stop, right after it: the gap covers the hole, and the step has a row."""
    journal, tape = tmp_path / "journal", tmp_path / "tape"
    exchange, url = programs.simulate("--instruments", 20, "--rate", 400, "--seed", 9, "--journal", journal)
    clock.set(HOUR_S)
    first = record(url, tape)
    until(lambda: all(count(tape, kind) for kind in STREAMS), "rows of every stream")
    until(lambda: count(tape, "quotes") > 300, "quotes")
    ended_us = time.time() * 1e6
    first.kill() if end == "crash" else first.stop()
    clock.set(0.0)
    time.sleep(2)
    begun_us = time.time() * 1e6
    second = record(url, tape)
    until(lambda: {gap["status"] for gap in gaps(tape, end)} <= {"lost", "healed"} and gaps(tape, end), "its end")
    assert second.stop() == 0
    exchange.stop()

    told = [gap for gap in gaps(tape, end) if gap["instrument"] is None and gap["ended"] is not None]
    assert sorted(gap["stream"] for gap in told) == sorted(STREAMS)
    for gap in told:
        assert gap["started"] <= ended_us + 100_000
        assert gap["ended"] >= begun_us
        assert gap["ended"] < begun_us + 60e6
    steps = gaps(tape, "clock_step")
    assert {(gap["stream"], gap["status"]) for gap in steps} == {(kind, "void") for kind in STREAMS}
    for gap in steps:
        assert gap["started"] <= gap["ended"]
        assert "was stepped by -3" in gap["detail"]
    trades = set(tape_rows(tape, "eth_option_trades", ["instrument", "trade_seq"]))
    made = {key for key, at_us in trades_made(journal).made.items() if ended_us - 1e6 < at_us < begun_us}
    assert made
    assert made <= trades


@pytest.mark.parametrize("step_s", [-HOUR_S, HOUR_S])
@pytest.mark.fault(11, 15)
def test_a_connection_that_is_dead_while_the_clock_is_stepped_is_told_from_when_it_fell_silent(
    programs: Programs, clock: Clock, tmp_path: Path, step_s: float
) -> None:
    """Its gap covers the time since by both clocks, the exchange's and ours; who traded is asked by ours alone."""
    journal, tape = tmp_path / "journal", tmp_path / "tape"
    exchange, url = programs.simulate(
        "--instruments", 20, "--rate", 400, "--seed", 9, "--heartbeat-speed", 10, "--journal", journal,
        "--faults", "silence:at=7,for=60",
    )  # fmt: skip
    recorder = programs.start(
        "tests.stepped_clock", "tests.impatient", 60, 60, 30, "record", "--deribit-ws-url", url, "--data-dir", tape,
        "--recorder-name", "test", "--flush-interval-sec", 0.2, CLOCK_FILE=str(clock.file), SILENCE_LIMIT_S="4",
    )  # fmt: skip
    recorder.until_event("subscribed")
    (fault,) = until(lambda: journal_events(journal, "fault"), "silence")
    time.sleep(0.5)
    clock.set(step_s)
    recorder.until_event("clock.stepped")
    recorder.until_event("exchange.lost")
    until(lambda: any(gap["status"] == "lost" for gap in gaps(tape, "silence")), "the gap's end")
    assert recorder.stop() == 0
    exchange.stop()

    told = [gap for gap in gaps(tape, "silence") if gap["instrument"] is None and gap["ended"] is not None]
    assert {gap["stream"] for gap in told} >= {"quotes", "tickers"}
    begun_us = fault["sent_us"] + min(step_s, 0) * 1e6
    for gap in told:
        assert begun_us - 2e6 < gap["started"] <= begun_us + 100_000
        ahead_s = step_s if gap["stream"] == "trades" else max(step_s, 0)
        assert 2e6 < gap["ended"] - fault["sent_us"] - ahead_s * 1e6 < 60e6
