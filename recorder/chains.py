"""Chains of books: decides for every top of a book, from whichever connection, whether it becomes a row. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from recorder.deribit.book import Top
from recorder.lanes import Lane
from recorder.rows import US_PER_MS, quote_row

# A connection that carries a book brings each change within a window or two of any other; after this it is dead.
HOLD_BACK_US = 1_000_000
# So long it may take in a process that stands still before it is told without a further message.
DEAD_US = 2 * HOLD_BACK_US


@dataclass
class Ahead:
    """A book that connections have shown to be beyond what is recorded, while another one carries it."""

    since_us: int
    change_id: int  # the first that was shown
    newest: dict[int, int] = field(default_factory=dict)  # the newest change_id that each of them showed


class Chains:
    """The newest change of every book that is recorded, and who is ahead of it."""

    def __init__(self, lane: Lane) -> None:
        self._lane = lane
        self._newest: dict[str, tuple[int, int]] = {}  # newest recorded change_id, its timestamp_ms
        self._ahead: dict[str, Ahead] = {}

    def take(
        self,
        connection: int,
        instrument: str,
        timestamp_ms: int,
        top: Top,
        prices: tuple[float | None, float | None],
        change_id: int,
        prev_change_id: int | None,
        received_us: int,
    ) -> None:
        """Record the top of a book if it goes beyond what is recorded of that instrument.

        Connections need not cut their 100 ms windows at the same moment: a row is whole if it begins at or before
        the newest that is recorded. What begins after it is left to the connection that brings what lies between,
        while there is one; but not for long, since that one may be open and dead.
        """
        lane = self._lane
        carriers = lane.carriers(instrument)
        newest_id, newest_ms = self._newest.get(instrument, (-1, 0))
        # A snapshot behind the chain is an old one, unless it is younger: then the exchange began a new chain.
        beyond = change_id > newest_id or (
            prev_change_id is None and timestamp_ms > newest_ms and change_id != newest_id
        )
        if beyond:
            if prev_change_id is None and connection in carriers and newest_id >= 0:
                # Nobody asked for it: here, too, what lies before a snapshot may have been missed.
                self._stops(connection, instrument, newest_id + 1, change_id - 1, received_us)
                carriers = lane.carriers(instrument)
            if connection not in carriers and carriers and (prev_change_id is None or prev_change_id > newest_id):
                ahead = self._ahead.setdefault(instrument, Ahead(received_us, change_id))
                ahead.newest[connection] = change_id
                if received_us - ahead.since_us < HOLD_BACK_US:
                    return
            row = quote_row(instrument, timestamp_ms, received_us, top, prices, change_id, prev_change_id)
            if lane.add(row, received_us, prev_change_id is not None):
                self._newest[instrument] = (change_id, timestamp_ms)
                if self._ahead and instrument in self._ahead:
                    self._reached(connection, instrument, change_id, received_us)
        if connection not in carriers:
            # The last that may lie between. A snapshot does not tell: that it came before who carries the book could
            # bring the change means that there were some.
            last_missing = change_id - 1 if prev_change_id is None and carriers else prev_change_id
            if beyond and last_missing is not None and last_missing > newest_id >= 0:
                # Whoever would have brought what lies between is gone: tell it, and go on from here.
                lane.missed_one(
                    instrument,
                    since_us=min(newest_ms * US_PER_MS, received_us),
                    now_us=received_us,
                    ids=(newest_id + 1, last_missing),
                )
            lane.flows(connection, instrument, received_us, whole_us=timestamp_ms * US_PER_MS)

    def broken(self, connection: int, instrument: str, first_missing: int, last_missing: int, now_us: int) -> None:
        """Open a gap for one book, unless another connection carries it; a new snapshot ends it."""
        self.passed_by(connection, [instrument])
        self._stops(connection, instrument, first_missing, last_missing, now_us)

    def passed_by(self, connection: int, instruments: Iterable[str]) -> None:
        """What a connection showed of these books does not count any more: it lost them, or gave them up."""
        for name in instruments:
            if (ahead := self._ahead.get(name)) is not None:
                ahead.newest.pop(connection, None)
                if not self._lane.carriers(name) - {connection}:
                    del self._ahead[name]

    def lost(
        self, connection: int, cause: Literal["disconnect", "silence"], *, since_us: int, now_us: int, detail: str
    ) -> None:
        """A connection is gone. It was dead before where another has shown that, whatever else came on it."""
        for name in list(self._ahead):
            if self._lane.carriers(name) == {connection}:
                behind_us = self.known_us(name, since_us)
                self._lane.stops(
                    connection, name, cause, since_us=min(behind_us, since_us), now_us=now_us, detail=detail
                )
        self.passed_by(connection, list(self._ahead))

    def tick(self, now_us: int, *, patience_us: int = DEAD_US) -> None:
        """Tell what those who carry a book have not brought for long, though another has shown it.

        A quiet book may show nothing further, and a process that dies before they are given up tells nothing.
        """
        overdue = [name for name, ahead in self._ahead.items() if now_us - ahead.since_us >= patience_us]
        for name in overdue:
            ahead, newest_id = self._ahead.pop(name), self._newest.get(name, (-1, 0))[0]
            for connection in self._lane.carriers(name) - ahead.newest.keys():
                self._stops(connection, name, newest_id + 1, ahead.change_id, now_us)

    def known_us(self, instrument: str, now_us: int) -> int:
        """Return the exchange's time of a book's newest recorded change; now, if there is none."""
        newest = self._newest.get(instrument)
        return now_us if newest is None else newest[1] * US_PER_MS

    def whole_until_us(self, now_us: int) -> int:
        """Return until when nothing is missing that was shown: of a book that another is ahead of, its own last."""
        return min([now_us, *(self.known_us(name, now_us) for name in self._ahead)])

    def forget(self, instrument: str) -> None:
        """Know nothing of an instrument any more."""
        self._newest.pop(instrument, None)
        self._ahead.pop(instrument, None)

    def clock_stepped(self, step_us: int) -> None:
        """Hold back as long as before a step of the clock."""
        for ahead in self._ahead.values():
            ahead.since_us += step_us

    def _reached(self, connection: int, instrument: str, change_id: int, now_us: int) -> None:
        """What is recorded reaches this change: who showed none beyond it is whole from here on."""
        ahead = self._ahead[instrument]
        ahead.newest.pop(connection, None)
        for other in [other for other, shown_id in ahead.newest.items() if shown_id <= change_id]:
            del ahead.newest[other]
            self._lane.flows(other, instrument, now_us)
        if not ahead.newest:
            del self._ahead[instrument]
        elif ahead.change_id <= change_id:  # who carries it is not dead
            ahead.since_us, ahead.change_id = now_us, min(ahead.newest.values())

    def _stops(self, connection: int, instrument: str, first_missing: int, last_missing: int, now_us: int) -> None:
        """Tell that a connection missed some, unless another carries the book.

        What is missing may have been made at any time after the book's own last change, whatever else came since.
        By a clock that is behind the exchange's that lies in the future, where no gap begins.
        """
        known = first_missing <= last_missing  # else ids began anew, or none lies between
        self._lane.stops(
            connection,
            instrument,
            "sequence_break",
            since_us=min(self.known_us(instrument, now_us), now_us),
            now_us=now_us,
            first_missing=first_missing if known else None,
            last_missing=last_missing if known else None,
        )
