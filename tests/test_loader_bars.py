"""Bars and retention on TimescaleDB: whatever was interrupted, dropped, or made before it was there."""

import signal
import time
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import psycopg
import pytest

from loader.postgres.capabilities import ask
from loader.postgres.policies import joined
from loader.sender import Target
from tests.fix_postgres import Process, load_once, make_rows, query, record, run_loader, wait_for

QUOTES, TRADES, SPREADS = "eth_option_quotes", "eth_option_trades", "eth_option_spreads_1m"
COUNT = 240
REFRESH = f"CALL refresh_continuous_aggregate('{SPREADS}', now() - INTERVAL '2 days', now() - INTERVAL '1 minute')"
COMPUTED = f"""
SELECT date_bin(INTERVAL '1 minute', "timestamp", TIMESTAMPTZ '2000-01-01 00:00Z'), instrument, count(*)
FROM {QUOTES} GROUP BY 1, 2 ORDER BY 1, 2
"""
KEPT = f"SELECT minute, instrument, quotes FROM {SPREADS} ORDER BY 1, 2"


def days_ago(days: float) -> int:
    return int((time.time() - days * 86400) * 1e6)


def quotes_of(root: Path, days: float) -> None:
    record(root, [{QUOTES: make_rows(QUOTES, COUNT, start_us=days_ago(days))}], recorder=f"r{int(days * 100)}")


def followed(root: Path, url: str) -> None:
    """Load what is fresh, and let the bars be kept as far as the policy does."""
    quotes_of(root, 0.1)
    load_once(root, url)
    wait_for(lambda: query(url, REFRESH) == [])  # refused while the policy is at it, too


def test_times_of_chunks_are_joined_up_to_a_hole() -> None:
    """One refresh for all that is without a hole, none over a hole."""
    day = [datetime(2026, 6, number, tzinfo=UTC) for number in range(1, 8)]

    assert joined([]) == []
    assert joined([(day[0], day[1]), (day[1], day[2]), (day[4], day[5])]) == [(day[0], day[2]), (day[4], day[5])]


def test_bars_of_what_a_killed_loader_left_are_made_by_the_next(tmp_path: Path, timescale_database: str) -> None:
    """Its segments are in the ledger, so nothing is loaded again; the bars of their times are there all the same."""
    record(tmp_path, [{TRADES: make_rows(TRADES, 3, start_us=days_ago(0.1))}])
    followed(tmp_path, timescale_database)
    quotes_of(tmp_path, 5)
    record(tmp_path, [{TRADES: make_rows(TRADES, 3, start_us=days_ago(0.1))}], recorder="later")
    with (
        psycopg.connect(timescale_database) as holder,
        Process("load", "--once", root=tmp_path, url=timescale_database) as loader,
    ):
        holder.execute(f"LOCK TABLE {TRADES} IN ACCESS EXCLUSIVE MODE")  # its pass does not end
        wait_for(lambda: query(timescale_database, f"SELECT count(*) FROM {QUOTES}") == [(2 * COUNT,)])
        loader.signal(signal.SIGKILL)
    assert query(timescale_database, KEPT) != query(timescale_database, COMPUTED)
    assert load_once(tmp_path, timescale_database).segments == 1

    assert query(timescale_database, KEPT) == query(timescale_database, COMPUTED)


def test_bars_of_rows_that_retention_dropped_are_kept(tmp_path: Path, timescale_database: str) -> None:
    """Also where late segments are of those times, or older, and whether a policy or a person dropped the rows."""
    for days in (40, 20, 10):
        quotes_of(tmp_path, days)
    followed(tmp_path, timescale_database)
    before = query(timescale_database, KEPT)
    for days in (30, 15):  # the second is not the policy's
        dropped = "SELECT drop_chunks(%s, older_than => %s)"
        query(timescale_database, dropped, QUOTES, datetime.now(UTC) - timedelta(days=days))
    for late in (200, 40.02, 5):
        quotes_of(tmp_path, late)
    load_once(tmp_path, timescale_database, target=Target(retention_days=30))
    after = query(timescale_database, KEPT)
    first_kept = datetime.now(UTC) - timedelta(days=30)

    assert len(before) >= 4 * 3
    assert set(before) <= set(after)
    assert {row for row in query(timescale_database, COMPUTED) if row[0] > first_kept} <= set(after)


def test_tables_made_before_timescaledb_was_there_stay_as_they_are(
    tmp_path: Path, timescale_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loader goes on, with old rows and with RETENTION_DAYS, and says that retention is impossible."""
    quotes_of(tmp_path, 6)
    with monkeypatch.context() as patch:
        patch.setattr("loader.load.ask", partial(ask, create=False))
        load_once(tmp_path, timescale_database)
    assert query(timescale_database, "SELECT 1 FROM pg_extension WHERE extname = 'timescaledb'") == []
    quotes_of(tmp_path, 5)
    load_once(tmp_path, timescale_database)
    assert query(timescale_database, "SELECT 1 FROM pg_extension WHERE extname = 'timescaledb'") != []
    quotes_of(tmp_path, 4)
    loader = run_loader("load", "--once", "--retention-days", "30", root=tmp_path, url=timescale_database)

    assert (loader.popen.returncode, "retention.impossible" in loader.err) == (0, True), loader.err
    assert query(timescale_database, KEPT) == query(timescale_database, COMPUTED)
    assert query(timescale_database, f"SELECT count(*) FROM {QUOTES}") == [(3 * COUNT,)]


def test_a_bars_view_that_was_dropped_is_named(tmp_path: Path, timescale_database: str) -> None:
    """Rows of old times are loaded, and the end is that of a load."""
    followed(tmp_path, timescale_database)
    query(timescale_database, f"DROP MATERIALIZED VIEW {SPREADS}")
    quotes_of(tmp_path, 5)
    loader = run_loader("load", "--once", root=tmp_path, url=timescale_database)

    assert loader.popen.returncode == 0, loader.err
    assert "bars.missing" in loader.err
    assert SPREADS in loader.err
    assert query(timescale_database, f"SELECT count(*) FROM {QUOTES}") == [(2 * COUNT,)]
