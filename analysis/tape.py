"""One tape: the archive's Parquet, sealed segments, and live rows as one table a stream, each row once.

Live files are read first, then sealed ones are listed, then the archive's manifests: a segment that moves on
meanwhile is found where it went, and counts there. (In the reverse order it could be found nowhere.)
"""

import logging
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds

from analysis.errors import NoTape
from analysis.span import Span
from recorder.runtime.data_dir import DataDir
from recorder.segments import archived
from recorder.segments.archived import Archived, Damaged
from recorder.segments.layout import streams
from recorder.segments.manifest import Manifest
from recorder.segments.reader import StreamSnapshot, choose_sealed, snapshot
from recorder.segments.schemas import GAPS_STREAM, SCHEMAS, stream_kind

S3 = "s3://"
# Of the standard library: who asks for rows may be a notebook, and a warning belongs on stderr, never on stdout.
log = logging.getLogger("analysis")


@dataclass(frozen=True)
class Tape:
    """Where a tape lies: its folder, and its archive."""

    data_dir: DataDir | None  # None: there is an archive only
    archive: Archived | None

    @classmethod
    def at(cls, place: str | Path, archive: str | Path | None = None) -> "Tape":
        """Find a tape.

        Args:
            place: DATA_DIR; or `s3://bucket/prefix` for an archive alone.
            archive: a folder or `s3://bucket/prefix`; None for the one in DATA_DIR.

        Raises:
            NoTape: there is no such directory, or the archive cannot be reached.
        """
        try:
            if str(place).startswith(S3):
                return cls(None, archived.at(str(place)))
            data_dir = DataDir(Path(place).absolute())
            if not data_dir.root.is_dir():
                raise NoTape(
                    f"there is no data directory {data_dir.root}", remedy="set DATA_DIR, or record something first"
                )
            if archive is None:
                return cls(data_dir, archived.beside(data_dir))
            url = str(archive)
            return cls(data_dir, archived.at(url) if url.startswith(S3) else archived.folder(Path(url)))
        except (OSError, pa.ArrowException) as exc:
            raise NoTape(f"the archive cannot be reached: {' '.join(str(exc).split())}") from exc

    def streams(self) -> list[str]:
        """List the streams that there is anything of."""
        found = set(streams(self.data_dir)) if self.data_dir else set()
        if self.archive:
            found |= {stream for stream in self.archive.streams() if stream_kind(stream)}
        return sorted(found)


@dataclass(frozen=True)
class Plan:
    """A stream as of one moment: live rows, sealed files, and parts of the archive."""

    stream: str
    found: StreamSnapshot
    archive: Archived | None
    manifests: tuple[Manifest, ...] = ()
    left_out: tuple[str, ...] = field(default=())


def plan(tape: Tape, stream: str) -> Plan:
    """Look at a stream; nothing but live files and manifests is opened.

    Raises:
        OSError: a folder cannot be looked into, or the archive cannot be reached.
    """
    found = snapshot(tape.data_dir, stream) if tape.data_dir else StreamSnapshot(stream, (), None)
    manifests, left_out = [], []
    for one in tape.archive.manifests(stream) if tape.archive else ():
        if isinstance(one, Damaged):
            left_out.append(f"{one.path}: {one.why}")
        else:
            manifests.append(one)
    return Plan(stream, found, tape.archive, tuple(manifests), tuple(left_out))


class Rows(ds.Dataset):  # type: ignore[misc] # pyarrow is untyped
    """A stream as a dataset into which DuckDB and polars push columns and filters.

    Which sealed files count is found out when rows are first asked for: it takes a look into each of them.
    """

    def __init__(self, planned: Plan, span: Span) -> None:
        self._plan = planned
        self._span = span
        self._schema = SCHEMAS[stream_kind(planned.stream) or ""]
        self._rows: ds.Dataset | None = None
        for file in (*planned.found.left_out, *planned.left_out):
            log.warning("left out %s", file)

    @property
    def schema(self) -> pa.Schema:
        """The stream's columns, without what a segment says of itself."""
        return self._schema

    def scanner(self, filter: Any = None, **options: Any) -> Any:  # noqa: A002 - pyarrow's name
        """Scan it; DuckDB calls this at every query.

        Raises:
            OSError: a file cannot be read.
        """
        if self._rows is None:
            self._rows = self._choose()
        wanted = self._span.rows(self._plan.stream)
        both = wanted if filter is None else filter if wanted is None else wanted & filter
        return self._rows.scanner(filter=both, **options)

    def _choose(self) -> ds.Dataset:
        known = {segment.segment_id for manifest in self._plan.manifests for segment in manifest.segments}
        files = self._span.files(self._plan.stream, self._not_archived())
        choice = choose_sealed(files, self._plan.stream, archived=known)
        for file in choice.left_out:
            log.warning("left out %s", file)
        read = [pa.Table.from_batches([], schema=self._schema), *choice.rows]
        if self._plan.found.live is not None:
            read.append(self._plan.found.live)
        parts = [ds.dataset(pa.concat_tables(read))]
        if choice.paths:
            parts.append(ds.dataset([str(path) for path in choice.paths], format="ipc", schema=self._schema))
        of_archive = [one for one in self._plan.manifests if self._span.part(one)]
        if of_archive and self._plan.archive:
            parts.append(
                ds.dataset(
                    [self._plan.archive.part(one) for one in of_archive],
                    format="parquet", schema=self._schema, filesystem=self._plan.archive.filesystem,
                )
            )  # fmt: skip
        return ds.dataset(parts)

    def _not_archived(self) -> list[Path]:
        """Return the sealed files but those that the archive has under their very name: they need not be opened."""
        names = {Path(segment.name).name for manifest in self._plan.manifests for segment in manifest.segments}
        return [path for path in self._plan.found.sealed if path.name not in names]


def open_tape(
    place: str | Path, span: Span, chosen: Collection[str] = (), archive: str | Path | None = None
) -> duckdb.DuckDBPyConnection:
    """See `analysis.open`."""
    Tape.at(place, archive)
    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'").fetchall()
    asked: dict[str, Any] = {
        "place": str(place), "archive": None if archive is None else str(archive), "chosen": sorted(chosen),
        "start": span.start and span.start.isoformat(), "end": span.end and span.end.isoformat(),
    }  # fmt: skip
    connection.execute("SET VARIABLE tape = $asked", {"asked": asked}).fetchall()
    refresh_tape(connection)
    return connection


def refresh_tape(connection: duckdb.DuckDBPyConnection) -> None:
    """See `analysis.refresh`."""
    ((asked,),) = connection.execute("SELECT getvariable('tape')").fetchall()
    if asked is None:
        raise NoTape("this connection was not made by analysis.open")
    tape = Tape.at(asked["place"], asked["archive"])
    span = Span(*(asked[name] and datetime.fromisoformat(asked[name]) for name in ("start", "end")))
    found = [stream for stream in tape.streams() if is_chosen(stream, asked["chosen"])]
    for stream in sorted({*found, GAPS_STREAM}):
        connection.register(stream, Rows(plan(tape, stream), span))
    connection.execute(_gaps_view()).fetchall()
    connection.execute(_options_view([stream for stream in found if stream_kind(stream) == "instruments"])).fetchall()


def connection_over(plans: Mapping[str, Plan], span: Span) -> duckdb.DuckDBPyConnection:
    """Return a DuckDB connection over streams as they were looked at."""
    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'").fetchall()
    for stream, planned in plans.items():
        connection.register(stream, Rows(planned, span))
    return connection


def is_chosen(stream: str, chosen: Iterable[str]) -> bool:
    """Whether a stream is one of those named, by name (`eth_option_trades`) or kind (`trades`); none named means all.

    What tells of options and of gaps is always there.
    """
    names = set(chosen)
    kind = stream_kind(stream)
    return not names or stream in names or kind in names or kind in ("instruments", "gaps")


def _gaps_view() -> str:
    # One row a gap, in its newest state.
    return f"""
    CREATE OR REPLACE VIEW gaps AS
    SELECT * FROM {GAPS_STREAM} QUALIFY row_number() OVER (PARTITION BY gap_id ORDER BY state_no DESC) = 1
    """  # noqa: S608 - a constant


def _options_view(found: list[str]) -> str:
    # One row an option, as it was told last: to be joined by its instrument.
    columns = ", ".join(field.name for field in SCHEMAS["instruments"] if field.name != "timestamp")
    each = [f'SELECT "timestamp", {columns} FROM "{stream}"' for stream in found]  # noqa: S608 - names of ours
    nothing = ", ".join(f'NULL AS "{field.name}"' for field in SCHEMAS["instruments"])
    rows = " UNION ALL ".join(each) or f"SELECT {nothing} WHERE false"
    return f"""
    CREATE OR REPLACE VIEW options AS
    SELECT * FROM ({rows})
    QUALIFY row_number() OVER (PARTITION BY instrument ORDER BY received_at DESC, "timestamp" DESC) = 1
    """  # noqa: S608 - as above
