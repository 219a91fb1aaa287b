"""Rows per second into fsynced segments, and bytes a row, at the flush sizes of a small and of a whole chain."""

import random
import tempfile
import time
from typing import Any

from recorder.runtime.data_dir import DataDir
from recorder.segments.schemas import SCHEMAS, Row, rows_to_batch
from recorder.segments.tape import Tape

STREAM = "eth_option_quotes"
FLUSH_ROWS = (150, 3000)  # a second of 50 options, of a whole chain
FLUSHES = 200
START_US = 1_763_812_800_000_000


def run(share: float) -> dict[str, Any]:
    """Return the figures by flush size. The reference is the same rows in one flush and one fsync."""
    flushes = max(int(FLUSHES * share), 10)
    results: dict[str, Any] = {"reference": "the same rows in one flush"}
    for size in FLUSH_ROWS:
        rows = make_rows(size * flushes)
        chunks = [rows[at : at + size] for at in range(0, len(rows), size)]
        one = _write([rows])
        many = _write(chunks)
        results[f"flushes_of_{size}"] = {
            "rows_per_s": round(many["rows_per_s"]),
            "rows_per_cpu_s": round(many["rows_per_cpu_s"]),
            "bytes_per_row": round(many["bytes_per_row"], 1),
            "ratio_to_one_flush": round(many["rows_per_s"] / one["rows_per_s"], 3),
            "bytes_per_row_in_one_flush": round(one["bytes_per_row"], 1),
        }
    return results


def _write(chunks: list[list[Row]]) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        tape = Tape(
            DataDir(folder), recorder="bench", software="bench", segment_max_age_s=1e9, segment_max_bytes=1 << 40
        )
        begun_s, begun_cpu_s = time.perf_counter(), time.process_time()
        size_bytes = sum(
            tape.write_round({STREAM: [rows_to_batch(SCHEMAS["quotes"], chunk)]}, now_us=START_US).size_bytes
            for chunk in chunks
        )
        seconds, cpu_s = time.perf_counter() - begun_s, time.process_time() - begun_cpu_s
        rows = sum(map(len, chunks))
        return {
            "rows_per_s": rows / seconds,
            "rows_per_cpu_s": rows / cpu_s,
            "bytes_per_row": size_bytes / rows,
        }


def make_rows(count: int, *, instruments: int = 50) -> list[Row]:
    """Quotes of options whose prices move by ticks."""
    chance = random.Random(1)
    bids = [chance.randrange(10, 4000) for _ in range(instruments)]
    ids = [140_000_000_000] * instruments
    rows: list[Row] = []
    for n in range(count):
        i = chance.randrange(instruments)
        bids[i] = max(1, bids[i] + chance.choice((-1, 0, 1)))
        before, ids[i] = ids[i], 140_000_000_000 + n * 37 + chance.randrange(37)
        at_us = START_US + n * 400
        rows.append(
            (
                at_us - 3000, f"ETH-27NOV26-{2000 + 50 * i}-C", at_us,
                bids[i] / 10_000, float(chance.randrange(1, 500)),
                (bids[i] + 5) / 10_000, float(chance.randrange(1, 500)),
                2700 + n % 97 / 10, bids[i] / 10_000 + 0.00021, ids[i], before,
            )
        )  # fmt: skip
    return rows
