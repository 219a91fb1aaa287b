"""The whole chain as processes: exchange, recorder, loader, PostgreSQL, replay; judged by the oracle in SQL."""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from loader.postgres.embedded import Embedded
from loader.stop import Stop
from tests.fix_postgres import query
from tests.fix_programs import Programs, until
from tests.oracle import QUOTES, TICKERS, TRADES, Expected, Row, compare, expected, sent

COLUMNS = {"quotes": QUOTES, "tickers": TICKERS, "trades": TRADES}
# How long the database is away. `make chaos` will do longer; the point is that it is away while segments come.
OUTAGE_S = 5


def rows_in(url: str, kind: str) -> list[Row]:
    """A stream's rows as the database has them; times as integer microseconds."""
    rest = ", ".join(COLUMNS[kind][1:])
    return query(url, f"SELECT (extract(epoch FROM timestamp) * 1000000)::bigint, {rest} FROM eth_option_{kind}")


def everything(url: str) -> dict[str, list[Row]]:
    """Every row of every stream, but for the ledger's own number of a segment."""
    tables = [name for (name,) in query(url, "SELECT DISTINCT stream FROM loaded_segments ORDER BY 1")]
    return {name: sorted(query(url, f"SELECT (to_jsonb(t) - 'segment')::text FROM {name} t")) for name in tables}


def assert_same(want: Expected, url: str) -> None:
    for kind, rows in (("quotes", want.quotes), ("tickers", want.tickers), ("trades", want.trades)):
        verdict = compare(rows, rows_in(url, kind))
        assert verdict.same, f"{kind}: {verdict}"


@pytest.fixture
def server() -> Iterator[Embedded]:
    """A PostgreSQL of this test alone, to be taken away and brought back."""
    with tempfile.TemporaryDirectory(prefix="ticktape-chain-") as home:
        embedded = Embedded(Path(home) / "postgres")
        yield embedded
        embedded.close()


def test_an_outage_of_the_database_costs_nothing(programs: Programs, server: Embedded, tmp_path: Path) -> None:
    """While the database is away the recorder records; the loader catches up by itself: all once, all equal."""
    journal, tape = tmp_path / "journal", tmp_path / "tape"
    url = server.ensure_running(Stop())
    exchange, exchange_url = programs.simulate("--instruments", 30, "--rate", 1000, "--seed", 9, "--journal", journal)
    recorder = programs.record(exchange_url, tape, "--segment-max-age-sec", 1)
    loader = programs.start("loader", "load", "--data-dir", tape, DATABASE_URL=url)
    loader.until_event("segment.loaded", 3)
    server.close()
    before = len(list((tape / "eth_option_quotes").rglob("*.arrow")))
    time.sleep(OUTAGE_S)
    assert len(list((tape / "eth_option_quotes").rglob("*.arrow"))) > before
    server.ensure_running(Stop())
    assert recorder.stop() == 0
    exchange.stop()
    want = expected(sent(journal))

    until(lambda: arrived(url, want), "the backlog to be loaded")
    assert_same(want, url)
    assert loader.stop() == 0


def arrived(url: str, want: Expected) -> bool:
    """Whether as many rows of each stream are loaded as are wanted, or more."""
    try:
        return all(
            len(rows_in(url, kind)) >= len(rows)
            for kind, rows in (("quotes", want.quotes), ("tickers", want.tickers), ("trades", want.trades))
        )
    except psycopg.OperationalError:
        return False


def test_a_replay_into_a_second_database_is_equal_row_for_row(
    programs: Programs, database: str, server: Embedded, tmp_path: Path
) -> None:
    """Replayed into another database the tape gives the same rows; a second replay changes nothing."""
    tape, second = tmp_path / "tape", server.ensure_running(Stop())
    _, exchange_url = programs.simulate("--instruments", 20, "--rate", 500, "--seed", 10)
    for _run in range(2):  # two runs: gaps, repeated instruments
        assert programs.record(exchange_url, tape, "--segment-max-age-sec", 1, "--for", 3).wait() == 0
    assert programs.run("loader", "load", "--once", "--data-dir", tape, DATABASE_URL=database).process.returncode == 0
    assert programs.run("loader", "replay", "--data-dir", tape, DATABASE_URL=second).process.returncode == 0
    first = everything(database)

    assert set(first) == {"data_gaps", *(f"eth_option_{kind}" for kind in ("instruments", *COLUMNS))}
    assert everything(second) == first
    again = programs.run("loader", "replay", "--data-dir", tape, DATABASE_URL=second)
    assert again.process.returncode == 0
    assert everything(second) == first
    audit = programs.run("loader", "audit", "--data-dir", tape, DATABASE_URL=second)
    assert audit.process.returncode == 0, audit.out


def test_a_loader_killed_again_and_again_loads_exactly_once(
    programs: Programs, database: str, tmp_path: Path
) -> None:
    """Kill -9 at any moment of a load, restarted: in the end every row is there once."""
    journal, tape = tmp_path / "journal", tmp_path / "tape"
    exchange, exchange_url = programs.simulate(
        "--instruments", 30, "--rate", 1000, "--seed", 11, "--journal", journal
    )
    recorder = programs.record(exchange_url, tape, "--segment-max-age-sec", 0.5)
    for number in range(6):
        loader = programs.start("loader", "load", "--data-dir", tape, DATABASE_URL=database)
        loader.until_event("segment.loaded", 1 + number % 3)
        loader.kill()
    assert recorder.stop() == 0
    exchange.stop()
    last = programs.run("loader", "load", "--once", "--data-dir", tape, DATABASE_URL=database)

    assert last.process.returncode == 0
    assert_same(expected(sent(journal)), database)
