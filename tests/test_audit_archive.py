"""What left the tape is proven by the archive: nothing that it holds is missing, or changed, without a word."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from loader.archive.read import Archive
from recorder.runtime.data_dir import DataDir
from recorder.segments.encode import encode_segment
from recorder.segments.layout import sealed_files, us_to_datetime
from recorder.segments.manifest import Manifest
from recorder.segments.reader import read_segment
from tests.fix_archive import DAY_US, archive, flip_a_bit, manifests, parts, salvage_of
from tests.fix_postgres import (
    START_US,
    Process,
    database_rows,
    load_once,
    make_rows,
    query,
    record,
    run_loader,
    wait_for,
)
from tests.test_loader_audit import audit

QUOTES, TRADES, GAPS = STREAMS = ("eth_option_quotes", "eth_option_trades", "data_gaps")
WARNING = '"segments": 3, "remedy": "run replay: no load brings them", "event": "archive.not_loaded"'


@pytest.fixture
def tape(tmp_path: Path) -> Path:
    """Return an archived tape of two days, a segment of each of three streams a day."""
    root = tmp_path / "tape"
    for start_us in (START_US, START_US + DAY_US):
        record(root, [{stream: make_rows(stream, 60, start_us=start_us) for stream in STREAMS}])
    archive(root)
    return root


def prune(root: Path, date: str = "*") -> None:
    """Take segments from the tape that the archive holds, as a prune does once they are old enough."""
    for stream in STREAMS:
        for folder in (root / stream).glob(f"date={date}"):
            shutil.rmtree(folder)


def verdicts(found: dict[str, Any]) -> list[tuple[str, str]]:
    return sorted((finding["stream"], finding["verdict"]) for finding in found["findings"])


def first_number(url: str) -> int:
    """Return the number of the oldest segment of quotes."""
    found = query(url, "SELECT segment FROM loaded_segments WHERE stream = %s ORDER BY name LIMIT 1", QUOTES)
    number: int = found[0][0]
    return number


def test_what_was_pruned_before_it_was_loaded_is_missing(tape: Path, database: str) -> None:
    """Load and status warn of it, audit says no; a replay brings it, and all three are content."""
    prune(tape, "2026-05-28")
    before = run_loader("status", root=tape, url=database)
    load = run_loader("load", "--once", root=tape, url=database)
    status = run_loader("status", root=tape, url=database)
    process = run_loader("audit", root=tape, url=database)

    assert load.popen.returncode == 0
    for told in (before, status):
        assert "archive    3 archived segments in neither the database nor the tape: run replay" in told.out
    assert WARNING in load.err
    assert process.popen.returncode == 1
    assert process.out.count("\nmissing: ") == 3
    assert process.out.count(": not in the database's ledger, but archived: run replay\n") == 3
    assert run_loader("replay", root=tape, url=database).out.startswith("loaded 3 segments (180 rows)")
    found = audit(tape, database)
    assert (found["equal"], found["findings"]) == (True, [])
    assert "not_loaded" not in run_loader("load", "--once", root=tape, url=database).err
    assert json.loads(run_loader("status", "--json", root=tape, url=database).out)["archived_only"] == 0


def test_a_loader_that_follows_warns_once_the_database_is_there(tape: Path, database: str) -> None:
    """It loads meanwhile, and stops as ever."""
    prune(tape, "2026-05-28")
    with Process("load", root=tape, url=database) as process:
        wait_for(lambda: WARNING in process.err)
        wait_for(lambda: query(database, "SELECT count(*) FROM loaded_segments") == [(3,)])
        process.popen.terminate()
        assert process.wait() == 0


def test_with_an_empty_database_everything_is_missing(tape: Path, database: str) -> None:
    """What is on the tape waits for load, what is archived only for replay."""
    prune(tape, "2026-05-28")
    found = audit(tape, database)
    assert [finding["verdict"] for finding in found["findings"]] == ["missing"] * 6
    assert sum("run load" in finding["detail"] for finding in found["findings"]) == 3


@pytest.mark.parametrize(
    "change",
    [
        f"UPDATE {QUOTES} SET bid_price = bid_price + 1e-9 WHERE change_id = 8 AND segment = {{0}}",
        f"DELETE FROM {QUOTES} WHERE change_id = 8 AND segment = {{0}}",
        (  # as many rows as before
            f"WITH gone AS (DELETE FROM {QUOTES} WHERE change_id = 8 AND segment = {{0}})"
            f" INSERT INTO {QUOTES} SELECT * FROM {QUOTES} WHERE change_id = 9 AND segment = {{0}}"
        ),
    ],
)
def test_what_was_changed_after_a_prune_is_found_and_repaired(tape: Path, any_database: str, change: str) -> None:
    """A value changed, a row lost, one doubled and another lost: named, and loaded again from the archive."""
    load_once(tape, any_database)
    rows = {stream: database_rows(any_database, stream) for stream in STREAMS}
    ledger = query(any_database, "SELECT * FROM loaded_segments ORDER BY segment")
    prune(tape)
    assert audit(tape, any_database)["equal"] is True
    query(any_database, change.format(first_number(any_database)))
    found = audit(tape, any_database)
    assert (found["equal"], verdicts(found)) == (False, [(QUOTES, "different")])
    assert "2026-05-28T" in found["findings"][0]["detail"]
    repaired = audit(tape, any_database, repair=True)

    assert (repaired["equal"], repaired["repaired"]) == (True, 1)
    assert audit(tape, any_database)["findings"] == []
    assert {stream: database_rows(any_database, stream) for stream in STREAMS} == rows
    assert query(any_database, "SELECT * FROM loaded_segments ORDER BY segment") == ledger


def test_of_a_salvaged_segment_nothing_is_removed(tmp_path: Path, database: str) -> None:
    """The archive has what was salvaged, the database the whole: what it lacks of that is added, the rest stays."""
    record(tmp_path, [{QUOTES: make_rows(QUOTES, 60)}])
    load_once(tmp_path, database)
    whole = min((tmp_path / QUOTES).rglob("*.arrow"))
    salvage_of(whole, whole.with_name(whole.name.replace("000001", "000009")))
    whole.unlink()
    archive(tmp_path)
    prune(tmp_path)
    rows = database_rows(database, QUOTES)
    assert audit(tmp_path, database, repair=True)["findings"] == []
    query(database, f"DELETE FROM {QUOTES} WHERE change_id = 8")
    assert audit(tmp_path, database)["equal"] is False
    assert audit(tmp_path, database, repair=True)["repaired"] == 1
    assert database_rows(database, QUOTES) == rows


def test_of_another_state_of_a_segment_nothing_is_removed(tape: Path, database: str) -> None:
    """The ledger has another checksum than the archive: the database may have the fuller one."""
    load_once(tape, database)
    prune(tape)
    query(database, "UPDATE loaded_segments SET crc32 = '00000000', rows = rows + 1 WHERE segment = %s",
          first_number(database))  # fmt: skip
    query(database, f"INSERT INTO {QUOTES} (timestamp, segment) VALUES (%s, %s)", us_to_datetime(START_US),
          first_number(database))  # fmt: skip
    assert audit(tape, database, repair=True)["findings"] == []
    assert query(database, f"SELECT count(*) FROM {QUOTES}") == [(121,)]


def test_of_a_shorter_state_on_the_tape_nothing_is_removed(tmp_path: Path, database: str) -> None:
    """A tape put back from a copy that was taken while it was recorded: recovery seals less, under the same id."""
    rows = make_rows(QUOTES, 60)
    record(tmp_path, [{QUOTES: rows}])
    load_once(tmp_path, database)
    (path,) = sealed_files(DataDir(tmp_path), QUOTES)
    checked = read_segment(path)
    assert checked.identity is not None
    path.write_bytes(encode_segment(checked.schema, checked.identity, [checked.groups[0].batch.slice(0, 30)]))
    assert audit(tmp_path, database, repair=True)["findings"] == []
    query(database, f"DELETE FROM {QUOTES} WHERE change_id = 8")
    assert audit(tmp_path, database, repair=True)["repaired"] == 1

    assert query(database, f"SELECT count(*) FROM {QUOTES}") == [(60,)]
    assert query(database, "SELECT rows FROM loaded_segments") == [(60,)]


def test_the_archive_gives_back_what_a_salvage_has_not(tape: Path, database: str) -> None:
    """The tape has the half of a segment that it lost after it was archived, the archive all of it."""
    load_once(tape, database)
    rows = database_rows(database, QUOTES)
    whole = min((tape / QUOTES).rglob("*.arrow"))
    salvage_of(whole, whole.with_name(whole.name.replace("000001", "000009")))
    whole.unlink()
    query(database, f"DELETE FROM {QUOTES} WHERE change_id = 58 AND segment = {first_number(database)}")
    assert verdicts(audit(tape, database)) == [(QUOTES, "different")]
    assert audit(tape, database, repair=True)["equal"] is True
    assert database_rows(database, QUOTES) == rows


def test_what_was_only_salvaged_is_told(tape: Path, database: str) -> None:
    """The database has the half that a repair kept, the archive all: not equal, and no replay would help."""
    whole = min((tape / QUOTES).rglob("*.arrow"))
    salvage_of(whole, whole.with_name(whole.name.replace("000001", "000009")))
    whole.unlink()
    assert load_once(tape, database).segments == 6
    found = audit(tape, database)
    assert (found["equal"], verdicts(found)) == (False, [(QUOTES, "different")])
    assert "only what was salvaged of it is there" in found["findings"][0]["detail"]
    assert "run replay" not in run_loader("status", root=tape, url=database).out


def test_what_retention_drops_is_not_missing(tape: Path, timescale_database: str) -> None:
    """A database that keeps a few days does not lack what only the archive has of the days before."""
    url = timescale_database
    prune(tape, "2026-05-28")
    load_once(tape, url)
    query(
        url,
        f"SELECT add_retention_policy('{QUOTES}', now() - %s::timestamptz, initial_start => now() + %s::interval)",
        us_to_datetime(START_US + DAY_US // 2),
        "1 day",
    )
    found = audit(tape, url)
    assert verdicts(found) == [(GAPS, "missing"), (QUOTES, "dropped by retention"), (TRADES, "missing")]
    assert json.loads(run_loader("status", "--json", root=tape, url=url).out)["archived_only"] == 2


def test_a_schema_for_some_instruments_is_compared_too(tape: Path, database: str) -> None:
    """With its rows only; what was not asked for is not missing."""
    chosen = ["--into-schema", "part", "--instruments", "ETH-1", "--streams", "quotes"]
    run_loader("replay", *chosen, root=tape, url=database)
    prune(tape)
    command = ["audit", "--schema", "part", "--repair", "--json"]
    assert json.loads(run_loader(*command, root=tape, url=database).out)["findings"] == []
    query(database, f"DELETE FROM part.{QUOTES} WHERE change_id = 10")
    assert json.loads(run_loader(*command, root=tape, url=database).out)["repaired"] == 2
    assert query(database, f"SELECT instrument, count(*) FROM part.{QUOTES} GROUP BY 1") == [("ETH-1", 40)]


def test_a_part_is_read_only_for_what_the_tape_has_not(
    tape: Path, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One part at a time, each once, and none whose segments the tape shows whole."""
    load_once(tape, database)
    read: list[str] = []

    def noted(self: Archive, manifest: Manifest) -> Any:
        read.append(manifest.part_name)
        return rows(self, manifest)

    rows = Archive.rows
    monkeypatch.setattr(Archive, "rows", noted)
    assert audit(tape, database)["equal"] is True
    assert read == []
    prune(tape, "2026-05-28")
    assert audit(tape, database)["equal"] is True
    assert sorted(read) == sorted(part.part_name for part in manifests(tape) if part.date == "2026-05-28")


def test_an_archive_that_cannot_be_read_is_not_called_equal(tape: Path, database: str) -> None:
    """A damaged part, a damaged manifest, no archive where one should be: 7; with ARCHIVE_URL=off it is not asked."""
    load_once(tape, database)
    prune(tape)
    flip_a_bit(parts(tape)[0])
    flip_a_bit(next((DataDir(tape).archive / "manifests" / TRADES).rglob("*.json")))
    process = run_loader("audit", root=tape, url=database)
    assert (process.popen.returncode, process.out.count("\nunreadable: ")) == (7, 2)
    folder = DataDir(tape).archive / "manifests"
    shutil.rmtree(folder)
    folder.symlink_to(folder)
    away = run_loader("audit", root=tape, url=database)
    assert (away.popen.returncode, away.out.count("\nunreadable: ")) == (7, 1)
    off = run_loader("audit", "--archive-url", "off", root=tape, url=database)
    assert (off.popen.returncode, off.out.count("not on the tape here: ")) == (0, 6)
    status = run_loader("status", "--json", root=tape, url=database)
    assert list(json.loads(status.out)["unreadable"]) == [str(DataDir(tape).archive)]
    load = run_loader("load", "--once", root=tape, url=database)
    assert (load.popen.returncode, "archive.not_asked" in load.err) == (0, True)
