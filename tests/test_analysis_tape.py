"""One tape: archived, sealed, and live rows as one table, each row once, whatever moves meanwhile."""

import logging
import shutil
import struct
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import analysis
from analysis import tape as module
from analysis.errors import BadQuery, NoTape
from loader.archive.store import open_store
from loader.settings import LoaderSettings
from recorder.runtime.data_dir import DataDir
from recorder.segments.archived import Archived
from recorder.segments.encode import encode_segment
from recorder.segments.layout import sealed_files
from recorder.segments.manifest import Manifest
from recorder.segments.schemas import SCHEMAS, rows_to_batch, stream_kind
from recorder.segments.tape import Tape
from tests.fix_archive import DAY_US, archive, flip_a_bit, parts
from tests.fix_postgres import START_US, make_rows, record
from tests.fix_programs import Programs
from tests.segment_tools import identity

QUOTES, TRADES, OPTIONS = "eth_option_quotes", "eth_option_trades", "eth_option_instruments"
US_PER_SEC = 1_000_000
START = datetime.fromtimestamp(START_US / 1e6, UTC)


def at(second: float) -> datetime:
    return START + timedelta(seconds=second)


@pytest.fixture
def tape(tmp_path: Path) -> Path:
    """Return a tape of quotes, trades, and options: six segments of ten seconds and 50 rows each, two days apart."""
    root = tmp_path / "tape"
    starts = [START_US + day * DAY_US + second * US_PER_SEC for day in (0, 1) for second in (0, 10, 20)]
    record(root, [{stream: make_rows(stream, 50, start_us=start) for stream in (QUOTES, TRADES)} for start in starts])
    record(root, [{OPTIONS: make_rows(OPTIONS, 6)}])
    return root


def live(root: Path, rows: int, start_us: int) -> Tape:
    """Write rows to a live segment."""
    writer = Tape(DataDir(root), recorder="live", software="x", segment_max_age_s=1e9, segment_max_bytes=1 << 40)
    batch = rows_to_batch(SCHEMAS[stream_kind(QUOTES) or ""], make_rows(QUOTES, rows, start_us=start_us))
    assert writer.write_round({QUOTES: [batch]}, now_us=start_us).failure is None
    return writer


def rows(root: Path, stream: str = QUOTES, **options: Any) -> list[tuple[Any, ...]]:
    with analysis.open(root, **options) as con:
        found = con.sql(f"SELECT * FROM {stream}").to_arrow_table().to_pylist()
    return sorted((tuple(row.values()) for row in found), key=repr)


def test_archived_sealed_and_live_rows_are_one_table(tape: Path) -> None:
    """Each row once: before anything is archived, beside the archive, and when the segments are gone."""
    writer = live(tape, 7, START_US + 3 * DAY_US)
    before = rows(tape)
    assert len(before) == 307
    archive(tape)
    assert rows(tape) == before
    for path in sealed_files(DataDir(tape), QUOTES)[:4]:
        path.unlink()
    assert rows(tape) == before
    writer.seal_all()
    assert rows(tape) == before
    shutil.rmtree(tape / QUOTES)
    shutil.rmtree(tape / "live")
    assert len(rows(tape)) == 300
    assert rows(tape, archive=tape / "archive") == rows(tape)


def test_a_copy_of_an_archived_segment_counts_once(tape: Path) -> None:
    """Under another name, too: what counts is the segment_id."""
    before = rows(tape)
    archive(tape)
    first = sealed_files(DataDir(tape), QUOTES)[0]
    shutil.copy(first, first.with_name(first.name.replace("-test-", "-copy-")))

    assert rows(tape) == before


@pytest.mark.parametrize("archived", [False, True])
@pytest.mark.parametrize("stream", [QUOTES, TRADES])
def test_a_range_is_half_open_and_opens_no_other_file(
    tape: Path, stream: str, archived: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Quotes by received_at, trades by timestamp; files that cannot have rows of it may be anything."""
    column = 0 if stream == TRADES else 2
    first_s = 10.01 if stream == QUOTES else 19.96  # a row is received 50 ms later than it was made
    begin, end = at(first_s), at(first_s + 0.02)
    expected = [row for row in rows(tape, stream) if begin <= row[column] < end]
    if archived:
        archive(tape)
        shutil.rmtree(tape / stream)
        outside = [path for path in parts(tape) if stream in str(path)][1:]
    else:
        outside = [path for path in sealed_files(DataDir(tape), stream) if "T202650" not in path.name]
        if stream == TRADES:
            outside = outside[:1]  # what is healed comes later
    for path in outside:
        path.write_bytes(b"not a segment")
    with caplog.at_level(logging.WARNING):
        found = rows(tape, stream, start=begin, end=end.isoformat())

    assert found == expected
    assert len(found) in (20, 21)
    assert caplog.records == []


def test_streams_are_chosen_by_name_or_kind(tape: Path) -> None:
    """What tells of gaps and options is always there."""
    with analysis.open(tape, streams=["trades"]) as con:
        tables = {row[0] for row in con.sql("SHOW TABLES").fetchall()}
    assert tables == {TRADES, "trades", OPTIONS, "instruments", "data_gaps", "gaps", "options", "trade_flow"}


@pytest.mark.parametrize("chosen", ["quotes", ["quotes"], [QUOTES]])
def test_a_stream_is_chosen_by_a_text_too(tape: Path, chosen: str | list[str]) -> None:
    """And what is no stream, and no kind of one, is refused."""
    with analysis.open(tape, streams=chosen) as con:
        assert con.sql("SELECT count(*) FROM quotes").fetchall() == [(300,)]
    with pytest.raises(NoTape, match="no kind of stream nosuch"):
        analysis.open(tape, streams=["quotes", "nosuch"])


def test_a_range_is_of_times_or_dates_in_their_order(tape: Path) -> None:
    """A date is its midnight, UTC; what ends before it begins is refused."""
    assert len(rows(tape, start=at(0).date())) == 300
    assert len(rows(tape, start=at(0), end=at(0))) == 0
    with pytest.raises(BadQuery, match="before it begins"):
        analysis.open(tape, start=at(1), end=at(0))


def test_a_tape_is_refreshed_from_another_folder(tape: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it lies was said in the terms of the folder in which it was opened."""
    archive(tape)
    monkeypatch.chdir(tmp_path)
    with analysis.open(tape.name, archive=f"{tape.name}/archive") as con:
        monkeypatch.chdir("/")
        analysis.refresh(con)
        assert con.sql("SELECT count(*) FROM quotes").fetchall() == [(300,)]


def test_the_folder_of_an_archive_is_opened_by_itself(tape: Path) -> None:
    """As one in S3 is."""
    before = rows(tape)
    archive(tape)

    assert rows(tape / "archive") == before
    assert analysis.scan(QUOTES, tape / "archive").collect().height == len(before)


def test_what_cannot_be_read_is_no_tape(tape: Path) -> None:
    """A part that a manifest names and that is gone, and a store that is not there, are told in a line."""
    archive(tape)
    shutil.rmtree(tape / QUOTES)
    part = next(path for path in parts(tape) if QUOTES in str(path))
    part.unlink()
    with pytest.raises(NoTape, match=part.name):
        analysis.open(tape)


def test_options_join_by_their_instrument(tape: Path) -> None:
    """One row an option, as it was told last."""
    with analysis.open(tape) as con:
        joined = con.sql(f"SELECT count(*), count(strike) FROM {QUOTES} JOIN options USING (instrument)").fetchall()
        assert con.sql("SELECT count(*), count(DISTINCT instrument) FROM options").fetchall() == [(3, 3)]
    assert joined[0][0] == 300


def test_a_damaged_manifest_is_named_and_the_segments_count(tape: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Parquet that no manifest names does not exist; while the segments are there nothing is missing."""
    before = rows(tape)
    archive(tape)
    for manifest in (tape / "archive" / "manifests").rglob("*.json"):
        flip_a_bit(manifest)
    with caplog.at_level(logging.WARNING):
        assert rows(tape) == before
    assert any("manifests" in record.getMessage() for record in caplog.records)


def test_polars_scans_the_same(tape: Path) -> None:
    """As a LazyFrame, with the range and the columns that are asked for."""
    archive(tape)
    live(tape, 7, START_US + 3 * DAY_US)
    frame = analysis.scan(QUOTES, tape, start=at(10)).select("instrument", "change_id").collect()

    assert frame.shape == (257, 2)
    assert analysis.scan(TRADES, tape).collect().height == 300
    with pytest.raises(Exception, match="the tape has no stream nothing; it has eth_option_instruments"):
        analysis.scan("nothing", tape)


def test_an_archive_in_s3_is_opened_by_itself(tape: Path, bucket: LoaderSettings) -> None:
    """And beside a tape whose segments are gone."""
    store = open_store(bucket, lambda: None)
    assert store is not None
    before = rows(tape)
    archive(tape, store=store)
    shutil.rmtree(tape / QUOTES)

    assert rows(bucket.archive_url or "") == before  # type: ignore[arg-type]
    assert rows(tape, archive=bucket.archive_url) == before


def test_nothing_is_missed_or_doubled_while_segments_move(tape: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sealed, archived, and pruned between two looks of a reader: each row once, whichever look it is."""
    before = rows(tape)
    real_snapshot, real_manifests = module.snapshot, Archived.manifests  # type: ignore[attr-defined]
    for moment in ("before manifests", "after manifests"):
        shutil.rmtree(tape / "archive", ignore_errors=True)
        writer = live(tape, 7, START_US + 3 * DAY_US)

        def archive_now(root: Path = tape, writer: Tape = writer) -> None:
            writer.seal_all()
            archive(root)

        def snapshot(*arguments: Any) -> Any:
            found = real_snapshot(*arguments)
            if moment == "before manifests":  # noqa: B023 - called within its turn
                archive_now()
            return found

        def manifests(self: Any, stream: str) -> list[Manifest]:
            found = list(real_manifests(self, stream))
            if moment == "after manifests":  # noqa: B023 - as above
                archive_now()
            return found  # type: ignore[return-value]

        with monkeypatch.context() as patch:
            patch.setattr(module, "snapshot", snapshot)
            patch.setattr(Archived, "manifests", manifests)
            found = rows(tape)
        assert len(found) == len(before) + 7, moment
        for path in sealed_files(DataDir(tape), QUOTES)[6:]:
            path.unlink()


# Damage


def looks(root: Path, *, verify: bool) -> list[set[tuple[Any, ...]]]:
    """Return the rows of quotes by DuckDB and by polars."""
    scanned = analysis.scan(QUOTES, root, verify=verify).collect().to_arrow()
    return [set(rows(root, verify=verify)), {tuple(row.values()) for row in scanned.to_pylist()}]


def flushed(root: Path) -> Path:
    """Write one more segment of quotes, of four flushes of ten rows."""
    writer = live(root, 10, START_US + 3 * DAY_US)
    for number in (1, 2, 3):
        at_us = START_US + 3 * DAY_US + number * US_PER_SEC
        batch = rows_to_batch(SCHEMAS["quotes"], make_rows(QUOTES, 10, start_us=at_us))
        assert writer.write_round({QUOTES: [batch]}, now_us=at_us).failure is None
    writer.seal_all()
    return sealed_files(DataDir(root), QUOTES)[-1]


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1 << (at % 8)
    path.write_bytes(data)


@pytest.mark.parametrize("share", [0.0, 0.02, 0.2, 0.4, 0.6, 0.98])
def test_who_verifies_sees_only_good_rows_and_which_file_is_damaged(
    tape: Path, share: float, caplog: pytest.LogCaptureFixture
) -> None:
    """A bit flipped anywhere in a sealed segment: at most the flush that it is in, and the next, are missing."""
    path = flushed(tape)
    before = set(rows(tape))
    flip(path, int(path.stat().st_size * share))
    found = looks(tape, verify=True)
    named = [record.getMessage() for record in caplog.records]

    for some in found:
        assert some <= before
        assert len(before - some) in (0, 10, 20)
    assert len(named) == 2
    assert all(path.name in line for line in named)


@pytest.mark.parametrize("pruned", [False, True])
def test_who_verifies_sees_no_row_of_a_damaged_part_but_those_of_its_segments(
    tape: Path, pruned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """A part whose checksum does not fit counts as if it were not there; its segments do where they still are."""
    before = set(rows(tape))
    archive(tape)
    part = next(path for path in parts(tape) if QUOTES in str(path))
    flip_a_bit(part)
    if pruned:
        shutil.rmtree(tape / QUOTES)
    found = looks(tape, verify=True)
    named = [record.getMessage() for record in caplog.records]

    assert [some <= before for some in found] == [True, True]
    assert [len(some) for some in found] == ([150, 150] if pruned else [300, 300])
    assert len(named) == 2
    assert all(str(part) in line for line in named)


def test_a_damaged_footer_costs_no_row(tape: Path, caplog: pytest.LogCaptureFixture, full: bool) -> None:
    """Cut off, or with a bit flipped anywhere: the rows are found without it, and whoever cannot use it says so."""
    path = flushed(tape)
    before, whole = set(rows(tape)), path.read_bytes()
    footer_bytes = int.from_bytes(whole[-10:-6], "little") + 10
    for cut in range(1, footer_bytes, 97 if full else 301):
        path.write_bytes(whole[:-cut])
        caplog.clear()
        assert looks(tape, verify=False) == [before, before]
        assert len([record for record in caplog.records if path.name in record.getMessage()]) == 2
    said = 0
    step = 13 if full else 61
    for at in range(len(whole) - footer_bytes, len(whole), step):
        path.write_bytes(whole)
        flip(path, at)
        caplog.clear()
        assert looks(tape, verify=False) == [before, before]
        said += len([record for record in caplog.records if path.name in record.getMessage()])
    assert said > footer_bytes / step


def test_a_text_that_leads_out_of_the_file_does_not_end_the_process(tape: Path, programs: Programs) -> None:
    """Where a text begins is a number in the file: flipped, it leads anywhere. Its rows are left out, and named."""
    path = flushed(tape)
    before = len(rows(tape))
    batch = rows_to_batch(SCHEMAS["quotes"], make_rows(QUOTES, 12))
    starts = pa.array(batch["instrument"]).buffers()[1].to_pybytes()[: 13 * 4]
    wrong = struct.pack("<i", 2**30).join((starts[:24], starts[28:]))
    whole = encode_segment(batch.schema, identity(QUOTES, "another"), [batch], compression=None)
    assert whole.count(starts) == 1
    path.write_bytes(whole.replace(starts, wrong))
    ran = programs.run("analysis", "sql", f"SELECT count(*) AS n, max(instrument) FROM {QUOTES}", "--csv",
                       "--data-dir", tape)  # fmt: skip

    assert ran.process.returncode == 0, ran.err
    assert f"{before - 40}," in ran.out
    assert f"{path.name}: all but 0 rows" in ran.err
