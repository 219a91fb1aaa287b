"""One archiver at a time on a tape, and a note of the part that it is making, so that a later one clears it away."""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass

from loader.errors import ArchiveAway, ArchiverAtWork
from recorder.runtime import disk
from recorder.runtime.data_dir import DataDir

LOCK = "lock"
# The note is written in one piece of constant length: never half a note. The longest name of a part is a fifth of it.
_NOTE_BYTES = 1024


@dataclass(frozen=True)
class Note:
    """A part that was begun and is not told by a manifest yet."""

    archive: str  # as Store.shown
    part: str  # its name there


class Journal:
    """The note in the lock's file."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def read(self) -> Note | None:
        """Return the note; None without one."""
        try:
            told = json.loads(os.pread(self._fd, _NOTE_BYTES, 0) or b"{}")
            return Note(told["archive"], told["part"])
        except (ValueError, KeyError, TypeError):
            return None

    def write(self, note: Note | None) -> None:
        """Replace the note, durably.

        Raises:
            OSError: the disk refused.
        """
        told = {"pid": os.getpid()} | ({"archive": note.archive, "part": note.part} if note else {})
        os.pwrite(self._fd, json.dumps(told).encode().ljust(_NOTE_BYTES), 0)
        os.fsync(self._fd)


@contextlib.contextmanager
def archiving(data_dir: DataDir) -> Iterator[Journal]:
    """Be the one archiver of a tape; the kernel frees the lock when the process ends, however it ends.

    Raises:
        ArchiverAtWork: another process is.
        ArchiveAway: the lock's file cannot be made or written.
    """
    path = data_dir.archive / LOCK
    try:
        disk.make_dir(path.parent)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as exc:
        raise ArchiveAway(
            f"the archiver cannot write to {path.parent}: {exc.strerror or exc}",
            remedy="mend its permissions, or set ARCHIVE_URL=off",
        ) from exc
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise ArchiverAtWork(
                f"the tape {data_dir.root} is being archived by another process", remedy="wait for it, or stop it"
            ) from exc
        yield Journal(fd)
    finally:
        os.close(fd)
