"""The loader's command line, and the embedded PostgreSQL that it runs by itself."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from loader.cli import main
from loader.errors import DatabaseAway, DatabaseUnfit
from loader.postgres import embedded
from loader.postgres.embedded import Embedded
from loader.stop import Stop
from tests.fix_postgres import ROOT, Process, query, quotes, record, run_loader, wait_for
from tests.fix_programs import until

QUOTES = "SELECT count(*) FROM eth_option_quotes"


def test_help_and_version_import_nothing_heavy() -> None:
    """`--help` is quick: no database driver, no Arrow."""
    program = "import sys, loader.cli; print({'psycopg', 'pyarrow', 'watchfiles'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize("command", ["load", "replay", "audit"])
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Which names the settings, their variables and their defaults."""
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "--database-url" in shown
    assert "(env: DATA_DIR; default: ./data)" in shown


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["lod"],
        ["load", "--no-such"],
        ["load", "--onc"],
        ["replay", "--from", "noon"],
        ["load", "--log-level", "LOUD"],
    ],
)
def test_wrong_usage_is_exit_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """With what is wrong on stderr, and nothing on stdout."""
    try:
        code: object = main(arguments)
    except SystemExit as end:
        code = end.code
    captured = capsys.readouterr()
    assert (code, captured.out) == (2, "")
    assert "error: " in captured.err


def test_a_range_that_ends_before_it_begins_is_wrong_usage(tmp_path: Path) -> None:
    """Both ends are named, in one line."""
    process = run_loader("replay", "--from", "2026-11-02", "--to", "2026-11-01", root=tmp_path / "tape")
    assert (process.popen.returncode, process.err.count("\n")) == (2, 1)
    assert process.err.startswith("error: --from 2026-11-02T00:00:00+00:00 is not before --to 2026-11-01")


def test_without_a_url_an_embedded_server_is_loaded_and_stopped(place: Path) -> None:
    """`--once` on a fresh machine: started, loaded, stopped; the audit starts it again and finds all equal."""
    root = place / "tape"
    record(root, [quotes(10)])
    loaded = run_loader("load", "--once", root=root)
    assert loaded.popen.returncode == 0
    assert "segment.loaded" in loaded.err
    assert not (root / "postgres" / "cluster" / "postmaster.pid").exists()
    assert run_loader("audit", root=root).popen.returncode == 0


def test_the_server_of_a_killed_loader_is_taken_over(place: Path) -> None:
    """A kill -9 leaves a server behind; the next loader uses it, and stops it in the end."""
    root = place / "tape"
    record(root, [quotes(10)])
    killed = Process("load", root=root)
    wait_for(lambda: "segment.loaded" in killed.err)
    killed.popen.kill()
    killed.wait()
    pid = int((root / "postgres" / "cluster" / "postmaster.pid").read_text().split()[0])
    os.kill(pid, 0)
    after = run_loader("load", "--once", root=root)
    assert (after.popen.returncode, "embedded.started" in after.err, "embedded.stopped" in after.err) == (
        0,
        False,
        True,
    )
    assert not (root / "postgres" / "cluster" / "postmaster.pid").exists()


def test_a_second_loader_uses_the_server_of_the_first(place: Path) -> None:
    """Who started it stops it; the other goes on, by starting it again."""
    root = place / "tape"
    record(root, [quotes(10)])
    first = Process("load", root=root)
    wait_for(lambda: "segment.loaded" in first.err)
    second = Process("load", root=root)
    wait_for(lambda: "database.ready" in second.err)
    assert "embedded.started" not in second.err
    assert first.signal(signal.SIGTERM) == 0
    assert "embedded.stopped" in first.err
    record(root, [quotes(10)], recorder="other")
    wait_for(lambda: "segment.loaded" in second.err)
    assert second.signal(signal.SIGTERM) == 0
    assert "embedded.stopped" in second.err


def test_the_embedded_server_survives_a_pid_file_of_another_program(place: Path) -> None:
    """After a kill -9 and a reboot its process id may be anybody's."""
    server = Embedded(place / "postgres")
    server.ensure_running(Stop())
    home = place / "postgres"
    pid = (home / "cluster" / "postmaster.pid").read_text().split()[0]
    os.kill(int(pid), signal.SIGKILL)
    for lock in (home / "cluster" / "postmaster.pid", home / ".s.PGSQL.5432.lock"):
        lock.write_text(lock.read_text().replace(pid, str(os.getpid()), 1))
    try:
        url = wait_for(lambda: server.ensure_running(Stop()))
        assert query(url, "SELECT 1") == [(1,)]
    finally:
        server.close()


def test_a_server_that_was_killed_is_waited_for_when_it_starts_again(place: Path) -> None:
    """What it left says that it is ready; the one that is only starting is not believed to be."""
    server = Embedded(place / "postgres")
    query(server.ensure_running(Stop()), "SELECT 1")
    pid_file = place / "postgres" / "cluster" / "postmaster.pid"
    os.kill(int(pid_file.read_text().split()[0]), signal.SIGKILL)
    assert "ready" in pid_file.read_text()

    def start() -> str:
        try:
            return server.ensure_running(Stop())
        except DatabaseAway:
            return ""  # the memory of the one before is still held

    try:
        assert query(until(start, "the server"), "SELECT 1") == [(1,)]
    finally:
        server.close()


def test_a_server_without_a_socket_yet_is_away(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another loader, killed since, has just started it: it is there, and cannot be connected to."""
    cluster = place / "postgres" / "cluster"
    cluster.mkdir(parents=True)
    (cluster / "postmaster.pid").write_text(f"{os.getpid()}\n{cluster}\n1780000000\n5432\n\n")
    monkeypatch.setattr(embedded, "_command_of", lambda _pid: f"postgres -D {cluster}")
    with pytest.raises(DatabaseAway, match="starting or ending"):
        Embedded(place / "postgres").ensure_running(Stop())


def test_a_long_path_has_a_short_socket(place: Path) -> None:
    """A unix socket's path is at most 107 bytes; a data directory's may be longer. And it may need quoting."""
    server = Embedded(place / ("long name %" * 12) / "postgres")
    try:
        url = server.ensure_running(Stop())
        assert query(url, "SHOW listen_addresses") == [("",)]
        socket_dir = Path(query(url, "SHOW unix_socket_directories")[0][0])
    finally:
        server.close()
    assert not socket_dir.exists()


def test_half_a_cluster_is_made_anew(place: Path) -> None:
    """A crash while the cluster was made leaves nothing that looks like one."""
    (place / "postgres" / "cluster.new" / "base").mkdir(parents=True)
    (place / "postgres" / "cluster.new" / "PG_VERSION").write_text("18\n")
    server = Embedded(place / "postgres")
    try:
        assert query(server.ensure_running(Stop()), "SELECT 1") == [(1,)]
    finally:
        server.close()


def test_a_cluster_of_another_version_is_refused(place: Path) -> None:
    """The tape can fill a new one; that is the remedy."""
    cluster = place / "postgres" / "cluster"
    cluster.mkdir(parents=True)
    (cluster / "PG_VERSION").write_text("12\n")
    with pytest.raises(DatabaseUnfit, match=r"was made by PostgreSQL 12.*move that folder away"):
        Embedded(place / "postgres").ensure_running(Stop())


def test_a_server_that_does_not_start_says_why(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last line of its log, in one line."""
    monkeypatch.setitem(embedded._OPTIONS, "max_wal_size", "nonsense")  # noqa: SLF001
    root = place / "tape"
    with pytest.raises(DatabaseAway, match=r"ended while starting: .*max_wal_size"):
        Embedded(root / "postgres").ensure_running(Stop())
