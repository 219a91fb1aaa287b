"""One segment while it is written: created, flushed, sealed, each step durable before the next counts."""

import contextlib
import os
import time
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from recorder.runtime import disk
from recorder.runtime.data_dir import DataDir
from recorder.segments.check import check
from recorder.segments.encode import Encoder, Identity
from recorder.segments.layout import SegmentName, live_path, sealed_path


class SegmentSpoilt(OSError):
    """A sealed file did not read back as it was written; it is not to be trusted or written again."""


@dataclass(frozen=True)
class Flush:
    """What one durable flush cost."""

    rows: int
    size_bytes: int
    fsync_s: float


class SegmentWriter:
    """A live segment.

    After any OSError from a method here the file is never written again: pyarrow's state and the kernel's may
    both have forgotten what failed (five later flushes were acknowledged and unreadable when that was tried).
    The caller leaves it to `recovery.finish_live`.
    """

    def __init__(
        self,
        data_dir: DataDir,
        name: SegmentName,
        identity: Identity,
        schema: pa.Schema,
        *,
        compression: str | None = "zstd",
    ) -> None:
        """Create the file: magic and schema, fsync of the file and of each directory a name was made in.

        Raises:
            OSError: nothing counts as recorded; what lies there is for recovery.
        """
        self.name = name
        self.identity = identity
        self.path = live_path(data_dir, identity.stream, name)
        self.rows = 0
        self.created_monotonic_s = time.monotonic()
        self._data_dir = data_dir
        self._encoder = Encoder(schema, identity, compression=compression)
        disk.make_dir(self.path.parent)
        self._fd = disk.create(self.path)
        try:
            header = self._encoder.header()
            disk.write(self._fd, header)
            disk.fsync(self._fd)
            disk.fsync_dir(self.path.parent)
        except OSError:
            self.abandon()
            raise
        self.size_bytes = len(header)

    @property
    def age_s(self) -> float:
        """Seconds since the file was created."""
        return time.monotonic() - self.created_monotonic_s

    def flush(self, batch: pa.RecordBatch) -> Flush:
        """Append rows and their commit in one write, and fsync. When it returns the rows are durable.

        Raises:
            OSError: the rows are not recorded, and the file is given up.
        """
        data = self._encoder.group(batch)
        begun_s = time.perf_counter()
        try:
            disk.write(self._fd, data)
            disk.fsync(self._fd)
        except OSError:
            self.abandon()
            raise
        self.rows += batch.num_rows
        self.size_bytes += len(data)
        return Flush(batch.num_rows, len(data), time.perf_counter() - begun_s)

    def seal(self) -> Path:
        """Finish the file with its footer, verify it by reading it back, and move it among the sealed ones.

        Raises:
            OSError: the committed rows are safe in the live file; the file is given up.
        """
        target = sealed_path(self._data_dir, self.identity.stream, self.name)
        try:
            disk.write(self._fd, self._encoder.end())
            checked = check(self.path.read_bytes())
            if not checked.sealed or checked.rows != self.rows:
                raise SegmentSpoilt(f"{self.path} does not read back as written: {checked.damage or checked.rows}")
            disk.fsync(self._fd)
        except OSError:
            self.abandon()
            raise
        self.abandon()
        disk.make_dir(target.parent)
        disk.rename(self.path, target)
        return target

    def abandon(self) -> None:
        """Close the descriptor and leave the file as it is."""
        if self._fd >= 0:
            with contextlib.suppress(OSError):  # what close could still report was fsynced before or given up
                os.close(self._fd)
            self._fd = -1
