"""A backlog of 20 million rows in 2,000 segments, from nothing: is the speed the same at its end, and the memory?

The loader runs as a program of its own; what it takes is read from /proc, and how far it is from the ledger.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import psycopg

from loader.postgres.embedded import Embedded
from loader.stop import Stop
from recorder.runtime.data_dir import DataDir
from recorder.segments.schemas import SCHEMAS, rows_to_batch
from recorder.segments.tape import Tape
from tests.bench.write import START_US, STREAM, make_rows

SEGMENTS = 2_000
SEGMENT_ROWS = 10_000
LOOK_S = 0.5
_LOADED = "SELECT coalesce(sum(rows), 0)::bigint FROM loaded_segments"
PARTS = 10  # that the run is cut into


def run(share: float) -> dict[str, Any]:
    """Return rows per second by tenth of the run, and the memory of the loader."""
    segments = max(int(SEGMENTS * share), 50)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "tape"
        _make_tape(DataDir(root), segments)
        server = Embedded(Path(folder) / "postgres")
        try:
            samples = _load(root, server.ensure_running(Stop()))
        finally:
            server.close()
    rows = segments * SEGMENT_ROWS
    speeds = _speeds(samples, rows)
    memory = [rss_kib for _, _, rss_kib in samples if rss_kib]
    parts = [memory[len(memory) * n // PARTS : len(memory) * (n + 1) // PARTS] for n in range(PARTS)]
    return {
        "rows": rows,
        "segments": segments,
        "rows_per_s": round(rows / (samples[-1][0] - samples[0][0])),
        "rows_per_s_by_tenth": speeds,
        "last_half_to_first_half": round(sum(speeds[PARTS // 2 :]) / sum(speeds[: PARTS // 2]), 3),
        "memory_mb_most": round(max(memory) / 1000),
        "memory_mb_median_by_tenth": [round(statistics.median(part) / 1000) for part in parts],
        "memory_goal_mb": 400,
    }


def _make_tape(data_dir: DataDir, segments: int) -> None:
    """Write the same rows again and again, each segment a little later: the values do not matter here."""
    tape = Tape(data_dir, recorder="bench", software="bench", segment_max_age_s=1e9, segment_max_bytes=1 << 40)
    rows = make_rows(SEGMENT_ROWS)
    for number in range(segments):
        later_us = number * 4_000_000
        moved = [(row[0] + later_us, row[1], row[2] + later_us, *row[3:]) for row in rows]
        tape.write_round({STREAM: [rows_to_batch(SCHEMAS["quotes"], moved)]}, now_us=START_US + later_us)
        tape.seal_all()


def _load(root: Path, url: str) -> list[tuple[float, int, int]]:
    """Return (time, rows loaded, KiB resident) twice a second."""
    environment = {**os.environ, "DATABASE_URL": url, "LOG_LEVEL": "ERROR"}
    command = [sys.executable, "-m", "loader", "load", "--once", "--data-dir", str(root)]
    samples = [(time.monotonic(), 0, 0)]
    with psycopg.connect(url, autocommit=True) as connection, subprocess.Popen(command, env=environment) as process:
        running = True
        while running:
            time.sleep(LOOK_S)
            running = process.poll() is None
            there = connection.execute("SELECT to_regclass('loaded_segments') IS NOT NULL").fetchone()
            row = connection.execute(_LOADED).fetchone() if there == (True,) else None
            samples.append((time.monotonic(), row[0] if row else 0, _resident_kib(process.pid) if running else 0))
    return samples


def _resident_kib(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("VmRSS")), 0)


def _speeds(samples: list[tuple[float, int, int]], rows: int) -> list[int]:
    """Return rows per second for each tenth of the rows."""
    marks = [next(sample for sample in samples if sample[1] >= rows * part // PARTS) for part in range(PARTS + 1)]
    return [round((end[1] - begin[1]) / max(end[0] - begin[0], LOOK_S)) for begin, end in pairwise(marks)]
