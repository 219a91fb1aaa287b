"""Reads the Parquet archive beside a tape back, where segments were pruned: only parts that a manifest names."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from recorder.runtime.data_dir import DataDir
from recorder.segments.manifest import MANIFEST_SUFFIX, MANIFESTS, BadManifest, Manifest, decode
from recorder.segments.messages import ARROW_ERRORS

SEGMENT = "segment"  # the last column of a part: the segment_id


def manifests(data_dir: DataDir, stream: str) -> Iterator[Manifest | Path]:
    """Yield the manifests of a stream's parts in the order of their names; the path of one that is damaged."""
    for path in sorted((data_dir.archive / MANIFESTS / stream).glob(f"date=*/*{MANIFEST_SUFFIX}")):
        try:
            yield decode(path.read_bytes())
        except (OSError, BadManifest):
            yield path


def rows_of(data_dir: DataDir, manifest: Manifest) -> pa.Table | None:
    """Return a part's rows, the segment_id as the last column; None if it is not what its manifest says."""
    import pyarrow.parquet as pq  # noqa: PLC0415 - heavy, and seldom needed

    try:
        data = (data_dir.archive / manifest.part_name).read_bytes()
        if hashlib.sha256(data).hexdigest() != manifest.sha256:
            return None
        return pq.read_table(pa.BufferReader(data))
    except (OSError, *ARROW_ERRORS):
        return None
