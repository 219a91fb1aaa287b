"""The exit codes of every program here; scripts rely on them (docs/commands.md)."""

from enum import IntEnum


class ExitCode(IntEnum):
    """What a process says when it ends."""

    DONE = 0  # done, or stopped by a first signal
    FAILED = 1  # a runtime failure, or the verdict "no"
    USAGE = 2  # wrong usage or settings
    NO_EXCHANGE = 3  # the exchange was not reached within --connect-timeout
    DATA_DIR_IN_USE = 4  # another recorder holds the data directory, or it belongs to another name
    DISK = 5  # a disk failure that could not be survived
    DAMAGED = 6  # damaged or refused segments
    NOT_CHECKED = 7  # a check that could not be made
    SECOND_SIGNAL = 130  # a second signal: ended at once
