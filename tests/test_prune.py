"""Segments go only when the archive holds them, and nobody needs them; whatever is in doubt stays."""

import shutil
import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from loader.archive.prune import Facts, Pruned, Pruner, read_folded, why_kept
from loader.archive.read import Archive
from loader.archive.store import Store, open_store
from loader.errors import NoArchive
from loader.settings import LoaderSettings
from recorder.runtime.data_dir import DataDir
from recorder.segments.encode import encode_segment
from recorder.segments.manifest import encode
from recorder.segments.reader import read_identity, read_segment
from recorder.segments.schemas import SCHEMAS
from recorder.tape_state import TapeState
from tests.fix_archive import (
    DAY_US,
    LATER,
    QUOTES,
    archive,
    archived_rows,
    flip_a_bit,
    hours,
    manifests,
    nothing,
    parts,
    store_of,
    tape_rows,
)
from tests.fix_postgres import START_US, make_rows, record, run_loader
from tests.test_archive_decisions import segment

TRADES = "eth_option_trades"
NOW = LATER + hours(2)  # the archives of these tests are that old


def prune(
    root: Path, *, keep_days: float = 7, dry_run: bool = False, now: datetime = NOW, store: Store | None = None
) -> Pruned:
    return Pruner(
        DataDir(root), Archive(store or store_of(root)), keep=timedelta(days=keep_days), dry_run=dry_run,
        check=nothing, now=now,
    ).run()  # fmt: skip


def round_at(days: float, stream: str = QUOTES) -> dict[str, list[tuple[Any, ...]]]:
    return {stream: make_rows(stream, 10, start_us=START_US + int(days * DAY_US))}


def sealed(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*.arrow") if "state" not in path.parts)


# The decision

OLD = Facts(
    archived=segment(), made_at=LATER, part_problem="", newest=False, needed_kind=False, folded=False
)  # fmt: skip


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, ""),
        ({"archived": None}, "not in the archive"),
        ({"made_at": None}, "not in the archive"),
        ({"part_problem": "it is missing"}, "its part of the archive is not whole"),
        ({"made_at": NOW - hours(0.99)}, "archived within the last hour"),
        ({"archived": segment(at=NOW - timedelta(days=7))}, "younger than --keep"),
        ({"archived": segment(rows=0, at=NOW - timedelta(days=7))}, "younger than --keep"),
        ({"newest": True}, "the newest of its stream"),
        ({"needed_kind": True}, "needed by the recorder: not in state/ yet"),
        ({"needed_kind": True, "folded": True}, ""),
    ],
)
def test_why_a_segment_stays(change: dict[str, Any], expected: str) -> None:
    """Each rule by itself."""
    assert expected == why_kept(replace(OLD, **change), now=NOW, keep=timedelta(days=7))


def test_trades_of_the_last_two_days_stay_whatever_is_asked() -> None:
    """Their gaps may not have their fate yet; quotes have none."""
    young = replace(OLD, archived=segment(at=NOW - timedelta(days=1.9)), folded=True)

    assert why_kept(young, now=NOW, keep=timedelta(0)) == ""
    assert "last two days" in why_kept(replace(young, needed_kind=True), now=NOW, keep=timedelta(0))


# On disk


def test_nothing_goes_without_an_archive(tmp_path: Path) -> None:
    """A database alone is never reason enough."""
    record(tmp_path, [round_at(0), round_at(1)])
    before = sealed(tmp_path)
    with pytest.raises(NoArchive, match="python -m loader archive makes it"):
        prune(tmp_path)

    assert before == sealed(tmp_path)


def test_what_the_archive_holds_goes(tmp_path: Path) -> None:
    """All but the newest; the archive alone has every row; empty folders go, quarantine/ stays."""
    record(tmp_path, [round_at(0), round_at(0.01), round_at(1), round_at(2)])
    (tmp_path / "quarantine").mkdir()
    (tmp_path / "quarantine" / "old.arrow").write_bytes(b"damaged")
    before = tape_rows(tmp_path, QUOTES)
    archive(tmp_path)
    done = prune(tmp_path)

    assert (done.segments, done.kept, done.problems) == ({QUOTES: 3}, {"the newest of its stream": 1}, {})
    assert sealed(tmp_path)[1:] == ["quarantine/old.arrow"]
    assert [path.name for path in (tmp_path / QUOTES).iterdir()] == ["date=2026-05-30"]
    assert sorted(before) == sorted(archived_rows(Archive(store_of(tmp_path)), QUOTES))
    assert archive(tmp_path).parts == 0
    assert prune(tmp_path).segments == {}


def test_a_dry_run_removes_nothing(tmp_path: Path) -> None:
    """And tells the same."""
    record(tmp_path, [round_at(0), round_at(1), round_at(2)])
    archive(tmp_path)
    before = sealed(tmp_path)
    told = prune(tmp_path, dry_run=True)

    assert before == sealed(tmp_path)
    assert told == prune(tmp_path)
    assert told.segments == {QUOTES: 2}
    assert told.bytes.total() > 0


@pytest.mark.parametrize(("age", "gone"), [(hours(0.5), 0), (hours(1), 2)])
def test_a_fresh_manifest_is_not_enough(tmp_path: Path, age: timedelta, gone: int) -> None:
    """Who planned before it was published still finds the file for an hour."""
    record(tmp_path, [round_at(0), round_at(1), round_at(2)])
    archive(tmp_path)

    assert prune(tmp_path, now=LATER + age).segments.total() == gone


def test_keep_counts_from_the_last_row(tmp_path: Path) -> None:
    """In days, which may be fractions."""
    record(tmp_path, [round_at(days) for days in (0, 1, 2, 3)])
    archive(tmp_path)
    now = datetime.fromtimestamp((START_US + 3 * DAY_US) / 1e6, UTC)
    for manifest in manifests(tmp_path):  # as if it had been archived then
        older = structs.replace(manifest, made_at=now - hours(2))
        (tmp_path / "archive" / manifest.name).write_bytes(encode(older))

    assert prune(tmp_path, keep_days=3.5, now=now).segments.total() == 0
    assert prune(tmp_path, keep_days=1.5, now=now).segments.total() == 2
    assert prune(tmp_path, keep_days=0, now=now).segments.total() == 1


def test_what_is_not_archived_stays(tmp_path: Path) -> None:
    """A segment that came late, between two that go."""
    record(tmp_path, [round_at(0), round_at(1), round_at(2)])
    archive(tmp_path)
    late = record(tmp_path, [round_at(0.1)], recorder="test")
    done = prune(tmp_path)

    assert done.kept["not in the archive"] == 1
    assert late[0].exists()


@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_a_part_that_is_not_whole_keeps_its_segments(tmp_path: Path, damage: str) -> None:
    """And is named; those of other parts go."""
    record(tmp_path, [round_at(0), round_at(1), round_at(2)])
    archive(tmp_path)
    part = parts(tmp_path)[0]
    if damage == "flipped":
        flip_a_bit(part)
    elif damage == "cut":
        part.write_bytes(part.read_bytes()[:-1])
    else:
        part.unlink()
    done = prune(tmp_path)

    assert done.kept["its part of the archive is not whole"] == 1
    assert list(done.problems) == [str(part.relative_to(tmp_path / "archive"))]
    assert done.segments.total() == 1


def test_a_damaged_manifest_keeps_its_segments(tmp_path: Path) -> None:
    """It is as good as none, and is named."""
    record(tmp_path, [round_at(0), round_at(1), round_at(2)])
    archive(tmp_path)
    name = manifests(tmp_path)[0].name
    flip_a_bit(tmp_path / "archive" / name)
    done = prune(tmp_path)

    assert done.kept["not in the archive"] == 1
    assert list(done.problems) == [name]


def test_another_file_under_an_archived_name_stays(tmp_path: Path) -> None:
    """The id in the file decides, not its name; and with the same id its bytes."""
    files = record(tmp_path, [round_at(0), round_at(0.1), round_at(0.2), round_at(1)])
    archive(tmp_path)
    shutil.copy(files[1], files[0])
    checked = read_segment(files[1])
    assert checked.identity is not None
    files[1].write_bytes(encode_segment(checked.schema, checked.identity, [checked.groups[0].batch.slice(1)]))
    flip_a_bit(files[2])
    done = prune(tmp_path)

    assert done.segments.total() == 0
    assert sorted(done.problems) == sorted(str(file.relative_to(tmp_path)) for file in files[:3])


def test_a_copy_of_an_archived_segment_goes_too(tmp_path: Path) -> None:
    """Under whichever name: it is the same segment, byte for byte."""
    files = record(tmp_path, [round_at(0), round_at(1)])
    archive(tmp_path)
    shutil.copy(files[0], files[0].with_name("20260528T202640000000Z-copy-000001.arrow"))

    assert prune(tmp_path).segments.total() == 2


def test_the_end_of_a_chain_stays_whatever_its_name(tmp_path: Path) -> None:
    """After a step of the clock backwards the last segment is not the one with the latest name; a start needs it."""
    files = record(tmp_path, [round_at(1), round_at(2), round_at(0)])
    identity = read_identity(files[2])
    assert identity is not None
    assert identity.previous
    archive(tmp_path)
    done = prune(tmp_path)

    assert done.kept == {"the newest of its stream": 2}
    assert (files[0].exists(), files[1].exists(), files[2].exists()) == (False, True, True)


# What the recorder needs


def with_trades(root: Path) -> list[Path]:
    """Record three days of trades with a hole in each, and a gap that stays open on each."""
    rounds: list[dict[str, list[tuple[Any, ...]]]] = []
    for day in range(3):
        at_us = START_US + day * DAY_US
        seqs = [10 * day + number for number in (1, 2, 4, 5)]
        nothing_more = [None] * (len(SCHEMAS["trades"]) - 5)
        trades = [(at_us, "ETH-1", at_us + seq, f"id-{seq}", seq, *nothing_more) for seq in seqs]
        hole = (10 * day + 3, 10 * day + 3)
        gap = (f"gap-{day}", 0, TRADES, "sequence_break", "open", at_us, at_us, *hole, None)
        rounds += [{TRADES: trades}, {"data_gaps": [(at_us, "ETH-1", at_us, *gap)]}]
    files = record(root, rounds)
    archive(root)
    return files


def test_trades_and_gaps_wait_for_the_state(tmp_path: Path) -> None:
    """As long as state/ does not name them they stay: its recorder reads them at its start."""
    with_trades(tmp_path)

    assert prune(tmp_path).segments.total() == 0
    TapeState(DataDir(tmp_path), TRADES).save()
    assert prune(tmp_path).segments == {TRADES: 2, "data_gaps": 2}


def test_a_state_that_cannot_be_believed_names_nothing(tmp_path: Path) -> None:
    """Damaged anywhere, or gone."""
    with_trades(tmp_path)
    TapeState(DataDir(tmp_path), TRADES).save()
    file = tmp_path / "state" / "trades.arrow"
    whole = file.read_bytes()
    assert set(read_folded(DataDir(tmp_path))) == {TRADES, "data_gaps"}
    (one, *_) = read_folded(DataDir(tmp_path))[TRADES].values()

    other = whole.replace(one.encode(), str(uuid.uuid4()).encode())
    for data in (whole[:-30], other, whole.replace(b"folded", b"golded"), b""):
        file.write_bytes(data)
        assert read_folded(DataDir(tmp_path)) == {}
    assert prune(tmp_path).segments.total() == 0
    file.unlink()
    assert prune(tmp_path).segments.total() == 0


def test_the_recorder_starts_on_a_pruned_tape(tmp_path: Path) -> None:
    """What it knows of trades and gaps is the same."""
    with_trades(tmp_path)
    before = TapeState(DataDir(tmp_path), TRADES)
    before.save()
    prune(tmp_path)
    after = TapeState(DataDir(tmp_path), TRADES)

    assert before.had.by_instrument == after.had.by_instrument
    assert before.had.by_instrument["ETH-1"].holes
    assert len(before.open_gaps) == 3
    assert before.open_gaps == after.open_gaps
    after.save()
    record(tmp_path, [round_at(3, TRADES)])
    (first, second) = sorted((tmp_path / TRADES).rglob("*.arrow"))
    one, other = read_identity(first), read_identity(second)
    assert one is not None
    assert other is not None
    assert other.previous == one.segment_id


# The command, and a server


def test_the_command_tells_what_it_removed(tmp_path: Path) -> None:
    """A line a stream, a line a reason, and the sum."""
    root = tmp_path / "tape"
    record(root, [round_at(0), round_at(1), round_at(2)])
    archive(root)
    for manifest in manifests(root):
        (root / "archive" / manifest.name).write_bytes(
            encode(structs.replace(manifest, made_at=datetime.now(UTC) - hours(2)))
        )
    would = run_loader("prune", "--dry-run", root=root)
    done = run_loader("prune", "--keep", "0.5", root=root)

    assert (would.popen.returncode, done.popen.returncode) == (0, 0)
    lines = done.out.splitlines()
    assert lines[0].startswith(f"{QUOTES}: 2 segments, ")
    assert lines[1] == "kept 1 segment: the newest of its stream"
    assert lines[2].startswith("removed 2 segments, ")
    assert would.out.splitlines() == [*lines[:2], lines[2].replace("removed", "would remove")]


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        ([], 1, "nothing was pruned: there is no archive in "),
        (["--archive-url", "off"], 1, "ARCHIVE_URL=off"),
        (["--keep", "-1"], 2, "'-1' is no number of days"),
        (["--keep", "nan"], 2, "'nan' is no number of days"),
        (["--keep", "week"], 2, "'week' is no number of days"),
    ],
)
def test_what_cannot_be_pruned_is_told_in_one_line(
    tmp_path: Path, arguments: list[str], code: int, told: str
) -> None:
    """And nothing is touched."""
    process = run_loader("prune", *arguments, root=tmp_path / "tape")

    assert process.popen.returncode == code
    assert told in process.err
    assert len(process.err.splitlines()) == 1


def test_a_server_is_asked_for_each_part(tmp_path: Path, bucket: LoaderSettings) -> None:
    """By its size; a part that is gone there keeps its segments here."""
    root = Path(bucket.data_dir)
    record(root, [round_at(0), round_at(1), round_at(2), round_at(3)])
    store = open_store(bucket, nothing)
    assert store is not None
    archive(root, store=store)
    first, second, *_ = Archive(store).manifests()
    store.remove(first.part_name)
    store.put_bytes(second.part_name, b"PAR1")
    done = prune(root, store=store)

    assert done.segments.total() == 1
    assert done.problems == {
        first.part_name: "it is missing",
        second.part_name: f"it has 4 bytes where {second.bytes} were written",
    }
    assert len(sealed(root)) == 3
    assert parts(tmp_path) == []
