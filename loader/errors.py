"""What can stop a load, or one segment of it.

TicktapeError
└── LoaderError
    ├── DatabaseAway        exit 1   cannot be used just now; worth trying again
    │   └── LedgerChanged            what was loaded is not in its ledger any more: all is to be asked anew
    ├── DatabaseUnfit       exit 1   cannot be loaded as it is: a person must act
    │   ├── SchemaConflict           its tables are not the tape's any more
    │   └── MigrationConflict        its schema was made by other files than these
    ├── FilterConflict      exit 2   a schema is for other instruments than what it was named for
    ├── ArchiveAway         exit 1   cannot be used just now; worth trying again
    ├── ArchiveDamaged      exit 6   something that the archive should have is not there, or not what it was
    ├── ArchiverAtWork      exit 4   another archiver holds this tape
    ├── NoArchive           exit 1   there is nothing to prune by
    ├── WrongRange          exit 2   a replay that ends before it begins
    ├── SegmentRefused      exit 6   one segment is not loaded, the others go on
    └── Stopped             exit 0   a signal asked for the end; never shown
"""

from datetime import datetime

from recorder.runtime.errors import TicktapeError
from recorder.runtime.exit_codes import ExitCode


class LoaderError(TicktapeError):
    """Something that a person who loads must know."""


class DatabaseAway(LoaderError):
    """The database cannot be used just now."""


class LedgerChanged(DatabaseAway):
    """The ledger is not what it was: an older backup was put in its place, or its numbers are behind."""


class DatabaseUnfit(LoaderError):
    """The database cannot take the tape as it is."""


class SchemaConflict(DatabaseUnfit):
    """A table of the database differs from the stream it holds."""


class MigrationConflict(DatabaseUnfit):
    """The database's schema was made by other files than this program has."""


class FilterConflict(LoaderError):
    """A schema is for other instruments than those that are asked for: a part of them, all, or none at all."""

    exit_code = ExitCode.USAGE


class ArchiveAway(LoaderError):
    """The Parquet archive cannot be used just now."""


class ArchiveDamaged(LoaderError):
    """A part or a manifest of the archive is missing, or not what was written."""

    exit_code = ExitCode.DAMAGED


class ArchiverAtWork(LoaderError):
    """Another process archives this tape just now."""

    exit_code = ExitCode.DATA_DIR_IN_USE


class NoArchive(LoaderError):
    """There is no Parquet archive; a database alone is never reason enough to remove a segment."""


class WrongRange(LoaderError):
    """A range of time has nothing in it."""

    exit_code = ExitCode.USAGE

    def __init__(self, start: datetime, end: datetime) -> None:
        super().__init__(f"--from {start.isoformat()} is not before --to {end.isoformat()}")


class SegmentRefused(LoaderError):
    """One segment cannot be loaded."""

    exit_code = ExitCode.DAMAGED

    def __init__(self, reason: str, *, segment_id: str | None = None) -> None:
        super().__init__(reason)
        self.segment_id = segment_id  # as far as the file can be believed


class Stopped(LoaderError):
    """A signal asked for the end while something was under way."""

    exit_code = ExitCode.DONE
