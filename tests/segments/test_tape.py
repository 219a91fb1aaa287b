"""Rounds, rolls, failures and recovery, on real files."""

import errno
import os
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pytest

from recorder.runtime import disk
from recorder.runtime.data_dir import DataDir
from recorder.runtime.errors import DataDirInUse, DiskError
from recorder.segments.check import check
from recorder.segments.layout import SegmentName, live_files, sealed_files
from recorder.segments.reader import read_identity, read_segment, snapshot
from recorder.segments.recovery import recover
from tests.segment_tools import DAY_US, NOON_US, QUOTES, batches, quote_rows, quotes, tape_in

GAPS = "data_gaps"


def gap_row(at_us: int) -> tuple[object, ...]:
    return (at_us, None, at_us, "gap-1", 0, QUOTES, "disconnect", "open", at_us, None, None, None, None)


def change_ids(data_dir: DataDir) -> list[int]:
    """Every quote on the tape, as our readers see it."""
    found = snapshot(data_dir, QUOTES)
    ids = [] if found.live is None else found.live["change_id"].to_pylist()
    for path in reversed(found.sealed):
        ids = read_segment(path).table["change_id"].to_pylist() + ids
    return ids


def test_a_flushed_row_is_seen_before_the_segment_is_sealed(data_dir: DataDir) -> None:
    """What a round reports durable is found in the live file."""
    result = tape_in(data_dir).write_round(quotes(3), now_us=NOON_US)

    assert result.durable == {QUOTES: 3}
    assert sealed_files(data_dir, QUOTES) == []
    assert change_ids(data_dir) == [1, 2, 3]


def test_names_and_folders_are_those_of_the_contract(data_dir: DataDir) -> None:
    """Live and sealed files lie where docs/format.md says."""
    tape = tape_in(data_dir)
    tape.write_round(quotes(1), now_us=NOON_US)
    name = "20251122T120000000000Z-test-000001.arrow"

    assert live_files(data_dir, QUOTES) == [data_dir.root / "live" / QUOTES / f"{name}.open"]
    tape.seal_all()
    assert sealed_files(data_dir, QUOTES) == [data_dir.root / QUOTES / "date=2025-11-22" / name]
    assert live_files(data_dir, QUOTES) == []


def test_sealed_segments_are_read_by_stock_readers(data_dir: DataDir) -> None:
    """Both polars and pyarrow take a stream's folder; the commits do not show."""
    tape = tape_in(data_dir)
    for n in range(3):
        tape.write_round(quotes(10, first_change_id=1 + 10 * n), now_us=NOON_US)
        tape.seal_all()
    folder = data_dir.root / QUOTES

    assert pl.scan_ipc(folder).select(pl.len()).collect().item() == 30
    assert ds.dataset(folder, format="ipc", partitioning="hive").count_rows() == 30


def test_segments_of_a_stream_are_chained(data_dir: DataDir) -> None:
    """Each names the one before it, across runs too; the first names none."""
    for _run in range(2):
        tape = tape_in(data_dir)
        for n in range(2):
            tape.write_round(quotes(1, start_us=NOON_US + n + 10 * _run), now_us=NOON_US)
            tape.seal_all()
    identities = [read_identity(path) for path in sealed_files(data_dir, QUOTES)]
    ids = [identity.segment_id for identity in identities if identity]

    assert [identity.previous for identity in identities if identity] == ["", *ids[:3]]


def test_a_segment_is_sealed_by_age_also_when_idle(data_dir: DataDir) -> None:
    """A round without rows seals what has become old."""
    tape = tape_in(data_dir, max_age_s=0.0)
    tape._segment_max_age_s = 1e9  # noqa: SLF001 - old only from the second round on
    tape.write_round(quotes(1), now_us=NOON_US)
    tape._segment_max_age_s = 0.0  # noqa: SLF001
    result = tape.write_round({}, now_us=NOON_US)

    assert [sealed.rows for sealed in result.sealed] == [1]


def test_a_segment_is_sealed_by_size(data_dir: DataDir) -> None:
    """Past SEGMENT_MAX_MB a segment ends with the flush that reached it."""
    tape = tape_in(data_dir, max_bytes=4000)
    results = [tape.write_round(quotes(50, first_change_id=1 + 50 * n), now_us=NOON_US) for n in range(4)]

    assert sum(len(result.sealed) for result in results) >= 1
    assert change_ids(data_dir) == list(range(1, 201))


def test_no_segment_crosses_midnight(data_dir: DataDir) -> None:
    """Rows of one flush that lie on both sides of UTC midnight go to two segments."""
    midnight_us = NOON_US + DAY_US // 2
    tape = tape_in(data_dir)
    tape.write_round(quotes(10, start_us=midnight_us - 5), now_us=midnight_us + 5)
    tape.seal_all()
    sealed = sealed_files(data_dir, QUOTES)

    assert [path.parent.name for path in sealed] == ["date=2025-11-22", "date=2025-11-23"]
    assert [read_segment(path).rows for path in sealed] == [5, 5]


def test_an_idle_segment_is_sealed_at_midnight(data_dir: DataDir) -> None:
    """Yesterday's segment does not wait for today's first row."""
    tape = tape_in(data_dir)
    tape.write_round(quotes(1), now_us=NOON_US)
    result = tape.write_round({}, now_us=NOON_US + DAY_US)

    assert len(result.sealed) == 1


def test_gaps_are_durable_before_what_follows_them(data_dir: DataDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """A round writes data_gaps first and, if that fails, nothing else."""
    tape = tape_in(data_dir)

    def refuse(path: Path) -> int:
        if GAPS in path.parts:
            raise OSError(errno.ENOSPC, "No space left on device")
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)

    monkeypatch.setattr(disk, "create", refuse)
    result = tape.write_round(batches(**{QUOTES: quote_rows(2), GAPS: [gap_row(NOON_US)]}), now_us=NOON_US)

    assert result.failure is not None
    assert result.durable == {}
    assert set(result.left) == {GAPS, QUOTES}
    assert change_ids(data_dir) == []


@pytest.mark.parametrize("call", ["write", "fsync"])
def test_a_file_whose_write_failed_is_never_written_again(
    data_dir: DataDir, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """Its committed rows are sealed from a copy; the failed rows go to a new segment; none is lost or doubled."""
    tape = tape_in(data_dir)
    tape.write_round(quotes(3), now_us=NOON_US)
    spoilt = live_files(data_dir, QUOTES)[0]
    before = spoilt.read_bytes()
    real = getattr(disk, call)
    failed: list[bool] = []

    def fail_once(*args: object) -> None:
        if not failed:
            failed.append(True)
            raise OSError(errno.EIO, "Input/output error")
        real(*args)

    monkeypatch.setattr(disk, call, fail_once)
    result = tape.write_round(quotes(2, first_change_id=4, start_us=NOON_US + 9), now_us=NOON_US)

    assert result.failure is None
    assert result.durable == {QUOTES: 2}
    assert change_ids(data_dir) == [1, 2, 3, 4, 5]
    assert not spoilt.exists()
    tape.seal_all()
    sealed = sealed_files(data_dir, QUOTES)
    assert [read_segment(path).rows for path in sealed] == [3, 2]
    assert all(read_segment(path).sealed for path in sealed)
    assert read_identity(sealed[0]) == check(before).identity


def test_a_full_disk_leaves_the_rows_with_the_caller(data_dir: DataDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """While nothing can be written every row comes back, in order; when space is back all is well."""
    tape = tape_in(data_dir)
    tape.write_round(quotes(3), now_us=NOON_US)
    rows = quotes(4, first_change_id=4)

    with monkeypatch.context() as full:

        def refuse(*_args: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        full.setattr(disk, "write", refuse)
        result = tape.write_round(rows, now_us=NOON_US)
        assert result.failure is not None
        assert result.failure.errno == errno.ENOSPC
        assert list(result.left[QUOTES]) == rows[QUOTES]
        assert change_ids(data_dir) == [1, 2, 3]
    tape.write_round(result.left, now_us=NOON_US)
    tape.seal_all()

    assert change_ids(data_dir) == list(range(1, 8))
    assert live_files(data_dir, QUOTES) == []


def test_a_crashed_segment_is_finished_under_its_own_name(data_dir: DataDir) -> None:
    """After a crash with a torn flush the committed rows are sealed, and the torn bytes are in quarantine."""
    tape_in(data_dir).write_round(quotes(3), now_us=NOON_US)
    live = live_files(data_dir, QUOTES)[0]
    segment = read_identity(live)
    with live.open("ab") as file:
        file.write(b"\xff\xff\xff\xff torn")
    (recovered,) = recover(data_dir)

    assert (recovered.rows, recovered.cut_bytes) == (3, 9)
    assert not live.exists()
    assert recovered.sealed == data_dir.root / QUOTES / "date=2025-11-22" / live.name.removesuffix(".open")
    assert read_segment(recovered.sealed).sealed
    assert read_identity(recovered.sealed) == segment
    assert [path.read_bytes() for path in data_dir.quarantine.iterdir()] == [b"\xff\xff\xff\xff torn"]


def test_recovery_at_every_truncation_keeps_every_committed_row(data_dir: DataDir) -> None:
    """However short the power cut the file, what was committed before the cut is sealed."""
    tape = tape_in(data_dir)
    for n in range(2):
        tape.write_round(quotes(2, first_change_id=1 + 2 * n), now_us=NOON_US)
    live = live_files(data_dir, QUOTES)[0]
    whole = live.read_bytes()
    ends = [group.end_bytes for group in check(whole).groups]
    for cut in range(0, len(whole) + 1, 7):
        live.write_bytes(whole[:cut])
        (recovered,) = recover(data_dir)
        expected = 2 * sum(end <= cut for end in ends)

        assert recovered.rows == expected
        if recovered.sealed is not None:
            assert read_segment(recovered.sealed).rows == expected
            recovered.sealed.unlink()


def test_a_file_that_crashed_after_its_footer_is_only_moved(
    data_dir: DataDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crash between footer and rename costs nothing."""
    tape = tape_in(data_dir)
    tape.write_round(quotes(3), now_us=NOON_US)

    def crash(_source: Path, _target: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(disk, "rename", crash)
        with pytest.raises(KeyboardInterrupt):
            tape.seal_all()
    live = live_files(data_dir, QUOTES)[0]
    content = live.read_bytes()
    (recovered,) = recover(data_dir)

    assert recovered.sealed is not None
    assert recovered.sealed.read_bytes() == content


def test_where_live_and_sealed_both_exist_the_sealed_one_wins(data_dir: DataDir) -> None:
    """A crash between making the sealed copy and removing the live file doubles no row, before and after."""
    tape_in(data_dir).write_round(quotes(3), now_us=NOON_US)
    live = live_files(data_dir, QUOTES)[0]
    content = live.read_bytes()
    recover(data_dir)
    live.write_bytes(content)

    assert change_ids(data_dir) == [1, 2, 3]
    recover(data_dir)
    assert change_ids(data_dir) == [1, 2, 3]
    assert not live.exists()


def test_a_file_with_less_than_a_schema_goes_to_quarantine_whole(data_dir: DataDir) -> None:
    """Nothing is deleted, not even what holds nothing."""
    folder = data_dir.live_dir(QUOTES)
    folder.mkdir(parents=True)
    name = f"{SegmentName(NOON_US, 'test', 1)}.arrow.open"
    (folder / name).write_bytes(b"ARROW1\0\0\xff\xff")
    (recovered,) = recover(data_dir)

    assert recovered.sealed is None
    assert (data_dir.quarantine / name).read_bytes() == b"ARROW1\0\0\xff\xff"


def test_a_second_recorder_is_refused(data_dir: DataDir) -> None:
    """The lock holds against another process of any name, and against another name later."""
    with data_dir.lock("one"), pytest.raises(DataDirInUse, match=r"in use by recorder 'one'"), data_dir.lock("one"):
        pass
    with pytest.raises(DataDirInUse, match="holds the tape of recorder 'one', not 'two'"), data_dir.lock("two"):
        pass
    with data_dir.lock("one"):
        assert data_dir.recorder_name() == "one"


def test_a_directory_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    """A file in the way is a disk failure with a remedy."""
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(DiskError, match="cannot write to the data directory"),
        DataDir(tmp_path / "file" / "x").lock("a"),
    ):
        pass


def test_a_stream_of_all_nulls_is_written(data_dir: DataDir) -> None:
    """Empty books on both sides are rows like others."""
    row = (NOON_US, "ETH-1", NOON_US, None, None, None, None, None, None, 1, None)
    tape_in(data_dir).write_round(batches(**{QUOTES: [row]}), now_us=NOON_US)
    live = snapshot(data_dir, QUOTES).live

    assert live is not None
    assert live["bid_price"].to_pylist() == [None]
    assert live.schema.field("bid_price").type == pa.float64()
