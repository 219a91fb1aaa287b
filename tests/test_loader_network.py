"""The way to the database cut, reset, stalled, slow, or half-open: noticed, and each row there once in the end."""

import functools
import threading
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest

from loader import follow, stop
from loader.postgres import patience, session
from loader.postgres.patience import Look, gone
from recorder.runtime.backoff import Backoff
from tests.faults.database import Message, Wire, differences, once, socket_of, through
from tests.faults.proxy import Proxy
from tests.fix_postgres import START_US, Follower, load_once, query, quotes, record, wait_for

Note = Callable[[str, object], None]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loaders that try again soon."""
    monkeypatch.setattr(follow, "Backoff", functools.partial(Backoff, first_s=0.05, most_s=0.3))


@pytest.fixture
def silences(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The sessions that patience cut; it is short in these tests."""
    cut: list[object] = []

    def shut_down(session: "psycopg.Connection[object]") -> None:
        cut.append(session)
        stop.shut_down(session)

    monkeypatch.setattr("loader.postgres.patience.shut_down", shut_down)
    monkeypatch.setattr(patience, "SILENCE_S", 0.4)
    monkeypatch.setattr(patience, "ANSWER_S", 1.0)
    return cut


def tape(root: Path) -> None:
    """Record some segments, each a few messages of a COPY."""
    record(root, [quotes(2000, start_us=START_US + number * 10_000_000) for number in range(3)])


def in_second_copy(message: Message) -> bool:
    return message.text == "COPY data" and message.copied_bytes > 130_000


def test_verbs_of_a_network_in_the_middle_of_a_copy(tmp_path: Path, database: str, record_property: Note) -> None:
    """Cut, reset, refused for a while, stalled for a while, slow: every row is there once in the end."""
    tape(tmp_path)

    def for_a_while(verb: Callable[[], None]) -> None:
        verb()
        threading.Timer(0.5, proxy.heal).start()

    for verb in ("cut", "reset", "refuse", "stall", "slow"):
        wire = Wire()
        with Proxy(socket_of(database), wire) as proxy:
            faults: dict[str, Callable[[], None]] = {
                "cut": proxy.cut,
                "reset": proxy.reset,
                "refuse": functools.partial(for_a_while, proxy.refuse),
                "stall": functools.partial(for_a_while, proxy.stall),
                "slow": functools.partial(proxy.slow, 400_000),
            }
            wire.plan = once(in_second_copy, faults[verb])
            url = through(proxy, database)
            tally = load_once(tmp_path, url)
            assert (proxy.accepted > 1) == (verb in ("cut", "reset", "refuse")), verb
        assert (differences(tmp_path, database), tally.refused) == ([], {}), verb
        query(database, "DROP SCHEMA public CASCADE")
        query(database, "CREATE SCHEMA public")
    record_property("fault", "11")
    record_property("cases", len(faults))


def test_a_server_that_takes_and_never_answers_is_noticed(
    tmp_path: Path, database: str, silences: list[object], record_property: Note
) -> None:
    """Whether it falls silent in a COPY or at its COMMIT: no second connection is answered, and the first is cut."""
    tape(tmp_path)
    for chosen in (in_second_copy, lambda message: message.commits_rows):
        silences.clear()
        wire = Wire()
        with Proxy(socket_of(database), wire) as proxy:
            wire.plan = once(chosen, proxy.deaf)
            with Follower(tmp_path, through(proxy, database) + "?connect_timeout=2"):
                wait_for(lambda: silences)
                proxy.heal()
                wait_for(lambda: differences(tmp_path, database) == [])
        query(database, "DROP SCHEMA public CASCADE")
        query(database, "CREATE SCHEMA public")
    record_property("fault", "11")
    record_property("cases", 2)


def test_a_connection_on_which_nothing_arrives_is_noticed(
    tmp_path: Path, database: str, silences: list[object], record_property: Note
) -> None:
    """Something between takes what is sent and loses it: each side waits for the other, and the server says so."""
    tape(tmp_path)

    def lose(message: Message, do: Callable[[], object]) -> None:
        if in_second_copy(message) and not silences:
            message.line.lost = True
        else:
            do()

    with Proxy(socket_of(database), Wire(lose)) as proxy, Follower(tmp_path, through(proxy, database)):
        wait_for(lambda: differences(tmp_path, database) == [])

    assert len(silences) == 1
    record_property("fault", "11")
    record_property("cases", 1)


def test_a_server_that_is_busy_is_waited_for(
    tmp_path: Path, database: str, silences: list[object], record_property: Note, capsys: pytest.CaptureFixture[str]
) -> None:
    """A COPY that waits for somebody's lock is told again and again, and never cut."""
    tape(tmp_path)
    load_once(tmp_path, database)
    record(tmp_path, [quotes(10)], recorder="later")
    waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE 'COPY%%'"
    told = ""
    with psycopg.connect(database) as connection:
        connection.execute("LOCK TABLE eth_option_quotes")
        with Follower(tmp_path, database):
            wait_for(lambda: query(database, waits) == [(1,)])
            while told.count("database.slow") < 3:
                told += capsys.readouterr().out
                time.sleep(0.05)
            connection.rollback()
            wait_for(lambda: differences(tmp_path, database) == [])

    assert silences == []
    assert "waits_for=relation" in told
    record_property("fault", "11")
    record_property("cases", 1)


def test_a_loader_that_slept_in_a_transaction_goes_on(
    tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch, record_property: Note
) -> None:
    """The server ends a transaction in which nothing comes for a minute (others wait on its key); it is done anew."""
    monkeypatch.setitem(session.SETTINGS, "idle_in_transaction_session_timeout", "1s")
    tape(tmp_path)
    asleep = "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in%%' AND datname = current_database()"
    wire = Wire(
        once(
            lambda message: message.text.startswith("COPY "),
            lambda: wait_for(lambda: query(database, asleep) == [(0,)]),
        )
    )
    with Proxy(socket_of(database), wire) as proxy:
        load_once(tmp_path, through(proxy, database))
        assert proxy.accepted > 1

    assert differences(tmp_path, database) == []
    record_property("fault", "10")
    record_property("cases", 1)


def test_a_session_sets_its_own_limits(database: str) -> None:
    """Whatever the database's defaults: no limit on a COPY, and one on a loader that is gone in a transaction."""
    query(database, f"ALTER DATABASE {urlsplit(database).path[1:]} SET statement_timeout = 1000")
    with psycopg.connect(database, autocommit=True) as connection:
        assert connection.execute("SHOW statement_timeout").fetchone() == ("1s",)
        session.set_up_session(connection)
        assert connection.execute("SHOW statement_timeout").fetchone() == ("0",)
        assert connection.execute("SHOW idle_in_transaction_session_timeout").fetchone() == ("1min",)


def test_a_session_is_lost_when_each_side_waits_for_the_other() -> None:
    """Busy, waiting for a lock, or taking bytes at whatever speed is not lost; unknown to the server is."""
    waits = Look("12:00", "Client", "ClientRead", 100)
    assert gone(waits, None)
    assert gone(waits, waits)
    assert not gone(None, waits)
    assert not gone(waits, Look("12:00", "Client", "ClientRead", 200))
    assert not gone(waits, Look("12:01", "Client", "ClientRead", 100))
    assert not gone(Look("12:00", "Lock", "relation", None), Look("12:00", "Lock", "relation", None))
    assert not gone(Look("12:00", None, None, None), Look("12:00", None, None, None))
