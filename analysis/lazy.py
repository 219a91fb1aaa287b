"""A stream of the tape as a polars LazyFrame."""

from collections.abc import Iterator
from pathlib import Path

import polars as pl
from polars.io.plugins import register_io_source

from analysis.errors import NoTape
from analysis.rows import Rows
from analysis.span import Span
from analysis.tables import archived_rows, believed, wanted_parts
from analysis.tape import Tape, plan


def scan_tape(
    stream: str, place: str | Path, span: Span, archive: str | Path | None = None, *, verify: bool = False
) -> pl.LazyFrame:
    """See `analysis.scan`."""
    tape = Tape.at(place, archive)
    try:
        if stream not in (streams := tape.streams()):
            raise NoTape(f"the tape has no stream {stream}", remedy=f"it has {', '.join(streams) or 'none'}")
        planned = believed(plan(tape, stream), span, verify=verify)
    except OSError as exc:
        raise NoTape(f"the tape cannot be read: {' '.join(str(exc).split())}") from exc
    rows = Rows(planned, span, verify=verify)
    found = [_segments(rows)]
    if (parts := wanted_parts(planned, span)) and planned.archive:
        if planned.archive.is_local:
            files = [planned.archive.part(part) for part in parts]
            found.append(pl.scan_parquet(files, hive_partitioning=False, extra_columns="ignore"))
        else:
            found.append(pl.scan_pyarrow_dataset(archived_rows(planned.archive, parts, stream)))
    both = pl.concat([one.select(rows.stream_schema.names) for one in found])
    for bound in span.bounds(stream):
        both = both.filter(bound.holds(pl.col(bound.column)))
    return both


def _segments(rows: Rows) -> pl.LazyFrame:
    """Read segments piece by piece as polars asks for them, only the columns that it asks for."""

    def pieces(
        columns: list[str] | None, predicate: pl.Expr | None, most_rows: int | None, _batch_rows: int | None
    ) -> Iterator[pl.DataFrame]:
        wanted = None if columns is None else [name for name in rows.stream_schema.names if name in columns]
        for batch in rows.batches(wanted):
            piece = pl.DataFrame(batch)
            if predicate is not None:
                piece = piece.filter(predicate)
            if most_rows is not None:
                piece = piece.head(most_rows)
                most_rows -= piece.height
            yield piece if columns is None else piece.select(columns)
            if most_rows == 0:
                return

    schema = pl.DataFrame(rows.stream_schema.empty_table()).schema
    return register_io_source(pieces, schema=schema)
