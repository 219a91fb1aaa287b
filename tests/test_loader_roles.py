"""The roles of schema/roles.sql: who loads can load and do nothing else, who reads can read."""

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from tests.fix_postgres import fresh_database, make_rows, query, record, run_loader, same_rows

ROLES = Path(__file__).parent.parent / "loader" / "postgres" / "schema" / "roles.sql"
STREAMS = ("eth_option_quotes", "eth_option_trades", "data_gaps")


def as_role(url: str, role: str) -> str:
    return make_conninfo(url, user=role, password="secret")


@pytest.fixture
def roles(postgres: str) -> Iterator[str]:
    """Yield the URL of a fresh database in which the roles were made."""
    for url in fresh_database(postgres):
        with psycopg.connect(url, autocommit=True) as admin:
            admin.execute(ROLES.read_bytes())
            for role in ("ticktape_loader", "ticktape_reader"):
                admin.execute(f"ALTER ROLE {role} PASSWORD 'secret'".encode())
        yield url
        with psycopg.connect(url, autocommit=True) as admin:
            for role in ("ticktape_reader", "ticktape_loader"):
                admin.execute(f"DROP OWNED BY {role}".encode())
                admin.execute(f"DROP ROLE {role}".encode())


def test_the_loaders_role_is_enough_for_all_commands(roles: str, tmp_path: Path) -> None:
    """Load, replay into a schema of its own, repair: without a right over anything else on the server."""
    root = tmp_path / "tape"
    record(root, [{stream: make_rows(stream, 40) for stream in STREAMS}])
    url = as_role(roles, "ticktape_loader")
    for arguments in (["load", "--once"], ["audit", "--repair"], ["status"], ["replay", "--into-schema", "part"]):
        ran = run_loader(*arguments, root=root, url=url)
        assert ran.popen.returncode == 0, ran.err

    assert all(same_rows(root, roles, stream) for stream in STREAMS)
    with psycopg.connect(url) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute("CREATE ROLE another")


def test_the_readers_role_reads_and_nothing_else(roles: str, tmp_path: Path) -> None:
    """Every table and view that was made after it, in a schema of a replay, too; it can change none."""
    root = tmp_path / "tape"
    record(root, [{stream: make_rows(stream, 40) for stream in STREAMS}])
    for arguments in (["load", "--once"], ["replay", "--into-schema", "part"]):
        assert run_loader(*arguments, root=root, url=as_role(roles, "ticktape_loader")).popen.returncode == 0
    url = as_role(roles, "ticktape_reader")
    for table in (*STREAMS, "gaps", "loaded_segments", "eth_option_bars_1m"):
        assert query(url, f"SELECT count(*) >= 0 FROM {table}") == [(True,)]
        assert query(url, f"SELECT count(*) >= 0 FROM part.{table}") == [(True,)]
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SET default_transaction_read_only = off")
        for statement in ("DELETE FROM data_gaps", "INSERT INTO data_gaps DEFAULT VALUES", "CREATE TABLE x ()"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement)
