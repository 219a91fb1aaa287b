"""Reads, checks and encodes segments ahead, in a thread, while the server takes the one before."""

import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import pyarrow as pa
import pyarrow.compute as pc

from loader.errors import SegmentRefused
from loader.inbox import Candidate
from loader.postgres.copy import Rows, encode
from loader.postgres.tables import can_be_table
from recorder.segments.check import Checked
from recorder.segments.encode import FORMAT_VERSION, Identity
from recorder.segments.reader import read_segment

# How much may be under way ahead of the server, in bytes of segment files: encoded they are a few times as large.
# One segment is always let through, so a segment's own size is the other bound.
AHEAD_BYTES = 8 * 1024 * 1024
AHEAD_SEGMENTS = 8


@dataclass(frozen=True)
class Prepared:
    """One good segment, ready to be sent."""

    candidate: Candidate
    identity: Identity
    number: int  # what the column "segment" says in its encoded rows
    rows: int
    received: tuple[datetime, datetime] | None  # its first and last received_at; None without rows
    crc32: str
    encoded: Rows


@dataclass(frozen=True)
class Refused:
    """One file that is not to be loaded, and why."""

    candidate: Candidate
    reason: str
    segment_id: str | None
    again: bool = False  # it could not even be read: worth another look though it has not changed


@dataclass(frozen=True)
class Gone:
    """One file that was moved or removed since it was listed."""

    candidate: Candidate


Item = Prepared | Refused | Gone


def prepare(candidate: Candidate, number: int) -> Item:
    """Read, check, and encode one file. Never raises on what the file holds."""
    try:
        checked = read_segment(candidate.path)
    except FileNotFoundError:
        return Gone(candidate)
    except OSError as exc:
        return Refused(candidate, f"cannot be read: {exc.strerror or exc}", None, again=True)
    try:
        identity = judge(checked, candidate.stream)
    except SegmentRefused as exc:
        return Refused(candidate, exc.what, exc.segment_id)
    table = checked.table
    try:
        received, encoded = received_range(table), encode(table, number)
    except (ValueError, OverflowError, pa.ArrowException) as exc:
        # A time before 4713 BC, for one: nothing that PostgreSQL, or Python, has a form for.
        return Refused(candidate, f"its rows cannot be sent: {' '.join(str(exc).split())}", identity.segment_id)
    return Prepared(candidate, identity, number, checked.rows, received, checked.crc32, encoded)


def judge(checked: Checked, folder: str) -> Identity:
    """Decide whether a checked file is to be loaded; return who it is. Pure.

    Raises:
        SegmentRefused: with the reason in one line.
    """
    identity = checked.identity
    segment_id = _uuid(identity.segment_id) if identity else None
    if checked.newer_version:
        raise SegmentRefused(
            f"its format version is {checked.newer_version}, this program knows {FORMAT_VERSION}: update the loader"
        )
    if checked.damage:
        more = f" (and {len(checked.damage) - 1} more)" if len(checked.damage) > 1 else ""
        raise SegmentRefused(f"damaged {checked.damage[0]}{more}", segment_id=segment_id)
    if identity is None or not checked.sealed:
        raise SegmentRefused("not sealed: it ends without a footer", segment_id=segment_id)
    if segment_id is None or (identity.salvages and _uuid(identity.salvages) is None):
        raise SegmentRefused("its segment_id is no UUID")
    if identity.stream != folder:
        raise SegmentRefused(
            f"it is of stream {identity.stream}, but lies in the folder of {folder}", segment_id=segment_id
        )
    if not can_be_table(identity.stream):
        raise SegmentRefused("its stream's name is too long for a table", segment_id=segment_id)
    return identity


def received_range(table: Any) -> tuple[datetime, datetime] | None:
    """Return the first and last received_at of a segment's rows."""
    bounds = pc.min_max(table["received_at"])
    if not bounds["min"].is_valid:
        return None
    return bounds["min"].as_py(), bounds["max"].as_py()


def _uuid(text: str) -> str | None:
    try:
        return str(UUID(text))
    except ValueError:
        return None


def read_ahead(
    candidates: Iterable[tuple[Candidate, int]], make: Callable[[Candidate, int], Item] = prepare
) -> Generator[Item, None, None]:
    """Prepare files in their order, a few ahead of the one that is asked for; bounded in memory.

    Close it (it is a generator) to drop what was prepared and not asked for.
    """
    waiting = iter(candidates)
    ahead: deque[tuple[int, Future[Item]]] = deque()
    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="read-ahead")
    try:
        while True:
            room = AHEAD_BYTES - sum(size for size, _ in ahead)
            while len(ahead) < AHEAD_SEGMENTS and (room > 0 or not ahead):
                more = next(waiting, None)
                if more is None:
                    break
                candidate, number = more
                # Taken though it may be larger than the room left; none is taken after it until it is gone.
                ahead.append((candidate.size_bytes, pool.submit(make, candidate, number)))
                room -= candidate.size_bytes
            if not ahead:
                return
            yield ahead.popleft()[1].result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def in_chunks(items: Iterable[Candidate], size: int) -> Iterator[list[Candidate]]:
    """Cut into lists of at most `size`."""
    iterator = iter(items)
    while chunk := list(itertools.islice(iterator, size)):
        yield chunk
