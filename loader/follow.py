"""Follows a tape: loads what is there, then what is sealed, through outages of the database, until stopped."""

import time
from collections.abc import Iterator
from pathlib import Path

import watchfiles

from loader.archive.read import Archive
from loader.errors import DatabaseAway, Stopped
from loader.inbox import Inbox, stream_folders
from loader.load import Loader, Tally
from loader.postgres.database import Database
from loader.prepare import Wanted
from loader.sender import Target
from loader.stop import Stop
from recorder.runtime.backoff import Backoff
from recorder.runtime.data_dir import DataDir
from recorder.runtime.logging import get_logger
from recorder.segments.layout import SEALED_SUFFIX

# Events are hints: the tape is listed anew at least this often, whether or not one came.
RESCAN_S = 5.0
# New files of one flush round come together; wait for them, but not long.
_DEBOUNCE_MS = 500
# While nothing is there to be watched, look again this often.
_LOOK_S = 1.0
# `load --once` gives up after this long without a database.
GIVE_UP_S = 30.0

log = get_logger("loader")


def load(
    database: Database,
    data_dir: DataDir,
    *,
    stop: Stop,
    once: bool = False,
    tally: Tally | None = None,
    wanted: Wanted | None = None,
    target: Target | None = None,
    archive: Archive | None = None,
) -> Tally:
    """Load a tape; return what was done once it was asked to stop, or with `once` when all there is was looked at.

    Raises:
        DatabaseAway: with `once`, after GIVE_UP_S without a database.
        DatabaseUnfit, FilterConflict: a person must act.
    """
    tally, backoff = tally or Tally(), Backoff()
    away_since: float | None = None
    inbox = Inbox(data_dir)
    while not stop.asked:
        segments = tally.segments
        try:
            with database.connect() as connection:
                loader = Loader(
                    connection,
                    data_dir,
                    stop=stop,
                    tally=tally,
                    connect=database.connect,
                    wanted=wanted,
                    target=target,
                    archive=archive,
                )
                log.info(
                    "database.ready", url=database.shown, kind=loader.capabilities.kind, why=loader.capabilities.why
                )
                tally.away, inbox = "", loader.inbox
                loader.expect()
                for _ in _hints(data_dir, stop, once=once):
                    loader.load_new()
                    backoff.reset()
                    away_since = None
                if once:
                    loader.finish()
            if once:
                return tally
        except Stopped:
            break
        except DatabaseAway as exc:
            _note_away(tally, inbox, wanted, exc)
            if segments != tally.segments:
                backoff.reset()
                away_since = None
            away_since = away_since or time.monotonic()
            if once and time.monotonic() - away_since >= GIVE_UP_S:
                raise
            delay_s = backoff.next_delay_s()
            if once:
                delay_s = min(delay_s, max(away_since + GIVE_UP_S - time.monotonic(), 0.1))
            log.warning("database.away", reason=str(exc), again_in_s=round(delay_s, 1))
            stop.wait(delay_s)
    return tally


def _note_away(tally: Tally, inbox: Inbox, wanted: Wanted | None, exc: DatabaseAway) -> None:
    """Keep count of what waits, also of what is sealed while nothing can be loaded."""
    tally.away = str(exc)
    tally.waiting = {one.name: one for one in inbox.unsettled() if wanted is None or wanted.file(one)}


def _hints(data_dir: DataDir, stop: Stop, *, once: bool) -> Iterator[None]:
    """Yield at once, then whenever the tape may have new segments, until a stop is asked for."""
    yield
    if once:
        return
    unwatchable = ""
    while not stop.asked:
        folders = _folders(data_dir)
        if not folders or unwatchable:
            stop.wait(RESCAN_S if unwatchable else _LOOK_S)
            yield
            continue
        try:
            for changes in watchfiles.watch(
                *folders,
                watch_filter=lambda _change, path: path.endswith(SEALED_SUFFIX),
                debounce=_DEBOUNCE_MS,
                rust_timeout=int(RESCAN_S * 1000),
                yield_on_timeout=True,
                stop_event=stop.event,
                raise_interrupt=False,
            ):
                yield
                if not changes and _folders(data_dir) != folders:
                    break  # watch the new streams too
        except (OSError, RuntimeError) as exc:
            if isinstance(exc, FileNotFoundError):
                continue  # a folder was removed since it was listed
            unwatchable = str(exc)
            log.warning("watch.failed", reason=unwatchable, rescan_every_s=RESCAN_S)


def _folders(data_dir: DataDir) -> list[Path]:
    """List what is to be watched: streams only, for live files and an embedded database beside them never rest."""
    try:
        return stream_folders(data_dir)
    except OSError:
        return []  # the loader names it, each time it lists the tape
