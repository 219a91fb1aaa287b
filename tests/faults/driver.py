"""Runs the recorder on a disk that a plan stands in for, and keeps an account of what it acknowledged.

FAULTS='{…}' python -m tests.faults.driver recorder record …      what FAULTS may hold:
    acknowledged: FILE       every row that a flush round reported durable, one line of JSON a round, fsynced
    kill_at: N, after: BOOL  die by SIGKILL before or after the n-th call that changes the disk
    kill_after_gaps: FILE    once this file exists, die in the first round that wrote gaps, before the next stream
    count: FILE              how many such calls there were, at the end
    refuse: [SEED, EVERY_S, FOR_S, ERRNO, …]   every now and then refuse everything for a while
    full_while: FILE          refuse everything with ENOSPC while this file exists
slow: [SECONDS, EVERY]   let every n-th call hang
"""

import errno
import json
import os
import random
import runpy
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from recorder.segments import tape
from tests.faults.system import Call, Plan, System, just_do, killed_at, slow, standing_in, write_half

Key = tuple[Any, ...]

# What tells a row from every other row of its stream.
KEYS = {
    "quotes": ("instrument", "change_id", "received_at"),
    "trades": ("instrument", "trade_seq", "received_at"),
    "tickers": ("instrument", "timestamp", "received_at"),
    "instruments": ("instrument", "timestamp", "received_at"),
    "data_gaps": ("gap_id", "state_no", "received_at"),
}


def main() -> None:
    """Read FAULTS and run the program."""
    faults: dict[str, Any] = json.loads(os.environ["FAULTS"])
    if "acknowledged" in faults:
        keep_account(Path(faults["acknowledged"]))
    system = System(plan=plan_of(faults), keep_data=True, keep_calls=False)
    sys.argv = sys.argv[1:]
    with standing_in(system):
        try:
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        finally:
            if "count" in faults:
                Path(faults["count"]).write_text(str(system.count))


def plan_of(faults: Mapping[str, Any]) -> Plan:
    """Return what shall happen at each call."""
    if "kill_at" in faults:
        return killed_at(faults["kill_at"], after=faults["after"])
    if "kill_after_gaps" in faults:
        return killed_after_gaps(Path(faults["kill_after_gaps"]))
    if "refuse" in faults:
        seed, every_s, for_s, *errors = faults["refuse"]
        return refused_now_and_then(random.Random(seed), every_s, for_s, errors)
    if "full_while" in faults:
        return full_while(Path(faults["full_while"]))
    if "slow" in faults:
        return slow(faults["slow"][0], every=faults["slow"][1])
    return just_do


def killed_after_gaps(when: Path) -> Plan:
    """Die by SIGKILL once a round has made gaps durable, before it writes anything of another stream."""
    told = False

    def plan(call: Call, do: Callable[[], Any]) -> Any:
        nonlocal told
        of_gaps = "data_gaps" in call.path
        if told and not of_gaps:
            os.kill(os.getpid(), signal.SIGKILL)
        # A commit has this in its metadata; what else is written to a segment has not.
        told |= of_gaps and call.name == "write" and b"crc32" in call.data and when.exists()
        return do()

    return plan


def refused_now_and_then(rng: random.Random, every_s: float, for_s: float, errors: list[int]) -> Plan:
    """Refuse everything for a while, every now and then, each time with one of these errors."""
    next_s = time.monotonic() + rng.uniform(0, 2 * every_s)
    until_s, error = next_s + rng.uniform(0, 2 * for_s), rng.choice(errors)

    def plan(call: Call, do: Callable[[], Any]) -> Any:
        nonlocal next_s, until_s, error
        now_s = time.monotonic()
        if now_s < next_s:
            return do()
        if now_s >= until_s:
            next_s = now_s + rng.uniform(0, 2 * every_s)
            until_s, error = next_s + rng.uniform(0, 2 * for_s), rng.choice(errors)
            return do()
        if call.name == "write":
            write_half(call)
        raise OSError(error, os.strerror(error), call.path)

    return plan


def full_while(file: Path) -> Plan:
    """Be a full disk while a file exists."""

    def plan(call: Call, do: Callable[[], Any]) -> Any:
        if file.exists() and call.name != "unlink":
            if call.name == "write":
                write_half(call)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), call.path)
        return do()

    return plan


def keep_account(file: Path) -> None:
    """Write down, beside the tape, what each round reported durable."""
    account = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    write_round = tape.Tape.write_round

    def accounted(self: tape.Tape, rows: Mapping[str, tape.Batches], *, now_us: int) -> tape.Round:
        result = write_round(self, rows, now_us=now_us)
        durable = {
            stream: keys_of(stream, pa.Table.from_batches(rows[stream]).slice(0, count))
            for stream, count in result.durable.items()
        }
        if durable:
            os.write(account, json.dumps(durable).encode() + b"\n")
            os.fsync(account)
        return result

    tape.Tape.write_round = accounted  # type: ignore[method-assign]


def kind_of(stream: str) -> str:
    """Return which of KEYS a stream has."""
    return stream if stream == "data_gaps" else stream.rpartition("_")[2]


def keys_of(stream: str, table: pa.Table) -> list[Key]:
    """Return the key of each row; times in microseconds since 1970."""
    cast = [
        table[name].cast(pa.int64()) if pa.types.is_timestamp(table.schema.field(name).type) else table[name]
        for name in KEYS[kind_of(stream)]
    ]
    return list(zip(*(column.to_pylist() for column in cast), strict=True))


def acknowledged(file: Path) -> dict[str, set[Key]]:
    """Read such an account: keys by stream."""
    found: dict[str, set[Key]] = {}
    if file.exists():
        for line in file.read_bytes().split(b"\n"):
            try:
                rounds = json.loads(line)
            except ValueError:
                continue  # the kill came while it was written: nothing was reported
            for stream, keys in rounds.items():
                found.setdefault(stream, set()).update(map(tuple, keys))
    return found


if __name__ == "__main__":
    main()
