"""Where settings come from: flags > environment > `.env` > defaults; every problem is told at once.

A program declares its settings as a frozen msgspec struct whose fields carry their rule and one line of
help. The field `data_dir` is the flag `--data-dir` and the variable `DATA_DIR`. Each value is converted by
itself (msgspec stops at the first error of a whole struct), so that all problems can be reported together.
"""

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_type_hints

import msgspec
from dotenv.parser import Binding, parse_stream
from msgspec import Meta, Struct

from recorder.runtime.errors import SettingsError
from recorder.runtime.redact import has_password, redact

# Every name that a `.env` of this project may hold, whichever program reads it (a test compares this list
# with `.env.example` and with the settings of recorder, loader and analysis).
# fmt: off
KNOWN_NAMES = frozenset({
    "DERIBIT_WS_URL", "DERIBIT_HISTORY_URL", "CURRENCY", "KIND", "TOP_N_INSTRUMENTS", "DATA_DIR",
    "RECORDER_NAME", "FLUSH_INTERVAL_SEC", "SEGMENT_MAX_AGE_SEC", "SEGMENT_MAX_MB", "BUFFER_SIZE_QUOTES",
    "BUFFER_SIZE_TRADES", "BUFFER_SIZE_TICKERS", "MAX_CHANNELS_PER_CONNECTION", "REDUNDANCY",
    "STOP_TIMEOUT_SEC", "TRADE_VOID_AFTER_SEC",
    "METRICS_HOST", "METRICS_PORT", "LOADER_METRICS_PORT", "LOG_LEVEL", "LOG_FORMAT",
    "DATABASE_URL", "LOADER_CONNECTIONS", "DIRECT_COMPRESS", "RETENTION_DAYS",
    "ARCHIVE_URL", "ARCHIVE_COMPRESSION", "DB_PASSWORD", "GRAFANA_PASSWORD",
    "CONTAINER_USER",
})
# fmt: on

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")  # what is none may be a part of a password that was cut in two

Port = Annotated[int, Meta(ge=1, le=65535)]
# Whoever writes the archive and whoever reads it are told of it by one name.
ArchiveUrl = Annotated[
    str | None,
    Meta(
        description="the Parquet archive: a folder, or s3://bucket/prefix (with AWS_* in the environment); unset:"
        " DATA_DIR/archive; off: none is made"
    ),
]


class CommonSettings(Struct, frozen=True, kw_only=True):
    """What every program of the project needs."""

    data_dir: Annotated[str, Meta(min_length=1, description="where the tape lives")] = "./data"
    log_level: Annotated[
        Literal["DEBUG", "INFO", "WARNING", "ERROR"], Meta(description="the least that is logged")
    ] = "INFO"
    log_format: Annotated[
        Literal["auto", "console", "json"], Meta(description="auto: console on a terminal, else json")
    ] = "auto"


class ServiceSettings(CommonSettings, frozen=True, kw_only=True):
    """What a program needs that runs for long."""

    metrics_host: Annotated[str, Meta(min_length=1, description="where /metrics, /healthz, and /readyz listen")] = (
        "127.0.0.1"
    )


S = TypeVar("S", bound=CommonSettings)


def add_flags(parser: argparse.ArgumentParser, settings: type[CommonSettings]) -> None:
    """Give a parser one kebab-case flag for each setting, its help naming the variable and the default."""
    group = parser.add_argument_group("settings (flags > environment > .env > defaults)")
    for field in msgspec.structs.fields(settings):
        name = field.encode_name
        default = "off" if field.default is None else field.default
        default = str(default).lower() if isinstance(default, bool) else default
        shown = f"; default: {default}" if default != "" else ""
        group.add_argument(
            "--" + name.replace("_", "-"),
            dest=name,
            metavar=name.rsplit("_", 1)[-1].upper(),
            help=f"{_description(field.type)} (env: {name.upper()}{shown})".replace("%", "%%"),
        )


def load(
    settings: type[S], flags: Mapping[str, Any], environ: Mapping[str, str], *, env_file: Path = Path(".env")
) -> S:
    """Read the settings of one program.

    Args:
        settings: the struct to fill.
        flags: parsed flags by field name; those that are None were not given, other keys are passed over.
        environ: the environment; only known names are read.
        env_file: a dotenv file, which may be absent; unknown names in it, and what is no setting, are refused.

    Raises:
        SettingsError: with a line for each problem: name, value (what is secret masked), and rule.
    """
    problems: list[str] = []
    from_file = _read_env_file(env_file, problems)
    values: dict[str, Any] = {}
    hints = get_type_hints(settings, include_extras=True)
    for field in msgspec.structs.fields(settings):
        name = field.encode_name.upper()
        flag = flags.get(field.encode_name)
        if flag is not None and has_password(flag):
            problems.append(
                f"--{field.encode_name.replace('_', '-')} {redact(flag)}: a password on the command line is seen by"
                f" every user of this machine; put it into {name} in the environment or .env"
            )
            continue
        # An empty value means "not set": `DATABASE_URL=` in a copied .env.example keeps the default.
        raw = flag if flag is not None else environ.get(name) or from_file.get(name)
        if raw is None or raw == "":
            if flag == "":
                problems.append(f"--{field.encode_name.replace('_', '-')}: the value is empty")
            continue
        try:
            values[field.encode_name] = _convert(raw, hints[field.encode_name])
        except msgspec.ValidationError as exc:
            rule = _rule(exc).replace(raw, redact(raw))  # that of a choice repeats the value
            problems.append(f"{name}={redact(raw)}: {rule}")
    if problems:
        raise SettingsError(problems)
    return settings(**values)


def _read_env_file(path: Path, problems: list[str]) -> dict[str, str]:
    if not path.is_file():
        return {}
    try:
        with path.open(encoding="utf-8") as file:
            bindings = list(parse_stream(file))
    except (OSError, UnicodeDecodeError) as exc:
        problems.append(f"{path}: cannot be read: {exc}")
        return {}
    found: dict[str, str] = {}
    for binding in bindings:
        if not _is_statement(binding):
            problems.append(
                f"{path}: line {_line(binding)}: expected NAME=value, on one line, each quote closed; it is not"
                " shown, for it may hold a password"
            )
        elif binding.key is not None:
            found[binding.key] = binding.value or ""
    problems.extend(
        f"{path}: unknown setting {name}; the known ones are listed in .env.example"
        for name in found
        if name not in KNOWN_NAMES
    )
    return found


def _is_statement(binding: Binding) -> bool:
    """Whether it says something, or is a comment or blank.

    The parser drops a line that it does not understand, and takes a quote that is closed on a later line, by the
    quote of another setting, for a value with the settings between in it. None of ours spans lines.
    """
    if binding.key is None:
        return not binding.error
    return bool(_NAME.fullmatch(binding.key)) and binding.value is not None and "\n" not in _text(binding).rstrip()


def _text(binding: Binding) -> str:
    return binding.original.string.lstrip()


def _line(binding: Binding) -> int:
    """Return where it is; the parser counts from the blank lines before it."""
    blank = binding.original.string.removesuffix(_text(binding))
    return binding.original.line + blank.count("\n")


def _convert(raw: str, hint: Any) -> Any:
    optional = type(None) in get_args(hint) or any(type(None) in get_args(arg) for arg in get_args(hint))
    if optional and raw.lower() == "off":
        return None
    return msgspec.convert(raw, hint, strict=False)


def _rule(exc: msgspec.ValidationError) -> str:
    return str(exc).replace("`", "").replace("Expected", "expected", 1)


def _description(hint: Any) -> str:
    for meta in getattr(hint, "__metadata__", ()):
        if isinstance(meta, Meta) and meta.description:
            return meta.description
    return next((text for arg in get_args(hint) if (text := _description(arg))), "")
