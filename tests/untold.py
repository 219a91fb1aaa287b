"""Makes holes on a tape that nothing tells: rows, segments, and gaps are taken out, and every checksum fits again.

What is left looks as if it had been written so. A hole is made only where no gap row would tell it.
"""

import random
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from recorder.segments.encode import encode_segment
from recorder.segments.reader import read_segment
from tests.journal_holes import GAPS, INSTRUMENTS, QUOTES, TICKERS, TRADES, BookHole, Exchange, Number, Quote, Tape

Key = tuple[str, str, int]  # of a row: stream, instrument, and change_id or trade_seq

SLICE_US = 250_000  # of all instruments' time
TRIES = 5000


@dataclass
class Cut:
    """One hole: what was taken out, and what of it a proof must miss."""

    kind: str
    rows: set[Key] = field(default_factory=set)  # or numbers of trades, that a gap told which is gone
    # Holes in books that a gap told which is gone: instrument, and the change_ids around it.
    holes: set[tuple[str, int, int]] = field(default_factory=set)
    # Of a segment that is gone, and its rows: of some of them nothing but the chain of segments may tell.
    segment_id: str = ""
    gone: set[Key] = field(default_factory=set)


class Saboteur:
    """Cuts a tape that is not being written, at seeded places, each at a distance from the others."""

    KINDS = ("a row", "some rows", "a slice", "a trade", "a healed trade", "some trades", "a gap", "a segment")

    def __init__(self, root: Path, exchange: Exchange, seed: int) -> None:
        self._root = root
        self._rng = random.Random(seed)
        self._tape = Tape.read(root)
        self._holes = self._tape.book_holes(exchange)
        self._file_of = {
            key: path for stream in (QUOTES, TRADES) for path in self._files(stream) for key in keys_in(path)
        }
        self._touched: set[Key] = set()  # rows that are gone, and those beside them
        self._kept: set[Path] = set()  # segments that are to stay
        self._ways: dict[str, Callable[[str], Cut | None]] = {
            "a row": lambda kind: self._book(kind, 1),
            "some rows": lambda kind: self._book(kind, self._rng.randint(2, 9)),
            "a slice": self._slice,
            "a trade": lambda kind: self._trades(kind, 1),
            "a healed trade": self._healed_trade,
            "some trades": lambda kind: self._trades(kind, self._rng.randint(2, 4)),
            "a gap": self._gap,
            "a segment": self._segment,
        }

    def make(self, kind: str) -> Cut:
        """Make one hole."""
        for _ in range(TRIES):
            if (cut := self._ways[kind](kind)) is not None:
                return cut
        raise AssertionError(f"no place for {kind} in {TRIES} tries")

    # Rows of books

    def _book(self, kind: str, count: int) -> Cut | None:
        name = self._rng.choice(sorted(self._tape.books))
        book = self._tape.books[name]
        at = self._rng.randrange(len(book))
        return self._cut_books(kind, {name: book[at : at + count + 2]})

    def _slice(self, kind: str) -> Cut | None:
        """Cut out some time of every instrument."""
        begin_us = self._rng.choice(self._tape.books[self._rng.choice(sorted(self._tape.books))]).received_us
        runs = {}
        for name, book in self._tape.books.items():
            inside = [n for n, row in enumerate(book) if begin_us <= row.received_us < begin_us + SLICE_US]
            if inside:
                runs[name] = book[max(0, inside[0] - 1) : inside[-1] + 2]
        return self._cut_books(kind, runs)

    def _cut_books(self, kind: str, runs: dict[str, list[Quote]]) -> Cut | None:
        """Cut out all but the first and last row of each run, if they are whole and within one segment."""
        if not runs or not all(self._is_whole(name, run) for name, run in runs.items()):
            return None
        rows = {(QUOTES, name, row.change_id) for name, run in runs.items() for row in run[1:-1]}
        if not self._take_out(rows):
            return None
        self._touched |= {(QUOTES, name, row.change_id) for name, run in runs.items() for row in run}
        return Cut(kind, rows=rows)

    def _is_whole(self, name: str, run: list[Quote]) -> bool:
        """Whether a run of a book is untouched, its rows follow one another, and no gap row tells of its time."""
        return (
            len(run) > 2
            and not any((QUOTES, name, row.change_id) in self._touched for row in run)
            and all(b.prev_change_id == a.change_id and a.received_us < b.received_us for a, b in pairwise(run))
            and not self._tape.tell_book_hole(BookHole(name, run[0].received_us, run[-1].received_us))
        )

    # Trades

    def _trades(self, kind: str, count: int) -> Cut | None:
        name = self._rng.choice(sorted(self._tape.trades))
        return self._cut_trades(kind, name, self._rng.choice(sorted(self._tape.trades[name])), count)

    def _healed_trade(self, kind: str) -> Cut | None:
        """Take out a trade that was fetched, and whose gap says so."""
        name, seq = self._rng.choice(sorted(self._tape.healed))
        return self._cut_trades(kind, name, seq - 1, 1)

    def _cut_trades(self, kind: str, name: str, first: int, count: int) -> Cut | None:
        """Cut out trades after one, if they are within one segment, and one comes after them."""
        run = [seq for seq in range(first, first + count + 2) if seq in self._tape.trades[name]]
        keys = {(TRADES, name, seq) for seq in run}
        if len(run) < 3 or run[-1] - run[0] != len(run) - 1 or self._touched & keys:
            return None
        times = [self._tape.traded_us[Number(name, seq)] for seq in run]
        rows = {(TRADES, name, seq) for seq in run[1:-1]}
        if self._tape.tell_time(min(times), max(times)) or not self._take_out(rows):
            return None
        self._touched |= keys
        return Cut(kind, rows=rows)

    # Gaps

    def _gap(self, kind: str) -> Cut | None:
        """Take out every state of a gap that was the only one to tell something."""
        tells: dict[str, Cut] = defaultdict(lambda: Cut(kind))
        for hole, change_ids in sorted(self._holes.items()):
            if len(gap_ids := {gap.gap_id for gap in self._tape.tell_book_hole(hole)}) == 1:
                tells[gap_ids.pop()].holes.add((hole.instrument, *change_ids))
        for number in sorted(self._tape.number_holes()):
            if len(gap_ids := {gap.gap_id for gap in self._tape.tell_number(number)}) == 1:
                tells[gap_ids.pop()].rows.add((TRADES, *number))
        ends = {
            gap_id: {(QUOTES, name, change_id) for name, *change_ids in cut.holes for change_id in change_ids}
            | {(TRADES, *one) for _, name, seq in cut.rows for one in self._tape.around(Number(name, seq))}
            for gap_id, cut in tells.items()
        }
        untouched = sorted(gap_id for gap_id, keys in ends.items() if not keys & self._touched)
        if not untouched:
            return None
        gap_id = self._rng.choice(untouched)
        self._touched |= ends[gap_id]
        for path in self._files(GAPS):
            rewrite(path, lambda table: pc.not_equal(table["gap_id"], gap_id))
        self._tape.gaps = [gap for gap in self._tape.gaps if gap.gap_id != gap_id]
        self._tape.words = [word for word in self._tape.words if word.gap_id != gap_id]
        return tells[gap_id]

    # Segments

    def _segment(self, kind: str) -> Cut | None:
        """Remove a segment that the next one names, and leave those before and after it."""
        stream = self._rng.choice((QUOTES, TRADES, TICKERS, INSTRUMENTS))
        chain = dict(identity_of(path) for path in self._files(stream))
        files = {identity_of(path)[0]: path for path in self._files(stream)}
        segment_id = self._rng.choice(sorted(chain))
        after = [one for one, previous in chain.items() if previous == segment_id]
        rows = keys_in(files[segment_id]) if stream in (QUOTES, TRADES) else set()
        if not after or files[segment_id] in self._kept or rows & self._touched:
            return None
        files[segment_id].unlink()
        self._kept |= {files[one] for one in (*after, chain[segment_id]) if one in files}
        self._touched |= rows
        return Cut(kind, segment_id=segment_id, gone=rows)

    # Files

    def _files(self, stream: str) -> list[Path]:
        return sorted((self._root / stream).glob("date=*/*.arrow"))

    def _take_out(self, keys: set[Key]) -> bool:
        """Take rows out of the one segment that they are in; False if they are not in one, or are all of it."""
        files = {self._file_of[key] for key in keys}
        if len(files) != 1 or keys_in(path := files.pop()) <= keys:
            return False
        rewrite(path, lambda table: pa.array([key not in keys for key in keys_of(path.parent.parent.name, table)]))
        self._kept.add(path)
        return True


def keys_of(stream: str, table: pa.Table) -> list[Key]:
    """Return what tells the rows of quotes or trades apart."""
    numbers = table["trade_seq" if stream == TRADES else "change_id"].to_pylist()
    return [(stream, name, number) for name, number in zip(table["instrument"].to_pylist(), numbers, strict=True)]


def keys_in(path: Path) -> set[Key]:
    """Return what tells the rows of a file apart."""
    return set(keys_of(path.parent.parent.name, pa.ipc.open_file(path).read_all()))


def identity_of(path: Path) -> tuple[str, str]:
    """Return a segment's id and the id of the one before it."""
    metadata = pa.ipc.open_file(path).schema.metadata
    return metadata[b"segment_id"].decode(), metadata[b"previous"].decode()


def rewrite(path: Path, keep: Callable[[pa.Table], Any]) -> None:
    """Write a segment anew under its own name and id with some of its rows, as if the others had never been there."""
    checked = read_segment(path)
    assert checked.identity is not None
    tables = [pa.Table.from_batches([group.batch]) for group in checked.groups]
    batches = [batch for table in tables for batch in table.filter(keep(table)).combine_chunks().to_batches()]
    path.write_bytes(encode_segment(checked.schema, checked.identity, batches))
