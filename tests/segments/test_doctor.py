"""What doctor says of a tape, and what it leaves after a repair: nothing lost that was good, nothing deleted."""

import json
import multiprocessing
import os
import random
import signal
import stat
import sys
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from recorder.doctor import doctor
from recorder.runtime.data_dir import DataDir
from recorder.runtime.errors import DataDirInUse, DiskError
from recorder.segments.encode import Identity, encode_segment
from recorder.segments.layout import live_files, sealed_files
from recorder.segments.reader import choose_sealed, read_segment
from tests.faults.system import System, killed_at, standing_in
from tests.segment_tools import NOON_US, QUOTES, quote_rows, quotes, tape_in
from tests.segments import damages, judge
from tests.segments.judge import Original

SECOND_US = 1_000_000
Record = Callable[[str, object], None]

pytestmark = pytest.mark.timeout(3600)  # the full sizes take long
Printed = pytest.CaptureFixture[str]


def tape(data_dir: DataDir, *, segments: int = 3, groups: int = 4, rows: int = 3) -> list[Path]:
    """A tape of sealed segments of quotes, whose rows are numbered through."""
    writer = tape_in(data_dir)
    number = 2
    for segment in range(segments):
        for group in range(groups):
            at_us = NOON_US + segment * 60 * SECOND_US + group * SECOND_US
            writer.write_round(quotes(rows, start_us=at_us, first_change_id=number), now_us=at_us)
            number += rows
        writer.seal_all()
    return sealed_files(data_dir, QUOTES)


def tree(root: Path) -> dict[str, bytes]:
    """Every file below a folder but the lock, which names the last process."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name != "lock"
    }


def repaired(root: Path, printed: Printed) -> str:
    """Repair, and again: the second time there is nothing to do."""
    assert doctor(str(root), repair_damage=True) == 6
    said = printed.readouterr().out
    before = tree(root)
    assert doctor(str(root), repair_damage=True) == 0, printed.readouterr().out
    assert tree(root) == before
    assert doctor(str(root), repair_damage=False) == 0
    printed.readouterr()
    return said


def rows_after(root: Path, neighbours: list[Original], damaged: Original, kept: frozenset[int], what: str) -> None:
    """The neighbours' rows are there once, and of the damaged segment what must be, and nothing else."""
    found = judge.sealed_rows(root, QUOTES)
    everything = [rows for original in (*neighbours, damaged) for rows in original.rows]
    whole = Original(b"", 0, (), tuple(everything))
    others = sum(len(original.rows) for original in neighbours)
    judge.judge(found, whole, kept=[*range(others), *(others + number for number in kept)], what=what)


def test_every_kind_of_damage_to_a_sealed_segment_is_repaired(
    tmp_path: Path, capsys: Printed, full: bool, record_property: Record
) -> None:
    """Found, named, the good groups kept as a new segment, the damaged file in quarantine, byte for byte."""
    seed = random.randrange(10**9)
    print("seed", seed)
    rng = random.Random(seed)
    paths = tape(DataDir(tmp_path / "sound"))
    first, damaged, last = (judge.read(path.read_bytes()) for path in paths)
    cases = list(damages.every_kind(damaged, last, rng, flips=60 if full else 4))
    for number, case in enumerate(cases):
        root = tmp_path / str(number)
        copy(tmp_path / "sound", root)
        path = root / paths[1].relative_to(tmp_path / "sound")
        path.write_bytes(case.data)
        if doctor(str(root), repair_damage=False) == 0:
            assert read_segment(path).rows == 12, (seed, case.what)  # a flip that nobody sees
            continue
        assert path.name in capsys.readouterr().out
        said = repaired(root, capsys)

        assert path.name in said
        rows_after(root, [first, last], damaged, case.kept, f"{seed}: {case.what}")
        assert case.data in tree(root / "quarantine").values(), (seed, case.what)
    record_property("fault", "4")
    record_property("cases", len(cases))


def test_every_kind_of_damage_to_a_live_segment_is_repaired(
    tmp_path: Path, capsys: Printed, full: bool, record_property: Record
) -> None:
    """Finished under its own name with the good groups; what was cut off is in quarantine."""
    seed = random.randrange(10**9)
    print("seed", seed)
    rng = random.Random(seed)
    paths = tape(DataDir(tmp_path / "sound"))
    first, damaged, last = (judge.read(path.read_bytes()) for path in paths)
    cases = list(damages.every_kind(damaged.live, last, rng, flips=60 if full else 4))
    for number, case in enumerate(cases):
        root = tmp_path / str(number)
        copy(tmp_path / "sound", root)
        path = root / paths[1].relative_to(tmp_path / "sound")
        path.unlink()
        live = root / "live" / QUOTES / f"{path.name}.open"
        live.write_bytes(case.data)
        code = doctor(str(root), repair_damage=False)
        assert doctor(str(root), repair_damage=True) == code
        said = capsys.readouterr().out
        assert doctor(str(root), repair_damage=True) == 0

        assert live.name in said
        assert not live.exists()
        rows_after(root, [first, last], damaged, case.kept, f"{seed}: {case.what}")
        # Rows may be kept that need not be: where the header is put right, and in a last commit's flips nobody sees.
        if len(judge.sealed_rows(root, QUOTES)) < 36:
            assert any(tree(root / "quarantine").values()), (seed, case.what)
    record_property("fault", "4")
    record_property("cases", len(cases))


def copy(source: Path, target: Path) -> None:
    for path in source.rglob("*"):
        there = target / path.relative_to(source)
        if path.is_dir():
            there.mkdir(parents=True, exist_ok=True)
        else:
            there.parent.mkdir(parents=True, exist_ok=True)
            there.write_bytes(path.read_bytes())


def flip(path: Path, at: int | None = None) -> Original:
    """Damage the second group of a segment; return it as it was."""
    original = judge.read(path.read_bytes())
    place = original.groups[1]
    path.write_bytes(damages.flip(original, (place.start + place.commit) // 2 if at is None else at, 2).data)
    return original


def identity_of(path: Path) -> Identity:
    identity = read_segment(path).identity
    assert identity is not None
    return identity


def test_a_sound_tape_is_clean(data_dir: DataDir, capsys: Printed) -> None:
    """Nothing is said but how much was looked at; a repair changes nothing."""
    tape(data_dir)
    before = tree(data_dir.root)

    assert doctor(str(data_dir.root), repair_damage=False) == 0
    assert doctor(str(data_dir.root), repair_damage=True) == 0
    assert capsys.readouterr().out == "3 segments, 36 rows: no damage\n" * 2
    assert tree(data_dir.root) == before


def test_a_salvage_names_the_segment_it_salvages(data_dir: DataDir, capsys: Printed) -> None:
    """The new segment has an id of its own, the old one's as `salvages`, and its place in the chain."""
    paths = tape(data_dir)
    before = identity_of(paths[1])
    flip(paths[1])
    repaired(data_dir.root, capsys)
    (salvage,) = (path for path in sealed_files(data_dir, QUOTES) if identity_of(path).salvages)
    after = identity_of(salvage)

    assert after == replace(before, segment_id=after.segment_id, salvages=before.segment_id)
    assert uuid.UUID(after.segment_id) != uuid.UUID(before.segment_id)
    assert read_segment(salvage).rows == 9


def test_a_salvage_that_is_damaged_again_names_the_first_segment(data_dir: DataDir, capsys: Printed) -> None:
    """A database may have the first one whole; of the second it may never have heard."""
    paths = tape(data_dir)
    first = identity_of(paths[1]).segment_id
    flip(paths[1])
    repaired(data_dir.root, capsys)
    (second,) = (path for path in sealed_files(data_dir, QUOTES) if identity_of(path).salvages)
    second_id = identity_of(second).segment_id
    flip(second)
    repaired(data_dir.root, capsys)
    (third,) = (path for path in sealed_files(data_dir, QUOTES) if identity_of(path).salvages)

    assert identity_of(third).salvages == first
    assert identity_of(third).segment_id not in (first, second_id)
    assert read_segment(third).rows == 6


def test_of_a_damaged_copy_nothing_is_kept_twice(data_dir: DataDir, capsys: Printed) -> None:
    """A damaged file whose sound copy lies beside it goes to quarantine, and its rows are there once."""
    paths = tape(data_dir)
    copied = paths[1].with_name(paths[1].name.replace("-test-", "-copy-"))
    copied.write_bytes(paths[1].read_bytes())
    flip(paths[1])
    said = repaired(data_dir.root, capsys)

    assert f"its rows are in {copied.name} already" in said
    assert len(judge.sealed_rows(data_dir.root, QUOTES)) == 36


def test_of_two_damaged_copies_one_is_salvaged(data_dir: DataDir, capsys: Printed) -> None:
    """The one with more rows is kept; no row is there twice."""
    paths = tape(data_dir)
    copied = paths[1].with_name(paths[1].name.replace("-test-", "-copy-"))
    original = judge.read(paths[1].read_bytes())
    copied.write_bytes(original.data[: original.groups[0].end])
    flip(paths[1])
    repaired(data_dir.root, capsys)
    found = judge.sealed_rows(data_dir.root, QUOTES)

    assert len(found) == len(set(found)) == 33


def test_a_copy_is_named_and_left(data_dir: DataDir, capsys: Printed) -> None:
    """The same segment under two names is no damage: every reader of ours counts it once."""
    paths = tape(data_dir)
    copied = paths[1].with_name(paths[1].name.replace("-test-", "-copy-"))
    copied.write_bytes(paths[1].read_bytes())

    assert doctor(str(data_dir.root), repair_damage=True) == 0
    assert "is a copy of segment" in capsys.readouterr().out
    assert len(choose_sealed(sealed_files(data_dir, QUOTES), QUOTES)[0]) == 3


def test_one_id_with_two_contents_is_damage_that_nobody_may_decide(data_dir: DataDir, capsys: Printed) -> None:
    """Both are left where they are, and said to differ."""
    paths = tape(data_dir)
    checked = read_segment(paths[1])
    assert checked.schema is not None
    other = paths[1].with_name(paths[1].name.replace("-test-", "-copy-"))
    batches = [group.batch for group in checked.groups[:2]]
    other.write_bytes(encode_segment(checked.schema.remove_metadata(), identity_of(paths[1]), batches))
    before = tree(data_dir.root)

    assert doctor(str(data_dir.root), repair_damage=True) == 6
    assert "but other rows" in capsys.readouterr().out
    assert tree(data_dir.root) == before


def test_a_segment_under_another_stream_is_moved_home(data_dir: DataDir, capsys: Printed) -> None:
    """It keeps its id and its name; nothing is written anew."""
    paths = tape(data_dir)
    away = data_dir.root / "btc_option_quotes" / paths[1].parent.name / paths[1].name
    away.parent.mkdir(parents=True)
    content = paths[1].read_bytes()
    paths[1].rename(away)

    assert "lies under btc_option_quotes but says it is of" in repaired(data_dir.root, capsys)
    assert paths[1].read_bytes() == content
    assert not away.exists()


def test_files_and_folders_that_are_none_of_ours_are_named(data_dir: DataDir, capsys: Printed) -> None:
    """Each has one sentence; none is damage, none is touched."""
    paths = tape(data_dir)
    strays = [
        data_dir.root / "notes.txt",
        data_dir.root / QUOTES / "notes.txt",
        paths[0].with_name("notes.txt"),
        paths[0].with_name(f"{paths[0].name}.tmp"),
        data_dir.live_dir(QUOTES) / "draft.arrow.tmp",
        data_dir.live / "notes.txt",
        data_dir.live_dir(QUOTES) / "20251122T120000000000Z-test-000009.arrow.open",
    ]
    for path in strays:
        path.write_bytes(b"")
    (data_dir.root / "no-stream").mkdir()
    before = tree(data_dir.root)

    assert doctor(str(data_dir.root), repair_damage=False) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sorted(line.split(": ")[0] for line in lines[:-1]) == sorted(
        map(str, [*strays, data_dir.root / "no-stream"])
    )
    assert tree(data_dir.root) == before


def test_a_name_that_is_no_segments_is_said_to_be_none(data_dir: DataDir, capsys: Printed) -> None:
    """A renamed segment, and one in another day's folder, are sound; each is told in a sentence."""
    paths = tape(data_dir)
    paths[0].rename(paths[0].with_name("renamed.arrow"))
    other_day = data_dir.sealed_dir(QUOTES, "2024-02-29")
    other_day.mkdir()
    paths[1].rename(other_day / paths[1].name)
    paths[2].rename(paths[2].with_name(paths[2].name.replace("1202", "1203")))

    assert doctor(str(data_dir.root), repair_damage=False) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert all("is sound, but" in line for line in lines[:3])


def test_an_empty_file_among_the_sealed_goes_to_quarantine(data_dir: DataDir, capsys: Printed) -> None:
    """It is damage, named in one sentence."""
    paths = tape(data_dir)
    paths[1].write_bytes(b"")

    assert f"{paths[1]}: is empty\n" in repaired(data_dir.root, capsys)
    assert (data_dir.quarantine / paths[1].name).read_bytes() == b""


@pytest.mark.parametrize("what", ["file", "date", "stream", "live", "live file"])
def test_what_cannot_be_read_is_named_and_the_rest_is_checked(data_dir: DataDir, capsys: Printed, what: str) -> None:
    """A file or folder without permission is one finding; the others are examined."""
    paths = tape(data_dir)
    tape_in(data_dir).write_round(quotes(1, start_us=NOON_US + 3600 * SECOND_US), now_us=NOON_US)
    (live,) = live_files(data_dir, QUOTES)
    place = {
        "file": paths[1], "date": paths[1].parent, "stream": data_dir.root / QUOTES,
        "live": data_dir.live_dir(QUOTES), "live file": live,
    }[what]  # fmt: skip
    mode = stat.S_IMODE(place.stat().st_mode)
    assert doctor(str(data_dir.root), repair_damage=False) == 0
    capsys.readouterr()
    place.chmod(0)
    try:
        code, said = as_nobody(data_dir.root, data_dir.root.parent / "said")
    finally:
        place.chmod(mode)

    assert code == 6
    assert [line for line in said.splitlines() if "cannot be read" in line] == [
        f"{place}: cannot be read: Permission denied"
    ]
    assert said.splitlines()[-1].endswith("1 finding of damage")


def as_nobody(root: Path, said: Path) -> tuple[int, str]:
    """Run doctor as somebody whom permissions bind; return its exit code and what it printed."""
    said.write_text("")
    for folder in (*root.parents, said):
        if folder.stat().st_uid == os.geteuid() and folder.stat().st_mode & 0o007 == 0:
            folder.chmod(folder.stat().st_mode | 0o005)
    with said.open("w") as file:
        process = multiprocessing.get_context("fork").Process(target=look_as_nobody, args=(root, file))
        process.start()
        process.join()
    return process.exitcode or 0, said.read_text()


def look_as_nobody(root: Path, said: Any) -> None:
    # Forked, since nobody may not be allowed to read the interpreter's own files.
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
    sys.stdout = said
    code = doctor(str(root), repair_damage=False)
    said.flush()
    os._exit(code)


def test_a_sealed_and_a_live_file_of_one_name_are_one_segment(data_dir: DataDir, capsys: Printed) -> None:
    """The sealed one counts; a repair removes the other, whose rows it has."""
    paths = tape(data_dir)
    original = judge.read(paths[1].read_bytes())
    live = data_dir.live_dir(QUOTES) / f"{paths[1].name}.open"
    live.write_bytes(original.live.data)

    assert doctor(str(data_dir.root), repair_damage=False) == 0
    assert f"{live}: is finished: the sealed file of its name counts" in capsys.readouterr().out
    assert doctor(str(data_dir.root), repair_damage=True) == 0
    assert not live.exists()
    assert len(judge.sealed_rows(data_dir.root, QUOTES)) == 36


@pytest.mark.parametrize("left", [b"", b"half"])
def test_a_damaged_sealed_file_gives_way_to_the_live_one_of_its_name(
    data_dir: DataDir, capsys: Printed, left: bytes
) -> None:
    """A live file that is whole is not removed in favour of a sealed one that is not."""
    paths = tape(data_dir)
    original = judge.read(paths[1].read_bytes())
    live = data_dir.live_dir(QUOTES) / f"{paths[1].name}.open"
    live.write_bytes(original.live.data)
    paths[1].write_bytes(original.data[:4000] if left else b"")
    repaired(data_dir.root, capsys)

    assert len(judge.sealed_rows(data_dir.root, QUOTES)) == 36
    assert paths[1].read_bytes() == original.data


def test_a_live_file_under_another_stream_is_not_taken_for_that_streams(data_dir: DataDir, capsys: Printed) -> None:
    """A flip in the stream's name, or a file moved by hand: to quarantine, never into another stream's folder."""
    paths = tape(data_dir)
    live = data_dir.live_dir("btc_option_quotes") / f"{paths[1].name}.open"
    live.parent.mkdir(parents=True)
    live.write_bytes(judge.read(paths[1].read_bytes()).live.data)
    paths[1].unlink()
    repaired(data_dir.root, capsys)

    assert not live.exists()
    assert len(judge.sealed_rows(data_dir.root, QUOTES)) == 24
    assert (data_dir.quarantine / live.name).exists()


def test_a_newer_version_is_left_where_it_is(data_dir: DataDir, capsys: Printed) -> None:
    """A sealed and a live file of version 2 are named, and neither moved nor repaired."""
    paths = tape(data_dir)
    newer = version_2(paths[1])
    paths[1].write_bytes(newer)
    live = data_dir.live_dir(QUOTES) / f"{paths[2].name.replace('000003', '000004')}.open"
    live.write_bytes(newer)
    before = tree(data_dir.root)

    assert doctor(str(data_dir.root), repair_damage=False) == 6
    assert doctor(str(data_dir.root), repair_damage=True) == 6
    assert tree(data_dir.root) == before
    said = capsys.readouterr().out
    for path in (paths[1], live):
        assert f"{path}: is of format version 2, which this program does not know" in said


def version_2(path: Path) -> bytes:
    """A segment as a later program might write it."""

    class Newer(Identity):
        def metadata(self) -> dict[str, str]:
            return {**super().metadata(), "format_version": "2"}

    checked = read_segment(path)
    assert checked.schema is not None
    assert checked.identity is not None
    batches = [group.batch for group in checked.groups]
    return encode_segment(checked.schema.remove_metadata(), Newer(**checked.identity.__dict__), batches)


def test_a_repair_is_refused_while_a_recorder_runs(data_dir: DataDir, capsys: Printed) -> None:
    """Looking is allowed, with live files and all; mending needs the lock."""
    paths = tape(data_dir)
    tape_in(data_dir).write_round(quotes(2, start_us=NOON_US + 3600 * SECOND_US), now_us=NOON_US)
    flip(paths[1])
    before = tree(data_dir.root)
    with data_dir.lock("test"):
        assert doctor(str(data_dir.root), repair_damage=False) == 6
        with pytest.raises(DataDirInUse):
            doctor(str(data_dir.root), repair_damage=True)

    assert tree(data_dir.root) == before
    assert "4 segments, 35 rows: 1 finding of damage" in capsys.readouterr().out


def test_there_must_be_a_data_directory(tmp_path: Path) -> None:
    """A wrong DATA_DIR is no clean tape."""
    with pytest.raises(DiskError, match="there is no data directory"):
        doctor(str(tmp_path / "nowhere"), repair_damage=False)


def test_a_repair_lets_the_next_start_read_anew_which_trades_are_had(data_dir: DataDir, capsys: Printed) -> None:
    """The cache goes before the damaged file does: what is lost with that must be fetched again."""
    paths = tape(data_dir)
    data_dir.state.mkdir(exist_ok=True)
    cache = data_dir.state / "trades.arrow"
    cache.write_bytes(b"cache")
    flip(paths[1])
    system = System()
    with standing_in(system):
        assert doctor(str(data_dir.root), repair_damage=True) == 6
    names = [(call.name, Path(call.path).name) for call in system.calls]

    assert not cache.exists()
    assert names.index(("unlink", "trades.arrow")) < min(
        index for index, (name, _) in enumerate(names) if name == "rename"
    )
    capsys.readouterr()


def test_a_repair_that_is_killed_anywhere_is_finished_by_the_next(
    tmp_path: Path, capsys: Printed, record_property: Record
) -> None:
    """At each of its calls to the disk, before and after: the same files are there in the end, whatever was cut."""
    sound = DataDir(tmp_path / "sound")
    paths = tape(sound)
    originals = [judge.read(path.read_bytes()) for path in paths]
    flip(paths[1])
    live = sound.live_dir(QUOTES) / f"{paths[2].name}.open"
    live.write_bytes(originals[2].live.data[:-30])
    paths[2].unlink()
    (sound.state / "trades.arrow").write_bytes(b"cache")
    whole = tmp_path / "whole"
    copy(sound.root, whole)
    system = System()
    with standing_in(system):
        doctor(str(whole), repair_damage=True)
    assert len(system.calls) > 20
    cases = [(call.number, after) for call in system.calls for after in (False, True) if not (after and call.refused)]
    for number, after in cases:
        root = tmp_path / f"{number}{after}"
        copy(sound.root, root)
        process = multiprocessing.get_context("fork").Process(target=repair_until, args=(root, number, after))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        doctor(str(root), repair_damage=True)
        assert doctor(str(root), repair_damage=True) == 0

        assert without_quarantine(root) == without_quarantine(whole), (number, after)
        assert set(tree(whole / "quarantine").values()) <= set(tree(root / "quarantine").values()), (number, after)
    found = judge.sealed_rows(whole, QUOTES)
    assert len(found) == len(set(found)) == 12 + 9 + 9
    capsys.readouterr()
    record_property("fault", "1")
    record_property("cases", len(cases))


def without_quarantine(root: Path) -> dict[str, bytes]:
    """What is there but for drafts, and half copies of what was cut off."""
    files = tree(root)
    return {name: files[name] for name in files if not name.startswith("quarantine") and not name.endswith(".tmp")}


def repair_until(root: Path, number: int, after: bool) -> None:
    """Repair until the n-th call to the disk, and die there."""
    with standing_in(System(plan=killed_at(number, after=after), keep_data=True)):
        doctor(str(root), repair_damage=True)


def test_doctor_as_a_program(data_dir: DataDir, programs: Any) -> None:
    """Exit 0 and 6; findings on stdout, one a line."""
    paths = tape(data_dir)
    assert programs.run("recorder", "doctor", "--data-dir", data_dir.root).process.returncode == 0
    flip(paths[1])
    ran = programs.run("recorder", "doctor", "--data-dir", data_dir.root)

    assert ran.process.returncode == 6
    assert len(ran.out.splitlines()) == 2
    assert json.dumps(str(paths[1]))[1:-1] in ran.out
    assert programs.run("recorder", "doctor", "--repair", "--data-dir", data_dir.root).process.returncode == 6
    assert programs.run("recorder", "doctor", "--data-dir", data_dir.root).process.returncode == 0


def test_rows_of_one_group_are_enough(data_dir: DataDir, capsys: Printed) -> None:
    """A segment that lost all but its last group keeps that, under the start of what it holds."""
    rows = [quote_rows(2, first_change_id=2 + 2 * n, start_us=NOON_US + n * SECOND_US) for n in range(3)]
    writer = tape_in(data_dir)
    for n, some in enumerate(rows):
        writer.write_round(quotes(2, first_change_id=some[0][9], start_us=some[0][0]), now_us=NOON_US + n)
    writer.seal_all()
    (path,) = sealed_files(data_dir, QUOTES)
    original = judge.read(path.read_bytes())
    first = original.groups[0]
    path.write_bytes(damages.flip(original, (first.start + first.commit) // 2, 1).data)
    repaired(data_dir.root, capsys)
    (kept,) = sealed_files(data_dir, QUOTES)

    assert kept.name.startswith("20251122T120001000000Z-test-")
    assert judge.sealed_rows(data_dir.root, QUOTES) == [*original.rows[1], *original.rows[2]]
