"""What `recorder status` tells of recorder, loader, and tape, to people, to terminals, and to programs."""

import fcntl
import json
import os
import pty
import re
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Any

import pytest

from recorder.runtime.data_dir import DataDir
from recorder.status.endpoint import Told, ask
from recorder.status.files import Looker, TapeFiles, count_gaps
from recorder.status.layout import Line, duration, fit, lay_out
from recorder.status.report import per_second, report
from tests.fix_postgres import quotes, record
from tests.fix_programs import PATIENCE_S, REPOSITORY, Program, Programs, until
from tests.test_listener import free_port, get, recording

Json = dict[str, Any]


def ports(recorder: int | str = "off", loader: int | str = "off") -> list[str | int]:
    return ["--metrics-port", recorder, "--loader-metrics-port", loader]


def told(programs: Programs, root: Path, *arguments: str | int) -> tuple[Program, Json]:
    run = programs.run("recorder", "status", "--json", "--data-dir", root, *arguments)
    return run, json.loads(run.out)


def test_a_whole_chain_is_healthy(programs: Programs, tmp_path: Path, database: str) -> None:
    """Rates, channels, buffers, segments, and what is loaded; exit code 0, and nothing is named wrong."""
    root, port, loader_port = tmp_path / "tape", free_port(), free_port()
    _, url = programs.simulate("--instruments", 20, "--rate", 200)
    recorder = recording(programs, url, root, port)
    loader = programs.start(
        "loader", "load", "--data-dir", root, "--loader-metrics-port", loader_port, DATABASE_URL=database
    )
    until(lambda: get(port, "/readyz")[0] == 200, "readiness")
    until(lambda: "loader_segments_loaded_total 0" not in get(loader_port, "/metrics")[1], "a segment to be loaded")
    run, found = told(programs, root, *ports(port, loader_port))

    assert (run.process.returncode, found["healthy"], found["problems"], found["notes"]) == (0, True, [], [])
    assert found["recorder"]["messages_per_s"] > 0
    assert found["recorder"]["channels_granted"] == found["recorder"]["channels_asked"] >= 40
    assert (found["recorder"]["open_connections"], found["recorder"]["connections"]) == (1, 1)
    assert found["recorder"]["last_flush_s"] == pytest.approx(found["at_s"], abs=PATIENCE_S)
    assert (found["loader"]["database_up"], found["loader"]["loaded_rows"] > 0) == (True, True)
    streams = {one["files"]["stream"]: one for one in found["streams"]}
    assert streams["eth_option_quotes"]["rows_per_s"] > 0
    assert streams["eth_option_quotes"]["files"]["sealed_today"] >= 1
    assert streams["eth_option_quotes"]["files"]["last_seal_s"] == pytest.approx(found["at_s"], abs=PATIENCE_S)
    assert found["tape"]["disk_free_bytes"] > 0
    text = programs.run("recorder", "status", "--data-dir", root, *ports(port, loader_port))
    assert text.out.splitlines()[1] == "healthy"
    assert "the database is up" in text.out
    assert "\x1b" not in text.out
    assert (recorder.stop(), loader.stop()) == (0, 0)


def test_what_is_wrong_is_named(programs: Programs, tmp_path: Path) -> None:
    """Exit code 1 where the exchange is away, with the gap that it makes, from the recorder and from the files."""
    root, port = tmp_path / "tape", free_port()
    exchange, url = programs.simulate("--instruments", 5, "--rate", 50)
    recorder = recording(programs, url, root, port)
    until(lambda: get(port, "/readyz")[0] == 200, "readiness")
    exchange.kill()
    until(lambda: get(port, "/readyz")[0] == 503, "that the loss of the exchange is told")
    until(
        lambda: told(programs, root, *ports(port))[1]["tape"]["gaps_today"].get("disconnect"), "the gap on the tape"
    )
    run, found = told(programs, root, *ports(port))

    assert (run.process.returncode, found["healthy"]) == (1, False)
    assert "recorder: exchange: no connection is open" in found["problems"]
    assert found["recorder"]["open_gaps"]["disconnect"] >= 1
    assert found["notes"] == ["the loader was not asked: LOADER_METRICS_PORT is off"]
    assert recorder.stop() == 0
    until(lambda: not list((root / "live").rglob("*.open")), "everything to be sealed")
    assert told(programs, root)[1]["tape"]["gaps_today"]["stopped"], "a gap row of a sealed segment"


def test_files_are_shown_where_nobody_can_be_asked(programs: Programs, tmp_path: Path) -> None:
    """Exit code 7, whether no port is configured or nobody listens; 1 where there is not even a tape to show."""
    root = tmp_path / "tape"
    record(root, [quotes(50)])
    (root / "quarantine").mkdir()
    (root / "quarantine" / "one").write_text("x")
    silent = programs.run("recorder", "status", "--data-dir", root)
    assert silent.process.returncode == 7
    assert "the recorder was not asked: METRICS_PORT is off" in silent.out
    assert "eth_option_quotes" in silent.out
    port = free_port()
    away, found = told(programs, root, *ports(port))
    assert (away.process.returncode, found["healthy"]) == (7, None)
    assert found["problems"] == [
        f"recorder: does not answer at http://127.0.0.1:{port}: Connection refused",
        "tape: 1 file in quarantine: look at them, then remove them",
    ]
    nothing, found = told(programs, tmp_path / "none")
    assert (nothing.process.returncode, found["tape"]["trouble"]) == (7, "there is no such folder")


def test_who_answers_must_be_the_program_and_soon() -> None:
    """Something else on the port, and something that never answers, are told as that."""
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        assert ask("recorder", "0.0.0.0", mute.getsockname()[1]).trouble == "no answer within 2 s"
    port = free_port()
    with subprocess.Popen(
        [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ) as other:  # fmt: skip
        Path("metrics").write_text("# nothing\n")
        until(lambda: get(port, "/metrics")[0] == 200, "the other server")
        assert ask("loader", "127.0.0.1", port).trouble == "something else than a loader answers"
        other.terminate()


class Terminal:
    """`recorder status` on a pseudo-terminal of some size."""

    def __init__(self, arguments: list[str], *, columns: int = 80, rows: int = 24, **environment: str) -> None:
        self._here, there = pty.openpty()
        fcntl.ioctl(there, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        plain = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "COLUMNS", "LINES")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "recorder", "status", *arguments], stdin=there, stdout=there, stderr=there,
            env={**plain, "PYTHONPATH": str(REPOSITORY), "TERM": "xterm-256color", **environment},
        )  # fmt: skip
        os.close(there)
        self.shown = ""

    def until(self, text: str) -> str:
        deadline_s = time.monotonic() + PATIENCE_S
        while text not in self.shown:
            assert time.monotonic() < deadline_s, f"waited in vain for {text!r} in {self.shown!r}"
            self._read()
        return self.shown

    def end(self, how: signal.Signals = signal.SIGINT) -> int:
        self.process.send_signal(how)
        while self._read():
            pass
        os.close(self._here)
        return self.process.wait(PATIENCE_S)

    def _read(self) -> bool:
        try:
            piece = os.read(self._here, 4096)
        except OSError:  # the far end was closed: the program has ended
            return False
        self.shown += piece.decode(errors="replace")
        return bool(piece)


@pytest.fixture
def tape(tmp_path: Path) -> Path:
    root = tmp_path / "tape"
    record(root, [quotes(50)])
    return root


def test_a_terminal_is_given_back_as_it_was(tape: Path) -> None:
    """Colours while it is shown, on the other screen; Ctrl-C ends it with the verdict as exit code."""
    terminal = Terminal(["--data-dir", str(tape)])
    shown = terminal.until("eth_option_quotes")
    code = terminal.end()

    assert code == 7
    assert "\x1b[1;31mnobody could be asked" in shown
    assert "\x1b[?1049h" in shown
    assert terminal.shown.rstrip().endswith("\x1b[?25h\x1b[?1049l")
    assert "Traceback" not in terminal.shown


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_waits_for_nobody(tape: Path, how: signal.Signals) -> None:
    """A program that hangs does not keep the terminal."""
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        terminal = Terminal(["--data-dir", str(tape), "--metrics-port", str(mute.getsockname()[1])])
        terminal.until("\x1b[?1049h")
        terminal.end(how)
    assert terminal.shown.rstrip().endswith("\x1b[?25h\x1b[?1049l")


def test_no_color_and_a_small_terminal_are_heeded(tape: Path) -> None:
    """No colour where NO_COLOR is set; what finds no room is counted, and no line is longer than the terminal."""
    terminal = Terminal(["--data-dir", str(tape)], columns=40, rows=5, NO_COLOR="1")
    shown = terminal.until("enlarge the terminal")
    terminal.end()

    assert not re.search(r"\x1b\[[0-9;]*3[0-9]m", shown)
    frame = next(frame for frame in shown.split("\x1b[H") if "enlarge the terminal" in frame)
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", frame).replace("\r", "").split("\n")
    assert max(len(line) for line in lines) <= 40
    assert len(lines) == 5


def test_once_on_a_terminal_is_text(tape: Path) -> None:
    """`--once`, and a terminal that cannot move its cursor, get plain lines and an end."""
    for arguments, term in ((["--once"], "xterm"), ([], "dumb")):
        terminal = Terminal([*arguments, "--data-dir", str(tape)], TERM=term)
        shown = terminal.until("eth_option_quotes  ")
        assert terminal.process.wait(PATIENCE_S) == 7
        assert "\x1b" not in shown


NUMBERS = {
    ("recorder_build_info", "1"): 1.0,
    ("process_start_time_seconds", ""): 5.0,
    ("recorder_channels_asked", ""): 10.0,
    ("recorder_channels_granted", ""): 10.0,
    ("recorder_unflushed_rows", "eth_option_quotes"): 10.0,
    ("recorder_buffer_limit_rows", "eth_option_quotes"): 1000.0,
    ("recorder_disk_free_bytes", ""): 5e9,
}


def recorder_told(at_s: float = 0.0, **changes: float) -> Told:
    changed = {(name, ""): value for name, value in changes.items()}
    return Told("recorder", "http://127.0.0.1:1", at_s=at_s, numbers={**NUMBERS, **changed})


@pytest.mark.parametrize(
    ("numbers", "problem"),
    [
        ({("recorder_channels_granted", ""): 8}, "recorder: 2 of 10 channels are not granted"),
        (
            {("recorder_unflushed_rows", "eth_option_quotes"): 800},
            "recorder: the buffer of eth_option_quotes is 80 % full",
        ),
        (
            {("recorder_disk_left_seconds", ""): 7200},
            "recorder: the disk is full in 2.0 h at the rate of the last hour",
        ),
        ({("recorder_disk_free_bytes", ""): 5e8}, "recorder: 0.5 GB are free on the disk"),
    ],
)
def test_numbers_that_foretell_a_loss_are_problems(numbers: dict[tuple[str, str], float], problem: str) -> None:
    """Before anything is lost: channels, buffers, and the disk."""
    fine, tape_files = Told("recorder", "u", numbers=NUMBERS), TapeFiles(0.0, "data")
    loader = [Told("loader")]
    assert report([fine], loader, tape_files, 9.0).problems == ()
    found = report([Told("recorder", "u", numbers={**NUMBERS, **numbers})], loader, tape_files, 9.0)

    assert (found.problems, found.healthy, found.exit_code) == ((problem,), False, 1)


def test_one_of_two_that_does_not_answer_is_a_problem() -> None:
    """The other one is judged and shown all the same."""
    loader = Told("loader", "http://127.0.0.1:2", "Connection refused")
    found = report([recorder_told()], [loader], TapeFiles(0.0, "data"), 9.0)

    assert found.problems == ("loader: does not answer at http://127.0.0.1:2: Connection refused",)
    assert (found.exit_code, found.loader, found.recorder is None) == (1, None, False)


def test_a_rate_is_of_one_run_and_of_the_time_in_which_was_counted() -> None:
    """Two looks; none after a restart; by the flushes' own clock where it agrees with that of the looks."""
    name, clock = "recorder_messages_total", "recorder_last_flush_timestamp_seconds"
    looks = [recorder_told(0.0, **{name: 100.0, clock: 50.0}), recorder_told(2.4, **{name: 500.0, clock: 52.0})]
    assert per_second(looks, name, clock=clock) == 200.0
    assert per_second(looks, name) == pytest.approx(400 / 2.4)
    assert per_second(looks[:1], name) is None
    assert per_second([recorder_told(0.0, **{name: 9.0}), recorder_told(1.0)], name) is None
    again = recorder_told(4.0, **{name: 7.0, "process_start_time_seconds": 6.0})
    assert per_second([*looks, again], name) is None
    stalled = recorder_told(60.0, **{name: 500.0, clock: 52.0})
    assert per_second([*looks, stalled], name, clock=clock) == pytest.approx(400 / 60)


def test_a_gap_counts_once_in_its_newest_state() -> None:
    """However many rows tell of it, in whatever order, and however often one is seen."""
    rows = [
        ("a", 1, "disconnect", "healed"), ("a", 0, "disconnect", "open"), ("b", 0, "disconnect", "open"),
        ("c", 0, "stopped", "open"), ("b", 0, "disconnect", "open"), ("c", 1, "stopped", "lost"),
    ]  # fmt: skip

    assert count_gaps(rows) == {"disconnect": {"healed": 1, "open": 1}, "stopped": {"lost": 1}}


def test_damage_among_the_gap_rows_is_said(programs: Programs, tmp_path: Path) -> None:
    """What cannot be counted is named, not left out in silence."""
    root = tmp_path / "tape"
    exchange, url = programs.simulate("--instruments", 5, "--rate", 50)
    programs.record(url, root).stop()
    exchange.kill()
    now_s = time.time()
    looker = Looker(DataDir(root))
    before = looker.look(now_s)
    for path in (root / "data_gaps").rglob("*.arrow"):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    after = Looker(DataDir(root)).look(now_s)

    assert (before.gaps_today["stopped"]["open"] >= 1, before.unreadable) == (True, ())
    assert after.unreadable
    assert all("damaged; run make doctor" in why for why in after.unreadable)


def test_lines_fit_and_say_what_does_not() -> None:
    """Cut to width and height."""
    lines = [Line("x" * 50), Line("second"), Line("third")]

    assert fit(lines, width=80, height=3) == lines
    assert [line.text for line in fit(lines, width=30, height=2)] == [
        "x" * 29 + "…",
        "… 2 lines more: enlarge the t…",
    ]
    assert all(len(line.text) <= 1 for line in fit(lines, width=1, height=1))


def test_a_layout_of_80_columns_holds_all_of_a_busy_recorder() -> None:
    """With numbers as large as they get."""
    numbers = {
        **NUMBERS,
        ("recorder_rows_written_total", "eth_option_instruments"): 999_999_999.0,
        ("recorder_unflushed_rows", "eth_option_instruments"): 200_000.0,
        ("recorder_buffer_limit_rows", "eth_option_instruments"): 999_999.0,
        ("recorder_messages_total", ""): 10_000.0,
        ("recorder_disk_left_seconds", ""): 9e6,
        ("recorder_connections", ""): 10.0,
        ("recorder_open_connections", ""): 10.0,
        ("recorder_reconnects_total", ""): 1000.0,
    }
    looks = [Told("recorder", "http://127.0.0.1:9101", at_s=at_s, numbers=numbers) for at_s in (0.0, 9.0)]
    found = report(looks, [Told("loader")], TapeFiles(0.0, "/a/very/long/path" * 9, disk_free_bytes=9 * 10**12), 9.0)

    assert [line.text for line in lay_out(found, width=80) if len(line.text) > 80] == []


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-5, "0.0 s"), (9.94, "9.9 s"), (12, "12 s"), (119.6, "2 min"), (7199, "2 h"), (86400 * 3, "3 days")],
)
def test_a_duration_has_the_unit_that_suits_it(seconds: float, text: str) -> None:
    """Seconds, minutes, hours, or days."""
    assert duration(seconds) == text
