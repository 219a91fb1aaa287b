"""Recovery: a live segment that its writer left is finished under its own name; nothing committed is lost.

Used at start for what a crash left, and while recording for a file whose write failed.
"""

from dataclasses import dataclass
from pathlib import Path

from recorder.runtime import disk
from recorder.runtime.data_dir import DataDir
from recorder.segments.check import Checked, Damage, check
from recorder.segments.encode import encode_segment
from recorder.segments.layout import SegmentName, live_files, sealed_path, streams


@dataclass(frozen=True)
class Recovered:
    """What became of one live segment."""

    live: Path
    sealed: Path | None  # None if nothing in it could be kept
    rows: int
    cut_bytes: int  # moved to quarantine/
    damage: tuple[Damage, ...]


def recover(data_dir: DataDir) -> list[Recovered]:
    """Finish every live segment of a data directory. Call it under the lock.

    Raises:
        OSError: the disk refused; what was not finished lies where it was, and a later start takes it up.
    """
    for stream in streams(data_dir):
        # A crash may have come between making a folder and making its name durable.
        for folder in (data_dir.root / stream, data_dir.live_dir(stream)):
            if folder.is_dir():
                disk.fsync_dir(folder)
    disk.fsync_dir(data_dir.root)
    return [finish_live(data_dir, path) for stream in streams(data_dir) for path in live_files(data_dir, stream)]


def finish_live(data_dir: DataDir, live: Path, *, acknowledged_bytes: int | None = None) -> Recovered:
    """Seal the good groups of a live file, put what was cut off into quarantine, and remove the live file.

    In that order, so that a crash or a full disk between two steps leaves the rows in at least one file; where
    both lie there the sealed one wins, for every reader.

    Args:
        data_dir: where the file belongs.
        live: the file.
        acknowledged_bytes: set while recording, after a write or fsync of this file failed. Only what was
            acknowledged before is kept: a flush whose fsync failed may read back whole from memory, and its rows
            are about to be written elsewhere. And the file is copied even where it looks finished, since an
            fsync that failed once tells nothing when it is asked again.

    Raises:
        OSError: the disk refused; try again later.
    """
    data = live.read_bytes()
    checked = check(data if acknowledged_bytes is None else data[:acknowledged_bytes])
    if checked.newer_version:
        return Recovered(live, None, 0, 0, tuple(checked.damage))  # a newer program's: left where it is
    name = SegmentName.parse(live.name)
    if name is None or checked.identity is None:
        quarantine_file(data_dir, live)
        return Recovered(live, None, 0, len(data), tuple(checked.damage))
    sealed = sealed_path(data_dir, checked.identity.stream, name)
    disk.make_dir(sealed.parent)
    if sealed.exists():
        disk.fsync_dir(sealed.parent)
    elif checked.sealed:
        # The crash came after the footer. Its fsync may not have happened: make it so, then move.
        disk.fsync_file(live)
        disk.rename(live, sealed)
        return Recovered(live, sealed, checked.rows, 0, ())
    else:
        _write_sealed(live, sealed, checked)
    cut = _cut_bytes(data, checked)
    if cut:
        _quarantine_bytes(data_dir, f"{live.name}.cut", cut)
    disk.remove(live)
    return Recovered(live, sealed, checked.rows, len(cut), tuple(checked.damage))


def _write_sealed(live: Path, sealed: Path, checked: Checked) -> None:
    assert checked.schema is not None
    assert checked.identity is not None
    draft = live.with_name(live.name.removesuffix(".open") + ".tmp")
    disk.discard(draft)  # of a recovery that did not get through; its source is still here
    disk.write_file(
        draft, encode_segment(checked.schema, checked.identity, [group.batch for group in checked.groups])
    )
    if not check(draft.read_bytes()).sealed:
        raise OSError(f"the finished form of {live} does not read back")
    disk.rename(draft, sealed)


def _cut_bytes(data: bytes, checked: Checked) -> bytes:
    """Return the bytes that no good group covers, without the ordinary end of a sealed file."""
    if checked.sealed:
        return b""
    parts, at = [], checked.header_bytes
    for group in checked.groups:
        parts.append(data[at : group.offset_bytes])
        at = group.end_bytes
    return b"".join([*parts, data[at:]])


def quarantine_file(data_dir: DataDir, path: Path) -> Path:
    """Move a file to quarantine under a name that is free there."""
    disk.make_dir(data_dir.quarantine)
    target = _free_name(data_dir.quarantine / path.name)
    disk.rename(path, target)
    return target


def _quarantine_bytes(data_dir: DataDir, name: str, data: bytes) -> None:
    disk.make_dir(data_dir.quarantine)
    disk.write_file(_free_name(data_dir.quarantine / name), data)


def _free_name(path: Path) -> Path:
    """Return `path`, or `path.1`, `path.2` …: nothing in quarantine is ever overwritten."""
    number = 0
    free = path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}.{number}")
    return free
