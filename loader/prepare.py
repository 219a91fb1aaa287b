"""Reads, checks, sorts and encodes segments ahead, in a thread, while the server takes the ones before."""

import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from fnmatch import fnmatchcase
from functools import partial
from typing import Any
from uuid import UUID

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from loader.errors import SegmentRefused
from loader.inbox import Candidate
from loader.postgres.copy import Rows, encode, numbered
from loader.postgres.tables import can_be_table
from recorder.segments.check import Checked
from recorder.segments.encode import FORMAT_VERSION, Identity
from recorder.segments.manifest import Manifest
from recorder.segments.reader import read_segment

# How much may be under way ahead of the server, in bytes of segment files: encoded they are a few times as large.
# One group is always let through, so a group's own size is the other bound.
AHEAD_BYTES = 4 * 1024 * 1024
AHEAD_GROUPS = 8
# What goes into one transaction: 200,000 rows and more, so that of a whole chain each instrument has 250. With fewer
# the columnstore's batches are small, with more each transaction holds more memory and is more to do again.
GROUP_BYTES = 6 * 1024 * 1024
GROUP_SEGMENTS = 200


@dataclass(frozen=True)
class Numbered:
    """A file that is to be loaded, and what the column "segment" will say in its rows."""

    candidate: Candidate
    number: int
    salvage: bool = False  # it claims to be what was salvaged of another: loaded by itself


@dataclass(frozen=True)
class Segment:
    """One good segment."""

    candidate: Candidate
    identity: Identity
    number: int
    rows: int
    received: tuple[datetime, datetime] | None  # its first and last received_at; None without rows
    times: tuple[datetime, datetime] | None  # its first and last timestamp
    crc32: str


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


@dataclass(frozen=True)
class Unwanted:
    """One good file that was not asked for."""

    candidate: Candidate


Aside = Refused | Gone | Unwanted


@dataclass(frozen=True)
class Group:
    """Good segments of one stream, ready to be sent in one COPY: each instrument's rows together, in time order."""

    stream: str
    segments: tuple[Segment, ...]
    rows: int
    instruments: int
    encoded: Rows

    @property
    def times(self) -> tuple[datetime, datetime] | None:
        """The first and last `timestamp` of its rows; None without one."""
        found = [segment.times for segment in self.segments if segment.times]
        return (min(first for first, _ in found), max(last for _, last in found)) if found else None


@dataclass(frozen=True)
class Prepared:
    """What became of the files of one group."""

    group: Group | None  # None if none of them is to be loaded, or not together
    aside: tuple[Aside, ...]
    # Of several, how each is made ready by itself: something may be wrong with one of them.
    alone: tuple[tuple[Candidate, Callable[[], "Prepared"]], ...] = ()


def _all(_item: object) -> bool:
    return True


@dataclass(frozen=True)
class Wanted:
    """Which segments are to be loaded, by what a file's name tells, then by what its rows tell; and which rows."""

    file: Callable[[Candidate], bool] = _all
    segment: Callable[[Segment], bool] = _all
    part: Callable[[Manifest], bool] = _all  # of the archive
    instruments: tuple[str, ...] | None = None  # names or patterns with *; None for all


def of_instruments(table: pa.Table, instruments: Sequence[str] | None) -> pa.Table:
    """Keep the rows of some instruments, and those that concern all (their instrument is null).

    Args:
        table: with a column `instrument`.
        instruments: names or patterns with *; None for all.
    """
    if instruments is None:
        return table
    found = [
        name
        for name in pc.unique(table["instrument"]).to_pylist()
        if name is None or any(fnmatchcase(name, pattern) for pattern in instruments)
    ]
    return table.filter(pc.is_in(table["instrument"], pa.array(found, pa.string())))


def prepare(files: Sequence[Numbered], wanted: Wanted | None = None) -> Prepared:
    """Read, check, sort, and encode the files of one group. Never raises on what the files hold."""
    wanted = wanted or Wanted()
    segments, tables, aside = [], [], []
    for file in files:
        found = _read(file, wanted)
        if isinstance(found, tuple):
            segments.append(found[0])
            tables.append(found[1])
        else:
            aside.append(found)
    if not segments:
        return Prepared(None, tuple(aside))
    table = by_instrument(pa.concat_tables(tables))
    del tables
    alone = tuple((file.candidate, partial(prepare, [file], wanted)) for file in files) if len(segments) > 1 else ()
    try:
        encoded = encode(table)
    except (ValueError, OverflowError, pa.ArrowException) as exc:
        if alone:
            return Prepared(None, (), alone)
        return Prepared(None, (*aside, _unsendable(segments[0].candidate, segments[0].identity, exc)))
    group = Group(
        stream=segments[0].identity.stream,
        segments=tuple(segments),
        rows=table.num_rows,
        instruments=pc.count_distinct(table["instrument"]).as_py(),
        encoded=encoded,
    )
    return Prepared(group, tuple(aside), alone)


def read_good(candidate: Candidate) -> tuple[Identity, Checked] | Refused | Gone:
    """Read, check, and judge one file. Never raises on what it holds."""
    try:
        checked = read_segment(candidate.path)
        return judge(checked, candidate.stream), checked
    except FileNotFoundError:
        return Gone(candidate)
    except OSError as exc:
        return Refused(candidate, f"cannot be read: {exc.strerror or exc}", None, again=True)
    except SegmentRefused as exc:
        return Refused(candidate, exc.what, exc.segment_id)


def _read(file: Numbered, wanted: Wanted) -> tuple[Segment, pa.Table] | Aside:
    candidate = file.candidate
    good = read_good(candidate)
    if not isinstance(good, tuple):
        return good
    identity, checked = good
    table = of_instruments(checked.table, wanted.instruments)
    try:
        segment = Segment(
            candidate=candidate,
            identity=identity,
            number=file.number,
            rows=table.num_rows,
            received=first_and_last(checked.table["received_at"]),
            times=first_and_last(table["timestamp"]),
            crc32=checked.crc32,
        )
    except (ValueError, OverflowError, pa.ArrowException) as exc:
        return _unsendable(candidate, identity, exc)
    return (segment, numbered(table, file.number)) if wanted.segment(segment) else Unwanted(candidate)


def _unsendable(candidate: Candidate, identity: Identity, exc: Exception) -> Refused:
    # A time before 4713 BC, for one: nothing that PostgreSQL, or Python, has a form for.
    return Refused(candidate, f"its rows cannot be sent: {' '.join(str(exc).split())}", identity.segment_id)


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


def by_instrument(table: pa.Table) -> pa.Table:
    """Order rows by instrument, each instrument's by time; rows of one time stay in the tape's order."""
    return table.take(instrument_order(table))


def instrument_order(table: pa.Table, *, by_name: bool = False) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return in which order to take rows so that they lie by instrument, each instrument's by time.

    The columnstore needs one run an instrument, and a btree on it takes them half as fast again. Instruments come in
    the order of their first row: any will do, and codes of 32 bits sort a third as long as names. Each
    instrument's rows are in time order on the tape but for healed trades and the like, so that is looked at first.

    Args:
        table: has `instrument` and `timestamp`.
        by_name: instruments come in the order of the bytes of their names, for readers that skip by it.
    """
    found = pc.fill_null(table["instrument"], "").combine_chunks().dictionary_encode()
    codes = found.indices.to_numpy()
    if by_name:
        rank = np.empty(len(found.dictionary), codes.dtype)
        rank[pc.array_sort_indices(found.dictionary).to_numpy()] = np.arange(len(rank), dtype=codes.dtype)
        codes = rank[codes]
    times = pc.fill_null(table["timestamp"].cast(pa.int64()), 0).to_numpy()
    order = np.argsort(codes, kind="stable")
    sorted_codes, sorted_times = codes[order], times[order]
    if np.any((sorted_codes[1:] == sorted_codes[:-1]) & (sorted_times[1:] < sorted_times[:-1])):
        order = np.lexsort((times, codes))
    return order


def first_and_last(times: pa.ChunkedArray) -> tuple[datetime, datetime] | None:
    """Return the first and last time of a column; None without one.

    Raises:
        ValueError, OverflowError: Python has no form for it.
    """
    bounds = pc.min_max(times)
    if not bounds["min"].is_valid:
        return None
    return bounds["min"].as_py(), bounds["max"].as_py()


def _uuid(text: str) -> str | None:
    try:
        return str(UUID(text))
    except ValueError:
        return None


def read_ahead(
    groups: Iterable[Sequence[Numbered]], make: Callable[[Sequence[Numbered]], Prepared] = prepare
) -> Generator[Prepared, None, None]:
    """Prepare groups in their order, a few ahead of the one that is asked for; bounded in memory.

    Close it (it is a generator) to drop what was prepared and not asked for.
    """
    waiting = iter(groups)
    ahead: deque[tuple[int, Future[Prepared]]] = deque()
    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="read-ahead")

    def begin() -> None:
        room = AHEAD_BYTES - sum(size for size, _ in ahead)
        while len(ahead) < AHEAD_GROUPS and (room > 0 or not ahead):
            more = next(waiting, None)
            if more is None:
                break
            size = sum(file.candidate.size_bytes for file in more)
            # Taken though it may be larger than the room left; none is taken after it until it is gone.
            ahead.append((size, pool.submit(make, more)))
            room -= size

    try:
        begin()
        while ahead:
            ready = ahead.popleft()[1].result()
            begin()  # before this one is sent: the next is made ready meanwhile, however large both are
            yield ready
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def in_chunks(items: Iterable[Candidate], size: int) -> Iterator[list[Candidate]]:
    """Cut into lists of at most `size`."""
    iterator = iter(items)
    while chunk := list(itertools.islice(iterator, size)):
        yield chunk


def in_groups(files: Iterable[Numbered]) -> list[list[Numbered]]:
    """Put files of one stream together, in their order, as many as one transaction is to take. Pure.

    What was salvaged stands alone: whether its rows are to be loaded is asked for each.
    """
    groups: list[list[Numbered]] = []
    growing: dict[str, list[Numbered]] = {}  # by stream
    for file in files:
        group = growing.get(file.candidate.stream)
        if group is None or file.salvage or not _has_room(group, file):
            group = growing[file.candidate.stream] = []
            groups.append(group)
        group.append(file)
        if file.salvage:
            del growing[file.candidate.stream]
    return groups


def _has_room(group: Sequence[Numbered], file: Numbered) -> bool:
    size_bytes = file.candidate.size_bytes + sum(one.candidate.size_bytes for one in group)
    return size_bytes <= GROUP_BYTES and len(group) < GROUP_SEGMENTS
