"""The sections on what the tape holds and what is missing: streams, gaps, rates, and each instrument's coverage."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import duckdb

from analysis.completeness import Completeness, Told
from analysis.findings import as_lines
from analysis.proof import Gaps, recorded_spans
from analysis.report import charts
from analysis.report.axis import Axis, moment
from analysis.report.content import (
    Chart,
    Section,
    Table,
    Verdict,
    alone,
    count_text,
    duration_text,
    extent,
    time_text,
)
from analysis.report.coverage import Cell, cells
from analysis.report.figures import StreamFacts, gaps_by_cause, rates
from recorder.segments.schemas import stream_kind

MOST_INSTRUMENTS = 60  # drawn in one heat map
_MOST_LINES = 40  # of what is wrong

_CAUSES = {
    "disconnect": "a connection was lost",
    "sequence_break": "a number of the book or of the trades jumped",
    "crash": "the recorder ended without a word",
    "stopped": "the recorder was stopped",
    "rejected": "a message could not be understood",
    "overflow": "a buffer was full",
    "disk_full": "the disk was full",
    "clock_step": "the clock of this machine was set",
    "silence": "the exchange sent nothing",
}
_KINDS = ("quotes", "tickers", "trades")


@dataclass(frozen=True)
class Recorded:
    """What is told of the tape: gaps, and by market which instruments were to be recorded."""

    gaps: Gaps
    told: Mapping[str, Told]

    @property
    def since_us(self) -> list[int]:
        """Return since when each instrument was to be recorded."""
        return [at_us for market in self.told.values() for told in market.values() for at_us, yes in told if yes]


def verdict(found: Completeness) -> Verdict:
    """Put what was found into words, the worst first."""
    *lines, words = as_lines(found, None)
    wrong = [line for line in lines if not line.startswith(("  ", *found.streams))]
    shown = wrong[:_MOST_LINES]
    if len(wrong) > len(shown):
        shown.append(f"… and {len(wrong) - len(shown):,} more: python -m analysis completeness names all")
    return Verdict(found.verdict(), words, [*shown, *(line for line in lines if line not in set(wrong))])


def streams(facts: Sequence[StreamFacts], found: Completeness | None, *, part: bool) -> Section:
    """Return how much there is of each stream.

    Args:
        facts: of each stream.
        found: what was checked, None if it could not be.
        part: whether the page is about a part of the tape's time.
    """
    known = found.streams if found else {}
    rows = [
        [
            one.stream, known[one.stream].segments if one.stream in known else "", one.rows, one.instruments,
            time_text(moment(one.first_us) if one.first_us is not None else None),
            time_text(moment(one.newest_us) if one.newest_us is not None else None),
        ]
        for one in facts
    ]  # fmt: skip
    notes = ["Segments are those of the whole tape, and so are instruments and gaps."] if part else []
    return Section(
        "streams", "What the tape holds",
        "A line is a stream: its segments (sealed or archived), and the rows in them and in live ones. Times are "
        "when rows were received, in UTC, as everywhere on this page.",
        tables=[Table("Streams", ("stream", "segments", "rows", "instruments", "oldest row", "newest row"), rows)]
        if rows else [],
        notes=notes, nothing="The tape has no stream yet.",
    )  # fmt: skip


def told_gaps(connection: duckdb.DuckDBPyConnection, facts: Sequence[StreamFacts], axis: Axis | None) -> Section:
    """Return the gaps of the time, by cause and status; where there are no ticks all that the tape tells."""
    newest_us = max((one.newest_us for one in facts if one.newest_us is not None), default=0)
    bounds = (axis.start_us, axis.end_us) if axis else (0, newest_us)
    summed: dict[tuple[str, str], dict[str, Any]] = defaultdict(lambda: defaultdict(int))
    for row in gaps_by_cause(connection, *bounds):
        one = summed[row["cause"] or "", row["status"] or ""]
        one[stream_kind(row["stream"] or "") or ""] += row["gaps"]
        one["longest_us"] = max(one["longest_us"], row["longest_us"] or 0)
        one["first_us"] = min(one["first_us"] or row["first_us"] or 0, row["first_us"] or 0)
    rows = [
        [
            cause, status, *(one[kind] for kind in _KINDS), duration_text(one["longest_us"]),
            time_text(moment(one["first_us"])) if one["first_us"] else "", _CAUSES.get(cause, ""),
        ]
        for (cause, status), one in sorted(summed.items())
    ]  # fmt: skip
    header = ("cause", "status", *_KINDS, "longest", "first began", "the cause is that")
    return Section(
        "gaps", "What was missed, and told",
        "Every interval in which ticks may be missing is a gap row. Missed trades are fetched afterwards: they are "
        "healed, or void (nothing was missing), or lost. Quotes and tickers cannot be had again. An open gap may "
        "still be settled.",
        tables=[Table("Gaps by cause and status: how many in each kind of stream", header, rows)] if rows else [],
        nothing="No gap row tells of this time.",
    )  # fmt: skip


def tick_rates(connection: duckdb.DuckDBPyConnection, facts: Sequence[StreamFacts], axis: Axis | None) -> Section:
    """Return rows a second, stream by stream."""
    drawn = []
    for one in facts:
        if axis is None or one.kind not in _KINDS or not one.rows:
            continue
        columns = rates(connection, one.stream, axis)
        series = charts.Series("rows_per_s", "rows/s", "var(--one)")
        drawn.append(Chart(
            charts.lines([series], "rows/s", low=True, points=alone(columns["rows_per_s"])), columns,
            {"time_ms": "UTC, from", "rows_per_s": "rows/s"},
            f"Rows a second of {one.stream} over time: {extent(columns['rows_per_s'], 'rows/s')}.", title=one.stream,
        ))  # fmt: skip
    return Section(
        "rates", "Ticks over time",
        f"Rows a second, averaged over {axis or 'a bucket'}. Where a line falls to zero nothing came: compare it "
        "with the coverage below. Each stream has a scale of its own.",
        charts=drawn, nothing="There are no quotes, trades, or tickers in this time.",
    )  # fmt: skip


def coverage(found: Completeness | None, recorded: Recorded, axis: Axis | None) -> Section:
    """Return a heat map a stream: what of each instrument's time lies outside of gap rows."""
    drawn, notes, causes = [], [], set()
    for stream, result in found.streams.items() if found and axis else ():
        measured = {name: one.coverage for name, one in result.instruments.items() if one.coverage is not None}
        names = sorted(measured, key=lambda name: (measured[name], name))
        if not names or axis is None or result.proven_until is None:
            continue
        newest_us = round(result.proven_until.timestamp() * 1e6)
        told = recorded.told.get(stream.removesuffix(f"_{result.kind}"), {})
        by_name = {
            name: cells(axis, recorded_spans(told[name], newest_us), recorded.gaps.of(stream, name))
            for name in names[:MOST_INSTRUMENTS]
        }
        of_stream = sorted({cell.cause for found_cells in by_name.values() for cell in found_cells} - {""})
        causes |= set(of_stream)
        if len(names) > MOST_INSTRUMENTS:
            notes.append(
                f"{stream}: the {MOST_INSTRUMENTS} instruments with the least coverage are drawn; "
                f"{len(names) - MOST_INSTRUMENTS:,} are not, the least covered of them at "
                f"{measured[names[MOST_INSTRUMENTS]]:.2%}."
            )
        shares = [measured[name] for name in names]
        drawn.append(Chart(
            charts.heat_map(list(by_name), of_stream, axis.domain_ms), _as_columns(by_name),
            {"instrument": "instrument", "from_ms": "UTC, from", "until_ms": "to", "share": "share",
             "cause": "mostly"},
            f"Coverage of {count_text(len(by_name), 'instrument')} of {stream} over time: least {shares[0]:.2%}, "
            f"median of all {shares[len(shares) // 2]:.2%}. Causes of gaps: {', '.join(of_stream) or 'none'}.",
            title=stream,
        ))  # fmt: skip
    legend = [
        charts.Series("", "no gap", "var(--covered)", block=True),
        *(charts.Series("", f"{cause}: {_CAUSES.get(cause, 'a gap')}", charts.cause_colour(cause), block=True)
          for cause in sorted(causes)),
    ]  # fmt: skip
    return Section(
        "coverage", "Coverage by instrument",
        f"A row is an instrument, the least covered first, a cell {axis or 'a bucket'}. A cell with a coloured bar "
        "has a gap of that cause: a low bar takes up to a tenth of its time, one of middle height up to half, a full "
        "one more. Blank is time in which it was not to be recorded, or after the stream's newest row. Trades "
        "have no row, since they heal.",
        charts=drawn, legend=legend if drawn else (), notes=notes,
        nothing="No instrument is told to be recorded in this time, or nothing could be checked."
    )  # fmt: skip


def _as_columns(by_name: Mapping[str, Sequence[Cell]]) -> dict[str, list[Any]]:
    rows = [(name, cell) for name, of_name in by_name.items() for cell in of_name]
    return {
        "instrument": [name for name, _ in rows],
        "from_ms": [cell.from_us / 1000 for _, cell in rows],
        "until_ms": [cell.until_us / 1000 for _, cell in rows],
        "share": [cell.share for _, cell in rows],
        "cause": [cell.cause for _, cell in rows],
    }
