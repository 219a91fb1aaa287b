"""A stop asked for by a signal is noticed within a second, wherever the loader waits."""

import contextlib
import itertools
import os
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import psycopg

from loader.errors import Stopped

# A transaction under way may finish or roll back by itself for this long; then it is cancelled, and if that does not
# help its connection is cut. It ends every wait: for a lock, for a server that hangs, for a network that is gone.
GRACE_S = 0.4


class Stop:
    """Whether the end was asked for; ends waits, and cuts a database call that does not return by itself."""

    def __init__(self) -> None:
        self.event = threading.Event()
        self._lock = threading.Lock()
        self._connections: set[psycopg.Connection[Any]] = set()
        threading.Thread(target=self._cut_when_asked, name="stop", daemon=True).start()

    @property
    def asked(self) -> bool:
        """Whether the end was asked for."""
        return self.event.is_set()

    def request(self) -> None:
        """Ask for the end; may be called inside a signal handler.

        Event.set takes a lock that the interrupted main thread may hold just then, hence the thread.
        """
        threading.Thread(target=self.event.set, name="stop-request").start()

    def wait(self, seconds: float) -> bool:
        """Wait, at most until the end is asked for; return whether it is."""
        return self.event.wait(seconds)

    def check(self) -> None:
        """Raise Stopped if the end was asked for."""
        if self.asked:
            raise Stopped("stopped by a signal")

    @contextlib.contextmanager
    def cuts(self, connection: "psycopg.Connection[Any]") -> Iterator[None]:
        """Within, a stop cancels what this connection does once the grace is over, then shuts it down."""
        with self._lock:
            self._connections.add(connection)
        try:
            yield
        finally:
            with self._lock:
                self._connections.discard(connection)

    def _cut_when_asked(self) -> None:
        self.event.wait()
        # Again and again: a connection may have been made between the request and its being noticed.
        for cut in itertools.chain((_cancel,), itertools.repeat(shut_down)):
            time.sleep(GRACE_S)
            with self._lock:
                for connection in self._connections:
                    cut(connection)


def _cancel(connection: "psycopg.Connection[Any]") -> None:
    # A server that waits for a lock does not notice that its client has gone: it must be told.
    with contextlib.suppress(psycopg.Error):
        connection.cancel_safe(timeout=GRACE_S)


def shut_down(connection: "psycopg.Connection[Any]") -> None:
    """Cut a connection, from any thread: whoever waits on it gets an error at once."""
    with (
        contextlib.suppress(OSError, psycopg.Error),  # it may be closed already
        socket.socket(fileno=os.dup(connection.fileno())) as line,
    ):
        line.shutdown(socket.SHUT_RDWR)
