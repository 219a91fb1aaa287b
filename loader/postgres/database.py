"""The database to load into: how it is reached, how its name is shown, and what its errors mean."""

import contextlib
import itertools
from collections.abc import Iterator, Mapping
from concurrent.futures import wait
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
from psycopg.conninfo import conninfo_to_dict

from loader.errors import DatabaseAway, DatabaseUnfit, LoaderError
from loader.postgres.embedded import Embedded
from loader.postgres.patience import in_thread, watched
from loader.postgres.session import Connection, Session
from loader.settings import LoaderSettings
from loader.stop import Stop
from recorder.runtime.data_dir import DataDir
from recorder.runtime.errors import SettingsError

CONNECT_TIMEOUT_S = 10
# A server that went away without a word (power, network) is noticed after a minute and not after two hours.
_KEEPALIVES = {
    "keepalives": 1, "keepalives_idle": 20, "keepalives_interval": 10, "keepalives_count": 4,
    "tcp_user_timeout": 60_000,
}  # fmt: skip

# SQLSTATE classes that pass by themselves or by somebody's hand, without a change of what we send: connection,
# transaction rollback, resources (disk full, too many connections), operator, and system errors.
_PASSING_CLASSES = frozenset({"08", "40", "53", "57", "58"})
# Read only (a failover); too long idle in a transaction, or too long a one (a loader that was asleep); lock timeout.
_PASSING = frozenset({"25006", "25P03", "25P04", "55P03"})
# Rolled back by the server in favour of another transaction: done again at once.
ROLLED_BACK = (psycopg.errors.DeadlockDetected, psycopg.errors.SerializationFailure)
# Data that the table does not take: the segment's own fault, once the table's columns were found right.
DATA_ERRORS = (psycopg.DataError, psycopg.IntegrityError)

_REMEDIES = {
    "42501": "grant the user of DATABASE_URL the right to create and fill tables there",
    "53100": "free some disk space on the database server",
    "25006": "point DATABASE_URL to a server that may be written",
}
# A connection that is refused has no SQLSTATE, only the server's words.
_CONNECT_REMEDIES = {
    "authentication failed": "check user and password in DATABASE_URL",
    "no password supplied": "give the password in DATABASE_URL",
    'role "': "check the user in DATABASE_URL",
    'database "': "create the database, or correct its name in DATABASE_URL",
}


class Database:
    """A PostgreSQL given by DATABASE_URL, or the embedded one of DATA_DIR."""

    def __init__(self, settings: LoaderSettings, stop: Stop) -> None:
        """Take the settings; nothing is reached or started yet.

        Raises:
            SettingsError: DATABASE_URL is no connection string.
        """
        self._stop = stop
        self._url = settings.database_url
        if self._url:
            self.shown = show(self._url)
            self._embedded = None
        else:
            self._embedded = Embedded(DataDir(Path(settings.data_dir).resolve()).postgres)
            self.shown = "the embedded PostgreSQL"

    @contextlib.contextmanager
    def connect(self) -> Iterator[Connection]:
        """Connect, starting the embedded server where that is the one; a stop cuts whatever is under way.

        Raises:
            DatabaseAway: it cannot be reached, now or later inside the block.
            DatabaseUnfit: it answers that it will not take this, whenever it is asked.
            Stopped: a signal asked for the end.
        """
        with self._errors_explained():
            if self._embedded:
                self._url = self._embedded.ensure_running(self._stop)
                self.shown = self._url
            with (
                self._connection() as connection,
                self._stop.cuts(connection),
                watched(connection, lambda: psycopg.connect(self._url, **self._options())),
            ):
                yield connection

    def close(self) -> None:
        """Stop the embedded server, if this process is the one that started it."""
        if self._embedded:
            self._embedded.close()

    def _connection(self) -> Session:
        """Connect in a thread: a name service or network that hangs must not hold up a stop."""
        future = in_thread("connect", lambda: Session.connect(self._url, **self._options()))
        while not wait([future], timeout=0.1).done:
            self._stop.check()
        return future.result()

    def _options(self) -> dict[str, Any]:
        return {
            "autocommit": True,
            "application_name": "ticktape-loader",
            "connect_timeout": CONNECT_TIMEOUT_S,
            **_KEEPALIVES,
            **_given(self._url),
        }

    @contextlib.contextmanager
    def _errors_explained(self) -> Iterator[None]:
        try:
            yield
        except psycopg.Error as exc:
            self._stop.check()  # the connection was cut on purpose
            raise explain(exc, self.shown) from exc
        except UnicodeError as exc:  # of Python's own, where psycopg looks the host up
            raise DatabaseUnfit(f"{self.shown}: no host can have that name", remedy="correct DATABASE_URL") from exc


def explain(exc: psycopg.Error, shown: str) -> LoaderError:
    """Decide what an error of the database means: worth trying again, or for a person. Pure."""
    state = exc.sqlstate or ""
    reason = " ".join(str(exc).split())
    # A connection that fails or is lost carries no SQLSTATE.
    if not state and isinstance(exc, (psycopg.OperationalError, psycopg.InterfaceError)):
        said = reason.partition("FATAL: ")[2]
        remedy = next((remedy for words, remedy in _CONNECT_REMEDIES.items() if words in said), "")
        return DatabaseAway(f"{shown}: {reason}", remedy=remedy)
    if state[:2] in _PASSING_CLASSES or state in _PASSING:
        return DatabaseAway(f"{shown}: {reason}", remedy=_REMEDIES.get(state, ""))
    return DatabaseUnfit(f"{shown}: {reason} (SQLSTATE {state or 'none'})", remedy=_REMEDIES.get(state, ""))


def show(url: str) -> str:
    """Return a connection string without its password, as a URL.

    Raises:
        SettingsError: it is no connection string, or one whose password was cut in two; told without repeating it.
    """
    try:
        parts = conninfo_to_dict(url)
    except psycopg.Error:
        raise _wrong("something that is no connection string") from None
    if misread := _misread(url, parts):
        raise _wrong(misread)
    user, hosts, ports = (str(parts.get(name, "")) for name in ("user", "host", "port"))
    folder = hosts if hosts.startswith("/") else ""  # of a unix socket
    places = itertools.zip_longest(hosts.split(","), ports.split(","), fillvalue="")
    return (
        "postgresql://"
        + (f"{quote(user)}@" if user else "")
        + ("" if folder else ",".join(f"{host}:{port}" if port else host for host, port in places))
        + f"/{quote(str(parts.get('dbname', '')))}"
        + (f"?host={quote(folder)}" if folder else "")
    )


def _misread(url: str, parts: Mapping[str, Any]) -> str:
    """Say what no server can be reached by; "" if there is nothing.

    A / or @ in a password that is not percent-encoded ends it: what follows counts as port, host, or database then,
    and would be told wherever these are.
    """
    ports = [port.strip() for port in str(parts.get("port", "")).split(",")]
    if not all(port.isascii() and port.isdecimal() and 1 <= int(port) <= 65535 for port in ports if port):
        return "a port that is no number from 1 to 65535"
    if any("@" in host[1:] for host in str(parts.get("host", "")).split(",")):  # in front it is an abstract socket
        return "an @ in the host"
    path = url.partition("://")[2].partition("/")[2].partition("?")[0]
    if "@" in path and url.startswith(("postgresql://", "postgres://")):
        return "an @ in the database"  # %40 there may well be its name
    return ""


def _wrong(got: str) -> SettingsError:
    expected = f"expected postgresql://user:password@host:port/database, got {got}"
    return SettingsError(
        [f"DATABASE_URL: {expected}; percent-encode what is special in user and password: / as %2F, @ as %40"]
    )


def _given(url: str) -> dict[str, Any]:
    """Return what a connection string says itself of the things we would set."""
    parts = conninfo_to_dict(url)
    return {name: parts[name] for name in ("connect_timeout", *_KEEPALIVES) if name in parts}
