"""A schema that holds a part of the rows is never taken for a whole database, nor the other way round."""

from pathlib import Path

import pytest
from psycopg.conninfo import make_conninfo

from loader.errors import FilterConflict
from tests.fix_postgres import START_US, Process, load_once, query, quotes, record, run_loader

US_PER_SEC = 1_000_000
QUOTES = "eth_option_quotes"
COUNTS = "SELECT instrument, count(*) FROM {}.eth_option_quotes GROUP BY 1 ORDER BY 1"


def backlog(root: Path, segments: int, *, recorder: str = "test") -> list[Path]:
    rounds = [quotes(30, start_us=START_US + second * US_PER_SEC) for second in range(segments)]
    return record(root, rounds, recorder=recorder)


def looking_into(url: str, *schemas: str) -> str:
    """Return the URL of a session that looks into these schemas, in their order."""
    return make_conninfo(url, options=f"-c search_path={','.join(schemas)}")


def refused(process: Process, why: str) -> None:
    """Check that a program ended as one that was wrongly used does, with one line that says why and what to do."""
    told = process.err.splitlines()
    assert process.popen.returncode == 2, process.err
    assert process.out == ""
    assert told[-1].startswith("error: ")
    assert why in told[-1]
    assert "; " in told[-1]


def test_a_whole_database_takes_no_part(tmp_path: Path, any_database: str) -> None:
    """Replay --into-schema refuses the schema of a whole database, dry or not, and the next load misses no row."""
    backlog(tmp_path, 2)
    load_once(tmp_path, any_database)
    backlog(tmp_path, 1, recorder="later")
    for more in (["--instruments", "ETH-1"], [], ["--instruments", "ETH-1", "--dry-run"]):
        refused(
            run_loader("replay", "--into-schema", "public", *more, root=tmp_path, url=any_database),
            "the schema public holds a whole database",
        )
    refused(run_loader("audit", "--schema", "public", root=tmp_path, url=any_database), "holds a whole database")

    assert load_once(tmp_path, any_database).segments == 1
    assert query(any_database, COUNTS.format("public")) == [("ETH-0", 30), ("ETH-1", 30), ("ETH-2", 30)]


def test_a_part_takes_no_whole_segments(tmp_path: Path, any_database: str) -> None:
    """Load, replay and audit refuse a search path that leads to a schema for some instruments; its rows stay."""
    backlog(tmp_path, 1)
    chosen = ["--into-schema", "part", "--instruments", "ETH-1"]
    assert run_loader("replay", *chosen, root=tmp_path, url=any_database).popen.returncode == 0
    backlog(tmp_path, 1, recorder="later")
    url = looking_into(any_database, "part", "public")
    for command in (["load", "--once"], ["replay"], ["replay", "--dry-run"], ["audit", "--repair"]):
        refused(run_loader(*command, root=tmp_path, url=url), "was made for ETH-1")

    assert query(any_database, COUNTS.format("part")) == [("ETH-1", 10)]
    again = run_loader("replay", "--into-schema", "part", root=tmp_path, url=url)
    assert again.out.startswith("loaded 1 segment (10 rows)"), again.err
    # A part that is looked into after the whole is none of its business.
    assert load_once(tmp_path, looking_into(any_database, "public", "part")).segments == 2


def test_a_schema_for_all_instruments_may_be_loaded_into(tmp_path: Path, database: str) -> None:
    """Its rows are whole, whoever brings them."""
    backlog(tmp_path, 1)
    assert run_loader("replay", "--into-schema", "all_of_it", root=tmp_path, url=database).popen.returncode == 0
    backlog(tmp_path, 1, recorder="later")
    assert load_once(tmp_path, looking_into(database, "all_of_it")).segments == 1


def test_a_loader_that_was_made_before_the_filter_is_found_by_it(tmp_path: Path, database: str) -> None:
    """Whichever comes first, a whole database or a part: the other one is refused."""
    query(database, "CREATE SCHEMA early")
    load_once(tmp_path, looking_into(database, "early"))  # an empty tape: a ledger, and nothing in it
    chosen = ["--into-schema", "early", "--instruments", "ETH-1"]
    refused(run_loader("replay", *chosen, root=tmp_path, url=database), "holds a whole database")
    chosen[1] = "late"
    assert run_loader("replay", *chosen, root=tmp_path, url=database).popen.returncode == 0
    with pytest.raises(FilterConflict):
        load_once(tmp_path, looking_into(database, "late"))


def test_a_dry_run_into_a_new_schema_looks_into_no_other(tmp_path: Path, any_database: str) -> None:
    """While a schema is not there, or is somebody's own, nothing is in it, whatever the main tables hold."""
    backlog(tmp_path, 2)
    load_once(tmp_path, any_database)
    chosen = ["replay", "--into-schema", "study", "--instruments", "ETH-1", "--dry-run"]
    for _ in range(2):
        told = run_loader(*chosen, root=tmp_path, url=any_database)
        assert told.out.splitlines()[-1] == "would load 2 segments; 0 segments already there", told.err
        query(any_database, "CREATE SCHEMA IF NOT EXISTS study")
    run_loader(*chosen[:-1], root=tmp_path, url=any_database)
    told = run_loader(*chosen, root=tmp_path, url=any_database)
    assert told.out.splitlines()[-1] == "would load 0 segments; 2 segments already there"


def test_an_audit_of_an_unknown_schema_changes_nothing(tmp_path: Path, any_database: str) -> None:
    """Exit code 2, and the main tables are as they were: where there is no such schema, and where it is another's."""
    backlog(tmp_path, 1)
    load_once(tmp_path, any_database)
    query(any_database, f"DELETE FROM {QUOTES} WHERE instrument = 'ETH-0'")
    for _ in range(2):
        audit = run_loader("audit", "--schema", "stduy", "--repair", root=tmp_path, url=any_database)
        refused(audit, "there is no schema stduy that replay --into-schema has made")
        query(any_database, "CREATE SCHEMA IF NOT EXISTS stduy")
    assert query(any_database, COUNTS.format("public")) == [("ETH-1", 10), ("ETH-2", 10)]


def test_a_table_that_a_schema_lost_is_not_another_schemas(tmp_path: Path, timescale_database: str) -> None:
    """Where TimescaleDB lies in public, that is looked into last: audit and replay name the table that is gone."""
    url = timescale_database
    backlog(tmp_path, 1)
    load_once(tmp_path, url)
    chosen = ["replay", "--into-schema", "study", "--instruments", "ETH-1"]
    assert run_loader(*chosen, root=tmp_path, url=url).popen.returncode == 0
    query(url, f"DROP TABLE study.{QUOTES} CASCADE")
    backlog(tmp_path, 1, recorder="later")
    audit = run_loader("audit", "--schema", "study", "--repair", root=tmp_path, url=url)
    replay = run_loader(*chosen, root=tmp_path, url=url)

    assert (audit.popen.returncode, replay.popen.returncode) == (7, 1)
    for told in (audit, replay):
        assert told.err.splitlines()[-1].startswith(f"error: the table {QUOTES} is missing")
    assert query(url, COUNTS.format("public")) == [("ETH-0", 10), ("ETH-1", 10), ("ETH-2", 10)]
