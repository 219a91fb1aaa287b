"""The sealed files that a pass has to look at: found by listing the tape, minus those already settled."""

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from recorder.runtime.data_dir import NOT_STREAMS, DataDir
from recorder.segments.layout import SEALED_SUFFIX
from recorder.segments.schemas import flush_rank, stream_kind

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# Some file systems count a folder's mtime in seconds: for this long after a change another may leave it as it is.
_QUIET_NS = 5_000_000_000
TOP = "./"  # DATA_DIR itself, among the folders that cannot be looked into
# What a file looked like: (size, mtime, ctime). A chmod, which can mend a refused file, changes the last one only.
Look = tuple[int, int, int]


@dataclass(frozen=True)
class Candidate:
    """One file among a stream's sealed segments, as it was when it was listed."""

    path: Path
    name: str  # its path below DATA_DIR, the same on every machine
    stream: str  # the folder it lies in
    look: Look

    @property
    def size_bytes(self) -> int:
        """Its size."""
        return self.look[0]

    @property
    def mtime(self) -> datetime:
        """When it was last written, to the microsecond."""
        return _EPOCH + timedelta(microseconds=self.look[1] // 1000)


@dataclass(frozen=True)
class _Listing:
    """What a date folder held when it was listed."""

    mtime_ns: int
    quiet: bool  # its mtime was old enough then: a name that comes or goes must change it
    names: frozenset[str]


class Inbox:
    """Lists the tape again and again without opening, or even looking at, what is settled.

    It knows only what this connection to the database has settled: after a reconnect a new inbox asks the ledger,
    for the database may have been restored from an old backup meanwhile.
    """

    def __init__(self, data_dir: DataDir) -> None:
        self._data_dir = data_dir
        self._settled: dict[str, Look] = {}
        self._for_good: set[str] = set()
        self._listings: dict[str, _Listing] = {}  # by "stream/date=…/"
        # Folders that the newest listing could not look into, as paths below DATA_DIR that end in a slash; and why.
        self.unreadable: dict[str, str] = {}

    def settle(self, candidate: Candidate, *, for_good: bool) -> None:
        """Do not bring this file up again, unless it changes.

        Args:
            candidate: the file as it was listed.
            for_good: its rows are in the database; a change is noticed when its folder is listed, which is soon
                enough. Others are looked at each time: mending a file in place does not change its folder.
        """
        self._settled[candidate.name] = candidate.look
        (self._for_good.add if for_good else self._for_good.discard)(candidate.name)

    def has(self, name: str) -> bool:
        """Return whether the newest listing had a file, or could not list a folder, of this name."""
        listing = self._listings.get(f"{name.rpartition('/')[0]}/")
        return name in self.unreadable or (listing is not None and name in listing.names)

    def folders(self) -> list[str]:
        """Return the folders that the newest listing could look into, named as in `unreadable`."""
        streams = {f"{place.partition('/')[0]}/" for place in self._listings}
        return sorted({TOP, *streams, *self._listings} - self.unreadable.keys())

    def unsettled(self) -> list[Candidate]:
        """List what is new or has changed, oldest first over all streams, gaps before what they explain.

        A folder that cannot be looked into is named in `unreadable`, and what was known of it stays known.
        """
        listings, found = {}, []
        self.unreadable = {}
        for stream, place in self._date_folders():
            try:
                listing, names = self._list(place)
                found += [candidate for name in names if (candidate := self._look(stream, name))]
                listings[place] = listing
            except OSError as exc:
                self._cannot_list(place, exc)
        for place in self._listings.keys() - listings.keys():
            if any(place.startswith(closed) or closed == TOP for closed in self.unreadable):
                listings[place] = self._listings[place]
        gone = self._listings.keys() - listings.keys()
        self._listings = listings
        for name in [name for name in self._settled if gone and not self.has(name)]:
            self._forget(name)
        return sorted(found, key=lambda one: (one.path.name, flush_rank(one.stream), one.name))

    def _list(self, place: str) -> tuple[_Listing, frozenset[str]]:
        """List a folder if names may have come or gone; return its listing, and the names to look at."""
        before = self._listings.get(place)
        try:
            mtime_ns = (self._data_dir.root / place).stat().st_mtime_ns
        except FileNotFoundError:
            mtime_ns = 0
        if before and before.quiet and before.mtime_ns == mtime_ns:
            return before, before.names - self._for_good
        entries = _entries(self._data_dir.root / place)
        names = frozenset(place + entry.name for entry in entries if entry.name.endswith(SEALED_SUFFIX))
        for name in before.names - names if before else ():
            self._forget(name)
        return _Listing(mtime_ns, time.time_ns() - mtime_ns > _QUIET_NS, names), names

    def _look(self, stream: str, name: str) -> Candidate | None:
        path = self._data_dir.root / name
        try:
            stat = path.stat()
        except FileNotFoundError:
            return None  # moved since it was listed
        look = (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
        return None if self._settled.get(name) == look else Candidate(path, name, stream, look)

    def _forget(self, name: str) -> None:
        self._settled.pop(name, None)
        self._for_good.discard(name)

    def _date_folders(self) -> Iterator[tuple[str, str]]:
        """Yield each stream and each of its date folders, as a path below DATA_DIR that ends in a slash."""
        try:
            folders = stream_folders(self._data_dir)
        except OSError as exc:
            self._cannot_list(TOP, exc)
            return
        for folder in folders:
            try:
                dates = [
                    entry.name for entry in _entries(folder) if entry.name.startswith("date=") and entry.is_dir()
                ]
            except OSError as exc:
                self._cannot_list(f"{folder.name}/", exc)
                continue
            for date in dates:
                yield folder.name, f"{folder.name}/{date}/"

    def _cannot_list(self, place: str, exc: OSError) -> None:
        self.unreadable[place] = f"cannot be looked into: {exc.strerror or exc}"


def stream_folders(data_dir: DataDir) -> list[Path]:
    """List the folders of sealed segments, in the order of their names; `live/` is not even looked into.

    Raises:
        OSError: DATA_DIR cannot be listed. One that is not there yet has none.
    """
    found = [
        Path(entry.path)
        for entry in _entries(data_dir.root)
        if entry.name not in NOT_STREAMS and stream_kind(entry.name) and entry.is_dir()
    ]
    return sorted(found)


def _entries(folder: Path) -> list["os.DirEntry[str]"]:
    try:
        with os.scandir(folder) as found:
            return list(found)
    except (FileNotFoundError, NotADirectoryError):
        return []  # a stream that has live segments only, or a folder removed since it was listed
