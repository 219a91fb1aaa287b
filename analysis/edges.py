"""The rows next to a range of time: a hole at either end of it shows only by the row before it, or after it."""

from collections.abc import Collection, Iterator
from datetime import datetime, timedelta

import pyarrow as pa
import pyarrow.compute as pc

from analysis.span import Span
from analysis.tables import connection_over
from analysis.tape import Plan
from recorder.segments.layout import SegmentName, us_to_datetime
from recorder.segments.schemas import SCHEMAS, stream_kind

# Nearly every book changes within this time. Where one does not, four times as far is looked, and so on.
_NEAR = timedelta(minutes=10)
_FURTHER = 4
_SEGMENT_MOST = timedelta(days=1)  # it ends at midnight
_NEXT = """
SELECT unnest({newest_or_oldest}(row, {number})) FROM (
    SELECT instrument, {number}, {{{row}}} AS row FROM "{stream}"
    WHERE $names IS NULL OR list_contains($names, instrument)
) GROUP BY instrument
"""
# What tells whether rows join, and by which of these they are in order.
COLUMNS = {
    "quotes": ("instrument", "received_at", "change_id", "prev_change_id"),
    "trades": ("instrument", "timestamp", "trade_seq"),
}
_NUMBERS = {"quotes": "change_id", "trades": "trade_seq"}


def rows_before(planned: Plan, span: Span, names: Collection[str]) -> pa.Table:
    """Return the last row before a range of each instrument, as far as the tape has one, in COLUMNS.

    Args:
        planned: a stream of quotes or trades, as it was looked at.
        span: the range; before an open beginning there is nothing.
        names: the instruments. Of trades there are few, and the last of each option is looked for.
    """
    if stream_kind(planned.stream) == "trades":
        stretches = iter([] if span.start is None else [Span(None, span.start)])
    else:
        stretches = _backwards(planned, span.start)
    return _rows(planned, stretches, names, "arg_max")


def rows_after(planned: Plan, span: Span, names: Collection[str]) -> pa.Table:
    """Return the first row after a range of each instrument; otherwise as `rows_before`."""
    if stream_kind(planned.stream) == "trades":
        stretches = iter([] if span.end is None else [Span(span.end, None)])
    else:
        stretches = _forwards(planned, span.end)
    return _rows(planned, stretches, names, "arg_min")


def goes_on(planned: Plan, span: Span) -> bool:
    """Whether a stream has rows after a range: then whatever was missed in it is told, to its very end."""
    if span.end is None:
        return False
    with connection_over({planned.stream: planned}, Span(span.end, None)) as connection:
        return bool(connection.execute(f'SELECT 1 FROM "{planned.stream}" LIMIT 1').fetchall())  # noqa: S608 - ours


def _rows(planned: Plan, stretches: Iterator[Span], names: Collection[str], which: str) -> pa.Table:
    """Look into one stretch after another until each instrument is found, or there is no more."""
    kind = stream_kind(planned.stream) or ""
    row = ", ".join(f"'{name}': \"{name}\"" for name in COLUMNS[kind])
    query = _NEXT.format(stream=planned.stream, number=_NUMBERS[kind], newest_or_oldest=which, row=row)
    wanted, found = set(names), [SCHEMAS[kind].empty_table().select(COLUMNS[kind])]
    for stretch in stretches:
        asked = None if kind == "trades" else sorted(wanted)
        if asked == []:
            break
        with connection_over({planned.stream: planned}, stretch) as connection:
            rows: pa.Table = connection.sql(query, params={"names": asked}).to_arrow_table()
        found.append(rows.cast(found[0].schema))
        wanted -= set(rows["instrument"].to_pylist())
    return pa.concat_tables(found)


def _backwards(planned: Plan, start: datetime | None) -> Iterator[Span]:
    first = min(_times(planned), default=start)
    reach = _NEAR
    while start is not None and first is not None and start > first:
        yield Span(start - reach, start)
        start, reach = start - reach, reach * _FURTHER


def _forwards(planned: Plan, end: datetime | None) -> Iterator[Span]:
    last = max(_times(planned), default=end)
    reach = _NEAR
    while end is not None and last is not None and end <= last:
        yield Span(end, end + reach)
        end, reach = end + reach, reach * _FURTHER


def _times(planned: Plan) -> Iterator[datetime]:
    """Yield times between which all rows of a stream were received."""
    for manifest in planned.manifests:
        for segment in manifest.segments:
            yield from (at for at in (segment.first_received_at, segment.last_received_at) if at is not None)
    for path in planned.found.sealed:
        if (name := SegmentName.parse(path.name)) is not None:
            yield us_to_datetime(name.start_us)
            yield us_to_datetime(name.start_us) + _SEGMENT_MOST
    if planned.found.live is not None and planned.found.live.num_rows:
        edges = pc.min_max(planned.found.live["received_at"])
        yield from (edges["min"].as_py(), edges["max"].as_py())
