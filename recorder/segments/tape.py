"""The tape while it is recorded: every stream's live segment, written in rounds by one thread."""

import shutil
import uuid
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pyarrow as pa

from recorder.runtime.data_dir import DataDir
from recorder.segments.chain import End, find_end, save_end
from recorder.segments.encode import Identity
from recorder.segments.layout import (
    US_PER_DAY,
    SegmentName,
    live_path,
    sealed_path,
    us_to_datetime,
)
from recorder.segments.reader import read_segment
from recorder.segments.recovery import finish_live
from recorder.segments.schemas import SCHEMAS, flush_rank, stream_kind
from recorder.segments.writer import SegmentWriter

Batches = Sequence[pa.RecordBatch]  # rows of one stream, in the order of `received_at`


@dataclass(frozen=True)
class Sealed:
    """One segment that was finished."""

    stream: str
    path: Path
    segment_id: str
    rows: int
    size_bytes: int


@dataclass(frozen=True)
class GivenUp:
    """A live file that is never to be written again."""

    path: Path
    acknowledged_bytes: int
    sealed: Path  # where what it had acknowledged will lie
    segment_id: str


@dataclass
class Round:
    """What one flush round did. Rows are durable, or they are in `left`."""

    durable: dict[str, int] = field(default_factory=dict)  # rows by stream
    left: dict[str, Batches] = field(default_factory=dict)  # rows that no file holds yet
    sealed: list[Sealed] = field(default_factory=list)
    incidents: list[str] = field(default_factory=list)  # failures that were survived, for the log
    failure: OSError | None = None  # why `left` is not empty
    size_bytes: int = 0
    fsync_s: float = 0.0
    flush_s: float | None = None  # how long all of it took, for whoever watches it; None: it was no flush
    free_bytes: int | None = None  # on the file system, for whoever watches it; None: not looked at


class Tape:
    """Writes rounds of rows into segments; rolls, seals, and goes on past files whose write failed.

    One thread at a time may call it. A round is written in the order of FLUSH_ORDER and stops at the first
    stream that cannot be written, so that no row after a hole is on disk without the row that names the hole.
    """

    def __init__(
        self,
        data_dir: DataDir,
        *,
        recorder: str,
        software: str,
        # Limits
        segment_max_age_s: float,
        segment_max_bytes: int,
        compression: str | None = "zstd",
    ) -> None:
        self._data_dir = data_dir
        self._recorder = recorder
        self._software = software
        self._segment_max_age_s = segment_max_age_s
        self._segment_max_bytes = segment_max_bytes
        self._compression = compression
        self._open: dict[str, SegmentWriter] = {}
        self._seq: dict[str, int] = {}
        self._ends: dict[str, End] = {}  # of each stream written in this run, as far as it is durable
        # Live files never to be written again, by stream, with the bytes that were acknowledged. One a stream:
        # it is finished before the stream is written again, or a crash in between could double the failed rows.
        self._given_up: dict[str, GivenUp] = {}

    def write_round(self, rows: Mapping[str, Batches], *, now_us: int) -> Round:
        """Make rows durable: for each stream one write and one fsync (two where UTC midnight lies between).

        Args:
            rows: record batches by full stream name, each in the order of `received_at`.
            now_us: the recorder's clock; live segments of a past UTC day are sealed by it.

        Returns:
            What happened. An OSError is never raised: it is in the round, with the rows it concerns.
        """
        result = Round()
        for stream in sorted(
            (stream for stream in rows if any(batch.num_rows for batch in rows[stream])), key=flush_rank
        ):
            if result.failure is None:
                self._write_stream(stream, rows[stream], result)
            else:
                result.left[stream] = rows[stream]
        self._seal_due(result, now_us)
        self._finish_idle(result)
        return result

    def free_bytes(self) -> int:
        """Return how much the file system still takes from an ordinary user.

        Raises:
            OSError: it does not tell.
        """
        return shutil.disk_usage(self._data_dir.root).free

    def seal_all(self) -> Round:
        """Seal every live segment now: at a stop, at SIGHUP, and when the clock was stepped."""
        result = Round()
        for stream in list(self._open):
            self._seal(stream, result)
        self._finish_idle(result)
        return result

    def _write_stream(self, stream: str, batches: Batches, result: Round) -> None:
        rows = pa.concat_batches(batches)
        while rows.num_rows:
            part = rows.slice(0, _rows_of_first_day(rows))
            try:
                self._write_day(stream, part, result)
            except OSError as first:
                result.incidents.append(f"{stream}: {first}")
                try:
                    # Once at once, on a new file: what failed may be that file's own trouble.
                    self._write_day(stream, part, result)
                except OSError as second:
                    result.failure = second
                    result.left[stream] = [rows]
                    return
            rows = rows.slice(part.num_rows)

    def _write_day(self, stream: str, rows: pa.RecordBatch, result: Round) -> None:
        self._finish_given_up(stream, result)
        start_us = _received_us(rows, 0)
        writer = self._open.get(stream)
        if writer is not None and writer.name.start_us // US_PER_DAY != start_us // US_PER_DAY:
            self._seal(stream, result)
            self._finish_given_up(stream, result)
            writer = None
        if stream not in self._ends:
            self._ends[stream] = find_end(self._data_dir, stream)
            # What recovery sealed is in it: runs that all crash early leave no more than that to find.
            self._save_end(stream, result)
        if writer is None:
            writer = self._create(stream, start_us)
        try:
            flush = writer.flush(rows)
        except OSError:
            self._give_up(stream)
            raise
        self._ends[stream] = self._ends[stream].after(rows)
        result.durable[stream] = result.durable.get(stream, 0) + flush.rows
        result.size_bytes += flush.size_bytes
        result.fsync_s += flush.fsync_s

    def _create(self, stream: str, start_us: int) -> SegmentWriter:
        name = self._free_name(stream, start_us)
        end = self._ends[stream]
        identity = Identity(
            segment_id=str(uuid.uuid4()),
            previous=end.segment_id,
            stream=stream,
            recorder=self._recorder,
            started_at=us_to_datetime(start_us).isoformat(),
            software=self._software,
        )
        try:
            writer = SegmentWriter(
                self._data_dir,
                name,
                identity,
                SCHEMAS[stream_kind(stream) or ""],
                compression=self._compression,
            )
        except OSError:
            path = live_path(self._data_dir, stream, name)
            if path.exists():
                self._given_up[stream] = GivenUp(
                    path, 0, sealed_path(self._data_dir, stream, name), identity.segment_id
                )
            raise
        self._open[stream] = writer
        self._ends[stream] = replace(end, segment_id=identity.segment_id, started_at=identity.started_at)
        return writer

    def _free_name(self, stream: str, start_us: int) -> SegmentName:
        """Take the next sequence number whose name no file has (a clock set back may lead to a name again)."""
        while True:
            self._seq[stream] = self._seq.get(stream, 0) + 1
            name = SegmentName(start_us, self._recorder, self._seq[stream])
            if not (
                live_path(self._data_dir, stream, name).exists() or sealed_path(self._data_dir, stream, name).exists()
            ):
                return name

    def _seal_due(self, result: Round, now_us: int) -> None:
        for stream, writer in list(self._open.items()):
            if (
                writer.age_s >= self._segment_max_age_s
                or writer.size_bytes >= self._segment_max_bytes
                or writer.name.start_us // US_PER_DAY < now_us // US_PER_DAY
            ):
                self._seal(stream, result)

    def _seal(self, stream: str, result: Round) -> None:
        writer = self._open[stream]
        try:
            path = writer.seal()
        except OSError as exc:
            result.incidents.append(f"{stream}: sealing {writer.name}: {exc}")
            self._give_up(stream)
        else:
            del self._open[stream]
            result.sealed.append(Sealed(stream, path, writer.identity.segment_id, writer.rows, writer.size_bytes))
            self._save_end(stream, result)

    def _save_end(self, stream: str, result: Round) -> None:
        """Remember where the stream ends, while nothing of it is live."""
        try:
            save_end(self._data_dir, stream, self._ends[stream])
        except OSError as exc:
            result.incidents.append(f"state/ends: {exc}")

    def _give_up(self, stream: str) -> None:
        writer = self._open.pop(stream)
        writer.abandon()
        sealed = sealed_path(self._data_dir, stream, writer.name)
        self._given_up[stream] = GivenUp(writer.path, writer.size_bytes, sealed, writer.identity.segment_id)

    def _finish_given_up(self, stream: str, result: Round) -> None:
        """Seal a copy of what a given-up file had acknowledged."""
        if stream not in self._given_up:
            return
        lost = self._given_up[stream]
        if lost.path.exists():
            done = finish_live(self._data_dir, lost.path, acknowledged_bytes=lost.acknowledged_bytes)
            result.incidents.append(
                f"finished {lost.path.name}: {done.rows} rows kept, {done.cut_bytes} bytes cut off"
            )
        if lost.sealed.exists():  # by that, or by a rename whose directory's fsync failed after it
            rows = read_segment(lost.sealed).rows
            result.sealed.append(Sealed(stream, lost.sealed, lost.segment_id, rows, lost.sealed.stat().st_size))
            self._save_end(stream, result)
        del self._given_up[stream]

    def _finish_idle(self, result: Round) -> None:
        """Finish given-up files of streams that have no rows to write; their rows are durable, so there is time."""
        for stream in list(self._given_up):
            try:
                self._finish_given_up(stream, result)
            except OSError as exc:
                result.incidents.append(f"{stream}: finishing a given-up file: {exc}")


def _received_us(rows: pa.RecordBatch, index: int) -> int:
    return int(rows["received_at"][index].value)


def _rows_of_first_day(rows: pa.RecordBatch) -> int:
    """Return how many rows are of the same UTC day as the first."""
    day = _received_us(rows, 0) // US_PER_DAY
    if _received_us(rows, rows.num_rows - 1) // US_PER_DAY == day:
        return int(rows.num_rows)
    return bisect_left(range(rows.num_rows), day + 1, key=lambda index: _received_us(rows, index) // US_PER_DAY)
