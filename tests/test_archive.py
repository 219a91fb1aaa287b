"""Days of a tape as Parquet in a folder: every row once, read back before it counts, whatever happens on the way."""

import hashlib
import json
import re
import shutil
import signal
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from loader.archive import part as part_module
from loader.archive.archiver import Tally
from loader.archive.lock import Note, archiving
from loader.archive.plan import Choice
from loader.archive.read import Archive
from loader.errors import ArchiveAway, ArchiveDamaged, ArchiverAtWork, Stopped
from recorder.runtime import disk
from recorder.runtime.data_dir import DataDir
from recorder.segments.manifest import encode
from recorder.segments.reader import read_identity
from recorder.segments.schemas import SCHEMAS, stream_kind
from tests.faults.forked import Forks
from tests.faults.system import System, refused, standing_in
from tests.fix_archive import (
    DAY,
    DAY_US,
    LATER,
    QUOTES,
    archive,
    archived_rows,
    archiver,
    flip_a_bit,
    hours,
    manifests,
    parts,
    salvage_of,
    store_of,
    strays,
    tape_rows,
)
from tests.fix_postgres import START_US, make_rows, quotes, record, run_loader

STREAMS = [QUOTES, "eth_option_trades", "eth_option_tickers", "eth_option_instruments", "data_gaps"]


def later(number: int, *, days: int = 0) -> dict[str, list[tuple[Any, ...]]]:
    """Return a round of quotes that begins so many seconds, or days, later."""
    return quotes(20, start_us=START_US + number * 1_000_000 + days * DAY_US)


def look(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path): (path.stat().st_mtime_ns, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file() and path.name != "lock"
    }


# What an archive is


def test_every_row_of_every_stream_is_there(tmp_path: Path) -> None:
    """With the tape's columns, values and nulls, then the segment_id; by instrument, then by time."""
    record(tmp_path, [{stream: make_rows(stream, 50, start_us=START_US + n * 10**6) for stream in STREAMS}
                      for n in range(3)])  # fmt: skip
    tally = archive(tmp_path)

    assert (tally.parts, tally.segments, tally.rows, tally.refused) == (5, 15, 750, {})
    there = Archive(store_of(tmp_path))
    for stream in STREAMS:
        (manifest,) = there.manifests(stream)
        assert there.rows(manifest).schema.names == [*SCHEMAS[stream_kind(stream) or ""].names, "segment"]
        assert tape_rows(tmp_path, stream) == archived_rows(there, stream)


def test_a_manifest_tells_all_of_its_segments(tmp_path: Path) -> None:
    """What prune, replay and completeness need is told without a look into the Parquet or the segments."""
    files = record(tmp_path, [later(0), later(1)])
    archive(tmp_path)

    (manifest,) = manifests(tmp_path)
    (part,) = parts(tmp_path)
    assert part == DataDir(tmp_path).archive / manifest.part_name
    assert (manifest.stream, manifest.date, manifest.rows, manifest.bytes) == (QUOTES, DAY, 40, part.stat().st_size)
    assert (manifest.made_at, manifest.compression) == (LATER, "zstd")
    first, second = manifest.segments
    identity = read_identity(files[1])
    assert identity is not None
    assert (second.segment_id, second.previous) == (identity.segment_id, first.segment_id)
    assert second.name == str(files[1].relative_to(tmp_path))
    assert (second.recorder, second.software, second.rows) == ("test", "test/1", 20)
    assert second.size_bytes == files[1].stat().st_size
    assert second.first_received_at == datetime(2026, 5, 28, 20, 26, 41, tzinfo=UTC)
    assert second.last_received_at == datetime(2026, 5, 28, 20, 26, 41, 19_000, tzinfo=UTC)
    assert second.last_timestamp == datetime(2026, 5, 28, 20, 26, 40, 969_000, tzinfo=UTC)
    assert second.crc32 != first.crc32


def test_any_reader_takes_a_streams_folder(tmp_path: Path) -> None:
    """Polars, pyarrow and DuckDB, hive-partitioned; while parts are made there is nothing else in it."""
    record(tmp_path, [later(0), later(0, days=1)])
    archive(tmp_path)
    folder = DataDir(tmp_path).archive / QUOTES

    frame = pl.scan_parquet(folder, hive_partitioning=True).select("date", "timestamp", "segment").collect()
    assert (frame.height, frame["date"].n_unique(), frame["segment"].n_unique()) == (40, 2, 2)
    assert frame.schema["timestamp"] == pl.Datetime("us", "UTC")
    assert ds.dataset(folder, format="parquet", partitioning="hive").count_rows() == 40
    found = duckdb.connect().execute(f"SELECT count(*), count(DISTINCT date) FROM '{folder}/**/*.parquet'")
    assert found.fetchall() == [(40, 2)]


@pytest.mark.parametrize("compression", ["zstd", "snappy"])
def test_a_part_is_compressed_as_asked_and_skippable(tmp_path: Path, compression: str) -> None:
    """Snappy too; each row group has the bounds of its columns."""
    record(tmp_path, [later(0)])
    archive(tmp_path, compression=compression)

    (part,) = parts(tmp_path)
    group = pq.ParquetFile(part).metadata.row_group(0)
    assert group.column(0).compression == compression.upper()
    assert all(group.column(n).statistics is not None for n in range(group.num_columns))
    assert group.column(1).statistics.min == "ETH-0"
    assert [one.compression for one in manifests(tmp_path)] == [compression]


def test_parts_hold_whole_segments_up_to_a_bound(tmp_path: Path) -> None:
    """A day of many rows is several parts, in the order of time."""
    record(tmp_path, [later(n) for n in range(5)])
    tally = archive(tmp_path, most_rows=50)

    assert tally.parts == 3
    assert [len(one.segments) for one in manifests(tmp_path)] == [2, 2, 1]
    assert sorted(tape_rows(tmp_path, QUOTES), key=repr) == sorted(
        archived_rows(Archive(store_of(tmp_path)), QUOTES), key=repr
    )


def test_row_groups_end_where_they_should(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many of them hold the same rows as one."""
    monkeypatch.setattr("loader.archive.part.ROW_GROUP_ROWS", 7)
    record(tmp_path, [later(0), later(1)])
    archive(tmp_path)

    (part,) = parts(tmp_path)
    assert pq.ParquetFile(part).num_row_groups == 6
    assert tape_rows(tmp_path, QUOTES) == archived_rows(Archive(store_of(tmp_path)), QUOTES)


def test_floats_come_back_bit_by_bit(tmp_path: Path) -> None:
    """NaN, infinities and -0.0 are rows like others, and no reason to refuse a part."""
    rows = make_rows(QUOTES, 5)
    odd = [float("nan"), float("inf"), float("-inf"), -0.0, None]
    record(tmp_path, [{QUOTES: [(*row[:3], value, *row[4:]) for row, value in zip(rows, odd, strict=True)]}])
    archive(tmp_path)

    there = Archive(store_of(tmp_path))
    assert repr(sorted(tape_rows(tmp_path, QUOTES), key=repr)) == repr(sorted(archived_rows(there, QUOTES), key=repr))


# Again, late, and twice


def test_archiving_again_changes_nothing(tmp_path: Path) -> None:
    """Not a byte, and no part is made a second time; by a new archiver, too."""
    record(tmp_path, [later(0), later(1)])
    one = archiver(tmp_path)
    one.run(Choice())
    before = look(tmp_path / "archive")

    assert one.run(Choice()).parts == 0
    assert archive(tmp_path).parts == 0
    assert before == look(tmp_path / "archive")


def test_late_segments_make_a_new_part(tmp_path: Path) -> None:
    """The parts that are there stay as they are, and hold what they held."""
    record(tmp_path, [later(0), later(1)])
    one = archiver(tmp_path)
    one.run(Choice())
    before = look(tmp_path / "archive")
    late = record(tmp_path, [later(-5)])
    tally = one.run(Choice())

    assert (tally.parts, tally.segments) == (1, 1)
    assert before.items() <= look(tmp_path / "archive").items()
    assert {segment.name for segment in manifests(tmp_path)[0].segments} == {str(late[0].relative_to(tmp_path))}
    assert len(archived_rows(Archive(store_of(tmp_path)), QUOTES)) == 60


def test_the_tape_is_not_changed(tmp_path: Path) -> None:
    """Archiving reads it, and writes below archive/ only."""
    record(tmp_path, [later(0), {"data_gaps": make_rows("data_gaps", 3)}])
    before = look(tmp_path)
    archive(tmp_path)

    after = look(tmp_path)
    assert before == {name: seen for name, seen in after.items() if "/archive/" not in name}


def test_days_that_run_wait(tmp_path: Path) -> None:
    """A day is archived an hour after its end, or when it is asked for; what comes then makes a new part."""
    record(tmp_path, [later(0), later(0, days=1)])
    noon = datetime(2026, 5, 29, 12, tzinfo=UTC)

    assert archive(tmp_path, now=noon).segments == 1
    assert [one.date for one in manifests(tmp_path)] == [DAY]
    assert archive(tmp_path, Choice(today=True), now=noon).segments == 1
    record(tmp_path, [later(5, days=1)])
    assert archive(tmp_path, now=noon).segments == 0
    assert archive(tmp_path, now=noon + hours(24)).segments == 1
    assert [one.date for one in manifests(tmp_path)] == [DAY, "2026-05-29", "2026-05-29"]


def test_one_day_is_archived_when_asked_for(tmp_path: Path) -> None:
    """And no other."""
    record(tmp_path, [later(0), later(0, days=1), later(0, days=2)])

    assert archive(tmp_path, Choice(date=date(2026, 5, 29))).segments == 1
    assert [one.date for one in manifests(tmp_path)] == ["2026-05-29"]


def test_a_copy_is_archived_once(tmp_path: Path) -> None:
    """A file under another name, beside it or come later, is the same segment."""
    (file,) = record(tmp_path, [later(0)])
    shutil.copy(file, file.with_name("20260528T202640000000Z-copy-000001.arrow"))
    assert archive(tmp_path).segments == 1
    shutil.copy(file, file.with_name("20260528T202640000000Z-later-000001.arrow"))

    assert archive(tmp_path) == Tally()


def test_a_copy_in_another_days_folder_is_left_out_and_named(tmp_path: Path) -> None:
    """In the archive it would be there twice."""
    (file,) = record(tmp_path, [later(0)])
    elsewhere = file.parent.parent / "date=2026-05-30"
    elsewhere.mkdir()
    shutil.copy(file, elsewhere)
    tally = archive(tmp_path)

    assert tally.segments == 1
    ((name, why),) = tally.refused.items()
    assert name == f"{QUOTES}/date=2026-05-30/{file.name}"
    assert "it began on 2026-05-28" in why


def test_damage_is_left_out_and_named(tmp_path: Path) -> None:
    """The others are archived; what was salvaged of it then makes a new part."""
    files = record(tmp_path, [later(0), later(1), later(2)])
    salvaged = salvage_of(files[1], tmp_path / "salvaged")
    flip_a_bit(files[1])
    tally = archive(tmp_path)

    assert (tally.segments, list(tally.refused)) == (2, [str(files[1].relative_to(tmp_path))])
    assert archive(tmp_path).segments == 0
    files[1].unlink()
    salvaged.rename(files[1].with_name(f"{files[1].stem}9.arrow"))
    again = archive(tmp_path)
    assert (again.segments, again.rows, again.refused) == (1, 10, {})


def test_what_was_salvaged_of_an_archived_segment_is_there_already(tmp_path: Path) -> None:
    """Its rows are; the other way round a whole one is refused whose salvage is there."""
    (file,) = record(tmp_path, [later(0)])
    whole, salvaged = file.read_bytes(), salvage_of(file, file.with_name("salvaged.arrow"))
    archive(tmp_path, now=LATER)
    assert [one.rows for one in manifests(tmp_path)] == [20]

    shutil.rmtree(tmp_path / "archive")
    file.unlink()
    assert archive(tmp_path).rows == 10
    file.write_bytes(whole)
    tally = archive(tmp_path)
    assert tally.segments == 0
    assert "a part of it was salvaged and archived already, as " in tally.refused[str(file.relative_to(tmp_path))]
    assert salvaged.exists()


# Damage of the archive


def damaged_part(tmp_path: Path) -> tuple[Archive, Path]:
    record(tmp_path, [later(0)])
    archive(tmp_path)
    (part,) = parts(tmp_path)
    return Archive(store_of(tmp_path)), part


@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_damage_of_a_part_is_found_when_it_is_read(tmp_path: Path, damage: str) -> None:
    """No row of it is believed."""
    there, part = damaged_part(tmp_path)
    if damage == "flipped":
        flip_a_bit(part)
    elif damage == "cut":
        part.write_bytes(part.read_bytes()[:-1])
    else:
        part.unlink()

    (manifest,) = there.manifests()
    with pytest.raises(ArchiveDamaged, match=part.name):
        there.rows(manifest)


def test_a_part_of_other_rows_is_found(tmp_path: Path) -> None:
    """Even if somebody made its manifest fit its bytes."""
    there, part = damaged_part(tmp_path)
    (manifest,) = there.manifests()
    table = pq.read_table(part, partitioning=None).slice(1)
    pq.write_table(table, part, store_schema=False)
    forged = manifest.__class__(
        **{name: getattr(manifest, name) for name in manifest.__struct_fields__}
        | {"bytes": part.stat().st_size, "sha256": hashlib.sha256(part.read_bytes()).hexdigest()}
    )

    with pytest.raises(ArchiveDamaged, match="not those of the segments"):
        there.rows(forged)


def test_parquet_without_a_manifest_does_not_exist(tmp_path: Path) -> None:
    """It is made anew in its place."""
    there, part = damaged_part(tmp_path)
    (manifest,) = there.manifests()
    (tmp_path / "archive" / manifest.name).unlink()

    assert there.manifests() == []
    assert archive(tmp_path).segments == 1
    assert [part] == parts(tmp_path)


def test_a_damaged_manifest_stops_its_day_only(tmp_path: Path) -> None:
    """What it named would be there twice for who reads the Parquet itself."""
    record(tmp_path, [later(0), later(0, days=1)])
    archive(tmp_path, Choice(date=date(2026, 5, 28)))
    (manifest,) = manifests(tmp_path)
    flip_a_bit(tmp_path / "archive" / manifest.name)
    tally = archive(tmp_path)

    assert list(tally.refused) == [manifest.name]
    assert [one.date for one in manifests(tmp_path)] == ["2026-05-29"]
    there = Archive(store_of(tmp_path))
    there.manifests()
    assert list(there.damaged) == [manifest.name]


def test_a_manifest_in_the_wrong_place_is_not_believed(tmp_path: Path) -> None:
    """A copy of one under another day would make rows of that day out of nothing."""
    record(tmp_path, [later(0)])
    archive(tmp_path)
    (manifest,) = manifests(tmp_path)
    elsewhere = tmp_path / "archive" / manifest.name.replace(DAY, "2026-05-29")
    elsewhere.parent.mkdir()
    elsewhere.write_bytes(encode(manifest))

    there = Archive(store_of(tmp_path))
    assert there.manifests() == [manifest]
    assert len(there.damaged) == 1


def test_a_disk_that_writes_other_bytes_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The part is not published, and not left; the next run makes it."""
    record(tmp_path, [later(0)])
    write = disk.write

    def rotten(fd: int, data: bytes | memoryview) -> None:
        write(fd, bytes(data).replace(b"ETH-1", b"ETH-7"))

    monkeypatch.setattr(disk, "write", rotten)
    tally = archive(tmp_path)
    assert "checksum" in tally.refused[f"{QUOTES}/date={DAY}"]
    assert (parts(tmp_path), manifests(tmp_path)) == ([], [])
    monkeypatch.undo()

    assert archive(tmp_path).segments == 1


def test_rows_that_read_back_otherwise_are_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the bytes are what was written, but what was written is not the rows; other days go on."""
    record(tmp_path, [later(0), later(0, days=1)])
    take = part_module.Rows.row_groups
    calls = []

    def other_rows(rows: Any) -> Any:
        calls.append(rows)
        for group in take(rows):
            yield group.slice(1) if len(calls) == 1 else group

    monkeypatch.setattr(part_module.Rows, "row_groups", other_rows)
    tally = archive(tmp_path)

    assert "other rows than were written" in tally.refused[f"{QUOTES}/date={DAY}"]
    assert tally.segments == 1  # the day after it
    monkeypatch.undo()
    assert archive(tmp_path).segments == 1


# One at a time, and cut off


def test_one_archiver_at_a_time(tmp_path: Path) -> None:
    """Another one ends with one line and exit code 4, and has touched nothing."""
    record(tmp_path, [later(0)])
    with archiving(DataDir(tmp_path)):
        with pytest.raises(ArchiverAtWork):
            archive(tmp_path)
        process = run_loader("archive", root=tmp_path)

    assert process.popen.returncode == 4
    assert "is being archived by another process" in process.err
    assert parts(tmp_path) == []


def test_a_stop_leaves_nothing_half_done(tmp_path: Path) -> None:
    """Wherever it is heeded: what is published is whole, and the next run makes the rest."""
    record(tmp_path, [later(n) for n in range(3)])
    asked = 0

    def count() -> None:
        nonlocal asked
        asked += 1
        if asked == stop_at:
            raise Stopped("stopped by a signal")

    stop_at = 0
    archive(tmp_path, most_rows=20, check=count)
    whole, points = look_at_parts(tmp_path), asked
    assert points > 9
    for number in range(1, points + 1):
        asked, stop_at = 0, number
        shutil.rmtree(tmp_path / "archive")
        with pytest.raises(Stopped):
            archive(tmp_path, most_rows=20, check=count)
        assert set(look_at_parts(tmp_path)) <= set(whole)
        archive(tmp_path, most_rows=20)

        assert (look_at_parts(tmp_path), strays(tmp_path)) == (whole, [])


def look_at_parts(root: Path) -> dict[str, bytes]:
    return {one.part_name: (root / "archive" / one.part_name).read_bytes() for one in manifests(root)}


@pytest.fixture
def forks() -> Any:
    with Forks() as running:
        yield running


def test_killed_at_every_call_to_the_disk(tmp_path: Path, forks: Forks, full: bool) -> None:
    """By SIGKILL, before and after each; what is published then is whole, and one more run makes the rest, once."""
    tape = tmp_path / "tape"
    record(tape, [later(0), later(1)])
    with standing_in(System()) as system:
        archive(tape, most_rows=20)
    points = system.count
    assert points > 20
    shutil.rmtree(tape / "archive")

    for number in range(1, points + 1, 1 if full else 8):
        for after in (False, True) if full else (number % 16 == 1,):
            root = tmp_path / f"{number}-{after}"
            shutil.copytree(tape, root)
            faults = json.dumps({"kill_at": number, "after": after})
            forks.start(["archive"], {"DATA_DIR": str(root), "FAULTS": faults}, tmp_path / "log")
            code = forks.wait()
            assert code in (0, -signal.SIGKILL), (number, (tmp_path / "log").read_text())
            there = Archive(store_of(root))
            for manifest in there.manifests():
                there.rows(manifest)
            archive(root)

            assert strays(root) == [], (number, after)
            assert sorted(tape_rows(root, QUOTES)) == sorted(archived_rows(there, QUOTES)), (number, after)


def test_a_disk_that_refuses_is_told_and_tried_again(tmp_path: Path, full: bool) -> None:
    """At whichever call; the next run makes all of it."""
    record(tmp_path, [later(0)])
    with standing_in(System()) as system:
        archive(tmp_path)
    for number in range(1, system.count + 1, 1 if full else 6):
        shutil.rmtree(tmp_path / "archive")
        plan = refused(28, first=number, last=number)
        with standing_in(System(plan, keep_data=True)):
            try:
                archive(tmp_path)
            except ArchiveAway as exc:
                assert "No space left on device" in str(exc)  # noqa: PT017
        archive(tmp_path)

        assert strays(tmp_path) == [], number
        assert len(archived_rows(Archive(store_of(tmp_path)), QUOTES)) == 20


def test_what_was_begun_for_another_archive_is_left_there(tmp_path: Path) -> None:
    """A note of a part elsewhere is forgotten, with a line in the log; nothing here is touched for it."""
    record(tmp_path, [later(0)])
    with archiving(DataDir(tmp_path)) as journal:
        journal.write(Note("s3://elsewhere", f"{QUOTES}/date={DAY}/x.parquet"))

    assert archive(tmp_path).segments == 1
    with archiving(DataDir(tmp_path)) as journal:
        assert journal.read() is None


# The command


def test_the_command_archives_finished_days(tmp_path: Path) -> None:
    """One line on stdout; damage is named on stderr, with exit code 6."""
    root = tmp_path / "tape"
    files = record(root, [later(0), later(1)])
    done = run_loader("archive", root=root)
    assert done.popen.returncode == 0
    assert re.fullmatch(
        rf"archived 2 segments \(40 rows\) in 1 part \([\d.]+ kB\) to {root}/archive, left out 0\n", done.out
    )
    bad, *_ = record(root, [later(7)])
    flip_a_bit(bad)
    again = run_loader("archive", "--archive-compression", "snappy", root=root)

    assert again.popen.returncode == 6
    assert f"left out: {bad.relative_to(root)}: damaged" in again.err
    assert again.out.startswith("archived 0 segments")
    assert files[0].exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--archive-url", "off"], "ARCHIVE_URL=off: expected a folder"),
        (["--archive-url", "gopher://x"], "ARCHIVE_URL=gopher://x: expected a folder"),
        (["--date", "yesterday"], "'yesterday' is no day: expected YYYY-MM-DD"),
        (["--date", "2026-05-28", "--today"], "not allowed with"),
    ],
)
def test_wrong_usage_is_told_in_one_line(tmp_path: Path, arguments: list[str], told: str) -> None:
    """Exit code 2, before anything is made."""
    process = run_loader("archive", *arguments, root=tmp_path / "tape")

    assert process.popen.returncode == 2
    assert told in process.err
    assert len(process.err.splitlines()) == 1
    assert list((tmp_path / "tape").iterdir()) == []


def test_a_folder_elsewhere_can_be_the_archive(tmp_path: Path) -> None:
    """By path or by file URL; its drafts lie there too, so that a rename puts them in place."""
    record(tmp_path / "tape", [later(0)])
    url = (tmp_path / "else where").as_uri()
    process = run_loader("archive", "--archive-url", url, root=tmp_path / "tape")

    assert process.popen.returncode == 0
    assert len(list((tmp_path / "else where" / QUOTES).rglob("*.parquet"))) == 1
    assert [path.name for path in (tmp_path / "tape" / "archive").iterdir()] == ["lock"]
