"""The same statements, asked of a cluster that speaks Spark Connect, over the Parquet archive alone.

The cluster only computes. What exists is read here, from the manifests; the cluster is told which parts to read, must
find in them as many rows as the manifests say, and is given views of the names that `analysis.open` has. What it
answers is handed on as a DuckDB relation.
"""

import re
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb

from analysis.errors import BadQuery, NoCluster, NoTape
from analysis.queries import ready_queries
from analysis.rows import log
from analysis.span import Span
from analysis.tables import connect, of_kinds, union
from analysis.tape import S3, Tape
from recorder.runtime.redact import redact
from recorder.segments import archived
from recorder.segments.archived import Archived, Damaged
from recorder.segments.layout import sealed_files
from recorder.segments.manifest import Manifest
from recorder.segments.schemas import SCHEMAS, stream_kind

if TYPE_CHECKING:
    from pyspark.sql.connect.session import SparkSession
    from pyspark.sql.dataframe import DataFrame

Parts = dict[str, list[Manifest]]  # by stream

_TRIES = 3  # more of a call to a server that is away: about a second
_DETAILS = re.compile(r'details = "(.*?)"')


@contextmanager
def asking(
    url: str, place: str, span: Span, archive: str | None = None, *, most_rows: int | None = None
) -> Iterator[Callable[[str], duckdb.DuckDBPyRelation]]:
    """Yield who asks a cluster a statement of Spark's SQL, about the archive as it then is; a session for the block.

    Args:
        url: the server, `sc://host:port`.
        place: DATA_DIR; it need not be there if an archive is named.
        span: of which time.
        archive: a folder, or `s3://bucket/prefix`, by the name under which the cluster and this program both find it;
            None for the one in DATA_DIR.
        most_rows: fetch so many rows of an answer, and say so if it has more; None for all.

    Raises:
        NoTape: there is no such archive.
        NoCluster: the client is not installed, or the server does not answer, or does not see the archive.
        BadQuery: the statement was refused.
    """
    tape = _tape(place, archive)
    made: Parts = {}

    def ask(statement: str) -> duckdb.DuckDBPyRelation:
        nonlocal made
        with _said_in_a_line(url):
            if (parts := _parts(tape, span)) != made:
                _look(spark, tape, parts, made)
                _make_views(spark, tape, parts, span)
                made = parts
            answer = spark.sql(statement)
            rows = (answer if most_rows is None else answer.limit(most_rows + 1)).toArrow()
        if most_rows is not None and rows.num_rows > most_rows:
            sys.stderr.write(f"the first {most_rows} rows of more; --json, --csv, and --parquet have all\n")
            rows = rows.slice(0, most_rows)
        return connect().from_arrow(rows)

    with _session(url) as spark:
        sys.stderr.write(f"{_left_out(tape, span)}\n")
        yield ask


def _tape(place: str, archive: str | None) -> Tape:
    if archive is None or Path(place).is_dir():
        tape = Tape.at(place, archive)
    else:
        tape = Tape.at(archive) if archive.startswith(S3) else Tape(None, archived.folder(Path(archive)))
    try:
        found = _archive(tape).streams()
    except OSError as exc:
        raise NoTape(f"the archive cannot be reached: {' '.join(str(exc).split())}") from exc
    if not found:
        raise NoTape(f"there is no archive in {_archive(tape).root}", remedy="python -m loader archive makes one")
    return tape


def _archive(tape: Tape) -> Archived:
    assert tape.archive is not None
    return tape.archive


def _left_out(tape: Tape, span: Span) -> str:
    """Say what is on the tape in that time and not in the archive."""
    note = "only the archive is asked: segments that are not archived yet are not among the rows"
    if tape.data_dir is None:
        return note
    count = 0
    for stream in tape.streams():
        files = span.files(stream, sealed_files(tape.data_dir, stream))
        known = [part for part in _archive(tape).manifests(stream) if not isinstance(part, Damaged)]
        names = {Path(segment.name).name for part in known for segment in part.segments}
        count += sum(file.name not in names for file in files)
    return f"{note} ({count:,} sealed, and what is being recorded)"


def _parts(tape: Tape, span: Span) -> Parts:
    """Return the parts that a manifest names and that can have rows of a range."""
    parts: Parts = {stream: [] for stream in tape.streams()}
    for stream, of_it in parts.items():
        for one in _archive(tape).manifests(stream):
            if isinstance(one, Damaged):
                log.warning("left out %s: %s", one.path, one.why)
            elif span.part(one):
                of_it.append(one)
    return parts


@contextmanager
def _session(url: str) -> "Iterator[SparkSession]":
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # about pandas, which is not used here
            from pyspark.sql.connect.client.retries import DefaultPolicy  # noqa: PLC0415 - an extra
            from pyspark.sql.connect.session import SparkSession  # noqa: PLC0415
    except ImportError as exc:
        raise NoCluster(
            f"the client for Spark Connect is not installed: {exc}", remedy="pip install 'pyspark-client>=4.2'"
        ) from exc
    spark = SparkSession(connection=url)
    spark.release_session_on_close = False  # unless there is one
    # Its own way is to go on trying for ten minutes.
    spark.client.set_retry_policies([DefaultPolicy(max_retries=_TRIES)])
    try:
        with _said_in_a_line(url):
            spark.conf.set("spark.sql.session.timeZone", "UTC")
        spark.release_session_on_close = True
        yield spark
    finally:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a server which went away cannot be told
            spark.stop()


def _look(spark: "SparkSession", tape: Tape, parts: Parts, seen: Parts) -> None:
    """Have the cluster count the rows of parts that are new to it: an engine may pass over a file in silence.

    Raises:
        NoCluster: it finds another number than the manifests say.
    """
    unseen = {stream: [part for part in of_it if part not in seen.get(stream, ())] for stream, of_it in parts.items()}
    looks = [
        _read(spark, tape, stream, new).selectExpr(f"'{stream}' AS stream") for stream, new in unseen.items() if new
    ]
    if not looks:
        return
    counted = reduce(lambda one, other: one.union(other), looks).groupBy("stream").count().toArrow()
    found = dict(zip(counted["stream"].to_pylist(), counted["count"].to_pylist(), strict=True))
    for stream, new in unseen.items():
        if (expected := sum(part.rows for part in new)) != found.get(stream, 0):
            raise NoCluster(
                f"the cluster finds {found.get(stream, 0):,} rows of {stream} in {_name(_archive(tape), '')}, and the"
                f" manifests say {expected:,}",
                remedy="--archive takes a name by which every machine of the cluster finds the archive, too",
            )


def _make_views(spark: "SparkSession", tape: Tape, parts: Parts, span: Span) -> None:
    """Make what `analysis.open` makes: a table a stream, one a kind, and the ready queries."""
    from pyspark.sql.connect.functions import col  # noqa: PLC0415 - an extra

    for stream, of_it in parts.items():
        rows = _read(spark, tape, stream, of_it)
        for bound in span.bounds(stream):
            rows = rows.filter(bound.holds(col(bound.column)))
        rows.createOrReplaceTempView(stream)
    for name, streams in of_kinds(parts).items():
        if streams:
            _make_view(spark, name, union(streams, "`"))
        else:
            _read(spark, tape, name, []).createOrReplaceTempView(name)
    for query in ready_queries():
        _make_view(spark, query.name, query.statement)


def _make_view(spark: "SparkSession", name: str, statement: str) -> None:
    spark.sql(f"CREATE OR REPLACE TEMPORARY VIEW {name} AS {statement}")


def _read(spark: "SparkSession", tape: Tape, stream: str, parts: list[Manifest]) -> "DataFrame":
    """Return the rows of parts with the stream's columns, though there be none."""
    from pyspark.sql.pandas.types import from_arrow_schema  # noqa: PLC0415 - an extra

    schema = from_arrow_schema(SCHEMAS[stream_kind(stream) or stream])
    if not parts:
        return spark.createDataFrame([], schema)
    return spark.read.schema(schema).parquet(*(_name(_archive(tape), part.part_name) for part in parts))


def _name(archive: Archived, part: str) -> str:
    """Return where a part lies, as the cluster is to look for it.

    Hadoop knows S3 as `s3a` alone, and takes a path without a scheme for one of its own file system.
    """
    scheme = "file" if archive.is_local else "s3a"
    return f"{scheme}://{archive.root}/{part}"


@contextmanager
def _said_in_a_line(url: str) -> Iterator[None]:
    from pyspark.errors import PySparkException  # noqa: PLC0415 - an extra
    from pyspark.errors.exceptions.connect import SparkConnectGrpcException  # noqa: PLC0415

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that there were enough tries, and so on: what is raised says more
            yield
    except PySparkException as exc:
        said = " ".join(str(exc).split())
        if isinstance(exc, SparkConnectGrpcException) and exc.getGrpcStatusCode().name == "UNAVAILABLE":
            details = _DETAILS.search(said)
            raise NoCluster(
                f"{redact(url)} cannot be reached: {details[1] if details else said}",
                remedy="is a Spark Connect server running there?",
            ) from exc
        raise BadQuery(said, remedy="tables are listed by: SHOW TABLES") from exc
