"""The whole chain, unattended: many connections, moves, redundancy, storms, crashes, and an exchange in trouble.

With --full each run has the size and the time that the guarantees are stated for; by default it is the same, small.
"""

import json
import os
import random
import signal
import statistics
import time
import urllib.request
from collections.abc import Iterable
from datetime import UTC, datetime
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import analysis
from analysis import completeness
from analysis.span import Span
from analysis.tape import Tape
from tests.accounting import Account, instrument_of, judge
from tests.fix_programs import Program, Programs, until
from tests.oracle import journal_events, tape_rows
from tests.test_record import gaps

PATIENCE_S = 240.0  # for what takes its time in a full run


def record_all(
    programs: Programs, url: str, tape: Path, *arguments: str | float, hour_s: float | None = None
) -> Program:
    """Record a whole simulated chain."""
    return programs.record(
        url, tape, "--top-n-instruments", 0, "--trade-void-after-sec", 2, *arguments, hour_s=hour_s
    )


def often(kind: str, *, every_s: float, until_s: float, after_s: float = 0, more: str = "") -> str:
    """Order a fault again and again, and none of it after some time: what it broke is to heal."""
    times = range(1, int((until_s - after_s) / every_s) + 1)
    return ";".join(f"{kind}:at={after_s + turn * every_s:g}{more}" for turn in times)


def names(events: Iterable[dict[str, Any]]) -> set[str]:
    """Return the instruments that journal entries are of."""
    return {name for event in events for name in event["instruments"]}


def recorded(tape: Path) -> set[str]:
    """Return the instruments whose newest row says that they are recorded."""
    query = "SELECT instrument FROM eth_option_instruments GROUP BY 1 HAVING arg_max(recorded, received_at)"
    with analysis.open(tape) as con:
        if ("eth_option_instruments",) not in con.sql("SHOW TABLES").fetchall():
            return set()
        return {name for (name,) in con.execute(query).fetchall()}


def left_and_taken_up(tape: Path) -> list[dict[str, Any]]:
    """Return when an instrument was not recorded because it was not chosen, as if gap rows told it.

    A tape claims nothing of an instrument before the first row that says it is recorded: its connection may have been
    lost before the exchange's grant could be read.
    """
    since: dict[str, int] = {}
    known, found = set[str](), []
    rows = tape_rows(tape, "eth_option_instruments", ["received_at", "instrument", "recorded"])
    for at_us, name, is_recorded in sorted(rows):
        if name not in known or not is_recorded:
            since.setdefault(name, at_us if name in known else 0)
            known.add(name)
        if is_recorded and name in since:
            span = {"started_at": _datetime(since.pop(name)), "ended_at": _datetime(at_us)}
            found += [{"stream": f"eth_option_{kind}", "instrument": name, **span} for kind in ("quotes", "tickers")]
    return found


def _datetime(us: int) -> datetime:
    return datetime.fromtimestamp(us / 1e6, UTC)


def causes(tape: Path) -> set[str]:
    return {gap["cause"] for gap in gaps(tape)}


def nothing_is_owed(tape: Path) -> bool:
    """Whether every hole in trades has its fate."""
    return all(gap["status"] != "open" for gap in gaps(tape) if gap["stream"] == "eth_option_trades")


def first_durable_us(tape: Path) -> int:
    """Return when recording began, as far as the tape can tell."""
    kinds = ("instruments", "quotes", "tickers", "trades")
    return int(min(row[0] for kind in kinds for row in tape_rows(tape, f"eth_option_{kind}", ["received_at"])))


def accounted_for(journal: Path, tape: Path) -> Account:
    """Judge what a run left in which the exchange was never asked too much; our own proof must say the same.

    The exchange must have ended: until then its journal may lack what was sent within the last second.
    """
    assert journal_events(journal, "limit") == []
    assert journal_events(journal, "subscribed_again") == []
    account = Account(journal, since_us=first_durable_us(tape))
    judgement = judge(account, tape, [*gaps(tape), *left_and_taken_up(tape)])
    print(f"{account.messages} messages on {len(journal_events(journal, 'open'))} connections; {judgement}")
    assert judgement.good, judgement
    found = completeness.check(Tape.at(tape), Span())
    assert (found.untold, found.missing_segments, found.unreadable) == ([], [], [])
    return account


@pytest.mark.timeout(900)
@pytest.mark.fault(13)
def test_a_storm_of_expiries_and_listings_costs_the_others_nothing(
    programs: Programs, tmp_path: Path, full: bool
) -> None:
    """Some leave, others come, the pool grows, ranks change: each message is on the tape once, and no gap opens."""
    journal, tape = tmp_path / "journal", tmp_path / "tape"
    size, gone, come, scale = (1000, 128, 200, 4) if full else (120, 30, 55, 1)
    # As many as the connections carry, and a few more: the next connection is filled up by moves.
    more, too_many = (124, 10) if full else (2, 4)
    exchange, url = programs.simulate(
        "--instruments", size, "--rate", 2000 if full else 500, "--seed", 5, "--journal", journal, "--faults",
        f"expire:at={4 * scale},count={gone};list:at={4 * scale + 1},count={come};"
        f"list:at={6 * scale},count={more};list:at={7 * scale},count={too_many};rerank:every=2",
    )  # fmt: skip
    fewer = () if full else ("--max-channels-per-connection", 60)
    recorder = record_all(programs, url, tape, *fewer, hour_s=3)
    recorder.until_event("moves.begun", patience_s=PATIENCE_S)
    listed = names(journal_events(journal, "listed"))
    until(lambda: listed <= recorded(tape), "the new ones to be recorded", every_s=0.5)
    time.sleep(3 * scale)
    assert recorder.stop() == 0
    exchange.stop()
    delivered = names(journal_events(journal, "delivered"))
    account = accounted_for(journal, tape)

    assert (len(delivered), len(listed)) == (gone, come + more + too_many)
    assert causes(tape) == {"stopped"}
    assert recorded(tape) == {name for channel in account.held if (name := instrument_of(channel))} - delivered
    assert account.shared()  # moves were made before they were broken


def ask(url: str, method: str) -> list[dict[str, Any]]:
    """Ask the exchange about its options."""
    host = url.removeprefix("ws://").partition("/")[0]
    with urllib.request.urlopen(
        f"http://{host}/api/v2/public/{method}?currency=ETH&kind=option", timeout=30
    ) as reply:
        return list(json.load(reply)["result"])


def ranking(url: str) -> list[str]:
    """Rank the options as the exchange shows them: by open interest; equals by expiry, strike, and type."""
    time.sleep(2.5)  # what it shows is up to two seconds old
    interest = {row["instrument_name"]: row["open_interest"] for row in ask(url, "get_book_summary_by_currency")}
    rows = ask(url, "get_instruments")
    rows.sort(key=lambda row: (row["expiration_timestamp"], row["strike"], row["option_type"]))
    return sorted((row["instrument_name"] for row in rows), key=lambda name: -interest[name])


@pytest.mark.timeout(900)
@pytest.mark.parametrize("edge", ["traded", "untraded"])
@pytest.mark.fault(13)
def test_ranks_move_the_choice_only_where_they_moved_far(
    programs: Programs, tmp_path: Path, full: bool, edge: str
) -> None:
    """Who is chosen stays so until a fifth of N below the edge; who has no open interest never flaps."""
    if edge == "untraded" and not full:
        pytest.skip("an edge among those without open interest only with --full")
    journal, tape = tmp_path / "journal", tmp_path / "tape"
    size, rounds, every_s = (1000, 10, 10) if full else (200, 1, 6)
    top_n = 50 if edge == "traded" else round(size * 0.9)
    # While the index is locked nothing trades, so that open interest changes only where it is dealt out anew.
    exchange, url = programs.simulate(
        "--instruments", size, "--rate", size, "--seed", 6, "--journal", journal, "--faults",
        f"lock:at=0.2,for=900;rerank:at=5,every={every_s}",
    )  # fmt: skip
    ranked = ranking(url)
    chosen = set(ranked[:top_n])
    recorder = programs.record(url, tape, "--top-n-instruments", top_n, hour_s=0.5)
    until(lambda: recorded(tape) == chosen, "the first choice", every_s=0.2)
    left = came = 0
    for turn in range(rounds):
        until(lambda turns=turn: len(reranks(journal)) > turns, "a rerank", every_s=0.2)  # type: ignore[misc]
        ranked = ranking(url)
        stay = {name for name in ranked[: top_n + top_n // 5] if name in chosen}
        wanted = stay | set([name for name in ranked if name not in stay][: top_n - len(stay)])
        until(lambda those=wanted: recorded(tape) == those, "the next choice", every_s=0.2)  # type: ignore[misc]
        left, came, chosen = left + len(chosen - wanted), came + len(wanted - chosen), wanted
    assert recorder.stop() == 0
    exchange.stop()
    accounted_for(journal, tape)
    print(f"{left} left, {came} came in {rounds} rounds of {top_n}")

    assert (left == came > 0) if edge == "traded" else (left == came == 0)
    assert causes(tape) == {"stopped"}
    assert sum(len(event["channels"]) > 5 for event in journal_events(journal, "unsubscribed")) <= rounds + 2


def reranks(journal: Path) -> list[dict[str, Any]]:
    return [event for event in journal_events(journal, "fault") if event["kind"] == "rerank"]


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("redundancy", "seed"), [(1, 4), (2, 4), (2, 9)])
@pytest.mark.fault(11)
def test_connections_that_die_one_after_another(
    programs: Programs, tmp_path: Path, full: bool, redundancy: int, seed: int
) -> None:
    """Alone each leaves gaps that tell all that is missing, and trades heal; doubled, nothing is missing at all."""
    if seed == 9 and not full:
        pytest.skip("another seed, and other phases of the windows, only with --full")
    journal, tape = tmp_path / "journal", tmp_path / "tape"
    # What a connection carried is twice carried again after a few calls, three of which may be made a second.
    size, every_s, until_s = (120, 5, 125) if full else (40, 2.5, 7)
    kills = often("kill", every_s=every_s, until_s=until_s, after_s=5 if full else 2)
    exchange, url = programs.simulate(
        "--instruments",
        size,
        "--rate",
        2000 if full else 800,
        "--seed",
        seed,
        "--faults",
        kills,
        "--journal",
        journal,
    )
    recorder = record_all(programs, url, tape, "--redundancy", redundancy, "--max-channels-per-connection", 60)
    recorder.until_event("exchange.lost", kills.count("kill") - 1, patience_s=PATIENCE_S)
    recorder.until_event("moves.begun")
    time.sleep(every_s)
    until(lambda: nothing_is_owed(tape), "trades to heal", patience_s=PATIENCE_S, every_s=1)
    assert recorder.stop() == 0
    exchange.stop()
    account = accounted_for(journal, tape)

    if redundancy == 1:
        assert {"disconnect", "stopped"} <= causes(tape)
        # What was missed was fetched, as the judge found; handed over in less than 0.1 s, it may have been nothing.
        of_trades = [gap for gap in gaps(tape) if gap["stream"] == "eth_option_trades"]
        assert {gap["status"] for gap in of_trades if gap["cause"] == "disconnect"} <= {"healed"}
        return
    assert causes(tape) == {"stopped"}
    assert [channel for channel in account.held if account.unheld(channel)] == []
    assert windows_that_overlap(tape) > 10  # they were cut at different moments


def windows_that_overlap(tape: Path) -> int:
    """Count the rows that begin before the end of the one before them: another connection's."""
    rows = sorted(tape_rows(tape, "eth_option_quotes", ["instrument", "change_id", "prev_change_id"]))
    return sum(a == b and prev is not None and prev < last for (a, last, _), (b, _, prev) in pairwise(rows))


@pytest.mark.fault(11, 14)
def test_a_recorder_that_stood_still_tells_its_gap_from_where_it_was_given_up(
    programs: Programs, tmp_path: Path
) -> None:
    """What it reads afterwards is late: the gap begins before the exchange closed, not when that was read."""
    journal, tape = tmp_path / "journal", tmp_path / "tape"
    exchange, url = programs.simulate(
        "--instruments", 20, "--rate", 300, "--seed", 3, "--heartbeat-speed", 10, "--journal", journal
    )
    recorder = record_all(programs, url, tape)
    time.sleep(1)
    recorder.process.send_signal(signal.SIGSTOP)
    (closed,) = until(lambda: journal_events(journal, "close"), "the exchange to give it up")
    time.sleep(0.5)
    recorder.process.send_signal(signal.SIGCONT)
    recorder.until_event("subscribed", 2)
    until(lambda: nothing_is_owed(tape), "trades to heal", every_s=0.5)
    assert recorder.stop() == 0
    exchange.stop()
    begun = {gap["stream"]: gap["started_at"] for gap in gaps(tape) if gap["cause"] == "disconnect"}
    accounted_for(journal, tape)

    assert begun.keys() == {f"eth_option_{kind}" for kind in ("quotes", "tickers", "trades")}
    assert max(begun.values()) <= _datetime(closed["sent_us"])


@pytest.mark.fault(11)
def test_a_stop_that_waits_for_a_dead_connection_begins_its_gap_when_the_others_were_left(
    programs: Programs, tmp_path: Path
) -> None:
    """Nothing is subscribed any more meanwhile, though heartbeats go on; nor did the dead one bring anything."""
    journal, tape = tmp_path / "journal", tmp_path / "tape"
    exchange, url = programs.simulate(
        "--instruments", 40, "--rate", 400, "--seed", 3, "--heartbeat-speed", 20, "--journal", journal, "--faults",
        "half_open:at=5,for=60",
    )  # fmt: skip
    recorder = record_all(programs, url, tape, "--max-channels-per-connection", 90, "--redundancy", 2)
    dead = until(lambda: journal_events(journal, "fault"), "the connection to go dead")[0]
    time.sleep(0.5)
    assert recorder.stop() == 0
    last = record_all(programs, url, tape)
    until(lambda: any(gap["status"] == "lost" for gap in gaps(tape)), "the gap's end")
    until(lambda: nothing_is_owed(tape), "trades to heal", every_s=0.5)
    assert last.stop() == 0
    exchange.stop()
    left = journal_events(journal, "unsubscribed")[0]
    begun = {gap["stream"]: gap["started_at"] for gap in gaps(tape) if gap["cause"] == "stopped" and gap["ended_at"]}
    accounted_for(journal, tape)

    assert begun.keys() == {f"eth_option_{kind}" for kind in ("quotes", "tickers", "trades")}
    assert begun["eth_option_tickers"] <= _datetime(dead["sent_us"])
    assert max(begun.values()) <= _datetime(left["sent_us"])


@pytest.mark.timeout(1200)
@pytest.mark.fault(1, 11, 13)
def test_kill_9_again_and_again_in_the_middle_of_everything(programs: Programs, tmp_path: Path, full: bool) -> None:
    """Whatever goes on meanwhile: trades are complete, every hole is told, and nothing is there twice."""
    journal, tape = tmp_path / "journal", tmp_path / "tape"
    size, crashes, until_s = (120, 20, 150) if full else (60, 3, 5)
    # No number that never was a trade: of an option that has expired it stays open for a day.
    faults = [
        often(kind, every_s=every_s if full else every_s / 3, until_s=until_s, more=more)
        for kind, every_s, more in (
            ("kill", 5, ""),
            ("gap", 2, ""),
            ("trade_gap", 2, ""),
            ("sweep", 10, ",count=300"),
            ("expire", 20, ",count=10"),
            ("list", 21, ",count=20"),
            ("expire_trade_gap", 9, ""),
        )
    ]
    exchange, url = programs.simulate(
        "--instruments", size, "--rate", 2000 if full else 800, "--seed", 7, "--journal", journal,
        "--faults", ";".join(faults),
    )  # fmt: skip
    begun_s, rng = time.monotonic(), random.Random(7)
    for crash in range(crashes):
        recorder = record_all(programs, url, tape, "--max-channels-per-connection", 60)
        # By default not before something is durable: such a crash shows nowhere.
        time.sleep(rng.uniform(0, 6) if full else rng.uniform(1, 2))
        if crash == crashes - 1:  # what was withheld last, and nothing followed, shows to who starts after it
            time.sleep(max(0.0, begun_s + until_s + 1 - time.monotonic()))
        recorder.kill()
    recorder = record_all(programs, url, tape, "--max-channels-per-connection", 60)
    until(lambda: nothing_is_owed(tape), "trades to heal", patience_s=PATIENCE_S, every_s=1)
    assert recorder.stop() == 0
    exchange.stop()
    accounted_for(journal, tape)

    assert {"crash", "stopped"} <= causes(tape)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("connections", [1, 4])
@pytest.mark.fault(11)
def test_a_server_that_accepts_and_closes_is_tried_less_and_less(
    programs: Programs, tmp_path: Path, full: bool, connections: int
) -> None:
    """It is tried after 1, 2, 4, 8 … 60 s, by one connection for all of them, until it serves again."""
    if connections == 1 and not full:
        pytest.skip("the same with a single connection only with --full")
    journal, tape = tmp_path / "journal", tmp_path / "tape"
    for_s = 190 if full else 6
    exchange, url = programs.simulate(
        "--instruments", 20, "--rate", 200, "--faults", f"accept_close:at=4,for={for_s}", "--journal", journal
    )
    recorder = record_all(programs, url, tape, "--max-channels-per-connection", 45 if connections == 1 else 12)
    recorder.until_event("subscribed", connections)
    recorder.until_event("exchange.lost", connections)
    recorder.until_event("subscribed", 2 * connections, patience_s=for_s + 70)
    until(lambda: nothing_is_owed(tape), "trades to heal", every_s=0.5)
    assert recorder.stop() == 0
    exchange.stop()
    closed_us = max(event["sent_us"] for event in journal_events(journal, "close")[:connections])
    tries = [closed_us, *(event["sent_us"] for event in journal_events(journal, "refused"))]
    delays_s = [(b - a) / 1e6 for a, b in pairwise(tries)]
    print(f"tried after {', '.join(f'{delay:.2f}' for delay in delays_s)} s")

    assert len(delays_s) == (8 if full else 2)
    assert [delay for delay, step in zip(delays_s, (1, 2, 4, 8, 16, 32, 60, 60), strict=False) if delay < step] == []
    assert accounted_for(journal, tape).messages > 0


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("maintenance:at=2,for=3", "maintenance"),
        ("too_many:at=2,for=30", "too_many_requests"),
    ],
)
@pytest.mark.fault(12)
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
    assert "disconnect" in causes(tape)


@pytest.mark.fault(12)
def test_a_storm_in_a_settlement_costs_nothing_that_flows(programs: Programs, tmp_path: Path) -> None:
    """New options are listed and a book breaks while every call is refused: all is recorded when it is over.

    What was missed of the new ones is told; of the others nothing was.
    """
    journal, tape = tmp_path / "journal", tmp_path / "tape"
    exchange, url = programs.simulate(
        "--instruments", 60, "--rate", 600, "--seed", 5, "--journal", journal, "--faults",
        "settlement:at=4,for=5;expire:at=4.2,count=5;list:at=4.5,count=20;gap:at=4.1",
    )  # fmt: skip
    recorder = record_all(programs, url, tape, "--max-channels-per-connection", 60)
    until(lambda: journal_events(journal, "call_refused"), "a refusal")
    until(lambda: any(event["kind"] == "settlement over" for event in journal_events(journal, "fault")), "its end")
    listed = names(journal_events(journal, "listed"))
    until(lambda: listed <= recorded(tape), "the new ones to be recorded", every_s=0.5)
    until(lambda: all(gap["status"] != "open" for gap in gaps(tape)), "the break's end", every_s=0.5)
    assert recorder.stop() == 0
    exchange.stop()
    accounted_for(journal, tape)

    assert len(listed) == 20
    assert trouble(recorder) == []
    assert {event["reason"] for event in recorder.events("subscribe.refused")} == {"settlement_in_progress"}
    assert causes(tape) <= {"sequence_break", "silence", "stopped"}
    assert {gap["instrument"] for gap in gaps(tape) if gap["cause"] == "silence"} <= listed


def trouble(recorder: Program) -> list[dict[str, Any]]:
    return recorder.events("exchange.lost") + recorder.events("exchange.unreachable")


SOAK_S, SETTLED_AFTER_S, SAMPLE_S = 21 * 60.0, 5 * 60.0, 10.0


class Sample(NamedTuple):
    """What a process is and has used, at a time."""

    minute: float
    rss_kib: int
    descriptors: int
    cpu_s: float


def sample(process: int, begun_s: float) -> Sample:
    proc = Path("/proc") / str(process)
    status = dict(line.split(":", 1) for line in (proc / "status").read_text().splitlines())
    after_name = (proc / "stat").read_text().rpartition(")")[2].split()
    ticks = int(after_name[11]) + int(after_name[12])  # of the user and of the system
    return Sample(
        (time.monotonic() - begun_s) / 60,
        int(status["VmRSS"].split()[0]),
        len(list((proc / "fd").iterdir())),
        ticks / os.sysconf("SC_CLK_TCK"),
    )


@pytest.mark.timeout(3 * SOAK_S)
@pytest.mark.fault(20)
def test_a_long_run_loses_nothing_and_does_not_grow(programs: Programs, tmp_path: Path, full: bool) -> None:
    """21 minutes of a whole chain: each message is on the tape once, memory and descriptors stay as they are."""
    if not full:
        pytest.skip("takes 21 minutes: only with --full")
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("needs /proc, to see a process's memory and descriptors")
    journal, tape = tmp_path / "journal", tmp_path / "tape"
    exchange, url = programs.simulate("--instruments", 1000, "--seed", 8, "--journal", journal)
    recorder = record_all(programs, url, tape)
    begun_s, samples = time.monotonic(), []
    while time.monotonic() < begun_s + SOAK_S:
        samples.append(sample(recorder.process.pid, begun_s))
        time.sleep(SAMPLE_S)
    assert recorder.stop() == 0
    exchange.stop()
    received = recorder.events("stopped")[-1]["messages"]
    settled = [one for one in samples if one.minute * 60 >= min(SETTLED_AFTER_S, SOAK_S / 4)]
    # A sample may fall into a seal, or a stall of the disk, which take some megabytes for a second: what it holds
    # at rest is the least of a minute.
    at_rest = [
        min(of_minute, key=lambda one: one.rss_kib) for _, of_minute in groupby(settled, lambda one: int(one.minute))
    ]
    slope, _ = statistics.linear_regression([one.minute for one in at_rest], [one.rss_kib for one in at_rest])
    most_kib = max(one.rss_kib for one in settled)
    descriptors = [one.descriptors for one in settled]
    third = len(settled) // 3
    for one in samples[:: max(1, len(samples) // 21)]:
        print(f"{one.minute:6.1f} min {one.rss_kib:8} KiB {one.descriptors:4} descriptors {one.cpu_s:8.1f} s CPU")
    cpu_us = (samples[-1].cpu_s - samples[0].cpu_s) / received * 1e6
    print(
        f"{received} messages, {cpu_us:.0f} us CPU each; memory at rest {slope:+.0f} KiB/min, most {most_kib} KiB;"
        f" {min(descriptors)} to {max(descriptors)} descriptors"
    )
    accounted_for(journal, tape)
    journal.unlink()  # more than a gigabyte

    assert causes(tape) == {"stopped"}
    assert slope < 100
    # One or two more for a moment, where a segment is made or history is asked.
    assert abs(statistics.median(descriptors[:third]) - statistics.median(descriptors[-third:])) <= 2
    assert max(descriptors) - min(descriptors) <= 12
