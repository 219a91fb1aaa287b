"""What the programs tell of themselves while they run: metrics, and whether they are alive and do their work."""

import json
import os
import socket
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from recorder.metrics import LOOP_HANGS_AFTER_S, Metrics
from recorder.record import Recorder
from recorder.runtime.data_dir import DataDir
from recorder.runtime.logging import get_logger
from recorder.runtime.notify import Notify
from recorder.settings import RecorderSettings
from recorder.tape_state import TapeState
from tests.fix_postgres import quotes, record
from tests.fix_programs import Program, Programs, until

Numbers = dict[tuple[str, str], float]  # by name and label


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def get(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as exc:
        return exc.code, exc.read().decode()
    except OSError:
        return 0, ""


def numbers(port: int) -> Numbers:
    _, text = get(port, "/metrics")
    return {
        (sample.name, next(iter(sample.labels.values()), "")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def recording(programs: Programs, url: str, root: Path, port: int, **environment: str) -> Program:
    return programs.start(
        "recorder", "record", "--deribit-ws-url", url, "--data-dir", root, "--metrics-port", port,
        "--segment-max-age-sec", 1, **environment,
    )  # fmt: skip


def test_a_recorder_tells_what_it_does(programs: Programs, tmp_path: Path) -> None:
    """What came, what is durable, what is granted; alive at once, and ready when ticks come."""
    exchange, url = programs.simulate("--instruments", 20, "--rate", 200)
    port = free_port()
    recorder = recording(programs, url, tmp_path / "tape", port)
    until(lambda: get(port, "/readyz")[0] == 200, "readiness")
    until(lambda: numbers(port).get(("recorder_segments_sealed_total", "eth_option_quotes"), 0) >= 1, "a segment")
    found = numbers(port)

    assert json.loads(get(port, "/healthz")[1]) == {"loop": "ok", "disk": "ok"}
    assert found["recorder_messages_total", ""] > 0
    assert found["recorder_rows_written_total", "eth_option_quotes"] > 0
    assert found["recorder_channels_granted", ""] == found["recorder_channels_asked", ""] >= 40
    assert found["recorder_open_connections", ""] == found["recorder_connections", ""] == 1
    assert found["recorder_fsync_duration_seconds_count", ""] >= 1
    assert found["recorder_buffer_peak_rows", "eth_option_quotes"] > 0
    assert get(port, "/nothing")[0] == 404
    exchange.kill()
    until(lambda: get(port, "/readyz")[0] == 503, "that the loss of the exchange is told")
    status, told = get(port, "/readyz")
    assert (status, json.loads(told)["exchange"]) == (503, "no connection is open")
    assert get(port, "/healthz")[0] == 200, "an exchange that is away is no reason to restart anything"
    assert numbers(port)["recorder_gaps_total", "disconnect"] >= 1
    assert recorder.stop() == 0


def test_a_recorder_is_alive_before_it_has_looked_at_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless its loop does not begin to turn; what is outside of it makes it unready at most."""
    metrics = Metrics(tmp_path)
    assert metrics.alive() == {"loop": "", "disk": ""}
    assert metrics.ready() == {"loop": "", "disk": "", "exchange": "not looked at yet"}
    later_s = time.monotonic() + LOOP_HANGS_AFTER_S + 1
    monkeypatch.setattr(time, "monotonic", lambda: later_s)

    assert metrics.alive() == {"loop": "did not turn for 31 s", "disk": ""}


def test_a_state_that_takes_long_to_read_is_no_loop_that_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recorder of a long tape is alive from its first answer on."""
    began_s = time.monotonic()

    def slow(*arguments: Any) -> TapeState:
        monkeypatch.setattr(time, "monotonic", lambda: began_s + LOOP_HANGS_AFTER_S + 1)
        return TapeState(*arguments)

    monkeypatch.setattr("recorder.record.TapeState", slow)
    recorder = Recorder(RecorderSettings(data_dir=str(tmp_path)), DataDir(tmp_path), "test", get_logger("test"))

    assert recorder.metrics.alive() == {"loop": "", "disk": ""}


def test_no_metric_has_a_label_for_an_instrument(programs: Programs, tmp_path: Path) -> None:
    """There are a thousand of them, and other ones every day."""
    _, url = programs.simulate("--instruments", 20, "--rate", 200)
    port = free_port()
    recorder = recording(programs, url, tmp_path / "tape", port)
    until(lambda: get(port, "/readyz")[0] == 200, "readiness")

    assert "ETH-" not in get(port, "/metrics")[1]
    assert recorder.stop() == 0


def test_a_port_that_is_taken_is_said_in_a_line(programs: Programs, tmp_path: Path) -> None:
    """Exit code 1, so that whoever keeps it running tries again: no setting need be wrong. Nothing is recorded."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        recorder = recording(programs, "ws://127.0.0.1:9/", tmp_path / "tape", port)
        assert recorder.process.wait(30) == 1
    assert f"error: cannot listen on 127.0.0.1 port {port}" in recorder.err


@pytest.mark.parametrize("host", ["192.0.2.7", "not-there-yet.invalid"])
@pytest.mark.parametrize("program", ["recorder", "loader"])
def test_an_address_that_is_not_there_yet_is_no_wrong_setting(
    programs: Programs, tmp_path: Path, program: str, host: str
) -> None:
    """A VPN's comes up after the boot: exit code 1, which a unit starts again, and not 2, which keeps it down."""
    port = free_port()
    if program == "recorder":
        started = recording(programs, "ws://127.0.0.1:9/", tmp_path / "tape", port, METRICS_HOST=host)
    else:
        started = programs.start(
            "loader", "load", "--data-dir", tmp_path / "tape", "--loader-metrics-port", port, "--archive-url", "off",
            METRICS_HOST=host, DATABASE_URL=f"postgresql://nobody@127.0.0.1:{free_port()}/none",
        )  # fmt: skip

    assert started.wait() == 1
    assert f"error: cannot listen on {host} port {port}: " in started.err
    assert started.err.endswith("; wait until it is there, or correct METRICS_HOST\n")


def test_a_loader_tells_what_waits_while_its_database_is_away(
    programs: Programs, tmp_path: Path, database: str
) -> None:
    """How much, and since when; a database that is away is no reason to restart anything."""
    root = tmp_path / "tape"
    record(root, [quotes(50)])
    port = free_port()
    loader = programs.start(
        "loader", "load", "--data-dir", root, "--loader-metrics-port", port, "--archive-url", "off",
        DATABASE_URL=database,
    )  # fmt: skip
    until(lambda: numbers(port).get(("loader_segments_loaded_total", "")) == 1, "the segment")
    found = numbers(port)
    assert found["loader_rows_loaded_total", ""] == 50
    assert found["loader_backlog_segments", ""] == 0
    assert found["loader_database_up", ""] == 1
    assert get(port, "/readyz")[0] == 200
    assert loader.stop() == 0
    away = free_port()
    loader = programs.start(
        "loader", "load", "--data-dir", root, "--loader-metrics-port", away, "--archive-url", "off",
        DATABASE_URL=f"postgresql://nobody@127.0.0.1:{free_port()}/none",
    )  # fmt: skip
    until(lambda: numbers(away).get(("loader_backlog_segments", "")) == 1, "what waits")
    found = numbers(away)
    assert found["loader_database_up", ""] == 0
    assert found["loader_oldest_pending_segment_timestamp_seconds", ""] == pytest.approx(1_780_000_000, abs=1e6)
    assert get(away, "/healthz")[0] == 200
    status, told = get(away, "/readyz")
    assert status == 503
    assert json.loads(told)["backlog"].startswith("the oldest segment is of")
    assert loader.stop() == 0


@pytest.mark.parametrize("abstract", [False, True])
def test_systemd_is_told_of_start_life_and_stop(
    programs: Programs, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, *, abstract: bool
) -> None:
    """READY once the directory is locked, though no exchange answers; WATCHDOG while nothing hangs; STOPPING."""
    name = f"@ticktape-{os.getpid()}" if abstract else str(tmp_path_factory.mktemp("n") / "s")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind("\0" + name[1:] if abstract else name)
        systemd.settimeout(30)
        recorder = programs.start(
            "recorder", "record", "--deribit-ws-url", "ws://127.0.0.1:9/", "--data-dir", tmp_path / "tape",
            NOTIFY_SOCKET=name,
        )  # fmt: skip
        assert systemd.recv(100) == b"READY=1"
        assert (tmp_path / "tape" / "lock").exists()
        assert systemd.recv(100) == b"WATCHDOG=1"
        assert systemd.recv(100) == b"WATCHDOG=1"
        assert recorder.stop() == 0
        told = {systemd.recv(100)}
        while b"STOPPING=1" not in told:
            told.add(systemd.recv(100))


def test_a_socket_that_is_gone_stops_nothing(tmp_path: Path) -> None:
    """Who cannot say that it runs goes on running."""
    Notify({"NOTIFY_SOCKET": str(tmp_path / "none")}).ready()
    Notify({}).ready()
