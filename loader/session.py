"""A session with the server: its type, its settings, and the turns that loaders take."""

import contextlib
from collections.abc import Iterator
from typing import Any

import psycopg

Connection = psycopg.Connection[tuple[Any, ...]]

# What a session of ours sets. SET would fail on servers that do not know a name: set what is there.
_SESSION = """
SELECT set_config(name, value, false)
FROM pg_settings JOIN (VALUES
    -- Rows go into the rowstore, whatever the database's own default is.
    ('timescaledb.enable_direct_compress_copy', 'off'),
    ('timescaledb.enable_direct_compress_copy_client_sorted', 'off'),
    -- A loader that was killed while its COPY waits for a lock must not hold the ledger's key for ever.
    ('client_connection_check_interval', '5s')
) AS wanted (name, value) USING (name)
"""
# What is made once per database is made by one loader after the other. Any constant does; this one is ours.
_ADVISORY_LOCK = 0x7469636B  # "tick"


def set_up_session(connection: Connection) -> None:
    """Set what a loading session needs, as far as this server knows it."""
    connection.execute(_SESSION)


@contextlib.contextmanager
def one_at_a_time(connection: Connection) -> Iterator[None]:
    """Within, no other loader makes or changes the schema of this database."""
    connection.execute("SELECT pg_advisory_lock(%s)", [_ADVISORY_LOCK])
    try:
        yield
    finally:
        if not connection.closed:
            connection.execute("SELECT pg_advisory_unlock(%s)", [_ADVISORY_LOCK])
