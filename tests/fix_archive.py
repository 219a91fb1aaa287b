"""Tapes to archive, and what the tests of archive and prune ask of them."""

import uuid
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from loader.archive.archiver import Archiver, Tally
from loader.archive.plan import Choice
from loader.archive.read import Archive
from loader.archive.store import FolderStore, Store
from recorder.runtime.data_dir import DataDir
from recorder.segments.encode import Identity, encode_segment
from recorder.segments.layout import SegmentName, sealed_files, us_to_datetime
from recorder.segments.manifest import Manifest
from recorder.segments.reader import read_segment
from recorder.segments.schemas import SCHEMAS, stream_kind
from tests.fix_postgres import START_US

QUOTES = "eth_option_quotes"
DAY_US = 86_400_000_000
DAY = "2026-05-28"  # of START_US
LATER = datetime(2026, 11, 23, 12, tzinfo=UTC)  # when the tests archive, unless they say otherwise
ALL = Choice()
Row = tuple[Any, ...]


def nothing() -> None:
    """Ask for no stop."""


def store_of(root: Path) -> FolderStore:
    return FolderStore(DataDir(root).archive)


def archiver(
    root: Path,
    *,
    store: Store | None = None,
    now: datetime = LATER,
    compression: str = "zstd",
    most_rows: int = 10**6,
    check: Callable[[], None] = nothing,
) -> Archiver:
    return Archiver(
        DataDir(root), store or store_of(root), compression=compression, check=check, now=lambda: now,
        most_rows=most_rows,
    )  # fmt: skip


def archive(root: Path, choice: Choice = ALL, **options: Any) -> Tally:
    """Archive a tape in this process."""
    return archiver(root, **options).run(choice)


def manifests(root: Path, stream: str | None = None) -> list[Manifest]:
    return Archive(store_of(root)).manifests(stream)


def parts(root: Path) -> list[Path]:
    return sorted(DataDir(root).archive.rglob("*.parquet"))


def tape_rows(root: Path, stream: str, *, instrument: str = "") -> list[Row]:
    """Return the rows of a stream's segments, each with its segment_id at its end, in the order of an archive."""
    found = []
    for path in sealed_files(DataDir(root), stream):
        checked = read_segment(path)
        assert checked.identity is not None
        table = checked.table
        if instrument:
            table = table.filter(pc.equal(table["instrument"], instrument))
        found += [(*row.values(), checked.identity.segment_id) for row in table.to_pylist()]
    return sorted(found, key=lambda row: ((row[1] or "").encode(), row[0]))


def archived_rows(archive: Archive, stream: str) -> list[Row]:
    """Return the rows of a stream's parts, part by part."""
    return [
        tuple(row.values()) for manifest in archive.manifests(stream) for row in archive.rows(manifest).to_pylist()
    ]


def strays(root: Path) -> list[str]:
    """Return what lies in the archive's folder and is neither a part that a manifest names, nor a manifest."""
    folder = DataDir(root).archive
    named = {name for manifest in manifests(root) for name in (manifest.part_name, manifest.name)}
    return sorted({str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} - named - {"lock"})


def flip_a_bit(path: Path) -> None:
    """Damage a file in its middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)


def salvage_of(file: Path, target: Path) -> Path:
    """Write what a repair would have kept of a segment: the first half of its rows."""
    checked = read_segment(file)
    assert checked.identity is not None
    identity = replace(checked.identity, segment_id=str(uuid.uuid4()), salvages=checked.identity.segment_id)
    batch = checked.groups[0].batch
    target.write_bytes(encode_segment(checked.schema, identity, [batch.slice(0, batch.num_rows // 2)]))
    return target


def big_tape(root: Path, rows: int, segments: int) -> None:
    """Write segments of quotes that hardly compress: numbers with random bits."""
    schema = SCHEMAS[stream_kind(QUOTES) or ""]
    rng = np.random.default_rng(7)
    each = rows // segments
    for number in range(segments):
        start_us = START_US + number * each
        times = pa.array(np.arange(start_us, start_us + each)).cast(schema[0].type)
        columns = [times, pa.array([f"ETH-{n % 50}" for n in range(each)]), times]
        columns += [
            pa.array(rng.random(each)) if pa.types.is_floating(one.type) else pa.array(np.arange(each))
            for one in list(schema)[3:]
        ]
        name = SegmentName(start_us, "big", number + 1)
        identity = Identity(
            segment_id=str(uuid.UUID(int=number + 1)), previous=str(uuid.UUID(int=number)) if number else "",
            stream=QUOTES, recorder="big", started_at=us_to_datetime(start_us).isoformat(), software="test/1",
        )  # fmt: skip
        path = root / QUOTES / f"date={name.date}" / f"{name}.arrow"
        path.parent.mkdir(parents=True, exist_ok=True)
        batch = pa.RecordBatch.from_arrays(columns, schema=schema)
        path.write_bytes(encode_segment(schema, identity, [batch]))


def hours(number: float) -> timedelta:
    return timedelta(hours=number)
