"""The same methods by HTTP: what Deribit's history host answers, on the simulator's own port.

Deribit, probes of production 2026-09: errors come as HTTP 400 with the JSON-RPC body; a method that needs a
socket is answered 10030.
"""

import time
from http import HTTPStatus
from urllib.parse import parse_qsl, urlsplit

from websockets.datastructures import Headers
from websockets.http11 import Response

from recorder.simulator import methods, wire
from recorder.simulator.feed import Feed
from recorder.simulator.journal import Journal
from recorder.simulator.limits import Limits
from recorder.simulator.methods import Host, Params, RpcError

PREFIX = "/api/v2/"


def reply(feed: Feed, limits: Limits, journal: Journal, path: str, now_s: float) -> Response:
    """Answer one GET."""
    in_us = time.time_ns() // 1000
    url = urlsplit(path)
    method = url.path.removeprefix(PREFIX)
    status = HTTPStatus.OK
    try:
        if not limits.spend(method, now_s):
            journal.event("limit", kind="credits", host="history", method=method)
            raise RpcError(10028, "too_many_requests")
        if method in methods.WEBSOCKET_ONLY:
            raise RpcError(10030, "must_be_websocket_request")
        params = Params(dict(parse_qsl(url.query)), from_query=True)
        body = f'"result":{methods.answer(Host(feed, feed.trades), method, params)}'
    except RpcError as exc:
        status, body = HTTPStatus.BAD_REQUEST, exc.body
    return respond(status, wire.response(None, body, in_us=in_us, out_us=time.time_ns() // 1000))


def respond(status: HTTPStatus, body: bytes) -> Response:
    """Make an HTTP response; the connection ends with it."""
    headers = Headers({"Content-Type": "application/json", "Content-Length": str(len(body)), "Connection": "close"})
    return Response(status.value, status.phrase, headers, body)
