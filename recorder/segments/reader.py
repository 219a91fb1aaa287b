"""Reads segments back: one file whole, its identity alone, or a stream as it is at this moment."""

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from recorder.runtime.data_dir import DataDir
from recorder.segments.check import Checked, check
from recorder.segments.encode import MAGIC, Identity
from recorder.segments.layout import LIVE_SUFFIX, live_files, sealed_files

# A schema message of ours is 2 to 4 KB; metadata could grow, but not a hundredfold.
_SCHEMA_READ_BYTES = 256 * 1024


def read_segment(path: Path) -> Checked:
    """Read and check one segment file, sealed or live.

    Raises:
        OSError: the file cannot be read (FileNotFoundError: it was sealed or pruned meanwhile).
    """
    return check(path.read_bytes())


def read_identity(path: Path) -> Identity | None:
    """Read who a segment is from its first bytes alone, unchecked; None if it is no segment of a known version.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        return check(_head(file.read(_SCHEMA_READ_BYTES))).identity


@dataclass(frozen=True)
class StreamSnapshot:
    """A stream as of one moment: sealed files to scan, and the live rows, already read and checked.

    No row is in both: a segment that was sealed between the two looks counts where it went last.
    """

    stream: str
    sealed: tuple[Path, ...]
    live: pa.Table | None  # None if the stream has no live segment


def snapshot(data_dir: DataDir, stream: str) -> StreamSnapshot:
    """Look at a stream while its recorder runs.

    Live files first, then the list of sealed ones: in the reverse order a segment that is sealed in between
    would be in neither.

    Raises:
        OSError: a file cannot be read for another reason than having moved.
    """
    live: dict[str, pa.Table] = {}
    for path in live_files(data_dir, stream):
        try:
            checked = read_segment(path)
        except FileNotFoundError:
            continue  # sealed since it was listed: the list of sealed ones, made below, has it
        if checked.schema is not None:
            live[path.name.removesuffix(LIVE_SUFFIX)] = checked.table
    sealed = sealed_files(data_dir, stream)
    for path in sealed:
        live.pop(path.stem, None)
    table = pa.concat_tables([t.replace_schema_metadata(None) for t in live.values()]) if live else None
    return StreamSnapshot(stream, tuple(sealed), table)


def _head(data: bytes) -> bytes:
    """Cut a file's first bytes after its schema message, so that checking them reads nothing else."""
    if len(data) < len(MAGIC) + 8:
        return data
    length = int.from_bytes(data[len(MAGIC) + 4 : len(MAGIC) + 8], "little", signed=True)
    return data[: len(MAGIC) + 8 + max(length, 0)]
