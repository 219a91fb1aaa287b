"""The only door to the disk for what must last: every write, fsync and rename of the tape passes here.

Every system call that changes the disk is made here through `os`, so that a test can stand in for the disk (number
the calls, refuse one, die at one, lose what was not fsynced) by replacing that one name in this module.
"""

import contextlib
import errno
import fcntl
import os
from pathlib import Path

# What a disk says that will take more when somebody has made room.
FULL = (errno.ENOSPC, errno.EDQUOT)

# macOS: fsync reaches the drive's cache only; F_FULLFSYNC reaches the platters.
_FULL_FSYNC = getattr(fcntl, "F_FULLFSYNC", None)


def create(path: Path) -> int:
    """Create a file that must not exist yet; return its descriptor for writing."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)


def write(fd: int, data: bytes | memoryview) -> None:
    """Write `data` in one call.

    Raises:
        OSError: as the system says, or ENOSPC-like EIO text on a short write: a file that took only a
            part of a write is as broken as one that refused it.
    """
    written = os.write(fd, data)
    if written != len(data):
        raise OSError(f"short write: {written} of {len(data)} bytes")


def fsync(fd: int) -> None:
    """Make what was written through `fd` durable. Never call it again on a file where it failed."""
    if _FULL_FSYNC is not None:
        fcntl.fcntl(fd, _FULL_FSYNC)
    else:
        os.fsync(fd)


def fsync_file(path: Path) -> None:
    """Make durable what another process wrote."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        fsync(fd)
    finally:
        os.close(fd)


def fsync_dir(path: Path) -> None:
    """Make the names in a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_dir(path: Path) -> None:
    """Create a directory and its missing parents, each name durable before the next is made in it."""
    if path.is_dir():
        return
    make_dir(path.parent)
    with contextlib.suppress(FileExistsError):  # another process was faster
        os.mkdir(path)
    fsync_dir(path.parent)


def rename(source: Path, target: Path) -> None:
    """Move a file to a name that must be free, and make both directories' names durable."""
    if target.exists():
        raise FileExistsError(f"{target} exists already")
    os.rename(source, target)
    fsync_dir(target.parent)
    if source.parent != target.parent:
        fsync_dir(source.parent)


def remove(path: Path) -> None:
    """Remove a file and make its absence durable."""
    os.unlink(path)
    fsync_dir(path.parent)


def remove_empty_dir(path: Path) -> bool:
    """Remove a directory if nothing is in it, durably; return whether it was removed."""
    try:
        os.rmdir(path)
    except OSError as exc:
        if exc.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
            return False
        raise
    fsync_dir(path.parent)
    return True


def discard(path: Path) -> None:
    """Remove a draft, if there is one; nobody counts on its absence."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def write_file(path: Path, data: bytes) -> None:
    """Write a whole new file durably, name included."""
    fd = create(path)
    try:
        write(fd, data)
        fsync(fd)
    finally:
        os.close(fd)
    fsync_dir(path.parent)


def write_over(path: Path, data: bytes) -> None:
    """Write over the beginning of a file in place, in one call, and not durably: a power loss may leave what was."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        write(fd, data)
    finally:
        os.close(fd)


def replace_file(path: Path, data: bytes) -> None:
    """Replace a file's content durably: a reader sees the old bytes or the new ones, whole."""
    draft = path.with_name(path.name + ".tmp")
    discard(draft)
    write_file(draft, data)
    os.replace(draft, path)
    fsync_dir(path.parent)
