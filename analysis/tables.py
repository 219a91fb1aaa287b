"""The tape as tables of a DuckDB connection: one a stream, one a kind of stream, and the ready queries as views."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds

from analysis.errors import NoTape
from analysis.queries import ready_queries
from analysis.rows import ROW, Rows, log
from analysis.span import Span
from analysis.tape import S3, Plan, Tape, plan
from recorder.segments.archived import Archived, Damaged
from recorder.segments.manifest import Manifest
from recorder.segments.schemas import GAPS_STREAM, SCHEMAS, stream_kind

# Spark's names for what DuckDB calls otherwise: the ready queries are for both.
_MACROS = """
CREATE OR REPLACE MACRO unix_micros(moment) AS epoch_us(moment);
CREATE OR REPLACE MACRO percentile(numbers, share) AS quantile_cont(numbers, share);
"""


def open_tape(
    place: str | Path,
    span: Span,
    chosen: Collection[str] = (),
    archive: str | Path | None = None,
    *,
    verify: bool = False,
) -> duckdb.DuckDBPyConnection:
    """See `analysis.open`."""
    names = [chosen] if isinstance(chosen, str) else sorted(chosen)
    if unknown := [name for name in names if name not in SCHEMAS and stream_kind(name) is None]:
        raise NoTape(f"there is no kind of stream {', '.join(unknown)}", remedy=f"kinds are {', '.join(SCHEMAS)}")
    Tape.at(place, archive)
    connection = connect()
    asked: dict[str, Any] = {
        "place": _lasting(place), "archive": None if archive is None else _lasting(archive), "chosen": names,
        "start": span.start and span.start.isoformat(), "end": span.end and span.end.isoformat(), "verify": verify,
    }  # fmt: skip
    connection.execute("SET VARIABLE tape = $asked", {"asked": asked}).fetchall()
    refresh_tape(connection)
    return connection


def _lasting(place: str | Path) -> str:
    """Return where something lies as it is called from whatever folder."""
    return str(place) if str(place).startswith(S3) else str(Path(place).absolute())


def refresh_tape(connection: duckdb.DuckDBPyConnection) -> None:
    """See `analysis.refresh`."""
    ((asked,),) = connection.execute("SELECT getvariable('tape')").fetchall()
    if asked is None:
        raise NoTape("this connection was not made by analysis.open")
    tape = Tape.at(asked["place"], asked["archive"])
    span = Span(*(asked[name] and datetime.fromisoformat(asked[name]) for name in ("start", "end")))
    try:
        chosen = {stream: plan(tape, stream) for stream in tape.streams() if is_chosen(stream, asked["chosen"])}
        _make_streams(connection, chosen, span, verify=asked["verify"])
    except (OSError, duckdb.IOException) as exc:
        raise NoTape(f"the tape cannot be read: {' '.join(str(exc).split())}") from exc
    _make_kinds(connection, chosen, asked["chosen"])
    connection.execute(_MACROS).fetchall()
    for query in ready_queries():
        try:
            connection.execute(f"CREATE OR REPLACE VIEW {query.name} AS {query.statement}").fetchall()
        except duckdb.CatalogException:
            if not asked["chosen"]:
                raise
            # It is about a stream that was not chosen.


def connection_over(plans: Mapping[str, Plan], span: Span) -> duckdb.DuckDBPyConnection:
    """Return a DuckDB connection over streams as they were looked at."""
    connection = connect()
    _make_streams(connection, plans, span, verify=False)
    return connection


def is_chosen(stream: str, chosen: Iterable[str]) -> bool:
    """Whether a stream is one of those named, by name (`eth_option_trades`) or kind (`trades`); none named means all.

    What tells of options and of gaps is always there.
    """
    names = set(chosen)
    kind = stream_kind(stream)
    return not names or stream in names or kind in names or kind in ("instruments", "gaps")


def archived_rows(archive: Archived, manifests: Iterable[Manifest], stream: str) -> ds.Dataset:
    """Return parts of an archive as a dataset; the segment is no column of it."""
    return ds.dataset(
        [archive.part(manifest) for manifest in manifests],
        format="parquet", schema=SCHEMAS[stream_kind(stream) or ""], filesystem=archive.filesystem,
    )  # fmt: skip


def connect() -> duckdb.DuckDBPyConnection:
    """Return a DuckDB connection whose times are UTC, whatever the machine's are."""
    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'").fetchall()
    return connection


def of_kinds(found: Collection[str]) -> dict[str, list[str]]:
    """Return the tables of kinds, `quotes` and so on, each with the streams whose rows it has: those of all markets.

    A stream that has such a name itself is none of them.
    """
    by_kind = {
        GAPS_STREAM if kind == "gaps" else kind: sorted(stream for stream in found if stream_kind(stream) == kind)
        for kind in SCHEMAS
    }
    return {name: streams for name, streams in by_kind.items() if streams != [name]}


def union(streams: Iterable[str], quote: str = '"') -> str:
    """Return the statement of all rows of streams of a kind; names may begin with a digit, and are in quotes."""
    return " UNION ALL ".join(f"SELECT * FROM {quote}{stream}{quote}" for stream in streams)  # noqa: S608 - ours


def believed(planned: Plan, span: Span, *, verify: bool) -> Plan:
    """Return a plan without parts of the archive that are damaged, if that is looked for; they are named.

    Such a part counts as if it were not there: where its segments are still on the tape they count.
    """
    if not verify or planned.archive is None:
        return planned
    whole = []
    for manifest in planned.manifests:
        if span.part(manifest) and isinstance(wrong := planned.archive.rows(manifest), Damaged):
            log.warning("left out %s: %s", wrong.path, wrong.why)
        else:
            whole.append(manifest)
    return replace(planned, manifests=tuple(whole))


def wanted_parts(planned: Plan, span: Span) -> list[Manifest]:
    """Return the parts of the archive that can have rows of a range."""
    return [manifest for manifest in planned.manifests if span.part(manifest)]


def _make_streams(
    connection: duckdb.DuckDBPyConnection, plans: Mapping[str, Plan], span: Span, *, verify: bool
) -> None:
    for stream, looked_at in plans.items():
        planned = believed(looked_at, span, verify=verify)
        segments = Rows(planned, span, verify=verify)
        parts = wanted_parts(planned, span)
        if parts and segments.none:  # by itself Parquet answers from its footers how many rows it has
            rows = _archived(connection, planned, parts, span)
        else:
            rows = connection.from_arrow(segments)
            if parts:
                archived = _archived(connection, planned, parts, span)
                rows = rows.union(archived.project(f'NULL::TINYINT AS "{ROW.name}", *'))
            rows = rows.project(_columns(stream))
        rows.create_view(stream, replace=True)


def _archived(
    connection: duckdb.DuckDBPyConnection, planned: Plan, parts: list[Manifest], span: Span
) -> duckdb.DuckDBPyRelation:
    """Return rows of an archive: of a folder as DuckDB itself reads Parquet, which is the fastest way."""
    archive = planned.archive
    assert archive is not None
    if archive.is_local:
        rows = connection.read_parquet([archive.part(part) for part in parts], hive_partitioning=False)
    else:  # DuckDB would have to download an extension
        rows = connection.from_arrow(archived_rows(archive, parts, planned.stream))
    for bound in span.bounds(planned.stream):
        rows = rows.filter(bound.holds(duckdb.ColumnExpression(bound.column)))
    return rows.project(_columns(planned.stream))


def _columns(stream: str) -> str:
    """Return a stream's columns as SQL lists them."""
    return ", ".join(f'"{name}"' for name in SCHEMAS[stream_kind(stream) or ""].names)


def _make_kinds(connection: duckdb.DuckDBPyConnection, found: Collection[str], chosen: Collection[str]) -> None:
    for name, streams in of_kinds(found).items():
        kind = stream_kind(name) or name
        if streams:
            connection.execute(f"CREATE OR REPLACE VIEW {name} AS {union(streams)}").fetchall()
        elif is_chosen(name, chosen) or kind in chosen or kind in ("instruments", "gaps"):
            empty = pa.Table.from_batches([], schema=SCHEMAS[kind])
            connection.from_arrow(empty).create_view(name, replace=True)
