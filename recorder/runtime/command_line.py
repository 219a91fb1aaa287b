"""What the command lines of all programs share: one line for an error, one exit code, `--version`."""

import argparse
import platform
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import NoReturn

from recorder.runtime.errors import SettingsError, TicktapeError
from recorder.runtime.exit_codes import ExitCode
from recorder.runtime.redact import redact_urls
from recorder.runtime.version import version

Command = Callable[[argparse.Namespace], int]


class Parser(argparse.ArgumentParser):
    """Refuses abbreviated flags: `--flush` must not come to mean something else later."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        kwargs.setdefault("allow_abbrev", False)
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]

    def error(self, message: str) -> NoReturn:
        """End with one line and exit code 2."""
        if message.startswith("unrecognized arguments"):  # a flag's name may be misspelt, and its value a URL
            message = redact_urls(message)
        self.exit(ExitCode.USAGE, f"error: {message}; see {self.prog} --help\n")


def new_parser(program: str, description: str, epilog: str) -> Parser:
    """Return the parser of one program, with `--version`."""
    parser = Parser(prog=f"python -m {program}", description=description, epilog=epilog)
    text = f"ticktape {version()} (Python {platform.python_version()})"
    parser.add_argument("--version", action="version", version=text)
    return parser


def moment(text: str) -> datetime:
    """Read a point in time: ISO 8601, UTC unless it says otherwise, a date alone is its midnight."""
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no time: expected ISO 8601, for example 2026-11-01 or 2026-11-01T08:00:00Z"
        ) from None
    return parsed.replace(tzinfo=UTC) if parsed.tzinfo is None else parsed.astimezone(UTC)


def add_range(parser: argparse.ArgumentParser) -> None:
    """Add `--from` and `--to`: a half-open range of `received_at`, as `start` and `end`; None where not given."""
    parser.add_argument("--from", dest="start", type=moment, metavar="T", help="first received_at (UTC), included")
    parser.add_argument("--to", dest="end", type=moment, metavar="T", help="last received_at (UTC), not included")


def run(parser: argparse.ArgumentParser, argv: Sequence[str] | None = None) -> int:
    """Parse, run the chosen command, and turn a TicktapeError into one line on stderr and its exit code."""
    args = parser.parse_args(argv)
    command: Command = args.command
    try:
        return command(args)
    except SettingsError as exc:
        for problem in exc.problems:
            print(f"error: {problem}", file=sys.stderr)  # noqa: T201 - the answer to a person
        return exc.exit_code
    except TicktapeError as exc:
        print(f"error: {exc}", file=sys.stderr)  # noqa: T201
        return exc.exit_code
    except KeyboardInterrupt:
        return ExitCode.SECOND_SIGNAL  # of a command that has nothing to end cleanly
    except BrokenPipeError:
        # Whoever read our output went away (`| head`): nothing is wrong, and nothing more can be said.
        sys.stdout = None
        return ExitCode.DONE
