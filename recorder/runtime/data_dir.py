"""DATA_DIR: its layout, and the lock that lets one recorder at a time write to it."""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path

from recorder.runtime import disk
from recorder.runtime.errors import DataDirInUse, DiskError

# Names in DATA_DIR that are no streams (DESIGN: the tape, "Where").
LIVE, QUARANTINE, REJECTED, ARCHIVE, POSTGRES, STATE, LOCK = (
    "live", "quarantine", "rejected", "archive", "postgres", "state", "lock",
)  # fmt: skip
NOT_STREAMS = frozenset({LIVE, QUARANTINE, REJECTED, ARCHIVE, POSTGRES, STATE, LOCK})


class DataDir:
    """Where everything of one tape lies. Makes no folder by itself."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self.live = self.root / LIVE
        self.quarantine = self.root / QUARANTINE
        self.rejected = self.root / REJECTED
        self.archive = self.root / ARCHIVE
        self.postgres = self.root / POSTGRES
        self.state = self.root / STATE
        self.lock_file = self.root / LOCK

    def live_dir(self, stream: str) -> Path:
        """Return the folder of a stream's live segment."""
        return self.live / stream

    def sealed_dir(self, stream: str, date: str) -> Path:
        """Return the folder of a stream's sealed segments of one UTC date (`YYYY-MM-DD`)."""
        return self.root / stream / f"date={date}"

    @contextlib.contextmanager
    def lock(self, recorder: str | None = None) -> Iterator[str]:
        """Hold DATA_DIR for one writer; yields the tape's recorder name.

        The kernel frees the lock when the process ends, however it ends. The file remembers the name of the
        recorder whose tape this is: two names in one tape would look like two recorders of one market.

        Args:
            recorder: the name to record under; None takes the tape's own (for `doctor --repair`).

        Raises:
            DataDirInUse: another process holds it, or the tape belongs to another recorder name.
            DiskError: the directory cannot be made or written.
        """
        try:
            disk.make_dir(self.root)
            fd = os.open(self.lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as exc:
            raise DiskError(
                f"cannot write to the data directory {self.root}: {exc.strerror or exc}",
                remedy="choose another DATA_DIR or mend its permissions",
            ) from exc
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as exc:
                holder = _read_lock(fd)
                raise DataDirInUse(
                    f"the data directory {self.root} is in use by recorder {holder.get('recorder', 'unknown')!r}"
                    f" (process {holder.get('pid', 'unknown')})",
                    remedy="stop it first, or choose another DATA_DIR",
                ) from exc
            owner = _read_lock(fd).get("recorder")
            if recorder is not None and owner is not None and owner != recorder:
                raise DataDirInUse(
                    f"the data directory {self.root} holds the tape of recorder {owner!r}, not {recorder!r}",
                    remedy=f"set RECORDER_NAME={owner}, or choose another DATA_DIR",
                )
            name = recorder or owner or ""
            _write_lock(fd, name, self.root)
            yield name
        finally:
            os.close(fd)

    def recorder_name(self) -> str | None:
        """Return the recorder name that the tape here belongs to, or None for a new one."""
        try:
            fd = os.open(self.lock_file, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            return _read_lock(fd).get("recorder") or None
        finally:
            os.close(fd)


def _read_lock(fd: int) -> dict[str, str]:
    try:
        holder = json.loads(os.pread(fd, 4096, 0) or b"{}")
    except ValueError:
        return {}
    return {str(key): str(value) for key, value in holder.items()} if isinstance(holder, dict) else {}


def _write_lock(fd: int, recorder: str, root: Path) -> None:
    text = json.dumps({"recorder": recorder, "pid": os.getpid()} if recorder else {"pid": os.getpid()})
    try:
        os.pwrite(fd, text.encode().ljust(256), 0)  # one write of constant length: never half a name
        os.fsync(fd)
    except OSError as exc:
        raise DiskError(
            f"cannot write to the data directory {root}: {exc.strerror or exc}",
            remedy="free some space or choose another DATA_DIR",
        ) from exc
