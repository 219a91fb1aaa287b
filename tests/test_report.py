"""`analysis report`: a page that can be drawn and asks no network, whatever the tape holds."""

import base64
import hashlib
import json
import os
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from analysis.cli import main
from recorder.runtime.data_dir import DataDir
from recorder.segments.layout import datetime_to_us, sealed_files
from tests.fix_archive import flip_a_bit
from tests.fix_postgres import record
from tests.fix_report import (
    CALL,
    NEAR,
    NOON_US,
    OPTIONS,
    PUT,
    QUOTES,
    TICKERS,
    TRADES,
    Make,
    Page,
    Rows,
    S,
    drawn,
    gap,
    market,
    option,
    quote,
    ticker,
)  # fmt: skip

HOSTILE = [
    "</script><script>alert(1)</script>",
    "<img src=http://x.invalid/ onerror=alert(1)>",
    "\"><!--<script>'&$x",
]
SECTIONS = [
    "streams", "gaps", "rates", "coverage", "latency", "spreads", "volume", "smile", "term-structure",
    "open-interest",
]  # fmt: skip


def test_gaps_are_counted_in_their_newest_state(tmp_path: Path, page: Make) -> None:
    """By cause and status, of those that touch the time."""
    rows = market()
    rows["data_gaps"] += [
        gap(3, CALL, 100, None, "silence", status="open"),
        gap(3, CALL, 100, 130, "silence", state_no=1),
        gap(4, PUT, 9_000, 9_100, "overflow"),
    ]
    record(tmp_path / "tape", [rows])
    said = " ".join(page(tmp_path / "tape").sections["gaps"].split())
    assert "crash lost 1 0 0 40 s 2026-11-01 12:01:20" in said
    assert "silence lost 1 0 0 30 s 2026-11-01 12:01:40" in said
    assert "stopped lost 1 0 0 30 s 2026-11-01 12:01:00" in said
    assert "overflow" not in said


# The page


def test_a_page_has_every_section_and_every_chart_can_be_drawn(market_tape: Path, page: Make) -> None:
    """Each under a heading, with a description for who does not see it."""
    found = page(market_tape)

    drawn(found)
    assert [name for name in found.sections if name != "top"] == SECTIONS
    assert {name.rpartition("-")[0] for name in found.charts} == set(SECTIONS) - {"streams", "gaps"}
    images = [one for tag, one in found.elements if tag == "div" and one.get("role") == "img"]
    assert [one["id"] for one in images] == list(found.charts)
    assert all(len(one["aria-label"] or "") > 20 for one in images)
    assert "complete, or told by gap rows" in found.sections["top"]
    assert f"{447 + 57 + 4} ticks of up to 3 instruments, from 2026-11-01 12:00:00" in found.sections["top"]


def test_nothing_is_asked_of_any_network(market_tape: Path, page: Make) -> None:
    """No element, style, or chart names an address, and the page's own policy forbids all of them."""
    found = page(market_tape)

    assert not {tag for tag, _ in found.elements} & {
        "link",
        "img",
        "iframe",
        "object",
        "embed",
        "base",
        "form",
        "video",
    }
    assert found.attributes("src") == []
    assert all(link.startswith("#") for link in found.attributes("href"))
    assert {link.removeprefix("#") for link in found.attributes("href")} == set(SECTIONS)
    assert "url(" not in found.style
    assert "@import" not in found.style
    (policy,) = [one["content"] or "" for tag, one in found.elements if "http-equiv" in one]
    assert policy.startswith("default-src 'none';")
    assert "http" not in policy
    assert "unsafe-eval" not in policy
    hashes = [
        f"'sha256-{base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()}'"
        for kind, code in found.scripts
        if kind is None
    ]
    assert policy.rpartition("script-src ")[2].split() == hashes
    assert len(hashes) == 2
    specs = json.dumps([chart["spec"] for chart in found.charts.values()])
    assert "http" not in specs
    assert '"url"' not in specs


def test_names_from_the_tape_are_never_markup(tmp_path: Path, page: Make) -> None:
    """Of instruments, causes, and of the folder itself."""
    rows: Rows = {QUOTES: [], OPTIONS: [], TICKERS: [], "data_gaps": []}
    for name in HOSTILE:
        rows[OPTIONS].append(option(name))
        rows[QUOTES] += [quote(NOON_US + S, name, 1, bid_price=1.0, ask_price=2.0), quote(NOON_US + 60 * S, name, 5)]
        rows[TICKERS].append(ticker(2, name, 60.0, 1.0))
    rows["data_gaps"] = [gap(1, HOSTILE[0], 10, 20, HOSTILE[0], status=HOSTILE[1])]
    root = tmp_path / "<img src=x>$title"
    record(root, [rows])
    found = page(root)

    drawn(found)
    tags = [tag for tag, _ in found.elements]
    assert tags.count("script") == 3
    assert "img" not in tags
    assert not {name for _, one in found.elements for name in one} & {"onerror", "onload"}
    assert sorted(found.charts["smile-0"]["columns"]["instrument"]) == sorted(HOSTILE)
    assert "<img src=x>$title" in found.sections["top"]
    assert HOSTILE[0] in found.sections["gaps"]
    assert f"{QUOTES} {HOSTILE[1]}: a break in the book" in found.sections["top"]


PART: dict[str, set[str]] = {
    "nothing": set(),
    "gaps": {"data_gaps"},
    "quotes": {QUOTES},
    "options": {OPTIONS},
    "no trades": {QUOTES, TICKERS, OPTIONS, "data_gaps"},
    "no tickers": {QUOTES, TRADES, OPTIONS, "data_gaps"},
    "trades": {TRADES},
    "tickers": {TICKERS},
}


@pytest.mark.parametrize("part", PART)
def test_what_the_tape_has_nothing_of_is_said_in_a_sentence(part: str, tmp_path: Path, page: Make) -> None:
    """In place of the chart; and the rest is drawn."""
    root = tmp_path / "tape"
    root.mkdir()
    if PART[part]:
        record(root, [{stream: rows for stream, rows in market().items() if stream in PART[part]}])
    found = page(root)

    drawn(found)
    assert [name for name in found.sections if name != "top"] == SECTIONS
    with_table = {"streams", "gaps"} if "data_gaps" in PART[part] else {"streams"} if PART[part] else set()
    with_chart = {name.rpartition("-")[0] for name in found.charts}
    sentences = [one for tag, one in found.elements if tag == "p" and one.get("class") == "nothing"]
    assert len(sentences) == len(SECTIONS) - len(with_chart) - len(with_table)
    if not PART[part] & {QUOTES, TICKERS, TRADES}:
        assert "nothing to check: there are no ticks in this time" in found.sections["top"]
        assert with_chart == set()
    else:
        assert "rates" in with_chart


@pytest.mark.parametrize("stream", [QUOTES, TRADES, TICKERS])
def test_a_tape_of_one_row_makes_a_page(stream: str, tmp_path: Path, page: Make) -> None:
    """With charts that show the one."""
    one = market()[stream][0]
    record(tmp_path / "tape", [{stream: [one], OPTIONS: [option(one[1], one[2])]}])
    found = page(tmp_path / "tape")

    drawn(found)
    assert sum(found.charts["rates-0"]["columns"]["rows_per_s"]) == 1.0
    shown = {name.rpartition("-")[0] for name in found.charts} - {"rates", "coverage"}
    assert shown == {
        QUOTES: {"latency", "spreads"}, TRADES: {"volume"}, TICKERS: {"smile", "term-structure", "open-interest"}
    }[stream]  # fmt: skip


def test_of_many_instruments_the_least_covered_are_drawn(tmp_path: Path, page: Make) -> None:
    """Sixty, the least covered first; and the page says how many are not."""
    names = [f"ETH-{number:04}" for number in range(1000)]
    rows: Rows = {
        OPTIONS: [option(name, expiry=NEAR + timedelta(days=place % 40)) for place, name in enumerate(names)],
        QUOTES: [quote(NOON_US + S, name, 1, bid_price=1.0, ask_price=2.0) for name in names],
        TICKERS: [ticker(1000, name, 60.0, 1.0) for name in names],
        "data_gaps": [
            *(gap(place, names[-1 - place], 100, 900 - place) for place in range(40)),
            gap(99, None, 950, 960, "stopped"),
        ],
    }  # fmt: skip
    rows[QUOTES] += [quote(NOON_US + 1000 * S, name, 2) for name in names]
    record(tmp_path / "tape", [rows])
    found = page(tmp_path / "tape")

    drawn(found)
    columns = found.charts["coverage-0"]["columns"]
    shown = list(dict.fromkeys(columns["instrument"]))
    assert shown == [*(names[-1 - place] for place in range(40)), *names[:20]]
    assert set(columns["cause"]) == {"", "crash", "stopped"}
    assert (
        f"{QUOTES}: the 60 instruments with the least coverage are drawn; 940 are not" in found.sections["coverage"]
    )
    assert "the least covered of them at 99.00%" in found.sections["coverage"]
    assert "16 more expiries are not drawn: the nearest are drawn." in found.sections["smile"]
    assert "32 more expiries are not drawn: those with the most quotes are drawn." in found.sections["spreads"]
    assert found.size < 5_000_000


def test_a_day_of_fifty_options_with_gaps_everywhere_stays_small(tmp_path: Path, page: Make) -> None:
    """Below 5 MB, the charts' scripts included, though no two cells are alike."""
    names = [f"ETH-27NOV26-{2000 + 50 * number}-C" for number in range(50)]
    start_us = datetime_to_us(datetime(2026, 11, 1, tzinfo=UTC))
    noon_s = (NOON_US - start_us) // S
    rng = random.Random(1)
    rows: Rows = {
        OPTIONS: [option(name, start_us, strike=2000 + 50 * place) for place, name in enumerate(names)],
        QUOTES: [], TICKERS: [], "data_gaps": [],
    }  # fmt: skip
    for second in range(1, 86_400, 300):
        for name in names:
            at_us, number = start_us + second * S, second // 300 + 1
            rows[QUOTES].append(quote(at_us, name, number, bid_price=1 + rng.random(), ask_price=2 + rng.random()))
            length = rng.uniform(1, 250)
            rows["data_gaps"].append(
                gap(
                    len(rows["data_gaps"]),
                    name,
                    second - noon_s,
                    second - noon_s + length,
                    rng.choice(["crash", "silence"]),
                )
            )
        rows[TICKERS].append(ticker(second - noon_s, names[0], 60.0, 1.0))
    record(tmp_path / "tape", [rows])
    found = page(tmp_path / "tape")

    assert len(found.charts["coverage-0"]["columns"]["share"]) > 5000
    assert found.size < 5_000_000


def test_a_part_of_the_tape(market_tape: Path, page: Make, market_rows: Rows) -> None:
    """By --from and --to: charts go over it, and tables count its rows."""
    found = page(market_tape, "--from", "2026-11-01T12:02", "--to", "2026-11-01T12:04")
    times = found.charts["rates-0"]["columns"]["time_ms"]
    assert (NOON_US + 120 * S) / 1000 <= times[0] <= times[-1] < (NOON_US + 240 * S) / 1000
    count = sum(NOON_US + 120 * S <= one[2] < NOON_US + 240 * S for one in market_rows[QUOTES])
    assert f"{QUOTES} 1 {count} 3" in " ".join(found.sections["streams"].split())
    assert "Segments are those of the whole tape" in found.sections["streams"]
    assert "stopped" not in found.sections["gaps"]


def test_several_markets_are_told_apart(tmp_path: Path, page: Make) -> None:
    """Each has sections of its own, with its own numbers."""
    other = {stream.replace("eth_", "btc_"): found for stream, found in market().items() if stream.startswith("eth_")}
    other["btc_option_quotes"] = other["btc_option_quotes"][:10]
    record(tmp_path / "tape", [market() | other])
    found = page(tmp_path / "tape")

    drawn(found)
    assert "Latency (btc_option)" in found.sections["latency-btc_option"]
    by_market = {
        name: sum(value is not None for value in found.charts[f"latency-{name}-0"]["columns"]["p50"])
        for name in ("btc_option", "eth_option")
    }
    assert 0 < by_market["btc_option"] <= 10 < by_market["eth_option"]
    assert set(found.attributes("data-section")) >= {"smile-btc_option", "smile-eth_option"}


# The verdict


def test_the_verdict_is_that_of_completeness(tmp_path: Path, page: Make, capsys: pytest.CaptureFixture[str]) -> None:
    """Complete; not, and what is missing; or not to be checked, and why."""
    root = tmp_path / "tape"
    rows = market()
    record(root, [rows])
    assert "complete, or told by gap rows" in page(root).sections["top"]
    assert f"{QUOTES}: 1 segments, 447 rows of 3 instruments" in page(root).sections["top"]

    broken = quote(NOON_US + 700 * S, CALL, 999)
    record(tmp_path / "broken", [rows | {QUOTES: [*rows[QUOTES], broken]}])
    found = page(tmp_path / "broken")
    assert "NOT complete: something is missing that nothing tells" in found.sections["top"]
    assert f"NOT TOLD: {QUOTES} {CALL}: a break in the book" in found.sections["top"]
    assert "fails" in " ".join(found.attributes("class"))

    flip_a_bit(sealed_files(DataDir(root), QUOTES)[0])
    capsys.readouterr()
    found = page(root)
    assert "could not be checked: something cannot be read" in found.sections["top"]
    assert "could not be checked" in capsys.readouterr().err
    assert "unknown" in " ".join(found.attributes("class"))


# The file


def test_a_page_is_there_when_it_is_whole(
    market_tape: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is written beside its place and renamed; a disk that refuses leaves the old one, and nothing else."""
    file = tmp_path / "page.html"
    file.write_text("the old one")
    moved: list[tuple[str, str, bool]] = []
    replace = Path.replace

    def refuse(self: Path, target: Path) -> Path:
        moved.append((self.name, target.name, self.read_text("utf-8").rstrip().endswith("</html>")))
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", refuse)
    arguments = ["report", "--out", str(file), "--data-dir", str(market_tape)]
    assert main(arguments) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"error: {file} cannot be written: ")
    assert len(said.splitlines()) == 1
    assert moved == [(f".page.html.{os.getpid()}", "page.html", True)]
    assert [one.name for one in tmp_path.iterdir()] == ["page.html"]
    assert file.read_text() == "the old one"

    monkeypatch.setattr(Path, "replace", replace)
    assert main(arguments) == 0
    assert [one.name for one in tmp_path.iterdir()] == ["page.html"]
    assert Page(file.read_text("utf-8")).charts
    assert capsys.readouterr().err.startswith(f"{file} (")


@pytest.mark.parametrize(
    ("out", "said"), [("none/page.html", "there is no folder"), (".", "is a folder: expected a file")]
)
def test_a_place_that_cannot_be_is_said_before_the_work(
    out: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a line, with exit code 2."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["report", "--out", out, "--data-dir", str(tmp_path)])
    assert ended.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert said in lines[0]


def test_a_tape_that_is_not_there_is_said_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And no file is made."""
    assert main(["report", "--out", str(tmp_path / "x.html"), "--data-dir", str(tmp_path / "none")]) == 2
    assert "there is no data directory" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
