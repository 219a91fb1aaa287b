"""The flusher with a real tape, under a clock that is stepped and a disk that is full."""

import errno
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pytest

from recorder.flusher import Flusher
from recorder.heard import Heard
from recorder.runtime.data_dir import DataDir
from recorder.runtime.logging import get_logger
from recorder.segments.layout import sealed_files
from recorder.segments.tape import Round, Tape
from recorder.segments.writer import Flush, SegmentWriter
from recorder.tape_state import TapeState
from tests.test_clock import S, Time
from tests.test_intake import TOP, Bench

pytestmark = pytest.mark.anyio

HOUR_S = 3600
QUOTES = "eth_option_quotes"


class Desk:
    """An intake, a tape, and what brings rows from the one to the other."""

    def __init__(self, folder: Path) -> None:
        self.time = Time()
        self.clock = clock = self.time.clock()
        self.intake = Bench(folder / "rejected", now_us=clock.now_us).intake
        self.steps: list[int] = []
        self.came_meanwhile = 0
        self.data_dir = DataDir(folder / "tape")
        tape = Tape(self.data_dir, recorder="test", software="t", segment_max_age_s=600, segment_max_bytes=1 << 30)
        self.flusher = Flusher(
            self.intake,
            tape,
            TapeState(self.data_dir, "eth_option_trades"),
            Heard(self.data_dir),
            clock,
            interval_s=1,
            whole_until_us=lambda: self.intake.whole_until_us(lambda _number: clock.now_us()),
            on_round=self.on_round,
            on_step=self.steps.append,
            log=get_logger("test"),
        )
        self.quotes = 0

    def on_round(self, _done: Round) -> None:
        """A quote comes while each flush is under way."""
        if self.came_meanwhile:
            self.came_meanwhile -= 1
            self.quote()

    def quote(self) -> None:
        self.time.pass_s(0.01)
        self.quotes += 1
        now_us = self.clock.now_us()
        last = None if self.quotes == 1 else self.quotes - 1
        self.intake.quote(0, "ETH-1", now_us // 1000, TOP, self.quotes, last, now_us)

    def segments(self) -> list[tuple[list[int], list[int]]]:
        """What each segment of quotes holds: when its rows were received, and their change_ids."""
        columns = ["received_at", "change_id"]
        tables = [
            ds.dataset(path, format="ipc").to_table(columns=columns) for path in sealed_files(self.data_dir, QUOTES)
        ]
        return [([value.value for value in table["received_at"]], table["change_id"].to_pylist()) for table in tables]


class Disk:
    """Is full after so many more writes; None: it is not."""

    left: int | None = None


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    disk, flush = Disk(), SegmentWriter.flush

    def admit(writer: SegmentWriter, batch: pa.RecordBatch) -> Flush:
        if disk.left == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        disk.left = None if disk.left is None else disk.left - 1
        return flush(writer, batch)

    monkeypatch.setattr(SegmentWriter, "flush", admit)
    return disk


@pytest.mark.parametrize("writes", [0, 1, None])
@pytest.mark.fault(5, 15)
async def test_no_segment_holds_both_sides_of_a_step_though_the_disk_is_full(
    tmp_path: Path, disk: Disk, writes: int | None
) -> None:
    """Full before the clock is set, or right after it: each row is there once, and within a segment time goes on."""
    desk = Desk(tmp_path)
    desk.quote()
    assert await desk.flusher.round()
    desk.quote()
    desk.time.wall -= HOUR_S * S
    disk.left, desk.came_meanwhile = writes, 2
    flushed = await desk.flusher.round()
    assert flushed == (writes is None)
    assert bool(desk.steps) == (writes != 0)
    for _ in range(3):
        desk.quote()
        assert await desk.flusher.round() == (writes is None)
    disk.left = None
    while not await desk.flusher.round() or not desk.steps:
        pass
    desk.quote()
    assert await desk.flusher.round()
    await desk.flusher.seal()
    segments = desk.segments()

    assert desk.steps == [-HOUR_S * 1_000_000]
    assert sorted(number for _, numbers in segments for number in numbers) == list(range(1, desk.quotes + 1))
    assert all(times == sorted(times) for times, _ in segments)
    begun = [times[0] for times, _ in segments if times]
    assert max(begun) - min(begun) > 3_000_000_000
