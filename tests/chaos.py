"""`make chaos MINUTES=5 SEED=…`: the whole chain under random faults, and then one verdict.

A simulated Deribit that misbehaves, the recorder on a disk that now and then refuses, the loader, and a real
PostgreSQL; every few seconds one of them is killed, stopped, frozen, or started again. At the end everything is
started once more without faults, and what the recorder had acknowledged is looked for on the tape and in the
database.
The seed decides what happens in which order; the moments differ from machine to machine.
"""

import argparse
import contextlib
import errno
import json
import os
import random
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
import pyarrow.dataset as ds
from psycopg import sql

from loader.errors import DatabaseAway
from loader.postgres.embedded import Embedded
from loader.stop import Stop
from recorder.runtime import logging
from tests.accounting import Account, judge
from tests.faults.driver import KEYS, Key, acknowledged, keys_of, kind_of
from tests.test_pool import first_durable_us, left_and_taken_up
from tests.test_record import gaps

# At the end trades may heal for as long as some do: the exchange's limits allow a few calls a second.
HEAL_PATIENCE_S = 90.0
MOST_PATIENCE_S = 1800.0
INSTRUMENTS, MESSAGES_PER_S = 80, 500
# What the exchange may do wrong, and how often at most; some of it in each run.
EXCHANGE_FAULTS = (
    "kill:every={}", "disconnect:every={}", "half_open:every={},for=4", "maintenance:every={},for=3",
    "accept_close:every={},for=3", "gap:every={}", "duplicate:every={}", "reorder:every={}", "trade_gap:every={}",
    "trade_mixed:every={}", "expire_trade_gap:every={}", "list:every={},count=5", "rerank:every={}",
)  # fmt: skip


@dataclass
class Verdict:
    """What was found; all but `acknowledged_rows` are to be zero."""

    seed: int
    faults: Counter[str] = field(default_factory=Counter)
    acknowledged_rows: int = 0
    lost: int = 0
    invented: int = 0
    duplicated: int = 0
    holes_without_a_gap_row: int = 0
    missing_trades: int = 0  # that nothing tells
    owed_trades: int = 0  # that are told as open, though nothing keeps them from being fetched
    database_lacks: int = 0
    database_has_more: int = 0
    examples: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Whether nothing was lost, invented, or doubled, and every hole is told."""
        return self.acknowledged_rows > 0 and not any((
            self.lost, self.invented, self.duplicated, self.holes_without_a_gap_row, self.missing_trades,
            self.owed_trades,
            self.database_lacks, self.database_has_more,
        ))  # fmt: skip


def main() -> int:
    """Run it; 0 only if all is well."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=5.0, help="for how long (default: 5)")
    parser.add_argument("--seed", type=int, default=None, help="of an earlier run, to repeat it (default: a new one)")
    arguments = parser.parse_args()
    seed = arguments.seed if arguments.seed is not None else secrets.randbelow(10**6)
    logging.configure(level="ERROR", form="console")
    folder = Path(tempfile.mkdtemp(prefix="ticktape-chaos-"))
    print(f"seed {seed}, {arguments.minutes:g} min; logs and tape in {folder}", flush=True)
    chaos = Chaos(folder, seed)
    try:
        verdict = chaos.run(arguments.minutes * 60)
    finally:
        chaos.end()
    print(json.dumps({**vars(verdict), "faults": dict(verdict.faults)}, indent=2))
    print("all is well" if verdict.good else f"NOT WELL; repeat with SEED={seed}; kept: {folder}")
    if verdict.good:
        shutil.rmtree(folder, ignore_errors=True)
    return 0 if verdict.good else 1


class Chaos:
    """The programs of the chain, and what may be done to them."""

    def __init__(self, folder: Path, seed: int) -> None:
        self._folder = folder
        self._rng = random.Random(seed)
        self._seed = seed
        self._tape, self._journal = folder / "tape", folder / "journal"
        self._account = folder / "acknowledged"
        self._postgres = Embedded(folder / "postgres")
        self._dsn = ""
        self._url = ""
        self._programs: dict[str, subprocess.Popen[bytes]] = {}
        self._starts = 0
        self.verdict = Verdict(seed)

    def run(self, seconds: float) -> Verdict:
        """Make trouble for so long, then let everything come to rest, and judge."""
        self._start_database()
        self._start_exchange(seconds)
        self._start_recorder()
        self._start_loader()
        until_s = time.monotonic() + seconds
        while time.monotonic() < until_s:
            time.sleep(self._rng.uniform(0.5, 6.0))
            action = self._rng.choice(self._actions())
            self.verdict.faults[action.__name__.strip("_")] += 1
            action()
        self._come_to_rest()
        return self._judge()

    def end(self) -> None:
        """Leave nothing running."""
        for program in self._programs.values():
            program.kill()
            program.wait()
        self._postgres.close()

    # What may happen

    def _actions(self) -> list[Callable[[], None]]:
        return [
            self._kill_recorder, self._kill_recorder, self._stop_recorder, self._freeze_recorder,
            self._kill_loader, self._kill_loader, self._stop_loader, self._freeze_loader,
            self._kill_database, self._cut_database_sessions, self._freeze_database,
        ]  # fmt: skip

    def _kill_recorder(self) -> None:
        self._end("recorder", signal.SIGKILL)
        time.sleep(self._rng.uniform(0, 2))
        self._start_recorder()

    def _stop_recorder(self) -> None:
        self._end("recorder", signal.SIGTERM)
        self._start_recorder()

    def _freeze_recorder(self) -> None:
        self._freeze(self._programs["recorder"].pid)

    def _kill_loader(self) -> None:
        self._end("loader", signal.SIGKILL)
        self._start_loader()

    def _stop_loader(self) -> None:
        self._end("loader", signal.SIGTERM)
        self._start_loader()

    def _freeze_loader(self) -> None:
        self._freeze(self._programs["loader"].pid)

    def _kill_database(self) -> None:
        """Its first process at once; away for a while."""
        with contextlib.suppress(OSError, ValueError):
            os.kill(self._postmaster(), signal.SIGKILL)
        time.sleep(self._rng.uniform(0, 5))
        self._start_database()

    def _cut_database_sessions(self) -> None:
        query = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
        with contextlib.suppress(psycopg.Error), psycopg.connect(self._dsn, autocommit=True) as connection:
            connection.execute(query)

    def _freeze_database(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._freeze(self._postmaster())

    def _freeze(self, pid: int) -> None:
        os.kill(pid, signal.SIGSTOP)
        time.sleep(self._rng.uniform(0.5, 5))
        os.kill(pid, signal.SIGCONT)

    def _postmaster(self) -> int:
        return int(next(self._folder.glob("postgres/**/postmaster.pid")).read_text().split()[0])

    # The programs

    def _start(self, name: str, *arguments: str, faults: dict[str, object] | None = None) -> None:
        self._starts += 1
        environment = {
            **os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent), "LOG_FORMAT": "json",
            "DATABASE_URL": self._dsn, "FAULTS": json.dumps(faults or {}),
        }  # fmt: skip
        with (self._folder / f"{name}.log").open("ab") as log:
            self._programs[name] = subprocess.Popen(
                [sys.executable, "-m", *arguments], stdout=log, stderr=log, cwd=self._folder, env=environment
            )

    def _start_database(self) -> None:
        """Start it; what is left of a killed one must be gone first, which takes it a moment."""
        until_s = time.monotonic() + 60
        while True:
            try:
                self._dsn = self._postgres.ensure_running(Stop())
            except (DatabaseAway, psycopg.OperationalError):
                if time.monotonic() > until_s:
                    raise
                time.sleep(0.5)
            else:
                return

    def _start_exchange(self, seconds: float) -> None:
        some = self._rng.sample(EXCHANGE_FAULTS, 8)
        faults = [f"{fault.format(self._rng.randint(5, 25))},until={int(seconds)}" for fault in some]
        self.verdict.faults.update(fault.partition(":")[0] for fault in some)
        self._start(
            "exchange", "recorder", "simulate", "--port", "0", "--instruments", str(INSTRUMENTS),
            "--rate", str(MESSAGES_PER_S), "--seed", str(self._seed), "--journal", str(self._journal),
            "--main-keeps", "30", "--heartbeat-speed", "10", "--faults", ";".join(faults),
        )  # fmt: skip
        while "/ws/api/v2" not in (text := (self._folder / "exchange.log").read_text()):
            time.sleep(0.05)
        self._url = next(word for word in text.split() if word.startswith("ws://"))

    def _start_recorder(self, *, faultless: bool = False) -> None:
        faults: dict[str, object] = {"acknowledged": str(self._account)}
        if not faultless and self._rng.random() < 0.5:
            faults["refuse"] = [self._rng.randrange(10**6), 10, 2, errno.ENOSPC, errno.EIO]
            self.verdict.faults["disk_refuses"] += 1
        self._start(
            "recorder", "tests.faults.driver", "recorder", "record", "--deribit-ws-url", self._url,
            "--data-dir", str(self._tape), "--recorder-name", "chaos", "--top-n-instruments", "0",
            "--segment-max-age-sec", "5", "--flush-interval-sec", "0.5", "--max-channels-per-connection", "60",
            "--redundancy", str(self._rng.choice((1, 1, 2))), "--trade-void-after-sec", "3",
            faults=faults,
        )  # fmt: skip

    def _start_loader(self) -> None:
        self._start("loader", "loader", "load", "--data-dir", str(self._tape))

    def _end(self, name: str, how: signal.Signals) -> None:
        program = self._programs[name]
        program.send_signal(how)
        try:
            program.wait(60)
        except subprocess.TimeoutExpired:
            self.verdict.examples.append(f"{name} did not end within 60 s of {how.name}")
            program.kill()
            program.wait()

    # The end

    def _come_to_rest(self) -> None:
        """Start everything without faults, let trades heal, and end everything cleanly."""
        self._start_database()
        self._end("recorder", signal.SIGTERM)
        self._start_recorder(faultless=True)
        time.sleep(10)
        begun_s = progress_s = time.monotonic()
        least = owed = self._owed()
        while owed and time.monotonic() < min(progress_s + HEAL_PATIENCE_S, begun_s + MOST_PATIENCE_S):
            time.sleep(2)
            owed = self._owed()
            if owed < least:
                least, progress_s = owed, time.monotonic()
        self._end("recorder", signal.SIGTERM)
        self._end("loader", signal.SIGTERM)
        self._end("exchange", signal.SIGTERM)
        self._start("loader", "loader", "load", "--once", "--data-dir", str(self._tape))
        self._programs["loader"].wait(300)

    def _owed(self) -> int:
        return sum(gap["status"] == "open" and gap["stream"].endswith("trades") for gap in gaps(self._tape))

    def _judge(self) -> Verdict:
        verdict = self.verdict
        on_tape = {
            folder.name: Counter(keys_of(folder.name, ds.dataset(folder, format="ipc").to_table()))
            for folder in sorted(self._tape.iterdir())
            if kind_of(folder.name) in KEYS and folder.is_dir()
        }
        for stream, keys in acknowledged(self._account).items():
            verdict.acknowledged_rows += len(keys)
            self._note("lost", stream, keys - on_tape.get(stream, Counter()).keys())
        for stream, found in on_tape.items():
            self._note("duplicated", stream, {key for key, times in found.items() if times > 1})
            in_database = self._in_database(stream)
            self._note("database_lacks", stream, (found - in_database).keys())
            self._note("database_has_more", stream, (in_database - found).keys())
        judgement = judge(
            Account(self._journal, since_us=first_durable_us(self._tape)),
            self._tape,
            [*gaps(self._tape), *left_and_taken_up(self._tape)],
        )
        self._note("invented", "", judgement.invented)
        self._note("duplicated", "", judgement.doubled)
        self._note("holes_without_a_gap_row", "", [*judgement.untold, *judgement.unwatched])
        self._note("missing_trades", "", judgement.missing_trades)
        self._note("owed_trades", "", judgement.owed_trades)
        return verdict

    def _in_database(self, stream: str) -> Counter[Key]:
        columns = [
            sql.SQL("(extract(epoch FROM {0}) * 1000000)::bigint").format(sql.Identifier(name))
            if name in ("timestamp", "received_at")
            else sql.Identifier(name)
            for name in KEYS[kind_of(stream)]
        ]
        query = sql.SQL("SELECT {} FROM {}").format(sql.SQL(", ").join(columns), sql.Identifier(stream))
        with psycopg.connect(self._dsn) as connection:
            return Counter(connection.execute(query).fetchall())

    def _note(self, what: str, stream: str, found: Iterable[object]) -> None:
        some = list(found)
        setattr(self.verdict, what, getattr(self.verdict, what) + len(some))
        self.verdict.examples += [f"{what}: {stream} {one}" for one in some[:3]]


if __name__ == "__main__":
    sys.exit(main())
