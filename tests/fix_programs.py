"""Fixtures that run the real programs as processes, and end them with the test."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent

# Everything a test waits for gets this long; slow machines stretch it.
PATIENCE_S = 30.0 * float(os.environ.get("TICKTAPE_TESTS_TIMEOUT_FACTOR", "1"))


def until(condition: Callable[[], Any], what: str, *, patience_s: float = PATIENCE_S, every_s: float = 0.05) -> Any:
    """Poll until something is true, and return it."""
    deadline_s = time.monotonic() + patience_s
    while time.monotonic() < deadline_s:
        if result := condition():
            return result
        time.sleep(every_s)
    raise AssertionError(f"waited {patience_s:.0f} s in vain for {what}")


class Program:
    """One running program; its output goes to files, so that it can never block on a pipe."""

    def __init__(self, arguments: list[str], folder: Path, environment: dict[str, str]) -> None:
        number = len(list(folder.glob("*.out")))
        self._out = folder / f"{number}-{arguments[0]}-{arguments[1]}.out"
        self._err = self._out.with_suffix(".err")
        with self._out.open("w") as out, self._err.open("w") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *arguments],
                stdout=out, stderr=err, stdin=subprocess.DEVNULL, cwd=folder,
                env={**os.environ, "PYTHONPATH": str(REPOSITORY), "LOG_FORMAT": "json", **environment},
            )  # fmt: skip

    @property
    def out(self) -> str:
        return self._out.read_text()

    @property
    def err(self) -> str:
        return self._err.read_text()

    def events(self, name: str) -> list[dict[str, Any]]:
        """The log lines of one event."""
        lines = [json.loads(line) for line in self.err.splitlines() if line.startswith("{")]
        return [line for line in lines if line.get("event") == name]

    def until_event(self, name: str, count: int = 1, *, patience_s: float = PATIENCE_S) -> dict[str, Any]:
        """Wait for an event to have been logged `count` times."""
        until(
            lambda: len(self.events(name)) >= count or self.process.poll() is not None,
            f"{count} times {name} in the log of {self._err}",
            patience_s=patience_s,
        )
        events = self.events(name)
        assert len(events) >= count, f"ended with {self.process.poll()}: {self.err}"
        return events[count - 1]

    def stop(self) -> int:
        """SIGTERM, and its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.wait()

    def kill(self) -> None:
        """SIGKILL: what a crash is."""
        self.process.kill()
        self.process.wait()

    def wait(self) -> int:
        return self.process.wait(PATIENCE_S)


class Programs:
    """Starts programs in the test's folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._started: list[Program] = []

    def start(self, *arguments: str | Path | float, **environment: str) -> Program:
        """Start `python -m <arguments>`; keyword arguments are its environment."""
        program = Program([str(argument) for argument in arguments], self._folder, environment)
        self._started.append(program)
        return program

    def run(self, *arguments: str | Path | float, **environment: str) -> Program:
        """Start a program and wait for its end."""
        program = self.start(*arguments, **environment)
        program.wait()
        return program

    def simulate(self, *arguments: str | Path | float) -> tuple[Program, str]:
        """Start a simulated exchange on a free port; return it and its WebSocket URL."""
        program = self.start("recorder", "simulate", "--port", "0", *arguments)
        line = until(lambda: program.out if "\n" in program.out else "", "the simulator's URL")
        return program, line.split()[-1]

    def record(
        self, url: str, data_dir: Path, *arguments: str | Path | float, hour_s: float | None = None
    ) -> Program:
        """Start a recorder and wait until it is subscribed; `hour_s` is how long an hour of ranks lasts."""
        program = self.start(
            *(("recorder",) if hour_s is None else ("tests.fast_hours", hour_s)),
            "record",
            "--deribit-ws-url",
            url,
            "--data-dir",
            data_dir,
            "--recorder-name",
            "test",
            *arguments,
        )
        program.until_event("subscribed")
        return program

    def end_all(self) -> None:
        for program in self._started:
            if program.process.poll() is None:
                program.kill()


@pytest.fixture
def programs(tmp_path: Path) -> Iterator[Programs]:
    folder = tmp_path / "programs"
    folder.mkdir()
    running = Programs(folder)
    yield running
    running.end_all()
