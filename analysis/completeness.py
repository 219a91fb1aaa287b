"""Proves what a tape holds: per instrument and stream what is whole, what is told as missing, and what nothing tells.

Everything is read from the files. Sealed segments are checked to the last byte, and archived parts by their checksum,
before their numbers are believed.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from tempfile import TemporaryDirectory

import duckdb
import pyarrow as pa

from analysis.edges import COLUMNS, goes_on, rows_after, rows_before
from analysis.proof import (
    FOREVER,
    Gaps,
    Hole,
    as_gap,
    broken_chain,
    covered_us,
    judge_beginning,
    judge_books,
    judge_trades,
    recorded_spans,
    within,
)
from analysis.span import Span
from analysis.tables import connection_over
from analysis.tape import TICKS, Plan, Tape, plan
from recorder.segments.archived import Damaged
from recorder.segments.reader import read_identity, read_segment
from recorder.segments.schemas import GAPS_STREAM, stream_kind

_BREAKS = """
SELECT instrument, epoch_us(lag(received_at) OVER w) AS from_us, epoch_us(received_at) AS to_us
FROM ({rows}) WINDOW w AS (PARTITION BY instrument ORDER BY change_id, received_at)
QUALIFY lag(change_id) OVER w IS NOT NULL
    AND (prev_change_id IS NULL OR prev_change_id > lag(change_id) OVER w)
ORDER BY instrument, to_us
"""
_JUMPS = """
SELECT instrument, lag(trade_seq) OVER w + 1 AS first, trade_seq - 1 AS last,
    epoch_us(lag("timestamp") OVER w) AS from_us, epoch_us("timestamp") AS to_us
FROM (SELECT DISTINCT instrument, trade_seq, "timestamp" FROM ({rows}))
WINDOW w AS (PARTITION BY instrument ORDER BY trade_seq)
QUALIFY trade_seq > lag(trade_seq) OVER w + 1 ORDER BY instrument, first
"""
# The numbers before the first trade of each option.
_FIRST = """
SELECT instrument, min(trade_seq) - 1 AS last, epoch_us(arg_min("timestamp", trade_seq)) AS to_us
FROM ({rows}) GROUP BY instrument HAVING min(trade_seq) > 1
"""
# By the exchange's clock, as the time of creation is: that of the machine may have been wrong.
_BEGUN = 'SELECT epoch_us(min("timestamp")) FROM "{stream}" WHERE recorded'
_CREATED = """
SELECT instrument, epoch_us(min(creation_timestamp)) FROM "{stream}"
WHERE creation_timestamp IS NOT NULL GROUP BY instrument
"""
# A stream and, of each instrument, the rows next to the range that is looked at.
_WITH_EDGES = 'SELECT {columns} FROM "{stream}" UNION ALL SELECT {columns} FROM edges'
_ROWS = """
SELECT instrument, count(*) AS rows, epoch_us(min(received_at)) AS oldest_us, epoch_us(max(received_at)) AS newest_us
FROM "{stream}" GROUP BY instrument
"""
# What has expired is not recorded, though its channels are left only when the exchange has settled it.
_RECORDED = """
SELECT instrument, epoch_us(received_at) AS at_us, recorded FROM "{stream}"
WHERE recorded IS NOT NULL AND NOT (recorded AND coalesce(received_at >= expiration_timestamp, FALSE))
UNION
SELECT instrument, epoch_us(expiration_timestamp), false FROM "{stream}" WHERE expiration_timestamp IS NOT NULL
ORDER BY at_us
"""
_GAPS = f"""
SELECT gap_id, state_no, stream, instrument, cause, status, epoch_us(started_at) AS started_us,
    epoch_us(ended_at) AS ended_us, first_missing, last_missing
FROM {GAPS_STREAM} ORDER BY gap_id, state_no
"""  # noqa: S608 - a constant


# What DuckDB may hold of a tape of any length while it sorts; the rest goes to TMPDIR, at no cost that shows.
_MEMORY = "1GB"
# The market's trades are subscribed to so long after its first book at most.
_SUBSCRIBED_US = 10_000_000
# By instrument, when it was told whether it is recorded from then on; in the order of time.
Told = dict[str, list[tuple[int, bool]]]


@dataclass
class Instrument:
    """One instrument in one stream."""

    rows: int = 0
    # Until when its numbers show that nothing is missing: its newest row, or the end if it goes on after that.
    proven_until: datetime | None = None
    recorded_s: float = 0.0  # how long it was to be recorded, in the range
    covered_s: float = 0.0  # how much of that is proven or told not to be missed: outside of gap rows and holes
    oldest_us: int = FOREVER  # when its first row in the range was received
    has_begun: bool = False  # there is a row of it before the range
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
    # The newest row of any instrument, or the end if the stream goes on after that.
    proven_until: datetime | None = None
    not_provable: tuple[datetime, datetime] | None = None  # the time after it in which its market was recorded
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

    @property
    def measured(self) -> bool:
        """Whether anything says of an instrument that it was to be recorded in the range."""
        return any(one.recorded_s for stream in self.streams.values() for one in stream.instruments.values())

    @property
    def nothing(self) -> bool:
        """Whether there is nothing to check: nothing was to be recorded in the range, or nothing says that it was."""
        instruments = [one for stream in self.streams.values() for one in stream.instruments.values()]
        return not any(one.rows or one.recorded_s for one in instruments) or all(
            stream.proven_until is None for stream in self.streams.values()
        )

    def verdict(self, least: float | None = None) -> bool | None:
        """Return whether all is there or told; None if that cannot be said.

        What cannot be read may have the rows that are missing; and there may be nothing to check.
        """
        if self.unreadable:
            return None
        if self.untold or self.missing_segments or (least is not None and self.below(least)):
            return False
        return None if self.nothing or (least is not None and not self.measured) else True


def check(tape: Tape, span: Span) -> Completeness:
    """Check a tape as of this moment.

    Raises:
        OSError: a folder cannot be looked into, or the archive cannot be reached.
        duckdb.Error: a file cannot be read.
    """
    found = Completeness(span.start, span.end)
    in_order = _in_order(tape.streams())
    plans = {stream: plan(tape, stream) for stream in in_order}
    for stream, planned in plans.items():
        found.streams[stream] = Stream(stream_kind(stream) or "")
        _check_segments(planned, span, found.streams[stream], found.unreadable)
    with TemporaryDirectory(prefix="ticktape-") as spill, connection_over(plans, span) as connection:
        for setting, value in (("memory_limit", _MEMORY), ("temp_directory", spill)):
            connection.execute(f"SET {setting} = '{value}'").fetchall()
        connection.execute("SET preserve_insertion_order = false").fetchall()
        gaps = gaps_told(connection) if GAPS_STREAM in plans else Gaps()
        recorded = recorded_told(connection, plans)
        created = {market: _created_since(connection, market, span) for market in recorded}
        newest: dict[str, datetime] = {}  # by market, the newest row of any of its streams
        for stream, result in found.streams.items():
            if result.kind in TICKS:
                market = stream.removesuffix(f"_{result.kind}")
                of_market = recorded.get(market, {}), created.get(market, {})
                _check_rows(connection, plans[stream], result, gaps, *of_market, span)
                if result.proven_until is not None:
                    newest[market] = max(newest.get(market, result.proven_until), result.proven_until)
        for stream, result in found.streams.items():
            market = stream.removesuffix(f"_{result.kind}")
            if result.kind in TICKS and market in newest.keys() | recorded.keys():
                # Of an archive alone a stream may come later than what tells of it.
                is_missed = tape.data_dir is not None or result.proven_until is not None
                _measure(
                    stream, result, recorded.get(market, {}), gaps, span, newest.get(market), is_missed=is_missed
                )
    return found


def _in_order(streams: Iterable[str]) -> list[str]:
    """Return which streams to look at, in this order: also one of which nothing is left, though it was recorded.

    What is told is looked at last: else the row after a hole could be seen, and what tells the hole not yet.
    """
    found = set(streams)
    markets = [stream.removesuffix("_instruments") for stream in found if stream_kind(stream) == "instruments"]
    found |= {f"{market}_{kind}" for market in markets for kind in TICKS}
    return sorted(found, key=lambda stream: (stream_kind(stream) in ("gaps", "instruments"), stream))


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
    result.segments = len(previous)
    previous |= {identity.segment_id: identity.previous for identity in planned.found.identities}
    unreadable += [str(one) for one in (*planned.found.left_out, *planned.left_out)]
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


def _created_since(connection: duckdb.DuckDBPyConnection, market: str, span: Span) -> dict[str, int]:
    """Return the options that were created in the range, after recording had begun, and when.

    Each of their trades was to be recorded, from number 1.
    """
    stream = f"{market}_instruments"
    ((begun_us,),) = connection.sql(_BEGUN.format(stream=stream)).fetchall()
    if begun_us is None:
        return {}
    start_us, end_us = _us(span)
    created = connection.sql(_CREATED.format(stream=stream)).fetchall()
    return {name: at_us for name, at_us in created if max(begun_us + _SUBSCRIBED_US, start_us) <= at_us < end_us}


def _check_rows(
    connection: duckdb.DuckDBPyConnection, planned: Plan, result: Stream, gaps: Gaps, recorded: Told,
    created: dict[str, int], span: Span,
) -> None:  # fmt: skip
    stream, ends = planned.stream, goes_on(planned, span)
    for name, rows, oldest_us, newest_us in connection.sql(_ROWS.format(stream=stream)).fetchall():
        proven_until = _datetime(newest_us)
        result.instruments[name] = Instrument(rows, proven_until if result.provable else None, oldest_us=oldest_us)
        result.proven_until = max(result.proven_until or proven_until, proven_until)
    result.proven_until = span.end if ends else result.proven_until
    if not result.provable:
        return
    left = {name: [at_us for at_us, yes in told if not yes] for name, told in recorded.items()}
    start_us, end_us = _us(span)
    spans = {name: recorded_spans(told, FOREVER) for name, told in recorded.items()}
    names = result.instruments.keys() | {name for name, some in spans.items() if within(some, start_us, end_us)}
    # A new listing has no row before the range, an expired one none after it: who is not there is not looked for.
    begun = {name for name in names if name not in spans or any(a < start_us for a, _ in spans[name])}
    goes = {name for name in names if name not in spans or any(b > end_us for _, b in spans[name])}
    before, after = rows_before(planned, span, begun), rows_after(planned, span, goes)
    for name in names.intersection(after["instrument"].to_pylist()):
        result.instruments.setdefault(name, Instrument()).proven_until = span.end
    for name in names.intersection(before["instrument"].to_pylist()):
        result.instruments.setdefault(name, Instrument()).has_begun = True
    connection.register("edges", pa.concat_tables([before, after]))
    columns = ", ".join(f'"{name}"' for name in COLUMNS[result.kind])
    rows = _WITH_EDGES.format(stream=stream, columns=columns)
    if result.kind == "quotes":
        holes = judge_books(stream, connection.sql(_BREAKS.format(rows=rows)).fetchall(), gaps, left)
    else:
        jumps = connection.sql(_JUMPS.format(rows=rows)).fetchall()
        first = connection.sql(_FIRST.format(rows=rows)).fetchall()
        jumps += [
            (name, 1, last, created[name], to_us)
            for name, last, to_us in first
            # What was listed in a gap of all is owed from where it is seen first.
            if name in created and not any(gap.from_us <= created[name] <= gap.to_us for gap in gaps.of(stream, name))
        ]
        holes = judge_trades(stream, jumps, gaps)
    for hole in holes:
        result.instruments.setdefault(hole.instrument, Instrument()).holes.append(hole)


def _measure(
    stream: str,
    result: Stream,
    recorded: Told,
    gaps: Gaps,
    span: Span,
    newest: datetime | None,
    *,
    is_missed: bool,
) -> None:
    """Measure how much of the time in which an instrument was to be recorded is not missed, as far as is known.

    `newest` is the newest row of any stream of the market: until then it was recorded. `is_missed` is whether what
    never came of an instrument is a hole.
    """
    now = datetime.now(UTC)
    end = newest if span.end is None else min(span.end, max(now, newest or now))
    began_us = min((at_us for told in recorded.values() for at_us, yes in told if yes), default=None)
    proven_until = result.proven_until or span.start or (None if began_us is None else _datetime(began_us))
    if end is None or proven_until is None or (span.start is not None and end <= span.start):
        return
    if proven_until < end:
        result.not_provable = (proven_until, end)
    if result.kind == "trades":
        return  # healed trades are there though a gap was
    start_us, end_us = _us(Span(span.start, end))
    # What came after the newest row of a stream may not be written yet; of one that has none, that of the market.
    came_until = result.proven_until or newest
    came_until_us = min(_us(Span(came_until))[0], end_us) if is_missed else 0
    for name, told in recorded.items():
        whole = recorded_spans(told, end_us)
        spans = within(whole, start_us, end_us)
        if spans:
            found = result.instruments.setdefault(name, Instrument())
            if not found.has_begun:
                # Of tickers it is not known whether there is one before the range.
                begun = [one for one in whole if result.provable or one[0] >= start_us]
                own = within(begun, start_us, came_until_us)
                found.holes += judge_beginning(stream, name, own, found.oldest_us, gaps)
            missed = [(gap.from_us, gap.to_us) for gap in gaps.of(stream, name)]
            missed += [(hole.from_us, hole.to_us) for hole in found.holes if not hole.told]
            missed.append((_us(Span(proven_until))[0], end_us))
            found.recorded_s = sum(b - a for a, b in spans) / 1e6
            found.covered_s = covered_us(spans, missed) / 1e6


def _us(span: Span) -> tuple[int, int]:
    """Return the ends of a range in µs."""
    start = round(span.start.timestamp() * 1e6) if span.start else 0
    return start, round(span.end.timestamp() * 1e6) if span.end else FOREVER


def _datetime(at_us: int) -> datetime:
    return datetime.fromtimestamp(at_us / 1e6, UTC)
