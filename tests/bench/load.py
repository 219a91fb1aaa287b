"""Rows per second loaded, beside what the server takes when there is nothing else to do, and beside INSERTs.

On the embedded PostgreSQL always; on TimescaleDB where TICKTAPE_TIMESCALE_DSN names one.
"""

import os
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pyarrow as pa
from psycopg import sql

from loader.load import Loader, Tally
from loader.postgres.copy import Rows, copy_rows, encode, numbered
from loader.postgres.embedded import Embedded
from loader.postgres.tables import columns, copy_statement
from loader.prepare import by_instrument
from loader.sender import Target
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
CHAIN = 800  # options of a whole chain
CHAIN_SEGMENT_ROWS = 60_000  # a minute of them, flushed each second
INSERT_ROWS = 10_000  # a transaction, as collectors do that insert
ROUNDS = 3
TABLES = f"loaded_segments, {STREAM}"

Connection = psycopg.Connection[Any]


def run(share: float) -> dict[str, Any]:
    """Return the best of three rounds of each, measured in turn, and their ratios."""
    logging.configure(level="ERROR", form="json")
    with tempfile.TemporaryDirectory() as folder:
        results = {"plain": _plain(Path(folder), share)}
        if dsn := os.environ.get("TICKTAPE_TIMESCALE_DSN"):
            with _database(dsn) as url:
                results["timescale"] = _timescale(Path(folder), url, share)
        else:
            results["timescale"] = {"skipped": "TICKTAPE_TIMESCALE_DSN names no server"}
        return results


def _plain(folder: Path, share: float) -> dict[str, Any]:
    data_dir = DataDir(folder / "tape")
    rows = _make_tape(data_dir, max(int(SEGMENTS * share), 4), SEGMENT_ROWS, instruments=50)
    server = Embedded(folder / "postgres")
    try:
        url = server.ensure_running(Stop())
        with psycopg.connect(url, autocommit=True) as connection:
            _load(url, data_dir, connections=1)  # makes the tables, and warms both sides
            ready = _encoded(data_dir)
            tables = _tables(data_dir)
            one, two, copied = [], [], []
            for _ in range(ROUNDS):
                copied.append(_emptied(connection, lambda: _send(connection, ready)))
                one.append(_emptied(connection, lambda: _load(url, data_dir, connections=1)))
                two.append(_emptied(connection, lambda: _load(url, data_dir, connections=2)))
            inserted_rows = min(rows, 10 * INSERT_ROWS)
            connection.execute(f"CREATE UNIQUE INDEX once ON {STREAM} (instrument, change_id)")
            inserted = _emptied(connection, lambda: _insert(connection, tables, inserted_rows))
    finally:
        server.close()
    copy_speed, insert_speed = rows / min(copied), inserted_rows / inserted
    return {
        "reference": "the same segments' bytes, encoded beforehand, one COPY and transaction each",
        "rows": rows,
        "segments": len(ready),
        "reference_rows_per_s": round(copy_speed),
        "loader_rows_per_s": round(rows / min(two)),
        "ratio": round(rows / min(two) / copy_speed, 3),
        "goal": 0.85,
        "ratio_over_one_connection": round(rows / min(one) / copy_speed, 3),
        "insert_reference": f"INSERT … ON CONFLICT DO NOTHING, {INSERT_ROWS} rows a transaction, a unique index",
        "insert_rows_per_s": round(insert_speed),
        "ratio_to_insert": round(rows / min(two) / insert_speed, 2),
        "goal_to_insert": 3.0,
    }


def _timescale(folder: Path, url: str, share: float) -> dict[str, Any]:
    """A backlog of a whole chain, directly into the columnstore, beside COPY into rows with the table's index."""
    data_dir = DataDir(folder / "chain")
    segments = max(int(SEGMENTS * share), 4)
    rows = _make_tape(data_dir, segments, CHAIN_SEGMENT_ROWS, instruments=CHAIN, flush_rows=CHAIN_SEGMENT_ROWS // 60)
    with psycopg.connect(url, autocommit=True) as connection:
        _load(url, data_dir, connections=1, compress=False)
        connection.execute(f"CALL remove_columnstore_policy('{STREAM}')")  # it would take its turn in between
        ready = _encoded(data_dir)
        seconds: dict[str, list[float]] = {"copy": [], "rows": [], "one": [], "two": []}
        size: dict[str, int] = {}
        for _ in range(ROUNDS):
            seconds["copy"].append(_emptied(connection, lambda: _send(connection, ready)))
            size["rows"] = _size_bytes(connection)
            seconds["rows"].append(_emptied(connection, lambda: _load(url, data_dir, connections=2, compress=False)))
            seconds["one"].append(_emptied(connection, lambda: _load(url, data_dir, connections=1)))
            seconds["two"].append(_emptied(connection, lambda: _load(url, data_dir, connections=2)))
            size["fresh"] = _size_bytes(connection)
        connection.execute(
            f"SELECT compress_chunk(chunk) FROM show_chunks('{STREAM}') AS chunk"
        )  # as the policy does
        connection.execute(f"VACUUM {STREAM}")
        size["ordered"] = _size_bytes(connection)
    best = {name: rows / min(found) for name, found in seconds.items()}
    return {
        "reference": "the same segments' bytes, encoded beforehand, one COPY each into rows with the table's index",
        "rows": rows,
        "segments": len(ready),
        "options": CHAIN,
        "reference_rows_per_s": round(best["copy"]),
        "loader_rows_per_s": round(best["two"]),
        "ratio": round(best["two"] / best["copy"], 3),
        "goal": 1.3,
        "ratio_over_one_connection": round(best["one"] / best["copy"], 3),
        "ratio_to_the_loader_into_rows": round(best["two"] / best["rows"], 3),
        "bytes_per_row_of_reference": round(size["rows"] / rows, 1),
        "bytes_per_row_fresh": round(size["fresh"] / rows, 1),
        "bytes_per_row": round(size["ordered"] / rows, 1),
        "disk_ratio": round(size["ordered"] / size["rows"], 3),
        "disk_goal": 0.35,
    }


def _make_tape(
    data_dir: DataDir, segments: int, segment_rows: int, *, instruments: int, flush_rows: int = FLUSH_ROWS
) -> int:
    tape = Tape(data_dir, recorder="bench", software="bench", segment_max_age_s=1e9, segment_max_bytes=1 << 40)
    rows = make_rows(segments * segment_rows, instruments=instruments)
    for at in range(0, len(rows), flush_rows):
        batch = rows_to_batch(SCHEMAS["quotes"], rows[at : at + flush_rows])
        tape.write_round({STREAM: [batch]}, now_us=rows[at][2])
        if (at + flush_rows) % segment_rows == 0:
            tape.seal_all()
    return len(rows)


def _tables(data_dir: DataDir) -> Iterator[pa.Table]:
    for path in sealed_files(data_dir, STREAM):
        yield by_instrument(numbered(read_segment(path).table, 1))


def _encoded(data_dir: DataDir) -> list[Rows]:
    return [encode(table) for table in _tables(data_dir)]


def _load(url: str, data_dir: DataDir, *, connections: int, compress: bool = True) -> float:
    begun_s = time.perf_counter()
    with psycopg.connect(url, autocommit=True) as connection:
        target = Target(connections=connections, direct_compress=compress)
        lines = (lambda: psycopg.connect(url, autocommit=True)) if connections > 1 else None
        Loader(connection, data_dir, stop=Stop(), tally=Tally(), connect=lines, target=target).load_new()
    return time.perf_counter() - begun_s


def _send(connection: Connection, ready: list[Rows]) -> float:
    begun_s = time.perf_counter()
    for rows in ready:
        with connection.transaction():
            copy_rows(connection, copy_statement(STREAM), rows, lambda: None)
    return time.perf_counter() - begun_s


def _insert(connection: Connection, tables: Iterator[pa.Table], count: int) -> float:
    names = list(columns(STREAM))
    statement = sql.SQL("INSERT INTO {} ({}) VALUES ({}) ON CONFLICT DO NOTHING").format(
        sql.Identifier(STREAM),
        sql.SQL(", ").join(map(sql.Identifier, names)),
        sql.SQL(", ").join(sql.Placeholder() * len(names)),
    )
    rows = [tuple(row.values()) for table in tables for row in table.to_pylist()][:count]
    begun_s = time.perf_counter()
    with connection.cursor() as cursor:
        for at in range(0, count, INSERT_ROWS):
            with connection.transaction():
                cursor.executemany(statement, rows[at : at + INSERT_ROWS])
    return time.perf_counter() - begun_s


def _emptied(connection: Connection, call: Callable[[], float]) -> float:
    connection.execute(f"TRUNCATE {TABLES}")
    connection.execute("CHECKPOINT")  # each round pays for its own writes only
    return call()


def _size_bytes(connection: Connection) -> int:
    row = connection.execute(f"SELECT hypertable_size('{STREAM}')").fetchone()
    return int(row[0]) if row else 0


@contextmanager
def _database(server: str) -> Iterator[str]:
    """Yield the URL of a database of its own on a given server."""
    name = sql.Identifier(f"bench_{uuid.uuid4().hex[:12]}")
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(name))
        try:
            yield urlsplit(server)._replace(path=f"/{name.as_string().strip(chr(34))}").geturl()
        finally:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(name))
