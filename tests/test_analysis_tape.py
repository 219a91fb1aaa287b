"""One tape: archived, sealed, and live rows as one table, each row once, whatever moves meanwhile."""

import logging
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import analysis
from analysis import tape as module
from loader.archive.store import open_store
from loader.settings import LoaderSettings
from recorder.runtime.data_dir import DataDir
from recorder.segments.archived import Archived
from recorder.segments.layout import sealed_files
from recorder.segments.manifest import Manifest
from recorder.segments.schemas import SCHEMAS, rows_to_batch, stream_kind
from recorder.segments.tape import Tape
from tests.fix_archive import DAY_US, archive, flip_a_bit, parts
from tests.fix_postgres import START_US, make_rows, record

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
