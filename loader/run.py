"""The commands as programs: signals, database, exit code, and what goes to stdout."""

import contextlib
import logging
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta

from loader import follow, progress
from loader import replay as replaying
from loader.archive import report
from loader.archive.archiver import Archiver
from loader.archive.daily import daily_archiving
from loader.archive.plan import Choice
from loader.archive.prune import Pruner
from loader.archive.read import open_archive
from loader.archive.store import open_store
from loader.audit import Audit
from loader.errors import DatabaseAway, FilterConflict, LoaderError, NoArchive, Stopped
from loader.inbox import Inbox
from loader.lacking import warn, warned
from loader.load import Tally
from loader.metrics import Metrics
from loader.postgres import filters
from loader.postgres.capabilities import ask, choose
from loader.postgres.database import Database
from loader.postgres.session import set_up_session
from loader.prepare import Wanted
from loader.report import Report
from loader.sender import Target
from loader.settings import LoaderSettings
from loader.status import look
from loader.stop import Stop
from recorder.runtime import memory, signals
from recorder.runtime.data_dir import DataDir
from recorder.runtime.errors import SettingsError
from recorder.runtime.exit_codes import ExitCode
from recorder.runtime.listener import listening
from recorder.runtime.notify import Notify


def load(settings: LoaderSettings, *, once: bool) -> int:
    """Follow the tape until stopped, or load what is there."""
    tally, notify, data_dir = Tally(), Notify(), DataDir(settings.data_dir)
    metrics = Metrics(tally)
    with (
        _session(settings) as (database, stop),
        _beside(settings, stop, archive=not once),
        listening(
            settings.metrics_host, settings.loader_metrics_port, metrics.registry, alive=dict, ready=metrics.ready
        ),
    ):
        notify.ready()
        archive = open_archive(settings, stop.check)
        with warned(database, None if once else archive, data_dir, stop, is_away=lambda: bool(tally.away)):
            follow.load(database, data_dir, stop=stop, once=once, tally=tally, target=target_of(settings))
        notify.stopping()
        if once and archive and not stop.asked:
            with contextlib.suppress(DatabaseAway, Stopped):  # loaded is loaded
                warn(database, archive, data_dir)
        return ExitCode.DAMAGED if once and tally.refused and not stop.asked else ExitCode.DONE


def replay(settings: LoaderSettings, wanted: Wanted, *, schema: str | None, dry_run: bool) -> int:
    """Load the whole segments of a time range that the database lacks."""
    data_dir = DataDir(settings.data_dir)
    with _session(settings) as (database, stop):
        if dry_run:
            with database.connect() as connection:
                filters.check(connection, schema, wanted.instruments)
                set_up_session(connection, schema)
                planned = replaying.plan(
                    connection, Inbox(data_dir), wanted, archive=open_archive(settings, stop.check), schema=schema
                )
            sys.stdout.write(f"{replaying.plan_as_text(planned)}\n")
            return ExitCode.DONE
        target = replace(target_of(settings), schema=schema, instruments=wanted.instruments)
        tally = Tally()
        with progress.shown(tally):
            follow.load(
                database, data_dir, stop=stop, once=True, tally=tally, wanted=wanted, target=target,
                archive=open_archive(settings, stop.check),
            )  # fmt: skip
        if stop.asked:
            sys.stdout.write(f"interrupted: {replaying.summary(tally)}; run it again for the rest\n")
            return ExitCode.DONE
        sys.stdout.write(f"{replaying.summary(tally)}\n")
        return ExitCode.DAMAGED if tally.refused else ExitCode.DONE


def target_of(settings: LoaderSettings) -> Target:
    """Return where rows go, as the settings say."""
    return Target(
        direct_compress=settings.direct_compress,
        retention_days=settings.retention_days,
        connections=settings.loader_connections,
    )


def audit(settings: LoaderSettings, *, as_json: bool, repair: bool, schema: str | None) -> int:
    """Compare the database with the tape, repair it if asked; what could not be compared is never called equal."""
    with _session(settings) as (database, stop):
        try:
            with database.connect() as connection:
                choose(ask(connection, create=False))
                auditing = Audit(
                    connection, DataDir(settings.data_dir), stop=stop, repair=repair, schema=schema,
                    archive=open_archive(settings, stop.check),
                )  # fmt: skip
                found = Report(auditing.findings(), as_json=as_json, notes=auditing.notes)
        except FilterConflict:
            raise  # wrong usage, and no verdict
        except LoaderError as exc:
            sys.stderr.write(f"error: {exc}\n")
            return ExitCode.NOT_CHECKED
        found.write(sys.stdout)
        return {True: ExitCode.DONE, False: ExitCode.FAILED, None: ExitCode.NOT_CHECKED}[found.equal]


def status(settings: LoaderSettings, *, as_json: bool) -> int:
    """Print what is still to be loaded."""
    with _session(settings) as (database, stop), database.connect() as connection:
        capabilities = choose(ask(connection, create=False))
        inbox, archive = Inbox(DataDir(settings.data_dir)), open_archive(settings, stop.check)
        found = look(connection, inbox, f"{database.shown}: {capabilities.why}", archive)
        sys.stdout.write((found.as_json() if as_json else found.as_text()) + "\n")
        return ExitCode.DONE


def archive(settings: LoaderSettings, choice: Choice) -> int:
    """Archive what is on the tape and not in the archive yet."""
    stop = _stopped_by_signals()
    store = open_store(settings, stop.check)
    if store is None:
        raise SettingsError(["ARCHIVE_URL=off: expected a folder or s3://bucket/prefix to archive to"])
    archiver = Archiver(DataDir(settings.data_dir), store, compression=settings.archive_compression, check=stop.check)
    try:
        tally = archiver.run(choice)
    except Stopped:
        sys.stdout.write("interrupted: what was published stays; run it again for the rest\n")
        return ExitCode.DONE
    for name, why in sorted(tally.refused.items()):
        sys.stderr.write(f"left out: {name}: {why}\n")
    sys.stdout.write(f"{report.archived(tally, store.shown)}\n")
    return ExitCode.DAMAGED if tally.refused else ExitCode.DONE


def prune(settings: LoaderSettings, *, keep: timedelta, dry_run: bool) -> int:
    """Remove segments that the archive holds."""
    stop = _stopped_by_signals()
    there = open_archive(settings, stop.check)
    if there is None:
        raise NoArchive("nothing was pruned: ARCHIVE_URL=off says that there is no archive")
    pruner = Pruner(DataDir(settings.data_dir), there, keep=keep, dry_run=dry_run, check=stop.check)
    try:
        pruned = pruner.run()
    except Stopped:
        sys.stdout.write("interrupted; run it again for the rest\n")
        return ExitCode.DONE
    for name, why in sorted(pruned.problems.items()):
        sys.stderr.write(f"kept for it: {name}: {why}\n")
    sys.stdout.write(f"{report.pruned(pruned, dry_run=dry_run)}\n")
    return ExitCode.DAMAGED if pruned.problems else ExitCode.DONE


def _beside(settings: LoaderSettings, stop: Stop, *, archive: bool) -> contextlib.AbstractContextManager[None]:
    return daily_archiving(settings, stop) if archive else contextlib.nullcontext()


def _stopped_by_signals() -> Stop:
    stop = Stop()
    signals.on_stop(stop.request)
    return stop


@contextlib.contextmanager
def _session(settings: LoaderSettings) -> Iterator[tuple[Database, Stop]]:
    memory.give_back_large()
    logging.getLogger("psycopg").setLevel(logging.ERROR)  # what it warns of is told here in our own words
    stop = _stopped_by_signals()
    database = Database(settings, stop)
    try:
        yield database, stop
    finally:
        database.close()
        sys.stdout.flush()
