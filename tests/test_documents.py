"""The documents say what the programs are: each setting, command, event, and column, and snippets that work."""

import argparse
import ast
import re
import shlex
from collections.abc import Iterator
from importlib import import_module
from itertools import groupby
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from msgspec import Meta
from msgspec.structs import fields

import analysis
from analysis.settings import AnalysisSettings
from loader.settings import LoaderSettings
from recorder.runtime.settings import KNOWN_NAMES, CommonSettings, ServiceSettings
from recorder.segments.schemas import SCHEMAS
from recorder.settings import RecorderSettings
from tests.fix_market import record_market
from tests.fix_programs import REPOSITORY

PROGRAMS = ("recorder", "loader", "analysis")
DOCUMENTS = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
LEVELS = {"debug": "debug", "info": "info", "warning": "warning", "error": "error", "exception": "error"}


def text(name: str) -> str:
    return (REPOSITORY / "docs" / name).read_text()


def test_no_command_takes_the_root_for_the_tape() -> None:
    """What is in .env alone is no variable of a shell: `"$DATA_DIR"/*` would be all that the machine has."""
    for document in DOCUMENTS:
        unsafe = [line for line in document.read_text().splitlines() if re.search(r"\$(DATA_DIR|\{DATA_DIR\})", line)]
        assert unsafe == [], document


def test_the_units_of_a_command_are_those_that_are_installed() -> None:
    """What is asked of systemd's log or state has a unit here, but for time and monitoring."""
    units = {path.stem for path in (REPOSITORY / "deploy" / "systemd").iterdir()}
    asked = {name for path in DOCUMENTS for name in re.findall(r"journalctl -f?u (\S+)", path.read_text())}

    assert asked
    assert asked <= units


# Settings


def told_settings() -> dict[str, tuple[str, str, str]]:
    """Return what docs/settings.md says: default, what is allowed, and who reads it."""
    rows = re.findall(r"^\| `([A-Z_]+)` \| (.*?) \| (.*?) \| (.*?) \| \S.* \|$", text("settings.md"), re.MULTILINE)
    return {name: (default, allowed, who) for name, default, allowed, who in rows}


def reads(settings: type[CommonSettings]) -> set[str]:
    return {field.encode_name.upper() for field in fields(settings)}


def rule(kind: Any) -> str | None:
    """Return how a type's bounds or choices are told; None where words are needed."""
    metas = [meta for part in (kind, *get_args(kind)) for meta in getattr(part, "__metadata__", ()) if bounds(meta)]
    meta = metas[-1] if metas else None
    if meta is None:
        choices = [value for part in get_args(kind) for value in get_args(part) if isinstance(value, str)]
        return ", ".join(f"`{value}`" for value in choices) or None
    if meta.le is None:
        return f"{meta.ge} or more"
    return f"above {meta.gt}, to {meta.le}" if meta.gt is not None else f"{meta.ge} to {meta.le}"


def bounds(meta: Any) -> bool:
    return isinstance(meta, Meta) and (meta.ge is not None or meta.gt is not None)


def shown_default(value: Any) -> str:
    if value is None:
        return "off"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def test_each_setting_is_told_with_its_default_its_rule_and_its_reader() -> None:
    """As the programs have them, both ways."""
    told = told_settings()
    assert told.keys() == KNOWN_NAMES
    readers = {
        "recorder": reads(RecorderSettings),
        "loader": reads(LoaderSettings),
        "analysis": reads(AnalysisSettings),
    }
    for settings in (RecorderSettings, LoaderSettings, AnalysisSettings):
        hints = get_type_hints(settings, include_extras=True)
        for field in fields(settings):
            default, allowed, who = told[field.encode_name.upper()]
            if field.default != "":
                assert default == f"`{shown_default(field.default)}`", field.name
            if (expected := rule(hints[field.name])) is not None:
                assert allowed == expected, field.name
            reading = [program for program, names in readers.items() if field.encode_name.upper() in names]
            everybodys = field.name in {one.name for one in fields(CommonSettings)}
            assert who == ("all" if everybodys else ", ".join(reading)), field.name
    ours = reads(RecorderSettings) | reads(LoaderSettings) | reads(ServiceSettings)
    assert {who for name, (_, _, who) in told.items() if name not in ours} == {"containers"}


# Commands


# argparse tells what a parser knows by its underscored names only.
# ruff: noqa: SLF001
def parser_of(program: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = import_module(f"{program}.cli")._parser()
    return parser


def commands_of(program: str) -> dict[str, argparse.ArgumentParser]:
    (found,) = [action for action in parser_of(program)._actions if isinstance(action, argparse._SubParsersAction)]
    return dict(found.choices)


@pytest.mark.parametrize("program", PROGRAMS)
def test_each_command_has_a_section_with_its_flags(program: str) -> None:
    """Those of its own; settings are flags, too, and are told elsewhere."""
    part = text("commands.md").partition(f"\n## {program}\n")[2].partition("\n## ")[0]
    settings = {"--" + name.lower().replace("_", "-") for name in KNOWN_NAMES}
    sections = dict(re.findall(r"^### (\w+)\n(.*?)(?=^### |\Z)", part, re.MULTILINE | re.DOTALL))
    commands = commands_of(program)

    assert sections.keys() == commands.keys()
    for name, parser in commands.items():
        flags = {flag for action in parser._actions for flag in action.option_strings if flag.startswith("--")}
        told = set(re.findall(r"`(--[a-z-]+)", sections[name])) - {"--help"}
        own = flags - {"--help"} - (settings if name != "simulate" else set())
        assert told == own, name


def targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):.*## ", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))


def test_each_make_target_is_told() -> None:
    """In one table."""
    assert set(re.findall(r"`make ([a-z-]+)", text("commands.md").partition("## Exit codes")[0])) == targets()


# Events


def logged(program: str) -> Iterator[tuple[str, str]]:
    """Yield each event that a program's source logs, and its level."""
    for path in sorted((REPOSITORY / program).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args):
                continue
            if node.func.attr in LEVELS and ast.unparse(node.func.value).endswith("log"):
                names = [one.value for one in ast.walk(node.args[0]) if isinstance(one, ast.Constant)]
                assert names, f"{path}:{node.lineno}: an event without a constant name"
                yield from ((str(name), LEVELS[node.func.attr]) for name in names)


@pytest.mark.parametrize("program", ["recorder", "loader"])
def test_each_log_event_is_told(program: str) -> None:
    """With its level, both ways."""
    part = text("events.md").partition(f"## {program}\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`.*?`) \| (\w+) \| \S.* \|$", part, re.MULTILINE)
    told = {(name, level) for names, level in rows for name in re.findall(r"`([a-z_.]+)`", names)}

    assert told == set(logged(program))


# Columns


def test_each_column_is_told_in_its_stream_s_order() -> None:
    """With those that every stream has."""
    sections = dict(re.findall(r"^### (\w+): .*?\n(.*?)(?=^##)", text("schema.md"), re.MULTILINE | re.DOTALL))
    sections["gaps"] = sections.pop("data_gaps")
    assert sections.keys() == SCHEMAS.keys()
    for kind, section in sections.items():
        first = [re.findall(r"`(\w+)`", row) for row in re.findall(r"^\| (`.*?) \|", section, re.MULTILINE)]
        assert [column for row in first for column in row] == SCHEMAS[kind].names[3:], kind


def test_each_table_of_a_database_is_told() -> None:
    """Each that the schema files make, by its name."""
    sources = (REPOSITORY / "loader" / "postgres" / "schema").rglob("*.sql")
    made = {
        name.replace("{market}", "<currency>_<kind>")
        for source in sources
        for name in re.findall(
            r'CREATE (?:OR REPLACE )?(?:TABLE|VIEW)(?: IF NOT EXISTS)? "?([\w{}]+)', source.read_text()
        )
    }
    streams = {f"<currency>_<kind>_{kind}" for kind in SCHEMAS} | {"data_gaps"}
    told = set(re.findall(r"^\| `([\w<>]+)` \|", text("schema.md").partition("## Database")[2], re.MULTILINE))

    assert made - streams <= told


# Snippets


def snippets(language: str) -> list[tuple[str, str]]:
    """Return all snippets of a language in the documents, each with where it stands."""
    return [
        (f"{document.name}-{number}", found)
        for document in DOCUMENTS
        for number, found in enumerate(
            re.findall(rf"^```{language}\n(.*?)^```", document.read_text(), re.MULTILINE | re.DOTALL)
        )
    ]


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("documents")
    record_market(folder / "data", days=1)
    return folder


@pytest.mark.parametrize("snippet", [pytest.param(found, id=where) for where, found in snippets("python")])
def test_python_in_the_documents_runs(snippet: str, market: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over a tape in ./data."""
    monkeypatch.chdir(market)
    exec(compile(snippet, "snippet", "exec"), {})


@pytest.mark.parametrize(
    "snippet", [pytest.param(found, id=where) for where, found in snippets("sql") if "runbook" not in where]
)
def test_sql_in_the_documents_runs(snippet: str, market: Path) -> None:
    """Over the tape; what the runbook asks a database is tried elsewhere."""
    with analysis.open(market / "data") as connection:
        for statement in snippet.split(";"):
            if statement.strip():
                connection.sql(statement).fetchall()


# What other programs do is not ours to try, and they are not on every machine.
OTHERS = set(
    "amtool apt-get cat cd chronyc cp curl df dmesg docker du export find grep head install iostat journalctl ls mv "
    "pip-audit printf ps psql rm sail sha256sum smartctl sort sudoedit systemctl systemd-analyze tail tee "
    "timedatectl top usermod".split()
)


def commands_of_line(line: str) -> list[list[str]]:
    lexer = shlex.shlex(re.sub(r"[<>]+\s*\S+", "", line), posix=True, punctuation_chars=True)
    lexer.wordchars += "$:@,%!{}[]…"
    return [
        list(words) for is_between, words in groupby(lexer, key=lambda word: word[0] in "|&;()") if not is_between
    ]


def commands() -> list[Any]:
    """Return every command that the documents show, one by one, as words, with where it stands."""
    found = []
    for where, snippet in snippets("console"):
        for line in snippet.replace("\\\n", " ").splitlines():
            if line.startswith("$ "):
                found += [(where, words) for words in commands_of_line(line[2:])]
    return [pytest.param(words, id=f"{where}-{' '.join(words)[:40]}") for where, words in found]


@pytest.mark.parametrize("words", commands())
def test_commands_in_the_documents_are_commands(words: list[str]) -> None:
    """A make target that there is, or flags that the program knows."""
    if words[0] == "sudo":
        words = words[3:] if words[1] == "-u" else words[1:]
    while re.match(r"[A-Z_]+=", words[0]):
        words = words[1:] or ["export"]
    program = Path(words[0]).name
    if program == "make":
        assert {word for word in words[1:] if "=" not in word} <= targets()
    elif program == "python":
        name, *arguments = words[words.index("-m") + 1 :]
        parser_of(name).parse_args(arguments)
    elif program == "sh":
        assert words[1] == "-c"
        for inner in commands_of_line(words[2]):
            test_commands_in_the_documents_are_commands(inner)
    else:
        assert program in OTHERS
