"""A cluster that speaks Spark Connect, with a driver and workers, answers as DuckDB does on this machine."""

import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import analysis
from analysis import remote
from analysis.cli import main
from analysis.errors import NoCluster, NoTape
from analysis.queries import ready_queries
from analysis.span import Span
from loader.archive.store import open_store
from loader.settings import LoaderSettings
from recorder.segments.layout import US_PER_DAY, us_to_datetime
from recorder.segments.schemas import SCHEMAS
from tests.fix_archive import archive, parts
from tests.fix_market import NOON_US, record_market
from tests.fix_postgres import quotes, record
from tests.fix_programs import REPOSITORY, Programs, until
from tests.fix_s3 import free_ports

NO_TIME = Span()
QUERIES = {query.name: query.statement for query in ready_queries()}
Rows = list[tuple[Any, ...]]


class Cluster:
    """A Spark Connect server, a process of its own with a driver and two workers a session."""

    def __init__(self, folder: Path, **environment: str) -> None:
        (port,) = free_ports(1)
        self.url = f"sc://127.0.0.1:{port}"
        self._log = folder / "cluster.log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "pysail", "spark", "server", "--ip", "127.0.0.1", "--port", str(port)],
                stdout=log, stderr=log, cwd=folder,
                env={
                    **os.environ, "SAIL_MODE": "local-cluster", "SAIL_CLUSTER__WORKER_INITIAL_COUNT": "2",
                    "SAIL_EXECUTION__DEFAULT_PARALLELISM": "2", "RUST_LOG": "info", **environment,
                },
            )  # fmt: skip
        until(lambda: self.process.poll() is not None or self._listens(port), "the cluster")
        assert self.process.poll() is None, self.log

    @property
    def log(self) -> str:
        return self._log.read_text()

    @staticmethod
    def _listens(port: int) -> bool:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            return False
        return True


@contextmanager
def running(folder: Path, **environment: str) -> Iterator[Cluster]:
    one = Cluster(folder, **environment)
    try:
        with pytest.MonkeyPatch.context() as patch:
            # pyspark takes a process whose main module is no file, as in a worker of pytest, for doctests of its own.
            patch.setattr(sys.modules["__main__"], "__file__", __file__, raising=False)
            yield one
    finally:
        one.process.kill()
        one.process.wait()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running(tmp_path_factory.mktemp("cluster")) as one:
        yield one


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a tape of three days that are archived; nobody may change it. Its folder's name has a space."""
    root = tmp_path_factory.mktemp("a tape")
    record_market(root)
    archive(root)
    return root


@pytest.fixture(autouse=True)
def signals_as_they_were() -> Iterator[None]:
    """Undo what the command does to the process that it is run in."""
    before = {one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)}
    yield
    for one, handler in before.items():
        signal.signal(one, handler)


def ask(url: str, root: Path | str, statement: str, span: Span = NO_TIME, archive: str | None = None) -> Any:
    with remote.asking(url, str(root), span, archive) as asking:
        return asking(statement).to_arrow_table()


def ask_here(root: Path, statement: str, span: Span = NO_TIME) -> Any:
    with analysis.open(root, start=span.start, end=span.end) as con:
        return con.sql(statement).to_arrow_table()


def same(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-9)
    return bool(one == other) and type(one) is type(other)


def assert_equal(found: Any, expected: Any, *, in_order: bool) -> None:
    """Compare two answers: names, kinds, and every value; floats to a billionth."""
    assert found.schema == expected.schema
    tables = [[tuple(row.values()) for row in table.to_pylist()] for table in (found, expected)]
    if not in_order:
        tables = [sorted(rows, key=repr) for rows in tables]
    assert len(tables[0]) == len(tables[1])
    for number, (one, other) in enumerate(zip(*tables, strict=True)):
        assert all(map(same, one, other)), (number, one, other)


@pytest.fixture(scope="module")
def asking(cluster: Cluster, market: Path) -> Iterator[Callable[[str], Any]]:
    with remote.asking(cluster.url, str(market), NO_TIME) as one:
        yield one


@pytest.mark.parametrize("name", QUERIES)
def test_every_ready_query_gives_the_same_answer(asking: Callable[[str], Any], market: Path, name: str) -> None:
    """In the order that it states, with the same names and types; and none of its columns is empty here."""
    found = asking(QUERIES[name]).to_arrow_table()

    assert_equal(found, ask_here(market, QUERIES[name]), in_order="\nORDER BY" in QUERIES[name])
    assert found.num_rows > 1
    assert [column for column in found.column_names if found[column].null_count == found.num_rows] == []


def test_a_session_has_workers_and_is_stopped(cluster: Cluster, market: Path) -> None:
    """The statement runs on a driver and its workers, and none of them is left when it has been answered."""
    before = cluster.log.count("server has stopped")
    ask(cluster.url, market, "SELECT count(*) FROM quotes")

    assert "worker 2 server is ready" in cluster.log
    until(lambda: cluster.log.count("server has stopped") >= before + 2, "the workers to be gone")


@pytest.mark.parametrize(
    "statement",
    [
        QUERIES["bars"],
        QUERIES["trade_flow"],
        QUERIES["smile"],
        "SELECT count(*) AS rows, min(received_at) AS first, max(received_at) AS last FROM eth_option_quotes",
        "SELECT count(*) AS rows, min(timestamp) AS first, max(timestamp) AS last FROM trades",
        "SELECT count(*) AS rows FROM data_gaps",
    ],
    ids=["bars", "trade_flow", "smile", "quotes", "trades", "gaps"],
)
def test_a_range_is_the_same_range(cluster: Cluster, market: Path, tmp_path: Path, statement: str) -> None:
    """Half-open, of received_at or of trades their timestamp; parts without rows of it are not looked at."""
    root = tmp_path / "tape"
    shutil.copytree(market, root)
    span = Span(us_to_datetime(NOON_US + US_PER_DAY + 30_000_000), us_to_datetime(NOON_US + US_PER_DAY + 620_000_000))
    expected = ask_here(root, statement, span)
    for part in parts(root):
        if "date=2026-05-31" in str(part) and "gaps" not in str(part) and "instruments" not in str(part):
            part.unlink()

    assert_equal(ask(cluster.url, root, statement, span), expected, in_order=True)
    assert expected.equals(ask_here(market, statement)) == ("gaps" in statement)  # they are never cut


def test_of_what_there_is_nothing_the_table_is_empty(cluster: Cluster, tmp_path: Path) -> None:
    """A tape of quotes alone has all other tables, too, with their columns."""
    record(tmp_path, [quotes(20)])
    archive(tmp_path)
    with remote.asking(cluster.url, str(tmp_path), NO_TIME) as asking:
        for name in ("trades", "tickers", "instruments", "data_gaps"):
            found = asking(f"SELECT * FROM {name}").to_arrow_table()
            assert (found.num_rows, found.schema) == (0, SCHEMAS["gaps" if name == "data_gaps" else name])
        for name, statement in QUERIES.items():
            found = asking(statement).to_arrow_table()
            assert_equal(found, ask_here(tmp_path, statement), in_order="\nORDER BY" in statement)
            assert (found.num_rows > 0) == ("FROM quotes" in statement and name != "most_active"), name


def test_only_rows_to_be_shown_are_fetched(
    cluster: Cluster, market: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And it says so if there are more."""
    for rows, said in ((4, True), (12, False), (13, False)):
        with remote.asking(cluster.url, str(market), NO_TIME, most_rows=rows) as asking:
            assert len(asking(QUERIES["smile"])) == min(rows, 12)
        assert (f"the first {rows} rows of more" in capsys.readouterr().err) == said


@pytest.mark.parametrize("form", [["--json"], ["--csv"], []], ids=["json", "csv", "table"])
def test_the_command_prints_what_it_prints_of_a_tape_here(
    cluster: Cluster, market: Path, capsysbinary: pytest.CaptureFixture[bytes], form: list[str]
) -> None:
    """To the byte; one line on stderr tells what was asked."""
    command = ["sql", "open_interest", "--data-dir", str(market), *form]
    assert main(command) == 0
    here = capsysbinary.readouterr()
    assert main([*command, "--remote", cluster.url]) == 0
    there = capsysbinary.readouterr()

    assert there.out == here.out != b""
    assert there.err == (
        b"only the archive is asked: segments that are not archived yet are not among the rows"
        b" (0 sealed, and what is being recorded)\n"
    )


def test_an_answer_becomes_parquet(cluster: Cluster, market: Path, tmp_path: Path) -> None:
    """All of it, and the table's limit does not count."""
    file = tmp_path / "answer.parquet"
    command = ["sql", "SELECT * FROM quotes", "--remote", cluster.url, "--data-dir", str(market)]
    assert main([*command, "--parquet", str(file)]) == 0

    assert pq.read_metadata(file).num_rows == 3_200


def test_times_are_utc_wherever_the_program_runs(cluster: Cluster, market: Path, programs: Programs) -> None:
    """Days begin at midnight UTC, not where the person is, or the server."""
    statement = """
        SELECT date_trunc('day', received_at) AS day, count(*) AS rows, current_timezone() AS zone
        FROM tickers GROUP BY 1 ORDER BY 1
    """
    ran = programs.run(
        "analysis", "sql", statement, "--json", "--remote", cluster.url, "--data-dir", market, TZ="Pacific/Auckland"
    )

    assert json.loads(ran.out) == [
        {"day": f"2026-05-{day}T00:00:00+00:00", "rows": 240, "zone": "UTC"} for day in (29, 30, 31)
    ]


def test_it_asks_again_and_sees_what_was_archived_meanwhile(
    cluster: Cluster, tmp_path: Path, programs: Programs
) -> None:
    """With --watch, as of each moment."""
    root = tmp_path / "tape"
    record(root, [quotes(20)])
    archive(root)
    watching = programs.start(
        "analysis", "sql", "SELECT count(*) AS n FROM quotes", "--remote", cluster.url, "--json", "--watch", 0.1,
        "--data-dir", root,
    )  # fmt: skip
    until(lambda: '[{"n": 20}]' in watching.out, "the first answer")
    record(root, [quotes(5, start_us=NOON_US)])
    archive(root)
    until(lambda: '[{"n": 25}]' in watching.out, "the rows of the second segment")


def test_segments_that_are_not_archived_are_counted(
    cluster: Cluster, market: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those of the range that is asked for; without a DATA_DIR there is nothing to count."""
    root = tmp_path / "tape"
    shutil.copytree(market, root)
    record(root, [quotes(5, start_us=NOON_US + day * US_PER_DAY) for day in (5, 6)])
    from_day_6 = Span(us_to_datetime(NOON_US + 6 * US_PER_DAY - 1))

    def said(span: Span, place: Path, archive: str | None = None) -> str:
        expected = 0 if span.start else 3_200
        assert ask(cluster.url, place, "SELECT count(*) AS n FROM quotes", span, archive)["n"].to_pylist() == [
            expected
        ]
        return capsys.readouterr().err

    assert "(2 sealed, and what is being recorded)" in said(NO_TIME, root)
    assert "(1 sealed, and what is being recorded)" in said(from_day_6, root)
    assert said(NO_TIME, tmp_path / "nowhere", str(root / "archive")).endswith(
        "not archived yet are not among the rows\n"
    )


def test_an_archive_in_s3(bucket: LoaderSettings, market: Path, tmp_path: Path) -> None:
    """Manifests are read here, parts by the cluster, both with the names that every S3 program knows."""
    store = open_store(bucket, lambda: None)
    assert store is not None
    root = tmp_path / "tape"
    shutil.copytree(market, root, ignore=shutil.ignore_patterns("archive"))
    archive(root, store=store)
    with running(tmp_path, AWS_ALLOW_HTTP="true") as cluster:
        found = ask(cluster.url, tmp_path / "nowhere", QUERIES["smile"], archive=bucket.archive_url)

    assert_equal(found, ask_here(market, QUERIES["smile"]), in_order=True)


# What can go wrong


def test_a_part_that_the_cluster_does_not_find_is_an_error(cluster: Cluster, market: Path, tmp_path: Path) -> None:
    """Never a smaller answer: engines pass over a file that is not there."""
    root = tmp_path / "tape"
    shutil.copytree(market, root)
    next(part for part in parts(root) if "eth_option_quotes" in str(part)).unlink()
    why = r"finds 1,600 rows of eth_option_quotes in file:///.*/archive/, and the manifests say 2,400; --archive"
    with pytest.raises(NoCluster, match=why):
        ask(cluster.url, root, "SELECT 1")


@pytest.mark.parametrize(
    ("statement", "why"),
    [
        ("SELECT nothing FROM quotes", "nothing"),
        ("SELECT * FROM nowhere", "nowhere"),
        ("SELEC 1", "SELEC"),
        ("SELECT\n  1 / 0", "zero"),
    ],
)
def test_a_statement_that_is_refused_is_one_line(
    cluster: Cluster, market: Path, capsys: pytest.CaptureFixture[str], statement: str, why: str
) -> None:
    """After the line that says what is asked."""
    code = main(["sql", statement, "--remote", cluster.url, "--data-dir", str(market)])
    printed = capsys.readouterr()
    asked, error = printed.err.splitlines()

    assert (code, printed.out) == (2, "")
    assert asked.startswith("only the archive is asked")
    assert error.startswith("error: ")
    assert why in error
    assert error.endswith("; tables are listed by: SHOW TABLES")


def test_no_server_is_one_line(market: Path, programs: Programs) -> None:
    """With its address and what to look at."""
    (port,) = free_ports(1)
    ran = programs.run("analysis", "sql", "bars", "--remote", f"sc://127.0.0.1:{port}", "--data-dir", market)

    assert (ran.process.returncode, ran.out) == (1, "")
    assert ran.err.startswith(f"error: sc://127.0.0.1:{port} cannot be reached: ")
    assert ran.err.endswith("is a Spark Connect server running there?\n")
    assert ran.err.count("\n") == 1


def test_a_server_that_goes_away_is_one_line(tmp_path: Path, market: Path) -> None:
    """Between two questions of one session."""
    with running(tmp_path) as cluster, remote.asking(cluster.url, str(market), NO_TIME) as asking:
        asking("SELECT 1")
        cluster.process.kill()
        with pytest.raises(NoCluster, match="cannot be reached"):
            asking("SELECT 1")


def test_a_second_interrupt_does_not_wait_for_the_server(tmp_path: Path, market: Path, programs: Programs) -> None:
    """Which may be too busy to be told that a statement, or the session, is over."""
    with running(tmp_path) as cluster:
        asking = programs.start(
            "analysis", "sql", "SELECT 1", "--remote", cluster.url, "--watch", 0.001, "--data-dir", market
        )
        until(lambda: asking.out, "the first answer")
        cluster.process.send_signal(signal.SIGSTOP)
        for _ in range(2):
            with pytest.raises(subprocess.TimeoutExpired):
                asking.process.wait(1)
            asking.process.send_signal(signal.SIGINT)

        assert asking.wait() == 130
        assert asking.err.count("\n") == 1  # what was asked, and no traceback


def test_without_the_client_it_says_what_to_install(market: Path, programs: Programs, tmp_path: Path) -> None:
    """It is an extra: everything else works without it."""
    (tmp_path / "pyspark").mkdir()
    (tmp_path / "pyspark" / "__init__.py").write_text("raise ImportError('there is no pyspark')")
    ran = programs.run(
        "analysis", "sql", "bars", "--remote", "sc://127.0.0.1:1", "--data-dir", market,
        PYTHONPATH=f"{tmp_path}{os.pathsep}{REPOSITORY}",
    )  # fmt: skip

    assert ran.process.returncode == 1
    assert ran.err == (
        "error: the client for Spark Connect is not installed: there is no pyspark;"
        " pip install 'pyspark-client>=4.2'\n"
    )


def test_without_an_archive_there_is_nothing_to_ask(tmp_path: Path) -> None:
    """Whether there is a tape or not."""
    record(tmp_path / "tape", [quotes(5)])
    for place, named in (("tape", None), ("nowhere", None), ("nowhere", str(tmp_path / "archive"))):
        with pytest.raises(NoTape, match="there is no"):
            ask("sc://127.0.0.1:1", tmp_path / place, "SELECT 1", archive=named)


@pytest.mark.parametrize("url", ["spark:15002", "http://spark:15002", "sc://", "sc://spark:99999", "sc://spark:1/x"])
def test_what_is_no_url_is_a_usage_error(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Before anything is opened."""
    with pytest.raises(SystemExit) as ended:
        main(["sql", "bars", "--remote", url])

    assert ended.value.code == 2
    assert "expected sc://host:port" in capsys.readouterr().err


def test_a_user_in_the_url_is_not_repeated(capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever else is wrong with it."""
    with pytest.raises(SystemExit):
        main(["sql", "bars", "--remote", "sc://me:s3cr3t@spark:1/x"])

    assert "'sc://***@spark:1/x' is no server" in capsys.readouterr().err


def test_a_token_is_not_taken_from_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Every user of the machine could see it; nor is it printed."""
    with pytest.raises(SystemExit):
        main(["sql", "bars", "--remote", "sc://spark:15002/;token=hunter2"])
    said = capsys.readouterr().err

    assert "SPARK_CONNECT_AUTHENTICATE_TOKEN" in said
    assert "hunter2" not in said
