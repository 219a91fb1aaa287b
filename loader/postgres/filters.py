"""A schema that holds a part of the tape only, and remembers which: `replay --into-schema NAME --instruments …`."""

from psycopg import sql

from loader.errors import FilterConflict
from loader.postgres.session import Connection, one_at_a_time

_TABLE = """
CREATE TABLE IF NOT EXISTS replay_filter (
    instruments text[],  -- names or patterns with *; null: all
    made_at     timestamptz NOT NULL DEFAULT now()
)
"""


def agree(connection: Connection, schema: str, instruments: tuple[str, ...] | None) -> tuple[str, ...] | None:
    """Make a schema if it is not there, and return what it is for: names or patterns of instruments; None for all.

    Args:
        connection: it looks into the schema first.
        schema: its name.
        instruments: what is asked for now; None to go on with what the schema was made for.

    Raises:
        FilterConflict: it was made for others.
    """
    with one_at_a_time(connection), connection.transaction():
        connection.execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(sql.Identifier(schema)))
        connection.execute(_TABLE)
        row = connection.execute("SELECT instruments FROM replay_filter").fetchone()
        if row is None:
            connection.execute("INSERT INTO replay_filter (instruments) VALUES (%s)", [_listed(instruments)])
            return instruments
    made_for = None if row[0] is None else tuple(row[0])
    if instruments is not None and made_for != instruments:
        held = "all instruments" if made_for is None else ",".join(made_for)
        raise FilterConflict(
            f"the schema {schema} was made for {held}", remedy="leave --instruments out, or choose another schema"
        )
    return made_for


def held(connection: Connection) -> tuple[str, ...] | None:
    """Return what the schema that is looked into was made for; None for all."""
    if connection.execute("SELECT to_regclass('replay_filter')").fetchone() == (None,):
        return None
    row = connection.execute("SELECT instruments FROM replay_filter").fetchone()
    return None if row is None or row[0] is None else tuple(row[0])


def _listed(instruments: tuple[str, ...] | None) -> list[str] | None:
    return None if instruments is None else list(instruments)
