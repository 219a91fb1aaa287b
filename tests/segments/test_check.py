"""What the checker believes and what it names as damage."""

import zlib

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recorder.segments.check import Checked, check
from recorder.segments.encode import MAGIC, Encoder
from recorder.segments.schemas import SCHEMAS, rows_to_batch
from tests.segment_tools import identity, quote_rows, segment_bytes

GROUPS = [quote_rows(5), quote_rows(3, first_change_id=6), quote_rows(4, first_change_id=9)]


@pytest.fixture(scope="module")
def sealed() -> bytes:
    return segment_bytes(GROUPS)


def rows_of(checked: Checked) -> list[int]:
    return checked.table["change_id"].to_pylist() if checked.schema is not None else []


def group_bounds(data: bytes) -> list[tuple[int, int]]:
    return [(group.offset_bytes, group.end_bytes) for group in check(data).groups]


def commit_offsets(data: bytes) -> list[int]:
    """Where each commit batch begins, found without our checker."""
    source = pa.BufferReader(pa.py_buffer(data).slice(len(MAGIC)))
    messages = pa.ipc.MessageReader.open_stream(source)
    messages.read_next_message()  # the schema
    offsets = []
    for _ in range(pa.ipc.open_file(data).num_record_batches // 2):
        messages.read_next_message()
        offsets.append(len(MAGIC) + source.tell())
        messages.read_next_message()
    return offsets


def test_a_sealed_segment_is_whole(sealed: bytes) -> None:
    """All rows of a sealed segment count, and nothing is said against it."""
    checked = check(sealed)

    assert checked.sealed
    assert checked.damage == []
    assert rows_of(checked) == list(range(1, 13))


def test_a_stock_reader_reads_the_same_rows(sealed: bytes) -> None:
    """Any Arrow reader sees the rows, the commits as empty batches, and the identity."""
    file = pa.ipc.open_file(sealed)

    assert file.read_all()["change_id"].to_pylist() == list(range(1, 13))
    assert file.schema.metadata[b"segment_id"] == b"id-1"
    assert [file.get_batch(i).num_rows for i in range(file.num_record_batches)] == [5, 0, 3, 0, 4, 0]


def test_a_commit_states_the_crc_of_all_bytes_before_it(sealed: bytes) -> None:
    """The rule of docs/format.md holds on the bytes themselves, found here without our reader."""
    file = pa.ipc.open_file(sealed)
    for number, offset in enumerate(commit_offsets(sealed)):
        metadata = file.get_batch_with_custom_metadata(2 * number + 1).custom_metadata

        assert metadata[b"commit"] == str(number).encode()
        assert metadata[b"crc32"] == f"{zlib.crc32(sealed[:offset]):08x}".encode()


def test_a_commit_states_how_many_rows_there_are_up_to_it(sealed: bytes) -> None:
    """With a checksum of the digits: no later one is over the last commit."""
    file = pa.ipc.open_file(sealed)
    for number, rows in enumerate([b"5", b"8", b"12"]):
        metadata = file.get_batch_with_custom_metadata(2 * number + 1).custom_metadata

        assert list(metadata)[-2:] == [b"rows", b"rows_crc32"]
        assert metadata[b"rows"] == rows
        assert metadata[b"rows_crc32"] == f"{zlib.crc32(rows):08x}".encode()


def test_every_truncation_gives_a_committed_prefix(sealed: bytes) -> None:
    """Cut at any byte, a file yields exactly the groups whose commit lies before the cut."""
    bounds = group_bounds(sealed)
    sizes = [5, 3, 4]
    for cut in range(len(sealed)):
        checked = check(sealed[:cut])
        whole = [size for (_, end), size in zip(bounds, sizes, strict=True) if end <= cut]

        assert checked.rows == sum(whole)
        assert not checked.sealed


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_flipped_bit_never_changes_what_is_read(data: st.DataObject) -> None:
    """Of a damaged file only rows that were written are returned, and a hit group is gone and named.

    The last commit's own bytes are under no later checksum: a flip there is harmless or spoils that commit.
    """
    original = segment_bytes(GROUPS)
    position = data.draw(st.integers(0, len(original) - 1))
    bit = data.draw(st.integers(0, 7))
    flipped = bytearray(original)
    flipped[position] ^= 1 << bit
    checked = check(bytes(flipped))

    assert set(rows_of(checked)) <= set(range(1, 13))
    if position < commit_offsets(original)[-1]:
        assert checked.damage
    if check(original).header_bytes <= position < commit_offsets(original)[-1]:
        assert checked.rows < 12


def test_damage_in_the_middle_costs_only_its_own_group(sealed: bytes) -> None:
    """The chain goes on from what the damaged group's commit states."""
    (_, first_end), (_, second_end), _ = group_bounds(sealed)
    flipped = bytearray(sealed)
    flipped[(first_end + second_end) // 2] ^= 1  # in the rows of the second group
    checked = check(bytes(flipped))

    assert rows_of(checked) == [1, 2, 3, 4, 5, 9, 10, 11, 12]
    assert len(checked.damage) == 1


def test_a_missing_group_is_named(sealed: bytes) -> None:
    """A group that was cut out leaves a gap in the numbers of the commits."""
    _, (start, end), _ = group_bounds(sealed)
    checked = check(sealed[:start] + sealed[end:])

    assert "commit 2 where 1 belongs" in checked.damage[0].what
    assert rows_of(checked) == [1, 2, 3, 4, 5]


def test_a_repeated_group_counts_once(sealed: bytes) -> None:
    """A group written twice is not believed twice."""
    _, (start, end), _ = group_bounds(sealed)
    checked = check(sealed[:end] + sealed[start:end] + sealed[end:])

    assert rows_of(checked) == list(range(1, 13))
    assert checked.damage


def test_a_group_from_another_segment_is_not_believed(sealed: bytes) -> None:
    """The chain reaches back to the segment's own identity."""
    other = segment_bytes([quote_rows(5), quote_rows(3, first_change_id=100)], segment_id="id-2")
    _, (start, end), _ = group_bounds(sealed)
    moved_start, moved_end = group_bounds(other)[1]
    checked = check(sealed[:start] + other[moved_start:moved_end] + sealed[end:])

    assert 100 not in rows_of(checked)
    assert checked.damage


@pytest.mark.parametrize("content", [b"", b"hello, I am a text file called .arrow", MAGIC, b"\0" * 5000])
def test_what_is_no_segment_is_said_to_be_none(content: bytes) -> None:
    """Other files are refused in a sentence, whatever they hold."""
    checked = check(content)

    assert checked.identity is None
    assert len(checked.damage) == 1


def test_zeros_after_the_last_commit_are_no_end(sealed: bytes) -> None:
    """A live file whose tail reads as zeros keeps its committed rows and is not sealed."""
    end = group_bounds(sealed)[-1][1]
    checked = check(sealed[:end] + b"\0" * 4096)

    assert checked.rows == 12
    assert not checked.sealed


def test_a_newer_version_is_named_and_left_alone() -> None:
    """A file of format version 2 yields nothing and says why."""
    schema = SCHEMAS["quotes"]
    encoder = Encoder(schema, identity())
    header = MAGIC + encoder.schema.with_metadata({**encoder.schema.metadata, b"format_version": b"2"}).serialize()
    checked = check(bytes(header))

    assert checked.newer_version == "2"
    assert checked.rows == 0


def test_nan_and_extreme_values_survive_the_comparison_through_the_footer() -> None:
    """A segment with NaN, infinities and 64-bit limits is still good."""
    rows = [
        (0, None, 0, float("nan"), float("inf"), -0.0, 5e-324, None, None, 2**63 - 1, -(2**63)),
        (1, "Ω" * 300, 1, None, None, None, None, float("-inf"), 1e308, 0, None),
    ]
    checked = check(segment_bytes([rows]))

    assert checked.sealed
    assert checked.table["change_id"].to_pylist() == [2**63 - 1, 0]


@settings(max_examples=60, deadline=None)
@given(
    groups=st.lists(st.integers(1, 20), max_size=5),
    compression=st.sampled_from(["zstd", "lz4", None]),
)
def test_what_is_written_is_read(groups: list[int], compression: str | None) -> None:
    """Any sequence of flushes reads back as written, whatever the compression."""
    schema = SCHEMAS["quotes"]
    encoder = Encoder(schema, identity(), compression=compression)
    parts, at = [encoder.header()], 1
    expected: list[int] = []
    for size in groups:
        parts.append(encoder.group(rows_to_batch(schema, quote_rows(size, first_change_id=at))))
        expected += range(at, at + size)
        at += size

    live = check(b"".join(parts))
    assert rows_of(live) == expected
    assert live.damage == []
    whole = check(b"".join([*parts, encoder.end()]))
    assert rows_of(whole) == expected
    assert whole.sealed
