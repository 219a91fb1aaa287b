"""Asks a running program for its numbers and checks, over HTTP; never raises, and never waits for long."""

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families

TIMEOUT_S = 2.0
_LARGEST_BYTES = 4 * 1024 * 1024  # far more than either tells: whatever else listens there may tell anything
# Where a program listens on every address it is asked on this machine's own.
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - nothing is bound here

Numbers = Mapping[tuple[str, str], float]


@dataclass(frozen=True)
class Told:
    """What one program told of itself at one moment."""

    program: str  # recorder, loader
    url: str = ""  # where it was asked; empty if no port is configured
    trouble: str = ""  # why there is no answer; empty if there is
    at_s: float = 0.0  # monotonic
    numbers: Numbers = field(default_factory=dict)  # by metric and the value of its first label
    checks: Mapping[str, str] = field(default_factory=dict)  # what keeps it from its work, by the name of the check

    @property
    def answered(self) -> bool:
        """Whether it told anything."""
        return bool(self.url) and not self.trouble

    def get(self, metric: str, label: str = "") -> float | None:
        """Return a number; None if it was not told."""
        return self.numbers.get((metric, label))

    def by_label(self, metric: str) -> dict[str, float]:
        """Return the numbers of a metric by label."""
        return {label: value for (name, label), value in self.numbers.items() if name == metric}


def ask(program: str, host: str, port: int | None) -> Told:
    """Ask a program for /metrics and /readyz.

    Args:
        program: recorder or loader.
        host: METRICS_HOST, as it was told where to listen.
        port: where; None if it is configured not to.
    """
    if port is None:
        return Told(program)
    host = _EVERYWHERE.get(host, host)
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    try:
        numbers = _numbers(_get(f"{url}/metrics"))
        at_s = time.monotonic()
        if not any(name == f"{program}_build_info" for name, _ in numbers):
            return Told(program, url, f"something else than a {program} answers", at_s)
        found = json.loads(_get(f"{url}/readyz"))
        checks = {str(name): str(why) for name, why in dict(found).items() if why != "ok"}
    except (OSError, http.client.HTTPException, ValueError, TypeError) as exc:
        return Told(program, url, _why(exc), time.monotonic())
    return Told(program, url, at_s=at_s, numbers=numbers, checks=checks)


def _get(url: str) -> str:
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:  # noqa: S310 - http, by the line above
            body: bytes = answer.read(_LARGEST_BYTES)
    except urllib.error.HTTPError as exc:
        if exc.code != http.HTTPStatus.SERVICE_UNAVAILABLE:
            raise
        with exc:  # not ready: the body says why
            body = exc.read(_LARGEST_BYTES)
    return body.decode()


def _numbers(text: str) -> Numbers:
    return {
        (sample.name, next(iter(sample.labels.values()), "")): float(sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def _why(exc: Exception) -> str:
    reason = exc.reason if isinstance(exc, urllib.error.URLError) else exc
    if isinstance(reason, TimeoutError):
        return f"no answer within {TIMEOUT_S:g} s"
    return getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
