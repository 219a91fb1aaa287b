"""Real Prometheus and Alertmanager for tests, and what stands for a mail server and for PagerDuty."""

import json
import shutil
import socket
import socketserver
import subprocess
import threading
import urllib.error
import urllib.parse
import urllib.request
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from email import message_from_bytes, policy
from email.message import EmailMessage
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.fix_programs import REPOSITORY, until

DEPLOY = REPOSITORY / "deploy"
BINARIES = ("prometheus", "promtool", "prometheus-alertmanager", "amtool")


@pytest.fixture(scope="session")
def binaries() -> None:
    """Skip where the programs are not installed."""
    missing = [name for name in BINARIES if shutil.which(name) is None]
    if missing:
        pytest.skip(
            f"MONITORING NOT TESTED: {', '.join(missing)} not found;"
            " on Debian: apt-get install prometheus prometheus-alertmanager"
        )


def replaced(text: str, **changes: str) -> str:
    """Return text in which each of the changes was made (`_` stands for a name that has no spaces)."""
    for number, (old, new) in enumerate(changes.items()):
        assert old in text, f"change {number}: {old} is not there"
        text = text.replace(old, new)
    return text


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def ask(url: str, **parameters: str) -> Any:
    """Get a URL; return the JSON (or else text) that it answers, or None while nobody does."""
    try:
        with urllib.request.urlopen(f"{url}?{urllib.parse.urlencode(parameters)}", timeout=10) as answer:
            text = answer.read().decode()
    except urllib.error.HTTPError as exc:
        with exc:
            if exc.code == HTTPStatus.SERVICE_UNAVAILABLE:  # it begins
                return None
            text = exc.read().decode()
    except OSError:
        return None
    try:
        return json.loads(text)
    except ValueError:
        return text


@contextmanager
def running(folder: Path, *command: str | Path, ready: str) -> Iterator[None]:
    """Run a program until the end of the block, which begins when `ready` is answered."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([str(word) for word in command], stdout=log, stderr=log, cwd=folder)
    try:
        until(lambda: ask(ready) or process.poll() is not None, ready)
        assert process.poll() is None, (folder / "log").read_text()
        yield
    finally:
        process.terminate()
        process.wait(30)


@contextmanager
def prometheus(folder: Path, config: str, rules: str) -> Iterator[str]:
    """Run a Prometheus; yield its URL."""
    folder.mkdir(parents=True)
    (folder / "prometheus.yml").write_text(config)
    (folder / "rules.yml").write_text(rules)
    url = f"http://127.0.0.1:{(port := free_port())}"
    with running(
        folder, "prometheus", "--config.file=prometheus.yml", "--storage.tsdb.path=data",
        f"--web.listen-address=127.0.0.1:{port}", ready=f"{url}/-/ready",
    ):  # fmt: skip
        yield url


@contextmanager
def alertmanager(folder: Path, config: str) -> Iterator[str]:
    """Run an Alertmanager; yield its address."""
    folder.mkdir(parents=True)
    (folder / "alertmanager.yml").write_text(config)
    address = f"127.0.0.1:{free_port()}"
    with running(
        folder, "prometheus-alertmanager", "--config.file=alertmanager.yml", "--storage.path=data",
        f"--web.listen-address={address}", "--cluster.listen-address=", ready=f"http://{address}/-/ready",
    ):  # fmt: skip
        yield address


class Mail(socketserver.StreamRequestHandler):
    """One session of SMTP, with the one user whom it knows."""

    server: "MailServer"

    def handle(self) -> None:
        known = False
        self._say("220 mail")
        while line := self.rfile.readline().decode().strip():
            verb = line.split(" ")[0].upper()
            if verb == "EHLO":
                self._say("250-mail")
                self._say("250 AUTH PLAIN")
            elif verb == "AUTH":
                known = b64decode(line.split()[2]).decode().split("\0")[1:] == self.server.user
                self._say("235 welcome" if known else "535 who is that")
            elif verb == "DATA" and known:
                self._say("354 go on")
                self.server.take(self._message())
                self._say("250 kept")
            elif verb in ("MAIL", "RCPT") and known:
                self._say("250 fine")
            else:
                self._say("221 bye" if verb == "QUIT" else "530 no")

    def _message(self) -> bytes:
        lines = []
        while (line := self.rfile.readline()) != b".\r\n":
            lines.append(line.removeprefix(b"."))
        return b"".join(lines)

    def _say(self, line: str) -> None:
        self.wfile.write(line.encode() + b"\r\n")


class MailServer(socketserver.ThreadingTCPServer):
    """Keeps what it is sent."""

    daemon_threads = True

    def __init__(self, user: str, password: str) -> None:
        self.user = [user, password]
        self.mails: list[EmailMessage] = []
        super().__init__(("127.0.0.1", 0), Mail)

    def take(self, data: bytes) -> None:
        self.mails.append(message_from_bytes(data, policy=policy.default))


class PagerDuty(HTTPServer):
    """Keeps the events that it is sent, and answers as PagerDuty does."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        events = self.events

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                events.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(202)
                self.end_headers()
                self.wfile.write(b'{"status": "success"}')

            def log_message(self, *_args: object) -> None:
                """Say nothing of each request."""

        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v2/enqueue"


@contextmanager
def serving(server: socketserver.BaseServer) -> Iterator[None]:
    """Serve in a thread until the end of the block."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
