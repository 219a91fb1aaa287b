"""Whatever happens to loaders and to the files they read: each segment is loaded once, and none is passed over."""

import errno
import itertools
import os
import random
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest

from loader import inbox, prepare
from loader.audit import Audit
from loader.postgres.database import Database
from loader.settings import LoaderSettings
from loader.stop import Stop
from recorder.runtime.data_dir import DataDir
from recorder.segments.check import Checked
from recorder.segments.encode import encode_segment
from recorder.segments.reader import read_segment
from recorder.segments.recovery import recover
from tests.faults.database import Wire, differences, once, socket_of, through
from tests.faults.power import Disk
from tests.faults.proxy import Proxy
from tests.faults.system import Call, System, just_do, standing_in
from tests.fix_postgres import (
    START_US,
    Follower,
    Process,
    load_once,
    make_rows,
    query,
    quotes,
    record,
    wait_for,
)
from tests.segment_tools import NOON_US, tape_in
from tests.segment_tools import quotes as batches

Note = Callable[[str, object], None]
QUOTES = "eth_option_quotes"


def later(seconds: int, rows: int = 50) -> dict[str, list[tuple[Any, ...]]]:
    """Return a round of quotes that begins later."""
    return quotes(rows, start_us=START_US + seconds * 1_000_000)


def refused(url: str) -> dict[str, str]:
    return dict(query(url, "SELECT name, reason FROM refused_segments"))


# Loaders and copies


def test_two_loaders_copies_and_twins(tmp_path: Path, database: str, record_property: Note) -> None:
    """Two loaders at once, of a tape with copies under other names and dates, and with equal rows under two ids."""
    root = tmp_path / "tape"
    paths = record(root, [later(second, 200) for second in range(15)])
    twins = record(root, [later(0, 200), later(0, 200)], recorder="twin")
    elsewhere = root / QUOTES / "date=2020-01-01"
    elsewhere.mkdir()
    for path in paths[:5]:
        shutil.copyfile(path, path.with_name(path.name.replace("-test-", "-copy-")))
        shutil.copy2(path, elsewhere / path.name)

    racers = [Process("load", "--once", root=root, url=database) for _ in range(2)]
    assert [racer.wait() for racer in racers] == [0, 0]
    assert sum(racer.err.count("segment.loaded") for racer in racers) == len(paths) + len(twins)
    assert differences(root, database) == []
    assert query(database, f"SELECT count(*) FROM {QUOTES}") == [(17 * 200,)]
    assert load_once(root, database).skipped == 27
    record_property("fault", "10")
    record_property("cases", 4)


def test_a_deadlock_is_tried_again(tmp_path: Path, database: str, record_property: Note) -> None:
    """The server rolls a loader back in favour of another transaction (40P01): it is done again."""
    record(tmp_path, [later(0)])
    load_once(tmp_path, database)
    record(tmp_path, [later(1)], recorder="later")
    waits = (
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE 'DELETE FROM refused%%'"
    )
    with psycopg.connect(database) as other:
        other.execute("SET deadlock_timeout = '1min'")  # so that it is the loader who is rolled back
        held = threading.Event()

        def hold() -> None:
            other.execute("LOCK TABLE refused_segments IN SHARE MODE")
            held.set()

        wire = Wire(once(lambda message: message.text == "COPY done", hold))
        with Proxy(socket_of(database), wire) as proxy, Follower(tmp_path, through(proxy, database)) as follower:
            wait_for(lambda: held.is_set() and query(database, waits) == [(1,)])
            other.execute(f"LOCK TABLE {QUOTES}".encode())
            other.rollback()
            wait_for(lambda: differences(tmp_path, database) == [])
            assert (wire.asked.count("COPY done"), proxy.accepted) == (2, 1)
    assert follower.tally is not None
    assert (follower.tally.segments, follower.tally.refused) == (1, {})
    record_property("fault", "10")
    record_property("cases", 1)


def test_a_segment_id_that_was_used_twice_is_named(tmp_path: Path, database: str, record_property: Note) -> None:
    """A good file with other rows under a loaded id is listed; one that was damaged since it was loaded is not."""
    (path,) = record(tmp_path, [later(0)])
    load_once(tmp_path, database)
    checked = read_segment(path)
    assert checked.schema is not None
    assert checked.identity is not None
    more = [group.batch for group in checked.groups] * 2
    path.with_name("more.arrow").write_bytes(encode_segment(checked.schema, checked.identity, more))
    path.with_name("damaged.arrow").write_bytes(path.read_bytes()[:-30])
    tally = load_once(tmp_path, database)

    assert {name.rpartition("/")[2]: why for name, why in refused(database).items()} == {
        "more.arrow": "it has 100 rows, but was loaded with 50: its segment_id was used twice"
    }
    assert (len(tally.refused), query(database, f"SELECT count(*) FROM {QUOTES}")) == (1, [(50,)])
    record_property("fault", "10")
    record_property("cases", 3)


# Files


@pytest.mark.parametrize("what", ["cut short", "empty", "replaced", "removed"])
def test_a_segment_that_changes_while_it_is_read(
    tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch, what: str, record_property: Note
) -> None:
    """Between its listing and its reading: what is loaded is whole, the others go on, and put back it is loaded."""
    first, _ = record(tmp_path, [later(0), later(1)])
    (other,) = record(tmp_path / "other", [later(2)])
    good = first.read_bytes()
    change: dict[str, Callable[[], object]] = {
        "cut short": lambda: os.truncate(first, len(good) // 2),
        "empty": lambda: os.truncate(first, 0),
        "replaced": lambda: other.replace(first),
        "removed": first.unlink,
    }

    def changed_before(path: Path) -> Checked:
        if path == first and first.exists() and first.read_bytes() == good:
            change[what]()
        return read_segment(path)

    monkeypatch.setattr(prepare, "read_segment", changed_before)
    tally = load_once(tmp_path, database)
    assert tally.segments == (2 if what == "replaced" else 1)
    assert len(tally.refused) == (1 if what in ("cut short", "empty") else 0)
    if what in ("replaced", "removed"):
        assert differences(tmp_path, database, whole=False) == []
    monkeypatch.undo()
    if what == "replaced":
        first.rename(first.with_name("its-own.arrow"))
    first.write_bytes(good)
    load_once(tmp_path, database)

    assert differences(tmp_path, database) == []
    assert refused(database) == {}
    record_property("fault", "10")
    record_property("cases", 1)


def test_a_folder_that_cannot_be_looked_into_is_named(
    tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch, record_property: Note
) -> None:
    """A date, a stream, or all: listed with the reason, and not called equal; the others go on, and later it."""
    record(tmp_path, [later(0), {"eth_option_trades": make_rows("eth_option_trades", 5)}])
    date = next((tmp_path / QUOTES).glob("date=*"))
    entries = inbox._entries  # noqa: SLF001 - root, who may run the tests, is never denied
    closed: set[Path] = set()

    def denied(folder: Path) -> "list[os.DirEntry[str]]":
        if folder in closed:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
        return entries(folder)

    monkeypatch.setattr(inbox, "_entries", denied)
    for folder, name in ((date, f"{QUOTES}/{date.name}/"), (tmp_path / QUOTES, f"{QUOTES}/"), (tmp_path, "./")):
        closed.add(folder)
        tally = load_once(tmp_path, database)
        assert tally.refused == {name: "cannot be looked into: Permission denied"}
        assert refused(database) == tally.refused
        stop = Stop()
        with Database(LoaderSettings(data_dir=str(tmp_path), database_url=database), stop).connect() as connection:
            found = list(Audit(connection, DataDir(tmp_path), stop=stop).findings())
        assert [finding.verdict for finding in found if finding.name == name] == ["unreadable"]
        closed.clear()
        load_once(tmp_path, database)
        assert refused(database) == {}
        assert differences(tmp_path, database) == []
    record_property("fault", "10")
    record_property("cases", 3)


def test_a_folder_that_opens_while_following_is_loaded(
    tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch, record_property: Note
) -> None:
    """Without a restart, and it is off the list then."""
    record(tmp_path, [later(0)])
    entries, closed = inbox._entries, threading.Event()  # noqa: SLF001
    closed.set()

    def denied(folder: Path) -> "list[os.DirEntry[str]]":
        if closed.is_set() and folder.name.startswith("date="):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
        return entries(folder)

    monkeypatch.setattr(inbox, "_entries", denied)
    monkeypatch.setattr("loader.follow.RESCAN_S", 0.3)
    with Follower(tmp_path, database):
        wait_for(lambda: len(refused(database)) == 1)
        closed.clear()
        wait_for(lambda: differences(tmp_path, database) == [])
        wait_for(lambda: refused(database) == {})
    record_property("fault", "10")
    record_property("cases", 1)


def test_a_row_that_has_no_form_is_refused_with_its_segment(
    tmp_path: Path, database: str, record_property: Note
) -> None:
    """A time that PostgreSQL cannot have makes its segment refused, and the others go on."""
    rows = make_rows(QUOTES, 5)
    record(tmp_path, [{QUOTES: [(-(2**63), *rows[0][1:]), *rows[1:]]}, later(1)])
    tally = load_once(tmp_path, database)

    assert (tally.segments, tally.rows) == (1, 50)
    assert next(iter(tally.refused.values())).startswith("its rows cannot be sent: ")
    record_property("fault", "10")
    record_property("cases", 1)


# Power


class PowerLost(BaseException):
    """Ends a program where it stands."""


def until_lost(
    system: System, at: Callable[[Call], bool], do: Callable[[], object], *, then: Callable[[], object]
) -> None:
    """Run to the first call that is chosen, which is not made: something else happens, and the program is no more."""

    def plan(call: Call, really: Callable[[], Any]) -> Any:
        if at(call):
            system.plan = just_do
            system.calls[-1] = replace(call, name="not made")
            then()
            raise PowerLost
        return really()

    system.plan = plan
    with standing_in(system), pytest.raises(PowerLost):
        do()


def record_two_flushes(data_dir: DataDir) -> None:
    tape = tape_in(data_dir)
    for turn in range(2):
        now_us = NOON_US + turn * 1_000_000
        rows = batches(20, start_us=now_us, first_change_id=1 + 20 * turn)
        assert tape.write_round(rows, now_us=now_us).failure is None
    tape.seal_all()


@pytest.mark.parametrize("sealed_by", ["the recorder", "a recovery"])
def test_power_lost_after_the_loader_took_a_segment_whose_name_was_not_safe(
    tmp_path: Path, database: str, sealed_by: str, record_property: Note
) -> None:
    """Between a segment's rename and its folder's fsync it is loaded: after the power loss the tape has it as loaded.

    A recovery seals what it reads, and after a mere crash that may be a flush that only memory held: had its name
    been lost, the next recovery would have sealed fewer rows under the same id.
    """
    data_dir = DataDir(tmp_path / "tape")
    data_dir.root.mkdir()
    system = System(keep_data=True, syncs=False)

    def after_rename(call: Call) -> bool:
        return call.name == "fsync_dir" and system.calls[-2].name == "rename"

    if sealed_by == "the recorder":
        until_lost(
            system,
            after_rename,
            lambda: record_two_flushes(data_dir),
            then=lambda: load_once(data_dir.root, database),
        )
    else:
        fsyncs = itertools.count()
        until_lost(
            system,
            # Its third is the second flush's: written, and not fsynced.
            lambda call: call.name == "fsync" and call.path.endswith(".open") and next(fsyncs) == 2,
            lambda: record_two_flushes(data_dir),
            then=lambda: None,
        )
        until_lost(system, after_rename, lambda: recover(data_dir), then=lambda: load_once(data_dir.root, database))
    assert query(database, f"SELECT count(*) FROM {QUOTES}") == [(40,)]

    cases = 30
    for seed in range(cases):
        after = tmp_path / str(seed)
        share = {0: 0.0, 1: 1.0}.get(seed, 0.5)
        Disk(data_dir.root, system.calls).after_power_loss(after, random.Random(seed), share=share)
        recover(DataDir(after))
        tally = load_once(after, database)

        assert (tally.segments, tally.refused, differences(after, database)) == (0, {}, []), seed
    record_property("fault", "7")
    record_property("cases", cases)
