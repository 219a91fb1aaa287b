"""The systemd units and what installs them: real commands, settings, and exit codes, and what systemd accepts."""

import argparse
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from loader.cli import _parser as loader_parser
from loader.settings import LoaderSettings
from recorder.cli import _parser as recorder_parser
from recorder.metrics import DISK_HANGS_AFTER_S, LOOK_EVERY_S
from recorder.runtime.exit_codes import ExitCode
from recorder.runtime.settings import KNOWN_NAMES, load
from recorder.settings import RecorderSettings
from tests.fix_programs import REPOSITORY

FOLDER = REPOSITORY / "deploy" / "systemd"
RECORDER, LOADER = "ticktape-recorder.service", "ticktape-loader.service"
PRUNE, PRUNE_TIMER = "ticktape-prune.service", "ticktape-prune.timer"
PARSERS: dict[str, Callable[[], argparse.ArgumentParser]] = {"recorder": recorder_parser, "loader": loader_parser}

Unit = dict[str, list[str]]


def unit(path: Path) -> Unit:
    """Return the values of each directive, in order; a unit may hold one more than once."""
    found: Unit = {}
    for line in path.read_text().splitlines():
        if "=" in line and not line.startswith("#"):
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


def settings_of(path: Path) -> dict[str, str]:
    return dict(re.findall(r"^#?([A-Z][A-Z_]+)=(.*)$", path.read_text(), re.MULTILINE))


@pytest.mark.parametrize(
    ("name", "program", "command"),
    [(RECORDER, "recorder", "record"), (LOADER, "loader", "load"), (PRUNE, "loader", "prune")],
)
def test_a_unit_starts_a_command_that_there_is(name: str, program: str, command: str) -> None:
    """From the installed venv, and without a module of the folder that it runs in."""
    (start,) = unit(FOLDER / name)["ExecStart"]

    assert start == f"/opt/ticktape/venv/bin/python -P -m {program} {command}"
    assert PARSERS[program]().parse_args([command]).command


@pytest.mark.parametrize("name", [RECORDER, LOADER])
def test_a_wrong_setting_is_no_reason_to_try_again(name: str) -> None:
    """Everything else is, for ever; and a long recovery is no failed start."""
    found = unit(FOLDER / name)

    assert found["Restart"] == ["always"]
    assert found["RestartPreventExitStatus"] == [str(int(ExitCode.USAGE))]
    assert found["StartLimitIntervalSec"] == ["0"]
    assert (found["Type"], found["TimeoutStartSec"]) == (["notify"], ["infinity"])
    assert float(found["RestartSec"][0]) > 0


def test_times_agree_with_those_of_the_programs() -> None:
    """A stop may take as long as it is told, and the watchdog is slower than what it watches for."""
    found = unit(FOLDER / RECORDER)

    assert float(found["TimeoutStopSec"][0]) > RecorderSettings().stop_timeout_sec
    assert float(found["WatchdogSec"][0]) > DISK_HANGS_AFTER_S + LOOK_EVERY_S
    assert "WatchdogSec" not in unit(FOLDER / LOADER), "a statement of the database may take long"


def test_the_loader_can_write_nothing_of_the_tape() -> None:
    """The same user, and of DATA_DIR only the archive and its own database."""
    recorder, loader = unit(FOLDER / RECORDER), unit(FOLDER / LOADER)

    assert recorder["User"] == loader["User"] == ["ticktape"]
    assert (recorder["ProtectSystem"], loader["ProtectSystem"]) == (["strict"], ["strict"])
    assert recorder["StateDirectory"] == ["ticktape"]
    assert loader["StateDirectory"] == ["ticktape/archive ticktape/postgres"]
    assert not any("loader.env" in path for path in recorder["EnvironmentFile"])
    assert "OOMScoreAdjust" not in loader
    # It would take the memory of an embedded PostgreSQL away when the other service of the same user stops.
    assert not {"RemoveIPC"} & (recorder.keys() | loader.keys())


def test_the_tape_is_pruned_daily_where_that_is_asked_for() -> None:
    """By whom the archive is told to and who may write to the tape; not by a start of recorder and loader."""
    prune, loader, timer = unit(FOLDER / PRUNE), unit(FOLDER / LOADER), unit(FOLDER / PRUNE_TIMER)
    hardening = (FOLDER / LOADER).read_text().partition("# Hardening\n")[2].partition("\n[Install]")[0]

    assert hardening
    assert (FOLDER / PRUNE).read_text().endswith(hardening)
    assert (prune["User"], prune["EnvironmentFile"]) == (loader["User"], loader["EnvironmentFile"])
    assert prune["StateDirectory"] == unit(FOLDER / RECORDER)["StateDirectory"]
    assert (prune["Type"], prune.get("WantedBy")) == (["oneshot"], None)
    assert (timer["OnCalendar"], timer["Persistent"]) == (["daily"], ["true"])
    assert f"systemctl enable --now {PRUNE_TIMER}" in (REPOSITORY / "docs" / "operations.md").read_text()


def test_a_tape_elsewhere_has_the_folders_that_its_units_name() -> None:
    """One that ReadWritePaths= names and that is not there ends a start; nobody else makes those of the loader."""
    text = (REPOSITORY / "docs" / "operations.md").read_text()
    named = {path for paths in re.findall(r"ReadWritePaths=(/.+)$", text, re.MULTILINE) for path in paths.split()}
    made = re.findall(r"^\$ sudo install -d -o ticktape -g ticktape -m 750 (.+)$", text, re.MULTILINE)

    assert named == {path for paths in made for path in paths.split()}


def test_no_document_enters_the_tape_as_somebody_who_may_not() -> None:
    """Its folder is open to the user and the group of the services: a `cd` is part of what sudo runs."""
    assert unit(FOLDER / RECORDER)["StateDirectoryMode"] == ["0750"]
    for document in (REPOSITORY / "README.md", *(REPOSITORY / "docs").glob("*.md")):
        assert not re.search(r"^\$ cd /var/lib/ticktape", document.read_text(), re.MULTILINE), document


def test_the_environment_holds_settings_that_there_are() -> None:
    """In the units and in the files that are installed for them; as they are shown, they load."""
    for name in (RECORDER, LOADER, PRUNE):
        words = dict(word.split("=", 1) for word in unit(FOLDER / name)["Environment"][0].split())
        assert words.keys() <= KNOWN_NAMES
    common, secret = settings_of(FOLDER / "ticktape.env"), settings_of(FOLDER / "loader.env")
    assert common.keys() <= KNOWN_NAMES
    assert {name for name in secret if not name.startswith("AWS_")} <= KNOWN_NAMES
    assert load(RecorderSettings, {}, common, env_file=Path("/none")).metrics_port == 9101
    assert load(LoaderSettings, {}, common | secret, env_file=Path("/none")).loader_metrics_port == 9102


def staged(root: Path, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [FOLDER / script, *arguments], capture_output=True, text=True, check=False,
        env={**os.environ, "DESTDIR": str(root), "SKIP_VENV": "1"},
    )  # fmt: skip


def test_what_is_installed_can_be_removed_and_settings_stay(tmp_path: Path) -> None:
    """Below DESTDIR, with another PREFIX; a second installation overwrites no settings."""
    assert staged(tmp_path, "install", "/srv/tape").returncode == 0
    systemd, etc = tmp_path / "etc" / "systemd" / "system", tmp_path / "etc" / "ticktape"
    (start,) = unit(systemd / RECORDER)["ExecStart"]
    assert start.startswith("/srv/tape/venv/bin/python ")
    assert oct((etc / "loader.env").stat().st_mode & 0o777) == "0o600"
    assert {path.name for path in systemd.iterdir()} == {RECORDER, LOADER, PRUNE, PRUNE_TIMER}
    (etc / "ticktape.env").write_text("CURRENCY=BTC\n")
    assert staged(tmp_path, "install", "/srv/tape").returncode == 0
    assert (etc / "ticktape.env").read_text() == "CURRENCY=BTC\n"
    removed = staged(tmp_path, "uninstall", "/srv/tape")

    assert (removed.returncode, list(systemd.iterdir())) == (0, [])
    assert (etc / "ticktape.env").exists()
    assert not (tmp_path / "srv" / "tape").exists()


@pytest.mark.parametrize("prefix", ["/home/me/tape", "relative"])
def test_a_prefix_that_services_cannot_see_is_refused(tmp_path: Path, prefix: str) -> None:
    """In a line, before anything is written."""
    refused = staged(tmp_path, "install", prefix)

    assert refused.returncode == 2
    assert refused.stderr.startswith("error: ")
    assert list(tmp_path.iterdir()) == []


def test_systemd_finds_nothing_wrong(tmp_path: Path) -> None:
    """`systemd-analyze verify` is silent, and `security` rates each service as little exposed."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed: the units are not verified (apt-get install systemd)")
    for name in (RECORDER, LOADER, PRUNE):
        text = (FOLDER / name).read_text()
        assert "/opt/ticktape/venv/bin/python" in text  # which is not installed here
        (tmp_path / name).write_text(text.replace("/opt/ticktape/venv/bin/python", "/bin/sh"))
    shutil.copy(FOLDER / PRUNE_TIMER, tmp_path)
    paths = [str(tmp_path / name) for name in (RECORDER, LOADER, PRUNE)]
    verified = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *paths, tmp_path / PRUNE_TIMER],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (verified.returncode, verified.stderr) == (0, "")
    for path in paths:
        rated = subprocess.run(
            ["systemd-analyze", "security", "--offline=true", "--threshold=20", path],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert rated.returncode == 0, rated.stdout
