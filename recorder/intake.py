"""Takes what connections observe and decides what becomes a row: each tick once, each hole told."""

from collections.abc import Callable, Iterable
from collections.abc import Set as AbstractSet
from typing import Literal

from recorder.buffers import Buffer
from recorder.deribit.book import Top
from recorder.deribit.feed import Family
from recorder.deribit.messages import InstrumentData, InstrumentStateData, TickerData, TradeData
from recorder.deribit.universe import ENDED_STATES, Listing
from recorder.gaps import Cause, Fate, Gap, GapLog
from recorder.lanes import ALL, Lane
from recorder.rejects import Rejects
from recorder.rows import US_PER_MS, instrument_row, quote_row, ticker_row, trade_row
from recorder.runtime.logging import Logger
from recorder.segments.layout import US_PER_DAY
from recorder.segments.schemas import GAPS_STREAM, Row, stream_name
from recorder.trades_had import TradesHad

# Rows of these streams are few; the bound is against the unforeseen.
BUFFER_SIZE_INSTRUMENTS = 100_000
BUFFER_SIZE_GAPS = 100_000


class Intake:
    """The recorder's Feed (recorder.deribit.feed), whatever the number of connections."""

    def __init__(
        self,
        *,
        currency: str,
        kind: str,
        # Limits, in rows
        buffer_size_quotes: int,
        buffer_size_trades: int,
        buffer_size_tickers: int,
        # What the tape remembers
        had: TradesHad,
        open_gaps: Iterable[Gap],
        # Edges
        rejects: Rejects,
        now_us: Callable[[], int],
        on_instrument: Callable[[InstrumentData], None],
        on_list_missed: Callable[[], None],
        log: Logger,
    ) -> None:
        """`on_instrument` is told of new listings and states, `on_list_missed` when some may have been missed."""

        def buffer(stream_kind: str, limit_rows: int) -> Buffer:
            return Buffer(stream_name(currency, kind, stream_kind), limit_rows)

        self.rejects = rejects
        self.had = had
        self.received = 0
        self.last_tick_us = 0
        self._now_us = now_us
        self._on_instrument = on_instrument
        self._on_list_missed = on_list_missed
        self._log = log
        self._gap_rows = Buffer(GAPS_STREAM, BUFFER_SIZE_GAPS)
        self.gaps = GapLog(self._gap_rows.add, open_gaps)
        # Trades come on one channel for all, books and tickers on one each.
        self.quotes = Lane(buffer("quotes", buffer_size_quotes), self.gaps, refetchable=False)
        self.tickers = Lane(buffer("tickers", buffer_size_tickers), self.gaps, refetchable=False)
        self.trades_lane = Lane(buffer("trades", buffer_size_trades), self.gaps, refetchable=True)
        self.trades_lane.expect([ALL], now_us())
        self._instrument_rows = buffer("instruments", BUFFER_SIZE_INSTRUMENTS)
        self._newest: dict[str, tuple[float | None, float | None]] = {}  # underlying_price, mark_price
        self._newest_ticker: dict[str, Row] = {}  # as last recorded
        self._chosen: frozenset[str] = frozenset()
        self._lifecycle_on: set[int] = set()  # the connections that carry announcements
        self._lifecycle_missed = False
        self._platform: dict[str, bool] = {}  # what the exchange last said of itself
        self._chain: dict[str, tuple[int, int]] = {}  # newest recorded change_id, its timestamp_ms
        self._instruments: dict[str, InstrumentData] = {}
        self._last_trade_us: dict[str, int] = {}  # when an instrument's last live trade was received
        # Gaps whose fate is known, and how far the trades buffer must be durable before it is told.
        self._settled: dict[str, tuple[int, Gap, list[tuple[Fate, int, int]]]] = {}
        for gap in self.gaps.open_gaps:
            if gap.stream == self.trades_lane.stream and gap.instrument and gap.first_missing and gap.last_missing:
                self.had.owe(gap.instrument, gap.first_missing, gap.last_missing)
        self._told: dict[str, tuple[str | None, bool]] = {}  # state and recorded, as last written
        self._told_day = 0

    @property
    def lanes(self) -> tuple[Lane, Lane, Lane]:
        """The three streams of ticks."""
        return self.quotes, self.trades_lane, self.tickers

    @property
    def buffers(self) -> list[Buffer]:
        """Every stream's buffer."""
        return [self._gap_rows, self._instrument_rows, *(lane.buffer for lane in self.lanes)]

    # Ticks: the hot path

    def quote(
        self,
        connection: int,
        instrument: str,
        timestamp_ms: int,
        top: Top,
        change_id: int,
        prev_change_id: int | None,
        received_us: int,
    ) -> None:
        """Record the top of a book if it goes beyond what is recorded of that instrument.

        Connections need not cut their 100 ms windows at the same moment: a row is whole if it begins at or before
        the newest that is recorded. What begins after it is left to the connection that brings what lies between,
        while there is one.
        """
        self.received += 1
        self.last_tick_us = received_us
        lane = self.quotes
        carriers = lane.carriers(instrument)
        newest_id, newest_ms = self._chain.get(instrument, (-1, 0))
        # A snapshot behind the chain is an old one, unless it is younger: then the exchange began a new chain.
        beyond = change_id > newest_id or (prev_change_id is None and timestamp_ms > newest_ms)
        if beyond:
            if connection not in carriers and carriers and (prev_change_id is None or prev_change_id > newest_id):
                return
            newest = self._newest.get(instrument, (None, None))
            row = quote_row(instrument, timestamp_ms, received_us, top, newest, change_id, prev_change_id)
            if lane.add(row, received_us):
                self._chain[instrument] = (change_id, timestamp_ms)
        if connection not in carriers:
            if beyond and prev_change_id is not None and prev_change_id > newest_id >= 0:
                # Whoever would have brought what lies between is gone: tell it, and go on from here.
                lane.missed_one(
                    instrument,
                    since_us=newest_ms * US_PER_MS,
                    now_us=received_us,
                    ids=(newest_id + 1, prev_change_id),
                )
            lane.flows(connection, instrument, received_us)

    def ticker(self, connection: int, data: TickerData, received_us: int) -> None:
        """Record a ticker; where several connections bring it, only what is newer or different."""
        self.received += 1
        self.last_tick_us = received_us
        name = data.instrument_name
        row = ticker_row(data, received_us)
        carriers = self.tickers.carriers(name)
        if connection not in carriers:
            self.tickers.flows(connection, name, received_us)
            carriers = self.tickers.carriers(name)
        if len(carriers) > 1 and not _is_newer(row, self._newest_ticker.get(name)):
            return
        self._newest[name] = (data.underlying_price, data.mark_price)
        self._newest_ticker[name] = row
        self.tickers.add(row, received_us)

    def trades(self, trades: list[TradeData], received_us: int, since_us: int) -> None:
        """Record the trades that are not had yet; a jump in trade_seq opens a gap for what it skipped."""
        self.received += 1
        self.last_tick_us = received_us
        for data in trades:
            self.take_trade(data, "live", received_us, since_us)

    def take_trade(self, data: TradeData, source: str, received_us: int, since_us: int) -> bool:
        """Record a trade, live or fetched, unless it is had; False if there was no room for it."""
        name, seq = data.instrument_name, data.trade_seq
        new = self.had.add(name, seq)
        if new is False:
            return True
        underlying_price = self._newest.get(name, (None, None))[0] if source == "live" else None
        taken = self.trades_lane.add(trade_row(data, received_us, underlying_price, source), received_us)
        if not taken:
            self.had.remove(name, seq)
        if isinstance(new, tuple):
            self._missed_trades(name, new, since_us)
        elif taken:
            self._filled(name, seq)
        if source == "live":
            self._last_trade_us[name] = received_us
        return taken

    # What trades are missing

    def owe(self, instrument: str, first: int, last: int, cause: Cause, since_us: int) -> set[str]:
        """Open gaps for what of [first, last] is neither had nor told; return all open gap_ids that concern it."""
        self.had.owe(instrument, first, last)
        known = self.gaps.find(stream=self.trades_lane.stream, instrument=instrument)
        told = [(gap.first_missing or 0, gap.last_missing or 0) for gap in known]
        for a, b in _without(self.had.missing(instrument, first, last), told):
            known.append(self._open_trades_gap(instrument, (a, b), cause, since_us))
        return {gap.gap_id for gap in known if (gap.first_missing or 0) <= last and (gap.last_missing or 0) >= first}

    def begun_without_trades(self) -> list[str]:
        """Return live instruments of which nothing is had, and so nobody knows where they begin."""
        if not self.trades_lane.carriers(ALL):
            return []
        return [
            name
            for name, data in self._instruments.items()
            if name not in self.had.by_instrument and data.state not in ENDED_STATES
        ]

    def begin_trades(self, instrument: str, newest: int) -> None:
        """Owe what follows an instrument's newest trade as of now."""
        had = self.had.by_instrument.get(instrument)
        if had is None:
            self.had.begin(instrument, newest)
        elif had.first > newest + 1:  # a live trade was faster than the answer
            hole = (newest + 1, had.first - 1)
            self.had.owe(instrument, *hole)
            self._open_trades_gap(instrument, hole, "sequence_break", self._now_us())

    def give_up(self, gap: Gap, *, void: AbstractSet[int], lost: AbstractSet[int]) -> None:
        """Settle a gap of which every number is fetched, void, or lost; do nothing while one is open."""
        assert gap.instrument is not None
        assert gap.first_missing is not None
        assert gap.last_missing is not None
        ranges = self.had.missing(gap.instrument, gap.first_missing, gap.last_missing)
        if {n for a, b in ranges for n in range(a, b + 1)} <= void | lost:
            runs = runs_of_fate(gap.first_missing, gap.last_missing, void=void, lost=lost)
            self._settled[gap.gap_id] = (self.trades_lane.buffer.position, gap, runs)

    def _missed_trades(self, instrument: str, hole: tuple[int, int], since_us: int) -> None:
        last_us = self._last_trade_us.get(instrument, 0)
        # A hole in time explains a jump only if the instrument has not traded since it ended.
        for gap in self.gaps.find(stream=self.trades_lane.stream):
            if gap.ended_us is None or last_us < gap.ended_us:
                self._open_trades_gap(instrument, hole, gap.cause, gap.started_us)
                return
        self._open_trades_gap(instrument, hole, "sequence_break", since_us)

    def _open_trades_gap(self, instrument: str, hole: tuple[int, int], cause: Cause, started_us: int) -> Gap:
        return self.gaps.open(
            self.trades_lane.stream,
            instrument,
            cause,
            started_us=started_us,
            now_us=self._now_us(),
            first_missing=hole[0],
            last_missing=hole[1],
        )

    def _filled(self, instrument: str, trade_seq: int) -> None:
        """Settle the gaps that a trade has filled to the last number, once that trade is durable."""
        for gap in self.gaps.find(stream=self.trades_lane.stream, instrument=instrument):
            first, last = gap.first_missing, gap.last_missing
            if first is None or last is None or not first <= trade_seq <= last:
                continue
            if not self.had.missing(instrument, first, last):
                self._settled[gap.gap_id] = (self.trades_lane.buffer.position, gap, [("healed", first, last)])

    def _tell_settled(self, now_us: int) -> None:
        """Write the fate of gaps whose trades are durable: the round that writes it begins with the gaps."""
        durable = self.trades_lane.buffer.durable
        for gap_id, (position, gap, runs) in list(self._settled.items()):
            if position <= durable:
                del self._settled[gap_id]
                self.gaps.settle_runs(gap, runs, now_us=now_us)

    @property
    def settling(self) -> bool:
        """Whether the fate of some gap waits for its trades to be durable."""
        return bool(self._settled)

    # Instruments

    def chosen(self, listing: Listing, instruments: Iterable[str]) -> None:
        """Take over the exchange's list and what of it is to be recorded, before it is subscribed."""
        now_us = self._now_us()
        if self._instruments:
            for name in listing.instruments.keys() - self._instruments.keys():
                self.had.begin(name, 0)  # listed since, unannounced
        for name in self._instruments.keys() - listing.instruments.keys():
            if self._told.get(name, (None, False))[1]:
                self._tell(name, listing.exchange_us or now_us, now_us, recorded=False)  # gone, unannounced
            self._told.pop(name, None)
        self._instruments = dict(listing.instruments)
        before, self._chosen = self._chosen, frozenset(instruments)
        self.quotes.expect(self._chosen, now_us)
        self.tickers.expect(self._chosen, now_us)
        self._told_day = self._told_day or now_us // US_PER_DAY
        for name in self._instruments:
            if name not in self._chosen and (name in before or name not in self._told):
                self._tell(name, listing.exchange_us or now_us, now_us, recorded=False)

    def instrument_created(self, data: InstrumentData, received_us: int) -> None:
        """Record a new listing."""
        self.received += 1
        self._instruments[data.instrument_name] = data
        self.had.begin(data.instrument_name, 0)
        exchange_ms = data.timestamp or data.creation_timestamp
        self._tell(data.instrument_name, exchange_ms * US_PER_MS if exchange_ms else received_us, received_us)
        self._on_instrument(data)

    def instrument_state(self, data: InstrumentStateData, received_us: int) -> None:
        """Record a change of state."""
        self.received += 1
        known = self._instruments.get(data.instrument_name) or InstrumentData(data.instrument_name)
        known.state = data.state
        self._instruments[data.instrument_name] = known
        self._tell(data.instrument_name, data.timestamp * US_PER_MS, received_us)
        self._on_instrument(known)

    def _tell(self, name: str, timestamp_us: int, now_us: int, *, recorded: bool | None = None) -> None:
        data = self._instruments.get(name)
        if data is None:
            return
        before = self._told.get(name)
        state = (data.state, recorded if recorded is not None else bool(before and before[1]))
        if state != before:
            self._told[name] = state
            self._instrument_rows.add(instrument_row(data, timestamp_us, now_us, recorded=state[1]))

    # Connections

    def subscribed(
        self,
        connection: int,
        *,
        books: AbstractSet[str],
        tickers: AbstractSet[str],
        refused: AbstractSet[str],
        trades: bool,
        lifecycle: bool,
        exchange_us: int | None,
    ) -> None:
        """Tell which instruments are recorded from now on, and wait for each to flow."""
        now_us = self._now_us()
        for name in books & tickers:
            self._tell(name, exchange_us or now_us, now_us, recorded=True)
        for name in refused:
            self._tell(name, exchange_us or now_us, now_us)
        self.quotes.subscribed(books | refused, now_us)
        self.tickers.subscribed(tickers | refused, now_us)
        if trades:
            self.trades_lane.flows(connection, ALL, now_us)
        if lifecycle:
            if self._lifecycle_missed:
                self._on_list_missed()
            self._lifecycle_missed = False
            self._lifecycle_on.add(connection)

    def left(self, connection: int, instruments: AbstractSet[str], *, trades: bool) -> None:
        """Recording ends where nobody else carries an instrument; it was told when the choice was made."""
        now_us = self._now_us()
        self.quotes.left(connection, instruments, now_us)
        self.tickers.left(connection, instruments, now_us)
        if trades:
            self.trades_lane.left(connection, [ALL], now_us)

    def disconnected(
        self, connection: int, *, cause: Literal["disconnect", "silence"], since_us: int, detail: str
    ) -> None:
        """Open a gap for what no other connection carries."""
        now_us = self._now_us()
        for lane in self.lanes:
            lane.lost(connection, cause, since_us=since_us, now_us=now_us, detail=detail)
        self._lifecycle_missed |= self._lifecycle_on == {connection}
        self._lifecycle_on.discard(connection)

    def book_broken(
        self, connection: int, instrument: str, since_us: int, first_missing: int, last_missing: int
    ) -> None:
        """Open a gap for one book, unless another connection carries it; a new snapshot ends it."""
        self.quotes.stops(
            connection,
            instrument,
            "sequence_break",
            since_us=since_us,
            now_us=self._now_us(),
            first_missing=first_missing,
            last_missing=last_missing,
        )

    def rejected(
        self, connection: int, frame: bytes, reason: str, *, family: Family, instrument: str | None, since_us: int
    ) -> None:
        """Keep the frame aside; on a known channel open the gap of what it may have held."""
        now_us = self._now_us()
        self.rejects.add(frame, reason, now_us)
        if family == "trades":
            self.trades_lane.missed("rejected", since_us=since_us, now_us=now_us, detail=reason)
        elif family == "unknown":
            # Books and trades have chains that tell what they miss; of a ticker nothing else would tell.
            self.tickers.missed("rejected", since_us=since_us, now_us=now_us, detail=reason)
        elif instrument is not None:
            lane = self.quotes if family == "book" else self.tickers
            lane.stops(connection, instrument, "rejected", since_us=since_us, now_us=now_us, detail=reason)

    def platform(self, facts: dict[str, bool]) -> None:
        """Log what the exchange says of itself where it changed: it repeats itself several times a second."""
        for name, value in facts.items():
            if self._platform.get(name, name == "public_methods") != value:
                self._log.warning("exchange.platform", what=name, value=value)
            self._platform[name] = value

    # Time

    def tick(self) -> None:
        """Do what time asks for; called before each flush round."""
        now_us = self._now_us()
        self._tell_settled(now_us)
        for lane in self.lanes:
            lane.tick(now_us)
        if self._told_day and now_us // US_PER_DAY != self._told_day:
            self._told_day = now_us // US_PER_DAY
            for name, (_, recorded) in self._told.items():
                if (data := self._instruments.get(name)) is not None and data.state not in ENDED_STATES:
                    self._instrument_rows.add(instrument_row(data, now_us, now_us, recorded=recorded))

    def clock_stepped(self, step_us: int, before_us: int) -> None:
        """Record a step of the wall clock. Nothing is missing for it, but times across it do not subtract."""
        now_us = self._now_us()
        detail = f"the wall clock was stepped by {step_us / 1e6:+.3f} s"
        for lane in self.lanes:
            gap = self.gaps.open(lane.stream, None, "clock_step", started_us=before_us, now_us=now_us, detail=detail)
            self.gaps.settle(gap, "void", now_us=now_us, ended_us=now_us)

    def stopped(self, since_us: int) -> None:
        """Open the gap that a clean stop leaves; the next start takes it up."""
        now_us = self._now_us()
        for lane in self.lanes:
            if not lane.stopped_cleanly():
                self.gaps.open(lane.stream, None, "stopped", started_us=since_us, now_us=now_us)


def _is_newer(row: Row, newest: Row | None) -> bool:
    """Whether a ticker goes beyond what was recorded: younger, or as young and different (received_at aside)."""
    if newest is None or row[0] > newest[0]:
        return True
    return bool(row[0] == newest[0] and row[3:] != newest[3:])


def runs_of_fate(
    first: int, last: int, *, void: AbstractSet[int], lost: AbstractSet[int]
) -> list[tuple[Fate, int, int]]:
    """Return (fate, first, last) for each run of numbers in [first, last] with one fate; the rest is healed."""
    runs: list[tuple[Fate, int, int]] = []
    for number in range(first, last + 1):
        fate: Fate = "void" if number in void else "lost" if number in lost else "healed"
        if runs and runs[-1][0] == fate:
            runs[-1] = (fate, runs[-1][1], number)
        else:
            runs.append((fate, number, number))
    return runs


def _without(ranges: Iterable[tuple[int, int]], holes: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return what of inclusive ranges lies in none of the others."""
    left = list(ranges)
    for a, b in holes:
        left = [
            part
            for first, last in left
            for part in ((first, min(last, a - 1)), (max(first, b + 1), last))
            if part[0] <= part[1]
        ]
    return left
