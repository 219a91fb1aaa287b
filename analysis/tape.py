"""One tape as of a moment: the archive's parts, sealed segments, and live rows of a stream, each row in one of them.

Live files are read first, then sealed ones are listed, then the archive's manifests: a segment that moves on
meanwhile is found where it went, and counts there. (In the reverse order it could be found nowhere.)
"""

from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from analysis.errors import NoTape
from recorder.runtime.data_dir import DataDir
from recorder.segments import archived
from recorder.segments.archived import Archived, Damaged
from recorder.segments.layout import streams
from recorder.segments.manifest import Manifest
from recorder.segments.reader import StreamSnapshot, snapshot
from recorder.segments.schemas import stream_kind

S3 = "s3://"
TICKS = ("quotes", "trades", "tickers")  # the kinds that a market's ticks are of


@dataclass(frozen=True)
class Tape:
    """Where a tape lies: its folder, and its archive."""

    data_dir: DataDir | None  # None: there is an archive only
    archive: Archived | None

    @classmethod
    def at(cls, place: str | Path, archive: str | Path | None = None) -> "Tape":
        """Find a tape.

        Args:
            place: DATA_DIR; or for an archive alone its folder or `s3://bucket/prefix`.
            archive: a folder or `s3://bucket/prefix`; None for the one in DATA_DIR.

        Raises:
            NoTape: there is no such directory, or the archive cannot be reached.
        """
        try:
            if str(place).startswith(S3):
                return cls(None, archived.at(str(place)))
            data_dir = DataDir(Path(place).absolute())
            if not data_dir.root.is_dir():
                raise NoTape(
                    f"there is no data directory {data_dir.root}", remedy="set DATA_DIR, or record something first"
                )
            if archive is None and (data_dir.root / "manifests").is_dir():
                return cls(None, archived.folder(data_dir.root))
            if archive is None:
                return cls(data_dir, archived.beside(data_dir))
            url = str(archive)
            return cls(data_dir, archived.at(url) if url.startswith(S3) else archived.folder(Path(url)))
        except (OSError, pa.ArrowException) as exc:
            raise NoTape(f"the archive cannot be reached: {' '.join(str(exc).split())}") from exc

    def streams(self) -> list[str]:
        """List the streams that there is anything of."""
        found = set(streams(self.data_dir)) if self.data_dir else set()
        if self.archive:
            found |= {stream for stream in self.archive.streams() if stream_kind(stream)}
        return sorted(found)


@dataclass(frozen=True)
class Plan:
    """A stream as of one moment: live rows, sealed files, and parts of the archive."""

    stream: str
    found: StreamSnapshot
    archive: Archived | None
    manifests: tuple[Manifest, ...] = ()
    left_out: tuple[str, ...] = field(default=())


def plan(tape: Tape, stream: str) -> Plan:
    """Look at a stream; nothing but live files and manifests is opened.

    Raises:
        OSError: a folder cannot be looked into, or the archive cannot be reached.
    """
    found = snapshot(tape.data_dir, stream) if tape.data_dir else StreamSnapshot(stream, (), None)
    manifests, left_out = [], []
    for one in tape.archive.manifests(stream) if tape.archive else ():
        if isinstance(one, Damaged):
            left_out.append(f"{one.path}: {one.why}")
        else:
            manifests.append(one)
    return Plan(stream, found, tape.archive, tuple(manifests), tuple(left_out))
