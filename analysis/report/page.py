"""The page as HTML: sections, tables, and charts in one file that asks no network for anything.

What comes from the tape is text and never markup: it is escaped where it stands in HTML, and in a block of JSON
otherwise, from which the page's script takes it as text. A policy in the page's head lets no other script run, and no
address be asked, whatever a name holds.
"""

import base64
import hashlib
import json
from collections.abc import Iterable, Sequence
from functools import cache
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

import altair as alt
import vl_convert

from analysis.report.charts import Series
from analysis.report.content import Chart, Section, Table, Verdict

_MARKS = {True: ("holds", "✓"), False: ("fails", "✗"), None: ("unknown", "?")}


def render(*, title: str, told: str, verdict: Verdict, sections: Sequence[Section], made: str) -> str:
    """Return the page.

    Args:
        title: its heading.
        told: a sentence on what the tape is.
        verdict: whether the tape is complete.
        sections: in their order.
        made: when, and by what.
    """
    template = Template(files("analysis.report").joinpath("page.html").read_text("utf-8"))
    bundle, script = _chart_scripts(), files("analysis.report").joinpath("page.js").read_text("utf-8")
    drawn = [(section, number, chart) for section in sections for number, chart in enumerate(section.charts)]
    return template.substitute(
        policy=" ".join(f"'sha256-{_digest(code)}'" for code in (bundle, script)),
        title=escape(title),
        told=escape(told),
        verdict=_verdict(verdict),
        contents="".join(f'<li><a href="#{one.name}">{escape(one.heading)}</a></li>' for one in sections),
        sections="".join(_section(section) for section in sections),
        made=escape(made),
        charts=_json([_chart_data(_id(section, number), chart) for section, number, chart in drawn]),
        bundle=bundle,
        script=script,
    )


@cache
def _chart_scripts() -> str:
    """Return Vega, Vega-Lite, and Vega-Embed, as one script."""
    version = ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])
    bundle = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=version)
    return bundle.replace("</script", "<\\/script")


def _verdict(verdict: Verdict) -> str:
    name, mark = _MARKS[verdict.holds]
    lines = "\n".join(escape(line) for line in verdict.lines)
    details = f"<details><summary>What was checked</summary><pre>{lines}</pre></details>" if lines else ""
    return (
        f'<div class="verdict {name}"><p><span class="mark" aria-hidden="true">{mark}</span> '
        f"{escape(verdict.of)}: <strong>{escape(verdict.words)}</strong></p>{details}</div>"
    )


def _section(section: Section) -> str:
    inner = [_table(table) for table in section.tables]
    if section.legend:
        inner.append(f'<ul class="legend">{"".join(_key(one) for one in section.legend)}</ul>')
    if section.charts:
        figures = "".join(_figure(_id(section, number), chart) for number, chart in enumerate(section.charts))
        inner.append(f'<div class="{"charts small" if section.small else "charts"}">{figures}</div>')
    if not section.charts and not section.tables:
        inner.append(f'<p class="nothing">{escape(section.nothing)}</p>')
    inner += [f'<p class="note">{escape(note)}</p>' for note in section.notes]
    if section.charts:
        inner.append(
            f'<details class="numbers" data-section="{section.name}"><summary>The numbers of '
            f"{'these charts' if len(section.charts) > 1 else 'this chart'}</summary></details>"
        )
    return (
        f'<section id="{section.name}" aria-labelledby="{section.name}-heading">'
        f'<h2 id="{section.name}-heading">{escape(section.heading)}</h2><p>{escape(section.reading)}</p>'
        f"{''.join(inner)}</section>\n"
    )


def _figure(name: str, chart: Chart) -> str:
    title = f"<h3>{escape(chart.title)}</h3>" if chart.title else ""
    # The description is the chart's for who does not see it; the marks by themselves would be noise.
    return (
        f'<figure>{title}<div class="chart" id="{name}" role="img" aria-label="{escape(chart.description)}"></div>'
        "</figure>"
    )


def _key(series: Series) -> str:
    kind = "block" if series.block else f"line {('solid', 'dashed', 'dotted')[series.dash]}"
    return (
        f'<li><span class="{kind}" style="color: {escape(series.colour)}" aria-hidden="true"></span>'
        f"{escape(series.label)}</li>"
    )


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in table.header)
    body = "".join(f"<tr>{_cells(row)}</tr>" for row in table.rows)
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{escape(table.caption)}"><table>'
        f"<caption>{escape(table.caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _cells(row: Iterable[str | int]) -> str:
    return "".join(
        f'<td class="number">{cell:,}</td>' if isinstance(cell, int) else f"<td>{escape(cell)}</td>" for cell in row
    )


def _chart_data(name: str, chart: Chart) -> dict[str, Any]:
    return {
        "id": name, "title": chart.title, "spec": chart.spec, "columns": chart.columns, "labels": chart.labels,
        "description": chart.description,
    }  # fmt: skip


def _id(section: Section, number: int) -> str:
    return f"{section.name}-{number}"


def _json(value: Any) -> str:
    """Return JSON that no HTML parser ends early."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _digest(code: str) -> str:
    return base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
