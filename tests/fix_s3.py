"""A real S3 server for tests, and a proxy before it that refuses what Backblaze B2 refuses, counts, and holds up."""

import http.client
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self
from urllib.parse import parse_qs, urlsplit

import pytest

from loader.settings import LoaderSettings
from tests.fix_programs import until

KEY, SECRET = "test-key", "test-secret-that-no-log-shows"
BUCKET = "ticks"
_IDENTITIES = """{"identities": [{"name": "test", "credentials": [{"accessKey": "%s", "secretKey": "%s"}],
 "actions": ["Admin", "Read", "Write", "List"]}]}"""

# What B2 answers with an error, of what the SDKs of Amazon send by default since 2025.
REFUSED_HEADERS = ("x-amz-checksum-", "x-amz-sdk-checksum-algorithm", "x-amz-trailer")


@dataclass(frozen=True)
class Request:
    """One request, as far as tests look at it."""

    method: str
    path: str

    @property
    def query(self) -> dict[str, list[str]]:
        return parse_qs(urlsplit(self.path).query, keep_blank_values=True)

    @property
    def is_chunk(self) -> bool:
        """Whether it brings one chunk of a multipart upload."""
        return self.method == "PUT" and "partNumber" in self.query


@dataclass
class Shim:
    """The proxy: `requests` passed, `refused` were not, and `act` may wait or return a status to answer with."""

    upstream: str
    requests: list[Request] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    act: Callable[[Request], int | None] = lambda _request: None
    url: str = ""

    def __enter__(self) -> Self:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def _handler(shim: Shim) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_args: object) -> None:
            pass

        def _pass(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            request = Request(self.command, self.path)
            wrong = [name for name in self.headers if name.lower().startswith(REFUSED_HEADERS)]
            wrong += [value for value in self.headers.get_all("Content-Encoding", []) if "aws-chunked" in value]
            shim.refused += wrong
            status = 400 if wrong else shim.act(request)
            if status is not None:
                self._answer(status, {}, b"<Error><Code>Refused</Code><Message>by the shim</Message></Error>")
                return
            shim.requests.append(request)
            connection = http.client.HTTPConnection(urlsplit(shim.upstream).netloc, timeout=30)
            try:
                connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
                for name, value in self.headers.items():
                    connection.putheader(name, value)
                connection.endheaders(body)
                answer = connection.getresponse()
                self._answer(answer.status, dict(answer.getheaders()), answer.read())
            finally:
                connection.close()

        def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
            try:
                self.send_response_only(status)
                for name, value in headers.items():
                    if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                        self.send_header(name, value)
                # A HEAD is answered with the length of what it has not.
                length = headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(body))
                self.send_header("Content-Length", length)
                self.end_headers()
                self.wfile.write(body)
            except OSError:
                self.close_connection = True  # who asked was killed

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass  # noqa: N815

    return Handler


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """Yield the address of an S3 server that this run started."""
    home = Path(tempfile.mkdtemp(prefix="ticktape-s3-"))
    (home / "data").mkdir()
    (home / "s3.json").write_text(_IDENTITIES % (KEY, SECRET))
    names = ["master", "volume", "filer", "s3"]
    ports = free_ports(2 * len(names))
    options = [f"-{name}.port={ports[n]}" for n, name in enumerate(names)]
    options += [f"-{name}.port.grpc={ports[n + len(names)]}" for n, name in enumerate(names)]
    weed = Path(sys.executable).parent / "weed"
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(
            [weed, "server", f"-dir={home / 'data'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3",
             f"-s3.config={home / 's3.json'}", "-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false",
             "-master.volumeSizeLimitMB=64", "-volume.max=30", *options],
            stdout=log, stderr=log, cwd=home,
        )  # fmt: skip
    url = f"http://127.0.0.1:{ports[names.index('s3')]}"
    try:
        until(lambda: process.poll() is not None or _writes(url), "the S3 server", every_s=0.2)
        assert process.poll() is None, (home / "log").read_text()[-2000:]
        yield url
    finally:
        process.kill()
        process.wait()
        for port in ports:  # its sockets lie there whatever it is told
            for path in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                path.unlink(missing_ok=True)
        shutil.rmtree(home, ignore_errors=True)


def _writes(url: str) -> bool:
    """Whether the server takes an object; the bucket is made by the first one."""
    import obstore  # noqa: PLC0415 - for who asks for a server
    from obstore.exceptions import BaseError  # noqa: PLC0415
    from obstore.store import S3Store  # noqa: PLC0415

    store = S3Store(
        BUCKET, endpoint=url, access_key_id=KEY, secret_access_key=SECRET, region="us-east-1",
        client_options={"allow_http": True}, retry_config={"max_retries": 0},
    )  # fmt: skip
    try:
        obstore.put(store, "started", b"yes")
    except BaseError:
        return False
    return True


@pytest.fixture
def shim(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shim]:
    """Yield a proxy before the server; the environment leads to it, as B2's would."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    with Shim(s3_server) as shim:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        monkeypatch.setenv("AWS_REGION", "us-east-1")
        monkeypatch.setenv("AWS_ENDPOINT", shim.url)
        yield shim


@pytest.fixture
def bucket(shim: Shim, tmp_path: Path) -> LoaderSettings:
    """Return settings of an archive under a prefix of its own, which the environment leads to."""
    assert shim.url
    return LoaderSettings(data_dir=str(tmp_path / "tape"), archive_url=f"s3://{BUCKET}/{tmp_path.name}")
