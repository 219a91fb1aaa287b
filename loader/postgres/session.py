"""A session with the server: its type, its settings, and the turns that loaders take."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import psycopg

Connection = psycopg.Connection[tuple[Any, ...]]


class Session(psycopg.Connection[tuple[Any, ...]]):
    """A connection that tells since when it has been waiting for the server (loader.postgres.patience)."""

    waiting_since_s: float | None = None  # by the monotonic clock; None: nothing is asked of the server just now
    server_pid: int | None = None  # as the server itself knows it: a pooler between tells clients another one

    def wait(self, *arguments: Any, **options: Any) -> Any:
        """Wait as psycopg does at every exchange with the server: a statement, a piece of a COPY, a COMMIT."""
        self.waiting_since_s = time.monotonic()
        try:
            return super().wait(*arguments, **options)
        finally:
            self.waiting_since_s = None


# What a session of ours sets.
SETTINGS = {
    # Rows go into the rowstore, whatever the database's own default is.
    "timescaledb.enable_direct_compress_copy": "off",
    "timescaledb.enable_direct_compress_copy_client_sorted": "off",
    # A segment is loaded whole or not at all: a limit that it exceeds once it would exceed for ever.
    "statement_timeout": "0",
    # A loader that is gone must not hold a ledger key, for which others wait, for ever: one killed while its COPY
    # waits for a lock; one whose machine lost its power; one stopped or asleep between two statements.
    "client_connection_check_interval": "5s",
    "tcp_keepalives_idle": "20",
    "tcp_keepalives_interval": "10",
    "tcp_keepalives_count": "4",
    "tcp_user_timeout": "60000",
    "idle_in_transaction_session_timeout": "60s",
}
# SET would fail on servers that do not know a name: set what is there.
_SET = """
SELECT set_config(name, value, false)
FROM pg_settings JOIN unnest(%s::text[], %s::text[]) AS wanted (name, value) USING (name)
"""
# The schema of an extension is looked into last: its functions are called by name.
_LOOK_IN = """
SELECT set_config('search_path', concat_ws(', ', quote_ident(%s), (
    SELECT quote_ident(nspname) FROM pg_extension JOIN pg_namespace ns ON ns.oid = extnamespace
    WHERE extname = 'timescaledb')), false)
"""
# What is made once per database is made by one loader after the other. Any constant does; this one is ours.
_ADVISORY_LOCK = 0x7469636B  # "tick"


def set_up_session(connection: Connection, schema: str | None = None) -> None:
    """Set what a loading session needs, as far as this server knows it.

    Args:
        connection: it is of loader.postgres.database.
        schema: where the tables are, and are made; None where the server looks by itself.
    """
    connection.execute(_SET, [list(SETTINGS), list(SETTINGS.values())])
    if schema:
        connection.execute(_LOOK_IN, [schema])
    # Whatever the server's default: what is checked last in a transaction must see the newest state.
    connection.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
    row = connection.execute("SELECT pg_backend_pid()").fetchone()
    if row and isinstance(connection, Session):
        connection.server_pid = row[0]


@contextlib.contextmanager
def one_at_a_time(connection: Connection) -> Iterator[None]:
    """Within, no other loader makes or changes the schema of this database."""
    connection.execute("SELECT pg_advisory_lock(%s)", [_ADVISORY_LOCK])
    try:
        yield
    finally:
        if not connection.closed:
            connection.execute("SELECT pg_advisory_unlock(%s)", [_ADVISORY_LOCK])
