"""An archive in any S3-compatible store, through obstore: multipart, bounded retries, ended at once by a stop.

Credentials, region and endpoint are read from the standard AWS_* names of the environment by obstore itself. But for
bulk deletes it sends no checksum headers, which Backblaze B2 refuses; what arrived is told by reading it back.
"""

import contextlib
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import wait
from datetime import timedelta
from pathlib import Path
from typing import Any, BinaryIO, TypeVar
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store

from loader.errors import ArchiveAway, Stopped
from loader.postgres.patience import in_thread
from recorder.runtime.errors import SettingsError
from recorder.runtime.redact import redact
from recorder.segments.archive_url import Bucket

# One part of a multipart upload, and one range of a download. S3 wants 5 MiB at least.
CHUNK_BYTES = 8 * 1024 * 1024
# Chunks under way at a time. Each request has REQUEST_TIMEOUT_S, so that a line of 140 KB/s is enough.
CONCURRENCY = 2
REQUEST_TIMEOUT_S = 120
CONNECT_TIMEOUT_S = 10
# A request is tried again for so long (5xx, lost connections, time-outs); then the part is given up for now.
RETRY_TIMEOUT_S = 180
MOST_RETRIES = 8
# Within this a stop lets an upload end in order, so that the server is told to forget it; then it is cut.
STOP_GRACE_S = 3.0
_LOOK_S = 0.1
_READ_BYTES = 1024 * 1024
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")

T = TypeVar("T")


class BucketStore:
    """An archive under a prefix of a bucket. One thread at a time may use it."""

    def __init__(self, where: Bucket, drafts: Path, check: Callable[[], None], environ: Mapping[str, str]) -> None:
        """Take the settings; nothing is reached yet.

        Raises:
            SettingsError: the environment says something of the server that obstore does not take.
        """
        self.shown = where.url
        self.drafts = drafts
        self._check = check
        endpoint = _endpoint(environ)
        options: dict[str, Any] = {
            "timeout": timedelta(seconds=REQUEST_TIMEOUT_S),
            "connect_timeout": timedelta(seconds=CONNECT_TIMEOUT_S),
        }
        if endpoint.startswith("http://"):  # of one's own machine or network: it was asked for by name
            options["allow_http"] = True
        try:
            self._store = S3Store(
                where.bucket,
                prefix=where.prefix or None,
                client_options=options,  # type: ignore[arg-type]
                disable_bulk_delete=True,  # it sends a checksum header
                retry_config={"max_retries": MOST_RETRIES, "retry_timeout": timedelta(seconds=RETRY_TIMEOUT_S)},
            )
        except BaseError as exc:
            raise SettingsError([f"the AWS_* names of the environment: {said(exc)}"]) from exc

    def names(self, folder: str) -> dict[str, int]:
        """See Store."""

        def names() -> dict[str, int]:
            chunks = obstore.list(self._store, folder)
            return {str(found["path"]): int(found["size"]) for chunk in chunks for found in chunk}

        return self._wait(names)

    def read(self, name: str) -> bytes:
        """See Store."""
        return self._wait(lambda: bytes(obstore.get(self._store, name).bytes()))

    def size(self, name: str) -> int | None:
        """See Store."""
        try:
            return self._wait(lambda: int(obstore.head(self._store, name)["size"]))
        except FileNotFoundError:
            return None

    @contextlib.contextmanager
    def opened(self, name: str) -> Iterator[BinaryIO]:
        """See Store; it is brought here first, in ranges, into a file that has no name."""
        size = self.size(name)
        if size is None:
            raise FileNotFoundError(f"{self.shown} has no {name}")
        with tempfile.TemporaryFile(prefix="ticktape-") as file:
            for start in range(0, size, CHUNK_BYTES):
                file.write(self._range(name, start, min(CHUNK_BYTES, size - start)))
            file.seek(0)
            yield file

    def _range(self, name: str, start: int, length: int) -> memoryview:
        return memoryview(self._wait(lambda: obstore.get_range(self._store, name, start=start, length=length)))

    def put(self, name: str, draft: Path) -> None:
        """See Store; the server shows a multipart upload when it is completed."""
        if draft.stat().st_size <= CHUNK_BYTES:
            self.put_bytes(name, draft.read_bytes())
            return

        def chunks() -> Iterator[bytes]:
            with draft.open("rb") as file:
                while data := file.read(_READ_BYTES):
                    self._check()  # raised here, obstore tells the server to forget the upload
                    yield data

        def put() -> None:
            obstore.put(
                self._store, name, chunks(), use_multipart=True, chunk_size=CHUNK_BYTES, max_concurrency=CONCURRENCY
            )

        self._wait(put)

    def put_bytes(self, name: str, data: bytes) -> None:
        """See Store; a single PUT shows all or nothing."""
        self._wait(lambda: obstore.put(self._store, name, data, use_multipart=False))

    def remove(self, name: str) -> None:
        """See Store."""
        with contextlib.suppress(FileNotFoundError):
            self._wait(lambda: obstore.delete(self._store, name))

    def _wait(self, ask: Callable[[], T]) -> T:
        """Ask the server, in a thread that nobody has to wait for: a stop, or whatever else `check` raises, ends it.

        Not by obstore's asynchronous functions: a process that ended soon after one of them had failed was aborted,
        every other time, as their threads came back to an interpreter that was gone.

        Raises:
            ArchiveAway: the server cannot be reached, or refuses.
            FileNotFoundError: there is no such object.
        """

        def asked() -> T:
            try:
                return ask()
            except Exception:
                raise
            except BaseException as exc:  # a panic of obstore is no Exception: nobody would hear of it, and wait
                raise ArchiveAway(f"the archive {self.shown}: obstore broke: {exc}") from exc

        future = in_thread("archive-s3", asked)
        while not wait([future], timeout=_LOOK_S).done:
            try:
                self._check()
            except Stopped:
                wait([future], timeout=STOP_GRACE_S)
                raise
        try:
            return future.result()
        except (FileNotFoundError, Stopped):
            raise
        except (BaseError, OSError, ValueError) as exc:
            raise ArchiveAway(f"the archive {self.shown}: {said(exc)}", remedy=_remedy(str(exc))) from exc


def _endpoint(environ: Mapping[str, str]) -> str:
    """Return the address of another server than Amazon's; "" without one. A wrong one would make obstore panic.

    Of one with a user in it obstore's errors could tell the password: it is signed with AWS_* in any case.
    """
    for name in _ENDPOINTS:
        if address := environ.get(name):
            try:
                parts = urlsplit(address)
                is_server = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
            except ValueError:
                is_server = False
            if not is_server or re.search("[@?#]", address):
                raise SettingsError([f"{name}={redact(address)}: expected https://host or http://host:port"])
            return address
    return ""


def said(exc: BaseException) -> str:
    """Return what went wrong in one line. Of a server's answer only its code and message: the rest may hold keys."""
    text = str(exc).partition("\nDebug source:")[0]
    head, _, body = text.partition("<?xml")
    told = [found[1] for tag in ("Code", "Message") if (found := re.search(f"<{tag}>([^<]*)</{tag}>", body))]
    return " ".join(" ".join([head.rstrip(" :") + ":" if told else head, ": ".join(told)]).split())


def _remedy(text: str) -> str:
    if "NoSuchBucket" in text:
        return "create the bucket, or correct ARCHIVE_URL"
    if re.search(r"\b40[13] (Forbidden|Unauthorized)", text):
        return "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and that this key may list, read and write there"
    return ""
