"""`make soak MINUTES=60`: everything at full chain, left alone, and then its graphs and one verdict.

A simulated Deribit with a thousand options, the recorder, the loader (into DATABASE_URL, or an embedded PostgreSQL),
and a Prometheus with the rules and the scrape configuration of `deploy/`. At the end the tape is checked and compared
with the database, and each panel of the dashboard is drawn from what Prometheus scraped, into a page that needs no
network. Needs Debian's `prometheus`.
"""

import argparse
import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import pairwise, product
from pathlib import Path
from typing import Any, NamedTuple

from analysis.report import charts
from analysis.report.content import Chart, Section, Table, Verdict, alone, extent, time_text
from analysis.report.page import render
from recorder.runtime.version import software
from tests.fix_monitoring import DEPLOY, ask, free_port, prometheus, replaced
from tests.fix_programs import Programs

INSTRUMENTS = 1000
DASHBOARD = DEPLOY / "grafana" / "dashboards" / "recording.json"
RULES = DEPLOY / "prometheus" / "rules.yml"
SCRAPE_S = 15  # as deploy/prometheus/prometheus.yml has it
MOST_POINTS = 240  # of a line
RATE_OVER = "1m"  # what Grafana takes for $__rate_interval at this pace
LOAD_PATIENCE_S = 600.0  # for what is left at the end
# By Grafana's name: what stands beside the axis, and how much of Grafana's unit that is
UNITS = {
    "cps": ("1/s", 1.0), "s": ("s", 1.0), "percentunit": ("%", 0.01), "bytes": ("MB", 1e6), "Bps": ("MB/s", 1e6),
    "short": ("number", 1.0),
}  # fmt: skip
# A line is told from the others by these; more than nine in a panel would be none that one can read.
LOOKS = [(f"var(--{colour})", dash) for dash, colour in product(range(3), ("one", "two", "three"))]
# What its own stop leaves
EXPECTED_GAPS = {"stopped"}


class Line(NamedTuple):
    """What Prometheus knows of one series of a panel."""

    label: str
    values: dict[int, float]  # by the second


class Soak(NamedTuple):
    """What was found."""

    sections: list[Section]
    verdict: Verdict


def main() -> int:
    """Run it; 0 only if all is well."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60.0, help="for how long (default: 60)")
    parser.add_argument("--out", type=Path, default=Path("soak.html"), help="the page (default: soak.html)")
    arguments = parser.parse_args()
    if shutil.which("prometheus") is None:
        parser.error("prometheus is not installed; on Debian: apt-get install prometheus")
    folder = Path(tempfile.mkdtemp(prefix="ticktape-soak-"))
    print(f"{arguments.minutes:g} min; logs, tape, and what Prometheus kept in {folder}", flush=True)
    programs = Programs(folder)
    try:
        found = _soak(folder, programs, arguments.minutes * 60)
    finally:
        programs.end_all()
    page = render(
        title="A soak of everything",
        told=f"{INSTRUMENTS:,} simulated options, recorded and loaded for {arguments.minutes:g} minutes.",
        verdict=found.verdict,
        sections=found.sections,
        made=f"Made {time_text(datetime.now(UTC))} UTC by {software()}. It needs no network.",
    )
    arguments.out.write_text(page, "utf-8")
    print("\n".join(found.verdict.lines))
    print(f"{arguments.out}: {found.verdict.words}")
    if found.verdict.holds:
        shutil.rmtree(folder, ignore_errors=True)
    return 0 if found.verdict.holds else 1


def _soak(folder: Path, programs: Programs, seconds: float) -> Soak:
    ports = {"recorder": free_port(), "loader": free_port()}
    config = replaced(
        (DEPLOY / "prometheus" / "prometheus.yml").read_text(),
        **{"1:9101": f"1:{ports['recorder']}", "1:9102": f"1:{ports['loader']}"},
    )
    tape = ("--data-dir", folder / "tape")
    database = {"DATABASE_URL": url} if (url := os.environ.get("DATABASE_URL")) else {}
    _, exchange = programs.simulate("--instruments", INSTRUMENTS)
    recorder = programs.start(
        "recorder", "record", *tape, "--deribit-ws-url", exchange, "--top-n-instruments", 0,
        "--metrics-port", ports["recorder"],
    )  # fmt: skip
    loader = programs.start("loader", "load", *tape, "--loader-metrics-port", ports["loader"], **database)
    with prometheus(folder / "prometheus", config, RULES.read_text()) as server:
        begun_s = int(time.time()) + SCRAPE_S
        time.sleep(seconds)
        ended_s = int(time.time())
        sections = [_section(server, name, some, begun_s, ended_s) for name, some in panels().items()]
        fired = {
            line.label for line in _lines(server, 'ALERTS{alertstate="firing"}', "{{alertname}}", begun_s, ended_s)
        }
    status = programs.run("recorder", "status", *tape, "--json", "--metrics-port", ports["recorder"],
                          "--loader-metrics-port", ports["loader"])  # fmt: skip
    checks = [("healthy at the end", status.process.returncode == 0)]
    checks.append(("the recorder stopped cleanly", recorder.stop() == 0))
    received = recorder.events("stopped")[-1]["messages"]
    checks.append(("the loader stopped cleanly", loader.stop() == 0))
    for what, *command in (
        ("all of it was loaded", "loader", "load", "--once"),
        ("every segment is whole", "recorder", "doctor"),
        ("complete, or told by gap rows", "analysis", "completeness"),
        ("the database equals the tape", "loader", "audit"),
    ):
        # A program of its own; an hour of a whole chain takes longer than a test may wait.
        done = programs.start(*command, *tape, **database)
        checks.append((what, done.process.wait(LOAD_PATIENCE_S) == 0))
    lost = _gap_causes(folder / "tape") - EXPECTED_GAPS
    checks.append((f"no gap but the stop's own{_named(lost)}", not lost))
    checks.append((f"no alert fired{_named(fired)}", not fired))
    holds = all(good for _, good in checks)
    lines = [f"{received:,} messages in {seconds / 60:g} minutes"]
    lines += [f"{'yes' if good else 'NO '}  {what}" for what, good in checks]
    return Soak(sections, Verdict(holds, "all is well" if holds else "NOT WELL", lines, of="Checks"))


def _named(found: set[str]) -> str:
    return f" (found: {', '.join(sorted(found))})" if found else ""


def _gap_causes(tape: Path) -> set[str]:
    from tests.oracle import tape_rows  # noqa: PLC0415 - heavy

    return {cause for (cause,) in tape_rows(tape, "data_gaps", ["cause"])}


# The graphs: each panel that shows something over time


def panels() -> dict[str, list[dict[str, Any]]]:
    """Return the panels of the dashboard by what they are about."""
    found: dict[str, list[dict[str, Any]]] = {"The recorder": [], "The loader": [], "Both": []}
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        if panel["type"] == "timeseries":
            asked = " ".join(target["expr"] for target in panel["targets"])
            about = [name for name in ("recorder", "loader") if f"{name}_" in asked]
            found[f"The {about[0]}" if len(about) == 1 else "Both"].append(panel)
    return found


def _section(server: str, heading: str, panels: Sequence[dict[str, Any]], begun_s: int, ended_s: int) -> Section:
    """Return a section with a chart a panel; where a panel has nothing to show it says so."""
    drawn, empty, keys, notes = [], [], [], []
    for panel in panels:
        lines = [
            line
            for target in panel["targets"]
            for line in _lines(server, target["expr"], target["legendFormat"], begun_s, ended_s)
        ]
        if not lines:
            empty.append(panel["title"])
            continue
        if more := lines[len(LOOKS) :]:
            notes.append(f"{panel['title']}: not drawn: {', '.join(line.label for line in more)}.")
        chart, series = _chart(panel, lines[: len(LOOKS)])
        drawn.append(chart)
        keys.append((panel["title"], ", ".join(f"{_look(one)} {one.label}" for one in series)))
    if empty:
        notes.append(f"Nothing to show: {', '.join(empty)}.")
    return Section(
        heading.lower().replace(" ", "-"), heading,
        "Each panel of the dashboard, from what Prometheus scraped.",
        charts=drawn, tables=[Table("What is drawn how", ("panel", "lines"), keys)], notes=notes,
    )  # fmt: skip


def _look(series: charts.Series) -> str:
    """Say how a line looks."""
    colour = {"one": "blue", "two": "orange", "three": "grey"}[series.colour[6:-1]]
    return f"{('solid', 'dashed', 'dotted')[series.dash]} {colour}:"


def _chart(panel: dict[str, Any], lines: Sequence[Line]) -> tuple[Chart, list[charts.Series]]:
    unit, size = UNITS[panel["fieldConfig"]["defaults"]["unit"]]
    times = sorted({at_s for line in lines for at_s in line.values})
    step_s = min((b - a for a, b in pairwise(times)), default=SCRAPE_S)
    columns: dict[str, list[Any]] = {"time_ms": [at_s * 1000 for at_s in times]}
    columns["until_ms"] = [(at_s + step_s) * 1000 for at_s in times]
    series = []
    for number, (line, (colour, dash)) in enumerate(zip(lines, LOOKS, strict=False)):
        columns[f"line_{number}"] = [line.values[at_s] / size if at_s in line.values else None for at_s in times]
        series.append(charts.Series(f"line_{number}", line.label, colour, dash))
    told = "; ".join(f"{one.label}: {extent(columns[one.column], unit)}" for one in series)
    points = any(alone(columns[one.column]) for one in series)
    chart = Chart(
        charts.lines(series, unit, low=True, points=points), columns,
        {"time_ms": "UTC, from"} | {one.column: f"{one.label}, {unit}" for one in series},
        f"{panel['title']} over time. {told}.",
        title=": ".join(filter(None, (panel["title"], panel.get("description")))),
    )  # fmt: skip
    return chart, series


def _lines(server: str, expression: str, legend: str, begun_s: int, ended_s: int) -> list[Line]:
    step_s = max(SCRAPE_S, (ended_s - begun_s) // MOST_POINTS)
    told = ask(
        f"{server}/api/v1/query_range", query=expression.replace("$__rate_interval", RATE_OVER),
        start=str(begun_s), end=str(max(ended_s, begun_s)), step=str(step_s),
    )  # fmt: skip
    if not told or told["status"] != "success":
        raise RuntimeError(f"Prometheus does not answer {expression}: {told}")
    return [
        Line(
            _label(legend, one["metric"]),
            # A quantile of nothing is not a number: a hole in the line.
            {int(at_s): float(value) for at_s, value in one["values"] if value != "NaN"},
        )
        for one in told["data"]["result"]
    ]


def _label(legend: str, labels: dict[str, str]) -> str:
    """Put a series' labels into the panel's legend, as Grafana does."""
    return re.sub(r"{{(\w+)}}", lambda found: labels.get(found[1], ""), legend)


if __name__ == "__main__":
    sys.exit(main())
