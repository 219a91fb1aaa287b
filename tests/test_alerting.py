"""Alerts as a person gets them: real programs in trouble, real Prometheus, real Alertmanager, and who is told."""

import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.fix_archive import flip_a_bit
from tests.fix_monitoring import (
    DEPLOY,
    MailServer,
    PagerDuty,
    alertmanager,
    ask,
    free_port,
    prometheus,
    replaced,
    serving,
)  # fmt: skip
from tests.fix_postgres import quotes, record
from tests.fix_programs import Program, Programs, until

PASSWORD, ROUTING_KEY = "the right password", "the right routing key"
RULES = DEPLOY / "prometheus" / "rules.yml"


def hurried(rules: str) -> str:
    """Return the rules with a second for each minute: what to wait for, and what to look back on."""
    text = re.sub(r"\b(\d+)m\b", r"\1s", rules)
    assert text != rules
    return text


@dataclass
class Watch:
    """Who is told, and of what."""

    prometheus: str
    mail: MailServer
    pager: PagerDuty
    ports: dict[str, int]

    def mailed(self, alert: str) -> str:
        """Return the subject of the newest mail about an alert."""
        return next((mail["Subject"] for mail in reversed(self.mail.mails) if alert in mail["Subject"]), "")

    def paged(self, alert: str) -> str:
        """Return what PagerDuty was told last of an alert: trigger, or resolve."""
        told = ""
        keys = {event["dedup_key"] for event in self.pager.events if event["payload"]["summary"] == summary(alert)}
        for event in self.pager.events:
            if event["dedup_key"] in keys:
                told = event["event_action"]
        return told


@pytest.fixture
def watch(binaries: None, tmp_path: Path) -> Iterator[Watch]:  # noqa: ARG001 - it skips
    """Yield everything that tells, with the repository's files, made fast."""
    mail, pager = MailServer("ticktape@example.invalid", PASSWORD), PagerDuty()
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    (secrets / "smtp_password").write_text(PASSWORD)
    (secrets / "pagerduty_routing_key").write_text(ROUTING_KEY)
    to_whom = replaced(
        (DEPLOY / "alertmanager" / "alertmanager.yml").read_text(),
        **{
            "smtp.example.invalid:587": f"127.0.0.1:{mail.server_address[1]}\n  smtp_require_tls: false\n"
            f"  pagerduty_url: {pager.url}",
            "/etc/alertmanager/secrets": str(secrets),
            "group_wait: 30s": "group_wait: 0s",
            "group_interval: 5m": "group_interval: 1s",
        },
    )
    ports = {"recorder": free_port(), "loader": free_port()}
    with ExitStack() as stack:
        stack.enter_context(serving(mail))
        stack.enter_context(serving(pager))
        teller = stack.enter_context(alertmanager(tmp_path / "alertmanager", to_whom))
        config = replaced(
            (DEPLOY / "prometheus" / "prometheus.yml").read_text(),
            **{
                "scrape_interval: 15s": "scrape_interval: 500ms",
                "evaluation_interval: 15s": "evaluation_interval: 500ms",
                "127.0.0.1:9093": teller,
                "1:9101": f"1:{ports['recorder']}",
                "1:9102": f"1:{ports['loader']}",
            },
        )
        server = stack.enter_context(prometheus(tmp_path / "prometheus", config, hurried(RULES.read_text())))
        yield Watch(server, mail, pager, ports)


def summary(alert: str) -> str:
    rules = (rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"])
    text: str = next(rule["annotations"]["summary"] for rule in rules if rule["alert"] == alert)
    return text


def test_a_dead_recorder_pages_and_is_mailed_and_so_is_its_return(
    watch: Watch, programs: Programs, tmp_path: Path
) -> None:
    """What is critical goes to PagerDuty and by mail, with the runbook's address, and is resolved on both."""

    def recording() -> Program:
        return programs.start(
            "recorder", "record", "--deribit-ws-url", url, "--data-dir", tmp_path / "tape",
            "--metrics-port", watch.ports["recorder"],
        )  # fmt: skip

    _, url = programs.simulate("--instruments", 5, "--rate", 50)
    recorder = recording()
    until(
        lambda: ask(f"{watch.prometheus}/api/v1/query", query='up{job="recorder"} == 1')["data"]["result"], "a scrape"
    )
    until(lambda: watch.paged("RecorderDown") != "trigger", "that all is well")
    recorder.kill()

    until(lambda: watch.paged("RecorderDown") == "trigger", "a page")
    until(lambda: "[FIRING:1]" in watch.mailed("RecorderDown"), "a mail")
    event = next(event for event in watch.pager.events if event["payload"]["summary"] == summary("RecorderDown"))
    assert event["routing_key"] == ROUTING_KEY
    assert event["payload"]["severity"] == "critical"
    assert event["payload"]["custom_details"]["runbook"] == "docs/runbook.md#recorderdown"
    mail = next(mail for mail in watch.mail.mails if "RecorderDown" in mail["Subject"])
    (text,) = (part.get_content() for part in mail.iter_parts())
    assert "docs/runbook.md#recorderdown" in text

    recording()
    until(lambda: watch.paged("RecorderDown") == "resolve", "the end of the page")
    until(lambda: "[RESOLVED]" in watch.mailed("RecorderDown"), "a mail of the end")


def test_a_refused_segment_is_mailed_and_pages_nobody(
    watch: Watch, programs: Programs, tmp_path: Path, database: str
) -> None:
    """A warning goes by mail only, and is resolved when the segment is mended."""
    root = tmp_path / "tape"
    (segment,) = record(root, [quotes(50)])
    whole = segment.read_bytes()
    flip_a_bit(segment)
    programs.start(
        "loader", "load", "--data-dir", root, "--loader-metrics-port", watch.ports["loader"], "--archive-url", "off",
        DATABASE_URL=database,
    )  # fmt: skip

    until(lambda: "[FIRING:1]" in watch.mailed("SegmentRefused"), "a mail")
    segment.write_bytes(whole)
    until(lambda: "[RESOLVED]" in watch.mailed("SegmentRefused"), "a mail of the end")
    assert not watch.paged("SegmentRefused")
