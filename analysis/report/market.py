"""The sections on what the ticks of a market show: latency, spreads, volume, ivs, and open interest."""

from datetime import datetime
from math import ceil, floor, log10

import duckdb

from analysis.report import charts, figures
from analysis.report.axis import Axis
from analysis.report.charts import Series
from analysis.report.content import Chart, Section, count_text, extent, time_text

MOST_SMILES = 24
# Percentiles that far apart are drawn on a logarithmic scale.
_FAR_APART = 30
_MOST_POWERS = 4  # of ten, for labels between them

_PERCENTILES = (
    Series("p50", "p50 (median)", "var(--one)"),
    Series("p95", "p95", "var(--two)", 1),
    Series("p99", "p99", "var(--three)", 2),
)
_BOUGHT = Series("bought", "bought", "var(--one)", block=True)
_SOLD = Series("sold", "sold", "var(--two)", block=True)
_CALLS, _PUTS = Series("calls", "calls", "var(--one)"), Series("puts", "puts", "var(--two)", 1)
_UNTIL_OPTION_IS_TOLD = "no option with a ticker in this time is told with its strike and expiry."


def sections(connection: duckdb.DuckDBPyConnection, axis: Axis | None) -> list[Section]:
    """Return all of them, of the market that the connection's `quotes`, `trades`, and `tickers` are of."""
    return [
        _latency(connection, axis), _spreads(connection, axis), _volume(connection, axis), _smiles(connection),
        _term_structure(connection), _open_interest(connection),
    ]  # fmt: skip


def _latency(connection: duckdb.DuckDBPyConnection, axis: Axis | None) -> Section:
    drawn = []
    columns = figures.latency(connection, axis) if axis else {"p50": []}
    there = [value for name in ("p50", "p95", "p99") for value in columns.get(name, ()) if value is not None]
    logarithmic = bool(there) and min(there) > 0 and max(there) > _FAR_APART * min(there)
    ticks = _log_ticks(min(there), max(there)) if logarithmic else ()
    if there and axis:
        drawn.append(Chart(
            charts.lines(_PERCENTILES, "ms", ticks=ticks), columns,
            {"time_ms": "UTC, from", **{one.column: f"{one.column}, ms" for one in _PERCENTILES}},
            "Latency of quotes over time. " + " ".join(
                f"{one.column}: {extent(columns[one.column], 'ms')}." for one in _PERCENTILES),
        ))  # fmt: skip
    return Section(
        "latency", "Latency",
        "How long quotes took from the exchange's clock to ours: half of them at most p50, 95 of 100 at most p95, 99 "
        "of 100 at most p99. It holds what the two clocks differ by, so that only changes mean much."
        + (" The scale is logarithmic." if logarithmic else ""),
        charts=drawn, legend=_PERCENTILES if drawn else (), nothing="There are no quotes in this time.",
    )  # fmt: skip


def _spreads(connection: duckdb.DuckDBPyConnection, axis: Axis | None) -> Section:
    drawn, notes, series = [], [], []
    found = figures.spreads(connection, axis) if axis else figures.Spreads([], 0, {})
    if found.expiries and axis:
        series = [
            Series(f"e{place}", _expiry_text(expiry), f"var(--step-{_step(place, len(found.expiries))})", place % 2)
            for place, expiry in enumerate(found.expiries)
        ]
        drawn.append(Chart(
            charts.lines(series, "spread, % of mid"), found.columns,
            {"time_ms": "UTC, from", **{one.column: f"{one.label}, %" for one in series}},
            "Median spread by expiry over time. " + " ".join(
                f"{one.label}: {extent(found.columns[one.column], 'percent')}." for one in series),
        ))  # fmt: skip
        if found.left_out:
            notes.append(_left_out(found.left_out, "those with the most quotes are drawn"))
    return Section(
        "spreads", "Spreads",
        "The median of ask less bid, in percent of the price between them, over all quotes with both sides; a line "
        "is an expiry, the nearest first.",
        charts=drawn, legend=series, notes=notes, nothing="There are no quotes with both sides in this time.",
    )  # fmt: skip


def _volume(connection: duckdb.DuckDBPyConnection, axis: Axis | None) -> Section:
    drawn, notes = [], []
    columns = figures.volume(connection, axis) if axis else {"trades": []}
    if any(columns["trades"]) and axis:
        drawn.append(Chart(
            charts.flows(_BOUGHT, _SOLD, "contracts"), columns,
            {"time_ms": "UTC, from", "bought": "bought", "sold": "sold", "trades": "trades"},
            f"Contracts over time: {sum(columns['bought']):,.6g} bought, {sum(columns['sold']):,.6g} sold, in "
            f"{count_text(sum(columns['trades']), 'trade')}.",
        ))  # fmt: skip
        if elsewhere := figures.trades_elsewhere(connection, axis):
            notes.append(f"{count_text(elsewhere, 'trade')} made before or after this time: not drawn.")
    return Section(
        "volume", "Volume",
        "Contracts that takers bought (upwards) and sold (downwards), of every option of the market, recorded or "
        f"not, by when the exchange made the trade. A bar is {axis or 'a bucket'}.",
        charts=drawn, legend=(_BOUGHT, _SOLD) if drawn else (), notes=notes,
        nothing="There are no trades in this time.",
    )  # fmt: skip


def _smiles(connection: duckdb.DuckDBPyConnection) -> Section:
    found = figures.smiles(connection)
    drawn = []
    for one in found[:MOST_SMILES]:
        ivs = one.columns["mark_iv"]
        around = max((max(ivs) - min(ivs)) * 0.25, 0.02 * max(map(abs, ivs)), 0.5)
        drawn.append(Chart(
            charts.smile(_CALLS, _PUTS, one.underlying_price, (max(min(ivs) - around, 0), max(ivs) + around)),
            one.columns,
            {"strike": "strike", "option_type": "type", "mark_iv": "mark iv, %", "bid_iv": "bid iv, %",
             "ask_iv": "ask iv, %", "instrument": "instrument"},
            f"Mark iv by strike of {count_text(len(ivs), 'option')} that expire at {time_text(one.expiry)}: "
            f"{extent(ivs, 'percent')}.",
            title=_expiry_text(one.expiry),
        ))  # fmt: skip
    left_out = len(found) - len(drawn)
    notes = [_left_out(left_out, "the nearest are drawn")] if left_out else []
    return Section(
        "smile", "Smile",
        "The implied volatility by strike at the end of this time, as the exchange marks it, an expiry each with "
        "scales of its own. A bar behind a point goes from the iv of the bid to that of the ask, and is cut off "
        "where the chart ends; the dotted line is the price of the underlying.",
        charts=drawn, legend=(_CALLS, _PUTS) if drawn else (), notes=notes,
        small=True, nothing=f"There is nothing to draw: {_UNTIL_OPTION_IS_TOLD}",
    )  # fmt: skip


def _term_structure(connection: duckdb.DuckDBPyConnection) -> Section:
    columns = figures.term_structure(connection)
    drawn = []
    if columns["mark_iv"]:
        drawn.append(Chart(
            charts.curve("var(--one)"), columns,
            {"expiry_ms": "expiry", "mark_iv": "iv, %", "strike": "strike", "underlying_price": "underlying",
             "instrument": "instrument"},
            f"Iv at the money of {len(columns['mark_iv'])} expiries: {extent(columns['mark_iv'], 'percent')}.",
        ))  # fmt: skip
    return Section(
        "term-structure", "Term structure",
        "The implied volatility at the money by expiry: of the option whose strike is nearest to the underlying's "
        "price, at the end of this time.",
        charts=drawn, nothing=f"There is nothing to draw: {_UNTIL_OPTION_IS_TOLD}",
    )  # fmt: skip


def _open_interest(connection: duckdb.DuckDBPyConnection) -> Section:
    columns = figures.open_interest(connection)
    drawn = []
    if columns["strike"]:
        drawn.append(Chart(
            charts.by_strike(_CALLS, _PUTS, "contracts"), columns,
            {"strike": "strike", "calls": "calls", "puts": "puts"},
            f"Open interest by strike: {sum(columns['calls']):,.6g} contracts in calls, {sum(columns['puts']):,.6g} "
            f"in puts, at {count_text(len(columns['strike']), 'strike')}.",
        ))  # fmt: skip
    return Section(
        "open-interest", "Open interest",
        "Contracts that are open by strike, over all expiries, at the end of this time: calls upwards, puts "
        "downwards.",
        charts=drawn, legend=[one._replace(block=True) for one in (_CALLS, _PUTS)] if drawn else (),
        nothing="There is nothing to draw: no recorded option is told to have open interest.",
    )  # fmt: skip


def _log_ticks(low: float, high: float) -> list[float]:
    """Return round numbers between two that are far apart: 1, 2, 5, 10, …, or every power of ten."""
    powers = [10.0**power for power in range(floor(log10(low)), ceil(log10(high)) + 1)]
    ladder = [step * power for power in powers for step in ((1, 2, 5) if len(powers) <= _MOST_POWERS else (1,))]
    return [tick for tick in ladder if low <= tick <= high]


def _expiry_text(expiry: datetime | None) -> str:
    return f"{expiry:%Y-%m-%d}" if expiry else "unknown expiry"


def _step(place: int, count: int) -> int:
    """Return which of the eight colours from near to far a line has, so that few lines lie far apart."""
    return 1 + (round(place * (figures.MOST_EXPIRIES - 1) / (count - 1)) if count > 1 else 0)


def _left_out(count: int, drawn: str) -> str:
    return f"{count:,} more {'expiry is' if count == 1 else 'expiries are'} not drawn: {drawn}."
