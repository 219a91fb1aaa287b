"""How rows get into TimescaleDB's columnstore, and that every order of loading answers rightly."""

import shutil
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest

from loader.postgres import columnstore
from loader.postgres.columnstore import WORTH_A_REWRITE, Chunk, Order, Way, choose_way
from loader.sender import Target
from recorder.segments.schemas import SCHEMAS
from tests.fix_postgres import START_US, load_once, make_rows, query, record, same_rows

QUOTES, TRADES = "eth_option_quotes", "eth_option_trades"
OURS = Order("instrument", '"timestamp"')
US_PER_SEC = 1_000_000

STATUS = """
SELECT _timescaledb_functions.chunk_status_text(chunk) FROM show_chunks('{}') AS chunk ORDER BY 1
"""
NEWEST = f"""
SELECT instrument, max("timestamp"), (
    SELECT "timestamp" FROM {TRADES} AS last WHERE last.instrument = all_rows.instrument
    ORDER BY "timestamp" DESC LIMIT 1
) FROM {TRADES} AS all_rows GROUP BY instrument ORDER BY instrument
"""


@pytest.mark.parametrize(
    ("table", "chunks", "rows", "way"),
    [
        (None, [], 10**6, Way.ROWSTORE),
        (OURS, [], 999, Way.ROWSTORE),
        (OURS, [], 1000, Way.COMPRESSED),
        (Order("instrument", None), [], 1000, Way.COMPRESSED_BY_SERVER),  # left out, it is "timestamp" DESC
        (Order("instrument", '"timestamp" DESC'), [], 1000, Way.COMPRESSED_BY_SERVER),
        (Order(None, '"timestamp"'), [], 1000, Way.COMPRESSED_BY_SERVER),
        (OURS, [Chunk(["COMPRESSED", "UNORDERED"], OURS)], 1000, Way.COMPRESSED),
        (OURS, [Chunk([], None)], 1000, Way.COMPRESSED),
        (OURS, [Chunk(["COMPRESSED"], OURS)], WORTH_A_REWRITE - 1, Way.ROWSTORE),
        (OURS, [Chunk(["COMPRESSED"], OURS)], WORTH_A_REWRITE, Way.COMPRESSED),
        (OURS, [Chunk(["COMPRESSED", "UNORDERED"], Order(None, "x"))], 1000, Way.COMPRESSED_BY_SERVER),
    ],
)
def test_the_way_rows_go_in(table: Order | None, chunks: list[Chunk], rows: int, way: Way) -> None:
    """Few of an instrument, and late ones, as rows; others in runs that the server need not sort, if they fit."""
    assert choose_way(table, chunks, rows=rows, instruments=10, running=False) == way


@pytest.mark.parametrize("chunks", [[], [Chunk(["COMPRESSED", "UNORDERED"], OURS)]])
def test_what_more_is_to_come_for_goes_in_as_rows(chunks: list[Chunk]) -> None:
    """However many rows they are: nothing would put them in order before their chunk ends."""
    assert choose_way(OURS, chunks, rows=10**6, instruments=10, running=True) == Way.ROWSTORE


def trades(root: Path, count: int, *, from_s: float = 0.0, recorder: str = "test") -> None:
    record(
        root, [{TRADES: make_rows(TRADES, count, start_us=START_US + int(from_s * US_PER_SEC))}], recorder=recorder
    )


def statuses(url: str, stream: str) -> list[list[str]]:
    return [row[0] for row in query(url, STATUS.format(stream))]


def test_a_backlog_goes_into_the_columnstore_and_is_put_in_order(
    tmp_path: Path, timescale_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it is loaded its chunks are compressed and unordered, and once all is there they are ordered."""
    trades(tmp_path, 3, from_s=-86400)
    load_once(tmp_path, timescale_database)
    query(timescale_database, f"CALL remove_columnstore_policy('{TRADES}')")  # it would be there any moment
    query(timescale_database, f"SELECT drop_chunks('{TRADES}', older_than => now())")
    query(timescale_database, "TRUNCATE loaded_segments")
    shutil.rmtree(tmp_path / TRADES)
    for second in range(0, 20, 2):
        trades(tmp_path, 600, from_s=second)
    with monkeypatch.context() as patch:
        patch.setattr("loader.load.Loader.finish", lambda *_: None)
        load_once(tmp_path, timescale_database)
    assert statuses(timescale_database, TRADES) == [["COMPRESSED", "UNORDERED"]]
    assert same_rows(tmp_path, timescale_database, TRADES)
    trades(tmp_path, 600, from_s=1, recorder="other")
    load_once(tmp_path, timescale_database)

    assert statuses(timescale_database, TRADES) == [["COMPRESSED"]]
    assert same_rows(tmp_path, timescale_database, TRADES)


def test_a_live_tail_goes_in_as_rows_however_busy_it_is(tmp_path: Path, timescale_database: str) -> None:
    """Also after an outage of some minutes; what is older goes into the columnstore beside it."""
    now_us = int(time.time() * US_PER_SEC)
    for age_s in (0, 600):
        start_us = now_us - age_s * US_PER_SEC
        record(tmp_path, [{QUOTES: make_rows(QUOTES, 6000, start_us=start_us)}], recorder=f"r{age_s}")
        load_once(tmp_path, timescale_database)
        assert {tuple(status) for status in statuses(timescale_database, QUOTES)} == {()}
    day_before = now_us - 86400 * US_PER_SEC
    record(tmp_path, [{QUOTES: make_rows(QUOTES, 6000, start_us=day_before)}], recorder="before")
    load_once(tmp_path, timescale_database)
    found = statuses(timescale_database, QUOTES)

    assert sum("COMPRESSED" in status for status in found) == 1
    assert [] in found


@pytest.mark.parametrize(("as_rows", "runs"), [(0, 1), (30, 2)])
def test_what_a_backlog_left_while_following_is_put_in_order_by_the_policy(
    tmp_path: Path, timescale_database: str, monkeypatch: pytest.MonkeyPatch, as_rows: int, runs: int
) -> None:
    """All of it at its next run; at the one after it where rows came into the chunk as well."""
    jobs = "SELECT job_id FROM timescaledb_information.jobs WHERE proc_name = 'policy_compression'"
    monkeypatch.setattr("loader.load.Loader.finish", lambda *_: None)  # a loader that follows never gets there
    trades(tmp_path, 3, from_s=-30 * 86400)
    load_once(tmp_path, timescale_database)
    (job,) = query(timescale_database, f"{jobs} AND hypertable_name = '{TRADES}'")[0]
    query(timescale_database, "SELECT alter_job(%s, scheduled => false)", job)
    trades(tmp_path, 6000)
    trades(tmp_path, 6000, from_s=8 * 86400)
    load_once(tmp_path, timescale_database)
    if as_rows:
        trades(tmp_path, as_rows, from_s=8 * 86400 + 1, recorder="late")
        load_once(tmp_path, timescale_database)
    assert ["COMPRESSED", "UNORDERED"] in [status[:2] for status in statuses(timescale_database, TRADES)]
    for _ in range(runs):
        query(timescale_database, "CALL run_job(%s)", job)

    assert {tuple(status) for status in statuses(timescale_database, TRADES)} == {("COMPRESSED",)}
    assert same_rows(tmp_path, timescale_database, TRADES)


def test_the_newest_row_is_right_after_every_order_of_loading(tmp_path: Path, timescale_database: str) -> None:
    """A healed trade last, two recorders over one time, late rows into an ordered chunk: max and ORDER BY agree."""
    for root, (count, from_s) in {
        "late": (900, 60.0), "early": (900, 0.0), "over": (900, 59.7), "healed": (3, 30.0), "more": (301, 10.5),
    }.items():  # fmt: skip
        trades(tmp_path, count, from_s=from_s, recorder=root)
        load_once(tmp_path, timescale_database)
        for instrument, greatest, newest in query(timescale_database, NEWEST):
            assert greatest == newest, (root, instrument)

    before = 'lag("timestamp") OVER (PARTITION BY instrument ORDER BY "timestamp")'
    ordered = f'SELECT count(*) FROM (SELECT "timestamp" < {before} AS wrong FROM {TRADES}) AS pairs WHERE wrong'
    assert query(timescale_database, ordered) == [(0,)]
    assert same_rows(tmp_path, timescale_database, TRADES)


def test_a_table_in_another_order_is_sorted_by_the_server(tmp_path: Path, timescale_database: str) -> None:
    """Whoever set orderby to something else gets right answers all the same."""
    trades(tmp_path, 3)
    load_once(tmp_path, timescale_database)
    query(timescale_database, f"ALTER TABLE {TRADES} SET (timescaledb.orderby = '\"timestamp\" DESC')")
    trades(tmp_path, 1200, from_s=100)
    trades(tmp_path, 1200, from_s=100.5, recorder="other")
    load_once(tmp_path, timescale_database)

    half = datetime.fromtimestamp(START_US / 1e6, UTC) + timedelta(seconds=100.7)
    count = f'SELECT count(*) FROM {TRADES} WHERE "timestamp" >= %s'
    unsorted = f'SELECT count(*) FROM (SELECT "timestamp" FROM {TRADES} OFFSET 0) AS all_rows WHERE "timestamp" >= %s'
    expected = query(timescale_database, unsorted, half)
    assert query(timescale_database, count, half) == expected
    assert same_rows(tmp_path, timescale_database, TRADES)


def test_direct_compress_can_be_turned_off(tmp_path: Path, timescale_database: str) -> None:
    """All goes in as rows then, and the policy compresses it."""
    trades(tmp_path, 3, from_s=-30 * 86400)
    load_once(tmp_path, timescale_database)
    query(timescale_database, f"CALL remove_columnstore_policy('{TRADES}')")  # it would be there any moment
    trades(tmp_path, 1200)
    load_once(tmp_path, timescale_database, target=Target(direct_compress=False))

    assert [] in statuses(timescale_database, TRADES)
    trades(tmp_path, 1200, from_s=30 * 86400)
    load_once(tmp_path, timescale_database)
    assert ["COMPRESSED"] in statuses(timescale_database, TRADES)


def test_bars_are_there_on_both_kinds_of_server(tmp_path: Path, any_database: str) -> None:
    """Opened and closed by trade_seq; also of times that the policies do not look back to."""
    place = SCHEMAS["trades"].get_field_index
    rows = [list(row) for row in make_rows(TRADES, 900)]
    for number, row in enumerate(rows):
        row[place("trade_seq")], row[place("price")] = 900 - number, float(number % 17)
    record(tmp_path, [{TRADES: [tuple(row) for row in rows]}])
    load_once(tmp_path, any_database)
    bars = query(any_database, "SELECT instrument, minute, open, close, trades FROM eth_option_bars_1m ORDER BY 1, 2")
    plain = f"""
        SELECT instrument, date_trunc('minute', "timestamp"), (array_agg(price ORDER BY trade_seq))[1],
            (array_agg(price ORDER BY trade_seq DESC))[1], count(*) FROM {TRADES} GROUP BY 1, 2 ORDER BY 1, 2"""

    assert len(bars) >= 3
    assert bars == query(any_database, plain)
    assert query(any_database, "SELECT count(*) FROM eth_option_spreads_1m") == [(0,)]


def test_retention_is_set_and_changed(tmp_path: Path, timescale_database: str) -> None:
    """One policy a table, as the newest settings say; without the setting it stays as it is."""
    trades(tmp_path, 5)
    drop_after = "SELECT config->>'drop_after' FROM timescaledb_information.jobs WHERE proc_name = 'policy_retention'"
    for days, expected in ((30.0, "30 days"), (90.5, "90 days 12:00:00"), (None, "90 days 12:00:00")):
        load_once(tmp_path, timescale_database, target=Target(retention_days=days))
        trades(tmp_path, 5, recorder=f"r{len(expected)}{days is None}".lower())
        load_once(tmp_path, timescale_database, target=Target(retention_days=days))
        assert query(timescale_database, drop_after) == [(expected,)]


REFUSES = """
CREATE FUNCTION compress_chunk(regclass, recompress boolean) RETURNS void LANGUAGE plpgsql AS
$$ BEGIN RAISE EXCEPTION 'could not open relation with OID 2046496' USING ERRCODE = 'XX000'; END $$
"""


def test_a_chunk_that_the_policy_is_at_just_now_is_left_to_it(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All its rows are loaded: TimescaleDB's internal error is no reason to end with one."""
    asked = "SELECT %s::regclass::text WHERE (%s, %s) IS NOT NULL"
    monkeypatch.setattr(columnstore, "_UNORDERED", asked)
    now = datetime.now(UTC)
    with psycopg.connect(database) as connection:
        connection.execute(REFUSES)
        connection.execute(f"CREATE TABLE {QUOTES} ()")
        columnstore.compress_again(connection, [(QUOTES, now, now)], lambda: None)

        assert connection.execute("SELECT 1").fetchone() == (1,)
