"""Charts as Vega-Lite: what is drawn where, in which of the page's colours; no numbers, which the page holds apart.

The page's script makes rows of a chart's columns, and adds a text to each time: `time_text` to `time_ms`. Colours are
names of CSS variables, so that the browser fills them in and a chart follows the page from light to dark.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import altair as alt

Spec = dict[str, Any]

# Sizes in pixels
_HEIGHT = 230
_LOW = 120
_ROW = 14  # of the heat map
_LABEL_LIMIT = 130

# How high the bar of a cell is, by the share that is there
_MISSED = (("datum.share >= 0.9", 0.35), ("datum.share < 0.9 && datum.share >= 0.5", 0.65), ("datum.share < 0.5", 1))

# How the labels of a time axis are written, by what is round there
_TIMES = {
    "year": "%b %d, %Y", "quarter": "%b %d", "month": "%b %d", "week": "%b %d", "date": "%b %d", "day": "%b %d",
    "hours": "%H:%M", "minutes": "%H:%M", "seconds": "%H:%M:%S", "milliseconds": "%S.%L",
}  # fmt: skip
_EXPIRIES = _TIMES | dict.fromkeys(("year", "quarter", "month"), "%b %Y") | {"hours": "%b %d %H:%M"}
_EVERY_70_PIXELS = {"expr": "max(2, width / 70)"}
# … nor more often than every second, which is the shortest bucket
_TIMES_APART = {"expr": "max(1, min(width / 70, (domain('x')[1] - domain('x')[0]) / 1000))"}
_DASHES = ([1, 0], [7, 4], [2, 3])


class Series(NamedTuple):
    """What is drawn in one colour."""

    column: str
    label: str
    colour: str  # of the page: `var(--one)`
    dash: int = 0  # an index: solid, dashed, dotted
    block: bool = False  # an area, not a line

    @property
    def stroke(self) -> list[int]:
        """Return the lengths of dashes and spaces, in pixels."""
        return _DASHES[self.dash]


def lines(
    series: Sequence[Series], unit: str, *, low: bool = False, points: bool = False, ticks: Sequence[float] = ()
) -> Spec:
    """Return lines; a value is that of the time from `time_ms` to `until_ms`.

    Args:
        series: what is drawn.
        unit: of all of them.
        low: whether the chart is one of several.
        points: whether values are drawn as points, too: one that stands alone makes no line.
        ticks: of a logarithmic scale; none: the scale is linear.
    """
    rows = _rows()
    x = _time_x()
    y = alt.Y(
        "value", type="quantitative", title=unit,
        scale=alt.Scale(type="log", nice=False) if ticks else alt.Scale(),
        axis=alt.Axis(values=list(ticks), format="~s") if ticks else alt.Axis(),
    )  # fmt: skip
    names = [one.column for one in series]
    drawn = (
        rows.transform_fold([*names], as_=["series", "value"])
        .mark_line(strokeWidth=2, strokeJoin="round", point={"filled": True, "size": 22} if points else False)
        .encode(
            x=x,
            y=y,
            color=alt.Color(
                "series", type="nominal", legend=None,
                scale=alt.Scale(domain=names, range=[one.colour for one in series]),
            ),
            strokeDash=alt.StrokeDash(
                "series", type="nominal", legend=None,
                scale=alt.Scale(domain=names, range=[one.stroke for one in series]),
            ),
        )
    )  # fmt: skip
    return _spec([drawn, _pointer(series)], _LOW if low else _HEIGHT)


def flows(up: Series, down: Series, unit: str) -> Spec:
    """Return bars from `time_ms` to `until_ms`: one column above zero, the other one below."""
    rows = _rows().transform_calculate(below=f"-datum.{down.column}")
    bars = [
        rows.mark_bar(color=one.colour).encode(
            x=_time_x(), x2="until_ms", y=_both_ways(column, unit), y2=alt.datum(0)
        )
        for one, column in ((up, up.column), (down, "below"))
    ]
    return _spec([*bars, _pointer((up, down))], _HEIGHT)


def by_strike(up: Series, down: Series, unit: str) -> Spec:
    """Return a bar a strike: one column above zero, the other one below."""
    rows = _rows().transform_calculate(below=f"-datum.{down.column}")
    tooltip = [
        alt.Tooltip("strike", type="quantitative", title="strike", format=",~g"),
        *(alt.Tooltip(one.column, type="quantitative", title=one.label, format=",.6~r") for one in (up, down)),
    ]
    x = alt.X(
        "strike", type="ordinal", title="strike",
        axis=alt.Axis(labelAngle=0, labelOverlap=True, format="~g", ticks=False),
        scale=alt.Scale(paddingInner=0.15),
    )  # fmt: skip
    bars = [
        rows.mark_bar(color=one.colour).encode(x=x, y=_both_ways(column, unit), tooltip=tooltip)
        for one, column in ((up, up.column), (down, "below"))
    ]
    return _spec([*bars], _HEIGHT)


def heat_map(instruments: Sequence[str], causes: Sequence[str], domain_ms: tuple[float, float]) -> Spec:
    """Return a row an instrument, over time; what is missing in the colour of its cause, the higher the more.

    Columns: `instrument`, `from_ms`, `until_ms`, `share` of what is there, `cause`.

    Args:
        instruments: in their order.
        causes: of all that is missing.
        domain_ms: from when to when, so that heat maps of one page go over the same time.
    """
    rows = _rows()
    x = _time_x("from_ms")
    y = alt.Y(
        "instrument", type="nominal", sort=list(instruments), title=None,
        axis=alt.Axis(labelLimit=_LABEL_LIMIT, ticks=False, domain=False, labelFontSize=10, grid=False),
    )  # fmt: skip
    tooltip = [
        alt.Tooltip("instrument", type="nominal"),
        alt.Tooltip("from_text", type="nominal", title="UTC, from"),
        alt.Tooltip("until_text", type="nominal", title="to"),
        alt.Tooltip("share", type="quantitative", title="outside of gaps", format=".2%"),
        alt.Tooltip("cause", type="nominal", title="mostly"),
    ]
    missed = alt.Color(
        "cause", type="nominal", legend=None,
        scale=alt.Scale(domain=list(causes), range=[cause_colour(cause) for cause in causes]),
    )  # fmt: skip
    layers = [rows.mark_rect(color="var(--covered)").encode(x=x, x2="until_ms", y=y, tooltip=tooltip)]
    for test, height in _MISSED:
        bars = rows.transform_filter(f"datum.cause !== '' && {test}").mark_rect(height={"band": height})
        layers.append(bars.encode(x=x, x2="until_ms", y=y, tooltip=tooltip, color=missed))
    # That times come with data is how Vega takes them without `eval`, which the page's policy forbids; see `_time_x`.
    ends = alt.Chart(alt.InlineData(values=[{"from_ms": one} for one in domain_ms])).mark_point(opacity=0, size=0)
    layers.append(ends.encode(x=x))
    return _spec([*layers], max(len(instruments), 2) * _ROW)


def smile(calls: Series, puts: Series, underlying: float | None, ivs: tuple[float, float]) -> Spec:
    """Return the ivs of one expiry by strike.

    Columns: `strike`, `option_type`, `instrument`, `mark_iv`, `bid_iv`, `ask_iv`.

    Args:
        calls: their label and colour.
        puts: theirs.
        underlying: its price, None if it is not known.
        ivs: the least and the most that is drawn: asks far from the money know no bounds.
    """
    rows = _rows()
    x = alt.X("strike", type="quantitative", title="strike", scale=alt.Scale(zero=False, padding=8),
              axis=alt.Axis(tickCount=_EVERY_70_PIXELS, grid=False))  # fmt: skip
    scale = alt.Scale(domain=list(ivs), nice=False)
    tooltip = [
        alt.Tooltip("instrument", type="nominal"),
        *(alt.Tooltip(one, type="quantitative", format=".2f") for one in ("mark_iv", "bid_iv", "ask_iv")),
    ]
    colour = alt.Color(
        "option_type", type="nominal", legend=None,
        scale=alt.Scale(domain=["call", "put"], range=[calls.colour, puts.colour]),
    )  # fmt: skip
    mark = alt.Y("mark_iv", type="quantitative", title="iv, %", scale=scale)
    layers: list[alt.Chart] = [
        rows.mark_rule(clip=True, opacity=0.45, strokeWidth=3).encode(
            x=x, y=alt.Y("bid_iv", type="quantitative", scale=scale, title="iv, %"), y2="ask_iv", color=colour
        ),
        rows.mark_line(clip=True, strokeWidth=2).encode(
            x=x, y=mark, color=colour,
            strokeDash=alt.StrokeDash(
                "option_type", type="nominal", legend=None,
                scale=alt.Scale(domain=["call", "put"], range=[calls.stroke, puts.stroke]),
            ),
        ),
        rows.mark_point(clip=True, filled=True, size=28, opacity=1).encode(
            x=x, y=mark, color=colour, tooltip=tooltip,
            shape=alt.Shape(
                "option_type", type="nominal", legend=None,
                scale=alt.Scale(domain=["call", "put"], range=["circle", "diamond"]),
            ),
        ),
    ]  # fmt: skip
    if underlying is not None:
        layers.insert(0, rows.mark_rule(color="var(--muted)", strokeDash=_DASHES[2]).encode(x=alt.datum(underlying)))
    return _spec([*layers], 190)


def curve(colour: str) -> Spec:
    """Return the iv at the money by expiry. Columns: `expiry_ms`, `mark_iv`, `strike`, `instrument`."""
    rows = _rows()
    x = alt.X(
        "expiry_ms", type="temporal", title="expiry", scale=alt.Scale(type="utc", padding=12), axis=_dates(_EXPIRIES)
    )
    y = alt.Y("mark_iv", type="quantitative", title="iv, %", scale=alt.Scale(zero=False))
    tooltip = [
        alt.Tooltip("expiry_text", type="nominal", title="expiry, UTC"),
        alt.Tooltip("mark_iv", type="quantitative", title="iv, %", format=".2f"),
        alt.Tooltip("instrument", type="nominal"),
    ]
    line = rows.mark_line(color=colour, strokeWidth=2).encode(x=x, y=y)
    points = rows.mark_point(color=colour, filled=True, opacity=1, size=55).encode(x=x, y=y, tooltip=tooltip)
    return _spec([line, points], _HEIGHT)


def cause_colour(cause: str) -> str:
    """Return the colour of gaps of a cause; of one that came with a later version, that of all others."""
    return f"var(--{cause}, var(--unknown))"


def _rows() -> alt.Chart:
    return alt.Chart(alt.NamedData(name="rows"))


def _time_x(column: str = "time_ms") -> alt.X:
    # Its extent is that of the numbers, which go over the whole axis. A domain of times that is stated gets lost in
    # Vega without `eval`, which the page's policy forbids.
    return alt.X(column, type="temporal", title=None, axis=_dates(_TIMES), scale=alt.Scale(type="utc", nice=False))


def _dates(form: dict[str, str]) -> alt.Axis:
    return alt.Axis(
        labelOverlap=True, labelFlush=True, labelSeparation=8, tickCount=_TIMES_APART, grid=False, format=form
    )


def _pointer(series: Sequence[Series]) -> alt.Chart:
    """Return a band a bucket, seen at the pointer only, that tells all values of the bucket."""
    pointed = alt.selection_point(
        name="pointed", fields=["time_ms"], on="pointerover", clear="pointerout", empty=False
    )
    values = (alt.Tooltip(one.column, type="quantitative", title=one.label, format=",.4~r") for one in series)
    band: alt.Chart = _rows().mark_rect(color="var(--ink)").encode(
        x=_time_x(), x2="until_ms",
        opacity=alt.when(pointed).then(alt.value(0.12)).otherwise(alt.value(0)),
        tooltip=[alt.Tooltip("time_text", type="nominal", title="UTC, from"), *values],
    )  # fmt: skip
    told: alt.Chart = band.add_params(pointed)
    return told


def _both_ways(column: str, unit: str) -> alt.Y:
    return alt.Y(
        column, type="quantitative", title=unit,
        axis=alt.Axis(labelExpr="format(abs(datum.value), abs(datum.value) < 1000 ? '~g' : '~s')"), scale=alt.Scale(),
    )  # fmt: skip


def _spec(layers: Sequence[alt.Chart], height: int) -> Spec:
    sized = alt.layer(*layers).properties(
        width="container", height=height, autosize=alt.AutoSizeParams(type="fit-x", contains="padding")
    )
    spec: Spec = sized.to_dict(validate=False)  # the tests draw each kind of chart; this takes half the time
    # A look of its own is the page's; the schema is a URL, and the page names none.
    return {key: value for key, value in spec.items() if key not in ("$schema", "config")}
