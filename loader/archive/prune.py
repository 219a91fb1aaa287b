"""Removes segments that the archive holds: the only thing here that takes anything from a tape.

What may go is decided by one pure function over facts (`why_kept`); a doubt keeps the file.
"""

import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, time, timedelta
from uuid import UUID

import pyarrow as pa

from loader.archive.collect import DateFolder, candidates, date_folders
from loader.archive.plan import date_of
from loader.archive.read import Archive
from loader.errors import ArchiveAway, NoArchive
from loader.inbox import Candidate
from recorder.runtime import disk
from recorder.runtime.data_dir import DataDir
from recorder.segments.manifest import ArchivedSegment, Manifest
from recorder.segments.reader import read_identity, read_segment
from recorder.segments.schemas import stream_kind

# A reader that planned before a manifest was published still finds the files it planned for.
MANIFEST_AGE = timedelta(hours=1)
# What the recorder may still need to settle a gap is younger: the youngest fate is `lost`, a day after it was told.
STATE_AGE = timedelta(days=2)
# A folder that a recorder, or a repair, may still put a segment into is younger.
FOLDER_AGE = timedelta(days=2)


@dataclass(frozen=True)
class Facts:
    """What is known of one sealed file."""

    archived: ArchivedSegment | None  # as the archive has it; None if no manifest names it
    made_at: datetime | None  # of that manifest
    part_problem: str  # what is wrong with the part; "" if it is there as it was written
    newest: bool  # by its name, or because no other segment names it as the one before it: a start needs it
    needed_kind: bool  # of a stream that the recorder's state follows
    folded: bool  # the state says that this segment is in it


def why_kept(facts: Facts, *, now: datetime, keep: timedelta) -> str:
    """Decide whether a segment stays; return why, or "" if it may go as far as all but its own bytes tell. Pure."""
    archived = facts.archived
    if archived is None or facts.made_at is None:
        return "not in the archive"
    if facts.part_problem:
        return "its part of the archive is not whole"
    if now - facts.made_at < MANIFEST_AGE:
        return "archived within the last hour"
    age = now - (archived.last_received_at or datetime.fromisoformat(archived.started_at))
    if age <= keep:
        return "younger than --keep"
    if facts.newest:
        return "the newest of its stream"
    if facts.needed_kind and age <= STATE_AGE:
        return "trades and gaps of the last two days"
    if facts.needed_kind and not facts.folded:
        return "needed by the recorder: not in state/ yet"
    return ""


@dataclass
class Pruned:
    """What one run removed, or would remove."""

    segments: Counter[str] = field(default_factory=Counter)  # by stream
    bytes: Counter[str] = field(default_factory=Counter)
    kept: Counter[str] = field(default_factory=Counter)  # by reason
    problems: dict[str, str] = field(default_factory=dict)  # part, manifest, or file -> what is wrong


class _Held:
    """What the archive has of a stream's day, by file name and by segment_id."""

    def __init__(self, manifests: Iterable[Manifest]) -> None:
        self.segments = [(manifest, segment) for manifest in manifests for segment in manifest.segments]
        self._by_name = {segment.name: (manifest, segment) for manifest, segment in self.segments}
        self._by_id = {_uuid(segment.segment_id): (manifest, segment) for manifest, segment in self.segments}

    def of(self, file: Candidate) -> tuple[Manifest, ArchivedSegment] | None:
        """Return what a file claims to be, by its name, or where that tells nothing (a copy) by its header."""
        if found := self._by_name.get(file.name):
            return found
        identity = read_identity(file.path)
        return self._by_id.get(_uuid(identity.segment_id)) if identity else None


class Pruner:
    """One prune of one tape."""

    def __init__(
        self,
        data_dir: DataDir,
        archive: Archive,
        *,
        keep: timedelta,
        dry_run: bool,
        check: Callable[[], None],
        now: datetime | None = None,
    ) -> None:
        """Take what to prune, and by what.

        Args:
            data_dir: the tape; its recorder may run.
            archive: only what it holds may go.
            keep: what is younger stays.
            dry_run: nothing is removed.
            check: called between two files; what it raises ends the run.
            now: the time; None for the clock's.
        """
        self._data_dir = data_dir
        self._archive = archive
        self._keep = keep
        self._dry_run = dry_run
        self._check = check
        self._now = now or datetime.now(UTC)
        self._pruned = Pruned()

    def run(self) -> Pruned:
        """Remove what may go; return what was removed.

        Raises:
            NoArchive: there is no manifest at all.
            ArchiveAway: the archive cannot be read; what was removed until then was archived.
        """
        if self._archive.is_empty():
            raise NoArchive(f"nothing was pruned: there is no archive in {self._archive.shown}",
                            remedy="python -m loader archive makes it")  # fmt: skip
        folded = read_folded(self._data_dir)
        try:
            folders: dict[str, list[DateFolder]] = {}
            for folder in date_folders(self._data_dir):
                folders.setdefault(folder.stream, []).append(folder)
            for stream, of_stream in folders.items():
                self._stream(stream, of_stream, folded.get(stream, {}))
        except OSError as exc:
            raise ArchiveAway(f"pruning failed: {exc.filename or ''} {exc.strerror or exc}") from exc
        return self._pruned

    def _stream(self, stream: str, folders: list[DateFolder], folded: Mapping[str, str]) -> None:
        newest, named = "", set[str]()
        for folder in folders:
            files = self._files(folder)
            newest = max([newest, *(file.path.name for file in files)])
            named.update(self._named(files, _Held(self._manifests(folder))))
        for folder in folders:
            files = self._files(folder)
            day = date_of(folder.name)
            if day and self._now - datetime.combine(day, time(), tzinfo=UTC) <= self._keep:
                self._pruned.kept["younger than --keep"] += len(files)
                continue  # so its parts need not be looked at
            manifests = self._manifests(folder) if files else []
            held, problems = _Held(manifests), self._problems(manifests)
            for file in files:
                self._check()
                manifest, archived = held.of(file) or (None, None)
                facts = Facts(
                    archived=archived,
                    made_at=manifest.made_at if manifest else None,
                    part_problem=problems.get(manifest.part_name, "") if manifest else "",
                    newest=file.path.name == newest or (archived is not None and _ids(archived).isdisjoint(named)),
                    needed_kind=stream_kind(stream) in ("trades", "gaps"),
                    folded=archived is not None and folded.get(file.path.name) == archived.segment_id,
                )
                self._decide(file, facts)
            self._remove_folder(folder)

    def _decide(self, file: Candidate, facts: Facts) -> None:
        why = why_kept(facts, now=self._now, keep=self._keep)
        if not why and facts.archived and (why := _other_bytes(file, facts.archived)):
            self._pruned.problems[file.name] = why
        if why:
            self._pruned.kept[why] += 1
        else:
            self._remove(file)

    def _files(self, folder: DateFolder) -> list[Candidate]:
        try:
            return candidates(self._data_dir, folder.stream, folder.name)
        except FileNotFoundError:
            return []  # removed by another prune

    def _manifests(self, folder: DateFolder) -> list[Manifest]:
        day = date_of(folder.name)
        found = self._archive.manifests(folder.stream, day.isoformat()) if day else []
        self._pruned.problems |= self._archive.damaged
        return found

    def _problems(self, manifests: Iterable[Manifest]) -> dict[str, str]:
        """Return what is wrong with parts, by their names.

        What was written to a server was read back from there; a disk of one's own may have rotted since.
        """
        problems = {}
        for manifest in manifests:
            self._check()
            if why := self._archive.why_not_there(manifest, bytes_too=self._archive.is_local):
                problems[manifest.part_name] = why
        self._pruned.problems |= problems
        return problems

    def _named(self, files: Iterable[Candidate], held: _Held) -> Iterator[str]:
        """Yield the ids that the segments of a day name as the one before them."""
        for _, segment in held.segments:
            yield segment.previous
        for file in files:
            if not held.of(file) and (identity := read_identity(file.path)):
                yield identity.previous

    def _remove(self, file: Candidate) -> None:
        if not self._dry_run:
            try:
                disk.remove(file.path)
            except FileNotFoundError:
                return  # another prune was faster
        self._pruned.segments[file.stream] += 1
        self._pruned.bytes[file.stream] += file.size_bytes

    def _remove_folder(self, folder: DateFolder) -> None:
        day = date_of(folder.name)
        if not self._dry_run and day and self._now.date() - day > FOLDER_AGE:
            disk.remove_empty_dir(self._data_dir.root / folder.stream / folder.name)


def _other_bytes(file: Candidate, archived: ArchivedSegment) -> str:
    """Return why a file is not, byte for byte, what was archived; "" if it is."""
    checked = read_segment(file.path)
    identity = checked.identity
    if identity is None or _uuid(identity.segment_id) != _uuid(archived.segment_id):
        return "it is not the segment that was archived under its name"
    if checked.damage or not checked.sealed:
        return "it is damaged since it was archived"
    if (checked.crc32, checked.rows) != (archived.crc32, archived.rows):
        return "its rows are not those that were archived"
    return ""


def _ids(segment: ArchivedSegment) -> set[str]:
    return {segment.segment_id, segment.salvages} - {""}


def read_folded(data_dir: DataDir) -> dict[str, dict[str, str]]:
    """Return which segments of trades and gaps the recorder's state has: by stream, segment_id by file name.

    Whatever is wrong with the state, nothing is in it: its recorder will read the segments again.
    """
    try:
        table = pa.ipc.open_file((data_dir.state / "trades.arrow").read_bytes()).read_all()
        metadata = table.schema.metadata or {}
        text = metadata[b"state"].decode()
        # As recorder.tape_state writes it.
        if metadata[b"crc32"].decode() != f"{zlib.crc32((text + json.dumps(table.to_pylist())).encode()):08x}":
            return {}
        folded = json.loads(text)["folded"]
        return {
            str(stream): {str(name): str(segment_id) for name, segment_id in names.items()}
            for stream, names in folded.items()
        }
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError, AttributeError):
        return {}


def _uuid(text: str) -> str:
    try:
        return str(UUID(text))
    except ValueError:
        return text
