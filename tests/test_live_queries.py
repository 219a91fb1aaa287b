"""Queries in a loop while the tape moves under them: written at 2,000 messages/s, killed, archived, and pruned."""

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

import analysis
from tests.accounting import Account, bare_trade
from tests.fix_programs import PATIENCE_S, Program, Programs, until
from tests.live_answers import NUMBERS, QUOTES, TRADES, Acknowledged, Answers, as_numbers
from tests.oracle import QUOTES as QUOTE_COLUMNS
from tests.oracle import TRADES as TRADE_COLUMNS
from tests.oracle import trades_made

RATE = 2000
# For so long a pruned file is still there after its manifest: as long as a reader may take to read what it planned.
HOUR_S = PATIENCE_S / 4
PROGRAM_EVERY = 12  # a program takes seconds to start


class Killed(threading.Thread):
    """A recorder that is killed at seeded moments and started again at once."""

    def __init__(self, start: Callable[[], Program], moments_s: list[float]) -> None:
        """Take who starts it, and after how many seconds it is killed."""
        super().__init__()
        self.kills = 0
        self._begin, self._moments_s = start, moments_s
        self.recorder = start()
        self._over = threading.Event()

    def run(self) -> None:
        begun_s = time.monotonic()
        for moment_s in self._moments_s:
            if self._over.wait(max(0.0, begun_s + moment_s - time.monotonic())):
                return
            self.recorder.kill()
            self.kills += 1
            self.recorder = self._begin()

    def end(self) -> None:
        """Start it no more."""
        self._over.set()
        if self.is_alive():
            self.join()


@pytest.mark.timeout(900)
@pytest.mark.fault(16)
def test_whatever_moves_each_answer_is_right(
    programs: Programs, tmp_path: Path, full: bool, record_property: Callable[[str, object], None]
) -> None:
    """Each row once, all were sent, none is missing that an answer had, all that was acknowledged is there."""
    seed = random.randrange(10**6)
    print("seed", seed)
    rng = random.Random(seed)
    for_s, kills = (120.0, 10) if full else (10.0, 2)
    tape, journal, account = tmp_path / "tape", tmp_path / "journal", tmp_path / "acknowledged"
    (tmp_path / "recorders").mkdir()
    recorders = Programs(tmp_path / "recorders")
    exchange, url = programs.simulate("--instruments", 100, "--rate", RATE, "--seed", seed, "--journal", journal)

    def start() -> Program:
        return recorders.start(
            "tests.faults.driver", "recorder", "record", "--deribit-ws-url", url, "--data-dir", tape,
            "--recorder-name", "test", "--top-n-instruments", 0, "--segment-max-age-sec", 2,
            "--flush-interval-sec", 0.3, FAULTS=json.dumps({"acknowledged": str(account)}),
        )  # fmt: skip

    acknowledged = Acknowledged(account)
    killed = Killed(start, sorted(rng.uniform(1, for_s - 2) for _ in range(kills)))
    try:
        until(lambda: all(acknowledged.keys(stream).height for stream in NUMBERS), "rows that are durable")
        archive = programs.start("tests.restless_archive", HOUR_S, tape)
        killed.start()
        end_s, answers = time.monotonic() + for_s, Answers(acknowledged)
        asked = ask_while(
            lambda: time.monotonic() < end_s or killed.is_alive() or nothing_removed(archive),
            programs, tape, answers, rng,
        )  # fmt: skip
        killed.join()
        killed.recorder.until_event("subscribed")
        assert killed.recorder.stop() == 0
    finally:
        killed.end()
        recorders.end_all()
    assert archive.process.poll() is None, archive.err
    exchange.stop()
    parts, removed = progress(archive)
    archive.kill()
    with analysis.open(tape) as con:
        for stream, durable in answers.durable().items():
            answers.take("in the end", stream, as_numbers(con.sql(f"FROM {stream}").pl()), durable)
    answers.all_are_in_the_last()
    rows = were_sent(answers, journal)
    print(f"{answers.count} answers, {dict(asked)}: none wrong; {killed.kills} kills, {rows} rows;", end=" ")
    print(f"{parts} parts made, {removed} segments removed")

    assert killed.kills == kills
    assert rows > 1000
    assert parts > 0
    assert removed > 0
    record_property("cases", answers.count)


def progress(archive: Program) -> tuple[int, int]:
    """Return how many parts were made, and how many segments removed."""
    lines = archive.out.split("\n")[:-1]
    parts, removed = lines[-1].split() if lines else ("0", "0")
    return int(parts), int(removed)


def nothing_removed(archive: Program) -> bool:
    """Whether it works and has removed nothing yet."""
    return archive.process.poll() is None and progress(archive)[1] == 0


def ask_while(
    goes_on: Callable[[], bool], programs: Programs, tape: Path, answers: Answers, rng: random.Random
) -> Counter[str]:
    """Ask in every way, again and again, and judge each answer; return how often in which."""
    asked: Counter[str] = Counter()
    with analysis.open(tape) as con:
        while goes_on():
            way = rng.choice(("refresh", "refresh", "scan")) if asked.total() % PROGRAM_EVERY else "program"
            asked[way] += 1
            durable, begun_s = answers.durable(), time.monotonic()
            if way == "refresh":
                analysis.refresh(con)
            for stream, keys in durable.items():
                if way == "refresh":
                    answer = con.sql(f"FROM {stream}").pl()
                    answers.take(way, stream, as_numbers(answer), keys)
                    again = con.sql(f"FROM {stream}").pl()
                    assert again.sort(pl.all()).equals(answer.sort(pl.all())), "the same tables have other rows"
                elif way == "scan":
                    answers.take(way, stream, as_numbers(analysis.scan(stream, tape).collect()), keys)
                else:
                    answers.take(way, stream, by_program(programs, tape, stream), keys)
            took_s = time.monotonic() - begun_s
            assert took_s < HOUR_S or way == "program", f"this machine is too slow to judge: {took_s:.1f} s"
    return asked


def by_program(programs: Programs, tape: Path, stream: str) -> pl.DataFrame:
    """Ask the program for the columns that tell rows apart."""
    before = ", prev_change_id" if stream == QUOTES else ""
    columns = f"instrument, {NUMBERS[stream]}, epoch_us(received_at) AS received_at{before}"
    ran = programs.run("analysis", "sql", f"SELECT {columns} FROM {stream}", "--json", "--data-dir", tape)
    assert ran.process.returncode == 0, ran.err
    assert ran.err == ""
    return pl.DataFrame(json.loads(ran.out), infer_schema_length=None)


def were_sent(answers: Answers, journal: Path) -> int:
    """Say whether every row of the last answer was sent, value by value; return how many there are."""
    sent, made = Account(journal), trades_made(journal)
    quotes, trades = answers.rows(QUOTES, QUOTE_COLUMNS), answers.rows(TRADES, TRADE_COLUMNS)
    invented = [row for row in quotes if hash(row) not in sent.whole_quotes]
    for row in trades:
        own = tuple(value for name, value in zip(TRADE_COLUMNS, row, strict=True) if name not in ONLY_RECEIVED)
        live = row[-1] == "live"
        if made.values.get((row[1], row[3])) != own or (live and hash(bare_trade(row)) not in sent.trades):
            invented.append(row)
    assert invented == []
    return len(quotes) + len(trades)


ONLY_RECEIVED = ("underlying_price", "source")  # of a trade: what the exchange did not say with it
