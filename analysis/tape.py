"""Streams as DuckDB tables: sealed segments are scanned where they lie, live rows are read and checked."""

from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds

from analysis.errors import NoTape
from recorder.runtime.data_dir import DataDir
from recorder.segments.layout import streams
from recorder.segments.reader import StreamSnapshot, snapshot
from recorder.segments.schemas import GAPS_STREAM, SCHEMAS, stream_kind

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
        connection.register(stream, table_of(snapshot(data_dir, stream)))
    connection.execute(GAPS_VIEW).fetchall()


def table_of(found: StreamSnapshot) -> ds.Dataset:
    """Return a stream as a dataset into which DuckDB pushes columns and filters."""
    schema = SCHEMAS[stream_kind(found.stream) or ""]
    parts = [ds.dataset(found.live if found.live is not None else pa.Table.from_batches([], schema=schema))]
    if found.sealed:
        parts.append(ds.dataset([str(path) for path in found.sealed], format="ipc", schema=schema))
    return ds.dataset(parts)
