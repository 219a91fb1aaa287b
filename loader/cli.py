"""The loader's command line. Heavy imports happen in the commands, so that `--help` is instant."""

import argparse
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from loader.errors import WrongRange
from loader.settings import LoaderSettings
from recorder.runtime import command_line, settings

EXAMPLES = """examples:
  python -m loader load                          follow the tape in ./data until stopped
  python -m loader load --once                   load what is there and end
  DATABASE_URL=postgresql://… python -m loader replay --from 2026-11-01 --to 2026-11-02T12:00
  python -m loader audit --json

exit codes: 0 done or stopped by a signal; 1 failed, or not equal; 2 usage or settings; 6 segments were refused;
7 could not be checked; 130 second signal
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code."""
    return command_line.run(_parser(), argv)


def moment(text: str) -> datetime:
    """Read a point in time: ISO 8601, UTC unless it says otherwise, a date alone is its midnight."""
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no time: expected ISO 8601, for example 2026-11-01 or 2026-11-01T08:00:00Z"
        ) from None
    return parsed.replace(tzinfo=UTC) if parsed.tzinfo is None else parsed.astimezone(UTC)


def _parser() -> argparse.ArgumentParser:
    parser = command_line.new_parser(
        "loader", "Bring the segments of a tape into PostgreSQL or TimescaleDB, each exactly once.", EXAMPLES
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    load = _command(commands, "load", "follow the tape, and load each segment that is sealed", _load)
    load.add_argument("--once", action="store_true", help="load what is there and end")
    replay = _command(commands, "replay", "load the segments of a time range that the database lacks", _replay)
    replay.add_argument("--from", dest="start", type=moment, metavar="T", help="first received_at (UTC), included")
    replay.add_argument("--to", dest="end", type=moment, metavar="T", help="last received_at (UTC), not included")
    audit = _command(commands, "audit", "compare every sealed segment with its rows in the database", _audit)
    audit.add_argument("--json", action="store_true", help="print the findings as JSON")
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
    loaded = _settings(args)
    from loader.run import replay  # noqa: PLC0415 - heavy

    return replay(loaded, start=args.start, end=args.end)


def _audit(args: argparse.Namespace) -> int:
    loaded = _settings(args)
    from loader.run import audit  # noqa: PLC0415 - heavy

    return audit(loaded, as_json=args.json)
