"""A database that is loaded from the Parquet archive alone is that which was loaded from the tape."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from loader import follow
from loader.archive.read import open_archive
from loader.archive.store import open_store
from loader.load import Tally
from loader.postgres.database import Database
from loader.settings import LoaderSettings
from loader.stop import Stop
from recorder.runtime.data_dir import DataDir
from tests.fix_archive import DAY_US, archive, flip_a_bit, manifests, parts, salvage_of
from tests.fix_postgres import (
    START_US,
    database_rows,
    fresh_database,
    load_once,
    make_rows,
    query,
    record,
    run_loader,
)

STREAMS = ("eth_option_quotes", "eth_option_trades", "data_gaps")
LEDGER = """
SELECT segment_id::text, stream, recorder, name, rows, first_received_at, last_received_at, crc32, salvages::text,
    size_bytes, mtime FROM loaded_segments ORDER BY segment_id
"""


@pytest.fixture
def tape(tmp_path: Path) -> Path:
    """Return a tape of two days, whose segments of the first begin and end within seconds."""
    root = tmp_path / "tape"
    for start_us in (START_US, START_US + 2_000_000, START_US + DAY_US):
        record(root, [{stream: make_rows(stream, 120, start_us=start_us) for stream in STREAMS}])
    return root


def without_segments(root: Path) -> Path:
    """Take the segments away, and leave the archive."""
    for stream in STREAMS:
        shutil.rmtree(root / stream, ignore_errors=True)
    return root


def all_rows(url: str) -> dict[str, list[tuple[Any, ...]]]:
    return {stream: database_rows(url, stream) for stream in STREAMS}


@pytest.fixture
def empty(postgres: str) -> Iterator[str]:
    """Yield the URL of a second fresh database."""
    yield from fresh_database(postgres)


def test_a_replay_from_the_archive_alone_equals_the_tape(tape: Path, database: str, empty: str) -> None:
    """Same rows, same ledger; repeated it changes nothing, and a half-filled database gets what it lacks."""
    load_once(tape, database)
    archive(tape)
    rows, ledger = all_rows(database), query(database, LEDGER)
    without_segments(tape)
    first_day = run_loader("replay", "--to", "2026-05-29", root=tape, url=empty)
    assert first_day.out.startswith("loaded 6 segments (720 rows)"), first_day.out + first_day.err
    rest = run_loader("replay", root=tape, url=empty)
    again = run_loader("replay", root=tape, url=empty)
    a_second = run_loader("replay", "--to", "2026-05-28T20:26:41", root=tape, url=empty)

    assert rest.out == "loaded 3 segments (360 rows), skipped 6 segments already there, refused 0\n"
    assert again.out == "loaded 0 segments (0 rows), skipped 9 segments already there, refused 0\n"
    assert a_second.out == "loaded 0 segments (0 rows), skipped 3 segments already there, refused 0\n"
    assert all_rows(empty) == rows
    assert query(empty, LEDGER) == ledger
    counts = f"SELECT segment, count(*) FROM {STREAMS[0]} GROUP BY 1 HAVING count(*) <> 120"
    assert query(empty, counts) == []


def test_tape_and_archive_together_load_each_segment_once(tape: Path, database: str) -> None:
    """What is in both comes from the tape; what was pruned from the archive."""
    archive(tape)
    shutil.rmtree(tape / STREAMS[1])
    replay = run_loader("replay", root=tape, url=database)

    assert replay.out == "loaded 9 segments (1,080 rows), skipped 6 segments already there, refused 0\n"
    assert query(database, f"SELECT count(*) FROM {STREAMS[1]}") == [(360,)]


def test_a_schema_for_some_instruments_is_filled_from_the_archive(tape: Path, database: str) -> None:
    """Rows of other instruments, and other streams, are left out."""
    archive(tape)
    without_segments(tape)
    chosen = ["--into-schema", "part", "--instruments", "ETH-2", "--streams", "trades"]
    replay = run_loader("replay", *chosen, root=tape, url=database)

    assert replay.out.startswith("loaded 3 segments (120 rows)"), replay.out + replay.err
    assert query(database, f"SELECT instrument, count(*) FROM part.{STREAMS[1]} GROUP BY 1") == [("ETH-2", 120)]


class Noted(Tally):
    """A tally that keeps every state of how far a replay is."""

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name in ("done_bytes", "rows"):
            self.__dict__.setdefault("states", []).append((self.done_bytes, self.listed_bytes))


@pytest.mark.parametrize("pruned", [STREAMS, STREAMS[1:2]])
def test_progress_is_told_of_tape_and_archive_together(tape: Path, database: str, pruned: tuple[str, ...]) -> None:
    """Before the first row is loaded all that will be is known; never is more done, and in the end all of it."""
    archive(tape)
    size = sum(segment.size_bytes for part in manifests(tape) for segment in part.segments)
    for stream in pruned:
        shutil.rmtree(tape / stream)
    settings, stop, tally = LoaderSettings(data_dir=str(tape), database_url=database), Stop(), Noted()
    follow.load(
        Database(settings, stop), DataDir(tape), stop=stop, once=True, tally=tally, archive=open_archive(settings)
    )
    begun = [state for state in tally.__dict__["states"] if state[0]]

    assert {listed for _, listed in begun} == {size}
    assert [done for done, _ in begun] == sorted(done for done, _ in begun)
    assert begun[-1] == (size, size)


def test_a_damaged_part_is_named_and_the_others_are_loaded(tape: Path, database: str) -> None:
    """Nothing of a part is believed whose bytes are not those that were written."""
    archive(tape)
    without_segments(tape)
    damaged = parts(tape)[1]
    flip_a_bit(damaged)
    replay = run_loader("replay", root=tape, url=database)

    assert replay.popen.returncode == 6
    assert f"{damaged.relative_to(DataDir(tape).archive)}" in replay.err
    assert query(database, "SELECT sum(rows) FROM loaded_segments") == [(1080 - 120,)]


def test_what_was_salvaged_is_not_loaded_beside_the_whole(tape: Path, database: str) -> None:
    """The archive has the salvage, the database the segment that was damaged later: rows stay as they are."""
    load_once(tape, database)
    rows = all_rows(database)
    whole = min((tape / STREAMS[0]).rglob("*.arrow"))
    salvage_of(whole, whole.with_name(whole.name.replace("000001", "000009")))
    whole.unlink()
    archive(tape)
    without_segments(tape)
    assert any(segment.salvages for part in manifests(tape) for segment in part.segments)
    replay = run_loader("replay", root=tape, url=database)

    assert replay.popen.returncode == 0, replay.err
    assert all_rows(database) == rows


def test_a_whole_segment_of_the_archive_is_loaded_instead_of_its_salvage(tape: Path, database: str) -> None:
    """It rotted on the tape after it was archived; audit then finds nothing amiss, and nothing more is to be done."""
    load_once(tape, database)
    rows = all_rows(database)
    query(database, "DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    archive(tape)
    rotten = min((tape / STREAMS[0]).rglob("*.arrow"))
    salvage_of(rotten, rotten.with_name(rotten.name.replace("000001", "000009")))
    rotten.unlink()
    replay = run_loader("replay", root=tape, url=database)

    assert replay.out == "loaded 9 segments (1,080 rows), skipped 9 segments already there, refused 0\n"
    assert replay.popen.returncode == 0, replay.err
    assert all_rows(database) == rows
    assert run_loader("audit", root=tape, url=database).popen.returncode == 0
    again = run_loader("replay", root=tape, url=database)
    assert again.out == "loaded 0 segments (0 rows), skipped 18 segments already there, refused 0\n"


def test_a_salvage_is_loaded_where_the_archive_fails(tape: Path, database: str) -> None:
    """The part that holds the whole is damaged, too: what the tape has of it comes in."""
    archive(tape)
    rotten = min((tape / STREAMS[0]).rglob("*.arrow"))
    salvage_of(rotten, rotten.with_name(rotten.name.replace("000001", "000009")))
    rotten.unlink()
    flip_a_bit(next(part for part in parts(tape) if STREAMS[0] in str(part)))
    replay = run_loader("replay", root=tape, url=database)

    assert replay.popen.returncode == 6
    assert replay.out.startswith("loaded 9 segments (1,020 rows)"), replay.out + replay.err
    assert query(database, f"SELECT count(*) FROM {STREAMS[0]}") == [(300,)]


def test_a_replay_from_s3(tape: Path, bucket: LoaderSettings, database: str) -> None:
    """The same from an S3 server, through one that refuses what B2 refuses."""
    store = open_store(bucket, lambda: None)
    assert store is not None
    archive(tape, store=store)
    without_segments(tape)
    replay = run_loader("replay", "--archive-url", bucket.archive_url or "", root=tape, url=database)

    assert replay.out.startswith("loaded 9 segments (1,080 rows)"), replay.out + replay.err


def test_a_dry_run_counts_what_only_the_archive_has(tape: Path, database: str) -> None:
    """It tells what the same command does without it: beside the tape, from the archive alone, once all is there."""
    archive(tape)
    size = sum(segment.size_bytes for part in manifests(tape) for segment in part.segments)
    shutil.rmtree(tape / STREAMS[1])

    def told(*more: str) -> str:
        return run_loader("replay", "--dry-run", *more, root=tape, url=database).out

    assert told().endswith("would load 9 segments; 0 segments already there\n")
    without_segments(tape)
    assert told().endswith("would load 9 segments; 0 segments already there\n")
    assert sum(float(line.split()[-2]) for line in told().splitlines()[:-1]) == pytest.approx(size / 1e6, abs=0.2)
    assert told("--streams", "trades", "--from", "2026-05-29").endswith(
        "would load 1 segment; 0 segments already there\n"
    )
    run_loader("replay", "--to", "2026-05-29", root=tape, url=database)
    assert told().endswith("would load 3 segments; 6 segments already there\n")
    run_loader("replay", root=tape, url=database)
    assert told().endswith("would load 0 segments; 9 segments already there\n")
