"""Archives finished days while a loader runs, in a thread beside it: never in its way, never its failure."""

import contextlib
import threading
import time
from collections.abc import Iterator

from loader.archive.archiver import Archiver, Tally
from loader.archive.plan import Choice
from loader.archive.store import open_store
from loader.errors import LoaderError, Stopped
from loader.settings import LoaderSettings
from loader.stop import Stop
from recorder.runtime.backoff import Backoff
from recorder.runtime.data_dir import DataDir
from recorder.runtime.logging import get_logger

# How often is looked for days that are over, or whose late segments were sealed.
LOOK_S = 3600.0
# After a failure it is tried again this soon, then at doubling distances up to LOOK_S.
AGAIN_S = 60.0
# Longer than a stop can take: an upload is cut after loader.archive.s3.STOP_GRACE_S, all else is asked each second.
END_S = 15.0

log = get_logger("archive")


class Daily:
    """The thread that looks hourly."""

    def __init__(self, archiver: Archiver, stop: Stop) -> None:
        self._archiver = archiver
        self._stop = stop
        self._told: set[str] = set()  # failures, each until a run succeeds; and refused files, each while it is
        self._backoff = Backoff(first_s=AGAIN_S, most_s=LOOK_S)
        self._thread = threading.Thread(target=self._run, name="archive", daemon=True)

    def start(self) -> None:
        """Look now, and then hourly, until the stop is asked for."""
        self._thread.start()

    def join(self) -> None:
        """Wait for its end, which the stop was asked for."""
        self._thread.join(END_S)
        if self._thread.is_alive():
            log.warning("archive.still_running", waited_s=END_S)

    def _run(self) -> None:
        while not self._stop.asked:
            self._stop.wait(self.look())

    def look(self) -> float:
        """Archive what is to be archived; return after how many seconds to look again."""
        begun = time.monotonic()
        try:
            tally = self._archiver.run(Choice())
        except Stopped:
            return 0.0
        except LoaderError as exc:
            return self._failed(str(exc))
        except Exception as exc:  # whatever is wrong with archiving, loading goes on
            if f"{type(exc).__name__}: {exc}" not in self._told:
                log.exception("archive.broke")
            return self._failed(f"{type(exc).__name__}: {exc}")
        self._backoff.reset()
        self._tell(tally, time.monotonic() - begun)
        return LOOK_S

    def _failed(self, reason: str) -> float:
        delay_s = self._backoff.next_delay_s()
        if reason not in self._told:
            self._told = {reason}
            log.warning("archive.failed", reason=reason, again_in_s=round(delay_s, 1))
        return delay_s

    def _tell(self, tally: Tally, seconds: float) -> None:
        now = {f"{name}: {why}" for name, why in tally.refused.items()}
        for name, why in tally.refused.items():
            if f"{name}: {why}" not in self._told:
                log.error("archive.refused", name=name, reason=why)
        self._told = now
        if tally.parts:
            log.info(
                "archive.done",
                parts=tally.parts, segments=tally.segments, rows=tally.rows, bytes=tally.bytes,
                seconds=round(seconds, 3),
            )  # fmt: skip


@contextlib.contextmanager
def daily_archiving(settings: LoaderSettings, stop: Stop) -> Iterator[None]:
    """Archive finished days while the block runs; ARCHIVE_URL=off for none. At its end the stop is asked for.

    Raises:
        SettingsError: ARCHIVE_URL is wrong; before anything runs.
    """
    store = open_store(settings, stop.check)
    if store is None:
        yield
        return
    archiver = Archiver(DataDir(settings.data_dir), store, compression=settings.archive_compression, check=stop.check)
    daily = Daily(archiver, stop)
    daily.start()
    try:
        yield
    finally:
        stop.event.set()
        daily.join()
