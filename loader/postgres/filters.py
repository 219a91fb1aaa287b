"""A schema that holds a part of the tape only, and remembers which: `replay --into-schema NAME --instruments …`.

Such a schema and a whole database are never mixed: a ledger does not tell which rows of a segment were left out.
"""

from dataclasses import dataclass

from psycopg import sql

from loader.errors import FilterConflict
from loader.postgres.session import Connection, one_at_a_time

_TABLE = """
CREATE TABLE IF NOT EXISTS replay_filter (
    instruments text[],  -- names or patterns with *; null: all
    made_at     timestamptz NOT NULL DEFAULT now()
)
"""
# By full names: a schema that lacks a table must not be taken for the next one in the search path.
_THERE = """
SELECT to_regclass(format('%%I.loaded_segments', %(schema)s::text)) IS NOT NULL,
       to_regclass(format('%%I.replay_filter', %(schema)s::text)) IS NOT NULL
"""

Instruments = tuple[str, ...] | None


@dataclass(frozen=True)
class Found:
    """What a schema is there for; of one that does not exist, nothing."""

    has_ledger: bool
    has_filter: bool
    instruments: Instruments  # of the filter: names or patterns; None for all


def agree(connection: Connection, schema: str, instruments: Instruments) -> Instruments:
    """Make a schema if it is not there, and return what it is for: names or patterns of instruments; None for all.

    Args:
        connection: it looks into the schema first.
        schema: its name.
        instruments: what is asked for now; None to go on with what the schema was made for.

    Raises:
        FilterConflict: it was made for others, or is a whole database.
    """
    with one_at_a_time(connection), connection.transaction():
        found = _look(connection, schema)
        made_for = decide(found, schema, instruments)
        if not found.has_filter:
            connection.execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(sql.Identifier(schema)))
            connection.execute(_TABLE)
            listed = None if instruments is None else list(instruments)
            connection.execute("INSERT INTO replay_filter (instruments) VALUES (%s)", [listed])
    return made_for


def decide(found: Found, schema: str, instruments: Instruments) -> Instruments:
    """Decide what a replay into a schema loads. Pure.

    Raises:
        FilterConflict: see `agree`.
    """
    if not found.has_filter:
        if found.has_ledger:
            raise FilterConflict(
                f"the schema {schema} holds a whole database: a part of the rows would make it look whole",
                remedy="choose another name for --into-schema, or leave it and --instruments out",
            )
        return instruments
    if instruments is not None and found.instruments != instruments:
        raise FilterConflict(
            f"the schema {schema} was made for {_named(found.instruments)}",
            remedy="leave --instruments out, or choose another schema",
        )
    return found.instruments


def check(connection: Connection, schema: str | None, instruments: Instruments) -> None:
    """See to it that a replay into a schema, or into none by name, would be right; change nothing.

    Raises:
        FilterConflict: see `agree` and `refuse_part`.
    """
    if schema:
        decide(_look(connection, schema), schema, instruments)
    else:
        refuse_part(connection)


def refuse_part(connection: Connection) -> None:
    """See to it that the schema that is looked into without being named is for all instruments.

    Raises:
        FilterConflict: it is not.
    """
    row = connection.execute("SELECT current_schema()").fetchone()
    schema = row and row[0]
    if schema and (made_for := _look(connection, schema).instruments) is not None:
        raise FilterConflict(
            f"the schema {schema}, which DATABASE_URL leads to, was made for {_named(made_for)} by replay"
            " --into-schema",
            remedy="name it (replay --into-schema, audit --schema), or correct the search_path",
        )


def held(connection: Connection, schema: str) -> Instruments:
    """Return what a schema was made for; None for all.

    Raises:
        FilterConflict: replay has made no such schema.
    """
    found = _look(connection, schema)
    if not found.has_filter:
        raise FilterConflict(
            f"the schema {schema} holds a whole database"
            if found.has_ledger
            else f"there is no schema {schema} that replay --into-schema has made",
            remedy="leave --schema out" if found.has_ledger else "correct --schema",
        )
    return found.instruments


def _look(connection: Connection, schema: str) -> Found:
    row = connection.execute(_THERE, {"schema": schema}).fetchone()
    assert row is not None
    has_ledger, has_filter = row
    if not has_filter:
        return Found(has_ledger, has_filter, None)
    statement = sql.SQL("SELECT instruments FROM {}").format(sql.Identifier(schema, "replay_filter"))
    told = connection.execute(statement).fetchone()
    return Found(has_ledger, has_filter, None if told is None or told[0] is None else tuple(told[0]))


def _named(instruments: Instruments) -> str:
    return "all instruments" if instruments is None else ",".join(instruments)
