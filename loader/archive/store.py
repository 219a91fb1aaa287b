"""Where parts and manifests lie: a folder, or (loader.archive.s3) a bucket. No object is ever half-visible."""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Protocol

from loader.errors import ArchiveAway
from loader.settings import LoaderSettings
from recorder.runtime import disk
from recorder.runtime.data_dir import DataDir
from recorder.segments.archive_url import Folder, place

DRAFTS = "drafts"  # the folder of what is being written, beside those of the streams

Check = Callable[[], None]


class Store(Protocol):
    """Named objects. Names are relative, with slashes; whatever fails is an ArchiveAway."""

    shown: str  # for people; holds no secret
    drafts: Path  # the folder in which what is to be put is written first

    def names(self, folder: str) -> dict[str, int]:
        """Return every object below a folder, and its size in bytes; none if there is no such folder."""

    def read(self, name: str) -> bytes:
        """Return a small object's bytes.

        Raises:
            FileNotFoundError: there is none.
        """

    def size(self, name: str) -> int | None:
        """Return an object's size in bytes; None if there is none."""

    def opened(self, name: str) -> contextlib.AbstractContextManager[BinaryIO]:
        """Read a large object from where it lies; what is yielded can seek.

        Raises:
            FileNotFoundError: there is none.
        """

    def put(self, name: str, draft: Path) -> None:
        """Make a file an object, at once and whole, in place of one of that name; the draft may be gone then."""

    def put_bytes(self, name: str, data: bytes) -> None:
        """Make bytes an object, at once and whole."""

    def remove(self, name: str) -> None:
        """Remove an object, if there is one."""


class FolderStore:
    """An archive in a local folder; every change is durable when the call returns."""

    def __init__(self, root: Path) -> None:
        self.shown = str(root)
        self.drafts = root / DRAFTS  # of the same file system, so that a rename puts it in place
        self._root = root

    def names(self, folder: str) -> dict[str, int]:
        """See Store."""
        with self._errors_explained():
            return dict(self._walk(self._root / folder, folder))

    def _walk(self, path: Path, name: str) -> Iterator[tuple[str, int]]:
        try:
            with os.scandir(path) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except (FileNotFoundError, NotADirectoryError):
            return
        for entry in entries:
            if entry.is_dir():
                yield from self._walk(Path(entry.path), f"{name}/{entry.name}")
            else:
                yield f"{name}/{entry.name}", entry.stat().st_size

    def read(self, name: str) -> bytes:
        """See Store."""
        with self._errors_explained():
            return (self._root / name).read_bytes()

    def size(self, name: str) -> int | None:
        """See Store."""
        with self._errors_explained():
            try:
                return (self._root / name).stat().st_size
            except FileNotFoundError:
                return None

    @contextlib.contextmanager
    def opened(self, name: str) -> Iterator[BinaryIO]:
        """See Store."""
        with self._errors_explained(), (self._root / name).open("rb") as file:
            _forget_cached(file)
            yield file

    def put(self, name: str, draft: Path) -> None:
        """See Store."""
        target = self._root / name
        with self._errors_explained():
            disk.make_dir(target.parent)
            disk.discard(target)  # one that was cut off before its manifest: nobody counts on it
            disk.rename(draft, target)

    def put_bytes(self, name: str, data: bytes) -> None:
        """See Store."""
        draft = self.drafts / (name.replace("/", "_") + ".tmp")
        with self._errors_explained():
            disk.make_dir(draft.parent)
            disk.discard(draft)
            disk.write_file(draft, data)
        self.put(name, draft)

    def remove(self, name: str) -> None:
        """See Store."""
        with self._errors_explained(), contextlib.suppress(FileNotFoundError):
            disk.remove(self._root / name)

    @contextlib.contextmanager
    def _errors_explained(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise
        except OSError as exc:
            raise ArchiveAway(f"the archive {self.shown}: {exc.strerror or exc}") from exc


def _forget_cached(file: BinaryIO) -> None:
    """See to it that a file is read from the disk, and not from the memory it was written through."""
    if hasattr(os, "posix_fadvise"):
        with contextlib.suppress(OSError):  # advice only
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def open_store(settings: LoaderSettings, check: Check) -> Store | None:
    """Return the archive that the settings name; None if they say that there is none. Nothing is reached yet.

    Args:
        settings: ARCHIVE_URL and DATA_DIR are used.
        check: called now and then while something is under way; what it raises ends that.

    Raises:
        SettingsError: ARCHIVE_URL, or what the environment says of the S3 server, is wrong.
    """
    if settings.archive_url is None:
        return None
    data_dir = DataDir(settings.data_dir)
    where = place(settings.archive_url, data_dir)
    if isinstance(where, Folder):
        return FolderStore(where.root)
    from loader.archive.s3 import BucketStore  # noqa: PLC0415 - only who uploads needs obstore

    return BucketStore(where, data_dir.archive / DRAFTS, check, os.environ)
