"""A PostgreSQL of a test's own, to be killed, stopped, filled, and put back to what it was."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from loader.errors import DatabaseAway
from loader.postgres.embedded import Embedded
from loader.stop import Stop
from tests.fix_programs import PATIENCE_S, until


class Server:
    """One embedded server in one folder."""

    def __init__(self, home: Path) -> None:
        self.home = home / "postgres"
        self.cluster = self.home / "cluster"
        self._embedded = Embedded(self.home)
        self.url = self.start()

    def start(self) -> str:
        """Start it, or see that it runs; return its URL."""
        # Right after a kill the children of the one before may still hold its memory.
        deadline_s = time.monotonic() + PATIENCE_S
        while True:
            try:
                return self._embedded.ensure_running(Stop())
            except (DatabaseAway, psycopg.Error):
                if time.monotonic() > deadline_s:
                    raise
                time.sleep(0.05)

    def close(self) -> None:
        """Stop it for good."""
        self._embedded.close()

    @property
    def pid(self) -> int:
        return int((self.cluster / "postmaster.pid").read_text().split()[0])

    def stop(self, how: signal.Signals) -> None:
        """End it: SIGINT fast, SIGQUIT at once and without a checkpoint, SIGKILL as a machine's power would."""
        pid = self.pid
        os.kill(pid, how)
        until(lambda: not _runs(pid), "the server's end")

    def kill_backends(self) -> None:
        """SIGKILL the processes that serve loaders; the server then throws everybody out and recovers."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            found = connection.execute(
                "SELECT pid FROM pg_stat_activity WHERE application_name = 'ticktape-loader'"
            ).fetchall()
        for (pid,) in found:
            os.kill(pid, signal.SIGKILL)

    def empty(self) -> None:
        """Make its database as new."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            connection.execute("DROP SCHEMA public CASCADE")
            connection.execute("CREATE SCHEMA public")


def own_server(home: Path) -> Iterator[Server]:
    """Yield a server, and end it."""
    server = Server(home)
    try:
        yield server
    finally:
        server.close()
        shutil.rmtree(home, ignore_errors=True)


@contextmanager
def tiny_disk(folder: Path, size_mb: int) -> Iterator[None]:
    """Mount a small disk in memory; skips the test where that is not allowed."""
    folder.mkdir(parents=True)
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size_mb}m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip("only root may mount a disk that is full")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def enlarge(folder: Path, size_mb: int) -> None:
    """Give a tiny disk more room."""
    subprocess.run(["mount", "-o", f"remount,size={size_mb}m", str(folder)], check=True)


def _runs(pid: int) -> bool:
    try:
        # A child of this process that has ended remains, as a zombie, until it is asked about.
        return os.waitpid(pid, os.WNOHANG) == (0, 0)
    except ChildProcessError:
        return Path(f"/proc/{pid}").exists()
