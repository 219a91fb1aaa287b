"""Ready queries: a file each, whose first line says in a sentence what it answers. They are views of every tape.

DuckDB and Spark both take them as they are: identifiers are unquoted, and what only one of the two has by name
(`unix_micros`, `percentile`) is a macro in the other. Where they differ in silence a query says what it wants: where
nulls come in an order (`NULLS LAST`), and what becomes of a division by zero (`nullif`).
"""

from functools import cache
from pathlib import Path
from typing import NamedTuple

# Others are made of these.
_FIRST = ("options", "gaps", "smile")


class ReadyQuery(NamedTuple):
    """A query and its sentence."""

    name: str
    sentence: str
    statement: str


@cache
def ready_queries() -> tuple[ReadyQuery, ...]:
    """Return all of them, each after those that it is made of."""
    found = {path.stem: path.read_text() for path in sorted(Path(__file__).parent.glob("*.sql"))}
    names = [*_FIRST, *(name for name in found if name not in _FIRST)]
    return tuple(_read(name, found[name]) for name in names)


def _read(name: str, text: str) -> ReadyQuery:
    first, _, statement = text.partition("\n")
    return ReadyQuery(name, first.removeprefix("-- "), statement.strip())
