"""Loading: every good segment exactly once, whatever happens between."""

import hashlib
import shutil
import signal
import socket
from pathlib import Path

import psycopg
import pytest

from loader import follow
from loader.errors import DatabaseAway, MigrationConflict, SchemaConflict
from loader.inbox import Inbox
from loader.postgres.database import Database
from loader.postgres.embedded import Embedded
from loader.settings import LoaderSettings
from loader.stop import Stop
from recorder.runtime.data_dir import DataDir
from recorder.segments.encode import Identity, encode_segment
from recorder.segments.layout import US_PER_SEC
from recorder.segments.reader import read_segment
from tests.fix_postgres import (
    START_US,
    Follower,
    Process,
    load_once,
    make_rows,
    query,
    quotes,
    record,
    run_loader,
    same_rows,
    wait_for,
)

QUOTES = "eth_option_quotes"
ALL_STREAMS = (QUOTES, "eth_option_trades", "eth_option_tickers", "eth_option_instruments", "data_gaps")


def count(url: str, table: str = QUOTES) -> int:
    """Return how many rows a table has."""
    return int(query(url, f"SELECT count(*) FROM {table}")[0][0])


def reasons(url: str) -> dict[str, str]:
    """Return the refused files and their reasons."""
    return {name.rsplit("/", 1)[-1]: why for name, why in query(url, "SELECT name, reason FROM refused_segments")}


def later(seconds: int, rows: int = 50) -> dict[str, list[tuple[object, ...]]]:
    """Return a round of quotes that begins later."""
    return quotes(rows, start_us=START_US + seconds * US_PER_SEC)


def salvage(path: Path, target: Path, *, segment_id: str, rows: int) -> Path:
    """Write the first rows of a segment as a new one that salvages it, and take the old one away."""
    checked = read_segment(path)
    assert checked.schema is not None
    assert checked.identity is not None
    identity = Identity(
        **{**checked.identity.__dict__, "segment_id": segment_id, "salvages": checked.identity.segment_id}
    )
    batch = checked.groups[0].batch.slice(0, rows)
    target.write_bytes(encode_segment(checked.schema.remove_metadata(), identity, [batch]))
    path.unlink()
    return target


def test_an_empty_tape_loads_nothing(tmp_path: Path, database: str) -> None:
    """A data directory that is empty, or not there yet, gives an empty ledger and no error."""
    for root in (tmp_path, tmp_path / "not-there"):
        assert load_once(root, database).segments == 0
        assert count(database, "loaded_segments") == 0
    assert not (tmp_path / "not-there").exists()


def test_every_stream_is_loaded_as_it_is(tmp_path: Path, any_database: str) -> None:
    """All five streams arrive with equal values, nulls included, and the ledger's number in the last column."""
    record(tmp_path, [{stream: make_rows(stream, 200) for stream in ALL_STREAMS}])
    tally = load_once(tmp_path, any_database)
    assert (tally.segments, tally.rows, tally.refused) == (5, 1000, {})
    for stream in ALL_STREAMS:
        assert same_rows(tmp_path, any_database, stream)
        ledger = query(any_database, "SELECT segment, rows FROM loaded_segments WHERE stream = %s", stream)
        assert query(any_database, f"SELECT segment, count(*) FROM {stream} GROUP BY segment") == ledger


def test_the_ledger_tells_what_a_segment_is(tmp_path: Path, database: str) -> None:
    """A ledger row holds identity, bounds, checksum and place of its segment."""
    (path,) = record(tmp_path, [quotes(10)])
    load_once(tmp_path, database)
    checked = read_segment(path)
    assert checked.identity is not None
    assert query(
        database,
        "SELECT segment_id::text, stream, recorder, name, rows, crc32, last_received_at - first_received_at = '9 ms'"
        " FROM loaded_segments",
    ) == [(checked.identity.segment_id, QUOTES, "test", str(path.relative_to(tmp_path)), 10, checked.crc32, True)]


def test_loading_again_changes_nothing(tmp_path: Path, any_database: str) -> None:
    """A second run finds all in the ledger without opening a file."""
    record(tmp_path, [later(0), later(1)])
    load_once(tmp_path, any_database)
    before = query(any_database, "SELECT * FROM loaded_segments ORDER BY segment")
    again = load_once(tmp_path, any_database)
    assert (again.segments, again.skipped) == (0, 2)
    assert query(any_database, "SELECT * FROM loaded_segments ORDER BY segment") == before
    assert count(any_database) == 100


def test_segments_of_two_markets_have_tables_of_their_own(tmp_path: Path, any_database: str) -> None:
    """One tape may hold ETH and BTC; the gaps of both share one table."""
    record(tmp_path, [quotes(10), quotes(20, stream="btc_option_quotes"), {"data_gaps": make_rows("data_gaps", 4)}])
    load_once(tmp_path, any_database)
    assert (count(any_database), count(any_database, "btc_option_quotes"), count(any_database, "data_gaps")) == (
        10,
        20,
        4,
    )


def test_a_copied_segment_counts_once(tmp_path: Path, database: str) -> None:
    """A segment under another name, or with another mtime, is known by its id."""
    (path,) = record(tmp_path, [quotes(10)])
    load_once(tmp_path, database)
    shutil.copyfile(path, path.with_name(path.name.replace("-test-", "-copy-")))
    path.touch()
    tally = load_once(tmp_path, database)
    assert (tally.segments, tally.skipped, count(database)) == (0, 2, 10)


def test_equal_rows_of_two_segments_are_both_loaded(tmp_path: Path, database: str) -> None:
    """Two segments with the same rows are two: identity is the segment's, never the rows'."""
    record(tmp_path, [quotes(10), quotes(10)])
    assert load_once(tmp_path, database).segments == 2
    assert count(database) == 20


def test_an_unchanged_tape_is_left_as_it_is(tmp_path: Path, database: str) -> None:
    """Loading writes no byte, name, mode or time anywhere below DATA_DIR."""
    root = tmp_path / "tape"
    bad, *_ = record(root, [later(0), later(1), later(2)])
    flip_a_bit(bad)

    def look() -> dict[str, tuple[object, ...]]:
        return {
            str(path): (
                stat.st_mode,
                stat.st_mtime_ns,
                stat.st_size,
                path.is_file() and hashlib.sha256(path.read_bytes()).digest(),
            )
            for path in [root, *root.rglob("*")]
            for stat in [path.stat()]
        }

    for path in root.rglob("*"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = look()
    assert load_once(root, database).segments == 2
    assert look() == before


def with_metadata(path: Path, **changes: str) -> bytes:
    """Return a segment's content as another program might begin it."""

    class Changed(Identity):
        def metadata(self) -> dict[str, str]:
            return {**super().metadata(), **changes}

    checked = read_segment(path)
    assert checked.schema is not None
    assert checked.identity is not None
    batches = [group.batch for group in checked.groups]
    return encode_segment(checked.schema.remove_metadata(), Changed(**checked.identity.__dict__), batches)


def flip_a_bit(path: Path) -> None:
    """Damage a file in its middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)


def test_a_damaged_segment_is_refused_until_it_is_mended(tmp_path: Path, database: str) -> None:
    """A flipped bit is named; the others go on; put right again, the file is loaded and off the list."""
    first, second = record(tmp_path, [later(0), later(1)])
    good = first.read_bytes()
    flip_a_bit(first)
    tally = load_once(tmp_path, database)
    assert (tally.segments, list(tally.refused)) == (1, [str(first.relative_to(tmp_path))])
    assert "damaged at byte" in reasons(database)[first.name]
    assert second.name not in reasons(database)
    first.write_bytes(good)
    assert load_once(tmp_path, database).segments == 1
    assert (count(database), reasons(database)) == (100, {})


def test_files_that_are_no_good_segments_are_refused_with_their_reason(tmp_path: Path, database: str) -> None:
    """Text, an unsealed file, a newer version, a file in a foreign folder: each has its own reason."""
    (path,) = record(tmp_path, [quotes(10)])
    folder = path.parent
    (folder / "notes.arrow").write_text("not a segment\n")
    (folder / "empty.arrow").write_bytes(b"")
    checked = read_segment(path)
    (folder / "unsealed.arrow").write_bytes(path.read_bytes()[: checked.whole_bytes])
    (folder / "newer.arrow").write_bytes(with_metadata(path, format_version="2"))
    (folder / "nameless.arrow").write_bytes(with_metadata(path, segment_id="no-uuid"))
    elsewhere = tmp_path / "btc_option_quotes" / folder.name
    elsewhere.mkdir(parents=True)
    shutil.copyfile(path, elsewhere / "moved.arrow")
    assert load_once(tmp_path, database).segments == 1
    why = reasons(database)
    assert "does not begin with the Arrow file magic" in why["notes.arrow"]
    assert "does not begin with the Arrow file magic" in why["empty.arrow"]
    assert "not sealed" in why["unsealed.arrow"]
    assert "is of stream eth_option_quotes" in why["moved.arrow"]
    assert "its format version is 2" in why["newer.arrow"]
    assert "its segment_id is no UUID" in why["nameless.arrow"]
    process = run_loader("load", "--once", root=tmp_path, url=database)
    assert process.popen.returncode == 6
    assert count(database) == 10


def test_two_loaders_at_once_load_each_segment_once(tmp_path: Path, any_database: str) -> None:
    """Two programs that race over one tape end up with every row once."""
    record(tmp_path, [later(second, 500) for second in range(20)])
    racers = [Process("load", "--once", root=tmp_path, url=any_database) for _ in range(2)]
    assert [racer.wait() for racer in racers] == [0, 0], racers[0].err + racers[1].err
    assert sum(racer.err.count("segment.loaded") for racer in racers) == 20
    assert same_rows(tmp_path, any_database, QUOTES)


def test_new_segments_and_streams_are_found_while_following(
    tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A follower waits for the data directory, then loads what is sealed, also in streams that come later."""
    monkeypatch.setattr(follow, "RESCAN_S", 1.0)
    root = tmp_path / "tape"
    with Follower(root, database):
        record(root, [later(0)])
        wait_for(lambda: count(database) == 50)
        record(root, [later(1)])
        wait_for(lambda: count(database) == 100)
        record(root, [{"eth_option_trades": make_rows("eth_option_trades", 5)}])
        wait_for(lambda: count(database, "eth_option_trades") == 5)


def test_a_follower_lives_through_an_outage(place: Path) -> None:
    """The database is down at the start and again later; what was sealed meanwhile comes when it is back."""
    root = place / "tape"
    server = Embedded(place / "postgres")
    url = server.ensure_running(Stop())
    server.close()
    record(root, [later(0)])
    with Follower(root, url):
        try:
            server.ensure_running(Stop())
            wait_for(lambda: count(url) == 50)
            server.close()
            record(root, [later(1)])
            server.ensure_running(Stop())
            wait_for(lambda: count(url) == 100)
            assert same_rows(root, url, QUOTES)
        finally:
            server.close()


def test_a_database_restored_from_an_old_backup_is_filled_up(tmp_path: Path, database: str) -> None:
    """What a restore took away is loaded again after the reconnect, without a restart of the loader."""
    record(tmp_path, [later(0), later(1)])
    with Follower(tmp_path, database) as follower:
        wait_for(lambda: count(database) == 100)
        with psycopg.connect(database) as connection:
            connection.execute(
                "DELETE FROM eth_option_quotes USING loaded_segments l WHERE l.segment = eth_option_quotes.segment"
                " AND l.name LIKE '%000002.arrow'"
            )
            connection.execute("DELETE FROM loaded_segments WHERE name LIKE '%000002.arrow'")
        query(
            database,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND application_name = 'ticktape-loader'",
        )
        record(tmp_path, [later(2)], recorder="other")
        wait_for(lambda: count(database) == 150)
        assert same_rows(tmp_path, database, QUOTES)
    assert follower.tally is not None


def test_once_gives_up_without_a_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--once` ends with an error that names the server, and never its password."""
    monkeypatch.setattr(follow, "GIVE_UP_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(DatabaseAway) as error:
        load_once(tmp_path, f"postgresql://me:secret@127.0.0.1:{port}/ticks")
    assert f"postgresql://me@127.0.0.1:{port}/ticks: " in str(error.value)
    assert "secret" not in str(error.value)


def test_a_missing_database_is_told_plainly(tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server's own words, and what to do."""
    monkeypatch.setattr(follow, "GIVE_UP_S", 0.2)
    with pytest.raises(DatabaseAway, match=r'database "\w+_not" does not exist; create the database'):
        load_once(
            tmp_path, database.replace("/t_", "/nope_").partition("?")[0] + "_not?" + database.partition("?")[2]
        )


def test_salvaged_rows_are_not_loaded_twice(tmp_path: Path, database: str) -> None:
    """A salvage of a loaded segment is skipped, and so is the salvage of that salvage."""
    (path,) = record(tmp_path, [quotes(10)])
    load_once(tmp_path, database)
    first = salvage(path, path.with_name("first.arrow"), segment_id="11111111-1111-4111-8111-111111111111", rows=8)
    for _ in range(2):
        assert load_once(tmp_path, database).skipped == 1
    salvage(first, path.with_name("second.arrow"), segment_id="22222222-2222-4222-8222-222222222222", rows=6)
    assert load_once(tmp_path, database).skipped == 1
    assert (count(database), count(database, "loaded_segments")) == (10, 1)


def test_a_salvage_is_loaded_where_the_damaged_one_was_not(tmp_path: Path, database: str) -> None:
    """The good rows come from the salvage; the damaged one is off the list, and its return is no second load."""
    (path,) = record(tmp_path, [quotes(10)])
    good = path.read_bytes()
    flip_a_bit(path)
    load_once(tmp_path, database)
    assert list(reasons(database)) == [path.name]
    path.write_bytes(good)
    salvage(path, path.with_name("salvage.arrow"), segment_id="11111111-1111-4111-8111-111111111111", rows=8)
    assert load_once(tmp_path, database).segments == 1
    assert (count(database), reasons(database)) == (8, {})
    path.write_bytes(good)
    load_once(tmp_path, database)
    assert count(database) == 8
    assert "salvaged and loaded already" in reasons(database)[path.name]


def test_a_dropped_column_is_named(tmp_path: Path, any_database: str) -> None:
    """A table changed by hand stops the loader with the column and the remedy; nothing is loaded wrongly."""
    record(tmp_path, [later(0)])
    load_once(tmp_path, any_database)
    query(any_database, "ALTER TABLE eth_option_quotes DROP COLUMN mark_price")
    record(tmp_path, [later(1)], recorder="other")
    with pytest.raises(SchemaConflict, match=r"has no column mark_price; put it back: ALTER TABLE"):
        load_once(tmp_path, any_database)
    assert count(any_database) == 50
    query(any_database, "ALTER TABLE eth_option_quotes ADD COLUMN mark_price double precision")
    assert load_once(tmp_path, any_database).segments == 1


def test_a_column_dropped_while_following_is_named(tmp_path: Path, database: str) -> None:
    """Also when the table was right a moment ago."""
    record(tmp_path, [later(0)])
    with Process("load", root=tmp_path, url=database) as process:
        wait_for(lambda: count(database) == 50)
        query(database, "ALTER TABLE eth_option_quotes DROP COLUMN mark_price")
        record(tmp_path, [later(1)], recorder="other")
        assert process.wait() == 1
    assert "error: the table eth_option_quotes has no column mark_price; put it back" in process.err


def test_an_added_column_is_fine(tmp_path: Path, any_database: str) -> None:
    """A nullable column of the user's own stays null; one that demands a value is named."""
    record(tmp_path, [later(0)])
    load_once(tmp_path, any_database)
    query(any_database, "ALTER TABLE eth_option_quotes ADD COLUMN note text")
    record(tmp_path, [later(1)], recorder="other")
    assert load_once(tmp_path, any_database).segments == 1
    query(any_database, "UPDATE eth_option_quotes SET note = ''")
    query(any_database, "ALTER TABLE eth_option_quotes ALTER COLUMN note SET NOT NULL")
    record(tmp_path, [later(2)], recorder="third")
    with pytest.raises(SchemaConflict, match="added column note of the table eth_option_quotes is NOT NULL"):
        load_once(tmp_path, any_database)


def test_rows_that_a_table_does_not_take_are_refused(tmp_path: Path, database: str) -> None:
    """A constraint or a trigger of the user's makes the segment refused, whole, and the others go on."""
    record(tmp_path, [later(0)])
    load_once(tmp_path, database)
    query(database, "ALTER TABLE eth_option_quotes ADD CHECK (received_at < '2026-05-28 20:26:42Z') NOT VALID")
    record(tmp_path, [later(1), later(2)], recorder="other")
    tally = load_once(tmp_path, database)
    assert (tally.segments, len(tally.refused), count(database)) == (1, 1, 100)
    assert "violates check constraint" in next(iter(tally.refused.values()))
    query(
        database,
        "CREATE FUNCTION eat() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';"
        " CREATE TRIGGER eat BEFORE INSERT ON eth_option_quotes FOR EACH ROW WHEN (new.change_id = 8)"
        " EXECUTE FUNCTION eat()",
    )
    (path,) = record(tmp_path, [quotes(50)], recorder="third")
    assert "took 49 of its 50 rows" in load_once(tmp_path, database).refused[str(path.relative_to(tmp_path))]
    assert count(database) == 100


def test_a_changed_migration_is_refused(tmp_path: Path, database: str) -> None:
    """A database whose schema was made by other files is not touched."""
    load_once(tmp_path, database)
    query(database, "UPDATE ticktape_migrations SET checksum = 'x' WHERE number = 2")
    with pytest.raises(MigrationConflict, match=r"002_data_gaps\.sql is not the one that was applied"):
        load_once(tmp_path, database)
    process = run_loader("load", root=tmp_path, url=database)
    assert process.popen.returncode == 1
    assert process.err.startswith("error: the schema file 002_data_gaps.sql is not the one")
    assert process.err.count("\n") == 1


def test_a_newer_schema_is_refused(tmp_path: Path, database: str) -> None:
    """A database that a newer program migrated is left to that program."""
    load_once(tmp_path, database)
    query(
        database,
        "INSERT INTO ticktape_migrations (scope, number, file, checksum, software)"
        " VALUES ('database', 999, '999_future.sql', 'x', 'ticktape/9')",
    )
    with pytest.raises(MigrationConflict, match="use the newer ticktape"):
        load_once(tmp_path, database)


def test_the_view_gaps_has_a_row_a_gap(tmp_path: Path, any_database: str) -> None:
    """The newest state of each gap, whatever the order they came in."""
    schema_row = list(make_rows("data_gaps", 1)[0])

    def state(gap: str, number: int, status: str) -> tuple[object, ...]:
        row = list(schema_row)
        row[3:8] = [gap, number, QUOTES, "disconnect", status]
        return tuple(row)

    record(tmp_path, [{"data_gaps": [state("a", 2, "healed"), state("a", 1, "open"), state("b", 1, "open")]}])
    load_once(tmp_path, any_database)
    assert query(any_database, "SELECT gap_id, status FROM gaps ORDER BY 1") == [("a", "healed"), ("b", "open")]


def test_timescale_tables_are_hypertables_with_a_columnstore(tmp_path: Path, timescale_database: str) -> None:
    """Each stream of a market is a hypertable, grouped by instrument, ordered by time, with one policy."""
    record(tmp_path, [quotes(10)])
    load_once(tmp_path, timescale_database)
    settings = query(
        timescale_database,
        "SELECT hypertable::text, segmentby, orderby FROM timescaledb_information.hypertable_columnstore_settings"
        " WHERE hypertable::text ~ '^eth'",
    )
    expected = [
        (f"eth_option_{kind}", "instrument", '"timestamp"') for kind in ("instruments", "quotes", "tickers", "trades")
    ]
    assert sorted(settings) == expected
    jobs = query(
        timescale_database,
        "SELECT hypertable_name, config->>'compress_after' FROM timescaledb_information.jobs"
        " WHERE hypertable_name ~ '^eth' AND proc_name = 'policy_compression' ORDER BY 1",
    )
    assert jobs == [(name, "01:00:00") for name, _, _ in expected]


def test_the_newest_row_is_right_after_a_late_one(tmp_path: Path, timescale_database: str) -> None:
    """A trade that was healed later does not hide newer ones, compressed or not."""
    trades = "eth_option_trades"
    newest = f"SELECT max(trade_seq) FROM (SELECT * FROM {trades} ORDER BY timestamp DESC LIMIT 1) AS newest"
    record(tmp_path, [{trades: make_rows(trades, 100, start_us=START_US + 60 * US_PER_SEC, instruments=1)}])
    load_once(tmp_path, timescale_database)
    want = query(timescale_database, newest)
    query(timescale_database, f"SELECT compress_chunk(c) FROM show_chunks('{trades}') AS c")
    record(tmp_path, [{trades: make_rows(trades, 1, instruments=1)}], recorder="late")
    load_once(tmp_path, timescale_database)
    assert query(timescale_database, newest) == want
    query(timescale_database, f"SELECT compress_chunk(c) FROM show_chunks('{trades}') AS c")
    assert query(timescale_database, newest) == want
    assert same_rows(tmp_path, timescale_database, trades)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_an_idle_loader(tmp_path: Path, database: str, number: signal.Signals) -> None:
    """A first signal ends it with exit code 0."""
    record(tmp_path, [quotes(10)])
    process = Process("load", root=tmp_path, url=database)
    wait_for(lambda: count(database) == 10)
    assert process.signal(number) == 0


def test_a_signal_ends_the_wait_for_a_database(tmp_path: Path) -> None:
    """Also in back-off."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    process = Process("load", root=tmp_path, url=f"postgresql://me@127.0.0.1:{port}/x")
    wait_for(lambda: process.err.count("database.away") >= 2)
    assert process.signal(signal.SIGTERM) == 0


def test_a_signal_ends_a_transaction_that_waits(tmp_path: Path, database: str) -> None:
    """A COPY that waits for somebody's lock is rolled back; a second signal ends the process at once."""
    record(tmp_path, [later(0)])
    load_once(tmp_path, database)
    record(tmp_path, [later(1)], recorder="other")
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE 'COPY%%'"
    with psycopg.connect(database) as connection:
        connection.execute("LOCK TABLE eth_option_quotes")
        for signals, code in (((signal.SIGTERM,), 0), ((signal.SIGINT, signal.SIGTERM), 130)):
            wait_for(lambda: query(database, waiting) == [(0,)])  # the server was told, or noticed
            process = Process("load", root=tmp_path, url=database)
            wait_for(lambda: query(database, waiting) == [(1,)])
            assert process.signal(*signals) == code
    assert (count(database), load_once(tmp_path, database).segments) == (50, 1)


def test_a_file_that_goes_away_is_forgotten(tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A segment that is moved between the listing and the reading is no error."""
    path, _ = record(tmp_path, [later(0), later(1)])
    listed = Inbox(DataDir(tmp_path)).unsettled()
    path.unlink()
    monkeypatch.setattr(Inbox, "unsettled", lambda _self: listed)
    tally = load_once(tmp_path, database)
    assert (tally.segments, tally.refused) == (1, {})


def test_an_unreadable_file_is_tried_again(tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be read is listed once, looked at again and again, and off the list when it is gone."""
    monkeypatch.setattr(follow, "RESCAN_S", 1.0)
    (path,) = record(tmp_path, [quotes(10)])
    good = path.read_bytes()
    path.unlink()
    path.mkdir()
    with Follower(tmp_path, database):
        wait_for(lambda: "cannot be read: Is a directory" in reasons(database).get(path.name, ""))
        path.rmdir()
        wait_for(lambda: reasons(database) == {})
        path.write_bytes(good)
        wait_for(lambda: count(database) == 10)


def test_a_bad_database_url_is_not_repeated(tmp_path: Path) -> None:
    """What is no connection string may hold a password all the same."""
    process = run_loader("load", "--once", root=tmp_path, url="host=x password=sec ret")
    assert process.popen.returncode == 2
    assert process.err.startswith("error: DATABASE_URL: expected postgresql://")
    assert "sec" not in process.err.replace("postgresql", "")
    with pytest.raises(DatabaseAway):
        Database(LoaderSettings(database_url="postgresql:///x?host=/nowhere"), Stop()).connect().__enter__()


@pytest.mark.parametrize("command", ["load", "replay", "audit", "status"])
def test_a_password_that_is_not_encoded_ends_the_loader(tmp_path: Path, command: str) -> None:
    """In one line that says what to do; it was tried again and again, and part of the password told each time."""
    process = run_loader(command, root=tmp_path, url="postgresql://me:s3cr3t/w@127.0.0.1:5432/x")
    assert process.popen.returncode == 2
    (line,) = process.err.splitlines()
    assert line.startswith("error: DATABASE_URL: expected postgresql://")
    assert "percent-encode" in line
    assert "s3cr3t" not in line + process.out


def test_a_host_that_cannot_be_is_told_at_once(tmp_path: Path) -> None:
    """It is no outage, and is not waited for."""
    process = run_loader("load", root=tmp_path, url="postgresql://me:secret@host..example/ticks")
    assert (process.popen.returncode, process.err) == (
        1,
        "error: postgresql://me@host..example/ticks: no host can have that name; correct DATABASE_URL\n",
    )
