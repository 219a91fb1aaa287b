"""What an archive run decides, without a disk: where, which days, which segments, in which parts, by which names."""

from datetime import UTC, date, datetime
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loader.archive.part import same_rows
from loader.archive.plan import Choice, Known, date_of, in_parts, is_finished, name_part
from loader.archive.read import overlaps
from loader.prepare import by_instrument, instrument_order
from recorder.runtime.data_dir import DataDir
from recorder.runtime.errors import SettingsError
from recorder.segments.archive_url import Bucket, Folder, place
from recorder.segments.encode import Identity
from recorder.segments.manifest import ArchivedSegment, BadManifest, Manifest, decode, encode

AT = datetime(2026, 5, 28, 20, 26, 40, tzinfo=UTC)


def segment(segment_id: str = "a", *, rows: int = 1, salvages: str = "", at: datetime = AT) -> ArchivedSegment:
    return ArchivedSegment(
        segment_id=segment_id, previous="", recorder="test", name=f"eth_option_quotes/date=2026-05-28/{segment_id}",
        rows=rows, first_received_at=at if rows else None, last_received_at=at if rows else None,
        first_timestamp=None, last_timestamp=None, crc32="00000000", size_bytes=1, mtime=at, salvages=salvages,
        started_at=at.isoformat(), software="test/1",
    )  # fmt: skip


def manifest(*segments: ArchivedSegment) -> Manifest:
    return Manifest(
        stream="eth_option_quotes", date="2026-05-28", part="x.parquet", bytes=1, sha256="00", compression="zstd",
        rows=sum(one.rows for one in segments), software="test/1", made_at=AT, segments=segments,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("", Folder(Path("/tape/archive"))),
        ("/mnt/ticks", Folder(Path("/mnt/ticks"))),
        ("/tape/archive/eth", Folder(Path("/tape/archive/eth"))),
        ("file:///mnt/my%20ticks", Folder(Path("/mnt/my ticks"))),
        ("s3://bucket", Bucket("bucket", "")),
        ("s3://bucket/a/b/", Bucket("bucket", "a/b")),
    ],
)
def test_an_archive_lies_where_its_url_says(url: str, expected: Folder | Bucket) -> None:
    """A path, a file URL, a bucket, or by default a folder of DATA_DIR."""
    assert expected == place(url, DataDir("/tape"))


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("http://host/x", "expected a folder"),
        ("gs://bucket", "expected a folder"),
        ("s3:///prefix", "expected s3://bucket/prefix"),
        ("s3://host:9000/bucket", "AWS_ENDPOINT"),
        ("s3://bucket/prefix?region=x", "nothing after"),
        ("file://host/x", "file:///an/absolute/path"),
        ("/tape", "is a folder of the tape itself"),
        ("/tape/eth_option_quotes", "is a folder of the tape itself"),
    ],
)
def test_a_wrong_url_is_a_wrong_setting(url: str, told: str) -> None:
    """Told with the name and the rule."""
    with pytest.raises(SettingsError) as raised:
        place(url, DataDir("/tape"))

    (problem,) = raised.value.problems
    assert problem.startswith("ARCHIVE_URL=")
    assert told in problem


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("s3://AKIA:very-s3cr3t@bucket/x", "AWS_SECRET_ACCESS_KEY"),
        ("s3://AKIA:very/s3cr3t@bucket/x", "expected s3://bucket/prefix"),
        ("s3://AKIA:very[s3cr3t@bucket/x", "expected a folder"),
        ("s3://bucket/x?key=s3cr3t", "nothing after"),
        ("gs://AKIA:s3cr3t@bucket/x", "AWS_SECRET_ACCESS_KEY"),
    ],
)
def test_a_secret_in_the_url_is_refused_and_not_shown(url: str, told: str) -> None:
    """Keys belong into the environment."""
    with pytest.raises(SettingsError) as raised:
        place(url, DataDir("/tape"))

    assert "s3cr3t" not in str(raised.value)
    assert "AKIA" not in str(raised.value)
    assert told in str(raised.value)


@pytest.mark.parametrize(
    ("now", "finished"),
    [
        (datetime(2026, 5, 28, 23, 59, tzinfo=UTC), False),
        (datetime(2026, 5, 29, 0, 59, 59, tzinfo=UTC), False),
        (datetime(2026, 5, 29, 1, 0, tzinfo=UTC), True),
        (datetime(2026, 6, 29, tzinfo=UTC), True),
    ],
)
def test_a_day_is_finished_an_hour_after_it_ended(now: datetime, finished: bool) -> None:
    """By then its segments are sealed."""
    day = date(2026, 5, 28)

    assert finished == is_finished(day, now)
    assert finished == Choice().wants(day, now)
    assert Choice(today=True).wants(day, now)
    assert Choice(date=day).wants(day, now)
    assert not Choice(date=date(2026, 5, 27)).wants(day, now)


@pytest.mark.parametrize(
    ("folder", "expected"),
    [("date=2026-05-28", date(2026, 5, 28)), ("date=20260528", None), ("2026-05-28", None), ("date=x", None)],
)
def test_a_folder_names_a_day_or_none(folder: str, expected: date | None) -> None:
    """Only as a recorder writes it."""
    assert expected == date_of(folder)


class Piece(NamedTuple):
    """What is cut."""

    rows: int


@given(st.lists(st.integers(0, 12), max_size=40), st.integers(1, 10))
def test_parts_are_cut_between_segments(sizes: list[int], most: int) -> None:
    """Every segment once, in order; a part keeps the bound unless one segment alone is larger; none could grow."""
    parts = [[piece.rows for piece in part] for part in in_parts(map(Piece, sizes), most)]

    assert sizes == [size for part in parts for size in part]
    for part, following in zip(parts, [*parts, None][1:], strict=True):
        assert sum(part) <= most or len([size for size in part if size]) == 1
        assert following is None or sum(part) + following[0] > most


def test_a_part_is_named_by_its_segments() -> None:
    """The same ones give the same name, others another; names sort by time."""
    one, other, later = segment("a"), segment("b"), segment("c", at=AT.replace(hour=21))

    assert name_part([one, other]) == name_part([one, other])
    assert len({name_part([one, other]), name_part([one]), name_part([other, one])}) == 3
    assert name_part([one]).startswith("20260528T202640000000Z-")
    assert name_part([one]) < name_part([later])


def test_what_is_archived_is_known_by_id_and_by_salvage() -> None:
    """Copies and salvages of archived segments are there; one whose salvage is there is refused."""
    known = Known([manifest(segment("a"), segment("b", salvages="damaged"))])

    assert known.has("a", "")
    assert known.has("new", "a")
    assert not known.has("new", "")
    assert "as b" in known.why_not("damaged")
    assert known.why_not("a") == ""
    known.add(
        Identity(segment_id="c", previous="", stream="x", recorder="r", started_at="", software="", salvages="d")
    )
    assert known.has("c", "")
    assert known.why_not("d")


def test_a_manifest_comes_back_as_it_was_written() -> None:
    """Microseconds and nothings included."""
    whole = manifest(segment("a", rows=3, at=AT.replace(microsecond=1)), segment("b", rows=0))

    assert whole == decode(encode(whole))


def test_every_flipped_bit_of_a_manifest_is_found() -> None:
    """Each byte is under the checksum, or part of it."""
    data = encode(manifest(segment()))
    for place_, byte in enumerate(data[:-1]):
        flipped = bytearray(data)
        flipped[place_] = byte ^ 1
        with pytest.raises(BadManifest):
            decode(bytes(flipped))


def test_half_a_manifest_is_none() -> None:
    """Wherever it was cut."""
    data = encode(manifest(segment()))
    for end in range(len(data) - 1):
        with pytest.raises(BadManifest):
            decode(data[:end])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"format": 2}, "its format is 2"),
        ({"rows": 7}, "rows"),
        ({"part": "../x.parquet"}, "no part of a day"),
        ({"date": "../.."}, "no part of a day"),
    ],
)
def test_a_manifest_of_another_kind_is_refused(change: dict[str, object], told: str) -> None:
    """A newer format, or one that leads out of the archive, though its checksum fits."""
    with pytest.raises(BadManifest, match=told):
        decode(encode(msgspec.structs.replace(manifest(segment()), **change)))


def test_a_replay_takes_parts_by_their_segments_times() -> None:
    """A half-open range of received_at."""
    part = manifest(segment("a"), segment("b", at=AT.replace(hour=22)))

    assert overlaps(part, None, None)
    assert overlaps(part, AT, AT.replace(hour=21))
    assert not overlaps(part, AT.replace(hour=21), AT.replace(hour=22))
    assert not overlaps(part, None, AT)
    assert not overlaps(manifest(segment("c", rows=0)), None, None)


def table(instruments: list[str | None], times: list[int]) -> pa.Table:
    return pa.table({
        "timestamp": pa.array(times, pa.timestamp("us", tz="UTC")),
        "instrument": pa.array(instruments, pa.string()),
        "number": range(len(times)),
    })  # fmt: skip


@given(st.lists(st.tuples(st.sampled_from(["b", "a", "é", "", None]), st.integers(0, 5)), min_size=1, max_size=30))
def test_rows_are_ordered_by_name_then_time_stably(rows: list[tuple[str | None, int]]) -> None:
    """As sorted() does it; the order of a load keeps the instruments as they come."""
    unsorted = table([name for name, _ in rows], [at for _, at in rows])

    expected = sorted(range(len(rows)), key=lambda n: ((rows[n][0] or "").encode(), rows[n][1]))
    assert expected == instrument_order(unsorted, by_name=True).tolist()
    assert sorted(expected) == sorted(by_instrument(unsorted)["number"].to_pylist())


def test_floats_are_compared_by_their_bits() -> None:
    """A NaN is itself, -0.0 is not 0.0, a null is no number, and what lies under a null does not count."""
    values = [1.0, float("nan"), float("inf"), None, -0.0]
    one = pa.table({"x": pa.chunked_array([values[:2], values[2:]])})
    bits = np.array([1.0, np.nan, np.inf, 123.0, -0.0])
    other = pa.table({"x": pa.array(bits, mask=np.array([False, False, False, True, False]))})

    assert same_rows(one, other)
    for place_, changed in [(0, 2.0), (1, None), (3, 0.0), (4, 0.0)]:
        wrong: list[float | None] = [*values]
        wrong[place_] = changed
        assert not same_rows(one, pa.table({"x": pa.array(wrong)}))
    assert not same_rows(one, pa.table({"y": one["x"]}))
    assert not same_rows(one, one.slice(1))
