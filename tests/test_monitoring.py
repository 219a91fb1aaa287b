"""What watches the programs: rules, dashboards, runbook, and the list of metrics, against real programs."""

import ast
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

import analysis
from recorder.runtime.settings import KNOWN_NAMES
from tests import soak
from tests.fix_monitoring import DEPLOY, ask, free_port, prometheus, replaced
from tests.fix_postgres import fresh_database, load_once, query
from tests.fix_programs import REPOSITORY, Programs, until

RULES = DEPLOY / "prometheus" / "rules.yml"
DASHBOARDS = sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))
ALERTS = {rule["alert"]: rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]}

# Panels that may show nothing although all is well.
MAY_BE_EMPTY = {
    "Disk left": "the rate is known after 20 minutes",
    "Gaps": "nothing was missed",
    "Refused segments": "nothing was refused",
}
# What prometheus_client tells of every process; not in our own code.
OF_EVERY_PROCESS = {
    "process_cpu_seconds_total", "process_max_fds", "process_open_fds", "process_resident_memory_bytes",
    "process_start_time_seconds", "process_virtual_memory_bytes",
}  # fmt: skip

Metric = tuple[str, str]  # its type, and its label


@dataclass
class Watched:
    """A recorder and a loader at work, and a Prometheus that scrapes both."""

    prometheus: str
    tape: Path
    database: str
    ports: dict[str, int]


@pytest.fixture(scope="module")
def watched(
    binaries: None,  # noqa: ARG001 - it skips
    postgres: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Watched]:
    """Yield what was at work for some segments."""
    folder = tmp_path_factory.mktemp("watched")
    programs = Programs(folder)
    ports = {"recorder": free_port(), "loader": free_port()}
    config = replaced(
        (DEPLOY / "prometheus" / "prometheus.yml").read_text(),
        **{"interval: 15s": "interval: 1s", "1:9101": f"1:{ports['recorder']}", "1:9102": f"1:{ports['loader']}"},
    )
    databases = fresh_database(postgres)
    database = next(databases)
    nothing = dict.fromkeys(KNOWN_NAMES, "")
    tape = ("--data-dir", folder / "tape")
    try:
        _, url = programs.simulate("--instruments", 30, "--rate", 300)
        programs.start(
            "recorder", "record", *tape, "--deribit-ws-url", url, "--metrics-port", ports["recorder"],
            "--segment-max-age-sec", 1, **nothing,
        )  # fmt: skip
        programs.start(
            "loader", "load", *tape, "--loader-metrics-port", ports["loader"], "--archive-url", "off",
            **nothing | {"DATABASE_URL": database},
        )  # fmt: skip
        with prometheus(folder / "prometheus", config, RULES.read_text()) as server:
            until(lambda: value(server, "loader_segments_loaded_total > 20"), "segments in the database")
            until(lambda: query(database, "SELECT 1 FROM eth_option_trades LIMIT 1"), "a trade in the database")
            yield Watched(server, folder / "tape", database, ports)
    finally:
        programs.end_all()
        next(databases, None)  # drops it


def value(server: str, expression: str) -> list[Any]:
    """Return what Prometheus answers."""
    told = ask(f"{server}/api/v1/query", query=expression)
    assert told["status"] == "success", f"{expression}: {told}"
    result: list[Any] = told["data"]["result"]
    return result


def panels(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(path.read_text())["panels"]
    return found


def expressions() -> dict[str, str]:
    """Return every PromQL of rules and dashboards, by where it is."""
    found = {name: rule["expr"] for name, rule in ALERTS.items()}
    for path in DASHBOARDS:
        for panel in panels(path):
            for target in panel["targets"]:
                if "expr" in target:
                    found[f"{panel['title']} ({path.stem} {panel['id']} {target['refId']})"] = target["expr"]
    return found


def run(*command: str | Path, code: int = 0) -> str:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


# What Prometheus and Alertmanager say of their files


@pytest.mark.usefixtures("binaries")
def test_promtool_and_amtool_take_the_files() -> None:
    """Syntax of both configurations, of the rules, and of the routes."""
    for config in ("prometheus.yml", "prometheus.compose.yml"):
        assert f"{len(ALERTS)} rules found" in run("promtool", "check", "config", DEPLOY / "prometheus" / config)
    assert "SUCCESS" in run("amtool", "check-config", DEPLOY / "alertmanager" / "alertmanager.yml")


@pytest.mark.usefixtures("binaries")
@pytest.mark.parametrize(("severity", "receivers"), [("critical", "pagerduty,mail"), ("warning", "mail")])
def test_who_is_told(severity: str, receivers: str) -> None:
    """What is critical pages and is mailed; a warning is mailed."""
    config = DEPLOY / "alertmanager" / "alertmanager.yml"
    told = run("amtool", "config", "routes", "test", f"--config.file={config}", f"severity={severity}")

    assert told.splitlines()[0] == receivers


@pytest.mark.usefixtures("binaries")
def test_every_alert_fires_and_resolves_in_a_test() -> None:
    """Each has a case in which it is quiet, fires, and is quiet again; promtool runs them all."""
    tests = DEPLOY / "prometheus" / "tests.yml"
    stories: dict[str, set[str]] = {}
    for case in yaml.safe_load(tests.read_text())["tests"]:
        steps = case["alert_rule_test"]
        story = "".join("!" if step.get("exp_alerts") else "." for step in steps)
        stories.setdefault(steps[0]["alertname"], set()).add(story)

    assert {name for name, told in stories.items() if ".!." in told} == set(ALERTS)
    assert "SUCCESS" in run("promtool", "test", "rules", tests)


@pytest.mark.usefixtures("binaries")
def test_a_rule_that_would_not_fire_fails_its_test(tmp_path: Path) -> None:
    """The cases can fail: each alert that waits ten times as long is missed by its own."""
    shutil.copy(DEPLOY / "prometheus" / "tests.yml", tmp_path)
    waiting = re.sub(r"for: (\d+)m", r"for: \g<1>0m", RULES.read_text())
    (tmp_path / "rules.yml").write_text(waiting)
    told = run("promtool", "test", "rules", tmp_path / "tests.yml", code=1)

    assert {name for name, rule in ALERTS.items() if "for" in rule} == set(re.findall(r"alertname: (\w+)", told))


def test_in_containers_only_the_hosts_are_others() -> None:
    """The two configurations of Prometheus say the same."""
    here, there = (
        re.sub(r"^#.*\n", "", (DEPLOY / "prometheus" / name).read_text(), flags=re.MULTILINE)
        for name in ("prometheus.yml", "prometheus.compose.yml")
    )

    assert re.sub(r"127\.0\.0\.1:", "HOST:", here) == re.sub(r"(recorder|loader|alertmanager):(?=\d)", "HOST:", there)


def test_no_secret_and_no_address_that_works_is_in_the_files() -> None:
    """Passwords and keys are read from files or from the environment; hosts are placeholders."""
    mail = (DEPLOY / "alertmanager" / "alertmanager.yml").read_text()
    sources = (DEPLOY / "grafana" / "provisioning" / "datasources" / "ticktape.yml").read_text()

    assert not re.findall(r"(?:password|key|token|secret)s?: .*", mail)
    assert set(re.findall(r"example\.(\w+)", mail)) == {"invalid"}
    assert re.findall(r"(?:password|url|user): (.)", sources) == ["$"] * 4


# Runbook


def test_every_alert_has_a_section_in_the_runbook() -> None:
    """Under its own name, where its address points; and no section is of an alert that is no more."""
    text = (REPOSITORY / "docs" / "runbook.md").read_text()
    sections = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL))

    assert set(sections) == set(ALERTS)
    for name, rule in ALERTS.items():
        assert rule["annotations"]["runbook_url"] == f"docs/runbook.md#{name.lower()}"
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert re.fullmatch(r"[A-Z][^.]*\.", re.sub(r"{{.*?}}", "5s", rule["annotations"]["summary"])), name
        for part in ("Means", "Lost meanwhile", "Look at", "Do"):
            assert f"**{part}:**" in sections[name], f"{name}: {part}"
        assert "```console" in sections[name], name


def test_the_runbook_has_only_commands_that_there_are() -> None:
    """Every make target and every command of the programs in it exists."""
    text = (REPOSITORY / "docs" / "runbook.md").read_text()
    makefile = (REPOSITORY / "Makefile").read_text()
    programs = set(re.findall(r"-m (recorder|loader|analysis) (\w+)", text))

    for target in set(re.findall(r"(?:\$ |`|&& )make ([a-z]+)", text)):
        assert f"\n{target}:" in makefile, target
    assert programs
    for program, command in programs:
        assert f"python -m {program} {command}" in (REPOSITORY / "README.md").read_text()


def test_the_queries_of_the_runbook_are_answered(watched: Watched) -> None:
    """Each is one that the tape takes."""
    asked = re.findall(r'make sql Q="(.*?)"', (REPOSITORY / "docs" / "runbook.md").read_text())

    assert len(asked) > 3
    with analysis.open(watched.tape) as tape:
        for statement in asked:
            tape.sql(statement).fetchall()


# Metrics


def table_of_metrics() -> dict[str, Metric]:
    """Return what docs/operations.md says that there is."""
    text = (REPOSITORY / "docs" / "operations.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| (?:`(\w+)`)? ?\| \S.* \|$", text, re.MULTILINE)
    assert len(rows) == len({name for name, _, _ in rows})
    return {name: (kind, label) for name, kind, label in rows}


def metrics_of(program: str) -> dict[str, Metric]:
    """Return what the source of a program exports, also what it does only now and then."""
    found = {f"{program}_build_info": ("gauge", "version")}
    for node in ast.walk(ast.parse((REPOSITORY / program / "metrics.py").read_text())):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
            continue
        kind, arguments = node.func.id.lower(), [str(arg.value) for arg in node.args if isinstance(arg, ast.Constant)]
        if kind in ("counter", "gauge", "histogram"):
            name, label = arguments[0], arguments[2] if len(arguments) > 2 else ""
            found[f"{name}_total" if kind == "counter" else name] = (kind, label)
    return found


def exported() -> dict[str, Metric]:
    return metrics_of("recorder") | metrics_of("loader")


def test_the_table_of_metrics_is_what_the_programs_export() -> None:
    """Name, type, and label of each, both ways."""
    told = table_of_metrics()

    assert {name: what for name, what in told.items() if name not in OF_EVERY_PROCESS} == exported()
    assert told.keys() >= OF_EVERY_PROCESS


def test_rules_and_dashboards_use_metrics_that_are_exported() -> None:
    """No panel and no alert waits for a name that nobody tells."""
    known = set(table_of_metrics()) | {"up"}
    known |= {f"{name}_{part}" for name, (kind, _) in exported().items() if kind == "histogram"
              for part in ("bucket", "sum", "count")}  # fmt: skip
    for where, expression in expressions().items():
        used = set(re.findall(r"\b(?:recorder|loader|process)_\w+|\bup\b", expression))
        assert used, where
        assert used <= known, where


def test_the_programs_tell_what_their_source_says(watched: Watched) -> None:
    """What is scraped has the names, types, and labels of the table."""
    told = table_of_metrics()
    for program, port in watched.ports.items():
        found: dict[str, Metric] = {}
        for family in text_string_to_metric_families(ask(f"http://127.0.0.1:{port}/metrics")):
            if family.name.endswith("_created"):  # prometheus_client's own, of each histogram
                continue
            labels = {label for sample in family.samples for label in sample.labels} - {"le"}
            name = f"{family.name}_total" if family.type == "counter" else family.name
            found[name] = (family.type, "".join(labels))
        ours = {name: told[name] for name in set(metrics_of(program)) | OF_EVERY_PROCESS}
        ours.pop("recorder_disk_left_seconds", None)  # known after 20 minutes
        found.pop("recorder_disk_left_seconds", None)

        assert found == ours


# Dashboards


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_a_dashboard_is_one_that_grafana_takes(path: Path) -> None:
    """Unique ids and titles of targets, panels that do not overlap, and data sources that are provisioned."""
    dashboard = json.loads(path.read_text())
    provisioned = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/ticktape.yml").read_text())
    sources = [{"type": one["type"], "uid": one["uid"]} for one in provisioned["datasources"]]
    taken: set[tuple[int, int]] = set()

    assert re.fullmatch(r"[a-zA-Z0-9_-]{1,40}", dashboard["uid"])
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    for panel in dashboard["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert set(at) == {"x", "y", "w", "h"}
        assert at["x"] + at["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
        assert panel["type"] in {"stat", "timeseries", "table", "trend"}
        assert panel["datasource"] in sources
        assert set(panel["fieldConfig"]) == {"defaults", "overrides"}
        refs = [target["refId"] for target in panel["targets"]]
        assert refs
        assert len(set(refs)) == len(refs)
        for target in panel["targets"]:
            assert ("expr" in target) == (panel["datasource"]["type"] == "prometheus")
            assert ("rawSql" in target) != ("expr" in target)
    for variable in dashboard.get("templating", {}).get("list", []):
        assert variable["datasource"] in sources
    assert len({json.loads(other.read_text())["uid"] for other in DASHBOARDS}) == len(DASHBOARDS)


def test_every_panel_and_every_rule_is_answered(watched: Watched) -> None:
    """Prometheus takes each expression; each panel shows something, but those that have a reason not to."""
    asked = expressions()

    assert len(asked) > 50
    for where, expression in asked.items():
        found = value(watched.prometheus, expression.replace("$__rate_interval", "30s"))
        if where in ALERTS:
            assert not found, f"{where} would fire though all is well"
        else:
            assert found or where.split(" (")[0] in MAY_BE_EMPTY, where


def test_the_soak_can_draw_every_panel() -> None:
    """Each one over time has a place on its page, a unit that it knows, and no more queries than it has looks."""
    drawn = [panel for about in soak.panels().values() for panel in about]

    assert {panel["id"] for panel in drawn} == {
        panel["id"] for panel in panels(soak.DASHBOARD) if panel["type"] == "timeseries"
    }
    assert {panel["fieldConfig"]["defaults"]["unit"] for panel in drawn} <= set(soak.UNITS)
    assert max(len(panel["targets"]) for panel in drawn) <= len(soak.LOOKS)
    colours = re.findall(r"(--\w+):", (REPOSITORY / "analysis" / "report" / "page.html").read_text())
    assert {colour for colour, _ in soak.LOOKS} <= {f"var({name})" for name in colours}


def as_grafana_sends(statement: str, variables: dict[str, str]) -> str:
    """Put in what Grafana does on plain PostgreSQL, for the last quarter of an hour."""
    now = datetime.now(UTC)
    start, end = (f"'{at:%Y-%m-%dT%H:%M:%SZ}'" for at in (now - timedelta(minutes=15), now + timedelta(seconds=1)))
    for name, text in variables.items():
        statement = statement.replace(f"${{{name}}}", text)
    statement = statement.replace("$__timeFrom()", start).replace("$__timeTo()", end)
    statement = re.sub(r"\$__timeFilter\((\w+)\)", rf"\1 BETWEEN {start} AND {end}", statement)
    statement = re.sub(
        r"\$__timeGroupAlias\((\w+), \$__interval\)", r'floor(extract(epoch FROM \1) / 60) * 60 AS "time"', statement
    )
    assert "$" not in statement, statement
    return statement.replace("%", "%%")  # psycopg's own sign


def test_every_query_of_a_dashboard_is_answered_by_postgresql(watched: Watched) -> None:
    """Its variables find something, and each panel shows something, but those that have a reason not to."""
    ask_all(watched.database)


def test_every_query_of_a_dashboard_is_answered_by_timescaledb(watched: Watched, timescale_database: str) -> None:
    """So it is on the server that the dashboard is for."""
    load_once(watched.tape, timescale_database)
    ask_all(timescale_database)


def ask_all(database: str) -> None:
    """Ask a database every query of every dashboard."""
    asked = 0
    for path in DASHBOARDS:
        dashboard = json.loads(path.read_text())
        variables: dict[str, str] = {}
        for variable in dashboard.get("templating", {}).get("list", []):
            found = query(database, as_grafana_sends(variable["query"], variables))
            assert found, variable["name"]
            variables[variable["name"]] = str(found[0][0])
        for panel in dashboard["panels"]:
            for target in (target for target in panel["targets"] if "rawSql" in target):
                asked += 1
                rows = query(database, as_grafana_sends(target["rawSql"], variables))
                assert any(value is not None for row in rows for value in row) or panel["title"] in MAY_BE_EMPTY, (
                    panel["title"]
                )
                if panel["type"] == "trend":
                    assert len(rows) > 1, panel["title"]
                    assert [row[0] for row in rows] == sorted({row[0] for row in rows}), "a trend needs x to ascend"
    assert asked >= 10
