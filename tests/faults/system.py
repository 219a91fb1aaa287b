"""Stands in for `os` behind recorder.runtime.disk: numbers every call that changes the disk; a plan acts on it.

    with standing_in(System(plan)) as system:
        …                       # everything the tape does to the disk passes here
    system.calls                # how often, and what

The numbers are the kill points: a change of the product that adds a write adds a point, and nobody has to name it.
"""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from recorder.runtime import disk

CHANGES = ("open", "write", "fsync", "mkdir", "rename", "unlink", "replace")


@dataclass(frozen=True)
class Call:
    """One call, as the product made it."""

    number: int  # from 1
    name: str  # of CHANGES; a directory's fsync is `fsync_dir`
    path: str
    target: str = ""  # of a rename or replace
    data: bytes = b""
    refused: bool = False  # of a write, a half of `data` was taken


Plan = Callable[[Call, Callable[[], Any]], Any]  # what shall happen at a call, which is made by calling the second


def just_do(_call: Call, do: Callable[[], Any]) -> Any:
    """No fault."""
    return do()


@dataclass
class System:
    """Has the functions of `os` that the disk module uses."""

    plan: Plan = just_do
    calls: list[Call] = field(default_factory=list)
    count: int = 0
    keep_calls: bool = True
    keep_data: bool = False
    syncs: bool = True  # False: an fsync is noted and not made; where a power loss is only played
    _paths: dict[int, str] = field(default_factory=dict)  # by descriptor

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def open(self, path: str | Path, flags: int, mode: int = 0o777) -> int:
        def do() -> int:
            fd = os.open(path, flags, mode)
            self._paths[fd] = str(path)
            return fd

        return int(self._call("open", str(path), do) if flags & os.O_CREAT else do())

    def write(self, fd: int, data: bytes) -> int:
        return int(self._call("write", self._paths[fd], lambda: os.write(fd, data), data=data))

    def fsync(self, fd: int) -> None:
        path = self._paths[fd]
        name = "fsync_dir" if Path(path).is_dir() else "fsync"
        self._call(name, path, lambda: os.fsync(fd) if self.syncs else None)

    def mkdir(self, path: Path) -> None:
        self._call("mkdir", str(path), lambda: os.mkdir(path))  # noqa: PTH102

    def rename(self, source: Path, target: Path) -> None:
        self._call("rename", str(source), lambda: os.rename(source, target), target=str(target))  # noqa: PTH104

    def replace(self, source: Path, target: Path) -> None:
        self._call("replace", str(source), lambda: os.replace(source, target), target=str(target))  # noqa: PTH105

    def unlink(self, path: Path) -> None:
        self._call("unlink", str(path), lambda: os.unlink(path))  # noqa: PTH108

    def _call(self, name: str, path: str, do: Callable[[], Any], *, target: str = "", data: bytes = b"") -> Any:
        self.count += 1
        call = Call(self.count, name, path, target, data if self.keep_data else b"")
        if not self.keep_calls:
            return self.plan(call, do)
        self.calls.append(call)
        try:
            return self.plan(call, do)
        except OSError:
            self.calls[call.number - 1] = replace(call, refused=True)
            raise


@contextlib.contextmanager
def standing_in(system: System) -> Iterator[System]:
    """Put it in the disk's place."""
    disk.os = system  # type: ignore[assignment, attr-defined]
    try:
        yield system
    finally:
        disk.os = os  # type: ignore[attr-defined]


# Plans


def killed_at(number: int, *, after: bool) -> Plan:
    """Die by SIGKILL before or after the n-th call; of a write, `before` means in its middle."""

    def plan(call: Call, do: Callable[[], Any]) -> Any:
        if call.number != number:
            return do()
        if after:
            with contextlib.suppress(OSError):  # a file that was not there to be removed: the call was made
                do()
        elif call.name == "write":
            write_half(call)
        os.kill(os.getpid(), signal.SIGKILL)
        return time.sleep(60)

    return plan


def refused(error: int, *, first: int, last: int | None = None, only: str = "") -> Plan:
    """Refuse the calls from number `first` to `last` (None: for ever); `only` those of one name.

    A write is refused after the disk took half of it.
    """

    def plan(call: Call, do: Callable[[], Any]) -> Any:
        if first <= call.number <= (last or call.number) and (not only or call.name == only):
            if call.name == "write":
                write_half(call)
            raise OSError(error, os.strerror(error), call.path)
        return do()

    return plan


def write_half(call: Call) -> None:
    """Write the first half of what was to be written."""
    fd = os.open(call.path, os.O_WRONLY | os.O_APPEND)
    try:
        os.write(fd, call.data[: len(call.data) // 2])
    finally:
        os.close(fd)


def slow(seconds: float, *, every: int) -> Plan:
    """Let every n-th call hang for a while."""

    def plan(call: Call, do: Callable[[], Any]) -> Any:
        if call.number % every == 0:
            time.sleep(seconds)
        return do()

    return plan
