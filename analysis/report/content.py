"""What a page is made of: sections with a sentence on how to read them, charts with their numbers, and tables."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from analysis.report.charts import Series, Spec
from analysis.report.figures import Columns


@dataclass(frozen=True)
class Chart:
    """A chart and its numbers, which the page also shows as a table."""

    spec: Spec
    columns: Columns
    labels: dict[str, str]  # of the columns in the table, in their order; times end in `_ms`
    description: str  # what it shows, for who does not see it
    title: str = ""  # where a section has several


@dataclass(frozen=True)
class Table:
    """A table; a cell that is a number stands to the right."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str | int]]


@dataclass(frozen=True)
class Section:
    """A heading, how to read what is under it, and that; without a chart or table, why there is none."""

    name: str  # of the link to it
    heading: str
    reading: str
    charts: Sequence[Chart] = ()
    tables: Sequence[Table] = ()
    legend: Sequence[Series] = ()
    notes: Sequence[str] = ()
    small: bool = False  # whether charts stand beside each other
    nothing: str = ""

    def of_market(self, market: str) -> "Section":
        """Return it with a heading that names its market."""
        return replace(self, name=f"{self.name}-{market}", heading=f"{self.heading} ({market})")


@dataclass(frozen=True)
class Verdict:
    """What `analysis completeness` says, or another check, and its lines."""

    holds: bool | None  # None: it could not be checked
    words: str
    lines: Sequence[str] = field(default=())
    of: str = "Completeness"


def time_text(moment: datetime | None) -> str:
    """Return a time for people, UTC."""
    return f"{moment:%Y-%m-%d %H:%M:%S}" if moment else "none"


def duration_text(us: float) -> str:
    """Return how long something takes, for people: `1 h 20 min`."""
    seconds = us / 1e6
    if seconds < 1:
        return f"{us / 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, hours = round(seconds / 60), round(seconds / 3600)
    if minutes < 60:
        return f"{minutes} min"
    if hours < 48:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{hours // 24} days {hours % 24} h"


def count_text(number: int, one: str) -> str:
    """Return a number of things: `1 option`, `1,000 options`."""
    return f"{number:,} {one}" if number == 1 else f"{number:,} {one}s"


def extent(values: Iterable[Any], unit: str) -> str:
    """Return what numbers go from and to, for who does not see the chart."""
    numbers = sorted(value for value in values if value is not None and math.isfinite(value))
    if not numbers:
        return "no values"
    low, middle, high = (f"{one:,.4g}" for one in (numbers[0], statistics.median(numbers), numbers[-1]))
    return f"from {low} to {high} {unit}, median {middle}"


def alone(values: Sequence[Any]) -> bool:
    """Whether some value has no neighbour, so that no line goes through it."""
    around = [None, *values, None]
    return any(
        value is not None and before is None and after is None
        for before, value, after in zip(around, values, around[2:], strict=False)
    )
