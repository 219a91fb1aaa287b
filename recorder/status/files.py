"""Looks at the files of a tape: what is live, sealed, archived, put aside, and missed today. Reads only."""

import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from recorder.runtime.data_dir import DataDir
from recorder.segments.layout import LIVE_SUFFIX, SEALED_SUFFIX, US_PER_SEC, SegmentName, live_files, streams
from recorder.segments.manifest import MANIFEST_SUFFIX, MANIFESTS
from recorder.segments.reader import read_segment
from recorder.segments.schemas import GAPS_STREAM, flush_rank

_COLUMNS = ("gap_id", "state_no", "cause", "status")


@dataclass(frozen=True)
class StreamFiles:
    """The segments of one stream. Times are seconds since 1970."""

    stream: str
    live_bytes: int = 0
    live_since_s: float | None = None  # the first row of the oldest live segment; None without one
    sealed_today: int = 0  # segments in the folder of this UTC day
    sealed_today_bytes: int = 0
    last_seal_s: float | None = None  # when its newest segment of the last two days was last written


@dataclass(frozen=True)
class TapeFiles:
    """A tape as its files tell it, at one moment."""

    at_s: float  # seconds since 1970
    data_dir: str
    recorder: str = ""  # whose tape it is
    trouble: str = ""  # why it cannot be looked at; empty if it could
    streams: tuple[StreamFiles, ...] = ()
    gaps_today: dict[str, dict[str, int]] = field(default_factory=dict)  # cause -> newest status -> gaps
    archived_parts: int = 0  # told by manifests beside the tape
    archived_until: str = ""  # the newest day that one is of
    quarantined_files: int = 0
    rejected_files: int = 0
    disk_free_bytes: int | None = None
    unreadable: tuple[str, ...] = ()  # what could not be counted, and why


class Looker:
    """Looks again and again; remembers what cannot change, the rows of sealed segments."""

    def __init__(self, data_dir: DataDir) -> None:
        """Take the tape."""
        self._data_dir = data_dir
        self._sealed_gaps: dict[Path, list[tuple[str, int, str, str]]] = {}

    def look(self, at_s: float) -> TapeFiles:
        """Look at every part of the tape; what cannot be read is named and left out.

        Args:
            at_s: now, seconds since 1970, by which today is told.
        """
        root = self._data_dir.root
        if not root.is_dir():
            return TapeFiles(at_s, str(root), trouble="there is no such folder")
        unreadable: list[str] = []
        today = datetime.fromtimestamp(at_s, UTC).date().isoformat()
        try:
            names = sorted(streams(self._data_dir), key=flush_rank)
            of_streams = tuple(self._stream(name, today) for name in names)
        except OSError as exc:
            return TapeFiles(at_s, str(root), trouble=f"cannot be looked into: {exc.strerror or exc}")
        parts = [path for path in _files(root / "archive" / MANIFESTS, unreadable) if path.suffix == MANIFEST_SUFFIX]
        return TapeFiles(
            at_s,
            str(root),
            recorder=self._data_dir.recorder_name() or "",
            streams=of_streams,
            gaps_today=self._gaps(today, unreadable),
            archived_parts=len(parts),
            archived_until=max((path.parent.name.removeprefix("date=") for path in parts), default=""),
            quarantined_files=sum(1 for _ in _files(self._data_dir.quarantine, unreadable)),
            rejected_files=sum(1 for _ in _files(self._data_dir.rejected, unreadable)),
            disk_free_bytes=shutil.disk_usage(root).free,
            unreadable=tuple(unreadable),
        )

    def _stream(self, stream: str, today: str) -> StreamFiles:
        live = [(path, stat.st_size) for path in live_files(self._data_dir, stream) if (stat := _stat(path))]
        begun_us = [name.start_us for path, _ in live if (name := SegmentName.parse(path.name))]
        sealed = _sealed(self._data_dir.sealed_dir(stream, today))
        sizes = [stat.st_size for path in sealed if (stat := _stat(path))]
        newest = sealed or self._newest_day(stream)
        last = _stat(newest[-1]) if newest else None
        return StreamFiles(
            stream,
            live_bytes=sum(size for _, size in live),
            live_since_s=min(begun_us) / US_PER_SEC if begun_us else None,
            sealed_today=len(sealed),
            sealed_today_bytes=sum(sizes),
            last_seal_s=last.st_mtime if last else None,
        )

    def _newest_day(self, stream: str) -> list[Path]:
        days = sorted(path for path in _entries(self._data_dir.root / stream) if path.name.startswith("date="))
        return _sealed(days[-1]) if days else []

    def _gaps(self, today: str, unreadable: list[str]) -> dict[str, dict[str, int]]:
        """Count the gaps of which something was recorded today, each in its newest state.

        Live segments first, then the sealed ones: what is sealed in between is seen twice and not never. A row that
        is seen twice counts once, for a gap's states are numbered.
        """
        rows: list[tuple[str, int, str, str]] = []
        for path in live_files(self._data_dir, GAPS_STREAM):
            name = SegmentName.parse(path.name.removesuffix(LIVE_SUFFIX) + SEALED_SUFFIX)
            if name and name.date == today:
                rows += _read_gaps(path, unreadable) or []
        sealed = _sealed(self._data_dir.sealed_dir(GAPS_STREAM, today))
        known = {path: self._sealed_gaps[path] for path in sealed if path in self._sealed_gaps}
        for path in sealed:
            if path not in known and (found := _read_gaps(path, unreadable)) is not None:
                known[path] = found
        self._sealed_gaps = known  # those of yesterday are let go
        for found in known.values():
            rows += found
        return count_gaps(rows)


def count_gaps(rows: Iterable[tuple[str, int, str, str]]) -> dict[str, dict[str, int]]:
    """Count gaps by cause and newest status. Pure.

    Args:
        rows: gap_id, state_no, cause, and status of each state, in any order.
    """
    newest: dict[str, tuple[int, str, str]] = {}
    for gap_id, state_no, cause, status in rows:
        if gap_id not in newest or state_no > newest[gap_id][0]:
            newest[gap_id] = (state_no, cause, status)
    counts: dict[str, Counter[str]] = {}
    for _, cause, status in newest.values():
        counts.setdefault(cause, Counter())[status] += 1
    return {cause: dict(sorted(of_cause.items())) for cause, of_cause in sorted(counts.items())}


def _read_gaps(path: Path, unreadable: list[str]) -> list[tuple[str, int, str, str]] | None:
    """Return the gap rows of a segment; None if it is not there any more, or is none."""
    try:
        checked = read_segment(path)
    except FileNotFoundError:
        return None
    except OSError as exc:
        unreadable.append(f"{path}: {exc.strerror or exc}")
        return None
    if any(not damage.torn for damage in checked.damage):
        unreadable.append(f"{path}: damaged; run make doctor")
    if checked.schema is None or not set(_COLUMNS) <= set(checked.schema.names):
        return None
    columns = checked.table.select(list(_COLUMNS)).to_pydict()
    return list(zip(*(columns[name] for name in _COLUMNS), strict=True))


def _entries(folder: Path) -> list[Path]:
    try:
        return [Path(entry.path) for entry in os.scandir(folder)]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _sealed(folder: Path) -> list[Path]:
    return sorted(path for path in _entries(folder) if path.name.endswith(SEALED_SUFFIX))


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:
        return None  # sealed or pruned since it was listed


def _files(folder: Path, unreadable: list[str]) -> Iterator[Path]:
    """Yield every file below a folder; name what cannot be listed."""
    for parent, _, names in os.walk(folder, onerror=lambda exc: _note(exc, unreadable)):
        yield from (Path(parent, name) for name in names)


def _note(exc: OSError, unreadable: list[str]) -> None:
    if not isinstance(exc, FileNotFoundError):
        unreadable.append(f"{exc.filename}: {exc.strerror or exc}")
