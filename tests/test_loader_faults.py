"""A database killed, away, full, read-only, restored, or changed: each row once when it is over, or a clear stop."""

import functools
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from loader import follow
from loader.postgres.embedded import _binary
from recorder.runtime.backoff import Backoff
from tests.faults.database import Message, Wire, commit_reply_lost, differences, once, socket_of, through
from tests.faults.proxy import Proxy
from tests.faults.server import Server, enlarge, own_server, tiny_disk
from tests.fix_postgres import START_US, Follower, Process, load_once, make_rows, query, quotes, record, wait_for

Note = Callable[[str, object], None]
QUOTES = "eth_option_quotes"


@pytest.fixture(scope="module")
def module_server() -> Iterator[Server]:
    yield from own_server(Path(tempfile.mkdtemp(prefix="ticktape-faults-")))


@pytest.fixture
def server(module_server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """A server that runs, with an empty database, and loaders that try again soon."""
    module_server.start()
    module_server.empty()
    be_quick(monkeypatch)
    return module_server


def be_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "Backoff", functools.partial(Backoff, first_s=0.05, most_s=0.3))
    monkeypatch.setattr(follow, "RESCAN_S", 0.5)


def tape(root: Path, segments: int = 2, rows: int = 3000, *, recorder: str = "test") -> None:
    """Record gaps, and quotes of some segments; each is several messages of a COPY."""
    rounds = [quotes(rows, start_us=START_US + number * 10_000_000) for number in range(segments)]
    record(root, [{"data_gaps": make_rows("data_gaps", 3)}, *rounds], recorder=recorder)


def exact(root: Path, url: str) -> bool:
    return differences(root, url) == []


# Killed


def commits(message: Message) -> bool:
    return message.commits_rows


def copies(message: Message) -> bool:
    return message.text.startswith("COPY ") and QUOTES in message.text


def ends_copy(message: Message) -> bool:
    return message.text == "COPY done"


def in_copy(message: Message) -> bool:
    return message.text == "COPY data" and message.copied_bytes > 200_000


PLACES = {
    "before COPY": (copies, False),
    "in COPY": (in_copy, True),
    "after COPY": (ends_copy, True),
    "at COMMIT": (commits, False),
    "at its reply": (commits, True),
}
WAYS = {
    "backend": None,
    "fast": signal.SIGINT,
    "immediate": signal.SIGQUIT,
    "power": signal.SIGKILL,
}


@pytest.mark.parametrize("way", WAYS)
def test_a_database_killed_at_each_step_of_a_load(
    server: Server, tmp_path: Path, way: str, record_property: Note
) -> None:
    """Before, in, and after a COPY, at its COMMIT, and before the answer to that: every row is there once."""
    tape(tmp_path, segments=1)
    how = WAYS[way]

    def fault() -> None:
        if how is None:
            server.kill_backends()
        else:
            server.stop(how)
            server.start()
        raise ConnectionAbortedError("whatever is sent now finds nobody")

    for place, (chosen, sent) in PLACES.items():
        server.empty()
        wire = Wire(once(chosen, fault, sent=sent))
        with Proxy(socket_of(server.url), wire) as proxy:
            tally = load_once(tmp_path, through(proxy, server.url))
            assert proxy.accepted > 1, (way, place)
        assert (differences(tmp_path, server.url), tally.refused) == ([], {}), (way, place)
    record_property("fault", "8")
    record_property("cases", len(PLACES))


def test_commit_replies_lost_again_and_again(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property: Note
) -> None:
    """Each of many COMMITs is sent on and its answer lost: the ledger settles every one of them."""
    monkeypatch.setattr("loader.prepare.GROUP_SEGMENTS", 1)
    tape(tmp_path, segments=6, rows=50)
    with Proxy(socket_of(server.url), Wire(commit_reply_lost(5))) as proxy:
        tally = load_once(tmp_path, through(proxy, server.url))
        assert proxy.accepted >= 6  # one for each loss, and those that load side by side

    assert exact(tmp_path, server.url)
    # Of what came through no answer was heard: it is found, and not counted as loaded by this run.
    assert tally.rows == 2 * 50
    record_property("fault", "8")
    record_property("cases", 5)


# Away, full, read-only


def test_a_database_that_was_away_for_a_day_is_caught_up_with(
    server: Server, tmp_path: Path, record_property: Note
) -> None:
    """Down while many segments come: once it is back all of them are loaded, by the same loader, once."""
    server.stop(signal.SIGINT)
    with Follower(tmp_path, server.url) as follower:
        tape(tmp_path, segments=60, rows=5)
        server.start()
        wait_for(lambda: exact(tmp_path, server.url))
        tape(tmp_path, segments=1, rows=5, recorder="later")
        wait_for(lambda: exact(tmp_path, server.url))
    assert follower.tally is not None
    assert follower.tally.segments == 63
    record_property("fault", "9")
    record_property("cases", 1)


def fill_by_trigger(server: Server) -> Callable[[], object]:
    """Let the server say that its disk is full; return what frees it."""
    query(
        server.url,
        "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS "
        "'BEGIN RAISE EXCEPTION SQLSTATE ''53100'' USING MESSAGE = ''could not extend file: no space left''; END';"
        f"CREATE TRIGGER full_disk BEFORE INSERT ON {QUOTES} EXECUTE FUNCTION full_disk()",
    )
    return lambda: query(server.url, f"DROP TRIGGER full_disk ON {QUOTES}")


def test_a_database_that_says_its_disk_is_full_is_waited_for(
    server: Server, tmp_path: Path, record_property: Note
) -> None:
    """SQLSTATE 53100 is told with its remedy, and tried again until there is room."""
    tape(tmp_path)
    load_once(tmp_path, server.url)
    free = fill_by_trigger(server)
    tape(tmp_path, recorder="later")
    with Process("load", root=tmp_path, url=server.url) as process:
        wait_for(lambda: "free some disk space on the database server" in process.err)
        assert differences(tmp_path, server.url, whole=False) == []
        free()
        wait_for(lambda: exact(tmp_path, server.url))
        assert process.signal(signal.SIGTERM) == 0
    record_property("fault", "9")
    record_property("cases", 1)


def test_a_database_whose_disk_is_full_is_waited_for(server: Server, tmp_path: Path, record_property: Note) -> None:
    """Its tables lie on a disk that is full: what is there is whole segments; with room the rest comes, once."""
    tape(tmp_path, segments=6)
    disk = server.home.parent / "disk"
    with tiny_disk(disk, 8):
        (disk / "tables").mkdir()
        shutil.chown(disk / "tables", user=server.home.stat().st_uid)
        (disk / "ballast").write_bytes(bytes(7 << 20))
        with psycopg.connect(server.url, autocommit=True) as connection:
            connection.execute(f"CREATE TABLESPACE tiny LOCATION '{disk / 'tables'}'".encode())
            connection.execute("ALTER DATABASE crypto_data SET default_tablespace = tiny")
        try:
            with Process("load", root=tmp_path, url=server.url) as process:
                wait_for(lambda: "No space left on device" in process.err)
                wait_for(lambda: "free some disk space on the database server" in process.err)
                assert differences(tmp_path, server.url, whole=False) == []
                (disk / "ballast").unlink()
                wait_for(lambda: exact(tmp_path, server.url))
                assert process.signal(signal.SIGTERM) == 0
        finally:
            query(server.url, "ALTER DATABASE crypto_data RESET default_tablespace")
            server.empty()
            query(server.url, "DROP TABLESPACE tiny")
    record_property("fault", "9")
    record_property("cases", 1)


@pytest.fixture
def other_server(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    be_quick(monkeypatch)
    yield from own_server(place / "home")


def test_a_database_whose_log_has_no_room_is_waited_for(
    other_server: Server, place: Path, tmp_path: Path, record_property: Note
) -> None:
    """Its write-ahead log lies on a full disk: it refuses, or panics and stays away, until there is room."""
    tape(tmp_path, segments=6)
    server, log = other_server, other_server.cluster / "pg_wal"
    server.stop(signal.SIGINT)
    used_mb = sum(path.stat().st_size for path in log.iterdir()) // 2**20
    with tiny_disk(place / "disk", used_mb + 2):
        shutil.copytree(log, place / "disk" / "wal")
        for path in (place / "disk" / "wal", *(place / "disk" / "wal").rglob("*")):
            shutil.chown(path, user=server.home.stat().st_uid)
        shutil.rmtree(log)
        log.symlink_to(place / "disk" / "wal")
        server.start()
        # A segment of the log has 16 MB: leave one, so that the load needs the next, for which there is no room.
        query(
            server.url,
            "SELECT pg_logical_emit_message(false, '', repeat('x', 1 << 20)) FROM generate_series(1, 14 -"
            " (SELECT (pg_current_wal_lsn() - '0/0') %% (16 << 20) / (1 << 20))::int)",
        )
        with Process("load", root=tmp_path, url=server.url) as process:
            wait_for(lambda: "database.away" in process.err)
            enlarge(place / "disk", 300)
            server.start()
            assert differences(tmp_path, server.url, whole=False) == []
            wait_for(lambda: exact(tmp_path, server.url))
            assert process.signal(signal.SIGTERM) == 0
        server.close()
    record_property("fault", "9")
    record_property("cases", 1)


def test_a_read_only_failover_is_waited_for(server: Server, tmp_path: Path, record_property: Note) -> None:
    """A server that takes no writes any more (25006) is told with the remedy; when it does again all goes on."""
    tape(tmp_path)
    with Process("load", root=tmp_path, url=server.url) as process:
        wait_for(lambda: exact(tmp_path, server.url))
        query(server.url, "ALTER SYSTEM SET default_transaction_read_only = on")
        query(server.url, "SELECT pg_reload_conf()")
        tape(tmp_path, recorder="later")
        wait_for(lambda: "point DATABASE_URL to a server that may be written" in process.err)
        assert differences(tmp_path, server.url, whole=False) == []
        query(server.url, "ALTER SYSTEM RESET default_transaction_read_only")
        query(server.url, "SELECT pg_reload_conf()")
        wait_for(lambda: exact(tmp_path, server.url))
        assert process.signal(signal.SIGTERM) == 0
    record_property("fault", "9")
    record_property("cases", 1)


# Restored


def run(*command: str, **more: str) -> None:
    subprocess.run([_binary(command[0]), *command[1:]], check=True, capture_output=True, text=True, **more)  # type: ignore[call-overload]


def dump(server: Server, file: Path) -> None:
    run("pg_dump", "--clean", "--if-exists", "--file", str(file), server.url)


@pytest.mark.parametrize("way", ["in place", "another server", "rows alone"])
def test_what_an_older_backup_lost_is_loaded_again(
    server: Server, tmp_path: Path, way: str, record_property: Note
) -> None:
    """Whether it is put back under a running loader in one transaction, or as the whole cluster, or without the
    place of the ledger's sequence: the loader notices by itself, and every row is there once.
    """  # noqa: D205
    root, backup = tmp_path / "tape", tmp_path / "backup"
    tape(root)
    with Follower(root, server.url):
        wait_for(lambda: exact(root, server.url))
        if way == "another server":
            server.stop(signal.SIGINT)
            shutil.copytree(server.cluster, backup)
            server.start()
        else:
            dump(server, backup)
        tape(root, recorder="later")
        wait_for(lambda: exact(root, server.url))
        if way == "another server":
            server.stop(signal.SIGINT)
            shutil.copytree(backup, server.cluster, dirs_exist_ok=True)
            server.start()
        else:
            if way == "rows alone":
                lines = [line for line in backup.read_text().splitlines() if "pg_catalog.setval(" not in line]
                backup.write_text("\n".join(lines))
            run("psql", "--quiet", "--single-transaction", "--set=ON_ERROR_STOP=1", "--file", str(backup), server.url)
        wait_for(lambda: exact(root, server.url))
    record_property("fault", "9")
    record_property("cases", 1)


# Changed


def test_a_column_of_another_type_ends_the_loader(server: Server, tmp_path: Path, record_property: Note) -> None:
    """Also one as wide as before, whose bytes PostgreSQL would take for what they are not: nothing is loaded."""
    changes = {
        "change_id": "double precision",  # eight bytes, as before
        "instrument": "jsonb USING '1'",
    }
    rows = f"SELECT count(*) FROM {QUOTES}"
    for column, kind in changes.items():
        server.empty()
        root = tmp_path / column
        tape(root)
        with Process("load", root=root, url=server.url) as process:
            wait_for(lambda: exact(root, server.url))  # noqa: B023 - called within its turn
            query(server.url, "DROP VIEW eth_option_spreads_1m")  # it would keep anybody from that
            query(server.url, f"ALTER TABLE {QUOTES} ALTER COLUMN {column} TYPE {kind}")
            tape(root, recorder="later")
            wait_for(lambda: process.popen.poll() is not None or query(server.url, rows) != [(6000,)])
            assert query(server.url, rows) == [(6000,)]
            assert process.wait() == 1
        errors = [line for line in process.err.splitlines() if not line.startswith("{")]
        assert len(errors) == 1
        assert f"error: the column {column} of the table {QUOTES} is {kind.split(' USING')[0]}, not" in errors[0]
    record_property("fault", "9")
    record_property("cases", len(changes))


def test_a_column_added_or_dropped_while_loading(server: Server, tmp_path: Path, record_property: Note) -> None:
    """Added, and nullable: it goes on and every row is there. Dropped: a clear stop. Put back: it goes on."""
    root = tmp_path / "tape"
    tape(root, segments=1)
    with Process("load", root=root, url=server.url) as process:
        wait_for(lambda: exact(root, server.url))
        query(server.url, f"ALTER TABLE {QUOTES} ADD COLUMN note text")
        tape(root, segments=1, recorder="later")
        wait_for(lambda: query(server.url, f"SELECT count(*) FROM {QUOTES}") == [(6000,)])
        query(server.url, f"ALTER TABLE {QUOTES} DROP COLUMN note")
        assert exact(root, server.url)
        query(server.url, f"ALTER TABLE {QUOTES} DROP COLUMN segment")
        tape(root, segments=1, recorder="third")
        assert process.wait() == 1
    assert f"error: the table {QUOTES} has no column segment; put it back: ALTER TABLE" in process.err
    query(server.url, f"ALTER TABLE {QUOTES} ADD COLUMN segment integer")
    load_once(root, server.url)
    assert query(server.url, f"SELECT count(*) FROM {QUOTES} WHERE segment IS NOT NULL") == [(3000,)]
    record_property("fault", "9")
    record_property("cases", 2)
