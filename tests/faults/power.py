"""Plays a power loss after any call: what was fsynced stays, and of the rest whatever the disk pleased to write.

POSIX promises no more than this: the bytes of a file that was fsynced, the names in a directory that was fsynced.
What was not may be there in part, torn at a sector or a page, or in another order. (ALICE; SQLite's crash tests.)
One promise more is relied on, which every journaling file system gives: a rename never loses the file. It may be
found under its old name, its new one, or both.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.system import Call

SECTORS_BYTES = (512, 4096)


@dataclass
class _File:
    durable: bytes = b""
    waiting: list[bytes] = field(default_factory=list)  # writes that no fsync covers yet


@dataclass
class _Change:
    """A name that came to mean something else; what it `needs` must be on disk first."""

    name: str
    what: "_File | _Directory | None"  # None: it is free
    needs: "_Change | None" = None
    durable: bool = False


@dataclass
class _Directory:
    durable: "dict[str, _File | _Directory]" = field(default_factory=dict)  # names that no power loss takes
    names: "dict[str, _File | _Directory]" = field(default_factory=dict)  # as programs see them
    waiting: list[_Change] = field(default_factory=list)

    def change(self, change: _Change) -> _Change:
        """Let a name mean something else from now on."""
        self.waiting.append(change)
        _apply(self.names, change)
        return change

    def sync(self) -> None:
        """Make every name durable."""
        self.durable = dict(self.names)
        for change in self.waiting:
            change.durable = True
        self.waiting.clear()


class Disk:
    """What is on a disk after some calls, as programs see it and as a power loss may leave it."""

    def __init__(self, root: Path, calls: Sequence[Call]) -> None:
        self._top = _Directory()
        self._directories: dict[str, _Directory] = {str(root): self._top}
        for call in calls:
            self._take(call)

    def after_power_loss(self, target: Path, rng: random.Random, *, share: float) -> None:
        """Make the files in a new folder.

        Args:
            target: where; it does not exist yet.
            rng: decides which of what no fsync covers got through.
            share: how likely each waiting sector and name is there.
        """
        self._write(self._top, target, rng, share, {})

    def _take(self, call: Call) -> None:
        folder, name = self._place(call.path)
        if call.refused:
            self._take_refused(call)
            return
        match call.name:
            case "mkdir":
                self._directories[call.path] = new = _Directory()
                folder.change(_Change(name, new))
            case "open":
                folder.change(_Change(name, _File()))
            case "write":
                self._file(call.path).waiting.append(call.data)
            case "fsync":
                file = self._file(call.path)
                file.durable += b"".join(file.waiting)
                file.waiting.clear()
            case "fsync_dir":
                if call.path in self._directories:
                    self._directories[call.path].sync()
            case "unlink":
                folder.change(_Change(name, None))
            case "rename" | "replace":
                there, new_name = self._place(call.target)
                linked = there.change(_Change(new_name, folder.names[name]))
                folder.change(_Change(name, None, needs=linked))

    def _take_refused(self, call: Call) -> None:
        """A refused fsync marks what it did not write as written: no later one writes it (PostgreSQL's fsyncgate)."""
        if call.name == "write":
            self._file(call.path).waiting.append(call.data[: len(call.data) // 2])
        elif call.name == "fsync":
            file = self._file(call.path)
            file.waiting = [bytes(len(data)) for data in file.waiting]

    def _place(self, path: str) -> tuple[_Directory, str]:
        one = Path(path)
        return self._directories.get(str(one.parent), self._top), one.name

    def _file(self, path: str) -> _File:
        folder, name = self._place(path)
        file = folder.names[name]
        assert isinstance(file, _File)
        return file

    def _write(
        self, directory: _Directory, target: Path, rng: random.Random, share: float, seen: dict[int, bool]
    ) -> None:
        target.mkdir(parents=True)
        names = dict(directory.durable)
        for change in directory.waiting:
            if _got_through(change, rng, share, seen):
                _apply(names, change)
        for name, what in names.items():
            if isinstance(what, _Directory):
                self._write(what, target / name, rng, share, seen)
            else:
                (target / name).write_bytes(what.durable + _torn(what.waiting, rng, share))


def _apply(names: "dict[str, _File | _Directory]", change: _Change) -> None:
    if change.what is None:
        names.pop(change.name, None)
    else:
        names[change.name] = change.what


def _got_through(change: _Change, rng: random.Random, share: float, seen: dict[int, bool]) -> bool:
    """Decide once for each change whether the disk wrote it."""
    if id(change) not in seen:
        needed = change.needs is None or _got_through(change.needs, rng, share, seen)
        seen[id(change)] = change.durable or (needed and rng.random() < share)
    return seen[id(change)]


def _torn(writes: Sequence[bytes], rng: random.Random, share: float) -> bytes:
    """Return what the disk kept of writes that were not fsynced: some sectors, the others zero or garbage."""
    data = bytearray(b"".join(writes))
    size_bytes = rng.choice(SECTORS_BYTES)
    for at in range(0, len(data), size_bytes):
        if rng.random() >= share:
            sector = data[at : at + size_bytes]
            data[at : at + size_bytes] = bytes(len(sector)) if rng.random() < 0.5 else rng.randbytes(len(sector))
    return bytes(data if share == 1.0 else data[: rng.randrange(len(data) + 1)])
