"""Why a connection ended or a call was refused, by name, and how long to stay away not to make it worse. Pure."""

from typing import Literal

from websockets.exceptions import ConnectionClosed, InvalidStatus

from recorder.deribit.session import RpcError, Silent
from recorder.runtime.redact import redact_urls

Trouble = Literal[
    "network", "closed", "silent", "too_many_connections", "too_many_requests", "too_slow", "maintenance",
    "unauthenticated_disabled", "retry", "settlement_in_progress", "temporarily_unavailable", "refused",
]  # fmt: skip

# Limits are by IP: trying again soon keeps them exceeded. Maintenance takes minutes.
_LEAST_DELAY_S: dict[str, float] = {
    "too_many_connections": 30.0,
    "too_many_requests": 10.0,
    "maintenance": 5.0,
    "unauthenticated_disabled": 30.0,
}
SESSION_TERMINATED = 10028  # the exchange closes the connection after it
_BY_CODE: dict[int, Trouble] = {
    SESSION_TERMINATED: "too_many_requests",
    10040: "retry",
    10041: "settlement_in_progress",
    10066: "too_many_requests",
    11051: "maintenance",
    11056: "unauthenticated_disabled",
    13028: "temporarily_unavailable",
}
_BY_STATUS: dict[int, Trouble] = {429: "too_many_connections", 502: "maintenance", 503: "maintenance"}


def explain(reason: BaseException) -> tuple[Trouble, str]:
    """Name what happened, and say it in one line."""
    text = redact_urls(str(reason)) or type(reason).__name__  # of a redirect or a proxy the library tells the URL
    if isinstance(reason, Silent):
        return "silent", text
    if isinstance(reason, RpcError):
        return _BY_CODE.get(reason.code, "refused"), text
    if isinstance(reason, InvalidStatus):
        status = reason.response.status_code
        return _BY_STATUS.get(status, "refused"), f"HTTP {status} at connect"
    if isinstance(reason, ConnectionClosed):
        received = reason.rcvd.reason if reason.rcvd else ""
        if "too_slow" in received:
            return "too_slow", text
        if "too_many_requests" in received:
            return "too_many_requests", text
        if "maintenance" in received:
            return "maintenance", text
        return "closed", text
    return "network", text


def least_delay_s(what: Trouble) -> float:
    """Return how long to stay away at least."""
    return _LEAST_DELAY_S.get(what, 0.0)
