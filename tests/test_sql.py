"""`analysis sql`: a statement, a file, or a ready query; as a table, as data, into a file, and again and again."""

import csv
import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from recorder.runtime.data_dir import DataDir
from recorder.segments.schemas import SCHEMAS, rows_to_batch
from recorder.segments.tape import Tape
from tests.fix_postgres import START_US, make_rows, record
from tests.fix_programs import PATIENCE_S, REPOSITORY, Programs, until

QUOTES = "eth_option_quotes"
Ran = subprocess.CompletedProcess[str]


@pytest.fixture
def tape(tmp_path: Path) -> Path:
    """Return a tape of 50 quotes."""
    record(tmp_path / "tape", [{QUOTES: make_rows(QUOTES, 50)}])
    return tmp_path / "tape"


@pytest.fixture
def sql(tape: Path) -> Callable[..., Ran]:
    """Return a function that runs `analysis sql` over the tape."""

    def run(*arguments: str, stdin: str = "") -> Ran:
        return subprocess.run(
            [sys.executable, "-m", "analysis", "sql", *arguments, "--data-dir", str(tape)],
            input=stdin, capture_output=True, text=True, check=False, timeout=60, cwd=REPOSITORY,
        )  # fmt: skip

    return run


def test_a_statement_is_answered_as_a_table_as_json_and_as_csv(sql: Callable[..., Ran]) -> None:
    """The same rows in each."""
    statement = f"SELECT instrument, count(*) AS n FROM {QUOTES} GROUP BY ALL ORDER BY ALL"
    expected = [("ETH-0", 17), ("ETH-1", 17), ("ETH-2", 16)]

    assert [tuple(row.values()) for row in json.loads(sql(statement, "--json").stdout)] == expected
    read = list(csv.reader(io.StringIO(sql(statement, "--csv").stdout)))
    assert read == [["instrument", "n"], *([name, str(n)] for name, n in expected)]
    table = sql(statement).stdout
    assert all(name in table for name, _ in expected)


def test_columns_of_one_name_are_told_apart_in_json(sql: Callable[..., Ran]) -> None:
    """As DuckDB tells them apart in Parquet: an object has each key once."""
    ran = sql("SELECT 1 AS a, 2 AS a, 3 AS a_1, 4 AS a", "--json")
    assert json.loads(ran.stdout) == [{"a": 1, "a_2": 2, "a_1": 3, "a_3": 4}]


def test_a_file_stdin_and_a_name_are_statements(sql: Callable[..., Ran], tmp_path: Path) -> None:
    """And --list names what names there are."""
    file = tmp_path / "question.sql"
    file.write_text("-- how many\nSELECT count(*) AS n\nFROM quotes;\n")
    for ran in (sql("--file", str(file), "--json"), sql("--file", "-", "--json", stdin=file.read_text())):
        assert json.loads(ran.stdout) == [{"n": 50}], ran.stderr
    stale = json.loads(sql("staleness", "--json").stdout)
    assert {row["instrument"] for row in stale} == {"ETH-0", "ETH-1", "ETH-2"}
    listed = sql("--list")
    assert listed.returncode == 0
    assert "staleness       How old the newest quote" in listed.stdout


def test_an_answer_goes_to_a_parquet_file(sql: Callable[..., Ran], tmp_path: Path) -> None:
    """Whole, or not at all; stdout stays empty."""
    file = tmp_path / "answer.parquet"
    ran = sql(f"SELECT instrument, change_id FROM {QUOTES}", "--parquet", str(file))

    assert (ran.returncode, ran.stdout) == (0, "")
    assert pq.read_table(file).num_rows == 50
    before = file.read_bytes()
    failed = sql("SELECT error('no') FROM quotes", "--parquet", str(file))
    assert failed.returncode == 2
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.glob("*answer*")] == [file.name]


def test_a_range_is_taken_from_the_tape(sql: Callable[..., Ran]) -> None:
    """`--from` and `--to`, by received_at."""
    ran = sql("SELECT count(*) AS n FROM quotes", "--from", "2026-05-28T20:26:40.010Z", "--json")
    assert json.loads(ran.stdout) == [{"n": 40}], ran.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "expected a statement, --file FILE, or --list: one of them"),
        (["SELECT 1", "--list"], "expected a statement, --file FILE, or --list: one of them"),
        (["  ; "], "there is nothing to run"),
        (["--file", "no-such-file.sql"], "no-such-file.sql cannot be read"),
        (["SELECT nonsense FROM quotes"], "nonsense"),
        (["SELECT 1", "--watch", "0"], "is no time: expected seconds"),
        (["SELECT 1", "--watch", "1", "--parquet", "x.parquet"], "--watch prints what --parquet would overwrite"),
        (["SELECT 1", "--parquet", "/no/such/folder/x.parquet"], "/no/such/folder"),
        (
            ["SELECT 1", "--parquet", "/proc/x.parquet"],
            "/proc/x.parquet cannot be written: No such file or directory",
        ),
        (["SELECT 1", "--archive", "no-such-folder"], "there is no archive no-such-folder"),
        (["SELECT 1", "--from", "2026-11-02", "--to", "2026-11-01"], "before it begins"),
        (["SELECT INTERVAL 1 DAY AS a", "--csv"], "this does not fit into CSV"),
    ],
)
def test_what_cannot_be_run_is_said_in_a_line(sql: Callable[..., Ran], arguments: list[str], said: str) -> None:
    """With exit code 2."""
    ran = sql(*arguments)

    assert ran.returncode == 2
    assert said in ran.stderr
    assert len(ran.stderr.splitlines()) == 1


def test_watching_shows_what_was_flushed_meanwhile(programs: Programs, tape: Path) -> None:
    """An answer every so often, until Ctrl-C, which is no failure."""
    watching = programs.start(
        "analysis", "sql", "SELECT count(*) AS n FROM quotes", "--json", "--watch", "0.1", "--data-dir", tape
    )
    until(lambda: watching.out.count("\n") >= 2, "two answers")
    writer = Tape(DataDir(tape), recorder="live", software="x", segment_max_age_s=1e9, segment_max_bytes=1 << 40)
    batch = rows_to_batch(SCHEMAS["quotes"], make_rows(QUOTES, 7))
    assert writer.write_round({QUOTES: [batch]}, now_us=START_US).failure is None
    until(lambda: '[{"n": 57}]' in watching.out, "the rows that were flushed")
    watching.process.send_signal(signal.SIGINT)

    assert watching.process.wait(PATIENCE_S) == 0
    answers = [json.loads(line)[0]["n"] for line in watching.out.splitlines()]
    assert answers == sorted(answers)
    assert set(answers) == {50, 57}


def test_watching_on_a_terminal_shows_each_answer_in_the_place_of_the_last(tape: Path) -> None:
    """As wide as the terminal is."""
    ours, theirs = pty.openpty()
    command = [
        sys.executable,
        "-m",
        "analysis",
        "sql",
        "FROM quotes LIMIT 5",
        "--watch",
        "0.1",
        "--data-dir",
        str(tape),
    ]
    with subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=REPOSITORY, env={**os.environ, "COLUMNS": "80"}
    ) as process:
        os.close(theirs)
        shown = b""
        while shown.count(b"\x1b[H\x1b[2J") < 3:
            assert select.select([ours], [], [], PATIENCE_S)[0]
            shown += os.read(ours, 65_536)
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) == 0
    os.close(ours)
    lines = shown.decode(errors="replace").replace("\x1b[H\x1b[2J", "").splitlines()
    assert max(len(line) for line in lines) <= 80
