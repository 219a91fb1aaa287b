"""What a process tells of itself over HTTP: /metrics for Prometheus, /healthz (alive), /readyz (doing its work).

It answers in threads of its own, so that a slow scraper never holds up what it asks about. Few are served at a time;
the rest wait in the socket's queue, and who says nothing is let go.
"""

import errno
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from recorder.runtime.errors import SettingsError, TicktapeError

# By the name of each check what is wrong; an empty text if nothing is.
Checks = Callable[[], dict[str, str]]

_MOST_AT_ONCE = 8
_TIMEOUT_S = 5.0


class CannotListen(TicktapeError):
    """The port is taken, or the address is not there yet. No setting need be wrong: who starts it may try again."""


@contextmanager
def listening(
    host: str, port: int | None, registry: CollectorRegistry, *, alive: Checks, ready: Checks
) -> Iterator[None]:
    """Serve while the block runs; not at all if there is no port.

    Args:
        host: where to listen.
        port: on which port; None for none.
        registry: what /metrics shows.
        alive: what must hold or somebody should restart the process: nothing that is outside of it.
        ready: what must hold for it to do its work.

    Raises:
        SettingsError: it can never listen there.
        CannotListen: another program does; or the host is no address of this machine, or a name of none: those of
            a VPN come up after the boot.
    """
    if port is None:
        yield
        return

    class Handler(_Handler):
        def pages(self) -> dict[str, Checks]:
            return {"/healthz": alive, "/readyz": ready}

        def metrics(self) -> tuple[str, bytes]:
            encode, content_type = choose_encoder(self.headers.get("Accept") or "")
            return content_type, encode(registry)

    try:
        server = _Server((host, port), Handler)
    except OSError as exc:
        what = f"cannot listen on {host} port {port}: {exc.strerror or exc}"
        if exc.errno == errno.EADDRINUSE:
            raise CannotListen(what, remedy="end what does, or choose another port") from exc
        if exc.errno == errno.EADDRNOTAVAIL or isinstance(exc, socket.gaierror):
            raise CannotListen(what, remedy="wait until it is there, or correct METRICS_HOST") from exc
        raise SettingsError([what]) from exc
    thread = threading.Thread(target=server.serve_forever, name="listener", daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 16

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self._free = threading.BoundedSemaphore(_MOST_AT_ONCE)
        super().__init__(address, handler)

    def process_request(self, request: object, client_address: object) -> None:
        self._free.acquire()
        super().process_request(request, client_address)  # type: ignore[arg-type]

    def process_request_thread(self, request: object, client_address: object) -> None:
        try:
            super().process_request_thread(request, client_address)  # type: ignore[arg-type]
        finally:
            self._free.release()

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of a scraper that went away in the middle."""


class _Handler(BaseHTTPRequestHandler):
    server_version = "ticktape"
    sys_version = ""
    timeout = _TIMEOUT_S

    def pages(self) -> dict[str, Checks]:
        raise NotImplementedError

    def metrics(self) -> tuple[str, bytes]:
        raise NotImplementedError

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/metrics":
            self._answer(HTTPStatus.OK, *self.metrics())
        elif checks := self.pages().get(path):
            found = checks()
            status = HTTPStatus.SERVICE_UNAVAILABLE if any(found.values()) else HTTPStatus.OK
            told = {name: why or "ok" for name, why in found.items()}
            self._answer(status, "application/json", json.dumps(told).encode() + b"\n")
        else:
            self._answer(HTTPStatus.NOT_FOUND, "text/plain", b"there are /metrics, /healthz, and /readyz\n")

    def do_HEAD(self) -> None:
        self.do_GET()

    def _answer(self, status: HTTPStatus, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_args: object) -> None:
        """Say nothing of each request."""
