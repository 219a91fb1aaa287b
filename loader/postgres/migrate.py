"""Brings a database's schema to that of the numbered SQL files, each file once, or not at all.

`schema/database/` is applied once per database; `schema/market/` once per market, with its name for `{market}`.
`002_storage.plain.sql` and `002_storage.timescale.sql` are two forms of one number: the kind of server chooses, and
whichever was applied stays. A file is applied in one transaction, unless its first line is `-- no-transaction`.
"""

import contextlib
import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources

from loader.errors import MigrationConflict
from loader.postgres.capabilities import Kind
from loader.postgres.session import Connection, one_at_a_time
from recorder.runtime.version import software

NO_TRANSACTION = "-- no-transaction"
DATABASE = "database"  # the scope of what is there once; other scopes are markets

_FILE_NAME = re.compile(r"^(\d{3})_[a-z_]+(?:\.(plain|timescale))?\.sql$")
_CREATE_TABLE = """
CREATE TABLE IF NOT EXISTS ticktape_migrations (
    scope      text NOT NULL,
    number     integer NOT NULL,
    file       text NOT NULL,
    checksum   text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now(),
    software   text NOT NULL,
    PRIMARY KEY (scope, number)
)
"""


@dataclass(frozen=True)
class Migration:
    """One numbered file."""

    number: int
    file: str
    kind: str | None  # None: for every kind of server
    sql: str

    @property
    def checksum(self) -> str:
        """What tells a file from a changed one."""
        return hashlib.sha256(self.sql.encode()).hexdigest()


def read_migrations(folder: str) -> list[Migration]:
    """Read `schema/database` or `schema/market`, in the order of numbers."""
    found = []
    for entry in resources.files("loader.postgres").joinpath("schema", folder).iterdir():
        match = _FILE_NAME.match(entry.name)
        if match:
            found.append(Migration(int(match[1]), entry.name, match[2], entry.read_text(encoding="utf-8")))
    return sorted(found, key=lambda migration: migration.file)


def pending(known: Iterable[Migration], applied: dict[int, tuple[str, str]], kind: Kind) -> list[Migration]:
    """Decide which files are still to be applied. Pure.

    Args:
        known: the program's files of one scope.
        applied: what the database has of that scope: number -> (file, checksum).
        kind: chooses between two forms of one number, where none was chosen yet: tables that were made on a plain
            server stay plain, though it became a TimescaleDB since.

    Raises:
        MigrationConflict: an applied file was changed since, or is not known to this program.
    """
    by_file = {migration.file: migration for migration in known}
    for file, checksum in applied.values():
        if file not in by_file:
            raise MigrationConflict(
                f"the database's schema has {file}, which this program does not know",
                remedy="use the newer ticktape that made it",
            )
        if by_file[file].checksum != checksum:
            raise MigrationConflict(
                f"the schema file {file} is not the one that was applied to this database",
                remedy="put the applied file back, and make the change in a new file with the next number",
            )
    made_as = {by_file[file].kind for file, _ in applied.values()} - {None}
    return [
        migration
        for migration in by_file.values()
        if migration.number not in applied and migration.kind in (None, *(made_as or {kind}))
    ]


def migrate(connection: Connection, kind: Kind, market: str | None = None) -> list[str]:
    """Apply what is missing for the database, or for one market; return the files applied.

    Raises:
        MigrationConflict: see `pending`.
    """
    scope = market or DATABASE
    done = []
    with one_at_a_time(connection):
        connection.execute(_CREATE_TABLE)
        rows = connection.execute(
            "SELECT number, file, checksum FROM ticktape_migrations WHERE scope = %s", [scope]
        ).fetchall()
        applied = {number: (file, checksum) for number, file, checksum in rows}
        for migration in pending(read_migrations("market" if market else "database"), applied, kind):
            _apply(connection, migration, scope)
            done.append(migration.file)
    return done


def _apply(connection: Connection, migration: Migration, scope: str) -> None:
    # The market's name is [a-z0-9_] only, and quoted in the files.
    statements = migration.sql.replace("{market}", scope).encode()
    whole = not migration.sql.startswith(NO_TRANSACTION)
    with connection.transaction() if whole else contextlib.nullcontext():
        if whole:
            connection.execute(statements)
        else:
            # Sent together they would be one implicit transaction.
            for statement in statements.split(b";\n"):
                if statement.strip():
                    connection.execute(statement)
        connection.execute(
            "INSERT INTO ticktape_migrations (scope, number, file, checksum, software) VALUES (%s, %s, %s, %s, %s)",
            [scope, migration.number, migration.file, migration.checksum, software()],
        )
