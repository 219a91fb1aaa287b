"""Reads a Parquet archive back, beside a tape or in an S3 store: only parts that a manifest names exist."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
from pyarrow import fs

from recorder.runtime.data_dir import DataDir
from recorder.segments.manifest import MANIFEST_SUFFIX, MANIFESTS, BadManifest, Manifest, decode
from recorder.segments.messages import ARROW_ERRORS

SEGMENT = "segment"  # the last column of a part: the segment_id


class Damaged(NamedTuple):
    """Something of an archive that cannot be believed."""

    path: str
    why: str


class Archived:
    """An archive as it is whenever it is asked. Nothing is written."""

    def __init__(self, filesystem: Any, root: str) -> None:
        """Take a pyarrow file system, and the archive's folder in it."""
        self.filesystem = filesystem
        self.root = root

    @property
    def is_local(self) -> bool:
        """Whether it lies in a folder, and not in a bucket."""
        return isinstance(self.filesystem, fs.LocalFileSystem)

    def streams(self) -> list[str]:
        """List the streams that something is archived of."""
        return sorted(
            one.base_name for one in self._list(MANIFESTS, recursive=False) if one.type == fs.FileType.Directory
        )

    def manifests(self, stream: str) -> Iterator[Manifest | Damaged]:
        """Yield the manifests of a stream's parts in the order of their names, and those that are damaged.

        Raises:
            OSError: the archive cannot be listed.
        """
        for one in sorted(self._list(f"{MANIFESTS}/{stream}", recursive=True), key=lambda one: str(one.path)):
            if not one.path.endswith(MANIFEST_SUFFIX):
                continue
            try:
                with self.filesystem.open_input_stream(one.path) as file:
                    yield decode(file.read())
            except (OSError, BadManifest) as exc:
                yield Damaged(one.path, str(exc))

    def part(self, manifest: Manifest) -> str:
        """Return where a part lies, in the file system."""
        return f"{self.root}/{manifest.part_name}"

    def rows(self, manifest: Manifest) -> pa.Table | Damaged:
        """Return a part's rows, the segment_id as the last column, once its bytes were found to be right."""
        import pyarrow.parquet as pq  # noqa: PLC0415 - heavy, and seldom needed

        path = self.part(manifest)
        try:
            with self.filesystem.open_input_stream(path) as file:
                data = file.read()
            if hashlib.sha256(data).hexdigest() != manifest.sha256:
                return Damaged(path, "its checksum is not that of what was written")
            return pq.read_table(pa.BufferReader(data))
        except ARROW_ERRORS as exc:
            return Damaged(path, str(exc))

    def _list(self, folder: str, *, recursive: bool) -> list[Any]:
        found: list[Any] = self.filesystem.get_file_info(
            fs.FileSelector(f"{self.root}/{folder}", allow_not_found=True, recursive=recursive)
        )
        return found


def beside(data_dir: DataDir) -> Archived:
    """Return the archive in a tape's own folder."""
    return folder(data_dir.archive)


def folder(path: Path) -> Archived:
    """Return the archive in a local folder."""
    return Archived(fs.LocalFileSystem(), str(path.absolute()))


def at(url: str) -> Archived:
    """Return the archive at an `s3://bucket/prefix`, with the credentials of the AWS_* environment.

    Raises:
        OSError, pa.ArrowException: it is no such URL, or the store cannot be reached.
    """
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    # Else it asks for checksums by headers that B2 refuses.
    for name in ("AWS_REQUEST_CHECKSUM_CALCULATION", "AWS_RESPONSE_CHECKSUM_VALIDATION"):
        os.environ.setdefault(name, "when_required")
    # pyarrow reads the other names by itself; a store that is not Amazon's has none there for its address.
    store = fs.S3FileSystem(endpoint_override=os.environ.get("AWS_ENDPOINT"), region=os.environ.get("AWS_REGION"))
    return Archived(store, f"{bucket}/{prefix}".rstrip("/"))
