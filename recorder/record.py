"""`recorder record`: wires connections, intake, and tape, and stops them in the right order."""

import asyncio
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy

from recorder.clock import STEP_US, Clock
from recorder.deribit.history import History
from recorder.deribit.pool import Pool
from recorder.deribit.universe import Universe
from recorder.errors import ExchangeNotReached
from recorder.flusher import Flusher
from recorder.healer import Healer
from recorder.heard import Heard
from recorder.intake import Intake
from recorder.metrics import LOOK_EVERY_S, Metrics
from recorder.rejects import Rejects
from recorder.runtime import memory, signals
from recorder.runtime.backoff import Backoff
from recorder.runtime.data_dir import DataDir
from recorder.runtime.disk import FULL
from recorder.runtime.errors import DiskError
from recorder.runtime.exit_codes import ExitCode
from recorder.runtime.listener import listening
from recorder.runtime.logging import Logger, get_logger
from recorder.runtime.notify import Notify
from recorder.runtime.redact import redact
from recorder.runtime.version import software
from recorder.segments.chain import find_end
from recorder.segments.recovery import Recovered, recover
from recorder.segments.schemas import stream_name
from recorder.segments.tape import Round, Tape
from recorder.settings import RecorderSettings, default_recorder_name, history_url
from recorder.statistics import EVERY_S, Written, line
from recorder.tape_state import TapeState, carry_over, first_row_us
from recorder.watchlist import Watchlist

QUIET_WARNING_US = 10_000_000
# A trade that no host could give for a day is not to be had.
TRADES_LOST_AFTER_S = 86_400.0


def record(settings: RecorderSettings, *, run_for_s: float | None, connect_timeout_s: float | None) -> None:
    """Record until stopped by a signal or after `run_for_s` seconds.

    Raises:
        DataDirInUse, DiskError, ExchangeNotReached: with their exit codes.
    """
    memory.keep_steady()
    log = get_logger("recorder")
    stop = signals.StopAsked()
    data_dir = DataDir(settings.data_dir)
    name = settings.recorder_name or data_dir.recorder_name() or default_recorder_name()
    with data_dir.lock(name), _disk_errors(data_dir):
        for recovered in _recover(data_dir, log, stop):
            log.warning(
                "segment.recovered",
                name=recovered.live.name,
                rows=recovered.rows,
                cut_bytes=recovered.cut_bytes,
                sealed=recovered.sealed is not None,
                damage=[str(damage) for damage in recovered.damage],
            )
        recorder = Recorder(settings, data_dir, name, log)
        metrics = recorder.metrics
        with listening(
            settings.metrics_host, settings.metrics_port, metrics.registry, alive=metrics.alive, ready=metrics.ready
        ):
            recorder.notify.ready()
            running = recorder.run(
                run_for_s=run_for_s, connect_timeout_s=connect_timeout_s, stop_asked=lambda: stop.asked
            )
            asyncio.run(running)


def _recover(data_dir: DataDir, log: Logger, stop: signals.StopAsked) -> list[Recovered]:
    """Finish what a crash left; on a full disk wait for space: ending would only have us started again and again.

    Raises:
        OSError: the disk refused for another reason, or a stop was asked for while it was full.
    """
    backoff = Backoff()
    while True:
        try:
            return recover(data_dir)
        except OSError as exc:
            if exc.errno not in FULL or stop.asked:
                raise
            delay_s = backoff.next_delay_s()
            log.warning(
                "disk.full", error=str(exc), retry_in_s=round(delay_s, 1), remedy="free some; nothing is recorded"
            )
            stop.wait(delay_s)


class Recorder:
    """One run of the recorder."""

    def __init__(self, settings: RecorderSettings, data_dir: DataDir, name: str, log: Logger) -> None:
        self.notify = Notify()
        self._settings = settings
        self._log = log
        self._written = Written()  # since the last line
        self._stop_asked = asyncio.Event()
        self._clock = Clock()
        state = TapeState(data_dir, stream_name(settings.currency, settings.kind, "trades"))
        for path in state.damaged:
            log.error("segment.damaged", path=str(path), remedy="run make doctor")
        self._intake = Intake(
            currency=settings.currency,
            kind=settings.kind,
            buffer_size_quotes=settings.buffer_size_quotes,
            buffer_size_trades=settings.buffer_size_trades,
            buffer_size_tickers=settings.buffer_size_tickers,
            # Copies: the intake runs ahead of what is durable, the state follows it.
            had=deepcopy(state.had),
            open_gaps=deepcopy(state.open_gaps),
            recording_since_us=first_row_us(data_dir, f"{settings.currency}_{settings.kind}_".lower()),
            rejects=Rejects(data_dir.rejected),
            now_us=self._clock.now_us,
            # The watchlist is made last: it needs the pool, which needs the intake.
            on_instrument=lambda data: self._watchlist.changed(data),  # noqa: PLW0108
            on_list_missed=lambda: self._watchlist.missed_some(),  # noqa: PLW0108
            log=log,
        )
        heard = Heard(data_dir)
        self._tell_crash(data_dir, heard)
        tape = Tape(
            data_dir,
            recorder=name,
            software=software(),
            segment_max_age_s=settings.segment_max_age_sec,
            segment_max_bytes=int(settings.segment_max_mb * 1024 * 1024),
        )
        self._flusher = Flusher(
            self._intake,
            tape,
            state,
            heard,
            self._clock,
            interval_s=settings.flush_interval_sec,
            whole_until_us=self._whole_until_us,
            on_round=self._on_round,
            on_step=lambda step_us: self._pool.clock_stepped(step_us),  # noqa: PLW0108 - it is made next
            log=log,
        )
        self._pool = Pool(
            settings.deribit_ws_url,
            feed=self._intake,
            flows_on=self._intake.flows_on,
            book_flows_on=lambda instrument, connection: connection in self._intake.quotes.carriers(instrument),
            max_channels=settings.max_channels_per_connection,
            redundancy=settings.redundancy,
            now_us=self._clock.now_us,
            log=log,
        )
        self._watchlist = Watchlist(
            self._pool,
            Universe(
                currency=settings.currency,
                kind=settings.kind,
                cache=data_dir.state / "universe.json",
                source=settings.deribit_ws_url,
                log=log,
            ),
            currency=settings.currency,
            kind=settings.kind,
            top_n=settings.top_n_instruments,
            chosen=self._intake.chosen,
            log=log,
        )
        self._healer = Healer(
            self._intake,
            History(
                call=self._pool.call,
                history_url=history_url(settings),
                currency=settings.currency,
                kind=settings.kind,
            ),
            void_after_s=settings.trade_void_after_sec,
            lost_after_s=TRADES_LOST_AFTER_S,
            now_us=self._clock.now_us,
            log=log,
        )
        # Last: the tape's state may take long to read, and the loop is missed from here on.
        self.metrics = Metrics(data_dir.quarantine)

    @property
    def received(self) -> int:
        """How many messages with data have come so far."""
        return self._intake.received

    def stop(self) -> None:
        """Ask for a clean stop; on the event loop only."""
        self._stop_asked.set()

    async def run(
        self,
        *,
        run_for_s: float | None,
        connect_timeout_s: float | None,
        stop_asked: Callable[[], bool] = lambda: False,
    ) -> None:
        """Record until a signal, or for `run_for_s` seconds; then flush, seal, and return.

        Raises:
            ExchangeNotReached: not within `connect_timeout_s`.
        """
        loop, stop = asyncio.get_running_loop(), self._stop_asked
        signals.on_stop(lambda: loop.call_soon_threadsafe(self.stop))
        if stop_asked():  # while what was left by a crash was recovered
            self.stop()
        signals.on_hangup(lambda: loop.call_soon_threadsafe(self._flusher.ask_seal))
        failure: ExchangeNotReached | None = None
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(part.run()) for part in (self._pool, self._watchlist, self._healer)]
                tasks.append(group.create_task(self._watch()))
                flushing = group.create_task(self._flusher.run(stop))
                if run_for_s is not None:
                    loop.call_later(run_for_s, self.stop)
                if connect_timeout_s is not None:
                    failure = await self._reach_exchange(connect_timeout_s)
                await stop.wait()
                self.notify.stopping()
                too_long = loop.call_later(self._settings.stop_timeout_sec, self._abandon)
                await self._pool.leave()
                self._intake.all_left()
                whole_us = self._whole_until_us()
                for task in tasks:
                    task.cancel()
                await flushing
            await self._finish(whole_us)
            too_long.cancel()
        finally:
            self._flusher.close()
        if failure is not None:
            raise failure

    async def _reach_exchange(self, timeout_s: float) -> ExchangeNotReached | None:
        """Wait until the exchange is reached, or a stop is asked for; stop if it takes too long."""
        reached = asyncio.ensure_future(self._pool.connected_once.wait())
        stopped = asyncio.ensure_future(self._stop_asked.wait())
        done, waiting = await asyncio.wait({reached, stopped}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        for future in waiting:
            future.cancel()
        if done:
            return None
        self.stop()
        return ExchangeNotReached(
            f"{redact(self._settings.deribit_ws_url)} was not reached within {timeout_s:g} s",
            remedy="check the network and DERIBIT_WS_URL, or leave out --connect-timeout to keep trying",
        )

    async def _watch(self) -> None:
        """Say every minute how it goes, and soon when nothing comes."""
        begun_s = line_s = time.monotonic()
        received = rejected = told_reconnects = 0
        quiet_told_us = 0
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            now_s = time.monotonic()
            intake, pool = self._intake, self._pool
            if self.metrics.look(intake, pool, self._flusher):
                self.notify.alive()
            reconnects = sum(connection.health.reconnects for connection in pool.connections)
            quiet_us = self._clock.now_us() - max(intake.last_tick_us, quiet_told_us)
            if pool.connected and now_s - begun_s > QUIET_WARNING_US / 1e6 and quiet_us > QUIET_WARNING_US:
                since_s = (
                    (self._clock.now_us() - intake.last_tick_us) / 1e6 if intake.last_tick_us else now_s - begun_s
                )
                self._log.warning("feed.quiet", seconds_without_tick=round(since_s, 1))
                quiet_told_us = self._clock.now_us() + 5 * QUIET_WARNING_US
            if now_s - line_s < EVERY_S:
                continue
            written, self._written = self._written, Written()
            fields = line(
                written,
                intake.buffers,
                seconds=now_s - line_s,
                received=intake.received - received,
                rejected=intake.rejects.count - rejected,
                reconnects=reconnects - told_reconnects,
                connections=f"{pool.connected}/{len(pool.connections)}",
                lag_ms=max((c.health.lag_us // 1000 for c in pool.connections if c.health.connected), default=0),
                queue_ms=round(max((c.health.longest_wait_s for c in pool.connections), default=0.0) * 1000, 1),
                open_gaps=len(intake.gaps.open_gaps),
                disk_free_bytes=self._flusher.free_space.free_bytes,
                disk_hours_left=self._flusher.free_space.hours_left,
            )
            self._log.info("statistics", **fields)
            self.notify.status(
                f"{fields['connections']} connections, {fields['received_messages']} messages a minute"
            )
            line_s, received = now_s, intake.received
            told_reconnects, rejected = reconnects, intake.rejects.count
            for buffer in intake.buffers:
                buffer.peak_rows = 0
            for connection in pool.connections:
                connection.health.longest_wait_s = 0.0

    def _on_round(self, done: Round) -> None:
        self._written.add(done)
        self.metrics.round(done)

    async def _finish(self, whole_us: dict[str, int]) -> None:
        """Flush and seal; `_abandon` ends it if the disk does not let it end.

        A stop says that all before it was recorded: it is told once that is durable, as a round begins with the gaps.
        """
        await self._flush_all()
        self._intake.stopped(whole_us)
        await self._flush_all()
        await self._flusher.seal()
        self._log.info("stopped", messages=self._intake.received)

    async def _flush_all(self) -> None:
        # Once more where a gap's fate had to wait for its trades to be durable.
        while not await self._flusher.round() or self._intake.owed.settling:  # noqa: ASYNC110 - no event: a disk
            await asyncio.sleep(0.2)

    def _abandon(self) -> None:
        """End at once: a call to a disk that hangs cannot be interrupted, and nothing waits for it for ever."""
        waiting = sum(len(buffer) for buffer in self._intake.buffers)
        timeout_s = self._settings.stop_timeout_sec
        what = f"the disk did not let the stop end within {timeout_s:g} s; {waiting} rows are lost"
        sys.stderr.write(f"error: {what}; see the log for what it refused\n")
        sys.stderr.flush()
        os._exit(ExitCode.DISK)

    def _whole_until_us(self) -> dict[str, int]:
        """Until when each stream is whole: a connection may be open and dead, and at a stop one is left first."""
        return self._intake.whole_until_us(self._pool.heard_until_us)

    def _tell_crash(self, data_dir: DataDir, heard: Heard) -> None:
        """Open a gap from the last durable row of each stream, unless a clean stop opened its own.

        It begins before that row where some of what was recorded had fallen silent by then. A last row that lies in
        the future was stamped before the wall clock was set back, which is told as well.
        """
        now_us, gaps = self._clock.now_us(), self._intake.gaps
        ends = {lane: find_end(data_dir, lane.stream) for lane in self._intake.lanes}
        since = {lane: us for lane, end in ends.items() if (us := end.whole_until_us(now_us)) is not None}
        # Instruments are told when they are subscribed: where nothing else is durable, recording began there.
        begun_us = first_row_us(data_dir, f"{self._settings.currency}_{self._settings.kind}_".lower())
        earliest_us = min(since.values(), default=begun_us)
        if earliest_us is None:
            return  # a new tape, or the first run of this market
        for lane, end in ends.items():
            since_us = since.get(lane, min(earliest_us, now_us))
            for gap in gaps.open_gaps:
                if gap.stream == lane.stream:
                    carry_over(gap, end, since_us=since_us, now_us=now_us)
            if end.last_us is not None and end.last_us > now_us + STEP_US:
                by_s = (now_us - end.last_us) / 1e6
                self._log.warning("clock.stepped", stream=lane.stream, by_at_least_s=by_s)
                detail = f"the wall clock was stepped by {by_s:+.3f} s or more while nothing was recorded"
                # Its bounds are the times that both clocks showed. Nothing is missing for it.
                step = gaps.open(lane.stream, None, "clock_step", started_us=now_us, now_us=now_us, detail=detail)
                gaps.settle(step, "void", now_us=now_us, ended_us=end.last_us)
            if not lane.stopped_cleanly():
                whole_us = heard.whole_until_us(lane.stream, since_us)
                lane.interrupted("crash", since_us=whole_us, now_us=now_us)


@contextmanager
def _disk_errors(data_dir: DataDir) -> Iterator[None]:
    """Turn what the disk refuses at start into a line and exit code 5; afterwards the tape survives by itself."""
    try:
        yield
    except OSError as exc:
        raise DiskError(
            f"the disk under {data_dir.root} refused: {exc}", remedy="mend it or choose another DATA_DIR"
        ) from exc
