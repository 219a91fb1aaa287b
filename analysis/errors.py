"""Errors of the analysis.

TicktapeError
├── NoTape     exit 2   DATA_DIR is no directory, or there is no archive
├── BadQuery   exit 2   there is no statement, or it was refused
├── NoCluster  exit 1   the cluster cannot be asked
└── NoReport   exit 1   the page cannot be made, or not be written
"""

from recorder.runtime.errors import TicktapeError
from recorder.runtime.exit_codes import ExitCode


class NoTape(TicktapeError):
    """There is no directory to open."""

    exit_code = ExitCode.USAGE


class BadQuery(TicktapeError):
    """The statement is not one that the tape can answer."""

    exit_code = ExitCode.USAGE


class NoCluster(TicktapeError):
    """The cluster cannot be asked: what speaks to it is not installed, or it does not answer."""


class NoReport(TicktapeError):
    """The page about a tape cannot be made."""
