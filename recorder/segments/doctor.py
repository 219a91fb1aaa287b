"""Says for every file of a tape whether it is whole, one sentence a finding; mends on request, deletes never."""

import os
import uuid
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from recorder.runtime import disk
from recorder.runtime.data_dir import NOT_STREAMS, DataDir
from recorder.segments.check import Checked, check
from recorder.segments.encode import encode_segment
from recorder.segments.layout import (
    LIVE_SUFFIX,
    SEALED_SUFFIX,
    SegmentName,
    datetime_to_us,
    live_path,
    sealed_path,
)
from recorder.segments.reader import read_segment
from recorder.segments.recovery import quarantine_file
from recorder.segments.schemas import stream_kind


@dataclass(frozen=True)
class Finding:
    """One sentence about one file or folder."""

    path: Path
    what: str
    damage: bool  # False: worth knowing, not wrong
    rows_kept: int = 0
    mendable: bool = True  # False: nothing that a program may decide

    def __str__(self) -> str:
        return f"{self.path}: {self.what}"


@dataclass
class Examined:
    """How much was looked at, and which sound sealed segments there are."""

    segments: int = 0
    rows: int = 0
    sound: dict[str, Path] = field(default_factory=dict)  # by segment_id
    salvaged: dict[str, Path] = field(default_factory=dict)  # those that salvage one, by that one's segment_id
    crc32: dict[str, str] = field(default_factory=dict)  # of the sound ones, by segment_id


def examine(data_dir: DataDir, examined: Examined) -> Iterator[Finding]:
    """Check every sealed and live segment, and yield what is to be said.

    Raises:
        OSError: the data directory itself cannot be read.
    """
    for entry in _listed(data_dir.root):
        if entry.name not in NOT_STREAMS and not (entry.is_dir() and stream_kind(entry.name)):
            yield Finding(Path(entry.path), "is no part of a tape", damage=False)
    for stream in _streams(data_dir.root):
        yield from _examine_stream(data_dir, stream, examined)
    yield from examine_live(data_dir, examined)


def examine_live(data_dir: DataDir, examined: Examined) -> Iterator[Finding]:
    """Check every live segment, and yield what is to be said."""
    if not data_dir.live.is_dir():
        return
    streams = yield from _readable(data_dir.live)
    for folder in streams:
        if not (folder.is_dir() and stream_kind(folder.name)):
            yield Finding(Path(folder.path), "is no stream's folder of live segments", damage=False)
            continue
        for entry in (yield from _readable(Path(folder.path))):
            path = Path(entry.path)
            if not entry.name.endswith(LIVE_SUFFIX) or not entry.is_file():
                yield Finding(path, "is no live segment; nothing reads it", damage=False)
                continue
            try:
                checked = read_segment(path)
            except FileNotFoundError:
                continue  # sealed by the recorder meanwhile; it was verified then
            except OSError as exc:
                yield _unreadable(path, exc)
                continue
            examined.segments += 1
            examined.rows += checked.rows
            yield from _about_live(data_dir, folder.name, path, checked)


def clear_the_way(data_dir: DataDir) -> Iterator[Finding]:
    """Put aside what would keep recovery from a live file's rows, or lead it astray. Call it under the lock.

    A live file gives way to a sealed one of its name, whatever that holds, and goes where it says it is of. So a
    sealed one that is damaged, and a live one of a stream that its folder is not of, go to quarantine.

    Raises:
        OSError: the disk refused; call it again.
    """
    for stream in _streams(data_dir.live):
        for entry in _listed(data_dir.live_dir(stream)):
            name = SegmentName.parse(entry.name) if entry.name.endswith(LIVE_SUFFIX) and entry.is_file() else None
            if name is None:
                continue
            live = read_segment(Path(entry.path))
            if live.identity is None:
                continue
            if live.identity.stream != stream:
                moved = quarantine_file(data_dir, Path(entry.path))
                yield Finding(moved, f"lay under {stream} and says it is of {live.identity.stream}", damage=True)
                continue
            twin = sealed_path(data_dir, stream, name)
            if not twin.exists():
                continue
            sealed = read_segment(twin)
            if not sealed.sealed and not sealed.newer_version and live.rows >= sealed.rows:
                moved = quarantine_file(data_dir, twin)
                yield Finding(moved, f"was damaged; its rows are in the live file {entry.name}", damage=True)


def repair(data_dir: DataDir, finding: Finding, examined: Examined) -> Finding:
    """Keep what is good of a damaged sealed file: its good groups as a new segment, itself in quarantine.

    Call it under the lock, with findings of damage only, those with the most rows first: of several damaged copies of
    a segment the first is the one whose rows are kept.

    Raises:
        OSError: the disk refused; the damaged file is still in its place.
    """
    path = finding.path
    if not finding.mendable:
        return replace(finding, what="is left where it is")
    checked = read_segment(path)
    identity = checked.identity
    if checked.sealed and identity is not None:
        return _move_home(data_dir, path, checked)
    if identity is None or not checked.rows or checked.schema is None:
        moved = quarantine_file(data_dir, path)
        return Finding(moved, f"was {path.name}; nothing in it could be kept", damage=True)
    if not checked.identity_proven:
        moved = quarantine_file(data_dir, path)
        what = f"was {path.name}; whose its {checked.rows} good rows are cannot be told any more: none was kept"
        return Finding(moved, what, damage=True)
    root = identity.salvages or identity.segment_id
    whole = examined.sound.get(identity.segment_id) or examined.sound.get(root) or examined.salvaged.get(root)
    if whole is not None:
        moved = quarantine_file(data_dir, path)
        return Finding(moved, f"was {path.name}; its rows are in {whole.name} already", damage=True)
    kept = examined.salvaged[root] = _write_salvage(data_dir, checked, root)
    moved = quarantine_file(data_dir, path)
    return Finding(kept, f"keeps {checked.rows} rows of {path.name}, which is now {moved}", damage=True)


# Sealed segments


def _examine_stream(data_dir: DataDir, stream: str, examined: Examined) -> Iterator[Finding]:
    for date in (yield from _readable(data_dir.root / stream)):
        if not (date.is_dir() and date.name.startswith("date=")):
            yield Finding(Path(date.path), "is no folder of a date; nothing reads it", damage=False)
            continue
        for entry in (yield from _readable(Path(date.path))):
            path = Path(entry.path)
            if not entry.name.endswith(SEALED_SUFFIX) or not entry.is_file():
                yield Finding(path, "is no sealed segment; nothing reads it", damage=False)
                continue
            examined.segments += 1
            try:
                checked = read_segment(path)
            except FileNotFoundError:
                continue  # moved meanwhile
            except OSError as exc:
                yield _unreadable(path, exc)
                continue
            examined.rows += checked.rows
            yield from _about_sealed(path, stream, checked)
            yield from _note(path, checked, examined)


def _note(path: Path, checked: Checked, examined: Examined) -> Iterator[Finding]:
    """Remember a sound segment; say so if it is there already."""
    if not checked.sealed or checked.identity is None:
        return
    segment_id, salvages = checked.identity.segment_id, checked.identity.salvages
    first = examined.sound.setdefault(segment_id, path)
    if salvages:
        examined.salvaged.setdefault(salvages, path)
    if examined.crc32.setdefault(segment_id, checked.crc32) != checked.crc32:
        what = f"has the segment_id of {first.name}, but other rows: only one of them counts"
        yield Finding(path, what, damage=True, mendable=False)
    elif first != path:
        yield Finding(path, f"is a copy of segment {first.name}: it counts once", damage=False)


def _about_sealed(path: Path, stream: str, checked: Checked) -> Iterator[Finding]:
    kept = checked.rows
    if checked.newer_version:
        what = f"is of format version {checked.newer_version}, which this program does not know"
        yield Finding(path, what, damage=True, mendable=False)
        return
    if not checked.size_bytes:
        yield Finding(path, "is empty", damage=True)
        return
    for damage in checked.damage:
        yield Finding(path, f"is damaged {damage}; {_rows(kept)} good", damage=True, rows_kept=kept)
    if checked.damage:
        return
    if not checked.sealed or checked.identity is None:
        what = f"is not sealed: its footer is missing; {_rows(kept)} good"
        yield Finding(path, what, damage=True, rows_kept=kept)
        return
    if checked.identity.stream != stream:
        yield Finding(path, f"lies under {stream} but says it is of {checked.identity.stream}", damage=True)
        return
    name = SegmentName.parse(path.name)
    if name is None:
        yield Finding(path, "is sound, but its name is no segment's name", damage=False)
    elif path.parent.name != f"date={name.date}":
        yield Finding(path, f"is sound, but lies in {path.parent.name} and began on {name.date}", damage=False)
    elif checked.rows and _start_us(checked) != name.start_us:
        yield Finding(path, "is sound, but its name does not tell its first row's received_at", damage=False)


def _move_home(data_dir: DataDir, path: Path, checked: Checked) -> Finding:
    """Move a sound segment to the folder of its stream."""
    assert checked.identity is not None
    name = SegmentName.parse(path.name) or SegmentName(_start_us(checked), checked.identity.recorder, 1)
    home = sealed_path(data_dir, checked.identity.stream, name)
    if home.exists():
        moved = quarantine_file(data_dir, path)
        return Finding(moved, f"was {path.name}; where it belongs is a file of that name already", damage=True)
    disk.make_dir(home.parent)
    disk.rename(path, home)
    return Finding(home, f"was moved here from {path.parent}, where it did not belong", damage=True)


def _write_salvage(data_dir: DataDir, checked: Checked, root: str) -> Path:
    assert checked.schema is not None
    assert checked.identity is not None
    # The same damage gives the same id: a repair that is repeated after it failed half-way makes no second copy.
    numbers = ",".join(str(group.number) for group in checked.groups)
    origin = f"{checked.identity.segment_id} {numbers} {checked.crc32}"
    segment_id = str(uuid.uuid5(uuid.NAMESPACE_OID, origin))
    # Of what was salvaged before, the first damaged one is named: it is the one that a database may have whole.
    identity = replace(checked.identity, segment_id=segment_id, salvages=root)
    name = SegmentName(_start_us(checked), identity.recorder, 1)
    while (path := sealed_path(data_dir, identity.stream, name)).exists() or live_path(
        data_dir, identity.stream, name
    ).exists():
        name = replace(name, seq=name.seq + 1)
    data = encode_segment(checked.schema, identity, [group.batch for group in checked.groups])
    draft = data_dir.live_dir(identity.stream) / f"{name}.salvage.tmp"
    disk.make_dir(draft.parent)
    disk.make_dir(path.parent)
    disk.discard(draft)
    disk.write_file(draft, data)
    if not check(draft.read_bytes()).sealed:
        raise OSError(f"what was kept of {path.name} does not read back")
    disk.rename(draft, path)
    return path


# Live segments


def _about_live(data_dir: DataDir, stream: str, path: Path, checked: Checked) -> Iterator[Finding]:
    name = SegmentName.parse(path.name)
    broken = [damage for damage in checked.damage if not damage.torn]
    if checked.newer_version:
        what = f"is of format version {checked.newer_version}, which this program does not know"
        yield Finding(path, what, damage=True, mendable=False)
    elif broken:
        for damage in broken:
            yield Finding(path, f"is damaged {damage}; {_rows(checked.rows)} good", damage=True)
    elif name is None:
        yield Finding(path, "is a live file whose name is no segment's name", damage=False)
    elif checked.identity is None:
        what = checked.damage[0].what if checked.size_bytes and checked.damage else "it is empty"
        yield Finding(path, f"is a live file without a segment in it ({what})", damage=False)
    elif checked.identity.stream != stream:
        yield Finding(path, f"lies under {stream} but says it is of {checked.identity.stream}", damage=True)
    elif _is_there(sealed_path(data_dir, stream, name)):
        yield Finding(path, "is finished: the sealed file of its name counts", damage=False)
    elif checked.damage:
        tail_bytes = checked.size_bytes - checked.whole_bytes
        what = f"{_rows(checked.rows)} committed, {tail_bytes} bytes after them are not"
        yield Finding(path, f"is live or left by a crash: {what}", damage=False)


# Listings


def _listed(folder: Path) -> list["os.DirEntry[str]"]:
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def _readable(folder: Path) -> Generator[Finding, None, list["os.DirEntry[str]"]]:
    """List a folder; one that cannot be read is a finding. Use it with `yield from`, which gives the entries."""
    try:
        return _listed(folder)
    except FileNotFoundError:
        return []
    except OSError as exc:
        yield _unreadable(folder, exc)
        return []


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        return False  # its folder cannot be read, and is named for that


def _streams(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    return [
        entry.name
        for entry in _listed(folder)
        if entry.is_dir() and entry.name not in NOT_STREAMS and stream_kind(entry.name)
    ]


def _unreadable(path: Path, exc: OSError) -> Finding:
    return Finding(path, f"cannot be read: {exc.strerror or exc}", damage=True, mendable=False)


def _start_us(checked: Checked) -> int:
    return datetime_to_us(checked.table["received_at"][0].as_py())


def _rows(count: int) -> str:
    return "1 row is" if count == 1 else f"{count} rows are"
