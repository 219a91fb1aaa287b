"""Tapes to make pages of, and a reader of pages."""

import json
import random
from collections import defaultdict
from collections.abc import Callable
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from analysis.cli import main
from recorder.segments.layout import datetime_to_us
from recorder.segments.schemas import SCHEMAS
from tests.fix_postgres import record

QUOTES, TRADES, TICKERS = "eth_option_quotes", "eth_option_trades", "eth_option_tickers"
OPTIONS = "eth_option_instruments"
NOON = datetime(2026, 11, 1, 12, tzinfo=UTC)
NOON_US = datetime_to_us(NOON)
S = 1_000_000
NEAR, FAR = datetime(2026, 11, 27, 8, tzinfo=UTC), datetime(2026, 12, 25, 8, tzinfo=UTC)
CALL, PUT, LATER = "ETH-27NOV26-3000-C", "ETH-27NOV26-3000-P", "ETH-25DEC26-2000-C"
Row = tuple[Any, ...]
Rows = dict[str, list[Row]]


# Tapes


def row(kind: str, at_us: int, instrument: str | None, late_us: int = 10_000, **values: Any) -> Row:
    """Return a row that came at `at_us`, made `late_us` before, of which only the named columns have a value."""
    first = {"timestamp": at_us - late_us, "instrument": instrument, "received_at": at_us}
    names = SCHEMAS[kind].names
    assert values.keys() <= set(names)
    found = ({**first, **values}.get(name) for name in names)
    return tuple(datetime_to_us(value) if isinstance(value, datetime) else value for value in found)


def quote(at_us: int, instrument: str, number: int, late_us: int = 10_000, **values: Any) -> Row:
    prev = number - 1 if number > 1 else None
    return row("quotes", at_us, instrument, late_us, change_id=number, prev_change_id=prev, **values)


def option(
    instrument: str, at_us: int = NOON_US, kind: str = "call", strike: float = 3000, expiry: datetime = NEAR
) -> Row:
    return row(
        "instruments", at_us, instrument, option_type=kind, strike=strike, expiration_timestamp=expiry, state="open",
        recorded=True,
    )  # fmt: skip


def gap(
    number: int, instrument: str | None, from_s: float, to_s: float | None, cause: str = "crash", **values: Any
) -> Row:
    told: dict[str, Any] = {"stream": QUOTES, "status": "lost", "state_no": 0} | values
    began_us, ended_us = (None if at_s is None else NOON_US + round(at_s * S) for at_s in (from_s, to_s))
    at_us = ended_us or began_us or 0
    return row(
        "gaps", at_us, instrument, gap_id=str(number), cause=cause, started_at=began_us, ended_at=ended_us, **told
    )


def market(seconds: int = 600) -> Rows:
    """Return rows of three options whose values come from a seed; quotes are a chain, and what is missing is told."""
    rng = random.Random(7)
    rows: Rows = {
        QUOTES: [], TRADES: [],
        TICKERS: [
            ticker(1, CALL, 60.0, 100.0), ticker(9, CALL, 61.0, 110.0), ticker(2, PUT, 62.0, 40.0),
            ticker(3, LATER, 50.0, 7.0),
        ],
        OPTIONS: [option(CALL), option(PUT, kind="put"), option(LATER, strike=2000, expiry=FAR)],
        "data_gaps": [gap(1, None, 60, 90, "stopped"), gap(2, CALL, 80, 120)],
    }  # fmt: skip
    for name in (CALL, PUT, LATER):
        times_us = sorted(NOON_US + rng.randrange(seconds * S) for _ in range(148))
        for number, at_us in enumerate([NOON_US, *times_us], 1):
            bid = None if number % 11 == 0 else 0.05 + rng.random() / 100
            late_us = rng.randrange(1_000, 900_000)
            rows[QUOTES].append(quote(at_us, name, number, late_us, bid_price=bid, ask_price=0.07))
        for number in range(1, 20):
            rows[TRADES].append(row(
                "trades", NOON_US + rng.randrange(S, seconds * S), name, trade_seq=number, trade_id=f"{name}{number}",
                price=0.06, size=float(rng.randrange(1, 50)), side=rng.choice(["buy", "sell"]),
            ))  # fmt: skip
    rows[QUOTES].sort(key=lambda one: one[2])
    return rows


def ticker(at_s: float, name: str, iv: float, interest: float) -> Row:
    return row(
        "tickers", NOON_US + round(at_s * S), name, mark_iv=iv, bid_iv=0.0, ask_iv=iv + 5, open_interest=interest,
        underlying_price=2950.0,
    )  # fmt: skip


@pytest.fixture(scope="module")
def market_rows() -> Rows:
    return market()


@pytest.fixture(scope="module")
def market_tape(market_rows: Rows, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("report") / "tape"
    record(root, [market_rows])
    return root


# Pages


class Page(HTMLParser):
    """What a browser would make of a page: its elements, what they name, and its text by section."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.size = len(text.encode())
        self.style = ""
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[str | None, str]] = []
        self.sections: dict[str, str] = defaultdict(str)
        self._section = "top"
        self._inside = ""
        self.feed(text)
        ((_, charts),) = [one for one in self.scripts if one[0] == "application/json"]
        self.charts: dict[str, dict[str, Any]] = {one["id"]: one for one in json.loads(charts)}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.elements.append((tag, found))
        self._inside = tag
        if tag == "section":
            self._section = found["id"] or ""
        if tag == "script":
            self.scripts.append((found.get("type"), ""))

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""
        if tag == "section":
            self._section = "top"

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            kind, before = self.scripts.pop()
            self.scripts.append((kind, before + data))
        elif self._inside == "style":
            self.style += data
        else:
            self.sections[self._section] += data + " "

    def attributes(self, name: str) -> list[str]:
        return [value for _, found in self.elements if (value := found.get(name)) is not None]


Make = Callable[..., Page]


@pytest.fixture
def page(tmp_path: Path) -> Make:
    """Return a function that makes a page of a tape, and reads it."""

    def make(root: Path, *arguments: str) -> Page:
        file = tmp_path / "page.html"
        assert main(["report", "--out", str(file), "--data-dir", str(root), *arguments]) == 0
        return Page(file.read_text("utf-8"))

    return make


def drawn(found: Page) -> None:
    """Draw every chart, each of which must have rows."""
    import vl_convert  # noqa: PLC0415 - only here

    for chart in found.charts.values():
        columns = chart["columns"]
        names, lengths = list(columns), {len(values) for values in columns.values()}
        assert len(lengths) == 1
        values = [dict(zip(names, one, strict=True)) for one in zip(*columns.values(), strict=True)]
        assert values
        svg = vl_convert.vegalite_to_svg({**chart["spec"], "width": 400, "datasets": {"rows": values}})
        assert "<path" in svg
        assert "NaN" not in svg
