"""A disk that is full, slow, or refuses: the recorder survives, says so, and goes on by itself."""

from pathlib import Path

from tests.fix_programs import Programs, until
from tests.oracle import tape_rows
from tests.test_kill_points import Record, judge, start
from tests.test_record import count, gaps


def test_a_full_disk_is_survived_told_and_left_behind(
    programs: Programs, tmp_path: Path, record_property: Record
) -> None:
    """It receives until its buffers are full, tells what did not fit, and records again once there is room."""
    tape, full = tmp_path / "tape", tmp_path / "full"
    _, url = programs.simulate("--instruments", 20, "--rate", 400)
    recorder = start(
        programs, url, tape, "--buffer-size-quotes", 1000, "--buffer-size-tickers", 1000, full_while=full
    )
    recorder.until_event("subscribed")
    until(lambda: count(tape, "eth_option_quotes") > 100, "quotes")
    full.touch()
    recorder.until_event("flush.failed", 2)
    recorder.until_event("buffer.filling")
    full.unlink()
    before = count(tape, "eth_option_quotes")
    until(lambda: count(tape, "eth_option_quotes") > before + 400, "quotes after that")
    until(lambda: "disk_full" in {gap["cause"] for gap in gaps(tape)}, "the gap")
    assert recorder.stop() == 0

    assert {gap["status"] for gap in gaps(tape) if gap["cause"] == "disk_full"} <= {"lost", "healed"}
    assert judge(tape) > 500
    record_property("fault", "5")
    record_property("cases", 1)


def test_a_start_on_a_full_disk_waits_for_room(programs: Programs, tmp_path: Path, record_property: Record) -> None:
    """What a crash left cannot be finished on a full disk: it waits and says so instead of ending in a loop."""
    tape, full = tmp_path / "tape", tmp_path / "full"
    _, url = programs.simulate("--instruments", 20, "--rate", 400)
    first = start(programs, url, tape)
    first.until_event("subscribed")
    until(lambda: count(tape, "eth_option_quotes") > 100, "quotes")
    first.kill()
    full.touch()
    second = start(programs, url, tape, full_while=full)
    second.until_event("disk.full", 2)
    assert second.process.poll() is None
    full.unlink()
    second.until_event("subscribed")
    assert second.stop() == 0

    assert judge(tape) > 100
    record_property("fault", "5")
    record_property("cases", 1)


def test_a_stop_is_heeded_while_a_start_waits_for_room(programs: Programs, tmp_path: Path) -> None:
    """SIGTERM ends it with one line and exit code 5."""
    tape, full = tmp_path / "tape", tmp_path / "full"
    _, url = programs.simulate("--instruments", 5)
    first = start(programs, url, tape)
    first.until_event("subscribed")
    until(lambda: count(tape, "eth_option_quotes") > 1, "quotes")
    first.kill()
    full.touch()
    second = start(programs, url, tape, full_while=full)
    second.until_event("disk.full")

    assert second.stop() == 5
    assert "error: the disk under" in second.err


def test_a_slow_disk_and_a_burst_cost_nothing_within_the_buffers(
    programs: Programs, tmp_path: Path, record_property: Record
) -> None:
    """Every tenth call hangs for half a second at ten times the usual rate: bounded, and not a row is missed."""
    tape = tmp_path / "tape"
    _, url = programs.simulate("--instruments", 20, "--rate", 2000)
    recorder = start(programs, url, tape, slow=[0.5, 10])
    recorder.until_event("subscribed")
    until(lambda: count(tape, "eth_option_quotes") > 4000, "quotes")
    assert recorder.stop() == 0

    assert judge(tape) > 4000
    assert {gap["cause"] for gap in gaps(tape)} == {"stopped"}
    assert recorder.events("exchange.lost") == []
    assert len(tape_rows(tape, "eth_option_trades", ["trade_seq"])) > 10
    record_property("fault", "14")
    record_property("cases", 1)
