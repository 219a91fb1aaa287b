"""Brings rows from the buffers to the tape, a round at a time, in the writer thread."""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from recorder.buffers import Buffer, Warner
from recorder.clock import Clock
from recorder.free_space import BYTES_PER_GB, FreeSpace
from recorder.heard import Heard
from recorder.intake import Intake
from recorder.runtime import memory
from recorder.runtime.backoff import Backoff
from recorder.runtime.disk import FULL
from recorder.runtime.logging import Logger
from recorder.segments.tape import Batches, Round, Tape
from recorder.tape_state import TapeState


class Flusher:
    """The only user of the writer thread: rounds, seals, and what follows from them, one after another."""

    def __init__(
        self,
        intake: Intake,
        tape: Tape,
        state: TapeState,
        heard: Heard,
        clock: Clock,
        *,
        interval_s: float,
        whole_until_us: Callable[[], dict[str, int]],
        on_round: Callable[[Round], None],
        on_step: Callable[[int], None],
        log: Logger,
    ) -> None:
        """`on_round` is told what each flush and seal did, `on_step` by how much the clock was set just now.

        `whole_until_us` says, by stream, until when all was heard that the rows of the moment and before do not tell
        to be missing.
        """
        self.free_space = FreeSpace()
        self.turned_s = time.monotonic()  # when it last was about to begin a round; it hangs if that is long ago
        self._on_round = on_round
        self._on_step = on_step
        self._whole_until_us = whole_until_us
        self._seal_asked = False
        # Rows of before a clock step, and when by the old clock it was: durable and sealed before any later row.
        self._of_before: tuple[dict[str, Batches], int] | None = None
        self._intake = intake
        self._tape = tape
        self._state = state
        self._heard = heard
        self._clock = clock
        self._interval_s = interval_s
        self._log = log
        self._backoff = Backoff()
        self._warner = Warner()
        self._not_before_s = 0.0
        # One thread: the tape is written in order, and the event loop never waits for a disk.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="writer")

    async def run(self, stop: asyncio.Event) -> None:
        """Flush every interval until `stop`; the next round begins when this one has ended."""
        while not stop.is_set():
            begun_s = self.turned_s = time.monotonic()
            if begun_s >= self._not_before_s:
                await self.round()
            if self._seal_asked:
                self._seal_asked = False
                await self.seal()
            wait_s = max(0.0, begun_s + self._interval_s - time.monotonic())
            try:
                async with asyncio.timeout(wait_s):
                    await stop.wait()
            except TimeoutError:
                continue

    def ask_seal(self) -> None:
        """Seal every live segment after the next round (SIGHUP)."""
        self._seal_asked = True

    async def round(self) -> bool:
        """Flush once; False if rows were left because the disk refused them.

        Where the wall clock was stepped it is taken over after a flush, and another one follows.
        """
        if self._of_before is None:
            flushed = await self._tick_and_flush()
            step_us = self._clock.step_us()
            if not flushed or not step_us:
                return flushed
            self._take_over(step_us)
        return await self._end_before_step() and await self._tick_and_flush()

    async def seal(self) -> None:
        """Seal every live segment."""
        self._report(await self._in_thread(self._seal))

    def close(self) -> None:
        """Let the writer thread go."""
        self._thread.shutdown(wait=False)

    # In the writer thread

    def _write(
        self, rows: dict[str, Batches], rejects: list[dict[str, str]], now_us: int, whole_us: dict[str, int]
    ) -> Round:
        result = self._tape.write_round(rows, now_us=now_us)
        if whole_us and not result.left:
            try:
                self._heard.save(whole_us)
            except OSError as exc:
                result.incidents.append(f"state/: {exc}")
        try:
            result.free_bytes = self._tape.free_bytes()
        except OSError as exc:
            result.incidents.append(f"free space: {exc}")
        try:
            self._intake.rejects.write(rejects)
        except OSError as exc:
            result.incidents.append(f"rejected/: {exc}")
        self._keep_state(result)
        return result

    def _seal(self) -> Round:
        result = self._tape.seal_all()
        self._keep_state(result)
        return result

    def _keep_state(self, result: Round) -> None:
        try:
            if any([self._state.fold(sealed.stream, sealed.path) for sealed in result.sealed]):  # noqa: C419 - all
                self._state.save()
        except OSError as exc:
            result.incidents.append(f"state/: {exc}")
        if result.sealed:
            memory.release_unused()

    # On the event loop

    async def _in_thread(self, call: Callable[..., Round], *args: object) -> Round:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call, *args)

    async def _tick_and_flush(self) -> bool:
        self._intake.tick()
        whole_us = self._whole_until_us()  # with these rows, and none that come while they are written
        left = await self._flush(self._take(), self._clock.now_us(), whole_us)
        for buffer in self._intake.buffers:
            buffer.settle(left.get(buffer.stream, ()))
        self._warn(self._intake.buffers)
        return not left

    def _take(self) -> dict[str, Batches]:
        return {buffer.stream: buffer.take() for buffer in self._intake.buffers}

    async def _flush(self, rows: dict[str, Batches], now_us: int, whole_us: dict[str, int]) -> dict[str, Batches]:
        """Write rows; return those that the disk refused."""
        begun_s = time.monotonic()
        result = await self._in_thread(self._write, rows, self._intake.rejects.take(), now_us, whole_us)
        result.flush_s = time.monotonic() - begun_s
        self._report(result)
        self._watch_free_space(result)
        return result.left

    def _take_over(self, step_us: int) -> None:
        """Set the clock, between two rows: those that wait are of before, what comes from here on of after.

        Only after a flush that did not fail: with a full disk rows may wait for hours, and more of them come.
        """
        before_us = self._clock.now_us()
        self._log.warning("clock.stepped", by_s=step_us / 1e6)
        self._of_before = self._take(), before_us
        self._clock.set()
        self._heard.clock_stepped()
        self._on_step(step_us)
        self._intake.clock_stepped(step_us, before_us)

    async def _end_before_step(self) -> bool:
        """Let no segment hold rows of both sides of a clock step: within one, received_at never runs backwards.

        Rows of before that the disk refuses stay apart, and are tried again before any of after; they count against
        the bounds of the buffers meanwhile.
        """
        assert self._of_before is not None
        rows, before_us = self._of_before
        left = await self._flush(rows, before_us, {})
        if left:
            self._of_before = left, before_us
            return False
        for buffer in self._intake.buffers:
            buffer.settle(())
        self._of_before = None
        await self.seal()
        return True

    def _report(self, result: Round) -> None:
        self._on_round(result)
        for sealed in result.sealed:
            self._log.info(
                "segment.sealed",
                stream=sealed.stream,
                name=sealed.path.name,
                rows=sealed.rows,
                size_bytes=sealed.size_bytes,
            )
        if result.sealed:
            self._clock.slew()
        for incident in result.incidents:
            self._log.error("disk.trouble", what=incident)
        failure = result.failure
        for lane in self._intake.lanes:
            lane.disk_full = failure is not None and failure.errno in FULL
        if failure is None:
            self._backoff.reset()
            return
        delay_s = self._backoff.next_delay_s()
        self._not_before_s = time.monotonic() + delay_s
        waiting = sum(batch.num_rows for batches in result.left.values() for batch in batches)
        self._log.error("flush.failed", error=str(failure), waiting_rows=waiting, retry_in_s=round(delay_s, 1))

    def _watch_free_space(self, result: Round) -> None:
        if result.free_bytes is None:
            return
        now_s, space = time.monotonic(), self.free_space
        space.add(now_s, result.free_bytes, result.size_bytes)
        if space.warning_due(now_s):
            self._log.warning(
                "disk.filling",
                free_gb=round(result.free_bytes / BYTES_PER_GB, 2),
                hours_left=None if space.hours_left is None else round(space.hours_left, 1),
                remedy="free space, archive and prune, or move DATA_DIR",
            )

    def _warn(self, buffers: Sequence[Buffer]) -> None:
        now_s = time.monotonic()
        for buffer in buffers:
            if self._warner.due(buffer, now_s):
                self._log.warning(
                    "buffer.filling",
                    stream=buffer.stream,
                    rows=len(buffer),
                    limit_rows=buffer.limit_rows,
                    dropped_rows=buffer.dropped,
                )
        rejects = self._intake.rejects
        if rejects.log_due(self._clock.now_us()):
            self._log.warning("message.rejected", count=rejects.count, newest=rejects.newest_reason[:200])
