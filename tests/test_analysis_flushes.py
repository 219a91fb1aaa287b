"""Columns of a segment by the places that its footer and messages tell: as Arrow reads them, or not at all."""

import contextlib
import logging
import random
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st

import analysis
from analysis import rows as module
from analysis.flushes import READ_ERRORS, count_rows, read_columns
from recorder.runtime.data_dir import DataDir
from recorder.segments.encode import END_OF_STREAM, encode_segment
from recorder.segments.layout import sealed_files, us_to_datetime
from recorder.segments.reader import read_segment
from recorder.segments.schemas import SCHEMAS, rows_to_batch, stream_kind
from recorder.segments.tape import Tape
from tests.fix_archive import DAY_US, archive
from tests.fix_postgres import START_US, make_rows, record
from tests.segment_tools import by_another, identity

QUOTES = "eth_option_quotes"
QUOTES_SCHEMA = SCHEMAS["quotes"]
ALL = range(len(QUOTES_SCHEMA))
READS = (partial(read_columns, needed=ALL, schema=QUOTES_SCHEMA), partial(count_rows, schema=QUOTES_SCHEMA))
TEXTS = ("", "ETH-27NOV26-1000-C", "é", "漢字", "🦆" * 9)


def column(chance: random.Random, kind: pa.DataType, rows: int, nulls: float) -> pa.Array:
    """Return values of a type, a share of them null."""
    make: dict[pa.DataType, Callable[[], Any]] = {
        pa.string(): lambda: chance.choice(TEXTS),
        pa.bool_(): lambda: chance.random() < 0.5,
        pa.float64(): lambda: chance.choice((0.0, -1.5, float("inf"), chance.random())),
        pa.int32(): lambda: chance.randrange(-(2**31), 2**31),
    }
    number = make.get(kind, lambda: chance.choice((7, chance.randrange(-(2**55), 2**55))))
    return pa.array([None if chance.random() < nulls else number() for _ in range(rows)], type=kind)


def flush(chance: random.Random, schema: pa.Schema, rows: int) -> pa.RecordBatch:
    """Return rows of which each column has no nulls, some, or nothing else; cut out of more, or not."""
    before = chance.choice((0, 0, 3, 8))
    columns = [
        column(chance, field.type, before + rows + chance.choice((0, 5)), chance.choice((0.0, 0.0, 0.3, 1.0)))
        for field in schema
    ]
    return pa.RecordBatch.from_arrays([one.slice(before, rows) for one in columns], schema=schema)


def segment(
    path: Path, flushes: Sequence[pa.RecordBatch], compression: str | None = "zstd", name: str = "one"
) -> Path:
    path.write_bytes(encode_segment(flushes[0].schema, identity(QUOTES, name), flushes, compression=compression))
    return path


def by_arrow(path: Path, needed: Sequence[int]) -> pa.Table:
    return pa.ipc.open_file(path.read_bytes()).read_all().replace_schema_metadata(None).select(list(needed))


def quotes(path: Path, compression: str | None = "zstd", flushes: int = 3) -> Path:
    """Write a segment of a few flushes of 12 quotes, of which some columns have nulls."""
    chance = random.Random(5)
    return segment(path, [flush(chance, QUOTES_SCHEMA, 12) for _ in range(flushes)], compression)


def last_commit(path: Path) -> range:
    """Return where it lies."""
    end = read_segment(path).groups[-1].end_bytes
    return range(path.read_bytes().rindex(b"\xff\xff\xff\xff", 0, end), end)


def told(path: Path) -> Iterator[int]:
    """Yield the places of the bytes that say where the others lie: the footer's, and those of each batch of rows."""
    data = path.read_bytes()
    (footer_bytes,) = struct.unpack_from("<i", data, len(data) - 10)
    yield from range(len(data) - footer_bytes - 10 - len(END_OF_STREAM), len(data))
    at, end = 16 + struct.unpack_from("<i", data, 12)[0], len(data) - footer_bytes - 10 - len(END_OF_STREAM)
    number = 0
    while at < end:
        metadata_bytes = 8 + struct.unpack_from("<i", data, at + 4)[0]
        if number % 2 == 0:
            yield from range(at, at + metadata_bytes)
        at += metadata_bytes + pa.ipc.read_message(data[at:]).body.size
        number += 1


# What is read


@settings(max_examples=120, deadline=None)
@given(
    kind=st.sampled_from(sorted(SCHEMAS)),
    rows=st.lists(st.integers(1, 70), min_size=1, max_size=4),
    compression=st.sampled_from([None, "zstd"]),
    seed=st.integers(0, 2**32),
)
@example(kind="instruments", rows=[64, 1, 8, 9], compression=None, seed=1)
def test_columns_are_what_arrow_reads(
    tmp_path_factory: pytest.TempPathFactory, kind: str, rows: list[int], compression: str | None, seed: int
) -> None:
    """Of every kind of stream, whatever is null or empty, and some columns as well as all."""
    chance, schema = random.Random(seed), SCHEMAS[kind]
    path = tmp_path_factory.getbasetemp() / "columns.arrow"
    segment(path, [flush(chance, schema, some) for some in rows], compression)
    needed = sorted(chance.sample(range(len(schema)), chance.randint(1, len(schema))))
    found = read_columns(path, needed, schema)

    found.validate(full=True)
    assert found.schema == pa.schema([schema.field(number) for number in needed])
    assert found.equals(by_arrow(path, needed))
    assert count_rows(path, schema) == sum(rows)


def test_counting_reads_the_end_of_a_file_alone(tmp_path: Path) -> None:
    """Whatever lies before its last commit: that states how many rows there are."""
    path = quotes(tmp_path / "whole.arrow")
    commit = last_commit(path)
    path.write_bytes(b"\0" * commit.start + path.read_bytes()[commit.start :])

    assert count_rows(path, QUOTES_SCHEMA) == 36


def test_files_whose_commits_do_not_say_are_counted() -> None:
    """Those of the first programs, and of others: as their messages tell."""
    files = sorted((Path(__file__).parent / "fixtures/format-1").glob("*/date=*/*.arrow"))
    checked = [read_segment(path) for path in files]
    kinds = [SCHEMAS[stream_kind(path.parent.parent.name) or ""] for path in files]
    counted = [count_rows(path, kind) for path, kind in zip(files, kinds, strict=True)]

    assert len(files) == 6
    assert counted == [one.rows for one in checked]
    assert min(counted) > 0


@pytest.mark.parametrize("stated", ["-1", "4_0", " 4", "004", "٤", "4.0", "", "1" * 30])
def test_a_number_of_rows_that_cannot_be_is_not_believed(tmp_path: Path, stated: str) -> None:
    """Though its checksum fits: the messages are counted."""
    rows = {"rows": stated, "rows_crc32": f"{zlib.crc32(stated.encode()):08x}"}
    path = tmp_path / "odd.arrow"
    path.write_bytes(by_another(lambda _: rows))

    with contextlib.suppress(*READ_ERRORS):
        assert count_rows(path, QUOTES_SCHEMA) == 4


def test_a_long_commit_is_counted(tmp_path: Path) -> None:
    """One that begins before what is read of the file's end."""
    path = segment(tmp_path / "long.arrow", [flush(random.Random(1), QUOTES_SCHEMA, 9)] * 2, name="n" * 9000)

    assert count_rows(path, QUOTES_SCHEMA) == 18


def test_a_footer_that_leads_to_an_earlier_commit_is_not_followed(tmp_path: Path) -> None:
    """The last message ends where the file's messages do, or the file is damaged."""
    path = quotes(tmp_path / "whole.arrow")
    data = bytearray(path.read_bytes())
    last = data.rindex(struct.pack("<q", last_commit(path).start))
    data[last : last + 24] = data[last - 48 : last - 24]
    path.write_bytes(data)

    with pytest.raises(READ_ERRORS):
        count_rows(path, QUOTES_SCHEMA)


def test_columns_of_nothing_but_nulls(tmp_path: Path) -> None:
    """As many as there are rows."""
    nothing = pa.RecordBatch.from_arrays([pa.nulls(9, one.type) for one in QUOTES_SCHEMA], schema=QUOTES_SCHEMA)
    path = segment(tmp_path / "nulls.arrow", [nothing, nothing])
    found = read_columns(path, ALL, QUOTES_SCHEMA)

    found.validate(full=True)
    assert found.to_pylist() == [dict.fromkeys(QUOTES_SCHEMA.names)] * 18


@pytest.mark.parametrize("compression", ["lz4", None, "zstd"])
def test_a_segment_is_read_whatever_it_is_compressed_with(
    tmp_path: Path, compression: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What is not read by its places is read whole, and nothing is said of it."""
    record(tmp_path, [{QUOTES: make_rows(QUOTES, 50)}])
    (path,) = sealed_files(DataDir(tmp_path), QUOTES)
    flushes = read_segment(path).groups
    segment(path, [one.batch for one in flushes], compression)
    if compression == "lz4":
        with pytest.raises(READ_ERRORS):
            read_columns(path, ALL, QUOTES_SCHEMA)
    with caplog.at_level(logging.WARNING), analysis.open(tmp_path) as con:
        assert con.sql(f"FROM {QUOTES}").to_arrow_table().num_rows == 50
        assert con.sql(f"SELECT count(*) FROM {QUOTES}").fetchall() == [(50,)]
    assert caplog.records == []


@pytest.mark.parametrize("rows", [[], [0], [5, 0]])
def test_a_segment_with_a_flush_of_no_rows_is_read_whole(tmp_path: Path, rows: list[int]) -> None:
    """No writer of ours makes one, so its messages are not like the others."""
    chance = random.Random(1)
    flushes = [flush(chance, QUOTES_SCHEMA, some) for some in rows]
    path = tmp_path / "none.arrow"
    path.write_bytes(encode_segment(QUOTES_SCHEMA, identity(), flushes))

    with pytest.raises(READ_ERRORS):
        read_columns(path, ALL, QUOTES_SCHEMA)


def test_a_file_that_is_gone_is_told_from_one_that_is_damaged(tmp_path: Path) -> None:
    """Who asked looks where its rows went."""
    for read in READS:
        with pytest.raises(FileNotFoundError):
            read(tmp_path / "gone.arrow")


# Damage


@pytest.mark.timeout(600)  # the full size takes long
@pytest.mark.parametrize("compression", ["zstd", None])
def test_a_bit_flipped_in_what_tells_of_places_changes_no_row(
    tmp_path: Path, compression: str | None, full: bool
) -> None:
    """Anywhere in the footer or in a message's metadata: the same rows, or an error."""
    path = quotes(tmp_path / "whole.arrow", compression)
    before, whole = read_columns(path, ALL, QUOTES_SCHEMA), path.read_bytes()
    flipped, refused = tmp_path / "flipped.arrow", 0
    places = [(at, bit) for at in told(path) for bit in range(8)][:: 1 if full else 37]
    for at, bit in places:
        data = bytearray(whole)
        data[at] ^= 1 << bit
        flipped.write_bytes(data)
        try:
            found, rows = read_columns(flipped, ALL, QUOTES_SCHEMA), count_rows(flipped, QUOTES_SCHEMA)
        except READ_ERRORS:
            refused += 1
        else:
            assert rows == before.num_rows, at
            assert found.equals(before), at
    assert refused > len(places) / 2


def test_a_bit_flipped_in_the_last_commit_changes_no_count(tmp_path: Path) -> None:
    """No later checksum is over it: as many rows, or an error."""
    path = quotes(tmp_path / "whole.arrow")
    whole, flipped, counted = path.read_bytes(), tmp_path / "flipped.arrow", 0
    places = last_commit(path)
    for at in places:
        for bit in range(8):
            data = bytearray(whole)
            data[at] ^= 1 << bit
            flipped.write_bytes(data)
            with contextlib.suppress(*READ_ERRORS):
                assert count_rows(flipped, QUOTES_SCHEMA) == 36, (at, bit)
                counted += 1
    assert counted > 6 * len(places)


@settings(max_examples=400, deadline=None)
@given(seed=st.integers(0, 2**32), compression=st.sampled_from([None, "zstd"]), flushes=st.integers(1, 3))
def test_whatever_a_file_says_no_array_leads_out_of_its_bytes(
    tmp_path_factory: pytest.TempPathFactory, seed: int, compression: str | None, flushes: int
) -> None:
    """Numbers of any size in any places: valid columns, or an error."""
    chance = random.Random(seed)
    path = quotes(tmp_path_factory.getbasetemp() / "wild.arrow", compression, flushes)
    data = bytearray(path.read_bytes())
    places = [*told(path), *range(len(data))]
    for _ in range(chance.randint(1, 3)):
        form, number = chance.choice([("<b", 7), ("<h", 15), ("<i", 31), ("<q", 63)])
        value = chance.choice((0, -1, 1, 8, chance.randrange(-(2**number), 2**number), 2**number - 1))
        at = min(chance.choice(places) // 4 * 4, len(data) - 8)
        struct.pack_into(form, data, at, value if -(2**number) <= value < 2**number else 0)
    path.write_bytes(data)
    try:
        found = read_columns(path, ALL, QUOTES_SCHEMA)
        found.validate(full=True)
        rows = count_rows(path, QUOTES_SCHEMA)
    except READ_ERRORS:
        return
    assert found.num_rows == rows


def test_a_file_cut_off_anywhere_is_refused(tmp_path: Path, full: bool) -> None:
    """Empty, too."""
    path = quotes(tmp_path / "cut.arrow")
    whole = path.read_bytes()
    for size in range(0, len(whole), 1 if full else 37):
        path.write_bytes(whole[:size])
        for read in READS:
            with pytest.raises(READ_ERRORS):
                read(path)


@pytest.mark.parametrize("stated", [0, -2, 12 * 8 + 1, 2**31, 2**40, 2**63 - 1])
def test_a_buffer_that_claims_another_size_is_refused(tmp_path: Path, stated: int) -> None:
    """Before anything is allocated for it."""
    schema = pa.schema([QUOTES_SCHEMA.field("change_id")])
    flushes = [pa.record_batch([pa.array([7] * 1200)], schema=schema)]
    path = segment(tmp_path / "claims.arrow", flushes)
    data = path.read_bytes()
    size = struct.pack("<q", 1200 * 8)
    at = data.index(size + b"\x28\xb5\x2f\xfd")
    path.write_bytes(data[:at] + struct.pack("<q", stated) + data[at + 8 :])

    with pytest.raises(READ_ERRORS):
        read_columns(path, [0], schema)


def test_a_frame_that_is_larger_than_its_rows_need_is_refused(tmp_path: Path) -> None:
    """Of a hundred bytes a frame may make gigabytes."""
    schema = pa.schema([QUOTES_SCHEMA.field("change_id")])
    values = random.Random(1).choices(range(2**62), k=4000)
    path = segment(tmp_path / "bomb.arrow", [pa.record_batch([pa.array(values)], schema=schema)])
    data = bytearray(path.read_bytes())
    at = data.index(struct.pack("<q", 4000 * 8) + b"\x28\xb5\x2f\xfd")
    bomb = zstandard.compress(bytes(1 << 26))
    data[at : at + 8 + len(bomb)] = struct.pack("<q", 1 << 26) + bomb
    path.write_bytes(data)

    with pytest.raises(pa.ArrowInvalid, match="larger than its rows need"):
        read_columns(path, [0], schema)


def test_columns_of_another_stream_are_refused(tmp_path: Path) -> None:
    """By name and by type."""
    path = quotes(tmp_path / "quotes.arrow")
    for schema in (SCHEMAS["trades"], QUOTES_SCHEMA.set(3, pa.field("bid_price", pa.int64()))):
        with pytest.raises(pa.ArrowInvalid, match="other columns"):
            read_columns(path, [0], schema)


# Counting


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], str]]:
    """Return which columns are asked of segments, and under which condition."""
    questions: list[tuple[list[str], str]] = []
    real = module.Rows.scanner

    def scanner(self: module.Rows, columns: Any = None, filter: Any = None, **options: Any) -> Any:  # noqa: A002
        questions.append((columns, "" if filter is None else str(filter)))
        return real(self, columns, filter, **options)

    monkeypatch.setattr(module.Rows, "scanner", scanner)
    return questions


@pytest.fixture
def tape(tmp_path: Path) -> Path:
    """Return a tape of quotes: two sealed segments of 50 rows, a day apart, and 7 live rows."""
    root = tmp_path / "tape"
    record(root, [{QUOTES: make_rows(QUOTES, 50, start_us=START_US + day * DAY_US)} for day in (0, 1)])
    writer = Tape(DataDir(root), recorder="live", software="x", segment_max_age_s=1e9, segment_max_bytes=1 << 40)
    batch = rows_to_batch(QUOTES_SCHEMA, make_rows(QUOTES, 7, start_us=START_US + 3 * DAY_US))
    assert writer.write_round({QUOTES: [batch]}, now_us=START_US + 3 * DAY_US).failure is None
    return root


@pytest.mark.parametrize("archived", [False, True])
def test_counting_decodes_no_segment(
    tape: Path, archived: bool, asked: list[tuple[list[str], str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sealed, live, and beside an archive."""
    if archived:
        record(tape, [{QUOTES: make_rows(QUOTES, 20, start_us=START_US + 2 * DAY_US)}])
        archive(tape)
        record(tape, [{QUOTES: make_rows(QUOTES, 10, start_us=START_US + 4 * DAY_US)}])
    expected = 137 if archived else 107

    def decoded(*_: Any) -> None:
        raise AssertionError("a segment is decoded")

    with analysis.open(tape) as con:
        assert con.sql(f"FROM {QUOTES}").to_arrow_table().num_rows == expected
        asked.clear()
        monkeypatch.setattr(module, "read_columns", decoded)
        assert con.sql(f"SELECT count(*) FROM {QUOTES}").fetchall() == [(expected,)]
        assert con.sql("SELECT count(*) FROM quotes").fetchall() == [(expected,)]
    assert asked == [(["_row"], "")] * 2


def test_counting_under_a_condition_reads_its_columns_alone(tape: Path, asked: list[tuple[list[str], str]]) -> None:
    """Conditions and columns go through to the segments, whatever is counted."""
    with analysis.open(tape) as con:
        (counted,) = con.sql(f"SELECT count(*) FROM {QUOTES} WHERE instrument = 'ETH-1'").fetchall()
        (summed,) = con.sql(f"SELECT count(*), max(change_id) FROM {QUOTES} WHERE instrument = 'ETH-1'").fetchall()
        found = con.sql(f"SELECT instrument FROM {QUOTES}").fetchall()
        plan = con.sql(f"EXPLAIN SELECT count(*) FROM {QUOTES}").fetchall()[0][1]

    assert counted[0] == summed[0] == found.count(("ETH-1",)) > 0
    assert asked == [
        (["_row"], '(instrument == "ETH-1")'),
        (["change_id"], '(instrument == "ETH-1")'),
        (["instrument"], ""),
    ]
    assert "Projections: _row" in plan


def test_counting_within_a_range_counts_its_rows_alone(tape: Path) -> None:
    """The range is a condition, too."""
    start = us_to_datetime(START_US + 10_000)
    with analysis.open(tape, start=start) as con:
        (rows,) = con.sql(f"SELECT count(*) FROM {QUOTES}").fetchall()
        assert rows[0] == con.sql(f"FROM {QUOTES}").to_arrow_table().num_rows
    assert rows == (97,)


@pytest.mark.parametrize("archived", [False, True])
def test_nobody_sees_the_column_that_is_counted(tape: Path, archived: bool) -> None:
    """By DuckDB and by polars."""
    if archived:
        archive(tape)
    with analysis.open(tape) as con:
        described = [row[0] for row in con.sql(f"DESCRIBE {QUOTES}").fetchall()]
        selected = con.sql(f"SELECT * FROM {QUOTES}").columns
    scanned = analysis.scan(QUOTES, tape).collect()

    assert described == selected == scanned.columns == QUOTES_SCHEMA.names
    assert scanned.height == 107


def test_a_segment_without_its_footer_is_counted(tape: Path, caplog: pytest.LogCaptureFixture) -> None:
    """By its commits, and it is named."""
    path = sealed_files(DataDir(tape), QUOTES)[0]
    path.write_bytes(path.read_bytes()[:-20])
    with caplog.at_level(logging.WARNING), analysis.open(tape) as con:
        assert con.sql(f"SELECT count(*) FROM {QUOTES}").fetchall() == [(107,)]
    assert any(path.name in record.getMessage() for record in caplog.records)


def test_a_file_whose_columns_are_of_other_types_is_left_out(tape: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is named, and neither counted nor in the way of the others."""
    path = sealed_files(DataDir(tape), QUOTES)[0]
    table = pa.ipc.open_file(path.read_bytes()).read_all()
    at = table.schema.get_field_index("instrument")
    odd = table.set_column(at, "instrument", table["instrument"].cast(pa.large_string()))
    metadata = {**table.schema.metadata, b"segment_id": b"another"}
    with pa.ipc.new_file(path.with_name("odd.arrow"), odd.schema.with_metadata(metadata)) as writer:
        writer.write_table(odd)
    with caplog.at_level(logging.WARNING), analysis.open(tape) as con:
        assert con.sql(f"SELECT count(*) FROM {QUOTES}").fetchall() == [(107,)]
        assert con.sql(f"FROM {QUOTES}").to_arrow_table().num_rows == 107
    assert any("odd.arrow" in record.getMessage() for record in caplog.records)


def test_a_count_comes_in_batches() -> None:
    """However many rows there are."""
    schema, most = QUOTES_SCHEMA, 1 << 20
    batches = module.Wanted(schema, ["_row"], None).of_count(2 * most + 7)

    assert [batch.num_rows for batch in batches] == [most, most, 7]
    assert all(batch.schema.names == ["_row"] for batch in batches)
