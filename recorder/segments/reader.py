"""Reads segments back: one file whole, its identity alone, or a stream as it is at this moment."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from recorder.runtime.data_dir import DataDir
from recorder.segments.check import Checked, check
from recorder.segments.encode import FORMAT_VERSION, MAGIC, Identity
from recorder.segments.header import Refused, identity_of
from recorder.segments.layout import LIVE_SUFFIX, live_files, sealed_files
from recorder.segments.messages import ARROW_ERRORS

# A schema message of ours is 1 to 2 KB; metadata could grow, but not a hundredfold.
_SCHEMA_READ_BYTES = 4 * 1024
_SCHEMA_MAX_BYTES = 256 * 1024


def read_segment(path: Path) -> Checked:
    """Read and check one segment file, sealed or live.

    Raises:
        OSError: the file cannot be read (FileNotFoundError: it was sealed or pruned meanwhile).
    """
    return check(path.read_bytes())


def read_identity(path: Path) -> Identity | None:
    """Read who a segment is from its first bytes alone, unchecked; None if it is no segment of a known version.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        data = file.read(_SCHEMA_READ_BYTES)
        if len(data) == _SCHEMA_READ_BYTES and _head_bytes(data) > len(data):
            data += file.read(_SCHEMA_MAX_BYTES - len(data))
    if not data.startswith(MAGIC):
        return None
    try:
        return identity_of(pa.ipc.read_schema(pa.py_buffer(data[len(MAGIC) :])))
    except (*ARROW_ERRORS, Refused):
        return None


@dataclass(frozen=True)
class LeftOut:
    """A file whose rows, if it has any, are not among those of a stream; the reason is one sentence."""

    path: Path
    why: str

    def __str__(self) -> str:
        return f"{self.path}: {self.why}"


@dataclass(frozen=True)
class StreamSnapshot:
    """A stream as of one moment: sealed files to scan, and the live rows, already read and checked.

    No row is in both: a segment that was sealed between the two looks counts where it went last.
    """

    stream: str
    sealed: tuple[Path, ...]
    live: pa.Table | None  # None if the stream has no live segment
    left_out: tuple[LeftOut, ...] = ()  # live files, or what is damaged in one
    identities: tuple[Identity, ...] = ()  # of live segments


def snapshot(data_dir: DataDir, stream: str) -> StreamSnapshot:
    """Look at a stream while its recorder runs.

    Live files first, then the list of sealed ones: in the reverse order a segment that is sealed in between
    would be in neither.

    Raises:
        OSError: a file cannot be read for another reason than having moved.
    """
    live: dict[str, Checked] = {}
    left_out: dict[str, LeftOut] = {}
    for path in live_files(data_dir, stream):
        try:
            checked = read_segment(path)
        except FileNotFoundError:
            continue  # sealed since it was listed: the list of sealed ones, made below, has it
        name = path.name.removesuffix(LIVE_SUFFIX)
        why = _why_not(checked, stream)
        damage = [damage for damage in checked.damage if not damage.torn]  # torn is how a file ends that grows
        if not why:
            live[name] = checked
            if damage:
                left_out[name] = LeftOut(path, f"all but {checked.rows} rows, for {damage[0]}")
        elif not _just_created(checked):
            left_out[name] = LeftOut(path, why)
    sealed = sealed_files(data_dir, stream)
    for path in sealed:
        live.pop(path.stem, None)
        left_out.pop(path.stem, None)
    tables = [checked.table.replace_schema_metadata(None) for checked in live.values()]
    identities = tuple(checked.identity for checked in live.values() if checked.identity)
    return StreamSnapshot(
        stream, tuple(sealed), pa.concat_tables(tables) if tables else None, tuple(left_out.values()), identities
    )


class Choice(NamedTuple):
    """The sealed rows of a stream: files to scan, and what was read of files whose beginning is damaged."""

    paths: list[Path]
    rows: list[pa.Table]
    left_out: list[LeftOut]


def choose_sealed(paths: Iterable[Path], stream: str, archived: Collection[str] = frozenset()) -> Choice:
    """Choose those sealed files whose rows are a stream's, each row once, by what they say of themselves.

    A copy counts once, and of a damaged segment and what was salvaged of it the latter (both lie there if a repair
    was interrupted). Of several salvages of one segment, made of copies that were damaged differently, the largest
    file counts, of equal ones the first: all have a part of the same rows, and it has the most. Only the first bytes
    of a file are read, and they are believed; where they tell nothing the file is read and checked.

    Args:
        paths: the files.
        stream: whose they are.
        archived: segment_ids whose rows are found elsewhere, and those that these salvage: they, and what was
            salvaged of them, are not chosen.

    Raises:
        OSError: a file cannot be read.
    """
    chosen: dict[str, Path | pa.Table] = {}
    salvages: dict[str, dict[str, int]] = {}  # by the damaged one's id, those of its salvages, each with its size
    left_out = []
    for path in paths:
        identity = read_identity(path)
        rows: Path | pa.Table = path
        if identity is None or identity.stream != stream:
            found = read_segment(path)
            identity, why = found.identity, _why_not(found, stream)
            damage = found.damage[0].what if found.damage else "its beginning is longer than is looked at"
            if identity is None or why or not found.identity_proven:
                left_out.append(LeftOut(path, why or damage))
                continue
            left_out.append(LeftOut(path, f"all but {found.rows} rows, for {damage}"))
            rows = found.table.replace_schema_metadata(None)
        if identity.segment_id in archived or identity.salvages in archived or identity.segment_id in chosen:
            continue
        chosen[identity.segment_id] = rows
        if identity.salvages:
            salvages.setdefault(identity.salvages, {})[identity.segment_id] = path.stat().st_size
    dropped = set(salvages)
    for sizes in salvages.values():
        dropped |= sizes.keys() - {max(sizes, key=sizes.__getitem__)}
    kept = [one for segment_id, one in chosen.items() if segment_id not in dropped]
    return Choice(
        [one for one in kept if isinstance(one, Path)], [one for one in kept if isinstance(one, pa.Table)], left_out
    )


def _why_not(checked: Checked, stream: str) -> str:
    """Return why a file's rows are not this stream's; an empty text if they are."""
    if checked.newer_version:
        return f"its format version is {checked.newer_version}, this program knows {FORMAT_VERSION}: left where it is"
    if checked.identity is None:
        return f"it is no segment ({checked.damage[0].what})" if checked.damage else "it is no segment"
    if checked.identity.stream != stream:
        return f"it is of stream {checked.identity.stream}, but lies under {stream}"
    return ""


def _just_created(checked: Checked) -> bool:
    """Whether a live file has no whole header yet, or never got one: there is nothing to leave out."""
    return checked.identity is None and not checked.newer_version and all(damage.torn for damage in checked.damage)


def _head_bytes(data: bytes) -> int:
    """Return how long a file's head is, its schema message included."""
    if len(data) < len(MAGIC) + 8:
        return len(data)
    length = int.from_bytes(data[len(MAGIC) + 4 : len(MAGIC) + 8], "little", signed=True)
    return len(MAGIC) + 8 + max(length, 0)
