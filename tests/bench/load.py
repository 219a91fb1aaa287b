"""Rows per second loaded, beside the same segments' bytes sent by COPY with nothing else to do.

The reference encodes every segment beforehand and sends each in one COPY and one transaction, in the same order, into
the same table: the server's limit for this stream of transactions.
"""

import tempfile
import time
from pathlib import Path
from typing import Any

import psycopg

from loader.load import Loader, Tally
from loader.postgres.copy import Rows, copy_rows, encode
from loader.postgres.embedded import Embedded
from loader.postgres.tables import copy_statement
from loader.stop import Stop
from recorder.runtime import logging
from recorder.runtime.data_dir import DataDir
from recorder.segments.layout import sealed_files
from recorder.segments.reader import read_segment
from recorder.segments.schemas import SCHEMAS, rows_to_batch
from recorder.segments.tape import Tape
from tests.bench.write import STREAM, make_rows

SEGMENTS = 40
SEGMENT_ROWS = 25_000  # a minute of 50 busy options, or half a minute of a whole chain
FLUSH_ROWS = 500
ROUNDS = 3
TABLES = "loaded_segments, eth_option_quotes"


def run(share: float) -> dict[str, Any]:
    """Return the best of three rounds of each, measured in turn, and their ratio."""
    logging.configure(level="ERROR", form="json")
    with tempfile.TemporaryDirectory() as folder:
        data_dir = DataDir(Path(folder) / "tape")
        rows = _make_tape(data_dir, max(int(SEGMENTS * share), 4))
        server = Embedded(Path(folder) / "postgres")
        try:
            with psycopg.connect(server.ensure_running(Stop()), autocommit=True) as connection:
                _load(connection, data_dir)  # makes the tables, and warms both sides
                ready = [encode(read_segment(path).table, 1) for path in sealed_files(data_dir, STREAM)]
                ours, reference = [], []
                for _ in range(ROUNDS):
                    reference.append(rows / _emptied(connection, lambda: _send(connection, ready)))
                    ours.append(rows / _emptied(connection, lambda: _load(connection, data_dir)))
        finally:
            server.close()
    return {
        "reference": "the same segments' bytes, encoded beforehand, one COPY and transaction each",
        "rows": rows,
        "segments": len(ready),
        "reference_rows_per_s": round(max(reference)),
        "loader_rows_per_s": round(max(ours)),
        "ratio": round(max(ours) / max(reference), 3),
        "goal": 0.8,
    }


def _make_tape(data_dir: DataDir, segments: int) -> int:
    tape = Tape(data_dir, recorder="bench", software="bench", segment_max_age_s=1e9, segment_max_bytes=1 << 40)
    rows = make_rows(segments * SEGMENT_ROWS)
    for at in range(0, len(rows), FLUSH_ROWS):
        batch = rows_to_batch(SCHEMAS["quotes"], rows[at : at + FLUSH_ROWS])
        tape.write_round({STREAM: [batch]}, now_us=rows[at][2])
        if (at + FLUSH_ROWS) % SEGMENT_ROWS == 0:
            tape.seal_all()
    return len(rows)


def _load(connection: psycopg.Connection[Any], data_dir: DataDir) -> float:
    begun_s = time.perf_counter()
    Loader(connection, data_dir, stop=Stop(), tally=Tally()).load_new()
    return time.perf_counter() - begun_s


def _send(connection: psycopg.Connection[Any], ready: list[Rows]) -> float:
    begun_s = time.perf_counter()
    for rows in ready:
        with connection.transaction():
            copy_rows(connection, copy_statement(STREAM), rows, lambda: None)
    return time.perf_counter() - begun_s


def _emptied(connection: psycopg.Connection[Any], call: Any) -> float:
    connection.execute(f"TRUNCATE {TABLES}")
    connection.execute("CHECKPOINT")  # each round pays for its own writes only
    return float(call())
