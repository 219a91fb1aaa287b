"""Which kind of server this is, found by asking, never by trial: most trials succeed silently on the wrong kind."""

from dataclasses import dataclass
from typing import Literal

import psycopg

from loader.errors import DatabaseUnfit
from loader.postgres.session import Connection, one_at_a_time

Kind = Literal["plain", "timescale"]

# The columnstore got the names that the schema files use (add_columnstore_policy, …) with this one.
OLDEST_TIMESCALE = (2, 18)
# Before that one rows were lost or checks left out beside it (timescaledb issues 9339, 9381, 10056, 10254).
OLDEST_DIRECT_COMPRESS = (2, 28, 3)

_FACTS = """
SELECT current_setting('server_version'),
       (SELECT extversion FROM pg_extension WHERE extname = 'timescaledb'),
       EXISTS (SELECT FROM pg_available_extensions WHERE name = 'timescaledb'),
       EXISTS (SELECT FROM pg_settings WHERE name LIKE 'timescaledb.%'),
       coalesce(current_setting('timescaledb.license', true), ''),
       EXISTS (SELECT FROM pg_settings WHERE name = 'timescaledb.enable_direct_compress_copy_sort_batches')
"""


@dataclass(frozen=True)
class Facts:
    """What a server says of itself."""

    postgres: str
    extension: str | None  # version of TimescaleDB in this database's catalogue
    available: bool  # it could be created
    library: bool  # it is preloaded
    licence: str
    direct_compress: bool = False  # the settings for it are there


@dataclass(frozen=True)
class Capabilities:
    """How tables are made on this server, and why so."""

    kind: Kind
    why: str
    direct_compress: bool = False  # whether rows can go into the columnstore without being rows first


def choose(facts: Facts) -> Capabilities:
    """Decide which kind of tables a server gets. Pure.

    Raises:
        DatabaseUnfit: rows loaded here would become invisible.
    """
    if facts.extension is None:
        return Capabilities("plain", f"PostgreSQL {facts.postgres} without TimescaleDB")
    if not facts.library:
        raise DatabaseUnfit(
            "the database has the TimescaleDB extension, but the server runs without its library:"
            " rows loaded now would be invisible once it is back",
            remedy="add timescaledb to shared_preload_libraries and restart the server",
        )
    name = f"TimescaleDB {facts.extension} on PostgreSQL {facts.postgres}"
    if facts.licence != "timescale":
        return Capabilities("plain", f"{name} has the {facts.licence or 'unknown'} licence: no columnstore")
    if _version(facts.extension) < OLDEST_TIMESCALE:
        oldest = ".".join(map(str, OLDEST_TIMESCALE))
        return Capabilities("plain", f"{name} is older than {oldest}: no columnstore as it is used here")
    if _version(facts.extension) < OLDEST_DIRECT_COMPRESS or not facts.direct_compress:
        oldest = ".".join(map(str, OLDEST_DIRECT_COMPRESS))
        return Capabilities("timescale", f"{name} with the columnstore; a backlog into it from {oldest} on only")
    return Capabilities("timescale", f"{name} with the columnstore, a backlog directly into it", direct_compress=True)


def ask(connection: Connection, *, create: bool = True) -> Facts:
    """Ask the server; with `create`, create the extension where it is preloaded and only that was left out."""
    facts = _facts(connection)
    if create and facts.extension is None and facts.available and facts.library:
        try:
            # In turn: IF NOT EXISTS does not keep two that create it at once from failing on its key.
            with one_at_a_time(connection):
                connection.execute("CREATE EXTENSION IF NOT EXISTS timescaledb")
        except psycopg.errors.InsufficientPrivilege:
            return facts
        facts = _facts(connection)
    return facts


def _facts(connection: Connection) -> Facts:
    row = connection.execute(_FACTS).fetchone()
    assert row is not None
    return Facts(*row)


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("-", maxsplit=1)[0].split(".") if part.isdigit())
