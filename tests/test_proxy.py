"""The proxy of the faults does what its verbs say."""

import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import pytest

from tests.faults.database import Message, Wire, just_do
from tests.faults.proxy import Proxy, Target
from tests.fix_postgres import ROOT, wait_for


@pytest.fixture
def echo() -> Iterator[Target]:
    """A server that says what it hears."""
    listener = socket.create_server(("127.0.0.1", 0))

    def answer(line: socket.socket) -> None:
        with line:
            try:
                while data := line.recv(1000):
                    line.sendall(data)
            except OSError:
                pass  # a reset

    def accept() -> None:
        while True:
            try:
                line, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(line,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    yield "127.0.0.1", listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


@pytest.fixture
def proxy(echo: Target) -> Iterator[Proxy]:
    with Proxy(echo) as running:
        yield running


@pytest.fixture
def line(proxy: Proxy) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=10) as client:
        assert said(client, b"hello") == b"hello"
        yield client


def said(line: socket.socket, text: bytes) -> bytes:
    line.sendall(text)
    heard = b""
    while len(heard) < len(text) and (more := line.recv(1000)):
        heard += more
    return heard


def silent(line: socket.socket, text: bytes) -> bool:
    line.sendall(text)
    line.settimeout(0.3)
    try:
        return not line.recv(1000)
    except TimeoutError:
        return True
    finally:
        line.settimeout(10)


def test_cut_ends_a_connection_and_reset_breaks_it(proxy: Proxy, line: socket.socket) -> None:
    """FIN is an end, RST an error; the next connection works."""
    proxy.cut()
    assert line.recv(10) == b""
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=10) as other:
        assert said(other, b"again") == b"again"
        proxy.reset()
        with pytest.raises(ConnectionResetError):
            other.recv(10)


def test_stall_holds_and_slow_delivers(proxy: Proxy, line: socket.socket) -> None:
    """What was sent into a stall comes when it is over, and what goes slowly comes whole."""
    proxy.stall()
    assert silent(line, b"held")
    proxy.heal()
    assert line.recv(10) == b"held"
    proxy.slow(2000)
    assert said(line, bytes(500)) == bytes(500)


def test_deaf_takes_all_and_answers_nothing(proxy: Proxy, line: socket.socket) -> None:
    """Old connections and new ones; when it hears again those that lost something are ended."""
    proxy.deaf()
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=10) as other:
        assert silent(line, b"lost")
        assert silent(other, b"lost")
        proxy.heal()
        assert (line.recv(10), other.recv(10)) == (b"", b"")
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=10) as another:
        assert said(another, b"again") == b"again"


def test_refuse_resets_old_and_new_connections(proxy: Proxy, line: socket.socket) -> None:
    """Until it is healed."""
    proxy.refuse()
    with pytest.raises(ConnectionResetError):
        line.recv(10)
    with (
        pytest.raises(ConnectionResetError),
        socket.create_connection(("127.0.0.1", proxy.port), timeout=10) as other,
    ):
        other.recv(10)
    proxy.heal()
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=10) as another:
        assert said(another, b"again") == b"again"


def test_it_runs_as_a_program(echo: Target) -> None:
    """It says its port, and takes verbs from stdin."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.faults.proxy", *map(str, echo)],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        port = int(process.stdout.readline())
        with socket.create_connection(("127.0.0.1", port), timeout=10) as line:
            assert said(line, b"hello") == b"hello"
            process.stdin.write("slow 1000\ncut\n")
            process.stdin.flush()
            assert line.recv(10) == b""
        process.stdin.close()
        assert process.wait(10) == 0


def test_postgres_messages_are_told_apart_however_they_are_cut(echo: Target) -> None:
    """Statements with and without parameters, prepared ones, and the rows of a COPY, a byte at a time."""

    def message(kind: bytes, body: bytes) -> bytes:
        return kind + struct.pack("!i", len(body) + 4) + body

    start = struct.pack("!ii", 8, 80877103) + struct.pack("!ii", 9, 196608) + b"\0"
    asked = [
        message(b"Q", b"BEGIN\0"),
        message(b"P", b"one\0SELECT $1\0\0\0") + message(b"S", b""),
        message(b"P", b"\0SELECT 2\0\0\0") + message(b"B", b"\0\0") + message(b"E", b"") + message(b"S", b""),
        message(b"B", b"\0one\0") + message(b"E", b"") + message(b"S", b""),
        message(b"Q", b"COPY t FROM STDIN\0"),
        message(b"d", b"12345"),
        message(b"c", b""),
        message(b"Q", b"COMMIT\0"),
    ]
    commits: list[Message] = []

    def note(one: Message, do: Callable[[], object]) -> None:
        if one.commits_rows:
            commits.append(one)
        do()

    wire = Wire(note)
    with Proxy(echo, wire) as proxy, socket.create_connection(("127.0.0.1", proxy.port), timeout=10) as line:
        sent = start + b"".join(asked)
        for number in range(len(sent)):
            line.sendall(sent[number : number + 1])
        heard = b""
        while len(heard) < len(sent):
            heard += line.recv(1000)
        wait_for(lambda: len(wire.asked) == len(asked))

    assert heard == sent
    assert wire.asked == [
        "BEGIN", "SELECT $1", "SELECT 2", "SELECT $1", "COPY t FROM STDIN", "COPY data", "COPY done", "COMMIT",
    ]  # fmt: skip
    assert [one.copied_bytes for one in commits] == [5]
    wire.begin(just_do)
    assert wire.asked == []
