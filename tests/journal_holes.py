"""What is missing on a tape by the exchange's own journal, hole by hole, and what the gap rows tell of it.

Everything that was sent or withheld, minus what is there: json and plain pyarrow, no code of `analysis`.
"""

import json
from bisect import bisect_right
from collections import defaultdict
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from tests.accounting import Account
from tests.oracle import Row, tape_rows

QUOTES, TRADES, TICKERS = "eth_option_quotes", "eth_option_trades", "eth_option_tickers"
INSTRUMENTS, GAPS = "eth_option_instruments", "data_gaps"


class Quote(NamedTuple):
    """A row of quotes, as far as it matters here; of one instrument they sort in the order of the chain."""

    change_id: int
    received_us: int
    prev_change_id: int | None


class BookHole(NamedTuple):
    """Between two rows of a book, told by when they were received, something is missing."""

    instrument: str
    from_us: int
    to_us: int


class Number(NamedTuple):
    """The number of a trade."""

    instrument: str
    trade_seq: int


@dataclass(frozen=True)
class Told:
    """The newest state of a gap; `end_us` of one that lasts lies far in the future."""

    gap_id: str
    stream: str
    instrument: str | None
    cause: str
    status: str
    start_us: int
    end_us: int
    first: int | None
    last: int | None

    def touches(self, one_us: int, other_us: int) -> bool:
        """Whether it lasted at some time between two, whichever is earlier."""
        return self.start_us <= max(one_us, other_us) and min(one_us, other_us) <= self.end_us


class Exchange:
    """Every change of a book and every trade number that there was, and when a book's channel brought nothing."""

    def __init__(self, journal: Path, *, since_us: int) -> None:
        """Ask nothing of what was sent before `since_us`."""
        self.account = Account(journal, since_us=since_us)
        self.made = {Number(*key) for key in self.account.made}
        self.void: set[Number] = set()  # numbers that never were a trade
        self.forgotten: set[str] = set()  # options whose trades nobody has any more
        self._sent_us: dict[tuple[str, int], list[int]] = defaultdict(list)  # by instrument and change_id
        for name, changes in self.account.changes.items():
            for change_id, at_us in changes:
                self._sent_us[name, change_id].append(at_us)
        self._withheld: set[tuple[str, int]] = set()
        self._holders: dict[int, set[str]] = defaultdict(set)  # by connection, what it ever held
        self._ended_us: dict[int, int] = {}  # by connection, when a fault ended it
        self._dumb: list[tuple[str, int, int]] = []  # when a channel's connection was open and brought nothing
        with journal.open() as lines:
            for line in lines:
                if '"event"' in line:
                    self._take(json.loads(line))
        known: dict[str, set[int]] = defaultdict(set)
        for name, change_id in {*self._sent_us, *self._withheld}:
            known[name].add(change_id)
        self._changes = {name: sorted(some) for name, some in known.items()}

    def is_hole(self, name: str, a: Quote, b: Quote) -> bool:
        """Whether something lies between two rows of a book that follow each other on the tape.

        A change that was made, and that neither is, nor is covered by the second row; or, before a snapshot, a time
        in which nobody held the channel, or nothing came on it.
        """
        last = b.change_id - 1 if b.prev_change_id is None else b.prev_change_id
        changes = self._changes.get(name, [])
        if bisect_right(changes, a.change_id) < bisect_right(changes, last):
            return True
        if b.prev_change_id is not None:
            return False
        channel = f"book.{name}.100ms"
        since_us = min(self._sent_us.get((name, a.change_id), [0]))
        until_us = max(self._sent_us.get((name, b.change_id), [2**62]))
        quiet = [*self.account.unheld(channel), *(span for dumb, *span in self._dumb if dumb == channel)]
        return any(start < until_us and since_us < end for start, end in quiet)

    def _take(self, entry: dict[str, Any]) -> None:
        match entry.get("kind") or entry["event"]:
            case "subscribed":
                self._holders[entry["connection"]].update(entry["channels"])
            case "half_open":
                for connection in entry["connections"]:
                    self._is_dumb(connection, entry["sent_us"], entry["sent_us"] + round(entry["for_s"] * 1e6))
            case "kill" | "disconnect":
                self._ended_us[entry["connection"]] = entry["sent_us"]
            case "close" if entry["connection"] in self._ended_us:  # noted when another may hold its channels
                self._is_dumb(entry["connection"], self._ended_us[entry["connection"]], entry["sent_us"])
            case "trade_void":
                self.void.add(Number(entry["instrument"], entry["trade_seq"]))
            case "trade_forgotten":
                self.forgotten.add(entry["instrument"])
        message = entry.get("message")
        if isinstance(message, dict) and message.get("params", {}).get("channel", "").startswith("book."):
            data = message["params"]["data"]
            self._withheld.add((data["instrument_name"], data["change_id"]))

    def _is_dumb(self, connection: int, start_us: int, end_us: int) -> None:
        self._dumb += [(channel, start_us, end_us) for channel in self._holders[connection]]


@dataclass
class Tape:
    """What lies there, read by plain pyarrow."""

    books: dict[str, list[Quote]] = field(default_factory=lambda: defaultdict(list))
    trades: dict[str, set[int]] = field(default_factory=lambda: defaultdict(set))
    traded_us: dict[Number, int] = field(default_factory=dict)
    healed: set[Number] = field(default_factory=set)  # trades that were fetched
    gaps: list[Told] = field(default_factory=list)  # in their newest state
    words: list[Told] = field(default_factory=list)  # every state

    @classmethod
    def read(cls, root: Path) -> "Tape":
        tape = cls()
        for name, *row in rows_of(root, QUOTES, ["instrument", "change_id", "received_at", "prev_change_id"]):
            tape.books[name].append(Quote(*row))
        for book in tape.books.values():
            book.sort(key=lambda row: row[:2])
        for name, seq, at_us, source in rows_of(root, TRADES, ["instrument", "trade_seq", "timestamp", "source"]):
            tape.trades[name].add(seq)
            if source == "backfill":
                tape.healed.add(Number(name, seq))
            tape.traded_us[Number(name, seq)] = at_us
        columns = "gap_id state_no stream instrument cause status started_at ended_at first_missing last_missing"
        newest: dict[str, tuple[int, Told]] = {}
        for state in rows_of(root, GAPS, columns.split()):
            word = _told(state)
            tape.words.append(word)
            newest[word.gap_id] = max(newest.get(word.gap_id, (-1, word)), (state[1], word), key=lambda one: one[0])
        tape.gaps = [word for _, word in newest.values()]
        return tape

    def book_holes(self, exchange: Exchange) -> dict[BookHole, tuple[int, int]]:
        """Return the holes between two rows of a book, by the journal, each with the change_ids of the two."""
        return {
            BookHole(name, a.received_us, b.received_us): (a.change_id, b.change_id)
            for name, book in self.books.items()
            for a, b in pairwise(book)
            if exchange.is_hole(name, a, b)
        }

    def number_holes(self) -> set[Number]:
        """Return the numbers between an option's first trade and its last that are not there."""
        return {
            Number(name, seq)
            for name, seqs in self.trades.items()
            for seq in range(min(seqs), max(seqs))
            if seq not in seqs
        }

    def tell_book_hole(self, hole: BookHole) -> list[Told]:
        """Return the gaps that something was missed in at some time between two rows of a book."""
        return [
            gap
            for gap in self.gaps
            if gap.stream == QUOTES and gap.instrument in (None, hole.instrument) and gap.status != "void"
            if gap.touches(hole.from_us, hole.to_us)
        ]

    def tell_number(self, number: Number) -> list[Told]:
        """Return what is told of a number that is not there: void, lost, or still open; what was healed would be.

        Or that a time between the trades around it is given up or still open.
        """
        words = [
            word
            for word in self.words
            if (word.stream, word.instrument) == (TRADES, number.instrument)
            if word.first is not None and word.last is not None and word.first <= number.trade_seq <= word.last
        ]
        is_open = all(word.status == "open" for word in words)
        times = [self.traded_us[one] for one in self.around(number)]
        return [*self.tell_time(*times), *(word for word in words if word.status in ("void", "lost") or is_open)]

    def around(self, number: Number) -> tuple[Number, Number]:
        """Return the trades that are there before and after a number."""
        name, seqs = number.instrument, self.trades[number.instrument]
        before, after = (
            (seq for seq in seqs if seq < number.trade_seq),
            (seq for seq in seqs if seq > number.trade_seq),
        )
        return Number(name, max(before)), Number(name, min(after))

    def tell_time(self, one_us: int, other_us: int) -> list[Told]:
        """Return the gaps of all trades whose numbers nobody knows, at some time between two."""
        return [
            gap
            for gap in self.gaps
            if (gap.stream, gap.instrument, gap.first) == (TRADES, None, None) and gap.status in ("open", "lost")
            if gap.touches(one_us, other_us)
        ]


def rows_of(root: Path, stream: str, columns: list[str]) -> list[Row]:
    """Read a stream's sealed segments; nothing while its folder, just made, has none."""
    return tape_rows(root, stream, columns) if any((root / stream).glob("date=*/*.arrow")) else []


def _told(row: Row) -> Told:
    gap_id, _, stream, name, cause, status, started_us, ended_us, first, last = row
    return Told(gap_id, stream, name, cause, status, started_us, 2**62 if ended_us is None else ended_us, first, last)
