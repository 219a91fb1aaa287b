"""The command line of the analysis."""

import argparse
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn
from urllib.parse import urlsplit

from analysis.errors import BadQuery, NoTape
from analysis.settings import AnalysisSettings, archive_of
from recorder.runtime import command_line, settings, signals
from recorder.runtime.exit_codes import ExitCode
from recorder.runtime.redact import redact

if TYPE_CHECKING:
    from analysis.sql import Ask

EXAMPLES = """examples:
  python -m analysis sql "SELECT instrument, count(*) FROM eth_option_quotes GROUP BY ALL"
  python -m analysis sql "SELECT * FROM gaps WHERE status = 'open'" --json
  python -m analysis sql --list
  python -m analysis sql bars --from 2026-11-01T12:00 --to 2026-11-01T13:00 --parquet bars.parquet
  python -m analysis sql "FROM smile WHERE open_interest > 100" --watch 2
  python -m analysis sql bars --remote sc://spark:15002 --archive s3://ticks/eth
  python -m analysis completeness --from 2026-11-01T12:00 --to 2026-11-01T13:00 --min-coverage 0.98
  ARCHIVE_URL=s3://ticks/eth python -m analysis completeness
  python -m analysis report --out report.html

exit codes of completeness: 0 complete, or told by gap rows; 1 something is missing that nothing tells;
7 could not be checked, or there is nothing to check
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code."""
    return command_line.run(_parser(), argv)


def _parser() -> argparse.ArgumentParser:
    parser = command_line.new_parser("analysis", "Open the tape as tables.", EXAMPLES)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    sql = commands.add_parser(
        "sql",
        help="run a statement",
        description="Run a SQL statement, or a ready query, over the tape, live rows included.",
    )
    sql.add_argument("statement", nargs="?", metavar="STATEMENT", help="SQL, or the name of a ready query")
    sql.add_argument("--file", type=Path, metavar="FILE", help="read the statement from a file; - for stdin")
    sql.add_argument("--list", action="store_true", help="list the ready queries")
    form = sql.add_mutually_exclusive_group()
    form.add_argument("--json", dest="form", action="store_const", const="json", help="a list of objects")
    form.add_argument("--csv", dest="form", action="store_const", const="csv", help="comma-separated, with a header")
    form.add_argument("--parquet", type=page, metavar="FILE", help="write the answer to a Parquet file")
    sql.add_argument("--watch", type=seconds, metavar="SECONDS", help="ask again and again, until Ctrl-C")
    sql.add_argument(
        "--remote", type=server, metavar="URL", help="ask a cluster over the archive: sc://host:port, Spark Connect"
    )
    command_line.add_range(sql)
    _add_settings(sql)
    sql.set_defaults(command=_sql, form="table")
    complete = commands.add_parser(
        "completeness",
        help="prove what is there, and name what is not",
        description="Prove per instrument and stream that the tape is whole, or tell exactly what is missing.",
    )
    command_line.add_range(complete)
    complete.add_argument(
        "--min-coverage", type=share, metavar="SHARE",
        help="each instrument must be recorded for this share of its time, for example 0.98",
    )  # fmt: skip
    complete.add_argument("--json", action="store_true", help="print all that was found, as one object")
    files = complete.add_mutually_exclusive_group()
    files.add_argument(
        "--manifest", type=Path, metavar="FILE", help="write checksums of all files, for sha256sum -c in DATA_DIR"
    )
    files.add_argument("--verify", type=Path, metavar="FILE", help="only check the files that a manifest names")
    _add_settings(complete)
    complete.set_defaults(command=_completeness)
    _add_report(commands)
    return parser


def _add_report(commands: "argparse._SubParsersAction[command_line.Parser]") -> None:
    report = commands.add_parser(
        "report",
        help="make a page about the tape",
        description="Make an HTML page that opens offline: what the tape holds and what is missing, rates, coverage, "
        "latency, spreads, volume, smile, term structure, open interest.",
    )
    report.add_argument(
        "--out", type=page, metavar="FILE", default=Path("report.html"), help="where to (default: report.html)"
    )
    command_line.add_range(report)
    _add_settings(report)
    report.set_defaults(command=_report)


def page(text: str) -> Path:
    """Read the name of a file that can be made: what takes minutes should not fail at its end."""
    file = Path(text)
    if not file.parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {file.parent}")
    if not file.name or file.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is a folder: expected a file")
    return file


def share(text: str) -> float:
    """Read a number from 0 to 1."""
    try:
        found = float(text)
    except ValueError:
        found = -1.0
    if not 0 <= found <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no share: expected a number from 0 to 1, for example 0.98")
    return found


def seconds(text: str) -> float:
    """Read a number of seconds above 0."""
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not 0 < found < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no time: expected seconds, for example 2")
    return found


def server(text: str) -> str:
    """Read the URL of a Spark Connect server."""
    try:
        parts = urlsplit(text)
        known = parts.scheme == "sc" and parts.hostname and parts.port != 0 and parts.path in ("", "/")
    except ValueError:  # of the port
        known = False
    if "token=" in text:
        raise argparse.ArgumentTypeError(
            "a token on the command line is seen by every user of this machine: put it into"
            " SPARK_CONNECT_AUTHENTICATE_TOKEN in the environment"
        )
    if not known:
        raise argparse.ArgumentTypeError(
            f"{redact(text)!r} is no server: expected sc://host:port, for example sc://spark:15002"
        )
    return text


def _add_settings(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the settings; what is asked for is often another archive, so that there is a short one."""
    parser.add_argument(
        "--archive", dest="archive_url", metavar="PLACE",
        help="a folder, or s3://bucket/prefix; short for --archive-url",
    )  # fmt: skip
    settings.add_flags(parser, AnalysisSettings)


def _settings(args: argparse.Namespace) -> tuple[str, str | None]:
    """Return where the tape lies, and where its archive, as `analysis.open` takes them.

    Raises:
        NoTape: there is no such archive. What ARCHIVE_URL says may not be there before something is archived.
    """
    named = args.archive_url
    if named and named.lower() != "off" and "://" not in named and not Path(named).is_dir():
        raise NoTape(f"there is no archive {named}")
    loaded = settings.load(AnalysisSettings, vars(args), os.environ)
    return loaded.data_dir, archive_of(loaded)


def _sql(args: argparse.Namespace) -> int:
    data_dir, archive = _settings(args)
    _refuse_what_does_not_go_together(args)
    from analysis import sql  # noqa: PLC0415 - heavy
    from analysis.span import Span  # noqa: PLC0415

    if args.list:
        sql.list_queries()
        return ExitCode.DONE
    statement = sql.statement_of(args.statement, args.file)
    span = Span(args.start, args.end)
    if args.remote:
        from analysis import remote  # noqa: PLC0415

        signals.on_stop(_interrupt)  # a second Ctrl-C does not wait for the cluster to be told
        most_rows = sql.SHOWN_ROWS if args.form == "table" and not args.parquet else None
        with remote.asking(args.remote, data_dir, span, archive, most_rows=most_rows) as ask:
            _print(partial(ask, statement), args)
    else:
        _print(sql.local(data_dir, span, archive, statement), args)
    return ExitCode.DONE


def _interrupt() -> NoReturn:
    raise KeyboardInterrupt


def _print(ask: "Ask", args: argparse.Namespace) -> None:
    from analysis import sql  # noqa: PLC0415 - as above

    if args.parquet:
        sql.write_parquet(ask, args.parquet)
    elif args.watch:
        sql.watch(ask, args.form, args.watch)
    else:
        sql.answer(ask, args.form)


def _refuse_what_does_not_go_together(args: argparse.Namespace) -> None:
    given = [args.statement is not None, args.file is not None, args.list]
    if sum(given) != 1:
        raise BadQuery("expected a statement, --file FILE, or --list: one of them", remedy="see sql --help")
    if args.watch and args.parquet:
        raise BadQuery("--watch prints what --parquet would overwrite", remedy="leave one of them out")


def _completeness(args: argparse.Namespace) -> int:
    data_dir, archive = _settings(args)
    from analysis.prove import completeness, verify  # noqa: PLC0415 - heavy
    from analysis.span import Span  # noqa: PLC0415

    if args.verify:
        if args.start or args.end or args.min_coverage is not None:
            raise BadQuery("--verify checks all files of a manifest", remedy="leave out what asks for rows")
        return verify(data_dir, args.verify, archive=archive)
    return completeness(
        data_dir,
        Span(args.start, args.end),
        archive=archive,
        least=args.min_coverage,
        as_json=args.json,
        manifest=args.manifest,
    )


def _report(args: argparse.Namespace) -> int:
    data_dir, archive = _settings(args)
    from analysis.report.make import make  # noqa: PLC0415 - heavy
    from analysis.span import Span  # noqa: PLC0415

    make(data_dir, Span(args.start, args.end), archive, args.out)
    return ExitCode.DONE
