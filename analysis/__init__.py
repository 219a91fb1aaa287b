"""Opens the tape as tables: DuckDB and polars over archived, sealed, and live rows alike, with no database."""

from collections.abc import Collection
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import date
    from pathlib import Path

    import polars as pl
    from duckdb import DuckDBPyConnection

    from analysis.span import Span

__all__ = ["open", "refresh", "scan"]


def open(  # noqa: A001 - `analysis.open(…)` is what it does
    data_dir: "str | Path",
    *,
    start: "date | str | None" = None,
    end: "date | str | None" = None,
    streams: Collection[str] = (),
    archive: "str | Path | None" = None,
    verify: bool = False,
) -> "DuckDBPyConnection":
    """Return a DuckDB connection in which every stream of the tape is a table, as of this moment.

    Columns are those of docs/format.md. `quotes`, `trades`, `tickers`, and `instruments` are the streams of all
    markets on the tape; `gaps` has one row a gap in its newest state, `options` one an option; and every ready query
    (`python -m analysis sql --list`) is a view. Rows are in the tables as soon as their flush has returned, and stay
    there while their segment is sealed, archived, and pruned. `refresh` moves the tables to now. A file that is no
    segment of its stream, or of a newer format version, is left out and named by a warning of the logger `analysis`.

    Args:
        data_dir: the tape; or an archive by itself, a folder or `s3://bucket/prefix`.
        start: the first `received_at` (of trades: `timestamp`): a time, a date, or ISO 8601; UTC unless it says
            otherwise.
        end: the first one that is not wanted any more. Files outside of the range are not opened.
        streams: names (`eth_option_trades`) or kinds (`trades`); empty for all.
        archive: a folder or `s3://bucket/prefix`; None for the one in `data_dir`.
        verify: check every file to its last byte before its rows count. Live ones are always checked, sealed and
            archived ones else believed. Only the good rows of a damaged segment count, and none of a damaged part of
            the archive (its segments do where they are still on the tape); both are named by a warning.

    Raises:
        NoTape: there is no such directory, or no such kind of stream, or something cannot be read or reached.
        BadQuery: the range ends before it begins.
    """
    from analysis.tables import open_tape  # noqa: PLC0415 - duckdb and pyarrow are slow to import

    return open_tape(data_dir, _span(start, end), streams, archive, verify=verify)


def refresh(connection: "DuckDBPyConnection") -> None:
    """Move the tables of a connection made by `open` to this moment."""
    from analysis.tables import refresh_tape  # noqa: PLC0415 - as above

    refresh_tape(connection)


def scan(
    stream: str,
    data_dir: "str | Path",
    *,
    start: "date | str | None" = None,
    end: "date | str | None" = None,
    archive: "str | Path | None" = None,
    verify: bool = False,
) -> "pl.LazyFrame":
    """Return a stream as a polars LazyFrame, as of this moment; arguments and rows are those of `open`.

    Raises:
        NoTape: as `open`, or there is no such stream.
    """
    from analysis.lazy import scan_tape  # noqa: PLC0415 - as above

    return scan_tape(stream, data_dir, _span(start, end), archive, verify=verify)


def _span(start: "date | str | None", end: "date | str | None") -> "Span":
    from datetime import UTC, datetime  # noqa: PLC0415 - as above

    from analysis.span import Span  # noqa: PLC0415

    def moment(given: "date | str | None") -> "datetime | None":
        read = (
            None if given is None else datetime.fromisoformat(given if isinstance(given, str) else given.isoformat())
        )
        return read.replace(tzinfo=UTC) if read is not None and read.tzinfo is None else read

    return Span(moment(start), moment(end))
