"""What a retention policy of TimescaleDB has dropped: rows before a moment, which an audit leaves out."""

from datetime import datetime

from loader.postgres.session import Connection

# A paused policy counts, too: it has dropped what it had dropped.
_FACTS = """
WITH named AS (SELECT nspname, relname FROM pg_class JOIN pg_namespace AS ns ON ns.oid = relnamespace
               WHERE pg_class.oid = to_regclass(%s))
SELECT (SELECT min(now() - (config ->> 'drop_after')::interval) FROM timescaledb_information.jobs, named
        WHERE proc_name = 'policy_retention' AND (hypertable_schema, hypertable_name) = (nspname, relname)),
       (SELECT min(range_start) FROM timescaledb_information.chunks, named
        WHERE (hypertable_schema, hypertable_name) = (nspname, relname))
"""
_KNOWN = "SELECT to_regclass('timescaledb_information.jobs') IS NOT NULL"


def kept_since(drops_before: datetime | None, oldest_chunk: datetime | None) -> datetime | None:
    """Decide before which moment rows are left out of an audit; None: none are. Pure.

    Before the oldest chunk there is nothing; only what a policy may drop by now can be missing by its doing. What is
    missing between the two is missing.

    Args:
        drops_before: what is older may be dropped; None without a policy.
        oldest_chunk: the start of the oldest one that is left; None if there is none.
    """
    if drops_before is None or oldest_chunk is None:
        return drops_before
    return min(drops_before, oldest_chunk)


def retention_of(connection: Connection, stream: str) -> datetime | None:
    """Ask a server before which moment the rows of a stream are left out."""
    if connection.execute(_KNOWN).fetchone() != (True,):
        return None
    facts = connection.execute(_FACTS, [f'"{stream}"']).fetchone()
    assert facts is not None
    return kept_since(*facts)
