"""The whole chain, unattended: many connections, moves, redundancy, storms, and trades that heal."""

import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.fix_programs import Program, Programs, until
from tests.oracle import journal_events, sent, tape_rows, trades_made
from tests.test_record import count, gaps, unexplained_holes

QUOTE = ["instrument", "change_id", "prev_change_id", "received_at"]


def record_all(programs: Programs, url: str, tape: Path, *arguments: str | float) -> Program:
    """Record a whole simulated chain over several connections."""
    return programs.record(
        url, tape, "--top-n-instruments", 0, "--max-channels-per-connection", 60,
        "--trade-void-after-sec", 2, *arguments,
    )  # fmt: skip


def no_rule_was_broken(journal: Path) -> None:
    """No limit was hit, nothing subscribed twice."""
    assert journal_events(journal, "limit") == []
    assert journal_events(journal, "subscribed_again") == []


def nothing_was_invented(journal: Path, tape: Path) -> None:
    """Each change id and ticker of the tape was sent on some connection."""
    books, tickers = set(), set()
    for _, channel, data in sent(journal):
        if channel.startswith("book."):
            books.add((data["instrument_name"], data["change_id"]))
        elif channel.startswith("ticker."):
            tickers.add((data["instrument_name"], data["timestamp"] * 1000, float(data["mark_price"])))

    assert {row[:2] for row in tape_rows(tape, "eth_option_quotes", QUOTE)} <= books
    assert set(tape_rows(tape, "eth_option_tickers", ["instrument", "timestamp", "mark_price"])) <= tickers


@pytest.mark.parametrize("redundancy", [1, 2])
def test_connections_that_die_one_after_another(programs: Programs, tmp_path: Path, redundancy: int) -> None:
    """Alone each leaves gaps that tell every hole; doubled none leaves a hole, a gap, or a missing trade."""
    journal, tape = tmp_path / "journal", tmp_path / "tape"
    exchange, url = programs.simulate(
        "--instruments", 60, "--rate", 1000, "--seed", 4, "--faults", "kill:every=3", "--journal", journal
    )
    recorder = record_all(programs, url, tape, "--redundancy", redundancy)
    recorder.until_event("exchange.lost", 4)
    recorder.until_event("moves.begun", 2)
    time.sleep(1)
    assert recorder.stop() == 0
    exchange.stop()
    rows = tape_rows(tape, "eth_option_quotes", QUOTE)
    told = gaps(tape)

    assert len(rows) > 3000
    assert len({row[:2] for row in rows}) == len(rows)
    assert unexplained_holes(rows, told) == []
    nothing_was_invented(journal, tape)
    no_rule_was_broken(journal)
    if redundancy == 2:
        assert [gap for gap in told if gap["cause"] != "stopped"] == []
        assert unexplained_holes(rows, []) == []
        trades = Counter(tape_rows(tape, "eth_option_trades", ["instrument", "trade_seq"]))
        live = {
            (t["instrument_name"], t["trade_seq"]) for _, c, d in sent(journal) if c.startswith("trades") for t in d
        }
        assert live <= trades.keys()
        assert max(trades.values()) == 1


def test_trades_that_were_missed_are_fetched_by_number(programs: Programs, tmp_path: Path) -> None:
    """Withheld, void, and mixed numbers, a sweep of 1,500 in a millisecond, crashes: each gets its true fate."""
    journal, tape = tmp_path / "journal", tmp_path / "tape"
    exchange, url = programs.simulate(
        "--instruments", 40, "--rate", 800, "--seed", 12, "--journal", journal, "--main-keeps", 30, "--faults",
        "trade_gap:every=1;trade_void:every=3;trade_mixed:every=4;sweep:at=6,count=1500;expire_trade_gap:at=8",
    )  # fmt: skip
    for _run in range(2):
        recorder = record_all(programs, url, tape)
        begun = count(tape, "eth_option_trades")
        until(lambda before=begun: count(tape, "eth_option_trades") > before + 60, "trades")  # type: ignore[misc]
        recorder.kill()
    last = record_all(programs, url, tape)
    until(lambda: settled(tape) >= 15, "fates")
    assert last.stop() == 0
    exchange.stop()
    truth = trades_made(journal)
    found = Counter(tape_rows(tape, "eth_option_trades", ["instrument", "trade_seq"]))
    columns = ["stream", "instrument", "status", "first_missing", "last_missing"]
    of_numbers = [row for row in tape_rows(tape, "data_gaps", columns) if row[0] == "eth_option_trades" and row[1]]
    fates = [row for row in of_numbers if row[2] != "open"]

    assert max(found.values()) == 1
    assert found.keys() <= truth.made.keys()
    assert {fate for *_, fate, _, _ in fates} <= {"healed", "void"}
    for _, name, fate, first, last_missing in fates:
        numbers = {(name, n) for n in range(first, last_missing + 1)}
        assert numbers <= (found.keys() if fate == "healed" else truth.void), (name, fate, first, last_missing)
    assert {"healed", "void"} == {fate for _, _, fate, _, _ in fates}
    sources = Counter(row[0] for row in tape_rows(tape, "eth_option_trades", ["source"]))
    assert sources["backfill"] > 500


def settled(tape: Path) -> int:
    """How many holes in numbers have their fate."""
    return sum(
        gap["status"] != "open" and gap["instrument"] is not None
        for gap in gaps(tape)
        if gap["stream"] == "eth_option_trades"
    )


def test_a_storm_of_expiries_and_listings_costs_the_others_nothing(programs: Programs, tmp_path: Path) -> None:
    """At 08:00 some leave and others come: picked up within seconds, nothing twice, no gap for those that stay."""
    journal, tape = tmp_path / "journal", tmp_path / "tape"
    exchange, url = programs.simulate(
        "--instruments", 150, "--rate", 600, "--seed", 5, "--journal", journal, "--faults",
        "expire:at=5,count=40;list:at=6,count=60",
    )  # fmt: skip
    recorder = record_all(programs, url, tape)
    recorder.until_event("chosen", 2)
    listed = {name for entry in until(lambda: journal_events(journal, "listed"), "listings") for name in names(entry)}
    until(lambda: listed <= recorded(tape), "the new ones to be recorded")
    assert recorder.stop() == 0
    exchange.stop()
    gone = {name for entry in journal_events(journal, "delivered") for name in names(entry)}

    assert (len(gone), len(listed)) == (40, 60)
    assert {gap["cause"] for gap in gaps(tape)} == {"stopped"}
    assert unexplained_holes(tape_rows(tape, "eth_option_quotes", QUOTE), []) == []
    assert not gone & recorded(tape)
    no_rule_was_broken(journal)


def names(entry: dict[str, Any]) -> list[str]:
    found = entry.get("instruments") or [entry["instrument"]]
    return list(found)


def recorded(tape: Path) -> set[str]:
    """Instruments whose newest row says that they are recorded."""
    import analysis  # noqa: PLC0415

    query = "SELECT instrument FROM eth_option_instruments GROUP BY 1 HAVING arg_max(recorded, received_at)"
    with analysis.open(tape) as con:
        return {name for (name,) in con.execute(query).fetchall()}


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("maintenance:at=3,for=3", "maintenance"),
        ("too_many:at=2,for=30", "too_many_requests"),
        ("accept_close:at=3,for=3", "closed"),
    ],
)
def test_an_exchange_in_trouble_is_left_alone_and_then_recorded_again(
    programs: Programs, tmp_path: Path, fault: str, reason: str
) -> None:
    """Each kind of trouble is named, tried with growing delays, and told as a gap."""
    journal, tape = tmp_path / "journal", tmp_path / "tape"
    _, url = programs.simulate("--instruments", 20, "--rate", 300, "--faults", fault, "--journal", journal)
    recorder = programs.record(url, tape, "--top-n-instruments", 0)
    until(lambda: reason in {event["reason"] for event in trouble(recorder)}, reason)
    if reason != "too_many_requests":  # which is left alone for a while
        recorder.until_event("subscribed", 2)
        until(lambda: any(gap["status"] == "lost" for gap in gaps(tape)), "the gap's end")
    assert recorder.stop() == 0

    assert len(journal_events(journal, "refused")) <= 4
    assert "disconnect" in {gap["cause"] for gap in gaps(tape)}


def trouble(recorder: Program) -> list[dict[str, Any]]:
    return recorder.events("exchange.lost") + recorder.events("exchange.unreachable")
