"""Names of segments and where they lie: what a directory listing tells without opening a file."""

import os
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from recorder.runtime.data_dir import NOT_STREAMS, DataDir
from recorder.segments.schemas import stream_kind

SEALED_SUFFIX = ".arrow"
LIVE_SUFFIX = ".arrow.open"

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NAME = re.compile(r"^(\d{8}T\d{12}Z)-([a-z0-9_]{1,32})-(\d{6})\.arrow(\.open)?$")
_START_FORMAT = "%Y%m%dT%H%M%S%fZ"

US_PER_SEC = 1_000_000
US_PER_DAY = 86_400 * US_PER_SEC


def us_to_datetime(us: int) -> datetime:
    """Turn microseconds since 1970 into an aware UTC datetime, exactly."""
    return _EPOCH + timedelta(microseconds=us)


def datetime_to_us(moment: datetime) -> int:
    """Turn an aware datetime into microseconds since 1970, exactly."""
    return (moment - _EPOCH) // timedelta(microseconds=1)


@dataclass(frozen=True, order=True)
class SegmentName:
    """`<start>-<recorder>-<seq>`: sorts by time within one recorder."""

    start_us: int  # received_at of the first row
    recorder: str
    seq: int  # counts a stream's segments within one run, from 1

    def __str__(self) -> str:
        return f"{us_to_datetime(self.start_us).strftime(_START_FORMAT)}-{self.recorder}-{self.seq:06d}"

    @property
    def date(self) -> str:
        """The UTC date of the first row, `YYYY-MM-DD`: the folder a sealed segment lies in."""
        return us_to_datetime(self.start_us).strftime("%Y-%m-%d")

    @classmethod
    def parse(cls, file_name: str) -> "SegmentName | None":
        """Read a file's name, sealed or live; None if it is no segment's."""
        match = _NAME.match(file_name)
        if match is None:
            return None
        try:
            start = datetime.strptime(match[1], _START_FORMAT).replace(tzinfo=UTC)
        except ValueError:
            return None
        return cls(datetime_to_us(start), match[2], int(match[3]))


def streams(data_dir: DataDir) -> list[str]:
    """List the streams that have a folder, sealed or live, in the order of their names."""
    found = {
        path.name
        for parent in (data_dir.root, data_dir.live)
        if parent.is_dir()
        for path in parent.iterdir()
        if path.is_dir() and path.name not in NOT_STREAMS and stream_kind(path.name)
    }
    return sorted(found)


def sealed_files(data_dir: DataDir, stream: str) -> list[Path]:
    """List every `.arrow` file of a stream's date folders, oldest name first, whatever it is called.

    Raises:
        OSError: a folder cannot be read (a glob would pass over it in silence).
    """
    dates = [date for date in _entries(data_dir.root / stream) if date.name.startswith("date=") and date.is_dir()]
    # Told by the listing itself: a stat for each of 10,000 files would take longer than all the rest of a start.
    found = [
        (entry.name, entry.path)
        for date in dates
        for entry in _entries(date.path)
        if entry.name.endswith(SEALED_SUFFIX) and entry.is_file()
    ]
    return [Path(path) for _, path in sorted(found)]


def live_files(data_dir: DataDir, stream: str) -> list[Path]:
    """List a stream's live segments, oldest name first: one while a recorder runs, any number after a crash."""
    found = [Path(entry.path) for entry in _entries(data_dir.live_dir(stream)) if entry.name.endswith(LIVE_SUFFIX)]
    return sorted(found, key=lambda path: path.name)


def _entries(folder: Path | str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except FileNotFoundError:
        return []


def sealed_path(data_dir: DataDir, stream: str, name: SegmentName) -> Path:
    """Return where a segment lies once sealed."""
    return data_dir.sealed_dir(stream, name.date) / f"{name}{SEALED_SUFFIX}"


def live_path(data_dir: DataDir, stream: str, name: SegmentName) -> Path:
    """Return where a segment lies while it is written."""
    return data_dir.live_dir(stream) / f"{name}{LIVE_SUFFIX}"
