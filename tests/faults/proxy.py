"""A TCP proxy with verbs: what a network, or whatever lies between two programs, can do to them.

    with Proxy(("127.0.0.1", 8080)) as proxy:
        …                        # connect to proxy.port
        proxy.stall()            # and cut, reset, slow(bytes_s), deaf, refuse; heal ends them

It passes bytes and knows no protocol; who wants to act at a certain message gives a `Reader` (tests.faults.database
has PostgreSQL's). As a program it takes verbs from stdin, a line each: `python -m tests.faults.proxy 127.0.0.1 8080`.
"""

import contextlib
import select
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from typing import Protocol, Self

Target = tuple[str, int] | str  # host and port, or the path of a unix socket

_LOOK_S = 0.05  # how soon a thread that waits for bytes notices a verb
_PATIENCE_S = 60.0  # a side that takes nothing for so long is ended
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: nothing lingers; a close is an RST


class Line:
    """One connection through the proxy."""

    def __init__(self, client: socket.socket, server: socket.socket | None) -> None:
        self.client, self.server = client, server
        self.lost = False  # bytes of it went nowhere: it cannot be healed
        self._pumps = 2 if server else 1
        self._ended = threading.Event()
        self._lock = threading.Lock()

    @property
    def ended(self) -> bool:
        return self._ended.is_set()

    def to_server(self, data: bytes) -> None:
        """Send it on."""
        if self.server is not None and data:
            self.server.sendall(data)

    def cut(self) -> None:
        """End both sides in good order (FIN); what was not sent on is gone."""
        self._ended.set()
        self.cut_client()
        if self.server is not None:
            _shut(self.server)

    def cut_client(self) -> None:
        """End the client's side only: no reply will find it."""
        _shut(self.client)

    def reset(self) -> None:
        """End both sides with an RST."""
        for side in (self.client, self.server):
            if side is not None:
                with contextlib.suppress(OSError):
                    side.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._ended.set()  # closed by the threads that read from it, or there would be no RST

    def leave(self) -> None:
        """Called by each pump at its end; the last one closes."""
        self._ended.set()
        with self._lock:
            self._pumps -= 1
            if self._pumps == 0:
                self.client.close()
                if self.server is not None:
                    self.server.close()


class Reader(Protocol):
    """Takes what the client of one line sends, and sends it on by `line.to_server`, or does something else."""

    def __call__(self, data: bytes) -> None: ...


def pass_on(line: Line) -> Reader:
    """The reader that knows nothing."""
    return line.to_server


class Proxy:
    """Listens on a free port of this machine; every verb may be called at any time from any thread."""

    def __init__(self, target: Target, reader: Callable[[Line], Reader] = pass_on) -> None:
        self.target = target
        self.accepted = 0
        self._reader = reader
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._lines: list[Line] = []
        self._flows = threading.Event()
        self._flows.set()
        self._deaf = self._refuses = False
        self._bytes_s: float | None = None
        threading.Thread(target=self._accept, name="proxy", daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        _shut(self._listener)  # a close alone would not wake the thread that accepts
        self._listener.close()
        self._flows.set()
        self.cut()

    # Verbs

    def cut(self) -> None:
        """End every connection in good order; new ones are taken."""
        for line in self._open():
            line.cut()

    def reset(self) -> None:
        """End every connection with an RST; new ones are taken."""
        for line in self._open():
            line.reset()

    def stall(self) -> None:
        """Take nothing and pass nothing on, as a network that is full; `heal`, and it goes on where it was."""
        self._flows.clear()

    def slow(self, bytes_s: float) -> None:
        """Pass on so many bytes a second on each connection, each way."""
        self._bytes_s = bytes_s

    def deaf(self) -> None:
        """Take everything, new connections too, and never answer: the other half of a half-open connection."""
        self._deaf = True

    def refuse(self) -> None:
        """End every connection, and each new one at once, by an RST."""
        self._refuses = True
        self.reset()

    def heal(self) -> None:
        """End what the verbs began. Connections of which bytes were lost are cut."""
        self._deaf = self._refuses = False
        self._bytes_s = None
        for line in self._open():
            if line.lost:
                line.cut()
        self._flows.set()

    # Threads

    def _open(self) -> list[Line]:
        self._lines = [line for line in self._lines if not line.ended]
        return self._lines

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.accepted += 1
            try:
                server = None if self._deaf or self._refuses else _connect(self.target)
            except OSError:
                client.close()
                continue
            line = Line(client, server)
            self._lines = [*self._open(), line]
            if self._refuses:
                line.reset()
            self._start(line, client, self._reader(line))
            if server is not None:
                self._start(line, server, client.sendall)

    def _start(self, line: Line, source: socket.socket, sink: Callable[[bytes], None]) -> None:
        threading.Thread(target=self._pump, args=(line, source, sink), name="proxy-line", daemon=True).start()

    def _pump(self, line: Line, source: socket.socket, sink: Callable[[bytes], None]) -> None:
        try:
            source.settimeout(_PATIENCE_S)
            while not line.ended:
                if not self._flows.wait(_LOOK_S) or not select.select([source], [], [], _LOOK_S)[0]:
                    continue
                data = source.recv(65536 if self._bytes_s is None else max(int(self._bytes_s * _LOOK_S), 1))
                if not data:
                    break
                self._pass(line, sink, data)
        except OSError:
            pass  # one side has ended: so does the other
        finally:
            if not line.ended:
                line.cut()
            line.leave()

    def _pass(self, line: Line, sink: Callable[[bytes], None], data: bytes) -> None:
        if self._bytes_s is not None:
            time.sleep(len(data) / self._bytes_s)
        while not self._flows.wait(_LOOK_S):
            if line.ended:
                return
        if self._deaf or line.server is None or line.lost:
            line.lost = True
        else:
            sink(data)


def _connect(target: Target) -> socket.socket:
    if not isinstance(target, str):
        return socket.create_connection(target)
    line = socket.socket(socket.AF_UNIX)
    try:
        line.connect(target)
    except OSError:
        line.close()
        raise
    return line


def _shut(line: socket.socket) -> None:
    with contextlib.suppress(OSError):  # ended already
        line.shutdown(socket.SHUT_RDWR)


def main(host: str, port: str) -> None:
    """Be a program: say the port, then do what stdin says until it ends."""
    with Proxy((host, int(port))) as proxy:
        print(proxy.port, flush=True)
        for text in sys.stdin:
            verb, *arguments = text.split()
            getattr(proxy, verb)(*map(float, arguments))


if __name__ == "__main__":
    main(*sys.argv[1:])
