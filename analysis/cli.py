"""The command line of the analysis."""

import argparse
import os
from collections.abc import Sequence

from recorder.runtime import command_line, settings
from recorder.runtime.exit_codes import ExitCode

EXAMPLES = """examples:
  python -m analysis sql "SELECT instrument, count(*) FROM eth_option_quotes GROUP BY ALL"
  python -m analysis sql "SELECT * FROM gaps WHERE status = 'open'" --json
  python -m analysis sql "SHOW TABLES"
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code."""
    return command_line.run(_parser(), argv)


def _parser() -> argparse.ArgumentParser:
    parser = command_line.new_parser("analysis", "Open the tape as tables.", EXAMPLES)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    sql = commands.add_parser(
        "sql", help="run one statement", description="Run one SQL statement over the tape, live rows included."
    )
    sql.add_argument("statement", metavar="STATEMENT")
    form = sql.add_mutually_exclusive_group()
    form.add_argument("--json", dest="form", action="store_const", const="json", help="a list of objects")
    form.add_argument("--csv", dest="form", action="store_const", const="csv", help="comma-separated, with a header")
    settings.add_flags(sql, settings.CommonSettings)
    sql.set_defaults(command=_sql, form="table")
    return parser


def _sql(args: argparse.Namespace) -> int:
    loaded = settings.load(settings.CommonSettings, vars(args), os.environ)
    from analysis.sql import sql  # noqa: PLC0415 - heavy

    sql(loaded.data_dir, args.statement, args.form)
    return ExitCode.DONE
