"""Where a stream ends, after steps of the clock, crashes, copies, and with whatever is left of the cache."""

import itertools
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recorder.runtime import disk
from recorder.runtime.data_dir import DataDir
from recorder.segments import chain
from recorder.segments.chain import End, find_end, lines_after, newest_line, save_end
from recorder.segments.check import Checked
from recorder.segments.encode import Identity
from recorder.segments.layout import live_files, sealed_files
from recorder.segments.reader import read_identity, read_segment
from recorder.segments.recovery import recover
from recorder.segments.tape import Tape
from tests.segment_tools import NOON_US, QUOTES, identity, quotes, tape_in

HOUR_US = 3_600_000_000


def write(tape: Tape, change_id: int, at_us: int) -> None:
    """One sealed segment of one row."""
    assert not tape.write_round(quotes(1, start_us=at_us, first_change_id=change_id), now_us=at_us).incidents
    tape.seal_all()


def cache(data_dir: DataDir) -> Path:
    return data_dir.state / "ends" / f"{QUOTES}.json.gz"


def written_order(data_dir: DataDir) -> list[int]:
    """The change ids along the chain; fails if it forks or is broken."""
    by_previous: dict[str, Checked] = {}
    for path in sealed_files(data_dir, QUOTES):
        checked = read_segment(path)
        assert checked.identity is not None
        known = by_previous.setdefault(checked.identity.previous, checked)
        assert known.identity == checked.identity, "the chain forks"
    ids = {checked.identity.segment_id for checked in by_previous.values() if checked.identity}
    (at,) = by_previous.keys() - ids
    order = []
    for _ in by_previous:
        checked = by_previous[at]
        assert checked.identity is not None
        order += checked.table["change_id"].to_pylist()
        at = checked.identity.segment_id
    return order


@pytest.mark.parametrize("left", ["cache", "older cache", "no cache"])
def test_the_last_row_is_the_last_written_not_the_last_named(data_dir: DataDir, left: str) -> None:
    """After a step backwards and a restart the stream goes on where it ended, also without the cache."""
    tape = tape_in(data_dir)
    write(tape, 1, NOON_US)
    older = cache(data_dir).read_bytes()
    write(tape, 2, NOON_US - HOUR_US)
    write(tape, 3, NOON_US - HOUR_US + 9)
    if left == "older cache":
        cache(data_dir).write_bytes(older)
    elif left == "no cache":
        cache(data_dir).unlink()

    assert find_end(data_dir, QUOTES).last_us == NOON_US - HOUR_US + 9
    write(tape_in(data_dir), 4, NOON_US - HOUR_US + 20)
    assert written_order(data_dir) == [1, 2, 3, 4]


STEPS = ["write", "write", "seal", "back", "stop", "crash", "torn", "copy", "lose cache", "older cache", "prune"]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(STEPS), max_size=25))
def test_the_end_is_found_after_anything(steps: list[str]) -> None:
    """Whatever steps, crashes, copies, removals and caches came together, the chain is one and its end is known."""
    with TemporaryDirectory() as folder:
        life = Life(DataDir(folder))
        for step in [*steps, "crash", "write", "stop"]:
            life.go_on(step)
            if step in ("stop", "crash", "torn"):
                assert find_end(life.data_dir, QUOTES).last_us == life.last_us
        order = written_order(life.data_dir)

        assert order == sorted(order)


def first_change_id(path: Path) -> int:
    return int(read_segment(path).table["change_id"][0].as_py())


class Life:
    """A stream of one-row flushes, and what happens to it."""

    def __init__(self, data_dir: DataDir) -> None:
        self.data_dir = data_dir
        self.last_us: int | None = None
        self._tape = tape_in(data_dir)
        self._now_us = NOON_US
        self._numbers = itertools.count(1)
        self._caches: list[bytes] = []  # as they were after each step

    def go_on(self, step: str) -> None:
        self._now_us += 1000
        match step:
            case "write":
                rows = quotes(1, start_us=self._now_us, first_change_id=next(self._numbers))
                self._tape.write_round(rows, now_us=self._now_us)
                self.last_us = self._now_us
            case "seal":
                self._tape.seal_all()
            case "back":
                self._tape.seal_all()
                self._now_us -= 7500
            case "stop" | "crash" | "torn":
                self._end(step)
            case _:
                self._meddle(step)
        if cache(self.data_dir).exists():
            self._caches.append(cache(self.data_dir).read_bytes())

    def _end(self, step: str) -> None:
        if step == "stop":
            self._tape.seal_all()
        if step == "torn":
            for path in live_files(self.data_dir, QUOTES):
                path.write_bytes(path.read_bytes() + b"torn")
        recover(self.data_dir)
        self._tape = tape_in(self.data_dir)

    def _meddle(self, step: str) -> None:
        files = sealed_files(self.data_dir, QUOTES)
        if step == "copy" and files:
            shutil.copy(files[0], files[0].with_name(f"copy-{len(files)}.arrow"))
        elif step == "older cache" and self._caches:
            cache(self.data_dir).write_bytes(self._caches[len(self._caches) // 2])
        elif step == "lose cache":
            cache(self.data_dir).unlink(missing_ok=True)
        elif step == "prune" and len({read_identity(path) for path in files}) > 1:  # of the last one nothing is left
            first = read_identity(min(files, key=first_change_id))
            for path in files:
                if read_identity(path) == first:
                    path.unlink()
            self._caches.clear()  # one older than what was pruned may have ended there


def test_a_start_reads_only_what_has_come_since(data_dir: DataDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the tape, with its cache no identity is read but those of segments younger than it."""
    tape = tape_in(data_dir)
    for n in range(30):
        write(tape, 1 + n, NOON_US - n * HOUR_US)
    kept = cache(data_dir).read_bytes()
    write(tape, 31, NOON_US - 40 * HOUR_US)
    cache(data_dir).write_bytes(kept)
    read: list[Path] = []

    def counting(path: Path) -> Identity | None:
        read.append(path)
        return read_identity(path)

    monkeypatch.setattr(chain, "read_identity", counting)

    assert find_end(data_dir, QUOTES).last_us == NOON_US - 40 * HOUR_US
    assert read == sealed_files(data_dir, QUOTES)[:1]


def test_a_crash_before_the_first_rows_leaves_the_last_row_where_it_was(data_dir: DataDir) -> None:
    """A segment without rows is the last of the chain, and the last row is that of the one before it."""
    for at_us in (NOON_US, NOON_US - HOUR_US):
        write(tape_in(data_dir), 1, at_us)
    tape_in(data_dir).write_round(quotes(2, start_us=NOON_US - 2 * HOUR_US), now_us=NOON_US)
    (live,) = live_files(data_dir, QUOTES)
    live.write_bytes(live.read_bytes()[: read_segment(live).header_bytes + 5])
    (recovered,) = recover(data_dir)
    assert recovered.sealed is not None
    last = read_identity(recovered.sealed)

    for _ in ("with the cache", "without it"):
        end = find_end(data_dir, QUOTES)
        assert (end.last_us, end.segment_id) == (NOON_US - HOUR_US, last and last.segment_id)
        cache(data_dir).unlink(missing_ok=True)


def test_runs_that_all_crash_leave_no_more_to_find_than_the_last(data_dir: DataDir) -> None:
    """What recovery sealed is known to the next run, so that a file that is removed later breaks no chain."""
    write(tape_in(data_dir), 1, NOON_US)
    for n in (2, 3):
        at_us = NOON_US - n * HOUR_US
        tape_in(data_dir).write_round(quotes(1, start_us=at_us, first_change_id=n), now_us=at_us)
        recover(data_dir)
    last, middle, _ = sealed_files(data_dir, QUOTES)
    middle.unlink()

    assert find_end(data_dir, QUOTES).last_us == NOON_US - 3 * HOUR_US
    assert find_end(data_dir, QUOTES).started_at == (read_identity(last) or identity()).started_at


def test_the_end_is_known_when_every_file_is_gone(data_dir: DataDir) -> None:
    """Pruned to the last segment, a stream still knows where it ended."""
    write(tape_in(data_dir), 1, NOON_US)
    end = find_end(data_dir, QUOTES)
    for path in sealed_files(data_dir, QUOTES):
        path.unlink()

    assert find_end(data_dir, QUOTES) == end
    assert end.last_us == NOON_US
    write(tape_in(data_dir), 2, NOON_US + 9)
    assert [one and one.previous for one in map(read_identity, sealed_files(data_dir, QUOTES))] == [end.segment_id]


def test_a_damaged_cache_of_the_end_is_not_believed(data_dir: DataDir) -> None:
    """Whatever its bytes, the segments tell the same."""
    write(tape_in(data_dir), 1, NOON_US)
    write(tape_in(data_dir), 2, NOON_US - HOUR_US)
    whole = cache(data_dir).read_bytes()
    for position in range(len(whole)):
        cache(data_dir).write_bytes(whole[:position] + bytes([whole[position] ^ 8]) + whole[position + 1 :])
        assert find_end(data_dir, QUOTES).last_us == NOON_US - HOUR_US
        cache(data_dir).write_bytes(whole[:position])
        assert find_end(data_dir, QUOTES).last_us == NOON_US - HOUR_US


def test_what_is_put_back_among_known_files_does_not_end_the_stream(data_dir: DataDir) -> None:
    """After a step backwards, a segment from before it that lies there again is not taken for the last one."""
    tape = tape_in(data_dir)
    write(tape, 1, NOON_US)
    write(tape, 2, NOON_US + 9)
    first = sealed_files(data_dir, QUOTES)[0]
    away = first.rename(data_dir.root / "away")
    write(tape, 3, NOON_US - HOUR_US)
    away.rename(first)

    assert find_end(data_dir, QUOTES).last_us == NOON_US - HOUR_US


def one(number: int, previous: int, at: int, salvages: str = "") -> Identity:
    return replace(
        identity(segment_id=str(number)), previous=str(previous) if previous else "", started_at=f"2025-{at:02}",
        salvages=salvages,
    )  # fmt: skip


def ids(line: Iterable[Identity]) -> list[int]:
    return [int(found.segment_id) for found in line]


@pytest.mark.parametrize(
    ("end", "found", "expected"),
    [
        pytest.param(End("1", "2025-05"), [one(3, 2, 1), one(2, 1, 9)], [3, 2], id="joined to the end, any time"),
        pytest.param(End("1", "2025-05"), [], [], id="nothing new"),
        pytest.param(End("1", "2025-05"), [one(3, 2, 6)], [3], id="a hole, later"),
        pytest.param(End("1", "2025-05"), [one(3, 2, 4)], [], id="a hole, or put back: earlier"),
        pytest.param(End("1", "2025-05"), [one(2, 1, 3), one(9, 8, 4)], [2], id="joined goes before put back"),
        pytest.param(End("1", "2025-05"), [one(2, 1, 3), one(9, 8, 6)], [9], id="later than joined and end"),
        pytest.param(End(), [one(1, 0, 5), one(3, 2, 7)], [3], id="no cache, a hole"),
        pytest.param(End("1", "2025-05"), [one(7, 1, 3, "2"), one(3, 2, 2)], [3, 7], id="a repaired one between"),
        pytest.param(End("1", "2025-05"), [one(2, 3, 6), one(3, 2, 7)], [], id="two that name each other"),
        pytest.param(End(), [one(4, 2, 8), one(2, 3, 6), one(3, 2, 7)], [4, 2, 3], id="and one that names them"),
    ],
)
def test_the_line_that_was_written_last(end: End, found: list[Identity], expected: list[int]) -> None:
    """The chain decides; where it has holes, the clock does, but never for what may have been put back."""
    assert ids(newest_line(end, lines_after(end, found))) == expected


def test_until_when_nothing_was_missing() -> None:
    """What was sent after the newest row may be unread when a recorder dies; times in the future do not count."""
    end = End("1", "2025", last_us=100, exchange_us=60)

    assert end.whole_until_us(now_us=101) == 60
    assert replace(end, exchange_us=101).whole_until_us(now_us=200) == 100
    assert end.whole_until_us(now_us=99) == 60
    assert end.whole_until_us(now_us=50) == 50
    assert replace(end, exchange_us=None).whole_until_us(now_us=99) == 99
    assert End().whole_until_us(now_us=1) is None


def test_an_end_that_cannot_be_kept_is_told_and_nothing_else(data_dir: DataDir) -> None:
    """The cache is none of the tape: where it cannot be written, sealing goes on."""
    data_dir.root.mkdir()
    data_dir.state.write_text("a file in the way")
    tape = tape_in(data_dir)
    tape.write_round(quotes(1), now_us=NOON_US)
    result = tape.seal_all()

    assert [sealed.rows for sealed in result.sealed] == [1]
    assert [what.partition(":")[0] for what in result.incidents] == ["state/ends"]


def test_an_end_is_kept_for_what_a_given_up_file_held(data_dir: DataDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of a failed flush are no part of the end until another file holds them."""
    tape = tape_in(data_dir)
    tape.write_round(quotes(1), now_us=NOON_US)
    saved: list[End] = []

    def keep(data_dir: DataDir, stream: str, end: End) -> None:
        saved.append(end)
        save_end(data_dir, stream, end)

    real = disk.fsync
    failed: list[int] = []

    def fail_once(fd: int) -> None:
        if not failed:
            failed.append(fd)
            raise OSError(5, "Input/output error")
        real(fd)

    monkeypatch.setattr("recorder.segments.tape.save_end", keep)
    monkeypatch.setattr(disk, "fsync", fail_once)
    tape.write_round(quotes(1, start_us=NOON_US + 9, first_change_id=2), now_us=NOON_US)
    tape.seal_all()

    assert [end.last_us for end in saved] == [NOON_US, NOON_US + 9]
    assert written_order(data_dir) == [1, 2]
