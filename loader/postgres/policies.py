"""What TimescaleDB does by itself, as far as it is told here: how long rows are kept, and bars of old times.

TimescaleDB keeps a log of which times were changed since their bars were made. So nothing need be remembered here: a
refresh of all times makes the bars of those only, and what a crash left undone is still in the log.
"""

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import LiteralString

import psycopg

from loader.postgres.session import Connection
from loader.stop import Stop
from recorder.runtime.logging import get_logger

# The bars of rows older than this are refreshed here. The policies of schema/market/003_bars.timescale.sql look back
# two days, every five minutes: what is loaded close to that edge is too old for them when they come by the next time.
# Much more would be refreshed by both at once, which TimescaleDB refuses one of them.
LEFT_TO_POLICIES = timedelta(days=2) - timedelta(hours=1)
# A chunk that retention drops so soon is not refreshed any more: its rows might go before they were read.
DROPPED_SOON = timedelta(hours=1)
# A refresh that is refused since a policy is at the same times is tried again, once a second.
TRIES = 10

_BARS = {"trades": "bars_1m", "quotes": "spreads_1m"}
_RETENTION = """
SELECT config ->> 'drop_after' FROM timescaledb_information.jobs
WHERE proc_name = 'policy_retention' AND (hypertable_schema, hypertable_name) = (
    SELECT nspname, relname FROM pg_class JOIN pg_namespace ns ON ns.oid = relnamespace
    WHERE pg_class.oid = to_regclass(%s))
"""
_IS_HYPERTABLE = """
SELECT EXISTS (SELECT FROM timescaledb_information.hypertables WHERE (hypertable_schema, hypertable_name) = (
    SELECT nspname, relname FROM pg_class JOIN pg_namespace ns ON ns.oid = relnamespace
    WHERE pg_class.oid = to_regclass(%s)))
"""
_MARKETS = "SELECT DISTINCT scope FROM ticktape_migrations WHERE scope <> 'database' ORDER BY scope"
_VIEW = """
SELECT to_regclass(%(view)s) IS NOT NULL, EXISTS (
    SELECT FROM timescaledb_information.continuous_aggregates WHERE (view_schema, view_name) = (
        SELECT nspname, relname FROM pg_class JOIN pg_namespace ns ON ns.oid = relnamespace
        WHERE pg_class.oid = to_regclass(%(view)s)))
"""
_REFRESH: LiteralString = "CALL refresh_continuous_aggregate(%s::regclass, %s, %s)"
# So many minutes in one transaction: those of a chunk of quotes. With the server's own ten, five days of trades took
# 12 s, with these 0.4 s. Older servers know of no batches.
_REFRESH_IN_BATCHES: LiteralString = """
CALL refresh_continuous_aggregate(%s::regclass, %s, %s, options => '{"buckets_per_batch": 360}')
"""
_TAKES_OPTIONS = (
    "SELECT bool_or('options' = ANY(proargnames)) FROM pg_proc WHERE proname = 'refresh_continuous_aggregate'"
)
# A policy that is paused, or somebody's own, counts as well.
_CHUNKS = """
WITH named AS (SELECT nspname, relname FROM pg_class JOIN pg_namespace AS ns ON ns.oid = relnamespace
               WHERE pg_class.oid = to_regclass(%(table)s)),
     bounds AS (SELECT date_trunc('minute', now() - %(left)s) AS until,
                       (SELECT max(now() - (config ->> 'drop_after')::interval) + %(soon)s
                        FROM timescaledb_information.jobs, named WHERE proc_name = 'policy_retention'
                        AND (hypertable_schema, hypertable_name) = (nspname, relname)) AS kept_since)
SELECT range_start, least(range_end, until) FROM timescaledb_information.chunks, named, bounds
WHERE (hypertable_schema, hypertable_name) = (nspname, relname)
  AND range_start < until - INTERVAL '2 minutes'  -- less than a bar would be refused
  AND (kept_since IS NULL OR range_end > kept_since)
ORDER BY range_start
"""

log = get_logger("loader")


def is_hypertable(connection: Connection, stream: str) -> bool:
    """Return whether a stream's table is TimescaleDB's; one that was made before the extension is not."""
    return connection.execute(_IS_HYPERTABLE, [f'"{stream}"']).fetchone() == (True,)


def set_retention(connection: Connection, stream: str, days: float) -> None:
    """See to it that chunks of a stream are dropped when they are older; every other policy is replaced."""
    name, drop_after = f'"{stream}"', timedelta(days=days)
    row = connection.execute(_RETENTION, [name]).fetchone()
    if row and connection.execute("SELECT %s::interval = %s", [row[0], drop_after]).fetchone() == (True,):
        return
    with connection.transaction():
        # Adding one where another is would only warn.
        connection.execute("SELECT remove_retention_policy(%s::regclass, if_exists => true)", [name])
        connection.execute("SELECT add_retention_policy(%s::regclass, drop_after => %s)", [name, drop_after])
    log.info("retention.set", stream=stream, days=days)


def joined(chunks: Iterable[tuple[datetime, datetime]]) -> list[tuple[datetime, datetime]]:
    """Put together the times of chunks, in their order, that follow one another without a hole. Pure."""
    found: list[tuple[datetime, datetime]] = []
    for begin, end in chunks:
        if found and begin <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((begin, end))
    return found


def refresh_bars(connection: Connection, stop: Stop) -> None:
    """Bring all bars up to date, as far as they are too old for the policies to come by.

    Only where there are chunks, and none that retention is about to drop: a refresh of times whose rows were dropped
    would delete their bars. Where nothing was changed it takes some milliseconds, however long the time.

    Args:
        connection: no transaction is open on it.
        stop: asked now and then.
    """
    in_batches = connection.execute(_TAKES_OPTIONS).fetchone() == (True,)
    call = _REFRESH_IN_BATCHES if in_batches else _REFRESH
    for (market,) in connection.execute(_MARKETS).fetchall():
        for kind, bars in _BARS.items():
            table, view = f'"{market}_{kind}"', f'"{market}_{bars}"'
            bounds = {"table": table, "left": LEFT_TO_POLICIES, "soon": DROPPED_SOON}
            times = joined(connection.execute(_CHUNKS, bounds).fetchall())
            if times and _is_continuous(connection, view):
                for begin, end in times:
                    _refresh(connection, call, (view, begin, end), stop)


def _is_continuous(connection: Connection, view: str) -> bool:
    """Return whether a view is a continuous aggregate; name it if it is not there at all."""
    there, continuous = connection.execute(_VIEW, {"view": view}).fetchone() or (False, False)
    if not there:
        log.warning("bars.missing", view=view)
    return bool(continuous)


def _refresh(connection: Connection, call: LiteralString, times: tuple[str, datetime, datetime], stop: Stop) -> None:
    reason = ""
    for _ in range(TRIES):
        stop.check()
        try:
            connection.execute(call, times)
        except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected, psycopg.errors.ObjectInUse) as exc:
            reason = " ".join(str(exc).split())
            stop.wait(1)
        # All rows are loaded, and what was not refreshed stays in TimescaleDB's log: no reason to end.
        except (
            psycopg.errors.InsufficientPrivilege, psycopg.errors.UndefinedTable, psycopg.errors.InternalError_,
        ) as exc:  # fmt: skip
            reason = " ".join(str(exc).split())
            break
        else:
            return
    view, begin, end = times
    log.warning("bars.not_refreshed", view=view, reason=reason, begin=str(begin), end=str(end))
