"""Proves what a tape holds: per instrument and stream what is whole, what is told as missing, and what nothing tells.

Everything is read from the files. Sealed segments are checked to the last byte, and archived parts by their checksum,
before their numbers are believed.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from itertools import islice
from tempfile import TemporaryDirectory
from typing import Any

import duckdb

from analysis.proof import (
    FOREVER,
    Gaps,
    Hole,
    as_gap,
    broken_chain,
    covered_us,
    judge_books,
    judge_trades,
    recorded_spans,
    within,
)
from analysis.span import Span
from analysis.tables import connection_over
from analysis.tape import Plan, Tape, plan
from recorder.segments.archived import Damaged
from recorder.segments.reader import read_identity, read_segment
from recorder.segments.schemas import GAPS_STREAM, stream_kind

_BREAKS = """
SELECT instrument, epoch_us(lag(received_at) OVER w) AS from_us, epoch_us(received_at) AS to_us
FROM "{stream}" WINDOW w AS (PARTITION BY instrument ORDER BY change_id, received_at)
QUALIFY lag(change_id) OVER w IS NOT NULL
    AND (prev_change_id IS NULL OR prev_change_id > lag(change_id) OVER w)
ORDER BY instrument, to_us
"""
_JUMPS = """
SELECT instrument, lag(trade_seq) OVER w + 1 AS first, trade_seq - 1 AS last,
    epoch_us(lag("timestamp") OVER w) AS from_us, epoch_us("timestamp") AS to_us
FROM (SELECT DISTINCT instrument, trade_seq, "timestamp" FROM "{stream}")
WINDOW w AS (PARTITION BY instrument ORDER BY trade_seq)
QUALIFY trade_seq > lag(trade_seq) OVER w + 1 ORDER BY instrument, first
"""
_ROWS = """
SELECT instrument, count(*) AS rows, epoch_us(max(received_at)) AS newest_us FROM "{stream}" GROUP BY instrument
"""
_RECORDED = """
SELECT instrument, epoch_us(received_at) AS at_us, recorded FROM "{stream}" WHERE recorded IS NOT NULL ORDER BY at_us
"""
_GAPS = f"""
SELECT gap_id, state_no, stream, instrument, cause, status, epoch_us(started_at) AS started_us,
    epoch_us(ended_at) AS ended_us, first_missing, last_missing
FROM {GAPS_STREAM} ORDER BY gap_id, state_no
"""  # noqa: S608 - a constant


# What DuckDB may hold of a tape of any length while it sorts; the rest goes to TMPDIR, at no cost that shows.
_MEMORY = "1GB"
# Of a tape that is broken everywhere as many lines of a kind are for people; --json has all.
_MOST_LINES = 50

# By instrument, when it was told whether it is recorded from then on; in the order of time.
Told = dict[str, list[tuple[int, bool]]]


@dataclass
class Instrument:
    """One instrument in one stream."""

    rows: int = 0
    recorded_s: float = 0.0  # how long it was to be recorded, in the range
    covered_s: float = 0.0  # how much of that lies outside of gap rows
    holes: list[Hole] = field(default_factory=list)

    @property
    def coverage(self) -> float | None:
        """The share of covered time; None if it was never to be recorded."""
        return self.covered_s / self.recorded_s if self.recorded_s else None


@dataclass
class Stream:
    """One stream of the tape."""

    kind: str
    segments: int = 0
    proven_until: datetime | None = None  # the newest row: of the time after it nothing can be said
    instruments: dict[str, Instrument] = field(default_factory=dict)
    missing_segments: list[str] = field(default_factory=list)

    @property
    def provable(self) -> bool:
        """Whether its rows carry numbers that show what is missing."""
        return self.kind in ("quotes", "trades")

    @property
    def holes(self) -> list[Hole]:
        """All holes, told or not."""
        return [hole for instrument in self.instruments.values() for hole in instrument.holes]


@dataclass
class Completeness:
    """What was found."""

    start: datetime | None
    end: datetime | None
    streams: dict[str, Stream] = field(default_factory=dict)
    unreadable: list[str] = field(default_factory=list)

    @property
    def untold(self) -> list[Hole]:
        """Holes that no gap row tells."""
        return [hole for stream in self.streams.values() for hole in stream.holes if not hole.told]

    @property
    def missing_segments(self) -> list[str]:
        """Segments that others name as the one before them, and that are nowhere."""
        return [line for stream in self.streams.values() for line in stream.missing_segments]

    def below(self, least: float) -> list[tuple[str, str, float]]:
        """Return what is covered less: stream, instrument, and its coverage."""
        return [
            (name, instrument, found.coverage)
            for name, stream in self.streams.items()
            if stream.kind in ("quotes", "tickers")
            for instrument, found in sorted(stream.instruments.items())
            if found.coverage is not None and found.coverage < least
        ]

    def verdict(self, least: float | None = None) -> bool | None:
        """Return whether all is there or told; None if something cannot be read: its rows may be what is missing."""
        if self.unreadable:
            return None
        return not (self.untold or self.missing_segments or (least is not None and self.below(least)))


def check(tape: Tape, span: Span) -> Completeness:
    """Check a tape as of this moment.

    Raises:
        OSError: a folder cannot be looked into, or the archive cannot be reached.
        duckdb.Error: a file cannot be read.
    """
    found = Completeness(span.start, span.end)
    plans = {stream: plan(tape, stream) for stream in tape.streams()}
    for stream, planned in plans.items():
        found.streams[stream] = Stream(stream_kind(stream) or "")
        _check_segments(planned, span, found.streams[stream], found.unreadable)
    with TemporaryDirectory(prefix="ticktape-") as spill, connection_over(plans, span) as connection:
        for setting, value in (("memory_limit", _MEMORY), ("temp_directory", spill)):
            connection.execute(f"SET {setting} = '{value}'").fetchall()
        connection.execute("SET preserve_insertion_order = false").fetchall()
        gaps = gaps_told(connection) if GAPS_STREAM in plans else Gaps()
        recorded = recorded_told(connection, plans)
        for stream, result in found.streams.items():
            if result.kind in ("quotes", "trades", "tickers"):
                of_market = recorded.get(stream.removesuffix(f"_{result.kind}"), {})
                _check_rows(connection, stream, result, gaps, of_market)
                _measure(stream, result, of_market, gaps, span)
    return found


def _check_segments(planned: Plan, span: Span, result: Stream, unreadable: list[str]) -> None:
    """Check the bytes of what lies in the range, and that no segment's predecessor is missing."""
    previous: dict[str, str] = {}
    stands_for: dict[str, str] = {}
    for manifest in planned.manifests:
        for segment in manifest.segments:
            previous[segment.segment_id] = segment.previous
            stands_for[segment.salvages] = segment.segment_id
        if span.part(manifest) and planned.archive and isinstance(wrong := planned.archive.rows(manifest), Damaged):
            unreadable.append(f"{wrong.path}: {wrong.why}")
    of_range = set(span.files(planned.stream, planned.found.sealed))
    for path in planned.found.sealed:
        if path in of_range:
            checked = read_segment(path)
            identity = checked.identity
            if checked.damage or not checked.sealed:
                unreadable.append(f"{path}: {checked.damage[0] if checked.damage else 'it is not sealed'}")
        else:
            identity = read_identity(path)
        if identity is not None:
            previous[identity.segment_id] = identity.previous
            stands_for[identity.salvages] = identity.segment_id
    unreadable += [str(one) for one in (*planned.found.left_out, *planned.left_out)]
    result.segments = len(previous)
    result.missing_segments = [
        f"{planned.stream}: segment {before} is missing: {segment_id} came after it"
        for segment_id, before in broken_chain(previous, stands_for)
    ]


def gaps_told(connection: duckdb.DuckDBPyConnection) -> Gaps:
    """Return all that a tape's `data_gaps` tell."""
    rows = connection.sql(_GAPS).to_arrow_table().to_pylist()
    newest = {row["gap_id"]: row for row in rows}
    return Gaps([as_gap(row) for row in newest.values()], [as_gap(row) for row in rows])


def recorded_told(connection: duckdb.DuckDBPyConnection, streams: Iterable[str]) -> dict[str, Told]:
    """Return by market and instrument when it was told to be recorded or not."""
    found: dict[str, Told] = {}
    for stream in streams:
        if stream_kind(stream) == "instruments":
            told: dict[str, list[tuple[int, bool]]] = defaultdict(list)
            for name, at_us, recorded in connection.sql(_RECORDED.format(stream=stream)).fetchall():
                told[name].append((at_us, recorded))
            found[stream.removesuffix("_instruments")] = told
    return found


def _check_rows(
    connection: duckdb.DuckDBPyConnection, stream: str, result: Stream, gaps: Gaps, recorded: Told
) -> None:
    newest_us = 0
    for name, rows, last_us in connection.sql(_ROWS.format(stream=stream)).fetchall():
        result.instruments[name] = Instrument(rows)
        newest_us = max(newest_us, last_us)
    result.proven_until = datetime.fromtimestamp(newest_us / 1e6, UTC) if newest_us else None
    holes: list[Hole] = []
    if result.kind == "quotes":
        left = {name: [at_us for at_us, yes in told if not yes] for name, told in recorded.items()}
        holes = judge_books(stream, connection.sql(_BREAKS.format(stream=stream)).fetchall(), gaps, left)
    elif result.kind == "trades":
        holes = judge_trades(stream, connection.sql(_JUMPS.format(stream=stream)).fetchall(), gaps)
    for hole in holes:
        result.instruments[hole.instrument].holes.append(hole)


def _measure(stream: str, result: Stream, recorded: Told, gaps: Gaps, span: Span) -> None:
    """Measure how much of the time in which an instrument was to be recorded lies outside of gap rows."""
    if result.kind == "trades" or result.proven_until is None:
        return  # healed trades are there though a gap was
    newest_us = round(result.proven_until.timestamp() * 1e6)
    start_us = round(span.start.timestamp() * 1e6) if span.start else 0
    end_us = min(newest_us, round(span.end.timestamp() * 1e6) if span.end else FOREVER)
    for name, told in recorded.items():
        spans = within(recorded_spans(told, newest_us), start_us, end_us)
        if spans:
            found = result.instruments.setdefault(name, Instrument())
            found.recorded_s = sum(b - a for a, b in spans) / 1e6
            found.covered_s = covered_us(spans, [(gap.from_us, gap.to_us) for gap in gaps.of(stream, name)]) / 1e6


def as_json(found: Completeness, least: float | None) -> dict[str, Any]:
    """Return all that was found, for programs."""
    return {
        "complete": found.verdict(least),
        "start": found.start and found.start.isoformat(),
        "end": found.end and found.end.isoformat(),
        "untold": [asdict(hole) for hole in found.untold],
        "missing_segments": found.missing_segments,
        "unreadable": found.unreadable,
        "below_min_coverage": [] if least is None else [list(one) for one in found.below(least)],
        "streams": {
            name: {
                "segments": stream.segments,
                "provable": stream.provable,
                "proven_until": stream.proven_until and stream.proven_until.isoformat(),
                "instruments": {
                    instrument: {
                        "rows": one.rows, "coverage": one.coverage, "recorded_s": one.recorded_s,
                        "covered_s": one.covered_s, "holes": [asdict(hole) for hole in one.holes],
                    }
                    for instrument, one in sorted(stream.instruments.items())
                },
            }
            for name, stream in found.streams.items()
        },
    }  # fmt: skip


def as_lines(found: Completeness, least: float | None) -> Iterator[str]:
    """Yield what was found, for people."""
    for name, stream in found.streams.items():
        if stream.kind not in ("quotes", "trades", "tickers"):
            continue
        rows = sum(one.rows for one in stream.instruments.values())
        yield f"{name}: {stream.segments:,} segments, {rows:,} rows of {len(stream.instruments):,} instruments"
        until = f"{stream.proven_until:%Y-%m-%d %H:%M:%S}" if stream.proven_until else "nothing"
        if stream.provable:
            told = [hole for hole in stream.holes if hole.told]
            by_cause = Counter((hole.cause, hole.status) for hole in told)
            causes = ", ".join(f"{count} {cause} ({status})" for (cause, status), count in sorted(by_cause.items()))
            yield f"  proven by its numbers until {until}; holes that gap rows tell: {causes or 'none'}"
        else:
            yield f"  not provable: a ticker has no number; gap rows tell when some may be missing (until {until})"
        shares = sorted(one.coverage for one in stream.instruments.values() if one.coverage is not None)
        if shares:
            yield f"  time outside of gap rows: least {shares[0]:.2%}, median {shares[len(shares) // 2]:.2%}"
    yield from _first("NOT TOLD", found.missing_segments)
    yield from _first("NOT TOLD", [_hole(hole) for hole in found.untold])
    yield from _first("not readable", found.unreadable)
    if least is not None:
        below = [f"{name} {instrument}: {share:.2%}" for name, instrument, share in found.below(least)]
        yield from _first(f"below {least:.2%}", below)
    yield _answer(found, least)


def _first(what: str, lines: Sequence[str]) -> Iterator[str]:
    yield from (f"{what}: {line}" for line in islice(lines, _MOST_LINES))
    if len(lines) > _MOST_LINES:
        yield f"{what}: … and {len(lines) - _MOST_LINES:,} more: --json lists all"


def _answer(found: Completeness, least: float | None) -> str:
    verdict = found.verdict(least)
    if verdict is None:
        return "could not be checked: something cannot be read"
    if verdict:
        return "complete, or told by gap rows"
    if found.untold or found.missing_segments:
        return "NOT complete: something is missing that nothing tells"
    return f"NOT complete: less than {least:.2%} of the time is covered"


def _hole(hole: Hole) -> str:
    between = " and ".join(
        f"{datetime.fromtimestamp(us / 1e6, UTC):%Y-%m-%d %H:%M:%S.%f}" for us in (hole.from_us, hole.to_us)
    )
    what = "a break in the book" if hole.first is None else f"trades {hole.first} to {hole.last}"
    return f"{hole.stream} {hole.instrument}: {what}, between {between}"
