"""A server that does not answer is told from one that is busy, by asking about it over a second connection.

TCP notices a machine that is gone within a minute (the keepalives of loader.postgres.database). It notices neither a
server that hangs, nor a way to it on which something else acknowledges and delivers nothing: a statement would wait
for ever. How long a statement may rightly take nobody knows; somebody's lock may hold it up for an hour.
"""

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from threading import Event, Thread
from typing import Any, TypeVar

import psycopg

from loader.postgres.session import Session
from loader.stop import shut_down
from recorder.runtime.logging import get_logger

# How long one exchange with the server lasts before anything is asked; then it is asked again after the same time. A
# link must bring the 128 KB of one message of a COPY within it, so 2 KB/s are enough.
SILENCE_S = 60.0
# The second connection has this long, the time of connecting included.
ANSWER_S = 15.0

_LOOK = """
SELECT a.state_change::text, a.wait_event_type, a.wait_event, c.bytes_processed
FROM pg_stat_activity a LEFT JOIN pg_stat_progress_copy c USING (pid) WHERE a.pid = %s
"""

log = get_logger("loader")
T = TypeVar("T")


@dataclass(frozen=True)
class Look:
    """What the server says of the session that waits for it."""

    state_since: str
    wait_type: str | None
    wait_event: str | None
    copied_bytes: int | None

    @property
    def waits_for_us(self) -> bool:
        """Whether the server waits for the loader, while the loader waits for the server."""
        return self.wait_event == "ClientRead"


def gone(before: Look | None, now: Look | None) -> str:
    """Decide whether a session that waits is lost; return why, or "" if the server is busy with it. Pure.

    Args:
        before: the look before this one, at the same wait; None if this is the first.
        now: None if the server does not know the session.
    """
    if now is None:
        return "the server has no such session any more"
    if now.waits_for_us and now == before:
        return "each side waits for the other: what is sent does not arrive"
    return ""


@contextlib.contextmanager
def watched(session: Session, connect: Callable[[], "psycopg.Connection[Any]"]) -> Iterator[None]:
    """Within, a session that is lost without a word is cut; who waits on it gets a psycopg.OperationalError.

    Args:
        session: the one to be watched.
        connect: makes another connection to the same server.
    """
    done = Event()
    Thread(target=_watch, args=(session, connect, done), name="patience", daemon=True).start()
    try:
        yield
    finally:
        done.set()


def in_thread(name: str, function: Callable[[], T]) -> "Future[T]":
    """Run what may hang in a thread that nobody has to wait for."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(function())
        except Exception as exc:  # noqa: BLE001 - it is raised where the result is asked for
            future.set_exception(exc)

    Thread(target=run, name=name, daemon=True).start()
    return future


def _watch(session: Session, connect: Callable[[], "psycopg.Connection[Any]"], done: Event) -> None:
    since_s: float | None = None
    before: Look | None = None
    while not done.wait(SILENCE_S):
        if session.waiting_since_s is None or session.waiting_since_s != since_s:
            since_s, before = session.waiting_since_s, None
            continue  # nothing is asked, or it is another exchange than a while ago
        try:
            now = in_thread("look", lambda: _look(connect, session)).result(ANSWER_S)
            why = gone(before, now)
        except TimeoutError:
            now, why = None, f"the server does not answer a second connection within {ANSWER_S:g} s"
        except psycopg.Error as exc:
            reason = " ".join(str(exc).split())
            # Too many connections, say: a server that answers so is there.
            now, why = None, "" if "FATAL: " in reason else reason
        if why and session.waiting_since_s == since_s:
            log.warning("database.silent", reason=why)
            shut_down(session)
            return
        if now:
            log.warning("database.slow", waits_for=now.wait_event or "nothing", kind=now.wait_type or "it runs")
        before = now


def _look(connect: Callable[[], "psycopg.Connection[Any]"], session: Session) -> Look | None:
    with connect() as connection:
        if session.server_pid is None:
            return Look("", None, None, None)  # all that can be told is that the server is there
        row = connection.execute(_LOOK, [session.server_pid]).fetchone()
        return Look(*row) if row else None
