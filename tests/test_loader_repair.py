"""A repair makes the database equal to the tape again, and removes nothing that the tape could not give back."""

import json
import tracemalloc
from datetime import timedelta
from io import StringIO
from pathlib import Path

import psycopg
import pyarrow as pa
import pytest

from loader import checksum, compare
from loader.audit import Finding, Verdict
from loader.compare import Entry
from loader.postgres.copy import Rows, encode
from loader.postgres.retention import kept_since
from loader.repair import NotRepaired, Repair
from loader.report import Report
from loader.stop import Stop
from recorder.segments.layout import US_PER_SEC, us_to_datetime
from recorder.segments.reader import read_segment
from tests.fix_postgres import (
    START_US,
    database_rows,
    load_once,
    make_rows,
    query,
    quotes,
    record,
    run_loader,
    same_rows,
)
from tests.test_loader import salvage
from tests.test_loader_audit import audit

QUOTES = "eth_option_quotes"
ROW = "change_id = 8 AND segment = {}"
NOW = us_to_datetime(START_US)
DAY = timedelta(days=1)


@pytest.fixture
def tape(tmp_path: Path) -> Path:
    """Return a tape of six segments of quotes, 100 rows each, ten seconds apart; and one of each other stream."""
    root = tmp_path / "tape"
    record(root, [quotes(100, start_us=START_US + second * US_PER_SEC) for second in range(0, 60, 10)])
    others = ("data_gaps", "eth_option_instruments", "eth_option_trades", "eth_option_tickers")
    record(root, [{stream: make_rows(stream, 20) for stream in others}])
    return root


def numbers(url: str) -> list[int]:
    """Return the numbers of the segments of quotes, oldest first."""
    rows = query(url, "SELECT segment FROM loaded_segments WHERE stream = %s ORDER BY name", QUOTES)
    return [row[0] for row in rows]


def compress(url: str) -> None:
    """Compress what is there, where the server can."""
    if query(url, "SELECT FROM pg_extension WHERE extname = 'timescaledb'"):
        query(url, f"SELECT compress_chunk(chunk, if_not_compressed => true) FROM show_chunks('{QUOTES}') AS chunk")


def change(url: str) -> list[int]:
    """Change a value, take a row, double one, take all; change other streams; add foreign rows; return numbers."""
    first, second, third, fourth, *_ = numbers(url)
    for statement in (
        f"UPDATE {QUOTES} SET bid_price = bid_price + 1e-9 WHERE {ROW.format(first)}",
        f"DELETE FROM {QUOTES} WHERE {ROW.format(second)}",
        f"INSERT INTO {QUOTES} SELECT * FROM {QUOTES} WHERE {ROW.format(third)}",
        f"DELETE FROM {QUOTES} WHERE segment = {fourth}",
        f"INSERT INTO {QUOTES} (timestamp, segment) VALUES ('2026-05-28 20:26:41Z', 999), ('2020-01-01Z', 998)",
        f"INSERT INTO {QUOTES} (timestamp, segment) VALUES ('2020-01-01Z', {first})",  # far from its others
        "UPDATE data_gaps SET detail = 'something else' WHERE state_no = 8",
        "UPDATE eth_option_trades SET tick_direction = NULL",
    ):
        query(url, statement)
    return [first, second, third, fourth]


def test_repair_restores_equality(tape: Path, any_database: str) -> None:
    """A changed value, a missing row, a doubled row, rows all gone, foreign rows; in the columnstore as in rows."""
    load_once(tape, any_database)
    compress(any_database)
    ledger = query(any_database, "SELECT * FROM loaded_segments ORDER BY segment")
    change(any_database)
    found = audit(tape, any_database)
    verdicts = [(finding["stream"], finding["verdict"]) for finding in found["findings"]]
    assert sorted(verdicts) == [
        ("data_gaps", "different"), *[(QUOTES, "different")] * 4, (QUOTES, "foreign"),
        ("eth_option_trades", "different"),
    ]  # fmt: skip
    assert found["equal"] is False
    process = run_loader("audit", "--repair", root=tape, url=any_database)
    assert process.popen.returncode == 0
    assert process.out.count("\nrepaired: ") == 7
    assert process.out.endswith("database and tape: equal\n")
    again = audit(tape, any_database)
    assert (again["equal"], again["repaired"], again["findings"], again["notes"]) == (True, 0, [], [])
    assert all(same_rows(tape, any_database, stream["stream"]) for stream in again["streams"])
    assert query(any_database, "SELECT * FROM loaded_segments ORDER BY segment") == ledger


def test_a_server_that_hashes_otherwise_is_compared_row_by_row(
    tape: Path, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the same findings, a note, and the same repair."""
    load_once(tape, database)
    change(database)
    expected = audit(tape, database)
    monkeypatch.setattr(checksum, "_START", 1)
    found = audit(tape, database)
    assert found["findings"] == expected["findings"]
    assert (expected["notes"], len(found["notes"])) == ([], 1)
    assert "row by row" in found["notes"][0]
    assert audit(tape, database, repair=True)["equal"] is True
    monkeypatch.undo()
    assert audit(tape, database)["findings"] == []


def test_what_is_equal_is_not_sent(tape: Path, any_database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the rows of the one segment that differs are."""
    load_once(tape, any_database)
    sent: list[int] = []

    def noted(table: pa.Table) -> Rows:
        sent.append(table.num_rows)
        return encode(table)

    monkeypatch.setattr(compare, "encode", noted)
    assert audit(tape, any_database)["equal"] is True
    assert sent == []
    query(any_database, f"DELETE FROM {QUOTES} WHERE {ROW.format(numbers(any_database)[0])}")
    assert audit(tape, any_database)["equal"] is False
    assert sent == [100]


def test_rows_that_differ_are_named(tape: Path, database: str) -> None:
    """By instrument and time, a few of them."""
    load_once(tape, database)
    query(database, f"DELETE FROM {QUOTES} WHERE change_id IN (1, 2, 3, 8, 9) AND segment = {numbers(database)[0]}")
    (finding,) = audit(tape, database)["findings"]
    assert finding["detail"].startswith("rows of the tape that the database lacks: 5 (ETH-")
    assert finding["detail"].count("2026-05-28T") == 3
    assert finding["detail"].endswith(", …)")


def test_rows_without_a_number_are_never_removed(tape: Path, database: str) -> None:
    """Somebody's own: told, and left, and the verdict stays no."""
    load_once(tape, database)
    query(database, f"INSERT INTO {QUOTES} (timestamp) VALUES (now()), (now())")
    found = audit(tape, database, repair=True)
    assert (found["equal"], [finding["verdict"] for finding in found["findings"]]) == (False, ["foreign"])
    assert query(database, f"SELECT count(*) FROM {QUOTES} WHERE segment IS NULL") == [(2,)]


def test_what_was_never_loaded_is_left_to_load(tape: Path, database: str) -> None:
    """A repair loads nothing that the ledger lacks, and says what would."""
    load_once(tape, database)
    query(database, f"DELETE FROM loaded_segments WHERE segment = {numbers(database)[0]}")
    found = audit(tape, database, repair=True)
    assert [finding["verdict"] for finding in found["findings"]] == ["missing", "repaired"]
    assert "run load" in found["findings"][0]["detail"]
    load_once(tape, database)
    assert audit(tape, database)["findings"] == []


def test_a_salvaged_segment_is_never_reduced(tape: Path, any_database: str) -> None:
    """Of rows that were loaded before the damage the database has more: what it lacks is added, nothing else done."""
    load_once(tape, any_database)
    path = min(tape.glob(f"{QUOTES}/*/*.arrow"))
    salvage(path, path.with_name("salvage.arrow"), segment_id="11111111-1111-4111-8111-111111111111", rows=60)
    before = database_rows(any_database, QUOTES)
    assert audit(tape, any_database)["equal"] is True
    number = numbers(any_database)[0]
    compress(any_database)
    query(any_database, f"DELETE FROM {QUOTES} WHERE segment = {number} AND change_id IN (8, 9)")
    assert audit(tape, any_database)["equal"] is False
    repaired = audit(tape, any_database, repair=True)
    assert (repaired["equal"], repaired["repaired"]) == (True, 1)
    assert database_rows(any_database, QUOTES) == before


def test_a_repair_that_does_not_help_changes_nothing(tape: Path, database: str) -> None:
    """A trigger that spoils every row: rolled back, told, exit code 1."""
    load_once(tape, database)
    query(database, f"DELETE FROM {QUOTES} WHERE {ROW.format(numbers(database)[0])}")
    query(database, "CREATE FUNCTION spoil() RETURNS trigger LANGUAGE plpgsql AS"
          " 'BEGIN NEW.bid_price := 1; RETURN NEW; END'")  # fmt: skip
    query(database, f"CREATE TRIGGER spoil BEFORE INSERT ON {QUOTES} FOR EACH ROW EXECUTE FUNCTION spoil()")
    before = database_rows(database, QUOTES)
    process = run_loader("audit", "--repair", "--json", root=tape, url=database)
    (finding,) = json.loads(process.out)["findings"]
    assert (process.popen.returncode, finding["verdict"]) == (1, "different")
    assert "not repaired: the database has made other rows" in finding["detail"]
    assert database_rows(database, QUOTES) == before


def test_a_segment_that_left_the_ledger_is_not_repaired(tape: Path, database: str) -> None:
    """Somebody removed its ledger row after it was compared: told, nothing is changed, and it waits for load."""
    load_once(tape, database)
    path = min(tape.glob(f"{QUOTES}/*/*.arrow"))
    checked = read_segment(path)
    before = database_rows(database, QUOTES)
    entry = Entry(
        "11111111-1111-4111-8111-111111111111", numbers(database)[0], QUOTES, path.name, 100, None, checked.crc32
    )
    with psycopg.connect(database, autocommit=True) as connection:
        repair = Repair(connection, hashed=True, stop=Stop())
        with pytest.raises(NotRepaired, match="not in the ledger any more"):
            repair.reload(entry, checked.table, rows=100, crc32=checked.crc32, there=100)
        with pytest.raises(NotRepaired, match="not in the ledger any more"):
            repair.add(entry, checked.table)
    assert database_rows(database, QUOTES) == before


def test_what_retention_dropped_is_left_out(tmp_path: Path, timescale_database: str) -> None:
    """A segment that is gone, one of which a part is: told, no error; a repair does not bring them back."""
    hour_us = 3600 * US_PER_SEC
    begin = START_US // (6 * hour_us) * 6 * hour_us + 50_000  # chunks are of six hours; rows are received 50 ms late
    end = begin + 6 * hour_us
    record(tmp_path, [quotes(100, start_us=start) for start in (begin, end - 50_000, end + hour_us)])
    load_once(tmp_path, timescale_database)
    assert len(query(timescale_database, f"SELECT show_chunks('{QUOTES}')")) == 2
    query(
        timescale_database,
        f"SELECT add_retention_policy('{QUOTES}', now() - %s::timestamptz, initial_start => now() + %s::interval)",
        us_to_datetime(end + 3 * hour_us),
        DAY,
    )
    query(timescale_database, f"SELECT drop_chunks('{QUOTES}', %s::timestamptz)", us_to_datetime(end))
    found = audit(tmp_path, timescale_database, repair=True)
    assert (found["equal"], found["repaired"]) == (True, 0)
    assert [finding["verdict"] for finding in found["findings"]] == ["dropped by retention"]
    assert found["dropped_by_retention"] == {"segments": 1, "rows": 150}
    process = run_loader("audit", root=tmp_path, url=timescale_database)
    assert "left out, as dropped by retention: 150 rows, of 1 segments all and of 1 a part\n" in process.out
    query(timescale_database, f"DELETE FROM {QUOTES} WHERE change_id = 80")
    assert audit(tmp_path, timescale_database)["equal"] is False
    assert audit(tmp_path, timescale_database, repair=True)["equal"] is True
    assert len(query(timescale_database, f"SELECT show_chunks('{QUOTES}')")) == 1


def test_without_a_policy_nothing_is_left_out(tmp_path: Path, timescale_database: str) -> None:
    """Chunks that somebody dropped by hand are missing."""
    record(tmp_path, [quotes(100)])
    load_once(tmp_path, timescale_database)
    query(timescale_database, f"SELECT drop_chunks('{QUOTES}', now())")
    assert [finding["verdict"] for finding in audit(tmp_path, timescale_database)["findings"]] == ["different"]
    assert audit(tmp_path, timescale_database, repair=True)["equal"] is True


def test_left_out_is_what_a_policy_may_have_dropped() -> None:
    """What is older than both the oldest chunk and the policy's time; nothing without a policy."""
    assert kept_since(None, None) is None
    assert kept_since(None, NOW) is None
    assert kept_since(NOW, None) == NOW
    assert kept_since(NOW, NOW - DAY) == NOW - DAY
    assert kept_since(NOW, NOW + DAY) == NOW


def test_a_report_of_many_findings_needs_little_memory() -> None:
    """They wait in a file."""
    many = 8_000
    found = (Finding(QUOTES, f"{number}.arrow", Verdict.DIFFERENT, 1, 2, "x" * 300) for number in range(many))
    tracemalloc.start()
    report = Report(found, as_json=True)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    out = StringIO()
    report.write(out)
    assert len(json.loads(out.getvalue())["findings"]) == many
    assert peak < 2_500_000
