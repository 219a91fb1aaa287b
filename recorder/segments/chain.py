"""Where a stream ends: the segment that was written last and its last durable row, whatever the clock did meanwhile.

A name tells the wall clock of its time: after a step backwards a later segment has an earlier name. (Times of files
are of the same clock, and are not kept by a copy.) What tells the order of writing is `previous`: the last segment is
the one that no other names. So that a start need not read the identity of every file, `state/ends/<stream>.json.gz`
remembers an end and the names that lay there when it was the end. Its writer held the lock, so whatever was there
was written before; a start reads only what has come since. It is a cache: it may be missing or older than the last
seals, and the names that are not in it then tell how it went on; without it every identity is read, once.
"""

import gzip
import json
import zlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from recorder.runtime import disk
from recorder.runtime.data_dir import DataDir
from recorder.segments.encode import Identity
from recorder.segments.layout import sealed_files
from recorder.segments.reader import read_identity, read_segment


@dataclass(frozen=True)
class End:
    """The end of a stream; of a new one, nothing."""

    segment_id: str = ""  # of the segment written last
    started_at: str = ""  # its own
    last_us: int | None = None  # `received_at` of the last durable row
    exchange_us: int | None = None  # the newest time that the exchange put on a row, as far as was looked

    def after(self, rows: pa.Table | pa.RecordBatch) -> "End":
        """Return the end once these rows are durable."""
        if not rows.num_rows:
            return self
        newest = pc.max(rows["timestamp"]).value
        known = [us for us in (self.exchange_us, newest) if us is not None]
        return replace(self, last_us=rows["received_at"][-1].value, exchange_us=max(known, default=None))

    def whole_until_us(self, now_us: int) -> int | None:
        """Return until when nothing was missing, by the clock that says it is `now_us`; None on a new stream.

        That is the exchange's newest time on a row, at the latest the last row's `received_at`: a recorder that fell
        behind before it died had not read yet what was sent between the two. Where `received_at` lies in the future
        the clock was set back since, nobody knows by how much, and the exchange's time is the one that is sure.
        """
        known = [us for us in (self.last_us, self.exchange_us) if us is not None]
        return min(now_us, *known) if known else None


def find_end(data_dir: DataDir, stream: str) -> End:
    """Find the end of a stream whose live segments are finished. Call it under the lock.

    Raises:
        OSError: a folder cannot be read. A file that cannot be read is named by doctor; the stream ends before it.
    """
    end, known = _load(_file(data_dir, stream))
    paths = sealed_files(data_dir, stream)
    found = _identities(path for path in paths if path.name not in known)
    lines = lines_after(end, found)
    if known and any(not joined for _, joined in lines):
        # A copy, something put back, or a hole in the chain: only the whole chain tells which. What a known file
        # holds was written before the end, under whichever names it lies there.
        before = _identities(path for path in paths if path.name in known)
        lines = [(line, joined) for line, joined in lines_after(end, found | before) if line[0] not in before]
    return _read_end(end, newest_line(end, lines), found)


def save_end(data_dir: DataDir, stream: str, end: End) -> None:
    """Remember an end whose segment was just sealed. Call it under the lock.

    Raises:
        OSError: the disk refused; what was remembered before stands, and is as good as it was.
    """
    content = {"end": asdict(end), "names": [path.name for path in sealed_files(data_dir, stream)]}
    file = _file(data_dir, stream)
    disk.make_dir(file.parent)
    # gzip for its checksum and because names are much alike; level 1 as it is done at every seal.
    disk.replace_file(file, gzip.compress(json.dumps(content).encode(), compresslevel=1, mtime=0))


Line = list[Identity]  # segments that name one another, the last first


def lines_after(end: End, found: Iterable[Identity]) -> list[tuple[Line, bool]]:
    """Return a line for each segment that no other names, back to (without) the end; True if it reaches the end.

    Where the chain is whole there is one line at most. A repaired segment stands where the damaged one stood.
    """
    found = list(found)
    by_id = {one.salvages: one for one in found if one.salvages} | {one.segment_id: one for one in found}
    named = {one.previous for one in found} - {""}
    lines = []
    for last in found:
        if last.segment_id in named or last.salvages in named or last.segment_id == end.segment_id:
            continue
        line: dict[Identity, None] = {}  # in order, and so that what names itself does not go round for ever
        one: Identity | None = last
        while one is not None and one.segment_id != end.segment_id and one not in line:
            line[one] = None
            one = by_id.get(one.previous)
        joined = bool(end.segment_id) and next(reversed(line)).previous == end.segment_id
        lines.append((list(line), joined))
    return lines


def newest_line(end: End, lines: Iterable[tuple[Line, bool]]) -> Line:
    """Choose the line that was written last; an empty one if that is the known end itself.

    Lines that do not reach the end (segments between are gone) can be told apart by the clock only: such a line
    counts if it is later than the end and than the line that does reach it. Else it may be old ones put back.
    """
    lines = list(lines)
    best = max((line for line, joined in lines if joined), key=_started_at, default=[])
    reach = max(end.started_at, _started_at(best))
    later = [line for line, joined in lines if not joined and _started_at(line) > reach]
    return max(later, key=_started_at, default=best)


def _started_at(line: Line) -> str:
    return line[0].started_at if line else ""


def _identities(paths: Iterable[Path]) -> dict[Identity, Path]:
    found = {}
    for path in paths:
        try:
            identity = read_identity(path)
        except OSError:
            continue
        if identity is not None:
            found[identity] = path
    return found


def _read_end(end: End, line: Line, found: dict[Identity, Path]) -> End:
    if not line:
        return end
    end = replace(end, segment_id=line[0].segment_id, started_at=line[0].started_at)
    for identity in line:  # a crash may have left the last one without rows
        if identity not in found:
            break  # it lay there before the end that is known
        try:
            checked = read_segment(found[identity])
        except OSError:
            continue
        if checked.rows:
            return end.after(checked.table)
    return end


def _file(data_dir: DataDir, stream: str) -> Path:
    return data_dir.state / "ends" / f"{stream}.json.gz"


def _load(file: Path) -> tuple[End, frozenset[str]]:
    try:
        content = json.loads(gzip.decompress(file.read_bytes()))
        return End(**content["end"]), frozenset(content["names"])
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError):
        return End(), frozenset()  # a cache: whatever is wrong with it, the segments tell the same
