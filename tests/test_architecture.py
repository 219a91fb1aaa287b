"""The house stays as it was drawn: imports run one way, and every setting is told in one list."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from analysis.cli import main as analysis_main
from analysis.settings import AnalysisSettings
from loader.settings import LoaderSettings
from recorder.runtime.settings import KNOWN_NAMES, CommonSettings
from recorder.settings import RecorderSettings, StatusSettings

REPOSITORY = Path(__file__).resolve().parent.parent

# What a part may import of ours. Whoever is not named may import everything within its own package.
ALLOWED = {
    "recorder/runtime": {"recorder.runtime"},
    "recorder/segments": {"recorder.runtime", "recorder.segments"},
    "recorder/deribit": {"recorder.runtime", "recorder.deribit"},
    "recorder/simulator": {"recorder.runtime", "recorder.simulator"},
    "loader": {"recorder.runtime", "recorder.segments", "loader"},
    "analysis": {"recorder.runtime", "recorder.segments", "analysis"},
    "recorder": {"recorder"},
}
FORBIDDEN = {"recorder": {"psycopg", "polars", "duckdb"}}


def modules() -> list[Path]:
    return [
        path.relative_to(REPOSITORY)
        for package in ("recorder", "loader", "analysis")
        for path in sorted((REPOSITORY / package).rglob("*.py"))
    ]


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse((REPOSITORY / path).read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


@pytest.mark.parametrize("path", modules(), ids=str)
def test_imports_run_one_way(path: Path) -> None:
    """A part imports of ours only what the drawing in docs/architecture.md allows it."""
    part = next(part for part in ALLOWED if str(path).startswith(f"{part}/"))
    ours = {name for name in imports_of(path) if name.split(".")[0] in ("recorder", "loader", "analysis")}
    wrong = {name for name in ours if not any(name == ok or name.startswith(f"{ok}.") for ok in ALLOWED[part])} - {
        "recorder",
        *ALLOWED[part],
    }

    assert wrong == set()
    assert not {name.split(".")[0] for name in imports_of(path)} & FORBIDDEN.get(path.parts[0], set())


def test_every_module_says_what_it_guarantees() -> None:
    """Each module begins with a sentence."""
    silent = [path for path in modules() if not ast.get_docstring(ast.parse((REPOSITORY / path).read_text()))]

    assert silent == []


def test_env_example_is_the_list_of_settings() -> None:
    """`.env.example` names exactly the settings of all programs and of compose, and what .env may hold."""
    example = set(re.findall(r"^#?([A-Z][A-Z_]+)=", (REPOSITORY / ".env.example").read_text(), re.MULTILINE))
    declared = {
        field.name.upper()
        for settings in (CommonSettings, RecorderSettings, LoaderSettings, StatusSettings, AnalysisSettings)
        for field in msgspec.structs.fields(settings)
    }
    compose = {"DB_PASSWORD", "GRAFANA_PASSWORD", "CONTAINER_USER"}

    assert example == KNOWN_NAMES
    assert declared | compose == KNOWN_NAMES


def test_defaults_in_env_example_are_those_of_the_programs() -> None:
    """What `.env.example` shows as a default is one."""
    shown = dict(re.findall(r"^#([A-Z][A-Z_]+)=(.+)$", (REPOSITORY / ".env.example").read_text(), re.MULTILINE))
    for settings in (CommonSettings, RecorderSettings, LoaderSettings, StatusSettings, AnalysisSettings):
        for field in msgspec.structs.fields(settings):
            default = "off" if field.default is None else field.default
            text = shown.get(field.name.upper(), "")
            as_text = f"{default:g}" if isinstance(default, float) else str(default)
            as_text = as_text.lower() if isinstance(default, bool) else as_text

            assert text == as_text, field.name


@pytest.mark.parametrize("program", ["recorder", "loader", "analysis"])
def test_every_command_is_documented_and_has_help(program: str) -> None:
    """The README names each command, and each explains itself."""
    text = subprocess.run(
        [sys.executable, "-m", program, "--help"], capture_output=True, text=True, check=True, cwd=REPOSITORY
    ).stdout
    commands = re.findall(r"^    ([a-z]+)  ", text, re.MULTILINE)
    readme = (REPOSITORY / "README.md").read_text()

    assert commands
    for command in commands:
        assert f"python -m {program} {command}" in readme


def test_an_unknown_command_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    """One line and exit code 2."""
    with pytest.raises(SystemExit) as ended:
        analysis_main(["fly"])

    assert ended.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
