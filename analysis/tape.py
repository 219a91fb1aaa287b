"""Streams as DuckDB tables: sealed segments are scanned where they lie, live rows are read and checked."""

import logging
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds

from analysis.errors import NoTape
from recorder.runtime.data_dir import DataDir
from recorder.segments.layout import streams
from recorder.segments.reader import StreamSnapshot, choose_sealed, snapshot
from recorder.segments.schemas import GAPS_STREAM, SCHEMAS, stream_kind

# Of the standard library: who asks for rows may be a notebook, and a warning belongs on stderr, never on stdout.
log = logging.getLogger("analysis")

# One row a gap, in its newest state.
GAPS_VIEW = f"""
CREATE OR REPLACE VIEW gaps AS
SELECT * FROM {GAPS_STREAM} QUALIFY row_number() OVER (PARTITION BY gap_id ORDER BY state_no DESC) = 1
"""  # noqa: S608 - a constant


def open_tape(root: str | Path) -> duckdb.DuckDBPyConnection:
    """See `analysis.open`."""
    data_dir = DataDir(root)
    if not data_dir.root.is_dir():
        raise NoTape(f"there is no data directory {data_dir.root}", remedy="set DATA_DIR, or record something first")
    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'").fetchall()
    connection.execute("SET VARIABLE data_dir = $root", {"root": str(data_dir.root.absolute())}).fetchall()
    refresh_tape(connection)
    return connection


def refresh_tape(connection: duckdb.DuckDBPyConnection) -> None:
    """See `analysis.refresh`."""
    ((root,),) = connection.execute("SELECT getvariable('data_dir')").fetchall()
    if root is None:
        raise NoTape("this connection was not made by analysis.open")
    data_dir = DataDir(root)
    for stream in sorted({*streams(data_dir), GAPS_STREAM}):
        connection.register(stream, Rows(snapshot(data_dir, stream)))
    connection.execute(GAPS_VIEW).fetchall()


class Rows(ds.Dataset):  # type: ignore[misc] # pyarrow is untyped
    """A stream as a dataset into which DuckDB pushes columns and filters.

    Which sealed files count is found out when rows are first asked for: it takes a look into each of them.
    """

    def __init__(self, found: StreamSnapshot) -> None:
        self._found = found
        self._schema = SCHEMAS[stream_kind(found.stream) or ""]
        self._rows: ds.Dataset | None = None
        for file in found.left_out:
            log.warning("left out %s", file)

    @property
    def schema(self) -> pa.Schema:
        """The stream's columns, without what a segment says of itself."""
        return self._schema

    def scanner(self, **options: Any) -> Any:
        """Scan it; DuckDB calls this at every query.

        Raises:
            OSError: a file cannot be read.
        """
        if self._rows is None:
            self._rows = self._choose()
        return self._rows.scanner(**options)

    def _choose(self) -> ds.Dataset:
        choice = choose_sealed(self._found.sealed, self._found.stream)
        for file in choice.left_out:
            log.warning("left out %s", file)
        read = [pa.Table.from_batches([], schema=self._schema), *choice.rows]
        if self._found.live is not None:
            read.append(self._found.live)
        parts = [ds.dataset(pa.concat_tables(read))]
        if choice.paths:
            parts.append(ds.dataset([str(path) for path in choice.paths], format="ipc", schema=self._schema))
        return ds.dataset(parts)
