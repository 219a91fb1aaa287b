"""The reading side of an archive: what is in it, told by manifests alone, and the rows of a part, verified.

Parquet that no manifest names does not exist.
"""

from collections.abc import Callable, Iterator
from datetime import datetime

import pyarrow as pa

from loader.archive.part import compare_bytes, read_part
from loader.archive.store import FolderStore, Store, open_store
from loader.errors import ArchiveDamaged
from loader.settings import LoaderSettings
from recorder.segments.manifest import MANIFEST_SUFFIX, MANIFESTS, BadManifest, Manifest, decode
from recorder.segments.schemas import stream_kind


def _nothing() -> None:
    return


class Archive:
    """An archive as of the moment it is asked. One thread at a time may use it."""

    def __init__(self, store: Store, check: Callable[[], None] = _nothing) -> None:
        """Take where it lies.

        Args:
            store: where.
            check: called now and then while a part is read; what it raises ends that.
        """
        self.store = store
        self.shown = store.shown
        self.is_local = isinstance(store, FolderStore)
        # Manifests that the newest listing could not believe, and why. What they name is as good as not archived.
        self.damaged: dict[str, str] = {}
        self._check = check

    def manifests(self, stream: str | None = None, date: str | None = None) -> list[Manifest]:
        """Return the manifests that `walk` yields.

        Raises:
            ArchiveAway: it cannot be listed or read.
        """
        return list(self.walk(stream, date))

    def walk(self, stream: str | None = None, date: str | None = None) -> Iterator[Manifest]:
        """Yield the manifests of all streams, of one, or of one UTC day of one (`YYYY-MM-DD`).

        They come by stream, then by date, then by when their first segment starts. Those that are damaged are named
        in `damaged`, and left out. Those of a year are too many to be held.

        Raises:
            ArchiveAway: it cannot be listed or read.
        """
        folder = "/".join([MANIFESTS, *([stream] if stream else []), *([f"date={date}"] if stream and date else [])])
        self.damaged = {}
        for name in sorted(self.store.names(folder)):
            self._check()
            if not name.endswith(MANIFEST_SUFFIX):
                continue
            try:
                manifest = decode(self.store.read(name))
            except FileNotFoundError:
                continue  # removed by hand since it was listed
            except BadManifest as exc:
                self.damaged[name] = str(exc)
                continue
            if manifest.name != name or stream_kind(manifest.stream) is None:
                self.damaged[name] = "it is the manifest of another part"
            else:
                yield manifest

    def is_empty(self) -> bool:
        """Whether there is no manifest at all.

        Raises:
            ArchiveAway: it cannot be listed.
        """
        return not self.store.names(MANIFESTS)

    def rows(self, manifest: Manifest) -> pa.Table:
        """Return all rows of a part, once its bytes and its segments were found to be what the manifest says.

        Returns:
            The stream's columns, then `segment`, the segment_id as text; at most plan.MOST_ROWS rows, or those of one
            larger segment. By instrument, then by time.

        Raises:
            ArchiveAway: it cannot be read just now.
            ArchiveDamaged: it is not there, or not what was written.
        """
        try:
            with self.store.opened(manifest.part_name) as file:
                return read_part(file, manifest, self._check)
        except FileNotFoundError as exc:
            raise ArchiveDamaged(f"{self.shown}: {manifest.part_name} is missing") from exc
        except ArchiveDamaged as exc:
            raise ArchiveDamaged(f"{self.shown}: {manifest.part_name}: {exc.what}") from exc

    def why_not_there(self, manifest: Manifest, *, bytes_too: bool) -> str:
        """Return what is wrong with a part as far as its size, or its bytes too, tell; "" if nothing is.

        Raises:
            ArchiveAway: it cannot be looked at just now.
        """
        size = self.store.size(manifest.part_name)
        if size is None:
            return "it is missing"
        if size != manifest.bytes:
            return f"it has {size} bytes where {manifest.bytes} were written"
        if not bytes_too:
            return ""
        try:
            with self.store.opened(manifest.part_name) as file:
                compare_bytes(file, manifest, self._check)
        except FileNotFoundError:
            return "it is missing"
        except ArchiveDamaged as exc:
            return exc.what
        return ""


def overlaps(manifest: Manifest, start: datetime | None, end: datetime | None) -> bool:
    """Whether a part has a segment with rows of the half-open range [start, end) of `received_at`. Pure."""
    return any(
        segment.first_received_at is not None
        and segment.last_received_at is not None
        and (end is None or segment.first_received_at < end)
        and (start is None or segment.last_received_at >= start)
        for segment in manifest.segments
    )


def open_archive(settings: LoaderSettings, check: Callable[[], None] = _nothing) -> Archive | None:
    """Return the archive that ARCHIVE_URL names; None if it says `off`. Nothing is reached yet.

    Args:
        settings: ARCHIVE_URL and DATA_DIR are used.
        check: called now and then while something is under way; what it raises (loader.errors.Stopped) ends that.

    Raises:
        SettingsError: ARCHIVE_URL is wrong.
    """
    store = open_store(settings, check)
    return Archive(store, check) if store else None
