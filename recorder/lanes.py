"""A lane is one stream's way from socket to disk: its buffer, who brings it, and its gaps until their fate."""

from collections.abc import Callable, Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from recorder.buffers import Buffer
from recorder.gaps import Cause, Gap, GapLog
from recorder.segments.schemas import Row

# An instrument that has brought nothing for this long after it was subscribed gets a gap row of its own instead of
# holding up the end of everybody's.
RESUME_PATIENCE_US = 30_000_000
# A book's snapshot comes at once (131 of them came within 0.6 s of the call): if it takes longer it was lost, and
# what changed until the next one was passed over.
SNAPSHOT_LATE_US = 2_000_000

# The instrument of a stream that comes on one channel for all.
ALL = ""

# What ends when the stream flows again; the others (overflow, rejected) end by themselves.
_INTERRUPTIONS = ("disconnect", "silence", "crash", "stopped")
_UNTIL_ROW = ("overflow", "disk_full", "rejected")
_NOBODY: frozenset[int] = frozenset()


@dataclass
class Awaited:
    """An instrument that was subscribed and has brought nothing."""

    since_us: int
    exchange_us: int  # the same moment, by the exchange's clock
    on: set[int] = field(default_factory=set)  # the connections on which it was granted

    @property
    def granted_us(self) -> int:
        """Where what is missing begins: by the clock that is behind."""
        return min(self.since_us, self.exchange_us)


class Lane:
    """One stream of ticks: quotes, trades, or tickers.

    It *flows* for an instrument on a connection that brings it whole. While one connection is left on which it flows
    nothing is missing; when the last one is gone a gap opens, for that instrument, or one for all where all are
    concerned.

    `refetchable` says what becomes of missing rows once the stream flows again: books and tickers have no history
    (lost), trades may still be fetched (their gaps end, but stay open). `chained` says that a snapshot begins an
    instrument, that what comes before it is passed over, and that numbers tell what is missed after it.
    """

    def __init__(self, buffer: Buffer, gaps: GapLog, *, refetchable: bool, chained: bool = False) -> None:
        self.buffer = buffer
        self.stream = buffer.stream
        self.disk_full = False  # the last flush round failed for want of space
        self._gaps = gaps
        self._refetchable = refetchable
        self._chained = chained
        # Gaps that end with the next row that is accepted; those of a run that ended before it are taken up.
        self._until_row: dict[str, Gap] = {
            gap.cause: gap
            for gap in gaps.find(stream=self.stream)
            if gap.cause in _UNTIL_ROW and gap.ended_us is None
        }
        self._flowing: dict[str, set[int]] = {}
        # Since when it flows on a connection, by our clock and by the exchange's.
        self._begun_us: dict[tuple[int, str], tuple[int, int]] = {}
        self._broken = {
            gap.instrument: gap
            for gap in gaps.open_gaps
            if gap.stream == self.stream and gap.instrument is not None and not refetchable
        }
        # Set while whole-stream gaps wait for every instrument to flow again.
        self._resuming = bool(self._interruptions())
        self._resumed: set[str] = set()
        self._resumed_us = 0  # the newest time of the exchange at which one of them was whole again
        self._expected: frozenset[str] = frozenset()
        self._awaited: dict[str, Awaited] = {}

    def add(self, row: Row, now_us: int, fresh: bool = True) -> bool:  # noqa: FBT001, FBT002 - the hot path
        """Take a row; False if it was dropped, which the overflow gap tells.

        The exchange made it before it came, unless it is not `fresh`: a snapshot shows what was made long ago, and
        what was fetched is older still.
        """
        if self.buffer.add(row):
            if self._until_row:
                for gap in self._until_row.values():
                    self._finish(gap, now_us, whole_us=_made_us(row))
                self._until_row.clear()
            return True
        since_us = min(now_us, _made_us(row)) if fresh else now_us
        self.missed("disk_full" if self.disk_full else "overflow", since_us=since_us, now_us=now_us)
        return False

    def missed(self, cause: Cause, *, since_us: int, now_us: int, detail: str | None = None) -> None:
        """Something is missed, of whichever instrument, until the next row that is accepted. Told once."""
        if cause not in self._until_row:
            self._until_row[cause] = self._gaps.open(
                self.stream, None, cause, started_us=since_us, now_us=now_us, detail=detail
            )

    # Who brings it

    def carriers(self, instrument: str) -> AbstractSet[int]:
        """Return the connections on which an instrument flows."""
        return self._flowing.get(instrument, _NOBODY)

    def flows(self, connection: int, instrument: str, now_us: int, *, whole_us: int = 0) -> None:
        """An instrument is whole on a connection from here on: a snapshot, a good ticker, a granted channel.

        `whole_us` is the exchange's time of it. By a clock that is behind, that is when a gap ends: what is missing
        has times of the exchange.
        """
        self._flowing.setdefault(instrument, set()).add(connection)
        self._begun_us.setdefault((connection, instrument), (now_us, whole_us or now_us))
        awaited = self._awaited.pop(instrument, None)
        if self._chained and awaited is not None and now_us - awaited.since_us > SNAPSHOT_LATE_US:
            self._break_awaited(instrument, awaited, "silence", now_us, "its first snapshot came late")
        gap = self._broken.pop(instrument, None)
        if gap is not None:
            self._finish(gap, now_us, whole_us=whole_us)
        if self._resuming:
            self._resumed.add(instrument)
            self._resumed_us = max(self._resumed_us, whole_us)
            self._check_resumed(now_us)

    def stops(
        self,
        connection: int,
        instrument: str,
        cause: Cause,
        *,
        since_us: int,
        now_us: int,
        first_missing: int | None = None,
        last_missing: int | None = None,
        detail: str | None = None,
    ) -> None:
        """An instrument has a hole on a connection; told unless it flows on another."""
        if self._remove(connection, instrument):
            self._break(
                instrument,
                cause,
                since_us=since_us,
                now_us=now_us,
                first_missing=first_missing,
                last_missing=last_missing,
                detail=detail,
            )

    def lost(self, connection: int, cause: Cause, *, since_us: int, now_us: int, detail: str | None = None) -> None:
        """A connection is gone, with all that it brought, and was still to bring."""
        carried = [name for name, carriers in self._flowing.items() if connection in carriers]
        gone = [name for name in carried if self._remove(connection, name)]
        for name in carried:
            self._tell_taken_over_late(name, cause, since_us=since_us, now_us=now_us, detail=detail)
        waited = [name for name, awaited in self._awaited.items() if awaited.on == {connection}]
        for awaited in self._awaited.values():
            awaited.on.discard(connection)
        if (gone or waited) and not self._flowing and not self._broken:
            begun_us = [since_us] if gone else []
            begun_us += [self._awaited[name].granted_us for name in waited]
            self.interrupted(cause, since_us=min(begun_us), now_us=now_us, detail=detail)
        else:
            for name in gone:
                self._break(name, cause, since_us=since_us, now_us=now_us, detail=detail)
        for name in waited:  # told now; the next grant waits for it again
            self._break_awaited(name, self._awaited.pop(name), cause, now_us, detail)

    def left(
        self,
        connection: int,
        instruments: Iterable[str],
        now_us: int,
        *,
        known_us: Callable[[str], int] | None = None,
    ) -> None:
        """A connection gave these up on purpose; where it was the last, recording of the instrument ends.

        Unless it is still to be recorded: then the connection that took it over has lost it meanwhile, and what is
        missing came after the newest that is known of it (`known_us`, the exchange's time).
        """
        for name in instruments:
            if name in self._awaited:
                self._awaited[name].on.discard(connection)
            was_last = self._remove(connection, name)
            if was_last and name in self._expected:
                detail = "it was left where it flowed, and is broken where it was moved to"
                since_us = now_us if known_us is None else min(known_us(name), now_us)
                self._break(name, "sequence_break", since_us=since_us, now_us=now_us, detail=detail)
            elif not self.carriers(name) and name not in self._expected and (gap := self._broken.pop(name, None)):
                self._finish(gap, now_us)

    # Interruptions of the whole stream

    def expect(self, instruments: Iterable[str], now_us: int) -> None:
        """Say which instruments are to flow. The gap of one that is not among them any more ends here."""
        self._expected = frozenset(instruments)
        for name in [name for name in self._broken if name not in self._expected and not self.carriers(name)]:
            self._finish(self._broken.pop(name), now_us)
        for name in self._awaited.keys() - self._expected:
            del self._awaited[name]
        if self._resuming:  # the others may have waited for nothing but those that left
            self._check_resumed(now_us)

    def interrupted(self, cause: Cause, *, since_us: int, now_us: int, detail: str | None = None) -> None:
        """The stream stopped for every instrument. An interruption that lasts is told once.

        Unless it began later: it may be durable although the rows that came before it, in the same round, are not.
        """
        self._resuming = True
        self._resumed.clear()
        if not self._is_interrupted(since_us):
            self._gaps.open(self.stream, None, cause, started_us=since_us, now_us=now_us, detail=detail)

    def subscribed(
        self,
        connection: int,
        granted: AbstractSet[str],
        now_us: int,
        *,
        refused: AbstractSet[str] = frozenset(),
        exchange_us: int | None = None,
    ) -> None:
        """These were subscribed (or refused): from now on they are waited for, with an end.

        `exchange_us` is when the exchange said so, by its clock.
        """
        for name in granted | refused:
            if not self.carriers(name):
                awaited = self._awaited.setdefault(name, Awaited(now_us, exchange_us or now_us))
                if name in granted:
                    awaited.on.add(connection)

    def tick(self, now_us: int) -> None:
        """Stop waiting for instruments that stay silent: each gets a gap row of its own."""
        overdue = [name for name, one in self._awaited.items() if now_us - one.since_us > RESUME_PATIENCE_US]
        for name in overdue:
            asked_us = self._awaited.pop(name).granted_us
            since_us = min([asked_us, *(gap.started_us for gap in self._interruptions())])
            self._break(
                name, "silence", since_us=since_us, now_us=now_us, detail="nothing came since it was subscribed"
            )
            self._resumed.add(name)
        if overdue and self._resuming:
            self._check_resumed(now_us)

    def clock_stepped(self, step_us: int) -> None:
        """Wait for silent instruments as long as before a step of the clock, and know since when the others flow."""
        for awaited in self._awaited.values():
            awaited.since_us += step_us
        self._begun_us = {key: (ours_us + step_us, theirs_us) for key, (ours_us, theirs_us) in self._begun_us.items()}

    def stopped_cleanly(self) -> bool:
        """Whether a clean stop told where the stream ends, and nothing has begun again since.

        All that came before it was durable before it was told: its start may lie after the last durable row.
        """
        return any(gap.cause == "stopped" for gap in self._interruptions())

    def missed_one(self, instrument: str, *, since_us: int, now_us: int, ids: tuple[int, int]) -> None:
        """One instrument missed these ids in [since, now] and nothing after: told unless a gap of its own lasts."""
        if instrument not in self._broken and not self._resuming:
            self._break(
                instrument,
                "disconnect",
                since_us=since_us,
                now_us=now_us,
                first_missing=ids[0],
                last_missing=ids[1],
            )

    def whole_until_us(self, heard_until_us: Callable[[int], int], now_us: int) -> int:
        """Return until when nothing is missing but what a gap tells, whatever may show up later.

        That is as far as the connections were heard (`heard_until_us`, by number) on which something flows; of what
        has brought nothing since its grant, the grant. Of several connections one is enough where numbers tell what
        they miss, or where missing rows are asked for. Else the first that fell silent counts: who began after that
        did not bring what lies between.
        """
        of_several = max if self._chained or self._refetchable else min
        heard_us = [
            of_several(map(heard_until_us, one)) for one in {frozenset(one) for one in self._flowing.values()}
        ]
        told_us = min((gap.started_us for gap in self._interruptions()), default=now_us)
        granted_us = (awaited.granted_us for name, awaited in self._awaited.items() if name not in self._broken)
        return min([now_us, *heard_us, *(us for us in granted_us if us < told_us)])

    def _remove(self, connection: int, instrument: str) -> bool:
        """Take a connection off an instrument; True if it was the last on which it flowed."""
        carriers = self._flowing.get(instrument)
        if carriers is None or connection not in carriers:
            return False
        carriers.discard(connection)
        del self._begun_us[connection, instrument]
        if carriers:
            return False
        del self._flowing[instrument]
        return True

    def _break(
        self,
        instrument: str,
        cause: Cause,
        *,
        since_us: int,
        now_us: int,
        first_missing: int | None = None,
        last_missing: int | None = None,
        detail: str | None = None,
    ) -> None:
        """Open an instrument's own gap; it lasts until `flows`. A hole within a hole is told once."""
        if instrument not in self._broken:
            self._broken[instrument] = self._gaps.open(
                self.stream,
                instrument,
                cause,
                started_us=since_us,
                now_us=now_us,
                first_missing=first_missing,
                last_missing=last_missing,
                detail=detail,
            )

    def _break_awaited(
        self, instrument: str, awaited: Awaited, cause: Cause, now_us: int, detail: str | None
    ) -> None:
        """Tell what was missed of an instrument since it was subscribed, unless a gap of all tells it."""
        if not self._is_interrupted(awaited.granted_us):
            self._break(instrument, cause, since_us=awaited.granted_us, now_us=now_us, detail=detail)

    def _tell_taken_over_late(
        self, instrument: str, cause: Cause, *, since_us: int, now_us: int, detail: str | None
    ) -> None:
        """Tell what nobody brought between the last of who was lost and the first of who carries it now.

        Chains tell that by their numbers; and who traded in any time is asked.
        """
        begun = [min(self._begun_us[number, instrument]) for number in self.carriers(instrument)]
        if self._chained or self._refetchable or not begun or min(begun) <= since_us:
            return
        if instrument not in self._broken and not self._is_interrupted(since_us):
            gap = self._gaps.open(self.stream, instrument, cause, started_us=since_us, now_us=now_us, detail=detail)
            self._gaps.settle(gap, "lost", ended_us=min(begun), now_us=now_us)

    def _is_interrupted(self, since_us: int) -> bool:
        """Whether a gap of all lasts that began by then."""
        return any(gap.started_us <= since_us for gap in self._interruptions())

    def _check_resumed(self, now_us: int) -> None:
        if self._expected and self._expected <= self._resumed:
            for gap in self._interruptions():
                self._finish(gap, now_us, whole_us=self._resumed_us)
            self._resuming = False
            self._resumed.clear()
            self._resumed_us = 0

    def _interruptions(self) -> list[Gap]:
        """The whole-stream gaps that still last."""
        return [
            gap for gap in self._gaps.find(stream=self.stream) if gap.cause in _INTERRUPTIONS and gap.ended_us is None
        ]

    def _finish(self, gap: Gap, now_us: int, *, whole_us: int = 0) -> None:
        if self._refetchable:  # what it hides is asked for by this clock
            self._gaps.end(gap, ended_us=now_us, now_us=now_us)
        else:
            self._gaps.settle(gap, "lost", ended_us=max(now_us, whole_us), now_us=now_us)


def _made_us(row: Row) -> int:
    """Return the exchange's time of a row."""
    return int(row[0])
