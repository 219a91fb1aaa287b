"""What TimescaleDB does by itself, as far as it is told here: how long rows are kept, and bars of old times."""

from datetime import UTC, datetime, timedelta

import psycopg

from loader.postgres.session import Connection
from loader.postgres.tables import market_of
from recorder.runtime.logging import get_logger
from recorder.segments.schemas import stream_kind

# How far back the policies of schema/market/003_bars.timescale.sql refresh bars. A shorter retention would let them
# delete the bars of what was dropped.
REFRESHED = timedelta(days=2)

_BARS = {"trades": "bars_1m", "quotes": "spreads_1m"}
_RETENTION = """
SELECT config ->> 'drop_after' FROM timescaledb_information.jobs
WHERE proc_name = 'policy_retention' AND (hypertable_schema, hypertable_name) = (
    SELECT nspname, relname FROM pg_class JOIN pg_namespace ns ON ns.oid = relnamespace
    WHERE pg_class.oid = to_regclass(%s))
"""

log = get_logger("loader")


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


def refresh_bars(connection: Connection, stream: str, first: datetime, last: datetime) -> None:
    """Bring the bars of loaded rows up to date, as far as they are too old for the policies to come by."""
    kind, until = stream_kind(stream) or "", datetime.now(UTC) - REFRESHED
    if kind not in _BARS or first >= until:
        return
    minute = timedelta(minutes=1)
    begin = first.replace(second=0, microsecond=0)
    end = min(last, until).replace(second=0, microsecond=0) + minute
    view = f'"{market_of(stream)}_{_BARS[kind]}"'
    try:
        connection.execute("CALL refresh_continuous_aggregate(%s::regclass, %s, %s)", [view, begin, end])
    except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected, psycopg.errors.ObjectInUse) as exc:
        log.warning(
            "bars.not_refreshed", view=view, reason=" ".join(str(exc).split()), begin=str(begin), end=str(end)
        )
