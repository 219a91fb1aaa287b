"""The loader's pure decisions: no server, no disk."""

import argparse
from datetime import UTC, datetime

import psycopg
import pytest

from loader.audit import Finding, Verdict, equal
from loader.errors import DatabaseAway, DatabaseUnfit, MigrationConflict
from loader.postgres.capabilities import Facts, choose
from loader.postgres.database import explain, show
from loader.postgres.migrate import Migration, pending, read_migrations
from loader.postgres.tables import Column, can_be_table, columns, conflicts, market_of
from loader.replay import may_overlap
from loader.report import as_text
from recorder.runtime.command_line import moment
from recorder.runtime.errors import SettingsError
from recorder.segments.schemas import SCHEMAS

FULL = Facts("17.2", extension="2.28.3", available=True, library=True, licence="timescale")


@pytest.mark.parametrize(
    ("facts", "kind", "why"),
    [
        (FULL, "timescale", "TimescaleDB 2.28.3 on PostgreSQL 17.2 with the columnstore"),
        (Facts("17.2", None, available=False, library=False, licence=""), "plain", "without TimescaleDB"),
        (Facts("17.2", "2.28.3", available=True, library=True, licence="apache"), "plain", "apache licence"),
        (Facts("17.2", "2.17.2", available=True, library=True, licence="timescale"), "plain", "older than 2.18"),
        (Facts("17.2", "2.30.0-dev", available=True, library=True, licence="timescale"), "timescale", "2.30.0-dev"),
    ],
)
def test_the_server_chooses_the_kind_of_tables(facts: Facts, kind: str, why: str) -> None:
    """The columnstore where all of it is there, plain tables elsewhere, always with a reason."""
    chosen = choose(facts)
    assert chosen.kind == kind
    assert why in chosen.why


def test_a_server_without_the_library_is_refused() -> None:
    """The catalogue has the extension, the server does not load it: rows would become invisible."""
    with pytest.raises(DatabaseUnfit, match="invisible once it is back; add timescaledb to shared_preload_libraries"):
        choose(Facts("17.2", "2.28.3", available=True, library=False, licence=""))


@pytest.mark.parametrize(
    ("error", "away", "remedy"),
    [
        (psycopg.OperationalError("connection failed: Connection refused"), True, ""),
        (
            psycopg.OperationalError('FATAL: password authentication failed for user "x"'),
            True,
            "check user and password",
        ),
        (psycopg.OperationalError('FATAL: database "x" does not exist'), True, "create the database"),
        (psycopg.OperationalError("FATAL: the database system is starting up"), True, ""),
        (psycopg.OperationalError('FATAL: role "x" does not exist'), True, "check the user"),
        (psycopg.errors.IdleInTransactionSessionTimeout("terminating connection"), True, ""),
        (psycopg.errors.DiskFull("no space left"), True, "free some disk space"),
        (psycopg.errors.ReadOnlySqlTransaction("read-only"), True, "a server that may be written"),
        (psycopg.errors.AdminShutdown("terminating"), True, ""),
        (psycopg.errors.DeadlockDetected("deadlock"), True, ""),
        (psycopg.errors.InsufficientPrivilege("permission denied for schema public"), False, "grant the user"),
        (psycopg.errors.UndefinedTable("relation does not exist"), False, ""),
        (psycopg.errors.InternalError_("a bug of the server's"), False, ""),
    ],
)
def test_an_error_is_worth_trying_again_or_for_a_person(error: psycopg.Error, remedy: str, *, away: bool) -> None:
    """What passes by itself is waited for; what does not ends the loader; both with what to do."""
    told = explain(error, "postgresql://me@host/ticks")
    assert isinstance(told, DatabaseAway if away else DatabaseUnfit)
    assert remedy in told.remedy
    assert bool(remedy) == bool(told.remedy)
    assert str(told).startswith("postgresql://me@host/ticks: ")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://me:secret@host:5433/ticks", "postgresql://me@host:5433/ticks"),
        ("postgresql://me@host/ticks?password=secret&sslmode=require", "postgresql://me@host/ticks"),
        ("host=/run/pg user=me password=secret dbname=ticks", "postgresql://me@/ticks?host=/run/pg"),
        ("postgresql://me:sec%40ret@a:1,b:2/ticks", "postgresql://me@a:1,b:2/ticks"),
        ("postgresql://me:sec%2Fret@a:1,b/ti%40cks", "postgresql://me@a:1,b/ti%40cks"),
        ("postgresql://host/ticks?user=me&password=sec@ret", "postgresql://me@host/ticks"),
        ("host=@abstract dbname=ticks password=secret", "postgresql://@abstract/ticks"),
    ],
)
def test_a_connection_string_is_shown_without_its_password(url: str, shown: str) -> None:
    """Whatever form the password has in it."""
    assert show(url) == shown


def test_what_is_no_connection_string_is_a_wrong_setting() -> None:
    """And is not repeated, for there may be a password in it."""
    with pytest.raises(SettingsError) as error:
        show("postgresql://me:secret@host:port/ticks?nonsense=1")
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("postgresql://me:s3cr3t/t@127.0.0.1:5432/x", "a port that is no number"),
        ("postgres://me:4/s3cr3t@127.0.0.1:5432/x", "an @ in the database"),
        ("postgresql://me:p@s3cr3t@host/x", "an @ in the host"),
        ("postgresql://me:s3cr3t@host:notaport/x", "a port that is no number"),
        ("postgresql://me:s3cr3t@a:1,b:70000/x", "a port that is no number"),
        ("host=a@b password=s3cr3t", "an @ in the host"),
    ],
)
def test_a_password_that_was_cut_in_two_is_a_wrong_setting(url: str, told: str) -> None:
    """What follows its first / or @ would be told as a port, a host, a database, at every attempt, for ever."""
    with pytest.raises(SettingsError) as error:
        show(url)
    (problem,) = error.value.problems
    assert told in problem
    assert "percent-encode" in problem
    assert "s3cr3t" not in problem


def test_a_table_like_its_stream_is_fine() -> None:
    """In any order of columns, with nullable ones or defaults added."""
    found = [Column(name, kind, demanded=False) for name, kind in columns("eth_option_trades").items()]
    assert conflicts("eth_option_trades", [Column("mine", "text", demanded=False), *reversed(found)]) == []


def test_every_difference_of_a_table_is_named() -> None:
    """Missing, of another type, demanded: each with the column and the remedy."""
    found = {name: Column(name, kind, demanded=False) for name, kind in columns("eth_option_trades").items()}
    del found["price"]
    found["size"] = Column("size", "numeric", demanded=False)
    found["mine"] = Column("mine", "text", demanded=True)
    told = [what for what, _ in conflicts("eth_option_trades", list(found.values()))]
    assert told == [
        "the table eth_option_trades has no column price",
        "the column size of the table eth_option_trades is numeric, not double precision",
        "the added column mine of the table eth_option_trades is NOT NULL without a default",
    ]
    assert conflicts("data_gaps", [])[0][0] == "the table data_gaps is missing"


def test_the_schema_files_have_the_tapes_columns() -> None:
    """Every stream's CREATE TABLE lists the tape's columns in their order, then `segment`."""
    made = "".join(migration.sql for folder in ("database", "market") for migration in read_migrations(folder))
    for kind in SCHEMAS:
        stream = "data_gaps" if kind == "gaps" else f"eth_option_{kind}"
        table = "data_gaps (" if kind == "gaps" else f'"{{market}}_{kind}" ('
        lines = made.partition(f"CREATE TABLE IF NOT EXISTS {table}\n")[2].partition("\n);")[0].splitlines()
        found = [line.strip().rstrip(",").removesuffix(" NOT NULL").split(maxsplit=1) for line in lines]
        full = {"timestamptz": "timestamp with time zone"}
        made_columns = [(name.strip('"'), full.get(kind.strip(), kind.strip())) for name, kind in found]
        assert made_columns == list(columns(stream).items())


def test_only_what_is_missing_is_migrated() -> None:
    """A number that was applied in either form is done; a form for another kind of server is not taken."""
    one, plain, timescale = (
        Migration(1, "001_tables.sql", None, "one"),
        Migration(2, "002_storage.plain.sql", "plain", "two"),
        Migration(2, "002_storage.timescale.sql", "timescale", "zwei"),
    )
    known = [one, plain, timescale]
    assert pending(known, {}, "timescale") == [one, timescale]
    applied = {1: (one.file, one.checksum)}
    assert pending(known, applied, "plain") == [plain]
    assert pending(known, {**applied, 2: (plain.file, plain.checksum)}, "timescale") == []
    with pytest.raises(MigrationConflict):
        pending(known, {1: (one.file, "other")}, "plain")


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (None, None, True),
        ("2026-11-01T12:00:00", None, True),
        (None, "2026-11-01T12:00:00", False),
        (None, "2026-11-01T12:00:00.000001", True),
        ("2026-11-01T23:59:59", None, True),  # its rows may go on until midnight
        ("2026-11-02", None, False),
    ],
)
def test_a_name_tells_whether_a_segment_may_overlap(start: str | None, end: str | None, *, expected: bool) -> None:
    """The range is half-open; a segment ends at midnight at the latest."""
    bounds = [moment(text) if text else None for text in (start, end)]
    assert may_overlap("20261101T120000000000Z-here-000001.arrow", *bounds) is expected
    assert may_overlap("notes.arrow", *bounds)


def test_a_moment_is_utc_unless_it_says_otherwise() -> None:
    """A date is its midnight; an offset is taken into account; anything else is refused."""
    assert moment("2026-11-01") == datetime(2026, 11, 1, tzinfo=UTC)
    assert moment("2026-11-01T02:00:00+02:00") == datetime(2026, 11, 1, tzinfo=UTC)
    with pytest.raises(argparse.ArgumentTypeError, match="is no time"):
        moment("yesterday")


def test_a_stream_has_a_market_and_a_table() -> None:
    """The gaps are of all markets; names that PostgreSQL would cut are none."""
    assert market_of("btc_option_instruments") == "btc_option"
    assert market_of("data_gaps") is None
    assert can_be_table("data_gaps")
    assert can_be_table("x" * 51 + "_quotes")
    assert not can_be_table("x" * 52 + "_quotes")


def test_a_verdict_is_no_before_it_is_not_known() -> None:
    """One difference is enough for no; what could not be compared keeps it from being yes."""
    same, unread, other = (
        Finding("s", "n", verdict) for verdict in (Verdict.EQUAL, Verdict.UNREADABLE, Verdict.DIFFERENT)
    )
    pruned = Finding("s", "old", Verdict.NOT_HERE)
    assert equal([]) is True
    assert equal([same, pruned]) is True
    assert equal([same, unread]) is None
    assert equal([same, unread, other]) is False
    assert "not on the tape here: old" in as_text([same, pruned])
