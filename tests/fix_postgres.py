"""A real PostgreSQL for tests: the one of TICKTAPE_TEST_DSN, else an embedded one; and tapes to load into it."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import psycopg
import pyarrow as pa
import pytest
from psycopg import sql

from loader import follow
from loader.errors import DatabaseAway
from loader.load import Tally
from loader.postgres.database import Database
from loader.postgres.embedded import Embedded
from loader.prepare import Wanted
from loader.sender import Target
from loader.settings import LoaderSettings
from loader.stop import Stop
from recorder.runtime.data_dir import DataDir
from recorder.runtime.settings import KNOWN_NAMES
from recorder.segments.layout import sealed_files
from recorder.segments.reader import read_segment
from recorder.segments.schemas import SCHEMAS, rows_to_batch, stream_kind
from recorder.segments.tape import Tape

ROOT = Path(__file__).parent.parent
START_US = 1_780_000_000_000_000  # 2026-05-28 20:26:40 UTC
SOON_S = 30.0  # how long a test waits for what must come


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """Yield the URL of a server on which tests make their own databases."""
    given = os.environ.get("TICKTAPE_TEST_DSN")
    if given:
        yield given
        return
    home = Path(tempfile.mkdtemp(prefix="ticktape-postgres-"))
    server = Embedded(home / "postgres")
    try:
        yield server.ensure_running(Stop())
    finally:
        server.close()
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture
def place() -> Iterator[Path]:
    """Yield an empty folder for a test that starts a server of its own.

    Not pytest's: as root PostgreSQL runs as somebody else, and each run of pytest closes its folders to others.
    """
    folder = Path(tempfile.mkdtemp(prefix="ticktape-test-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def database(postgres: str) -> Iterator[str]:
    """Yield the URL of a fresh database."""
    yield from fresh_database(postgres)


@pytest.fixture
def timescale_database() -> Iterator[str]:
    """Yield the URL of a fresh database on a server that has TimescaleDB."""
    given = os.environ.get("TICKTAPE_TIMESCALE_DSN")
    if not given:
        pytest.skip("NOT TESTED ON TIMESCALEDB: set TICKTAPE_TIMESCALE_DSN to a server that has it")
    yield from fresh_database(given)


@pytest.fixture(params=["plain", "timescale"])
def any_database(request: pytest.FixtureRequest) -> str:
    """Return a fresh database of each kind of server in turn."""
    url: str = request.getfixturevalue("database" if request.param == "plain" else "timescale_database")
    return url


def fresh_database(server: str) -> Iterator[str]:
    """Make a database, yield its URL, drop it."""
    name = f"t_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    try:
        yield urlsplit(server)._replace(path=f"/{name}").geturl()
    finally:
        with psycopg.connect(server, autocommit=True) as connection:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def query(url: str, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
    """Run one statement in a connection of its own; return its rows, if it has any."""
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(statement.encode(), parameters)
        return cursor.fetchall() if cursor.description else []


def wait_for(what: Callable[[], Any], *, within_s: float = SOON_S) -> Any:
    """Poll until `what` returns something true; return it."""
    deadline = time.monotonic() + within_s
    failure: Exception | None = None
    while time.monotonic() < deadline:
        try:
            if found := what():
                return found
        except (psycopg.Error, DatabaseAway) as exc:
            failure = exc  # the server may be away, or the table not made yet
        time.sleep(0.05)
    raise AssertionError(f"not within {within_s} s: {what}") from failure


# Tapes


def make_rows(stream: str, count: int, *, start_us: int = START_US, instruments: int = 3) -> list[tuple[Any, ...]]:
    """Return rows of a stream whose values tell each other apart, with nulls among them."""
    schema = SCHEMAS[stream_kind(stream) or ""]
    rows = []
    for number in range(count):
        at_us = start_us + number * 1000
        row = [at_us - 50_000, f"ETH-{number % instruments}", at_us]
        row += [
            None if (number + place) % 7 == 0 else _value(schema[place].type, number)
            for place in range(3, len(schema))
        ]
        rows.append(tuple(row))
    return rows


def _value(kind: pa.DataType, number: int) -> Any:
    if pa.types.is_timestamp(kind):
        return START_US + number
    if pa.types.is_string(kind):
        return f"text {number} é"
    if pa.types.is_boolean(kind):
        return number % 2 == 0
    return number if pa.types.is_integer(kind) else number / 8


def record(root: Path, rounds: Sequence[dict[str, list[tuple[Any, ...]]]], *, recorder: str = "test") -> list[Path]:
    """Write each round as one sealed segment a stream; return the new files."""
    data_dir = DataDir(root)
    tape = Tape(data_dir, recorder=recorder, software="test/1", segment_max_age_s=1e9, segment_max_bytes=10**12)
    made: list[Path] = []
    for rows in rounds:
        batches = {stream: [rows_to_batch(SCHEMAS[stream_kind(stream) or ""], part)] for stream, part in rows.items()}
        assert tape.write_round(batches, now_us=START_US).failure is None
        made += [sealed.path for sealed in tape.seal_all().sealed]
    return made


def quotes(
    count: int, *, start_us: int = START_US, stream: str = "eth_option_quotes"
) -> dict[str, list[tuple[Any, ...]]]:
    """Return a round of quotes."""
    return {stream: make_rows(stream, count, start_us=start_us)}


def tape_rows(root: Path, stream: str) -> list[tuple[Any, ...]]:
    """Return the rows of a stream's good segments, sorted; each segment_id once."""
    found, seen = [], set()
    for path in sealed_files(DataDir(root), stream):
        checked = read_segment(path)
        if checked.sealed and checked.identity and checked.identity.segment_id not in seen:
            seen.add(checked.identity.segment_id)
            found += [tuple(row.values()) for row in checked.table.to_pylist()]
    return sorted(found, key=repr)


def database_rows(url: str, stream: str) -> list[tuple[Any, ...]]:
    """Return the rows of a stream's table without the ledger's number, sorted."""
    with psycopg.connect(url) as connection:
        connection.execute("SET TIME ZONE 'UTC'")
        rows = connection.execute(sql.SQL("SELECT * FROM {}").format(sql.Identifier(stream))).fetchall()
    return sorted((row[:-1] for row in rows), key=lambda row: repr(_plain(row)))


def same_rows(root: Path, url: str, stream: str) -> bool:
    """Compare a stream on the tape with its table, row for row."""
    tape = sorted((_plain(row) for row in tape_rows(root, stream)), key=repr)
    return tape == sorted((_plain(row) for row in database_rows(url, stream)), key=repr)


def _plain(row: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(value.timestamp() if hasattr(value, "timestamp") else value for value in row)


# Loaders


def load_once(
    root: Path, url: str, *, stop: Stop | None = None, wanted: Wanted | None = None, target: Target | None = None
) -> Tally:
    """Load what is there, in this process."""
    stop = stop or Stop()
    database = Database(LoaderSettings(data_dir=str(root), database_url=url), stop)
    return follow.load(database, DataDir(root), stop=stop, once=True, wanted=wanted, target=target)


class Process:
    """A loader as a program of its own."""

    def __init__(self, *arguments: str, root: Path, url: str = "") -> None:
        environment = {name: value for name, value in os.environ.items() if name not in KNOWN_NAMES}
        environment |= {"PYTHONPATH": str(ROOT), "DATA_DIR": str(root), "LOG_FORMAT": "json"}
        if url:
            environment["DATABASE_URL"] = url
        root.mkdir(parents=True, exist_ok=True)
        self.popen = subprocess.Popen(
            [sys.executable, "-m", "loader", *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=root.parent,
        )  # fmt: skip
        self.out = self.err = ""
        # Read all the time: a full pipe would stop the loader.
        self._reader = threading.Thread(target=self._read_err, daemon=True)
        self._reader.start()

    def _read_err(self) -> None:
        assert self.popen.stderr is not None
        for line in self.popen.stderr:
            self.err += line

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        if self.popen.poll() is None:
            self.popen.kill()
            self.wait()

    def wait(self) -> int:
        """Wait for its end; return its exit code."""
        assert self.popen.stdout is not None
        self.out += self.popen.stdout.read()
        code = self.popen.wait(SOON_S)
        self._reader.join(SOON_S)
        assert self.popen.stderr is not None
        self.popen.stdout.close()
        self.popen.stderr.close()
        return code

    def signal(self, *signals: signal.Signals) -> int:
        """Send signals, one after another; return the exit code."""
        for number in signals:
            self.popen.send_signal(number)
        return self.wait()


def run_loader(*arguments: str, root: Path, url: str = "") -> Process:
    """Run a loader to its end; `popen.returncode`, `out`, and `err` tell what it did."""
    process = Process(*arguments, root=root, url=url)
    process.wait()
    return process


class Follower:
    """A loader that follows a tape in a thread of this process; stops at the end of the block."""

    def __init__(self, root: Path, url: str) -> None:
        self.stop = Stop()
        self.tally: Tally | None = None
        self._root, self._url = root, url
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        settings = LoaderSettings(data_dir=str(self._root), database_url=self._url)
        self.tally = follow.load(Database(settings, self.stop), DataDir(self._root), stop=self.stop)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.stop.request()
        self._thread.join(SOON_S)
        assert not self._thread.is_alive()
