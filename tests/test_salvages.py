"""A damaged segment and all that is ever salvaged of it count once: in a database, in an archive, for a reader."""

import shutil
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import analysis
from loader import load, transaction
from loader.postgres import ledger
from recorder.doctor import doctor
from recorder.runtime.data_dir import DataDir
from recorder.segments.encode import encode_segment
from recorder.segments.layout import SegmentName, sealed_files, us_to_datetime
from recorder.segments.reader import read_segment
from tests.fix_archive import archive, manifests
from tests.fix_postgres import SOON_S, load_once, query, wait_for
from tests.segment_tools import QUOTES
from tests.segments import damages, judge
from tests.segments.test_doctor import identity_of, tape
from tests.test_loader_audit import audit

ALL = list(range(2, 38))  # the numbers of the rows of a tape of three segments
SECOND = ALL[12:24]
WAITING = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a tape of three segments of twelve rows, of which each flush has three."""
    tape(DataDir(tmp_path / "tape"))
    return tmp_path / "tape"


def files(root: Path) -> list[Path]:
    return sealed_files(DataDir(root), QUOTES)


def segment_id(path: Path) -> str:
    return identity_of(path).segment_id


def damage(path: Path, flush: int) -> None:
    """Flip two bits in the rows of a flush."""
    original = judge.read(path.read_bytes())
    place = original.groups[flush]
    path.write_bytes(damages.flip(original, (place.start + place.commit) // 2, 2).data)


def salvage(root: Path, flush: int) -> Path:
    """Damage the second segment, or what was salvaged of it, and repair the tape; return what was salvaged now."""
    path = next((one for one in files(root) if identity_of(one).salvages), files(root)[1])
    damage(path, flush)
    doctor(str(root), repair_damage=True)
    (found,) = (one for one in files(root) if identity_of(one).salvages)
    return found


def salvages_beside(whole: Path, *salvages: list[int]) -> None:
    """Write beside a segment what was salvaged of copies of it, each with other flushes."""
    checked = read_segment(whole)
    assert checked.identity is not None
    for number, flushes in enumerate(salvages):
        identity = replace(checked.identity, segment_id=str(uuid.uuid4()), salvages=checked.identity.segment_id)
        path = whole.with_name(whole.name.replace("-test-", f"-other{number}-"))
        path.write_bytes(encode_segment(checked.schema, identity, [checked.groups[one].batch for one in flushes]))


def numbers(url: str) -> list[int]:
    """Return the numbers of the rows of a database, sorted."""
    return [row[0] for row in query(url, f"SELECT change_id FROM {QUOTES} ORDER BY 1")]


def numbers_read(root: Path) -> list[int]:
    """Return the numbers of the rows that a reader gives."""
    with analysis.open(root) as con:
        return [row[0] for row in con.sql(f"SELECT change_id FROM {QUOTES} ORDER BY 1").fetchall()]


def verdicts(found: dict[str, Any]) -> list[str]:
    return [one["verdict"] for one in found["findings"]]


# One after the other


def test_a_second_salvage_of_a_segment_is_not_loaded_again(root: Path, database: str) -> None:
    """A salvage that was loaded, and damaged since, holds the rows of what was salvaged of it."""
    first = salvage(root, 1)
    loaded = segment_id(first)
    load_once(root, database)
    before = numbers(database)
    second = segment_id(salvage(root, 0))

    assert before == [number for number in ALL if number not in SECOND[3:6]]
    for _ in range(2):
        tally = load_once(root, database)
        assert (tally.segments, tally.skipped, tally.refused) == (0, 3, {})
    assert numbers(database) == before
    assert query(database, "SELECT segment_id::text, salvages::text FROM salvaged_segments") == [(second, loaded)]
    assert audit(root, database)["equal"] is True
    third = segment_id(salvage(root, 1))
    assert third not in (loaded, second)
    assert audit(root, database)["equal"] is True  # before the loader has met it, too
    assert load_once(root, database).segments == 0
    assert numbers(database) == before


def test_of_two_copies_that_were_damaged_differently_one_is_loaded(root: Path, any_database: str) -> None:
    """What the other one has more is named by an audit, and added by its repair; both tapes are equal then."""
    other = root.with_name("other")
    shutil.copytree(root, other)
    salvage(root, 1)
    salvage(other, 2)
    load_once(root, any_database)
    assert load_once(other, any_database).segments == 0
    assert numbers(any_database) == [number for number in ALL if number not in SECOND[3:6]]

    assert audit(root, any_database)["equal"] is True
    assert verdicts(found := audit(other, any_database)) == ["different"]
    assert "rows of the tape that the database lacks: 3" in found["findings"][0]["detail"]
    assert audit(other, any_database, repair=True)["equal"] is True
    assert numbers(any_database) == ALL
    for place in (root, other, root.with_name("empty")):
        assert audit(place, any_database, repair=True)["equal"] is True
    assert numbers(any_database) == ALL


def test_a_second_salvage_of_a_segment_is_not_archived_again(root: Path) -> None:
    """Nor read beside what is archived."""
    salvage(root, 1)
    archive(root)
    before = numbers_read(root)
    salvage(root, 0)

    assert archive(root).segments == 0
    assert [one.rows for one in manifests(root)] == [33]
    assert numbers_read(root) == before == [number for number in ALL if number not in SECOND[3:6]]


def test_of_two_salvages_on_one_tape_one_is_archived(root: Path) -> None:
    """Each row once, though they come in one run."""
    whole = files(root)[1]
    salvages_beside(whole, [0, 1], [0, 2])
    whole.unlink()

    assert archive(root).rows == 24 + 6


# Side by side


@pytest.fixture
def tapes(root: Path) -> dict[str, list[int]]:
    """Make tapes of the second segment alone, and one of all; return the numbers of each by its folder's name."""
    found = {"whole": SECOND, "salvage": SECOND[:3] + SECOND[6:], "other": SECOND[:6] + SECOND[9:], "group": ALL}
    for number, name in enumerate(found):
        place = root.with_name(name)
        shutil.copytree(root, place)
        if name in ("salvage", "other"):
            salvage(place, number)
        if name != "group":
            for path in (files(place)[0], files(place)[2]):
                path.unlink()
    return found


@pytest.mark.parametrize("point", ["insert", "copy_rows"])
@pytest.mark.parametrize(
    "pair", ["whole salvage", "salvage whole", "group salvage", "salvage group", "salvage other"]
)
def test_two_loaders_side_by_side_load_one(
    tapes: dict[str, list[int]],
    root: Path,
    database: str,
    monkeypatch: pytest.MonkeyPatch,
    pair: str,
    point: str,
) -> None:
    """One is held before its ledger row, or before its rows, while the other does all it can."""
    first, second = pair.split()
    held, go_on = threading.Event(), threading.Event()
    place = ledger if point == "insert" else transaction
    usual = getattr(place, point)

    def hold_the_first(*arguments: Any) -> Any:
        if not held.is_set():
            held.set()
            assert go_on.wait(SOON_S)
        return usual(*arguments)

    monkeypatch.setattr(place, point, hold_the_first)
    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(load_once, root.with_name(first), database)
        assert held.wait(SOON_S)
        two = pool.submit(load_once, root.with_name(second), database)
        wait_for(lambda: two.done() or query(database, WAITING) == [(1,)])
        go_on.set()
        tallies = {first: one.result(SOON_S), second: two.result(SOON_S)}

    # A whole one that has no ledger row yet has nothing that a salvage could wait for.
    winner, loser = (second, first) if point == "insert" and first in ("whole", "group") else (first, second)
    others = [number for number in ALL if number not in SECOND] if "group" in pair else []
    assert numbers(database) == sorted({*tapes[winner], *others})
    assert tallies[winner].refused == {}
    if loser in ("whole", "group"):
        assert ["a part of it was salvaged" in why for why in tallies[loser].refused.values()] == [True]
    else:
        assert (tallies[loser].skipped, tallies[loser].refused) == (1, {})


def test_a_salvage_that_was_put_into_a_group_is_taken_out(
    tapes: dict[str, list[int]], root: Path, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a file is was asked of its first bytes, before it was read: it may be another file by then."""
    load_once(root.with_name("whole"), database)
    salvage(root.with_name("group"), 1)
    monkeypatch.setattr(load, "_identity_of", lambda _candidate: None)
    tally = load_once(root.with_name("group"), database)

    assert (tally.segments, tally.skipped, tally.refused) == (2, 1, {})
    assert numbers(database) == tapes["group"]


# Readers


@pytest.mark.parametrize("more_first", [False, True])
def test_of_two_salvages_a_reader_takes_the_larger(root: Path, more_first: bool) -> None:
    """Each row once; which one it is does not depend on their names, nor on whether the damaged one is there."""
    whole = files(root)[1]
    salvages_beside(whole, *([[0, 1, 3], [2]] if more_first else [[2], [0, 1, 3]]))
    expected = [number for number in ALL if number not in SECOND[6:9]]

    assert numbers_read(root) == expected
    whole.unlink()
    assert numbers_read(root) == expected


def test_a_range_finds_the_same_salvage(root: Path) -> None:
    """Both have the time of their first row and numbers that follow one another: neither ends the other."""
    whole = files(root)[1]
    salvages_beside(whole, [0, 1, 3], [0, 2])
    for number, path in enumerate(one for one in files(root) if "-other" in one.name):
        path.rename(path.with_name(f"{whole.name.partition('-')[0]}-other-00000{number + 1}.arrow"))
    whole.unlink()
    name = SegmentName.parse(whole.name)
    assert name is not None
    with analysis.open(root, start=us_to_datetime(name.start_us + 1)) as con:
        found = [row[0] for row in con.sql(f"SELECT change_id FROM {QUOTES} ORDER BY 1").fetchall()]

    assert set(SECOND[9:]) <= set(found)


def test_a_segment_whose_salvage_is_archived_is_not_read_beside_it(root: Path) -> None:
    """The whole one came back from another disk: the archiver refuses it, and a reader leaves it out."""
    whole = files(root)[1]
    data = whole.read_bytes()
    salvage(root, 1)
    archive(root)
    whole.write_bytes(data)

    assert len(archive(root).refused) == 1
    assert numbers_read(root) == [number for number in ALL if number not in SECOND[3:6]]
