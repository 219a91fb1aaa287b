"""What a start must know of the tape: trades had, gaps still open, the last durable row of each stream.

`state/trades.arrow` is a cache of it, so that a start need not read every segment: one row an instrument, the
open gaps in its metadata, and how far it goes. It holds only what sealed segments hold, never what is on its way,
and is rebuilt from the segments where it is missing or damaged.
"""

import json
import zlib
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa

from recorder.gaps import Gap
from recorder.runtime import disk
from recorder.runtime.data_dir import DataDir
from recorder.segments.layout import SegmentName, datetime_to_us, sealed_files, streams
from recorder.segments.reader import read_segment
from recorder.segments.schemas import GAPS_STREAM
from recorder.trades_had import Had, TradesHad

_SCHEMA = pa.schema(
    [
        ("instrument", pa.string()),
        ("first", pa.int64()),
        ("newest", pa.int64()),
        ("holes", pa.list_(pa.list_(pa.int64(), 2))),
    ]
)


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
        self._gaps: dict[str, Gap] = {}
        self._decided: list[tuple[str, int, int]] = []  # numbers that are void or lost: instrument, first, last
        self._through: dict[str, str] = {}
        self._file = data_dir.state / "trades.arrow"
        self._load()
        for stream in (GAPS_STREAM, trades_stream):
            for path in sealed_files(data_dir, stream):
                if path.name > self._through.get(stream, ""):
                    self.fold(stream, path)

    @property
    def open_gaps(self) -> list[Gap]:
        """The gaps that the tape leaves open, oldest first."""
        return sorted(self._gaps.values(), key=lambda gap: gap.started_us)

    def fold(self, stream: str, path: Path) -> bool:
        """Take a sealed segment in; False if it is of a stream that is not followed."""
        if stream not in (GAPS_STREAM, self._trades_stream):
            return False
        try:
            checked = read_segment(path)
        except OSError:
            self.damaged.append(path)
            return False
        if not checked.sealed:
            self.damaged.append(path)
        if checked.schema is not None:
            if stream == GAPS_STREAM:
                self._fold_gaps(checked.table.to_pylist())
            else:
                self.had.fold(
                    zip(checked.table["instrument"].to_pylist(), checked.table["trade_seq"].to_pylist(), strict=True)
                )
        for instrument, first, last in self._decided:  # again and again: its trades may be folded after its fate
            self.had.close(instrument, first, last)
        self._decided = [one for one in self._decided if not self._spans(*one)]
        self._through[stream] = max(path.name, self._through.get(stream, ""))
        return True

    def _spans(self, instrument: str, first: int, last: int) -> bool:
        """Whether what is had reaches over these numbers, so that they cannot become a hole any more."""
        had = self.had.by_instrument.get(instrument)
        return had is not None and had.first <= first and last <= had.newest

    def save(self) -> None:
        """Replace the cache.

        Raises:
            OSError: the disk refused; the old cache stands, and is a true one.
        """
        rows = [
            {"instrument": name, "first": had.first, "newest": had.newest, "holes": [list(h) for h in had.holes]}
            for name, had in self.had.by_instrument.items()
        ]
        content = {
            "trades_stream": self._trades_stream,
            "through": self._through,
            "decided": self._decided,
            "open_gaps": [asdict(gap) for gap in self._gaps.values()],
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

    def _load(self) -> None:
        try:
            table = pa.ipc.open_file(self._file.read_bytes()).read_all()
            metadata = table.schema.metadata or {}
            text = metadata[b"state"].decode()
            rows = table.to_pylist()
            content = json.loads(text)
            if metadata[b"crc32"].decode() != _crc32(text, rows) or content["trades_stream"] != self._trades_stream:
                return
        except (OSError, pa.ArrowException, KeyError, ValueError):
            return  # a cache: whatever is wrong with it, the segments tell the same
        self.had.by_instrument = {
            row["instrument"]: Had(row["first"], row["newest"], [(a, b) for a, b in row["holes"]]) for row in rows
        }
        self._gaps = {gap["gap_id"]: Gap(**gap) for gap in content["open_gaps"]}
        self._through = content["through"]
        self._decided = [(name, first, last) for name, first, last in content["decided"]]

    def _fold_gaps(self, rows: Iterable[dict[str, Any]]) -> None:
        for row in rows:
            known = self._gaps.get(row["gap_id"])
            if row["status"] != "open":
                if (
                    row["status"] in ("void", "lost")
                    and row["stream"] == self._trades_stream
                    and row["first_missing"]
                ):
                    self._decided.append((row["instrument"], row["first_missing"], row["last_missing"]))
                # The runs of a gap are written together, in order: with the last number every one has its fate.
                if known is None or known.last_missing is None or row["last_missing"] == known.last_missing:
                    self._gaps.pop(row["gap_id"], None)
            elif known is None or known.state_no <= row["state_no"]:
                self._gaps[row["gap_id"]] = Gap(
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


def last_row_us(data_dir: DataDir, stream: str) -> int | None:
    """Return `received_at` of a stream's last sealed row; None if it has none.

    Raises:
        OSError: a segment cannot be read.
    """
    for path in reversed(sealed_files(data_dir, stream)):
        try:
            checked = read_segment(path)
        except OSError:
            continue  # named by TapeState, or by doctor
        if checked.rows:
            return datetime_to_us(checked.table["received_at"][-1].as_py())
    return None


def first_row_us(data_dir: DataDir, market: str) -> int | None:
    """Return when recording of a market (`eth_option_`) began, as far as segments are left; None on a new tape.

    Raises:
        OSError: a folder cannot be read.
    """
    names = [
        SegmentName.parse(path.name)
        for stream in streams(data_dir)
        if stream.startswith(market)
        for path in sealed_files(data_dir, stream)[:1]
    ]
    return min((name.start_us for name in names if name is not None), default=None)


def _crc32(text: str, rows: list[dict[str, Any]]) -> str:
    return f"{zlib.crc32((text + json.dumps(rows)).encode()):08x}"
