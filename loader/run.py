"""The commands as programs: signals, database, exit code, and what goes to stdout."""

import contextlib
import logging
import sys
from collections.abc import Iterator
from datetime import datetime

from loader import follow, report
from loader import replay as replaying
from loader.audit import Audit, equal
from loader.errors import LoaderError
from loader.postgres.capabilities import ask, choose
from loader.postgres.database import Database
from loader.settings import LoaderSettings
from loader.stop import Stop
from recorder.runtime import signals
from recorder.runtime.data_dir import DataDir
from recorder.runtime.exit_codes import ExitCode


def load(settings: LoaderSettings, *, once: bool) -> int:
    """Follow the tape until stopped, or load what is there."""
    with _session(settings) as (database, stop):
        tally = follow.load(database, DataDir(settings.data_dir), stop=stop, once=once)
        return ExitCode.DAMAGED if once and tally.refused and not stop.asked else ExitCode.DONE


def replay(settings: LoaderSettings, *, start: datetime | None, end: datetime | None) -> int:
    """Load the whole segments of a time range that the database lacks."""
    with _session(settings) as (database, stop):
        tally = follow.load(
            database, DataDir(settings.data_dir), stop=stop, once=True, wanted=replaying.wanted(start, end)
        )
        if stop.asked:
            sys.stdout.write(f"interrupted: {replaying.summary(tally)}; run it again for the rest\n")
            return ExitCode.DONE
        sys.stdout.write(f"{replaying.summary(tally)}\n")
        return ExitCode.DAMAGED if tally.refused else ExitCode.DONE


def audit(settings: LoaderSettings, *, as_json: bool) -> int:
    """Compare the database with the tape; what could not be compared is never called equal."""
    with _session(settings) as (database, stop):
        try:
            with database.connect() as connection:
                choose(ask(connection))
                findings = list(Audit(connection, DataDir(settings.data_dir), stop=stop).findings())
        except LoaderError as exc:
            sys.stderr.write(f"error: {exc}\n")
            return ExitCode.NOT_CHECKED
        sys.stdout.write((report.as_json(findings) if as_json else report.as_text(findings)) + "\n")
        return {True: ExitCode.DONE, False: ExitCode.FAILED, None: ExitCode.NOT_CHECKED}[equal(findings)]


@contextlib.contextmanager
def _session(settings: LoaderSettings) -> Iterator[tuple[Database, Stop]]:
    logging.getLogger("psycopg").setLevel(logging.ERROR)  # what it warns of is told here in our own words
    stop = Stop()
    database = Database(settings, stop)
    signals.on_stop(stop.request)
    try:
        yield database, stop
    finally:
        database.close()
        sys.stdout.flush()
