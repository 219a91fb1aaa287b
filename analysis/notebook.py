"""A notebook over DATA_DIR: what is on the tape, in tables, charts, and words. `make notebook` opens it."""

import marimo

__generated_with = "0.25.2"
app = marimo.App(width="medium", app_title="ticktape")

with app.setup:
    import html
    import os
    from datetime import timedelta
    from typing import Any

    import altair as alt
    import marimo as mo

    import analysis
    from analysis import completeness, findings
    from analysis.errors import NoTape
    from analysis.queries import ready_queries
    from analysis.settings import AnalysisSettings, archive_of
    from analysis.span import Span
    from analysis.tape import Tape
    from recorder.runtime import settings

    # Both are told apart on white and on black, and by who sees no red or no green.
    CALLS_AND_PUTS = alt.Color("option_type:N", title=None, scale=alt.Scale(range=["#2b8cbe", "#e6842a"]))
    MOST_ROWS = 1_000  # of an answer that is shown
    MOST_BARS = 240


@app.function(hide_code=True)
def framed(chart: alt.LayerChart) -> Any:
    """Make a chart as wide as the page, and of no colour of its own where the page is light or dark."""
    return (
        chart.properties(width="container", height=260)
        .configure(background="transparent")
        .configure_axis(gridOpacity=0.2)
        .configure_view(strokeOpacity=0)
        .configure_legend(orient="top")
    )


@app.cell(hide_code=True)
def _():
    mo.md("""
    # The tape

    Every row that the recorder has flushed is here, about a second after the exchange sent it: live, sealed, and
    archived rows are one table. All cells ask the same moment of the tape. **Refresh** moves it to now; with an
    interval it does so by itself. Change what you like: the tape is only read.
    """)
    return


@app.cell(hide_code=True)
def _():
    refresh = mo.ui.refresh(options=["2s", "10s", "1m"], label="Refresh")
    refresh
    return (refresh,)


@app.cell
def _():
    _settings = settings.load(AnalysisSettings, {}, os.environ)
    data_dir, archive = _settings.data_dir, archive_of(_settings)
    try:
        con = analysis.open(data_dir, archive=archive)
    except NoTape as no_tape:
        mo.stop(True, mo.callout(mo.md(f"{no_tape}. Then run this cell again."), kind="warn"))
    return archive, con, data_dir


@app.cell
def _(con, refresh):
    refresh.value  # so this cell runs when the button is pressed, and after it what asks the tape
    analysis.refresh(con)
    tape = con
    return (tape,)


@app.cell
def _(tape):
    overview = mo.sql(
        f"""
        SELECT 'quotes' AS kind, count(*) AS rows, count(DISTINCT instrument) AS options,
            min(received_at) AS first, max(received_at) AS last
        FROM quotes
        UNION ALL
        SELECT 'tickers', count(*), count(DISTINCT instrument), min(received_at), max(received_at) FROM tickers
        UNION ALL
        SELECT 'trades', count(*), count(DISTINCT instrument), min(received_at), max(received_at) FROM trades
        ORDER BY kind
        """,
        output=False,
        engine=tape,
    )
    return (overview,)


@app.cell(hide_code=True)
def _(data_dir, overview):
    newest = overview["last"].max()
    _counts = [f"**{_one['rows']:,}** {_one['kind']} of {_one['options']:,} options" for _one in overview.to_dicts()]
    _from = overview["first"].min()
    mo.md(
        f"`{data_dir}` holds {_counts[0]}, {_counts[1]}, and {_counts[2]}, received from {_from:%Y-%m-%d %H:%M:%S} to"
        f" {newest:%Y-%m-%d %H:%M:%S} UTC."
        if newest
        else f"There is nothing in `{data_dir}` yet. Rows appear here when a recorder runs: `make record`."
    )
    return (newest,)


@app.cell(hide_code=True)
def _():
    mo.md("""
    ## Tables

    `quotes` are tops of books, `tickers` marks, greeks, and ivs, `trades` what was traded: of all markets that are on
    the tape, while `eth_option_quotes` and so on are of one. `options` tells what an option is, `gaps` what was
    missed. The rest are ready queries.
    """)
    return


@app.cell
def _(tape):
    tables = mo.sql(
        f"""
        SELECT table_name AS name, string_agg(column_name, ', ' ORDER BY column_index) AS columns
        FROM duckdb_columns()
        WHERE NOT internal
        GROUP BY table_name
        ORDER BY table_name
        """,
        engine=tape,
    )
    return


@app.cell(hide_code=True)
def _():
    mo.md("""
    ## Ask something

    This is a cell of SQL, DuckDB's. The newest trades, to start from:
    """)
    return


@app.cell
def _(tape):
    newest_trades = mo.sql(
        f"""
        SELECT timestamp, instrument, side, price, size, iv
        FROM trades
        ORDER BY timestamp DESC, trade_seq DESC
        LIMIT 10
        """,
        engine=tape,
    )
    return


@app.cell(hide_code=True)
def _():
    mo.md("""
    ## Ready queries

    They are views, so that a statement can go on from one: `SELECT * FROM smile WHERE open_interest > 100`.
    """)
    return


@app.cell(hide_code=True)
def _():
    query = mo.ui.dropdown({_one.name: _one for _one in ready_queries()}, value="most_active", label="Query")
    query
    return (query,)


@app.cell(hide_code=True)
def _(query):
    mo.md(query.value.sentence)
    return


@app.cell
def _(query, tape):
    answer = mo.sql(
        f"""
        SELECT * FROM {query.value.name} LIMIT {MOST_ROWS}
        """,
        engine=tape,
    )
    return


@app.cell(hide_code=True)
def _():
    mo.md("""
    ## Bars of an option

    The mid price, minute by minute: a line from its lowest to its highest, a box from its first to its last, filled
    where it rose.
    """)
    return


@app.cell(hide_code=True)
def _():
    chosen_option, choose_option = mo.state(None)  # a refresh must not forget what was chosen
    chosen_expiry, choose_expiry = mo.state(None)
    return choose_expiry, choose_option, chosen_expiry, chosen_option


@app.cell(hide_code=True)
def _(choose_option, chosen_option, tape):
    _quoted = tape.sql(
        "SELECT instrument FROM quotes GROUP BY instrument ORDER BY count(*) DESC, instrument"
    ).fetchall()
    _names = [_name for (_name,) in _quoted]
    _chosen = chosen_option() if chosen_option() in _names else next(iter(_names), None)
    option = mo.ui.dropdown(_names, value=_chosen, label="Option", searchable=True, on_change=choose_option)
    option
    return (option,)


@app.cell
def _(option, tape):
    bars_of_option = mo.sql(
        f"""
        SELECT * FROM bars WHERE instrument = '{option.value}' ORDER BY minute DESC LIMIT {MOST_BARS}
        """,
        output=False,
        engine=tape,
    )
    return (bars_of_option,)


@app.cell(hide_code=True)
def _(bars_of_option):
    _label = "utcFormat(datum.value, utchours(datum.value) || utcminutes(datum.value) ? '%H:%M' : '%d %b')"
    _time = (
        alt.X("minute:T", title="UTC").scale(type="utc").axis(tickMinStep=60_000, labelExpr=_label, labelSeparation=8)
    )
    _rose = alt.condition("datum.close >= datum.open", alt.value(0.9), alt.value(0.15))
    _base = alt.Chart(bars_of_option).encode(_time, tooltip=bars_of_option.columns)
    _lines = _base.mark_rule(color="#2b8cbe").encode(
        alt.Y("low:Q", title="mid price").scale(zero=False), alt.Y2("high:Q")
    )
    _boxes = _base.mark_bar(color="#2b8cbe", stroke="#2b8cbe", size=5).encode(
        alt.Y("open:Q"), alt.Y2("close:Q"), fillOpacity=_rose
    )
    framed(_lines + _boxes) if len(bars_of_option) else mo.md("*No quotes yet.*")
    return


@app.cell(hide_code=True)
def _():
    mo.md("""
    ## The smile

    The newest iv of each option of an expiry, in percent, by strike: the mark as a line, from bid to ask as a bar
    where there are both. The upright line is the price of the underlying.
    """)
    return


@app.cell(hide_code=True)
def _(choose_expiry, chosen_expiry, tape):
    _told = tape.sql(
        "SELECT strftime(expiry, '%Y-%m-%d %H:%M') AS expires, count(*) FROM smile GROUP BY expires ORDER BY expires"
    ).fetchall()
    _options = dict(_told)
    _most = max(_options, key=_options.__getitem__, default=None)
    _chosen = chosen_expiry() if chosen_expiry() in _options else _most
    expiry = mo.ui.dropdown(list(_options), value=_chosen, label="Expiry (UTC)", on_change=choose_expiry)
    expiry
    return (expiry,)


@app.cell
def _(expiry, tape):
    smile_of_expiry = mo.sql(
        f"""
        SELECT * REPLACE (nullif(bid_iv, 0) AS bid_iv, nullif(ask_iv, 0) AS ask_iv) -- 0: nobody bids, or asks
        FROM smile
        WHERE strftime(expiry, '%Y-%m-%d %H:%M') = '{expiry.value}'
        ORDER BY strike
        """,
        output=False,
        engine=tape,
    )
    return (smile_of_expiry,)


@app.cell(hide_code=True)
def _(smile_of_expiry):
    _base = alt.Chart(smile_of_expiry).encode(
        alt.X("strike:Q", title="strike").scale(zero=False), CALLS_AND_PUTS, tooltip=smile_of_expiry.columns
    )
    _marks = _base.mark_line(point=True).encode(alt.Y("mark_iv:Q", title="iv (percent)").scale(zero=False))
    _quotes = _base.mark_rule(strokeWidth=5, opacity=0.35).encode(alt.Y("bid_iv:Q"), alt.Y2("ask_iv:Q"))
    _price = (
        alt.Chart(smile_of_expiry).mark_rule(strokeDash=[4, 4], color="#888888").encode(x="max(underlying_price):Q")
    )
    framed(_quotes + _marks + _price) if len(smile_of_expiry) else mo.md("*No tickers yet.*")
    return


@app.cell(hide_code=True)
def _():
    mo.md("""
    ## Gaps

    Every interval in which rows may be missing is a gap with a cause. Of quotes and tickers what was missed is lost;
    trades are fetched from the exchange's history, and the gap says what became of them.
    """)
    return


@app.cell
def _(tape):
    gaps_by_cause = mo.sql(
        f"""
        SELECT cause, stream, status, count(*) AS gaps, min(started_at) AS first, max(started_at) AS last
        FROM gaps
        GROUP BY cause, stream, status
        ORDER BY cause, stream, status
        """,
        engine=tape,
    )
    return


@app.cell(hide_code=True)
def _():
    mo.md("""
    ## Completeness

    What the numbers on the tape prove: that every book's chain and every option's trades are whole, or where they are
    not, and whether a gap tells it. Every byte of the time that you choose is read for it.
    """)
    return


@app.cell(hide_code=True)
def _():
    how_far = mo.ui.dropdown(
        {
            "the newest 10 minutes": timedelta(minutes=10),
            "the newest hour": timedelta(hours=1),
            "the newest day": timedelta(days=1),
            "all of it": None,
        },
        value="the newest 10 minutes",
        label="Of",
        allow_select_none=False,
    )
    how_far
    return (how_far,)


@app.cell(hide_code=True)
def _(archive, data_dir, how_far, newest):
    mo.stop(newest is None, mo.md("*Nothing to check yet.*"))
    _found = completeness.check(Tape.at(data_dir, archive), Span(how_far.value and newest - how_far.value))
    _lines = html.escape("\n".join(findings.as_lines(_found, None)))
    mo.Html(f"<pre style='white-space: pre-wrap; font-size: 0.8rem'>{_lines}</pre>")
    return


if __name__ == "__main__":
    app.run()
