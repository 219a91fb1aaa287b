"""A day of 50 million quotes, asked three questions: from sealed segments, from the archive, and by DuckDB alone.

The reference is plain DuckDB over the same rows in Parquet: of the archive the archive's own files, which are sorted;
of segments one file of the rows in the order in which they came, as a recorder would write it. Each question is asked
several times of all in turn, a short one more often; a row has the best time of each, in seconds, and the ratios of
those. Tapes are opened beforehand, since that takes as long whatever is asked. The first question of a connection,
which looks into each segment for what it is, is held against the first of a connection of DuckDB.
"""

import os
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

import analysis
from analysis.tables import connect
from recorder.runtime.data_dir import DataDir
from recorder.segments.encode import Identity, encode_segment
from recorder.segments.layout import SegmentName, sealed_path, us_to_datetime
from recorder.segments.schemas import SCHEMAS

STREAM = "eth_option_quotes"
INSTRUMENTS = 800
SEGMENTS = 1_440  # of a minute each: a day
FLUSHES = 60
ROWS = 50_000_000
ROUNDS = 3  # at least
ROUNDS_S = 5.0  # until so long was asked, since a short question is no longer than what disturbs it
DAY_US = 1_793_491_200_000_000  # 2026-11-01, UTC
MINUTE_US = 60_000_000
GOALS = {"archive": 1.2, "segments": 8.0}  # times their reference
NAMES = [f"ETH-27NOV26-{1000 + 5 * number}-C" for number in range(INSTRUMENTS)]
QUESTIONS = {
    "count": "SELECT count(*) FROM {quotes}",
    "last_price": """
        SELECT instrument, max(received_at) AS at, max_by(bid_price, received_at) AS bid
        FROM {quotes} GROUP BY instrument ORDER BY instrument
    """,
    "bars": f"""
        SELECT date_trunc('minute', "timestamp") AS minute, min_by(bid_price, "timestamp") AS open,
            max(bid_price) AS high, min(bid_price) AS low, max_by(bid_price, "timestamp") AS close, count(*) AS quotes
        FROM {{quotes}} WHERE instrument = '{NAMES[7]}' GROUP BY minute ORDER BY minute
    """,
}  # fmt: skip


def run(share: float) -> dict[str, Any]:
    """Return seconds and ratios of each question."""
    segments = max(int(SEGMENTS * share), 60)
    with tempfile.TemporaryDirectory() as folder:
        root, empty = Path(folder) / "tape", Path(folder) / "nothing"
        empty.mkdir()
        make_day(DataDir(root), segments, ROWS // SEGMENTS)
        subprocess.run(
            [sys.executable, "-m", "loader", "archive", "--data-dir", str(root)],
            check=True, stdout=subprocess.DEVNULL, env={**os.environ, "LOG_LEVEL": "ERROR"},
        )  # fmt: skip
        opened_s, archived = _opened(root, None)
        in_order = Path(folder) / "in-order.parquet"
        with analysis.open(root, archive=empty) as tape:
            tape.sql(f"FROM {STREAM}").write_parquet(str(in_order), compression="zstd")
        segments_opened_s, tape = _opened(root, empty)
        results: dict[str, Any] = {
            "rows": segments * (ROWS // SEGMENTS),
            "segments": segments,
            "reference": "plain DuckDB over the same rows in Parquet: sorted as the archive is, and in their order",
            "goals": GOALS,
            "opened_s": {"archive": round(opened_s, 3), "segments": round(segments_opened_s, 3)},
        }
        plain = connect()
        for name, question in QUESTIONS.items():
            of_sorted = question.format(quotes=f"read_parquet('{root}/archive/{STREAM}/*/*.parquet')")
            of_in_order = question.format(quotes=f"read_parquet('{in_order}')")
            of_stream = question.format(quotes=STREAM)
            results[name] = _in_turn(
                {
                    "sorted": partial(_ask, plain, of_sorted),
                    "archive": partial(_ask, archived, of_stream),
                    "in_order": partial(_ask, plain, of_in_order),
                    "segments": partial(_ask, tape, of_stream),
                    "in_order_first": partial(_ask_first, connect, of_in_order),
                    "segments_first": partial(_ask_first, partial(analysis.open, root, archive=empty), of_stream),
                }
            )
        return results


def make_day(data_dir: DataDir, segments: int, rows: int) -> None:
    """Write sealed segments of a minute, of 60 flushes each: quotes of options of which some are far busier."""
    chance = np.random.default_rng(5)
    names = pa.array(NAMES)
    share = 1 / np.arange(1, INSTRUMENTS + 1) ** 0.7
    share /= share.sum()
    previous, change_id = "", 140_000_000_000
    newest = np.full(INSTRUMENTS, change_id)  # change_id of each option
    for number in range(segments):
        start_us = DAY_US + number * MINUTE_US
        received_us = start_us + np.sort(chance.integers(0, MINUTE_US, rows))
        made_us = received_us - chance.integers(2_000, 40_000, rows)
        bid = chance.integers(10, 4000, rows) * 0.0005
        option = chance.choice(INSTRUMENTS, rows, p=share)
        change_ids = change_id + np.arange(rows) + 1
        columns = {
            "timestamp": pa.array(made_us // 1000 * 1000, pa.int64()).cast(SCHEMAS["quotes"].field("timestamp").type),
            "instrument": names.take(pa.array(option)),
            "received_at": pa.array(received_us, pa.int64()).cast(SCHEMAS["quotes"].field("received_at").type),
            "bid_price": pa.array(bid),
            "bid_size": pa.array(chance.integers(1, 500, rows).astype(float)),
            "ask_price": pa.array(bid + chance.integers(1, 20, rows) * 0.0005),
            "ask_size": pa.array(chance.integers(1, 500, rows).astype(float)),
            "underlying_price": pa.array(np.round(2700 + chance.normal(0, 3, rows).cumsum() / 50, 4)),
            "mark_price": pa.array(np.round(bid + 0.001, 4)),
            "change_id": pa.array(change_ids),
            "prev_change_id": pa.array(_before(option, change_ids, newest)),
        }
        change_id += rows
        table = pa.table(columns, schema=SCHEMAS["quotes"])
        name = SegmentName(start_us=int(received_us[0]), recorder="bench", seq=number + 1)
        identity = Identity(
            segment_id=str(uuid.UUID(int=number + 1)), previous=previous, stream=STREAM, recorder="bench",
            started_at=us_to_datetime(name.start_us).isoformat(), software="bench",
        )  # fmt: skip
        previous = identity.segment_id
        flushes = [part.combine_chunks().to_batches()[0] for part in _cut(table, FLUSHES)]
        path = sealed_path(data_dir, STREAM, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_segment(SCHEMAS["quotes"], identity, flushes))


def _before(option: np.ndarray, change_ids: np.ndarray, newest: np.ndarray) -> np.ndarray:
    """Return the change before each row, of the same option, and keep the newest of each."""
    order = np.argsort(option, kind="stable")
    of, ids = option[order], change_ids[order]
    before = np.empty_like(ids)
    before[1:] = ids[:-1]
    first = np.r_[True, of[1:] != of[:-1]]
    before[first] = newest[of[first]]
    last = np.r_[first[1:], True]
    newest[of[last]] = ids[last]
    found = np.empty_like(before)
    found[order] = before
    return found


def _cut(table: pa.Table, parts: int) -> Iterator[pa.Table]:
    edges = [table.num_rows * part // parts for part in range(parts + 1)]
    yield from (table.slice(begin, end - begin) for begin, end in pairwise(edges))


def _in_turn(ask: Mapping[str, Callable[[], tuple[float, list[Any]]]]) -> dict[str, float]:
    best = dict.fromkeys(ask, float("inf"))
    rounds, begun_s = 0, time.perf_counter()
    while rounds < ROUNDS or time.perf_counter() - begun_s < ROUNDS_S:
        answers = []
        for name, call in ask.items():
            seconds, answer = call()
            best[name] = min(best[name], seconds)
            answers.append(answer)
        assert all(answer == answers[0] for answer in answers)
        rounds += 1
    return {
        "rounds": rounds,
        **{f"{name}_s": round(seconds, 3) for name, seconds in best.items()},
        "archive_ratio": round(best["archive"] / best["sorted"], 2),
        "segments_ratio": round(best["segments"] / best["in_order"], 2),
        "segments_first_ratio": round(best["segments_first"] / best["in_order_first"], 2),
    }


def _opened(root: Path, archive: Path | None) -> tuple[float, duckdb.DuckDBPyConnection]:
    begun_s = time.perf_counter()
    connection = analysis.open(root, archive=archive)
    return time.perf_counter() - begun_s, connection


def _ask(connection: duckdb.DuckDBPyConnection, question: str) -> tuple[float, list[Any]]:
    begun_s = time.perf_counter()
    answer = connection.sql(question).fetchall()
    return time.perf_counter() - begun_s, answer


def _ask_first(connect: Callable[[], duckdb.DuckDBPyConnection], question: str) -> tuple[float, list[Any]]:
    with connect() as connection:
        return _ask(connection, question)
