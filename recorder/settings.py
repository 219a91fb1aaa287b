"""The recorder's settings."""

import re
import socket
from typing import Annotated, Literal
from urllib.parse import SplitResult, urlsplit

from msgspec import Meta
from msgspec.structs import fields

from recorder.runtime.redact import redact
from recorder.runtime.settings import Port, ServiceSettings

_ENCODE = "percent-encode what is special in user and password: / as %2F, @ as %40"
PRODUCTION_HOSTS = frozenset({"www.deribit.com", "deribit.com", "streams.deribit.com"})


class RecorderSettings(ServiceSettings, frozen=True, kw_only=True):
    """What `recorder record` can be told."""

    deribit_ws_url: Annotated[
        str, Meta(pattern=r"^wss?://[^\s]+$", description="the exchange's WebSocket, ws:// or wss://")
    ] = "wss://www.deribit.com/ws/api/v2"
    deribit_history_url: Annotated[
        str, Meta(pattern=r"^https?://[^\s]+$", description="the exchange's archive of public trades")
    ] = "https://history.deribit.com/api/v2"
    currency: Annotated[
        str, Meta(pattern=r"^[A-Z][A-Z0-9]{0,15}$", description="the currency whose options are recorded")
    ] = "ETH"
    kind: Annotated[Literal["option"], Meta(description="the kind of instrument; options only, for now")] = "option"
    top_n_instruments: Annotated[
        int, Meta(ge=0, le=5000, description="how many, by open interest; 0 = the whole chain")
    ] = 50
    recorder_name: Annotated[
        str, Meta(pattern=r"^[a-z0-9_]{0,32}$", description="who records; default: the tape's own, or the host name")
    ] = ""
    flush_interval_sec: Annotated[
        float, Meta(gt=0, le=60, description="rows are durable after at most this long")
    ] = 1.0
    segment_max_age_sec: Annotated[float, Meta(gt=0, le=86400, description="a segment is sealed at this age")] = 60.0
    segment_max_mb: Annotated[float, Meta(gt=0, le=4096, description="or at this size")] = 64.0
    buffer_size_quotes: Annotated[int, Meta(ge=1000, description="most rows of quotes in memory")] = 200_000
    buffer_size_trades: Annotated[int, Meta(ge=1000, description="most rows of trades in memory")] = 100_000
    buffer_size_tickers: Annotated[int, Meta(ge=1000, description="most rows of tickers in memory")] = 200_000
    max_channels_per_connection: Annotated[
        int, Meta(ge=2, le=10_000, description="most channels one connection carries")
    ] = 400
    redundancy: Annotated[int, Meta(ge=1, le=2, description="on how many connections each instrument is")] = 1
    trade_void_after_sec: Annotated[
        float, Meta(gt=0, le=86400, description="a trade_seq that both hosts lack for this long never existed")
    ] = 600.0
    stop_timeout_sec: Annotated[float, Meta(gt=0, le=3600, description="a clean stop takes at most this long")] = 20.0
    metrics_port: Annotated[Port | None, Meta(description="their port, or off")] = None


class StatusSettings(ServiceSettings, frozen=True, kw_only=True):
    """What `recorder status` can be told: where recorder and loader listen, which are two programs' settings."""

    metrics_port: Annotated[Port | None, Meta(description="where the recorder tells its numbers, or off")] = None
    loader_metrics_port: Annotated[Port | None, Meta(description="where the loader does, or off")] = None


def history_url(settings: RecorderSettings) -> str:
    """Return whom to ask for past trades: never the real exchange on behalf of another one.

    Where DERIBIT_HISTORY_URL is left at its default and the socket is not production's (a testnet, a simulator),
    it is the socket's own host over HTTP. That is asked without a user: urllib knows none in a URL.
    """
    ws = urlsplit(settings.deribit_ws_url)
    default = next(f.default for f in fields(RecorderSettings) if f.name == "deribit_history_url")
    if settings.deribit_history_url != default or ws.hostname in PRODUCTION_HOSTS:
        return settings.deribit_history_url
    return f"{'https' if ws.scheme == 'wss' else 'http'}://{ws.netloc.rpartition('@')[2]}/api/v2"


def wrong_url(settings: RecorderSettings) -> list[str]:
    """Return what no pattern can see: a port that is none, and what every attempt would fail with, for ever."""
    rules = {"deribit_ws_url": _rule_of_socket, "deribit_history_url": _rule_of_history}
    problems = []
    for name, rule_of in rules.items():
        url = getattr(settings, name)
        if rule := _rule_of_any(url) or rule_of(urlsplit(url)):
            problems.append(f"{name.upper()}={redact(url)}: {rule}")
    return problems


def _rule_of_any(url: str) -> str:
    try:
        parts = urlsplit(url)
        is_place = bool(parts.hostname) and parts.port != 0
    except ValueError:  # its words repeat a part of the URL, which may be one of the password
        is_place = False
    if not is_place:
        return f"it names no host, or a port that is no number from 1 to 65535; {_ENCODE}"
    if "@" in parts.path + parts.query + parts.fragment:
        return f"there is an @ behind the host; {_ENCODE}"
    return "expected nothing after #" if parts.fragment else ""


def _rule_of_socket(parts: SplitResult) -> str:
    return "" if (parts.username is None) == (parts.password is None) else "expected user:password before the @"


def _rule_of_history(parts: SplitResult) -> str:
    return "no user, password, or query belongs here" if "@" in parts.netloc or parts.query else ""


def default_recorder_name() -> str:
    """Return the host name, cleaned to `[a-z0-9_]{1,32}`."""
    return re.sub(r"[^a-z0-9_]+", "_", socket.gethostname().lower())[:32].strip("_") or "recorder"
