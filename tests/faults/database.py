"""PostgreSQL's side of the faults: what a client asks of it, message by message; and who judges what is in it.

    wire = Wire()
    with Proxy(socket_of(url), wire) as proxy:
        …                                  # load into through(proxy, url): wire.asked has every message
        wire.plan = at(17, fault)          # the next time something happens before the 17th is sent on

The numbers are the kill points of whoever uses a database: a change of the product that asks one thing more adds one,
and nobody has to name it.
"""

import json
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import parse_qs, urlsplit

import psycopg
import pyarrow as pa
from psycopg import sql

from tests.faults.proxy import Line, Proxy, Reader, Target

# Of the messages a client sends, those after which the server does something: a query, the end of an extended one, a
# piece of a COPY, its end, its failure. What comes before an extended query's end is sent on together with it.
_COUNTED = {b"Q": "", b"S": "", b"d": "COPY data", b"c": "COPY done", b"f": "COPY failed"}
_CANCEL = 80877102
_BEFORE_START = (80877103, 80877104)  # asks for TLS and for GSS encryption: after the answer comes a start


@dataclass(frozen=True)
class Message:
    """One thing that is asked of the server."""

    number: int  # from 1, over all connections
    text: str  # the statement, or what of a COPY it is
    line: Line
    copied_bytes: int  # of rows, since the last BEGIN of its connection

    @property
    def commits_rows(self) -> bool:
        return self.copied_bytes > 0 and self.text == "COMMIT"


class Plan(Protocol):
    """What shall happen at a message; sends it on by calling `do`. An OSError ends the connection."""

    def __call__(self, message: Message, do: Callable[[], Any], /) -> Any: ...


def just_do(_message: Message, do: Callable[[], Any]) -> None:
    """No fault."""
    do()


class Wire:
    """Numbers the messages of all connections through a proxy, and asks the plan about each."""

    def __init__(self, plan: Plan = just_do) -> None:
        self.plan = plan
        self.asked: list[str] = []
        self._lock = threading.Lock()

    def __call__(self, line: Line) -> Reader:
        """Return the reader of one connection."""
        return _Requests(self, line).read

    def begin(self, plan: Plan) -> None:
        """Count from 1 again, under another plan."""
        with self._lock:
            self.asked, self.plan = [], plan

    def message(self, line: Line, text: str, *, copied_bytes: int, do: Callable[[], Any]) -> None:
        with self._lock:
            self.asked.append(text)
            message, plan = Message(len(self.asked), text, line, copied_bytes), self.plan
        plan(message, do)


class _Requests:
    """Cuts the bytes of one client into messages."""

    def __init__(self, wire: Wire, line: Line) -> None:
        self._wire, self._line = wire, line
        self._rest = b""
        self._held = b""  # of an extended query that has not ended
        self._started = False
        self._copied_bytes = 0
        self._text = ""
        self._prepared: dict[bytes, str] = {}

    def read(self, data: bytes) -> None:
        self._rest += data
        while (size := self._size()) and len(self._rest) >= size:
            message, self._rest = self._rest[:size], self._rest[size:]
            self._message(message)

    def _size(self) -> int:
        """Return how long the next message is; 0 while that is not known."""
        at = 1 if self._started else 0
        return at + int.from_bytes(self._rest[at : at + 4], "big") if len(self._rest) >= at + 4 else 0

    def _message(self, message: bytes) -> None:
        if not self._started:
            self._started = int.from_bytes(message[4:8], "big") not in (_CANCEL, *_BEFORE_START)
            self._line.to_server(message)
            return
        kind, body = message[:1], message[5:]
        if kind == b"Q":
            self._text = body[:-1].decode()
        elif kind == b"P":
            name, statement = body.split(b"\0")[:2]
            self._text = self._prepared[name] = statement.decode()
        elif kind == b"B":
            self._text = self._prepared[body.split(b"\0")[1]]
        self._held += message
        if kind not in _COUNTED:
            if kind == b"X":
                self._send()
            return
        text = " ".join((_COUNTED[kind] or self._text).split())
        if text.startswith("BEGIN"):
            self._copied_bytes = 0
        elif kind == b"d":
            self._copied_bytes += len(body)
        self._wire.message(self._line, text, copied_bytes=self._copied_bytes, do=self._send)

    def _send(self) -> None:
        held, self._held = self._held, b""
        self._line.to_server(held)


# Plans


def at(number: int, fault: Callable[[], Any], *, sent: bool = False) -> Plan:
    """Let something happen before the n-th message is sent on, or when it was and its answer was not waited for.

    If it raises an OSError the message is not sent on.
    """

    def plan(message: Message, do: Callable[[], Any]) -> None:
        if message.number == number and not sent:
            fault()
        do()
        if message.number == number and sent:
            fault()

    return plan


def once(chosen: Callable[[Message], bool], fault: Callable[[], Any], *, sent: bool = False) -> Plan:
    """Let something happen at the first message that is chosen."""
    waiting = [fault]

    def plan(message: Message, do: Callable[[], Any]) -> None:
        fault = waiting.pop() if waiting and chosen(message) else None
        if fault and not sent:
            fault()
        do()
        if fault and sent:
            fault()

    return plan


def commit_reply_lost(times: int = 1) -> Plan:
    """Send a COMMIT of rows on, and cut before its answer: nobody knows, but for the ledger."""
    left = [None] * times

    def plan(message: Message, do: Callable[[], Any]) -> None:
        if message.commits_rows and left:
            left.pop()
            message.line.cut_client()  # first, so that the answer has nowhere to go
        do()

    return plan


# Where a server is


def socket_of(url: str) -> Target:
    """Return what a proxy before the server of a URL connects to."""
    parts = urlsplit(url)
    folder = parse_qs(parts.query).get("host", [""])[0]
    port = parts.port or 5432
    return f"{folder}/.s.PGSQL.{port}" if folder else (parts.hostname or "127.0.0.1", port)


def through(proxy: Proxy, url: str) -> str:
    """Return the URL of the same database through a proxy."""
    parts = urlsplit(url)
    user = parts.netloc.rpartition("@")[0] or "postgres"
    return f"postgresql://{user}@127.0.0.1:{proxy.port}{parts.path}"


# The judge: plain pyarrow and SQL, nothing of the product's


def tape_segments(root: Path) -> dict[str, tuple[str, list[Any]]]:
    """Return what the sealed files hold, copies once: segment_id -> (stream, rows)."""
    found: dict[str, tuple[str, list[Any]]] = {}
    for path in sorted(root.glob("*/date=*/*.arrow")):
        with pa.ipc.open_stream(pa.BufferReader(path.read_bytes()[8:])) as reader:
            metadata = reader.schema.metadata
            rows = [tuple(row.values()) for batch in reader for row in batch.to_pylist()]
        found[metadata[b"segment_id"].decode()] = (metadata[b"stream"].decode(), rows)
    return found


def differences(root: Path, url: str, *, whole: bool = True) -> list[str]:
    """Judge a database by its tape: I1 every row of every sealed segment, I2 none twice, I3 as it is; ledger true.

    Args:
        root: the tape.
        url: the database.
        whole: whether all of the tape must be there; if not, what is there must be right all the same.
    """
    found: list[str] = []
    tape = tape_segments(root)
    with psycopg.connect(url) as connection:
        connection.execute("SET TIME ZONE 'UTC'")
        if not whole and connection.execute("SELECT to_regclass('loaded_segments')").fetchone() == (None,):
            return []
        ledger = {
            segment_id: (number, stream, rows)
            for segment_id, number, stream, rows in connection.execute(
                "SELECT segment_id::text, segment, stream, rows FROM loaded_segments"
            )
        }
        if not whole:
            tape = {segment_id: held for segment_id, held in tape.items() if segment_id in ledger}
        if ledger.keys() != tape.keys():
            found.append(f"ledger without {tape.keys() - ledger.keys()}, with {ledger.keys() - tape.keys()} besides")
        for stream in sorted({stream for stream, _ in tape.values()} | {stream for _, stream, _ in ledger.values()}):
            there: dict[int | None, Counter[str]] = {}
            for *row, number in connection.execute(sql.SQL("SELECT * FROM {}").format(sql.Identifier(stream))):
                there.setdefault(number, Counter())[_key(row)] += 1
            for segment_id, (_, rows) in ((one, held) for one, held in tape.items() if held[0] == stream):
                number, _, said = ledger.get(segment_id, (None, stream, 0))
                wanted, got = Counter(map(_key, rows)), there.pop(number, Counter()) if number else Counter()
                if wanted != got or said != len(rows):
                    found.append(
                        f"{stream} {segment_id}: {(wanted - got).total()} rows missing, {(got - wanted).total()} too"
                        f" many, the ledger says {said} of {len(rows)}"
                    )
            found += [f"{stream}: {rows.total()} rows of segment {number}" for number, rows in there.items()]
    return found


def _key(row: Any) -> str:
    return json.dumps([value.timestamp() if isinstance(value, datetime) else value for value in row])
