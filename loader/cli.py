"""The loader's command line. Heavy imports happen in the commands, so that `--help` is instant."""

import argparse
import os
from collections.abc import Sequence
from datetime import date, timedelta
from typing import Any

from loader.errors import WrongRange
from loader.settings import LoaderSettings
from recorder.runtime import command_line, settings
from recorder.runtime.errors import SettingsError

EXAMPLES = """examples:
  python -m loader load                          follow the tape in ./data until stopped
  python -m loader load --once                   load what is there and end
  DATABASE_URL=postgresql://… python -m loader replay --from 2026-11-01 --to 2026-11-02T12:00
  python -m loader replay --into-schema study --instruments 'ETH-27NOV26-*' --streams trades,quotes
  python -m loader audit --json
  python -m loader status
  ARCHIVE_URL=s3://ticks/eth python -m loader archive
  python -m loader prune --keep 14 --dry-run
  python -m loader audit --repair                reload what differs from the tape

exit codes: 0 done or stopped by a signal; 1 failed, or not equal; 2 usage or settings; 4 another process archives
this tape; 6 segments were refused, or the archive is damaged; 7 could not be checked; 130 second signal
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code."""
    return command_line.run(_parser(), argv)


def _names(text: str) -> tuple[str, ...]:
    return tuple(sorted({name.strip() for name in text.split(",") if name.strip()}))


def day(text: str) -> date:
    """Read a UTC day."""
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no day: expected YYYY-MM-DD") from None


def days_to_keep(text: str) -> timedelta:
    """Read a number of days, which may be a fraction."""
    try:
        days = float(text)
        if days >= 0:  # which a NaN is not
            return timedelta(days=days)
    except (ValueError, OverflowError):
        pass  # told like a negative number
    raise argparse.ArgumentTypeError(f"{text!r} is no number of days: expected 0 or more, for example 7 or 0.5")


def _parser() -> argparse.ArgumentParser:
    parser = command_line.new_parser(
        "loader",
        "Bring the segments of a tape into PostgreSQL or TimescaleDB, and into Parquet, each exactly once.",
        EXAMPLES,
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    load = _command(commands, "load", "follow the tape, and load each segment that is sealed", _load)
    load.add_argument("--once", action="store_true", help="load what is there and end")
    replay = _command(commands, "replay", "load the segments of a time range that the database lacks", _replay)
    command_line.add_range(replay)
    replay.add_argument(
        "--streams", metavar="S,…", type=_names, default=(), help="streams or kinds (trades); default: all"
    )
    replay.add_argument("--into-schema", dest="schema", metavar="NAME", help="into a schema with a ledger of its own")
    replay.add_argument(
        "--instruments", metavar="I,…", type=_names,
        help="with --into-schema: these only, * for any text; the schema remembers it",
    )  # fmt: skip
    replay.add_argument("--dry-run", action="store_true", help="say what would be loaded, and change nothing")
    audit = _command(commands, "audit", "compare every sealed segment with its rows in the database", _audit)
    audit.add_argument(
        "--repair",
        action="store_true",
        help="reload the segments that differ, one transaction each; remove rows of numbers that the ledger has not",
    )
    audit.add_argument("--schema", metavar="NAME", help="what replay --into-schema has made, and only that")
    audit.add_argument("--json", action="store_true", help="print the findings as JSON")
    status = _command(
        commands, "status", "tell what is not loaded yet, how far behind it is, what was refused", _status
    )
    status.add_argument("--json", action="store_true", help="print it as JSON")
    archive = _command(commands, "archive", "write finished days as Parquet, each part read back", _archive)
    days = archive.add_mutually_exclusive_group()
    days.add_argument("--date", type=day, metavar="YYYY-MM-DD", help="this UTC day only, finished or not")
    days.add_argument("--today", action="store_true", help="all days, also the one that runs")
    prune = _command(commands, "prune", "remove old segments that the Parquet archive holds", _prune)
    prune.add_argument(
        "--keep",
        type=days_to_keep,
        default=timedelta(days=7),
        metavar="DAYS",
        help="what is younger stays; default: 7",
    )
    prune.add_argument("--dry-run", action="store_true", help="say what would be removed, and remove nothing")
    return parser


def _command(commands: Any, name: str, what: str, run: command_line.Command) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=what, description=f"{what[0].upper()}{what[1:]}."
    )
    settings.add_flags(parser, LoaderSettings)
    parser.set_defaults(command=run)
    return parser


def _settings(args: argparse.Namespace) -> LoaderSettings:
    loaded = settings.load(LoaderSettings, vars(args), os.environ)
    from recorder.runtime import logging  # noqa: PLC0415 - heavy

    logging.configure(level=loaded.log_level, form=loaded.log_format)
    return loaded


def _load(args: argparse.Namespace) -> int:
    loaded = _settings(args)
    from loader.run import load  # noqa: PLC0415 - heavy

    return load(loaded, once=args.once)


def _replay(args: argparse.Namespace) -> int:
    if args.start and args.end and args.start >= args.end:
        raise WrongRange(args.start, args.end)
    if args.instruments and not args.schema:
        raise SettingsError(
            ["--instruments needs --into-schema: a table with a part of the rows must not look whole"]
        )
    loaded = _settings(args)
    from loader.replay import wanted  # noqa: PLC0415 - heavy
    from loader.run import replay  # noqa: PLC0415 - heavy

    chosen = wanted(args.start, args.end, args.streams, args.instruments)
    return replay(loaded, chosen, schema=args.schema, dry_run=args.dry_run)


def _audit(args: argparse.Namespace) -> int:
    loaded = _settings(args)
    from loader.run import audit  # noqa: PLC0415 - heavy

    return audit(loaded, as_json=args.json, repair=args.repair, schema=args.schema)


def _status(args: argparse.Namespace) -> int:
    loaded = _settings(args)
    from loader.run import status  # noqa: PLC0415 - heavy

    return status(loaded, as_json=args.json)


def _archive(args: argparse.Namespace) -> int:
    loaded = _settings(args)
    from loader.archive.plan import Choice  # noqa: PLC0415 - heavy
    from loader.run import archive  # noqa: PLC0415 - heavy

    return archive(loaded, Choice(date=args.date, today=args.today))


def _prune(args: argparse.Namespace) -> int:
    loaded = _settings(args)
    from loader.run import prune  # noqa: PLC0415 - heavy

    return prune(loaded, keep=args.keep, dry_run=args.dry_run)
