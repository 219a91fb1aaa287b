"""Arbitrary bytes, and valid files that were changed anyhow: no exception, no hang, no memory, no invented row."""

import random
import resource
import zlib
from collections.abc import Callable

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from recorder.runtime.data_dir import DataDir
from recorder.segments.check import check
from recorder.segments.doctor import Examined, examine
from recorder.segments.footer import Malformed, read_footer, read_schema
from recorder.segments.layout import SegmentName
from recorder.segments.reader import snapshot
from recorder.segments.recovery import recover
from tests.segment_tools import NOON_US, QUOTES, quote_rows, segment_bytes
from tests.segments import judge
from tests.segments.judge import Original

Record = Callable[[str, object], None]

pytestmark = pytest.mark.timeout(3600)  # the full sizes take long

VALID = judge.read(segment_bytes([quote_rows(2, first_change_id=2 + 2 * n) for n in range(4)]))
MARK = b"\xff\xff\xff\xff"
# What parsers stumble over: marks, ends, lengths at the bounds, and pieces of the real thing.
PIECES = [
    MARK, MARK + b"\0\0\0\0", judge.MAGIC, b"ARROW1", b"\0" * 64, b"\xff" * 64, b"crc32", b"commit",
    *(length.to_bytes(4, "little", signed=True) for length in (2**31 - 1, -(2**31), -1, 8, 2**20)),
    *(length.to_bytes(8, "little", signed=True) for length in (2**63 - 1, -(2**63), 2**31, 2**40)),
    *(VALID.data[place.start : place.commit] for place in VALID.groups),
    *(VALID.data[place.commit : place.end] for place in VALID.groups),
    VALID.data[: VALID.header_end], VALID.data[VALID.end :],
]  # fmt: skip


def judged(data: bytes) -> None:
    """Nothing comes out of it but rows of the segment it was made from, each once."""
    checked = check(data)
    found = [] if checked.schema is None else judge.tuples(checked.table)
    judge.judge(found, VALID, kept=(), what=data[:40])
    assert not checked.sealed or data == VALID.data or len(found) in (0, 8)
    assert 0 <= checked.whole_bytes <= checked.size_bytes == len(data)


@settings(deadline=None, max_examples=200)
@given(data=st.binary(max_size=4000))
@example(data=b"")
@example(data=judge.MAGIC)
@example(data=judge.MAGIC + MARK)
@example(data=judge.MAGIC + MARK + (2**31 - 1).to_bytes(4, "little"))
def test_arbitrary_bytes(data: bytes) -> None:
    """Whatever a file holds, it is judged without an exception, and has no rows."""
    judged(data)


@settings(deadline=None, max_examples=200)
@given(pieces=st.lists(st.one_of(st.sampled_from(PIECES), st.binary(max_size=40)), max_size=12), headed=st.booleans())
def test_pieces_in_any_order(pieces: list[bytes], headed: bool) -> None:
    """Headers, groups, commits, ends, and lengths, put together by chance."""
    judged((VALID.data[: VALID.header_end] if headed else b"") + b"".join(pieces))


@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_a_valid_file_changed_anyhow(data: st.DataObject) -> None:
    """Bytes overwritten, put in, taken out, several times."""
    content = VALID.data
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content)))
        size = data.draw(st.integers(0, 300))
        piece = data.draw(st.one_of(st.sampled_from(PIECES), st.binary(max_size=60)))
        content = content[:at] + piece + content[at + size :]
    judged(content)


@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_a_footer_changed_anyhow(data: st.DataObject) -> None:
    """The reader of footers takes bytes that were changed at will: it tells, or it says that they are none."""
    for content, read in (
        (VALID.data[VALID.end + 8 : -10], read_footer),
        (VALID.data[16 : VALID.header_end], read_schema),
    ):
        changed = bytearray(content)
        for _ in range(data.draw(st.integers(1, 8))):
            at = data.draw(st.integers(0, len(changed) - 5))
            changed[at : at + 4] = data.draw(st.binary(min_size=4, max_size=4))
        try:
            read(bytes(changed))
        except Malformed:
            continue


@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_a_group_whose_checksum_fits_and_whose_rows_are_nonsense(data: st.DataObject) -> None:
    """Bytes that somebody signed are decoded, and may still be no rows: that is damage like any other."""
    place = VALID.groups[0]
    rows = bytearray(VALID.data[place.start : place.commit])
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(rows) - 9))
        rows[at : at + 8] = data.draw(st.one_of(st.binary(min_size=8, max_size=8), st.sampled_from(EIGHT)))
    before = VALID.data[: place.start] + bytes(rows)
    commit = VALID.data[place.commit : place.end]
    old = f"{zlib.crc32(VALID.data[: place.commit]):08x}".encode()
    checked = check(before + commit.replace(old, f"{zlib.crc32(before):08x}".encode()))

    assert checked.damage or len(checked.groups) == 1
    if checked.groups:
        judge.tuples(checked.table)


EIGHT = [length.to_bytes(8, "little", signed=True) for length in (2**63 - 1, -(2**63), 2**31, 2**40, 2**62, -1, 0)]


@pytest.mark.parametrize(
    "unit",
    [
        MARK, MARK + b"\x08\0\0\0", MARK + b"\xf8\xff\0\0", b"\0", b"crc32", MARK + b"\x10\0\0\0crc32\0\0\0",
        VALID.data[VALID.groups[1].commit : VALID.groups[1].end], VALID.data[VALID.groups[1].start : VALID.end],
        MARK + b"\0\x08\0\0" + b"crc32" * 20,
    ],
)  # fmt: skip
def test_bytes_that_were_made_to_keep_a_reader_busy(unit: bytes) -> None:
    """Two megabytes of what looks like the beginning of something are judged well before the test is given up."""
    judged(VALID.live.data + unit * (2_000_000 // len(unit)))


def test_no_memory_is_taken_for_what_a_length_claims(record_property: Record) -> None:
    """Hundreds of changed files later the process is as large as before."""
    rng = random.Random(5)
    for _ in range(300):
        judged(changed(rng))
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(300):
        judged(changed(rng))

    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < 50_000
    record_property("fault", "19")
    record_property("cases", 600)


def changed(rng: random.Random, original: Original = VALID) -> bytes:
    """A valid file in which numbers were put at random places."""
    data = bytearray(original.data if rng.random() < 0.5 else original.live.data)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(data) - 8)
        piece = rng.choice(PIECES[:18])[:8]
        data[at : at + len(piece)] = piece
    return bytes(data)


def test_recovery_and_doctor_take_whatever_lies_there(data_dir: DataDir, record_property: Record) -> None:
    """Live files with arbitrary content: each is finished or put aside, with the rows that were committed."""
    rng = random.Random(7)
    folder = data_dir.live_dir(QUOTES)
    folder.mkdir(parents=True)
    written = 0
    for number in range(150):
        data = changed(rng) if number % 3 else rng.randbytes(rng.randrange(5000))
        (folder / f"{SegmentName(NOON_US + number, 'test', 1)}.arrow.open").write_bytes(data)
        written += 1
    assert all(str(finding) for finding in examine(data_dir, Examined()))
    snapshot(data_dir, QUOTES)
    recovered = recover(data_dir)

    assert len(recovered) == written
    assert not list(folder.glob("*.open"))
    for path in data_dir.root.glob(f"{QUOTES}/date=*/*.arrow"):
        judge.judge(judge.tuples(pa.ipc.open_file(path.read_bytes()).read_all()), VALID, kept=(), what=path)
    assert not [
        finding for finding in examine(data_dir, Examined()) if finding.damage and "other rows" not in str(finding)
    ]
    record_property("fault", "19")
    record_property("cases", written)
