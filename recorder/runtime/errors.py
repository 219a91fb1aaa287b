"""Errors that end a program with one line and a documented exit code.

TicktapeError
├── SettingsError       exit 2   every wrong setting at once
├── DataDirInUse        exit 4   another recorder, or another recorder's tape
├── DiskError           exit 5   the disk refused what the tape needs
├── CannotListen        exit 1   in runtime.listener: the port is taken, or the address is not there yet
└── (packages add theirs: LoaderError in loader.errors, …)
"""

from recorder.runtime.exit_codes import ExitCode


class TicktapeError(Exception):
    """Something that a person must know: what happened, and what to do about it."""

    exit_code = ExitCode.FAILED

    def __init__(self, what: str, *, remedy: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.what}; {self.remedy}" if self.remedy else self.what


class SettingsError(TicktapeError):
    """One or more settings are wrong; `problems` holds a line for each (name, value, rule)."""

    exit_code = ExitCode.USAGE

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class DataDirInUse(TicktapeError):
    """The data directory is held by another recorder or belongs to another recorder's tape."""

    exit_code = ExitCode.DATA_DIR_IN_USE


class DiskError(TicktapeError):
    """The disk refused something without which nothing can be recorded."""

    exit_code = ExitCode.DISK
