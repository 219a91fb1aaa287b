"""Says for every segment of a tape whether it is whole, one sentence a finding; mends on request, deletes never."""

import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from recorder.runtime import disk
from recorder.runtime.data_dir import DataDir
from recorder.segments.check import Checked, check
from recorder.segments.encode import encode_segment
from recorder.segments.layout import (
    SEALED_SUFFIX,
    SegmentName,
    datetime_to_us,
    live_files,
    sealed_files,
    streams,
)
from recorder.segments.reader import read_segment
from recorder.segments.recovery import quarantine_file


@dataclass(frozen=True)
class Finding:
    """One sentence about one file."""

    path: Path
    what: str
    damage: bool  # False: worth knowing, not wrong
    rows_kept: int = 0

    def __str__(self) -> str:
        return f"{self.path}: {self.what}"


@dataclass
class Examined:
    """How much was looked at."""

    segments: int = 0
    rows: int = 0


def examine(data_dir: DataDir, examined: Examined) -> Iterator[Finding]:
    """Check every sealed and live segment, and yield what is to be said."""
    ids: dict[str, Path] = {}
    for stream in streams(data_dir):
        for path in sealed_files(data_dir, stream):
            examined.segments += 1
            try:
                checked = read_segment(path)
            except OSError as exc:
                yield Finding(path, f"cannot be read: {exc.strerror or exc}", damage=True)
                continue
            examined.rows += checked.rows
            yield from _examine_sealed(path, stream, checked)
            if checked.identity is not None:
                first = ids.setdefault(checked.identity.segment_id, path)
                if first != path:
                    yield Finding(path, f"is a copy of segment {first.name}: it counts once", damage=False)
        for path in live_files(data_dir, stream):
            try:
                checked = read_segment(path)
            except FileNotFoundError:
                continue  # sealed by the recorder meanwhile; it was verified then
            examined.segments += 1
            examined.rows += checked.rows
            yield from _examine_live(path, checked)


def repair(data_dir: DataDir, finding: Finding) -> Finding:
    """Write the good groups of a damaged sealed segment as a new one, and move the damaged file to quarantine.

    Call it under the lock, with findings of damage only.

    Raises:
        OSError: the disk refused; the damaged file is still in its place.
    """
    checked = read_segment(finding.path)
    if checked.newer_version:
        return replace(finding, what="is of a newer format: left where it is", damage=False)
    kept = None
    if checked.groups and checked.schema is not None and checked.identity is not None:
        kept = _write_salvage(data_dir, checked)
    moved = quarantine_file(data_dir, finding.path)
    if kept is None:
        return Finding(moved, "nothing in it could be kept", damage=True)
    return Finding(kept, f"keeps {checked.rows} rows of {finding.path.name}, which is now {moved}", damage=True)


def _examine_sealed(path: Path, stream: str, checked: Checked) -> Iterator[Finding]:
    kept = checked.rows
    for damage in checked.damage:
        yield Finding(path, f"is damaged {damage}; {kept} rows are good", damage=True, rows_kept=kept)
    if checked.damage:
        return
    if not checked.sealed or checked.identity is None:
        yield Finding(
            path, f"is not sealed: its footer is missing; {kept} rows are good", damage=True, rows_kept=kept
        )
        return
    if checked.identity.stream != stream:
        yield Finding(path, f"lies under {stream} but says it is of {checked.identity.stream}", damage=True)
    name = SegmentName.parse(path.name)
    if name is None:
        yield Finding(path, "is sound, but its name is no segment's name", damage=False)
    elif path.parent.name != f"date={name.date}":
        yield Finding(path, f"is sound, but lies in {path.parent.name} and began on {name.date}", damage=False)
    elif checked.rows and datetime_to_us(checked.table["received_at"][0].as_py()) != name.start_us:
        yield Finding(path, "is sound, but its name does not tell its first row's received_at", damage=False)


def _examine_live(path: Path, checked: Checked) -> Iterator[Finding]:
    tail_bytes = checked.size_bytes - checked.whole_bytes
    if checked.identity is None:
        what = checked.damage[0].what if checked.damage else "holds nothing yet"
        yield Finding(path, f"is a live file without a segment in it ({what})", damage=False)
    elif checked.groups and checked.groups[-1].offset_bytes > checked.whole_bytes:
        yield Finding(path, f"is damaged {checked.damage[0]}; {checked.rows} rows are good", damage=True)
    elif tail_bytes and not checked.sealed:
        yield Finding(
            path,
            f"is live or left by a crash: {checked.rows} rows are committed, {tail_bytes} bytes after them are not",
            damage=False,
        )


def _write_salvage(data_dir: DataDir, checked: Checked) -> Path:
    assert checked.schema is not None
    assert checked.identity is not None
    # The same damage gives the same id: a repair that is repeated after it failed half-way makes no second copy.
    origin = f"{checked.identity.segment_id} {checked.rows} {checked.crc32}"
    segment_id = str(uuid.uuid5(uuid.NAMESPACE_OID, origin))
    identity = replace(checked.identity, segment_id=segment_id, salvages=checked.identity.segment_id)
    start_us = datetime_to_us(checked.table["received_at"][0].as_py())
    name = SegmentName(start_us, identity.recorder, 1)
    folder = data_dir.sealed_dir(identity.stream, name.date)
    while (path := folder / f"{name}{SEALED_SUFFIX}").exists():
        there = read_segment(path)
        if there.sealed and there.identity is not None and there.identity.segment_id == segment_id:
            return path
        name = replace(name, seq=name.seq + 1)
    data = encode_segment(checked.schema, identity, [group.batch for group in checked.groups])
    draft = data_dir.live_dir(identity.stream) / f"{name}.salvage.tmp"
    disk.make_dir(draft.parent)
    disk.make_dir(folder)
    draft.unlink(missing_ok=True)
    disk.write_file(draft, data)
    if not check(draft.read_bytes()).sealed:
        raise OSError(f"what was kept of {path.name} does not read back")
    disk.rename(draft, path)
    return path
