"""What a start must know of the tape: trades had and gaps still open.

`state/trades.arrow` is a cache of it, so that a start need not read every segment: one row an instrument; in its
metadata the gaps and which segments are in it. These are named one by one: after a step of the clock backwards, or a
repair, what is younger than the cache may have a name older than all that is in it. It holds only what sealed
segments hold, never what is on its way, and is rebuilt from the segments where it is missing or damaged; from the
Parquet archive beside them, too, for segments that were pruned.

Segments may be folded in any order, and copies of them, and give the same state.
"""

import json
import zlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from recorder.gaps import Gap
from recorder.runtime import disk
from recorder.runtime.data_dir import DataDir
from recorder.segments import archived
from recorder.segments.chain import End
from recorder.segments.layout import SegmentName, datetime_to_us, sealed_files, streams
from recorder.segments.reader import read_segment
from recorder.segments.schemas import GAPS_STREAM
from recorder.trades_had import Had, TradesHad

# Of a whole market something is younger than this; if nothing is, the clock is wrong.
QUIET_US = 60_000_000

_SCHEMA = pa.schema(
    [
        ("instrument", pa.string()),
        ("first", pa.int64()),
        ("newest", pa.int64()),
        ("holes", pa.list_(pa.list_(pa.int64(), 2))),
    ]
)


@dataclass
class _Told:
    """What the rows of one gap tell that were folded so far, in whatever order they came."""

    rows: int = 0
    state_no: int = -1  # the newest of any row
    opened: Gap | None = None  # by its newest open row
    first_no: int | None = None  # of its first open row
    first_us: int | None = None  # and when that was told
    fate_no: int = -1  # of its newest row with a fate
    fate_last: int | None = None  # and the last number that it decides

    @property
    def settled(self) -> bool:
        """Whether the whole gap has its fate; unknown, and so False, before an open row says what the whole is.

        The runs of a gap are written together, in order: with the last number every one has its fate.
        """
        if self.opened is None or self.fate_no < 0:
            return False
        return self.opened.last_missing is None or self.opened.last_missing == self.fate_last

    @property
    def complete(self) -> bool:
        """Whether nothing more can come: it is settled, and every row was folded. Then it may be forgotten."""
        return self.settled and self.rows > self.state_no


class TapeState:
    """Follows the sealed segments of trades and gaps. One thread at a time may use it."""

    def __init__(self, data_dir: DataDir, trades_stream: str) -> None:
        """Read the cache and every segment sealed since.

        Raises:
            OSError: a segment cannot be read.
        """
        self.had = TradesHad()
        self.damaged: list[Path] = []  # segments that could not be counted in whole
        self._data_dir = data_dir
        self._trades_stream = trades_stream
        self._gaps: dict[str, _Told] = {}
        self._decided: list[tuple[str, int, int]] = []  # numbers that are void or lost: instrument, first, last
        # The segments that are in it: segment_id by file name.
        self._folded: dict[str, dict[str, str]] = {GAPS_STREAM: {}, trades_stream: {}}
        self._file = data_dir.state / "trades.arrow"
        cached = self._load()
        self._ids = {segment_id for names in self._folded.values() for segment_id in names.values()}
        for stream, names in self._folded.items():
            for path in sealed_files(data_dir, stream):
                if path.name not in names:
                    self.fold(stream, path)
            if not cached:
                self._fold_archived(stream)

    @property
    def open_gaps(self) -> list[Gap]:
        """The gaps that the tape leaves open, oldest first."""
        opened = [
            replace(told.opened, state_no=told.state_no, opened_us=told.first_us)
            for told in self._gaps.values()
            if told.opened is not None and not told.settled
        ]
        return sorted(opened, key=lambda gap: (gap.started_us, gap.gap_id))

    def fold(self, stream: str, path: Path) -> bool:
        """Take a sealed segment in; False if it is of a stream that is not followed, or cannot be read."""
        if stream not in self._folded:
            return False
        try:
            checked = read_segment(path)
        except OSError:
            self.damaged.append(path)
            return False
        identity = checked.identity
        if identity is None or identity.stream != stream:
            self.damaged.append(path)
            return False  # named again at every start, until it is repaired or gone
        if not checked.sealed:
            self.damaged.append(path)
        if self._ids.isdisjoint((identity.segment_id, identity.salvages)):  # else a copy, or what was kept of it
            self._fold_rows(stream, checked.table)
            self._ids |= {identity.segment_id, identity.salvages} - {""}
        self._folded[stream][path.name] = identity.segment_id
        return True

    def _fold_archived(self, stream: str) -> None:
        """Take in what the archive has of segments that are not on the tape any more."""
        archive = archived.beside(self._data_dir)
        for manifest in archive.manifests(stream):
            if isinstance(manifest, archived.Damaged):
                self.damaged.append(Path(manifest.path))
                continue
            gone = [one for one in manifest.segments if self._ids.isdisjoint((one.segment_id, one.salvages))]
            if not gone:
                continue
            rows = archive.rows(manifest)
            if isinstance(rows, archived.Damaged):
                self.damaged.append(Path(rows.path))
                continue
            ids = pa.array([one.segment_id for one in gone], pa.string())
            self._fold_rows(stream, rows.filter(pc.is_in(rows[archived.SEGMENT], ids)))
            self._ids |= {name for one in gone for name in (one.segment_id, one.salvages)} - {""}

    def _fold_rows(self, stream: str, rows: pa.Table) -> None:
        if stream == GAPS_STREAM:
            self._fold_gaps(rows.to_pylist())
        else:
            self.had.fold(zip(rows["instrument"].to_pylist(), rows["trade_seq"].to_pylist(), strict=True))
        for instrument, first, last in self._decided:  # again and again: its trades may be folded after its fate
            self.had.close(instrument, first, last)
        self._decided = [one for one in self._decided if not self._spans(*one)]

    def _spans(self, instrument: str, first: int, last: int) -> bool:
        """Whether what is had reaches over these numbers, so that they cannot become a hole any more."""
        had = self.had.by_instrument.get(instrument)
        return had is not None and had.first <= first and last <= had.newest

    def save(self) -> None:
        """Replace the cache. What it remembers of files that are gone is dropped.

        Raises:
            OSError: the disk refused; the old cache stands, and is a true one.
        """
        for stream, names in self._folded.items():
            there = {path.name for path in sealed_files(self._data_dir, stream)}
            self._folded[stream] = {name: segment_id for name, segment_id in names.items() if name in there}
        rows = [
            {"instrument": name, "first": had.first, "newest": had.newest, "holes": [list(h) for h in had.holes]}
            for name, had in self.had.by_instrument.items()
        ]
        content = {
            "trades_stream": self._trades_stream,
            "folded": self._folded,
            "decided": self._decided,
            "gaps": {gap_id: asdict(told) for gap_id, told in self._gaps.items()},
        }
        text = json.dumps(content)
        table = pa.Table.from_pylist(rows, schema=_SCHEMA).replace_schema_metadata(
            {"state": text, "crc32": _crc32(text, rows)}
        )
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        disk.make_dir(self._file.parent)
        disk.replace_file(self._file, sink.getvalue().to_pybytes())

    def _load(self) -> bool:
        """Read the cache; False if there is none, or none that can be believed."""
        try:
            table = pa.ipc.open_file(self._file.read_bytes()).read_all()
            metadata = table.schema.metadata or {}
            text = metadata[b"state"].decode()
            rows = table.to_pylist()
            content = json.loads(text)
            if metadata[b"crc32"].decode() != _crc32(text, rows) or content["trades_stream"] != self._trades_stream:
                return False
            had = {
                row["instrument"]: Had(row["first"], row["newest"], [(a, b) for a, b in row["holes"]]) for row in rows
            }
            folded, decided = content["folded"], [(name, first, last) for name, first, last in content["decided"]]
            gaps = {
                gap_id: _Told(**{**told, "opened": told["opened"] and Gap(**told["opened"])})
                for gap_id, told in content["gaps"].items()
            }
        except (OSError, pa.ArrowException, KeyError, TypeError, ValueError):
            return False  # a cache: whatever is wrong with it, or older, the segments tell the same
        self.had.by_instrument, self._gaps, self._decided, self._folded = had, gaps, decided, folded
        return True

    def _fold_gaps(self, rows: Iterable[dict[str, Any]]) -> None:
        for row in rows:
            told = self._gaps.setdefault(row["gap_id"], _Told())
            told.rows += 1
            told.state_no = max(told.state_no, row["state_no"])
            if row["status"] == "open":
                if told.opened is None or told.opened.state_no < row["state_no"]:
                    told.opened = _gap(row)
                if told.first_no is None or row["state_no"] < told.first_no:
                    told.first_no, told.first_us = row["state_no"], datetime_to_us(row["timestamp"])
            else:
                if (
                    row["status"] in ("void", "lost")
                    and row["stream"] == self._trades_stream
                    and row["first_missing"]
                ):
                    self._decided.append((row["instrument"], row["first_missing"], row["last_missing"]))
                if told.fate_no < row["state_no"]:
                    told.fate_no, told.fate_last = row["state_no"], row["last_missing"]
            if told.complete:
                del self._gaps[row["gap_id"]]


def _gap(row: dict[str, Any]) -> Gap:
    return Gap(
        gap_id=row["gap_id"],
        stream=row["stream"],
        instrument=row["instrument"],
        cause=row["cause"],
        started_us=datetime_to_us(row["started_at"]),
        ended_us=None if row["ended_at"] is None else datetime_to_us(row["ended_at"]),
        first_missing=row["first_missing"],
        last_missing=row["last_missing"],
        detail=row["detail"],
        state_no=row["state_no"],
    )


def carry_over(gap: Gap, end: End, *, since_us: int, now_us: int) -> None:
    """Tell a taken-up gap of a stream in the time of now, where it was told by a clock that was set back since.

    A gap that began in the future would end before it began, and nobody would look for what it hides. It keeps its
    distance to the last row; where that ended the stream, it begins there.

    Args:
        gap: it is changed; its next row tells it.
        end: the end of its stream.
        since_us: until when, by the clock of now, nothing was missing at that end.
        now_us: the time of now.
    """
    if gap.started_us > now_us:
        last_us = gap.started_us if end.last_us is None else end.last_us
        gap.started_us = since_us - max(0, last_us - gap.started_us)
    if gap.ended_us is not None:
        gap.ended_us = min(gap.ended_us, now_us)
    if gap.opened_us is not None:  # or it would not grow old before then
        gap.opened_us = min(gap.opened_us, now_us)


def first_row_us(data_dir: DataDir, market: str) -> int | None:
    """Return when recording of a market (`eth_option_`) began, as far as segments are left; None on a new tape.

    Where the clock was ahead then, it is the exchange's time: what traded before it is not owed, and by a clock that
    is an hour ahead nothing of the first hour would be.

    Raises:
        OSError: a folder cannot be read.
    """
    paths = [
        path
        for stream in streams(data_dir)
        if stream.startswith(market)
        for path in sealed_files(data_dir, stream)[:1]
        if SegmentName.parse(path.name) is not None
    ]
    if not paths:
        return None
    first = min(paths, key=lambda path: path.name)
    name = SegmentName.parse(first.name)
    assert name is not None
    return name.start_us - _ahead_us(first)


def _ahead_us(path: Path) -> int:
    """Return how far the clock was ahead of the exchange's when a segment was recorded; 0 where it was right."""
    try:
        checked = read_segment(path)
    except OSError:
        return 0  # named where it is folded, or by doctor
    end = End() if checked.schema is None else End().after(checked.table)
    if end.last_us is None or end.exchange_us is None:
        return 0
    ahead_us = end.last_us - end.exchange_us
    return ahead_us if ahead_us > QUIET_US else 0


def _crc32(text: str, rows: list[dict[str, Any]]) -> str:
    return f"{zlib.crc32((text + json.dumps(rows)).encode()):08x}"
