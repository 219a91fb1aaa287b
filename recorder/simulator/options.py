"""What `recorder simulate` can be told; importing this costs nothing, so that `--help` is quick."""

import argparse
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from recorder.runtime.errors import SettingsError
from recorder.simulator.faults import RULES, Fault, Sort, grammar, parse

# What an option sends when nothing is special: its ticker once a second, its book and the tickers of a
# changed top about 0.3 times a second (Deribit production, 2026-09: 0.1 to 0.3 book messages/s an option).
MESSAGES_PER_OPTION_S = 1.3
# What fits into windows of 5 ms that are half full, on a book and a ticker channel each.
MOST_PER_OPTION_S = 200

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Options:
    """What one simulated exchange is."""

    host: str = "127.0.0.1"
    port: int = 8765  # 0: any free one
    currency: str = "ETH"
    instruments: int = 742  # the median of live ETH options in 2026
    rate: float | None = None  # messages/s; None: MESSAGES_PER_OPTION_S for each option
    seed: int = 1
    faults: tuple[Fault, ...] = ()
    main_keeps: float = 0.0  # seconds for which the main host has a trade; 0: always
    capture: Path | None = None
    speed: float = 10.0  # how many times faster than captured
    journal: Path | None = None
    for_s: float | None = None
    heartbeat_speed: float = 1.0  # how many times faster than Deribit's; tests have no minute to wait

    @property
    def messages_per_s(self) -> float:
        """The rate that is asked for, or what is usual for so many options."""
        return self.rate or MESSAGES_PER_OPTION_S * self.instruments

    @classmethod
    def from_args(cls, args: argparse.Namespace) -> "Options":
        """Read parsed flags.

        Raises:
            SettingsError: with a line for each wrong value: name, value, rule.
        """
        problems: list[str] = []
        failed: set[str] = set()
        values: dict[str, Any] = {}
        for name, (flag, convert) in _READERS.items():
            raw = getattr(args, name, None)
            if raw is None:
                continue
            try:
                values[name] = convert(raw)
            except ValueError as exc:
                problems.append(f"{flag} {raw}: {exc}")
                failed.add(name)
        options = cls(**values)
        most = MOST_PER_OPTION_S * options.instruments
        if options.messages_per_s > most and "instruments" not in failed:
            problems.append(f"--rate {args.rate}: {options.instruments} instruments carry at most {most:g}")
        played = [fault.kind for fault in options.faults if options.capture and _needs_market(fault)]
        if played:
            problems.append(
                f"--faults {args.faults}: a captured file is played as it was, without {', '.join(played)}"
            )
        if problems:
            raise SettingsError(problems)
        return options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give a parser the flags of the simulator; values stay text until `Options.from_args`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = (
        "Above 5 messages/s on each book and ticker channel the 100 ms windows are made as short as the rate\n"
        f"needs, up to {MOST_PER_OPTION_S} messages/s an option. Same seed, same market.\n\n{grammar()}\n\n"
        "example: python -m recorder simulate --instruments 50 --rate 2000 --faults 'disconnect:every=5'"
    )
    default = Options()
    for name, metavar, text in (
        ("--host", "HOST", f"where to listen (default: {default.host})"),
        ("--port", "PORT", f"where to listen; 0: any free port (default: {default.port})"),
        ("--currency", "CURRENCY", f"the currency of the options (default: {default.currency})"),
        ("--instruments", "N", f"how many options, up to 1000 (default: {default.instruments})"),
        (
            "--rate",
            "N",
            f"messages/s of a client that subscribes to everything (default: {MESSAGES_PER_OPTION_S} an option)",
        ),
        ("--seed", "N", f"of the market and of the faults (default: {default.seed})"),
        ("--faults", "SPEC", "what shall go wrong, see below (default: nothing)"),
        (
            "--main-keeps",
            "SECONDS",
            "when the main host (the socket) forgets a trade; the history host (GET) never does (default: 0, never)",
        ),
        ("--capture", "FILE", "play a captured file instead of a market"),
        ("--speed", "N", f"how many times faster than it was captured (default: {default.speed:g})"),
        ("--journal", "FILE", "write down every message sent, as JSON lines"),
        ("--for", "SECONDS", "stop by itself (default: on a signal)"),
        ("--heartbeat-speed", "N", "how many times faster than Deribit's heartbeats (default: 1)"),
    ):
        parser.add_argument(name, dest=_dest(name), metavar=metavar, help=text)


def _needs_market(fault: Fault) -> bool:
    return RULES[fault.kind].sort is Sort.MARKET or fault.kind == "lock"


def _dest(flag: str) -> str:
    return "for_s" if flag == "--for" else flag[2:].replace("-", "_")


def _number(kind: Callable[[str], T], rule: str, allowed: Callable[[T], bool]) -> Callable[[str], T]:
    def convert(raw: str) -> T:
        try:
            value = kind(raw)
        except ValueError:
            raise ValueError(rule) from None
        if not allowed(value):
            raise ValueError(rule)
        return value

    return convert


def _currency(raw: str) -> str:
    if not re.fullmatch(r"[A-Za-z]{2,10}", raw):
        raise ValueError("expected a currency such as ETH")
    return raw.upper()


def _existing_file(raw: str) -> Path:
    if not Path(raw).is_file():
        raise ValueError("expected a file that exists")
    return Path(raw)


def _new_file(raw: str) -> Path:
    if not Path(raw).absolute().parent.is_dir():
        raise ValueError("expected a file name in a directory that exists")
    return Path(raw)


_POSITIVE = _number(float, "expected a number above 0", lambda value: 0 < value < float("inf"))

_READERS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "host": ("--host", str),
    "port": ("--port", _number(int, "expected a port from 0 to 65535", lambda value: 0 <= value <= 65535)),
    "currency": ("--currency", _currency),
    "instruments": (
        "--instruments",
        _number(int, "expected a number from 1 to 1000", lambda value: 1 <= value <= 1000),
    ),
    "rate": ("--rate", _POSITIVE),
    "seed": ("--seed", _number(int, "expected a whole number", lambda _: True)),
    "faults": ("--faults", parse),
    "main_keeps": (
        "--main-keeps",
        _number(float, "expected a number of seconds, or 0", lambda value: 0 <= value < float("inf")),
    ),
    "capture": ("--capture", _existing_file),
    "speed": ("--speed", _POSITIVE),
    "journal": ("--journal", _new_file),
    "for_s": ("--for", _POSITIVE),
    "heartbeat_speed": ("--heartbeat-speed", _POSITIVE),
}
