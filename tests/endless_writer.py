"""Writes numbered quotes to a tape until it is killed: `python -m tests.endless_writer DATA_DIR LOG SEED`.

Before each round it says in the log up to which number it will write, afterwards up to which all are durable.
"""

import os
import random
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa

from recorder.runtime.data_dir import DataDir
from recorder.segments.recovery import recover
from tests.segment_tools import NOON_US, QUOTES, batches, tape_in


def row(number: int) -> tuple[Any, ...]:
    """The quote of a number; each differs from every other in more than that."""
    at_us = NOON_US + number
    price = number / 7
    return (at_us, f"ETH-{number % 5}", at_us, price, 1.0, None, price * 2, 2000.5, None, number, number - 1)


def newest(root: Path) -> int:
    """The last number on the sealed tape, read by pyarrow alone."""
    numbers = [0]
    for path in root.glob(f"{QUOTES}/date=*/*.arrow"):
        numbers += pa.ipc.open_file(path.read_bytes()).read_all()["change_id"].to_pylist()
    return max(numbers)


def main(root: str, log: str, seed: str) -> None:
    """Write for ever."""
    rng = random.Random(seed)
    data_dir = DataDir(root)
    with data_dir.lock("test"), Path(log).open("a") as said:
        recover(data_dir)
        tape = tape_in(data_dir, max_bytes=rng.choice((5_000, 20_000, 60_000)))
        number = newest(data_dir.root) + 1
        print("ready", os.getpid(), file=said, flush=True)
        while True:
            end = number + rng.choice((1, 10, 200))
            print("writes", end - 1, file=said, flush=True)
            rows = [row(one) for one in range(number, end)]
            assert tape.write_round(batches(**{QUOTES: rows}), now_us=NOON_US).durable
            print("durable", end - 1, file=said, flush=True)
            number = end


if __name__ == "__main__":
    main(*sys.argv[1:])
