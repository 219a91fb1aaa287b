"""Replay fills what a database lacks; audit proves that it equals the tape, or says where not."""

import json
from datetime import timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from loader.archive.read import open_archive
from loader.audit import Audit
from loader.postgres.database import Database
from loader.replay import wanted
from loader.report import Report
from loader.settings import LoaderSettings
from loader.stop import Stop
from recorder.runtime.data_dir import DataDir
from recorder.segments.layout import US_PER_SEC, us_to_datetime
from tests.faults.database import Wire, commit_reply_lost, socket_of, through
from tests.faults.proxy import Proxy
from tests.fix_postgres import (
    START_US,
    load_once,
    make_rows,
    query,
    quotes,
    record,
    run_loader,
    same_rows,
)

QUOTES = "eth_option_quotes"
ROW = "change_id = 8 AND segment = 2"
START = us_to_datetime(START_US)


def at(second: float) -> Any:
    """Return the moment that many seconds after the first row."""
    return START + timedelta(seconds=second)


@pytest.fixture
def tape(tmp_path: Path) -> Path:
    """Return a tape of five segments, ten seconds apart, of 100 rows in a tenth of a second each; and some gaps."""
    root = tmp_path / "tape"
    record(root, [quotes(100, start_us=START_US + second * US_PER_SEC) for second in range(0, 50, 10)])
    record(root, [{"data_gaps": make_rows("data_gaps", 3)}])
    return root


def audit(root: Path, url: str, *, repair: bool = False) -> dict[str, Any]:
    """Return an audit's findings, as `--json` prints them."""
    stop, out = Stop(), StringIO()
    settings = LoaderSettings(data_dir=str(root), database_url=url)
    with Database(settings, stop).connect() as connection:
        auditing = Audit(connection, DataDir(root), stop=stop, repair=repair, archive=open_archive(settings))
        Report(auditing.findings(), as_json=True, notes=auditing.notes).write(out)
    found: dict[str, Any] = json.loads(out.getvalue())
    return found


def test_replay_fills_an_empty_database_and_repeated_changes_nothing(tape: Path, any_database: str) -> None:
    """A summary on stdout; the second run finds all there."""
    first = run_loader("replay", root=tape, url=any_database)
    assert (first.popen.returncode, first.out) == (
        0, "loaded 6 segments (503 rows), skipped 0 segments already there, refused 0\n",
    )  # fmt: skip
    before = query(any_database, "SELECT * FROM loaded_segments ORDER BY segment")
    again = run_loader("replay", root=tape, url=any_database)
    assert (again.popen.returncode, again.out) == (
        0, "loaded 0 segments (0 rows), skipped 6 segments already there, refused 0\n",
    )  # fmt: skip
    assert query(any_database, "SELECT * FROM loaded_segments ORDER BY segment") == before
    assert same_rows(tape, any_database, QUOTES)


@pytest.mark.parametrize(
    ("start", "end", "segments"),
    [
        (None, None, 6),
        (10, 20, 1),
        (10.099, 20, 1),  # its last row is at 10.099
        (10.0991, 20, 0),
        (10, 20.000001, 2),
        (None, 0, 0),
        (40, None, 1),
    ],
)
def test_replay_takes_whole_segments_that_overlap(
    tape: Path, database: str, start: float | None, end: float | None, segments: int
) -> None:
    """The range is half-open and of received_at; a segment that has one such row comes whole."""
    first, last = (None if second is None else at(second) for second in (start, end))
    assert load_once(tape, database, wanted=wanted(first, last)).segments == segments


def test_replay_fills_up_a_half_filled_database(tape: Path, database: str) -> None:
    """It loads what that database's ledger lacks."""
    part = run_loader("replay", "--from", at(10).isoformat(), "--to", at(30).isoformat(), root=tape, url=database)
    assert part.out.startswith("loaded 2 segments (200 rows), skipped 0 ")
    rest = run_loader("replay", root=tape, url=database)
    assert rest.out.startswith("loaded 4 segments (303 rows), skipped 2 ")
    assert audit(tape, database)["equal"] is True


def test_replay_counts_right_through_a_lost_connection(tape: Path, database: str) -> None:
    """What it loaded before the connection was lost is not called there already."""
    with Proxy(socket_of(database), Wire(commit_reply_lost())) as proxy:
        tally = load_once(tape, through(proxy, database))
    assert tally.segments + tally.skipped == 6
    assert audit(tape, database)["equal"] is True


def test_replay_says_by_its_exit_code_that_some_were_refused(tape: Path, database: str) -> None:
    """6, with the others loaded."""
    (next(tape.glob(f"{QUOTES}/*")) / "notes.arrow").write_text("x")
    process = run_loader("replay", root=tape, url=database)
    assert (process.popen.returncode, process.out.endswith("refused 1\n")) == (6, True)


def test_audit_finds_equal_what_is_equal(tape: Path, any_database: str) -> None:
    """Exit code 0 and a table of the streams, on either kind of server."""
    load_once(tape, any_database)
    process = run_loader("audit", root=tape, url=any_database)
    assert process.popen.returncode == 0
    assert [line.split() for line in process.out.splitlines()[1:3]] == [
        ["data_gaps", "1", "1", "0", "0", "3", "3"],
        [QUOTES, "5", "5", "0", "0", "500", "500"],
    ]
    assert process.out.endswith("database and tape: equal\n")


@pytest.mark.parametrize(
    ("change", "detail"),
    [
        (
            "DELETE FROM eth_option_quotes WHERE change_id = 8 AND segment = 2",
            "rows of the tape that the database lacks: 1",
        ),
        (
            "UPDATE eth_option_quotes SET bid_price = bid_price + 1e-9 WHERE change_id = 8 AND segment = 2",
            "tape lacks: 1",
        ),
        (
            f"UPDATE {QUOTES} SET timestamp = timestamp + interval '1 second' WHERE {ROW}",
            "1",
        ),
        (
            (  # two values change places
                f"UPDATE {QUOTES} AS one SET bid_price = other.bid_price FROM {QUOTES} AS other"
                " WHERE one.segment = 2 AND other.segment = 2 AND one.change_id + other.change_id = 17"
                " AND one.change_id IN (8, 9)"
            ),
            "tape lacks: 2",
        ),
        (
            f"INSERT INTO {QUOTES} SELECT * FROM {QUOTES} WHERE {ROW}",
            "rows of the database that the tape lacks: 1",
        ),
        (
            "INSERT INTO eth_option_quotes (timestamp, segment) VALUES ('2020-01-01', 2)",
            "rows of the database at other times than the tape's: 1",
        ),
    ],
)
def test_audit_finds_what_was_changed(tape: Path, database: str, change: str, detail: str) -> None:
    """A row deleted, changed, moved in time, doubled, or added: the segment is named."""
    load_once(tape, database)
    query(database, change)
    found = audit(tape, database)
    assert found["equal"] is False
    names = query(database, "SELECT name FROM loaded_segments WHERE segment = 2")
    assert [(finding["verdict"], finding["name"]) for finding in found["findings"]] == [("different", names[0][0])]
    assert detail in found["findings"][0]["detail"]


def test_a_difference_is_exit_code_1(tape: Path, database: str) -> None:
    """And `--json` is one object, whatever the verdict."""
    load_once(tape, database)
    query(database, f"DELETE FROM {QUOTES} WHERE {ROW}")
    process = run_loader("audit", "--json", root=tape, url=database)
    assert (process.popen.returncode, json.loads(process.out)) == (1, audit(tape, database))


def test_audit_finds_rows_of_no_segment(tape: Path, database: str) -> None:
    """Rows of a number that the ledger has not, or has for another stream; and somebody's own rows."""
    load_once(tape, database)
    of_gaps = query(database, "SELECT segment FROM loaded_segments WHERE stream = 'data_gaps'")[0][0]
    query(
        database, f"INSERT INTO {QUOTES} (timestamp, segment) VALUES (now(), NULL), (now(), 999), (now(), {of_gaps})"
    )
    found = audit(tape, database)["findings"]
    assert [(finding["verdict"], finding["stream"], finding["database_rows"]) for finding in found] == [
        ("foreign", QUOTES, 1),
        ("foreign", QUOTES, 2),
    ]
    assert "no loader wrote them" in found[0]["detail"]


def test_audit_finds_what_was_not_loaded(tape: Path, database: str) -> None:
    """Segments that the ledger lacks; all of them where nothing was ever loaded."""
    assert [finding["verdict"] for finding in audit(tape, database)["findings"]] == ["missing"] * 6
    load_once(tape, database, wanted=wanted(at(10), None))
    assert [finding["verdict"] for finding in audit(tape, database)["findings"]] == ["missing"] * 2


def test_segments_that_left_the_tape_are_no_difference(tape: Path, database: str) -> None:
    """What was pruned here is reported, and not called an error."""
    load_once(tape, database)
    path = next(tape.glob(f"{QUOTES}/*/*.arrow"))
    path.unlink()
    found = audit(tape, database)
    assert (found["equal"], [finding["verdict"] for finding in found["findings"]]) == (True, ["not on the tape here"])


def test_audit_does_not_call_equal_what_it_could_not_compare(tape: Path, database: str) -> None:
    """A damaged segment, a table changed by hand, no database: exit code 7."""
    load_once(tape, database)
    path = next(tape.glob(f"{QUOTES}/*/*.arrow"))
    good = path.read_bytes()
    path.write_bytes(good[:-20])
    assert audit(tape, database)["equal"] is None
    assert run_loader("audit", root=tape, url=database).popen.returncode == 7
    path.write_bytes(good)
    query(database, "ALTER TABLE eth_option_quotes DROP COLUMN mark_price")
    process = run_loader("audit", root=tape, url=database)
    assert (process.popen.returncode, process.out) == (7, "")
    assert "error: the table eth_option_quotes has no column mark_price" in process.err
    assert run_loader("audit", root=tape, url="postgresql:///x?host=/nowhere").popen.returncode == 7
