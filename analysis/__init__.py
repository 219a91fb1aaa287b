"""Opens the tape as tables: DuckDB over sealed and live segments alike, with no database."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from duckdb import DuckDBPyConnection

__all__ = ["open", "refresh"]


def open(data_dir: "str | Path") -> "DuckDBPyConnection":  # noqa: A001 - `analysis.open(…)` is what it does
    """Return a DuckDB connection in which every stream of the tape is a table, as of this moment.

    Columns are those of docs/format.md; `gaps` has one row a gap in its newest state. Rows are in the tables as
    soon as their flush has returned. `refresh` moves the tables to now. A file that is no segment of its stream, or
    of a newer format version, is left out and named by a warning of the logger `analysis`.

    Raises:
        NoTape: there is no such directory.
    """
    from analysis.tape import open_tape  # noqa: PLC0415 - duckdb and pyarrow are slow to import

    return open_tape(data_dir)


def refresh(connection: "DuckDBPyConnection") -> None:
    """Move the tables of a connection made by `open` to this moment."""
    from analysis.tape import refresh_tape  # noqa: PLC0415 - as above

    refresh_tape(connection)
