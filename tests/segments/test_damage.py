"""Every kind of damage to a segment's bytes: it is named, costs its own group, and invents nothing."""

import random
import resource
from collections.abc import Callable, Iterable
from dataclasses import replace

import pyarrow as pa
import pytest

from recorder.segments.check import Checked, check
from recorder.segments.encode import crc32_of_rows, encode_segment
from recorder.segments.schemas import SCHEMAS, rows_to_batch
from tests.segment_tools import NOON_US, QUOTES, by_another, identity, quote_rows, segment_bytes
from tests.segments import damages, judge
from tests.segments.damages import Case
from tests.segments.judge import Original

TRADES = "eth_option_trades"
Record = Callable[[str, object], None]

pytestmark = pytest.mark.timeout(3600)  # the full sizes take long


def segment(
    groups: int, rows: int, *, segment_id: str = "id-1", compression: str | None = "zstd", first_change_id: int = 2
) -> Original:
    """A sealed segment of quotes."""
    schema = SCHEMAS["quotes"]
    batches = [
        rows_to_batch(
            schema, quote_rows(rows, first_change_id=first_change_id + rows * n, start_us=NOON_US + rows * n)
        )
        for n in range(groups)
    ]
    who = replace(identity(segment_id=segment_id), started_at=f"2025-11-22T12:00:0{segment_id[-1]}Z")
    return judge.read(encode_segment(schema, who, batches, compression=compression))


@pytest.fixture(scope="module")
def small() -> Original:
    return segment(3, 1)


@pytest.fixture(scope="module")
def sealed() -> Original:
    return segment(6, 4)


@pytest.fixture
def seed() -> int:
    value = random.randrange(10**9)
    print("seed", value)
    return value


def found_in(checked: Checked) -> list[judge.Row]:
    return [] if checked.schema is None else judge.tuples(checked.table)


def try_all(
    original: Original, cases: Iterable[Case], record: Record, fault: str, *, named: bool = True, **options: int
) -> list[tuple[Case, Checked]]:
    """Check every case: only rows that were written, each once, all that is good, and at least one sentence."""
    results = []
    for case in cases:
        checked = check(case.data)
        judge.judge(found_in(checked), original, kept=case.kept, what=case.what)
        sentences = [str(damage) for damage in checked.damage]
        assert all(sentence and "\n" not in sentence for sentence in sentences), case.what
        assert not (sentences and checked.sealed), case.what
        if named:
            assert sentences, (case.what, "is not named")
        results.append((case, checked))
    assert len(results) >= options.get("at_least", 1)
    record("fault", fault)
    record("cases", len(results))
    return results


def test_a_cut_at_every_byte_of_the_last_two_groups(small: Original, record_property: Record) -> None:
    """A live file yields exactly the groups that are whole; what is torn is named, except exactly between groups."""
    live = small.live
    places = range(live.groups[-2].start, len(live.data))
    for case, checked in try_all(live, damages.cuts(live, places), record_property, "3", named=False):
        assert checked.rows == len(case.kept), case.what
        assert bool(checked.damage) == (len(case.data) not in [place.end for place in live.groups[:-1]]), case.what
        assert all(damage.torn for damage in checked.damage)


def test_a_sealed_file_cut_at_every_byte_of_its_end(small: Original, record_property: Record) -> None:
    """None is taken for sealed, and each yields all groups; shorter ones are those of a live file."""
    places = range(small.end, len(small.data))
    for case, checked in try_all(small, damages.cuts(small, places), record_property, "3", named=False):
        assert not checked.sealed
        assert checked.rows == len(case.kept), case.what


def test_every_bit_of_a_footer(full: bool, seed: int, record_property: Record) -> None:
    """Whatever bit is flipped after the last commit, it is found, and costs no row."""
    one, rng = segment(1, 1), random.Random(seed)
    cases = (damages.flip(one, at, bit) for at in range(one.end, len(one.data)) for bit in some_bits(rng, full=full))
    for case, checked in try_all(one, cases, record_property, "4", at_least=1000):
        assert checked.rows == 1, case.what
        assert checked.crc32 == check(one.data).crc32


@pytest.mark.parametrize("state", ["sealed", "live"])
def test_a_flip_in_every_byte(small: Original, full: bool, seed: int, state: str, record_property: Record) -> None:
    """Magic, schema, metadata, framing, rows, commits, end: a flip anywhere before the last commit is found."""
    rng = random.Random(seed)
    original = small if state == "sealed" else small.live
    # All at once take minutes; each run of the default size begins elsewhere.
    step = 1 if full else 4 if state == "sealed" else 12
    places = range(0 if full else rng.randrange(step), original.groups[-1].commit, step)
    cases = (damages.flip(original, at, bit) for at in places for bit in some_bits(rng, full=full))
    results = try_all(original, cases, record_property, "4", at_least=len(places))
    if state == "sealed":
        # The footer repeats the schema, and the first commit's checksum proves it: nothing is lost with a header.
        rows = [
            checked.rows
            for case, checked in results
            if case.data[: original.header_end] != original.data[: original.header_end]
        ]
        assert set(rows) == {3}


def some_bits(rng: random.Random, *, full: bool) -> list[int]:
    return list(range(8)) if full else [rng.randrange(8)]


@pytest.mark.parametrize("state", ["sealed", "live"])
def test_a_flip_in_the_last_commit_counts_only_if_a_reader_sees_it(
    small: Original, state: str, full: bool, seed: int, record_property: Record
) -> None:
    """The last commit's bytes are under no later checksum: what is not found there changes nothing for anybody."""
    original = small if state == "sealed" else small.live
    place = original.groups[-1]
    stock = look(original, original.data)
    passed = 0
    rng = random.Random(seed)
    said = original.data[place.commit : place.end]
    words = (b"commit", b"crc32", b"segment", b"id-1", b"rows", b"rows_crc32")
    texts = {at for word in words for at in around(said, word)}
    cases = (
        damages.flip(original, place.commit + at, bit)
        for at in range(len(said))
        for bit in some_bits(rng, full=full or at in texts)
    )
    for case, checked in try_all(original, cases, record_property, "4", named=False, at_least=500):
        assert checked.rows in (2, 3), case.what
        if not checked.damage:
            passed += 1
            assert checked.rows == 3, case.what
            assert look(original, case.data) == stock, case.what
    assert passed


def range_of(data: bytes, word: bytes) -> range:
    return range(data.index(word), data.index(word) + len(word))


def around(data: bytes, word: bytes) -> range:
    """Where a word lies, with the lengths and the value beside it."""
    return range(data.index(word) - 24, data.index(word) + len(word))


def look(original: Original, data: bytes) -> object:
    """All that a stock reader sees of a segment."""
    with pa.ipc.open_stream(pa.BufferReader(data[8 : original.end])) as stream:
        batches = []
        for _ in range(2 * len(original.groups)):
            read = stream.read_next_batch_with_custom_metadata()
            read.batch.validate(full=True)
            stated = None if read.custom_metadata is None else dict(read.custom_metadata)
            batches.append((judge.tuples(read.batch), read.batch.num_rows, str(read.batch.schema), stated))
    if original.sealed:
        whole = pa.ipc.open_file(data)
        for number in range(whole.num_record_batches):
            read = whole.get_batch_with_custom_metadata(number)
            stated = None if read.custom_metadata is None else dict(read.custom_metadata)
            batches.append((judge.tuples(read.batch), read.batch.num_rows, str(read.batch.schema), stated))
    return batches


def test_flips_in_a_large_segment(full: bool, seed: int, record_property: Record) -> None:
    """Flips at random places of a segment of usual size."""
    rng = random.Random(seed)
    large = segment(12, 2500)
    cases = (
        damages.flip(large, rng.randrange(large.groups[-1].commit), rng.randrange(8))
        for _ in range(2000 if full else 10)
    )
    try_all(large, cases, record_property, "4")


def test_pages_of_zeros(seed: int, full: bool, record_property: Record) -> None:
    """4 KiB of zeros anywhere are found; zeros look like an end of stream to Arrow's readers."""
    rng = random.Random(seed)
    original = segment(20, 40)
    step = damages.PAGE_BYTES if not full else 512
    for one in (original, original.live):
        for first in (0, rng.randrange(damages.PAGE_BYTES)):
            cases = damages.zeroed_pages(one, range(first, len(one.data), step))
            try_all(one, cases, record_property, "4", at_least=10)


@pytest.mark.parametrize("kind", [damages.swapped, damages.repeated, damages.repeated_behind_damage, damages.missing])
@pytest.mark.parametrize("state", ["sealed", "live"])
def test_groups_out_of_their_place(
    sealed: Original, kind: Callable[[Original], Iterable[Case]], state: str, record_property: Record
) -> None:
    """Groups swapped, repeated, or missing: named, and what the chain still proves is kept, in order, once."""
    original = sealed if state == "sealed" else sealed.live
    for case, checked in try_all(original, kind(original), record_property, "4", at_least=4):
        numbers = [group.number for group in checked.groups]
        assert numbers == sorted(case.kept), case.what
        assert found_in(checked) == [row for number in numbers for row in original.rows[number]]


@pytest.mark.parametrize("compression", ["zstd", None])
@pytest.mark.parametrize("state", ["sealed", "live"])
def test_groups_of_another_segment_are_not_believed(
    state: str, compression: str | None, record_property: Record
) -> None:
    """However many follow one another, and though they are as long and have the same numbers as the segment's own."""
    mine = segment(4, 3, compression=compression)
    other = segment(4, 3, segment_id="id-2", compression=compression, first_change_id=1002)
    original = mine if state == "sealed" else mine.live

    for case, checked in try_all(original, damages.moved_in(original, other), record_property, "4", at_least=20):
        assert [group.number for group in checked.groups] == sorted(case.kept), case.what


def test_groups_of_another_stream_are_not_believed(record_property: Record) -> None:
    """Trades in a segment of quotes are named, not decoded as quotes."""
    mine = segment(4, 3)
    row = (NOON_US, "ETH-1", NOON_US, "t-1", 1, 0.1, 1.0, "buy", *[None] * 11)
    other = judge.read(segment_bytes([[row]] * 4, stream=TRADES, segment_id="id-2"))

    try_all(mine, damages.moved_in(mine, other), record_property, "4", at_least=20)


def test_random_bytes_at_the_end(small: Original, seed: int, record_property: Record) -> None:
    """Ten times something after the last byte, of a live and of a sealed file: nothing is lost, nothing is added."""
    rng = random.Random(seed)
    for original in (small, small.live):
        for case, checked in try_all(original, damages.appended(original, rng, 10), record_property, "4"):
            assert checked.rows == 3, case.what


def test_no_length_is_believed(small: Original, record_property: Record) -> None:
    """A length that claims two gigabytes costs neither memory nor the groups behind it."""
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for original in (small, small.live):
        try_all(original, damages.believed_lengths(original), record_property, "4", at_least=40)

    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < 100_000


def test_what_is_damaged_is_told_with_its_place(sealed: Original) -> None:
    """One sentence for a flipped bit in the third group, and it says where that group begins."""
    place = sealed.groups[2]
    checked = check(damages.flip(sealed, (place.start + place.commit) // 2, 3).data)

    assert [str(one) for one in checked.damage] == [f"at byte {place.start}: the checksum of commit 2 does not fit"]
    assert [group.number for group in checked.groups] == [0, 1, 3, 4, 5]


def test_a_header_that_names_another_segment_is_put_right() -> None:
    """A flip in the segment_id of a live file is proven by its first commit: the rows keep their identity."""
    live = segment(2, 2, segment_id="5a1f0c9e-3a52-4a52-9d8e-0d9a7c7b1e11").live
    at = live.data.index(b"5a1f0c9e")
    checked = check(damages.flip(live, at, 0).data)

    assert checked.identity is not None
    assert checked.identity.segment_id == "5a1f0c9e-3a52-4a52-9d8e-0d9a7c7b1e11"
    assert checked.identity_proven
    assert checked.rows == 4
    assert "the schema is not what was written" in checked.damage[0].what


def test_a_version_that_a_flipped_bit_made_newer_is_put_right() -> None:
    """A file that claims version 3, and whose first commit says that it is of version 1, is of version 1."""
    live = segment(2, 2).live
    at = live.data.index(b"format_version") - 8
    at = live.data.index(b"\x01\0\0\x001\0\0\0", max(0, at - 64)) + 4
    checked = check(damages.flip(live, at, 1).data)

    assert not checked.newer_version
    assert checked.rows == 4
    assert checked.damage


def test_a_commit_that_states_another_number_of_rows_is_named() -> None:
    """The rows are there all the same: a checksum is over them, and another over the number."""
    stated = {"segment": identity().segment_id, "rows": "5", "rows_crc32": crc32_of_rows(5)}
    checked = check(by_another(lambda _: stated))

    named = [damage.what for damage in checked.damage]
    assert named == ["commit 0 states 5 rows, not 2", "commit 1 states 5 rows, not 4"]
    assert not checked.sealed
    assert checked.rows == 4
    assert checked.whole_bytes == checked.groups[0].end_bytes


@pytest.mark.parametrize("besides", ["", "segment", "rows", "segment rows"])
def test_a_commit_without_what_a_writer_may_leave_out_is_good(besides: str) -> None:
    """A commit must have its number and its checksum, no more."""
    of_rows = [{"rows": str(rows), "rows_crc32": crc32_of_rows(rows)} for rows in (2, 4)]
    known = {"segment": [{"segment": identity().segment_id}] * 2, "rows": of_rows}
    checked = check(
        by_another(lambda number: {k: v for one in besides.split() for k, v in known[one][number].items()})
    )

    assert checked.sealed
    assert checked.rows == 4
    assert checked.identity is not None
    assert checked.identity.stream == QUOTES


@pytest.mark.parametrize("stated", [{"rows": "2"}, {"rows_crc32": crc32_of_rows(2)}, {"more": "1"}])
def test_a_commit_that_states_half_of_it_or_what_is_not_known_is_none(stated: dict[str, str]) -> None:
    """It may be a flipped bit in a key."""
    checked = check(by_another(lambda _: stated))

    assert checked.rows == 0
    assert checked.damage


def test_a_commit_whose_list_of_what_it_states_was_cut_is_none() -> None:
    """What is told in its bytes, but not in the list: three of five (another 5 is the length of a key)."""
    one = segment(1, 2)
    fives = [at for at in range(one.groups[0].commit, one.groups[0].end, 4) if one.data[at : at + 4] == b"\5\0\0\0"]
    for at in fives:
        checked = check(one.data[:at] + b"\3" + one.data[at + 1 :])

        assert checked.rows == 0
        assert checked.damage
    assert len(fives) == 2
