"""Archives the days of a tape: whole segments into parts, each read back, then told by its manifest. Never rewrites.

Order is everything: note the part's name, write a draft, put it in place, read it back from there, publish the
manifest, forget the note. Who dies in between leaves a part that no manifest names; the next archiver of the tape
makes it again under the same name, or clears it away.

Like a loader it fsyncs a folder before it takes a segment of it (see loader.load): what was archived must still be on
the tape after a power loss, or its trades would be fetched, and archived, once more under another segment_id.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from loader.archive import part
from loader.archive.collect import DateFolder, Piece, candidates, date_folders, read
from loader.archive.lock import Journal, Note, archiving
from loader.archive.plan import MOST_ROWS, Choice, Known, date_of, in_parts, name_part
from loader.archive.read import Archive
from loader.archive.store import Store
from loader.errors import ArchiveAway, ArchiveDamaged
from loader.inbox import Candidate
from loader.prepare import Gone, Refused
from recorder.runtime import disk
from recorder.runtime.data_dir import DataDir
from recorder.runtime.logging import get_logger
from recorder.runtime.version import software
from recorder.segments.manifest import Manifest, encode, manifest_name, part_name

# A folder that has not changed for so long shows its next change in its mtime, however coarse that is.
_QUIET_NS = 5_000_000_000

log = get_logger("archive")


@dataclass
class Tally:
    """What one run did."""

    parts: int = 0
    segments: int = 0
    rows: int = 0
    bytes: int = 0
    refused: dict[str, str] = field(default_factory=dict)  # file, folder, or manifest -> reason


def _utc_now() -> datetime:
    return datetime.now(UTC)


class Archiver:
    """Archives one tape into one store, run after run."""

    def __init__(
        self,
        data_dir: DataDir,
        store: Store,
        *,
        compression: str,
        check: Callable[[], None],
        now: Callable[[], datetime] = _utc_now,
        most_rows: int = MOST_ROWS,
    ) -> None:
        """Take what to archive, and where to.

        Args:
            data_dir: the tape; nothing of it is changed but the archive's own folder.
            store: the archive.
            compression: `zstd` or `snappy`.
            check: called now and then; what it raises (loader.errors.Stopped) ends a run, and nothing is half done.
            now: the time.
            most_rows: of one part.
        """
        self._data_dir = data_dir
        self._store = store
        self._archive = Archive(store, check)
        self._compression = compression
        self._check = check
        self._now = now
        self._most_rows = most_rows
        # Folders with which nothing is to be done until they change, by their mtime.
        self._settled: dict[tuple[str, str], int] = {}

    def run(self, choice: Choice) -> Tally:
        """Archive what is on the tape and not in the archive, of the days that are chosen.

        A day of which something reads back otherwise than it was written is not gone on with, and named.

        Raises:
            ArchiverAtWork: another process archives this tape.
            ArchiveAway: the archive cannot be used; what was published stays.
        """
        tally = Tally()
        with archiving(self._data_dir) as journal:
            try:
                self._clear_away(journal)
                for folder in list(date_folders(self._data_dir)):
                    try:
                        self._folder(folder, choice, journal, tally)
                    except ArchiveDamaged as exc:  # the other days are none the worse for it
                        tally.refused[f"{folder.stream}/{folder.name}"] = str(exc)
            except OSError as exc:
                where = f" {exc.filename}" if exc.filename else ""
                raise ArchiveAway(f"archiving to {self._store.shown} failed:{where} {exc.strerror or exc}") from exc
        return tally

    def _clear_away(self, journal: Journal) -> None:
        """Remove what an archiver that died left behind."""
        note = journal.read()
        if note is None:
            return
        disk.discard(self._draft(note.part))
        if note.archive != self._store.shown:
            log.warning("archive.left_behind", archive=note.archive, part=note.part)
        elif self._store.size(manifest_name(*_split(note.part))) is None:
            self._store.remove(note.part)
        journal.write(None)

    def _folder(self, folder: DateFolder, choice: Choice, journal: Journal, tally: Tally) -> None:
        day = date_of(folder.name)
        place = f"{folder.stream}/{folder.name}"
        if day is None:
            tally.refused[place] = "its name is no date"
            return
        if not choice.wants(day, self._now()) or self._settled.get((folder.stream, folder.name)) == folder.mtime_ns:
            return
        looked_ns, refused = time.time_ns(), len(tally.refused)
        known = Known(self._archive.manifests(folder.stream, day.isoformat()))
        if self._archive.damaged:
            # What it named would be archived a second time, and who reads the Parquet itself would see it twice.
            for name, why in self._archive.damaged.items():
                tally.refused[name] = f"{why}; remove it and its part if the segments are on the tape"
            return
        try:
            listed = [
                one for one in candidates(self._data_dir, folder.stream, folder.name) if not known.has_file(one)
            ]
        except OSError as exc:
            tally.refused[place] = f"cannot be looked into: {exc.strerror or exc}"
            return
        if listed:
            with contextlib.suppress(OSError):  # of a medium that cannot be written nothing can be lost
                disk.fsync_dir(listed[0].path.parent)
        for pieces in in_parts(self._pieces(listed, known, tally), self._most_rows):
            self._part(folder.stream, day.isoformat(), pieces, journal, tally)
        if len(tally.refused) == refused and looked_ns - folder.mtime_ns > _QUIET_NS:
            self._settled[folder.stream, folder.name] = folder.mtime_ns

    def _pieces(self, listed: list[Candidate], known: Known, tally: Tally) -> Iterator[Piece]:
        """Read the segments that are to be archived, one at a time."""
        for candidate in listed:
            self._check()
            piece = read(candidate)
            if isinstance(piece, Gone):
                continue
            if isinstance(piece, Refused):
                tally.refused[candidate.name] = piece.reason
                continue
            identity = piece.identity
            if known.has(identity.segment_id, identity.salvages):
                continue
            if why := known.why_not(identity.segment_id):
                tally.refused[candidate.name] = why
                continue
            known.add(identity)
            yield piece

    def _part(self, stream: str, date: str, pieces: list[Piece], journal: Journal, tally: Tally) -> None:
        begun = time.monotonic()
        segments = tuple(piece.segment for piece in pieces)
        tables = [piece.table for piece in pieces]
        pieces.clear()
        file = name_part(segments)
        name = part_name(stream, date, file)
        journal.write(Note(self._store.shown, name))
        rows = part.Rows(stream, segments, tables)
        draft = self._draft(name)
        disk.make_dir(draft.parent)
        disk.discard(draft)
        try:
            written = part.write(draft, rows, compression=self._compression, check=self._check)
            self._store.put(name, draft)
        finally:
            disk.discard(draft)
        self._verify(name, rows, written)
        manifest = Manifest(
            stream=stream, date=date, part=file, bytes=written.bytes, sha256=written.sha256, rows=rows.count,
            compression=self._compression, software=software(), made_at=self._now(), segments=segments,
        )  # fmt: skip
        self._store.put_bytes(manifest.name, encode(manifest))
        journal.write(None)
        tally.parts += 1
        tally.segments += len(segments)
        tally.rows += rows.count
        tally.bytes += written.bytes
        log.info(
            "archive.part",
            part=name, segments=len(segments), rows=rows.count, bytes=written.bytes,
            seconds=round(time.monotonic() - begun, 3),
        )  # fmt: skip

    def _verify(self, name: str, rows: part.Rows, written: part.Written) -> None:
        """Read a part back from where it lies; one that is not what was written is removed."""
        try:
            with self._store.opened(name) as file:
                part.verify(file, rows, written, self._check)
        except FileNotFoundError as exc:
            raise ArchiveDamaged(f"{self._store.shown}: {name} is not there after it was written") from exc
        except ArchiveDamaged as exc:
            self._store.remove(name)
            raise ArchiveDamaged(
                f"{self._store.shown}: {name}: {exc.what}", remedy="check that disk or server; the tape has it all"
            ) from exc

    def _draft(self, name: str) -> Path:
        return self._store.drafts / (name.replace("/", "_") + ".tmp")


def _split(name: str) -> tuple[str, str, str]:
    stream, folder, file = name.split("/")
    return stream, folder.removeprefix("date="), file
