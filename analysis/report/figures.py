"""The numbers behind the charts: small tables, each the answer to a question that DuckDB sums up from the tape.

A table is a list a column. Times are ms since 1970, as charts take them; what is no finite number is None.
"""

import math
from collections.abc import Iterable
from datetime import datetime
from typing import Any, NamedTuple

import duckdb
import pyarrow as pa

from analysis.queries import ready_queries
from analysis.report.axis import Axis, axis_over
from analysis.tape import TICKS
from recorder.segments.schemas import SCHEMAS, stream_kind

Columns = dict[str, list[Any]]

MOST_EXPIRIES = 8  # lines in one chart that can be told apart
# Healed trades are there long after they were made: a trade counts when it was made, anything else when it came.
_WHEN = {"quotes": "received_at", "trades": "timestamp", "tickers": "received_at"}
_MADE_BEFORE_US = {"trades": 1_000_000}  # so that the first one's own time is seldom before the axis

# Percentiles of what may be very many numbers: they are counted by their first three digits, so that memory does not
# grow with them, and nothing is off by more than 0.5 %. A percentile is the least that so many do not exceed.
_MACROS = """
CREATE OR REPLACE MACRO three_digits(number) AS
    CASE WHEN number = 0 THEN 0 ELSE round(number, CAST(2 - floor(log10(abs(number))) AS INTEGER)) END;
"""
_PERCENTILES = """
WITH counted AS (
    SELECT bucket, series, three_digits(number) AS number, count(*) AS n
    FROM ({numbers}) AS numbers
    WHERE isfinite(number)
    GROUP BY ALL
), running AS (
    SELECT
        bucket, series, number,
        sum(n) OVER (PARTITION BY bucket, series ORDER BY number) AS up_to,
        sum(n) OVER (PARTITION BY bucket, series) AS n
    FROM counted
)
SELECT
    bucket, series,
    min(CASE WHEN up_to >= 0.50 * n THEN number END) AS p50,
    min(CASE WHEN up_to >= 0.95 * n THEN number END) AS p95,
    min(CASE WHEN up_to >= 0.99 * n THEN number END) AS p99,
    CAST(max(n) AS BIGINT) AS n
FROM running
GROUP BY bucket, series
ORDER BY bucket, series
"""
_LATENCY = """
SELECT
    unix_micros(received_at) // $width_us AS bucket, 0 AS series,
    (unix_micros(received_at) - unix_micros(timestamp)) / 1000 AS number
FROM quotes
"""
_SPREADS = """
SELECT
    unix_micros(quotes.received_at) // $width_us AS bucket, options.expiration_timestamp AS series,
    200 * (ask_price - bid_price) / (ask_price + bid_price) AS number
FROM quotes
LEFT JOIN options ON options.instrument = quotes.instrument
WHERE bid_price IS NOT NULL AND ask_price IS NOT NULL AND ask_price + bid_price > 0
"""
_VOLUME = """
SELECT
    unix_micros(timestamp) // $width_us AS bucket,
    sum(CASE WHEN side = 'buy' THEN size ELSE 0 END) AS bought,
    sum(CASE WHEN side = 'sell' THEN size ELSE 0 END) AS sold,
    count(*) AS trades
FROM trades
GROUP BY ALL
"""
_KEEP_SMILE = """
CREATE OR REPLACE TABLE kept_smile AS
SELECT * FROM ({smile}) AS smile WHERE expiry IS NULL OR unix_micros(expiry) > $end_us
"""
_SMILE = """
SELECT
    expiry, strike, option_type, instrument, mark_iv, underlying_price,
    CASE WHEN bid_iv > 0 THEN bid_iv END AS bid_iv, CASE WHEN ask_iv > 0 THEN ask_iv END AS ask_iv
FROM smile
WHERE mark_iv IS NOT NULL AND isfinite(mark_iv) AND strike IS NOT NULL AND expiry IS NOT NULL
ORDER BY expiry, strike, option_type
"""
_OPEN_INTEREST = """
SELECT strike, sum(calls) AS calls, sum(puts) AS puts
FROM open_interest
WHERE strike IS NOT NULL
GROUP BY strike
HAVING sum(calls) > 0 OR sum(puts) > 0
ORDER BY strike
"""
_GAPS = """
SELECT
    cause, status, stream, count(*) AS gaps,
    epoch_us(min(started_at)) AS first_us,
    max(coalesce(epoch_us(ended_at), $end_us) - epoch_us(started_at)) AS longest_us
FROM gaps
WHERE coalesce(epoch_us(started_at) <= $end_us, TRUE) AND coalesce(epoch_us(ended_at) >= $start_us, TRUE)
GROUP BY cause, status, stream
ORDER BY cause, status, stream
"""


class StreamFacts(NamedTuple):
    """What there is of one stream in the range; times in µs since 1970, None where there is no row."""

    stream: str
    rows: int
    instruments: int
    first_us: int | None
    newest_us: int | None

    @property
    def kind(self) -> str:
        """Return which kind of stream it is: `quotes`, …."""
        return stream_kind(self.stream) or ""


class Smile(NamedTuple):
    """The options of one expiry: strike, option_type, instrument, and the ivs in percent."""

    expiry: datetime
    underlying_price: float | None
    columns: Columns


class Spreads(NamedTuple):
    """Median spreads by expiry: columns `time_ms`, `until_ms`, `e0`, `e1`, …, in percent of the mid price."""

    expiries: list[datetime | None]  # of e0, e1, …; None: of options that the tape does not tell of
    left_out: int  # how many expiries are not among them
    columns: Columns


def facts(connection: duckdb.DuckDBPyConnection, streams: Iterable[str]) -> list[StreamFacts]:
    """Count each stream."""
    found = []
    for stream in streams:
        question = f"""
            SELECT
                count(*), count(DISTINCT instrument), epoch_us(min(received_at)), epoch_us(max(received_at))
            FROM "{stream}"
        """  # noqa: S608 - a name of ours
        (row,) = connection.execute(question).fetchall()
        found.append(StreamFacts(stream, *row))
    return found


def time_axis(
    found: Iterable[StreamFacts], recorded_us: Iterable[int], start: datetime | None, end: datetime | None
) -> Axis | None:
    """Return the time that charts show: from when there is something, to the newest tick; None if there is none.

    Args:
        found: what the streams hold.
        recorded_us: since when instruments were to be recorded.
        start: of the range that was asked for.
        end: of it.
    """
    known = [one for one in found if one.kind in TICKS and one.first_us is not None and one.newest_us is not None]
    if not known:
        return None
    newest_us = max(one.newest_us or 0 for one in known)
    if end is not None:  # trades of the range may have been healed after it
        newest_us = min(newest_us, round(end.timestamp() * 1e6) - 1)
    first_us = min([*((one.first_us or 0) - _MADE_BEFORE_US.get(one.kind, 0) for one in known), *recorded_us])
    if start is not None:
        first_us = max(first_us, round(start.timestamp() * 1e6))
    return axis_over(min(first_us, newest_us), newest_us)


def take_market(
    connection: duckdb.DuckDBPyConnection, market: str, streams: Iterable[str], axis: Axis | None
) -> None:
    """Let `quotes`, `trades`, `tickers`, and the ready queries be about one market of the tape.

    The smile is then that of the options that had not expired at the end of the axis.
    """
    connection.execute(_MACROS).fetchall()
    there = set(streams)
    for kind in TICKS:
        if (stream := f"{market}_{kind}") in there:
            connection.execute(f'CREATE OR REPLACE VIEW {kind} AS SELECT * FROM "{stream}"').fetchall()  # noqa: S608
        else:
            connection.from_arrow(pa.Table.from_batches([], schema=SCHEMAS[kind])).create_view(kind, replace=True)
    # The smile looks at every ticker, and two other ready queries are made of it: its answer is kept.
    smile = next(query.statement for query in ready_queries() if query.name == "smile")
    ended = {"end_us": axis.end_us if axis else 0}
    connection.execute(_KEEP_SMILE.format(smile=smile), ended).fetchall()
    connection.execute("CREATE OR REPLACE VIEW smile AS SELECT * FROM kept_smile").fetchall()


def rates(connection: duckdb.DuckDBPyConnection, stream: str, axis: Axis) -> Columns:
    """Return rows a second: `time_ms`, `until_ms`, `rows_per_s`; zero where none came."""
    question = f"""
        SELECT unix_micros({_WHEN[stream_kind(stream) or ""]}) // $width_us AS bucket, count(*) AS n
        FROM "{stream}" GROUP BY ALL
    """  # noqa: S608 - names of ours
    counted = dict(connection.execute(question, {"width_us": axis.width_us}).fetchall())
    return {
        **_times(axis),
        "rows_per_s": [round(counted.get(number, 0) / axis.covered_s(number), 3) for number in axis.numbers],
    }


def latency(connection: duckdb.DuckDBPyConnection, axis: Axis) -> Columns:
    """Return how long quotes took to come, in ms: `time_ms`, `until_ms`, `p50`, `p95`, `p99`."""
    found = {number: row for number, _, *row in _percentiles(connection, _LATENCY, axis)}
    columns = _times(axis)
    for place, name in enumerate(("p50", "p95", "p99")):
        columns[name] = [found[number][place] if number in found else None for number in axis.numbers]
    return columns


def spreads(connection: duckdb.DuckDBPyConnection, axis: Axis) -> Spreads:
    """Return the median spread of the expiries that are quoted most often, the nearest first."""
    medians: dict[datetime | None, dict[int, float]] = {}
    quotes: dict[datetime | None, int] = {}
    for number, expiry, p50, _, _, n in _percentiles(connection, _SPREADS, axis):
        medians.setdefault(expiry, {})[number] = p50
        quotes[expiry] = quotes.get(expiry, 0) + n
    most = sorted(quotes, key=lambda expiry: -quotes[expiry])[:MOST_EXPIRIES]
    drawn = sorted(most, key=lambda expiry: (expiry is None, expiry and expiry.timestamp()))
    columns = _times(axis)
    for place, expiry in enumerate(drawn):
        columns[f"e{place}"] = [medians[expiry].get(number) for number in axis.numbers]
    return Spreads(drawn, len(quotes) - len(drawn), columns)


def volume(connection: duckdb.DuckDBPyConnection, axis: Axis) -> Columns:
    """Return the contracts that takers bought and sold: `time_ms`, `until_ms`, `bought`, `sold`, `trades`."""
    found = {number: row for number, *row in connection.execute(_VOLUME, {"width_us": axis.width_us}).fetchall()}
    columns = _times(axis)
    for place, name in enumerate(("bought", "sold", "trades")):
        columns[name] = [_finite(found[number][place]) if number in found else 0 for number in axis.numbers]
    return columns


def trades_elsewhere(connection: duckdb.DuckDBPyConnection, axis: Axis) -> int:
    """Count the trades that were made before the axis begins, or after it ends."""
    question = "SELECT count(*) FROM trades WHERE NOT unix_micros(timestamp) // $width_us BETWEEN $first AND $last"
    bounds = {"width_us": axis.width_us, "first": axis.numbers[0], "last": axis.numbers[-1]}
    ((count,),) = connection.execute(question, bounds).fetchall()
    return int(count)


def smiles(connection: duckdb.DuckDBPyConnection) -> list[Smile]:
    """Return the smile of each expiry, the nearest first."""
    rows = connection.sql(_SMILE).to_arrow_table().to_pylist()
    by_expiry: dict[datetime, list[dict[str, Any]]] = {}
    for row in rows:
        by_expiry.setdefault(row.pop("expiry"), []).append(row)
    found = []
    for expiry, options in by_expiry.items():
        prices = sorted(price for row in options if (price := _finite(row.pop("underlying_price"))) is not None)
        columns = {name: [_finite(row[name]) for row in options] for name in options[0]}
        found.append(Smile(expiry, prices[len(prices) // 2] if prices else None, columns))
    return found


def term_structure(connection: duckdb.DuckDBPyConnection) -> Columns:
    """Return the iv at the money by expiry: `expiry_ms`, `strike`, `mark_iv`, `underlying_price`, `instrument`."""
    return _columns(
        connection.sql("""
        SELECT unix_micros(expiry) / 1000 AS expiry_ms, strike, mark_iv, underlying_price, instrument
        FROM term_structure WHERE expiry IS NOT NULL AND isfinite(mark_iv) ORDER BY expiry
    """)
    )


def open_interest(connection: duckdb.DuckDBPyConnection) -> Columns:
    """Return open interest by strike over all expiries: `strike`, `calls`, `puts`, in contracts."""
    return _columns(connection.sql(_OPEN_INTEREST))


def gaps_by_cause(connection: duckdb.DuckDBPyConnection, start_us: int, end_us: int) -> list[dict[str, Any]]:
    """Return the gaps that touch a time: how many by cause, status, and stream, since when, and the longest, in µs.

    A gap that lasts is as long as it was at the end of the time.
    """
    bounds = {"start_us": start_us, "end_us": end_us}
    found: list[dict[str, Any]] = connection.sql(_GAPS, params=bounds).to_arrow_table().to_pylist()
    return found


def _times(axis: Axis) -> Columns:
    return {
        "time_ms": [axis.start_ms(number) for number in axis.numbers],
        "until_ms": [axis.start_ms(number + 1) for number in axis.numbers],
    }


def _percentiles(connection: duckdb.DuckDBPyConnection, numbers: str, axis: Axis) -> list[tuple[Any, ...]]:
    return connection.execute(_PERCENTILES.format(numbers=numbers), {"width_us": axis.width_us}).fetchall()


def _columns(answer: duckdb.DuckDBPyRelation) -> Columns:
    found: Columns = answer.to_arrow_table().to_pydict()
    return {name: [_finite(value) for value in values] for name, values in found.items()}


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
