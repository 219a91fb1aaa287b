"""Takes what connections observe and decides what becomes a row: each tick once, each hole told."""

from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from typing import Literal

from recorder.buffers import Buffer
from recorder.chains import Chains
from recorder.deribit.book import Top
from recorder.deribit.feed import Family
from recorder.deribit.messages import InstrumentData, InstrumentStateData, TickerData, TradeData
from recorder.deribit.universe import ENDED_STATES, Listing
from recorder.gaps import Gap, GapLog
from recorder.lanes import ALL, Lane
from recorder.rejects import Rejects
from recorder.rows import US_PER_MS, instrument_row, ticker_row, trade_row
from recorder.runtime.logging import Logger
from recorder.segments.layout import US_PER_DAY
from recorder.segments.schemas import GAPS_STREAM, Row, stream_name
from recorder.trades_had import TradesHad
from recorder.trades_owed import TradesOwed

# Rows of these streams are few; the bound is against the unforeseen.
BUFFER_SIZE_INSTRUMENTS = 100_000
BUFFER_SIZE_GAPS = 100_000
# So many tickers of one instrument and time are remembered; two were seen.
MOST_OF_A_TIME = 8
_NO_PRICES = (None, None)


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
        recording_since_us: int | None = None,
        # Edges
        rejects: Rejects,
        now_us: Callable[[], int],
        on_instrument: Callable[[InstrumentData], None],
        on_list_missed: Callable[[], None],
        log: Logger,
    ) -> None:
        """`on_instrument` is told of new listings and states, `on_list_missed` when some may have been missed.

        `recording_since_us` is None on a new tape: recording then begins when the trades channel is granted.
        """

        def buffer(stream_kind: str, limit_rows: int) -> Buffer:
            return Buffer(stream_name(currency, kind, stream_kind), limit_rows)

        self.rejects = rejects
        self.received = 0
        self.last_tick_us = 0
        self._tape_is_new = self._began_here = recording_since_us is None
        self.recording_since_us = recording_since_us if recording_since_us is not None else now_us()
        self._now_us = now_us
        self._on_instrument = on_instrument
        self._on_list_missed = on_list_missed
        self._log = log
        self._gap_rows = Buffer(GAPS_STREAM, BUFFER_SIZE_GAPS)
        self.gaps = GapLog(self._gap_rows.add, open_gaps)
        # Trades come on one channel for all, books and tickers on one each.
        self.quotes = Lane(buffer("quotes", buffer_size_quotes), self.gaps, refetchable=False, chained=True)
        self.tickers = Lane(buffer("tickers", buffer_size_tickers), self.gaps, refetchable=False)
        self.trades_lane = Lane(buffer("trades", buffer_size_trades), self.gaps, refetchable=True)
        self.trades_lane.expect([ALL], now_us())
        self._instrument_rows = buffer("instruments", BUFFER_SIZE_INSTRUMENTS)
        self._newest: dict[str, tuple[float | None, float | None]] = {}  # underlying_price, mark_price
        # The tickers of the newest time, as recorded, and which connection brought the last of them.
        self._newest_ticker: dict[str, tuple[int, list[Row]]] = {}
        self._chosen: frozenset[str] = frozenset()
        self._lifecycle_on: set[int] = set()  # the connections that carry announcements
        self._lifecycle_missed = False
        self._platform: dict[str, bool] = {}  # what the exchange last said of itself
        self._chains = Chains(self.quotes)
        self._instruments: dict[str, InstrumentData] = {}
        self.owed = TradesOwed(self.trades_lane, self.gaps, had, since_us=self.recording_since_us, now_us=now_us)
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

    def flows_on(self, instrument: str, connection: int) -> bool:
        """Whether a connection brings an instrument whole: its book and its ticker."""
        return connection in self.quotes.carriers(instrument) and connection in self.tickers.carriers(instrument)

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
        """Record the top of a book if it goes beyond what is recorded of that instrument."""
        self.received += 1
        self.last_tick_us = received_us
        prices = self._newest.get(instrument, _NO_PRICES)
        self._chains.take(connection, instrument, timestamp_ms, top, prices, change_id, prev_change_id, received_us)

    def ticker(self, connection: int, data: TickerData, received_us: int) -> None:
        """Record a ticker; where several connections bring it, only what is newer or different."""
        self.received += 1
        self.last_tick_us = received_us
        name = data.instrument_name
        row = ticker_row(data, received_us)
        carriers = self.tickers.carriers(name)
        if connection not in carriers:
            self.tickers.flows(connection, name, received_us, whole_us=data.timestamp * US_PER_MS)
            carriers = self.tickers.carriers(name)
        brought_by, newest = self._newest_ticker.get(name, (connection, []))
        # Also where the other connection has just left: this one's window may end later.
        if (len(carriers) > 1 or brought_by != connection) and not _is_newer(row, newest):
            return
        self._newest[name] = (data.underlying_price, data.mark_price)
        same_time = newest if newest and newest[0][0] == row[0] else []
        self._newest_ticker[name] = connection, [*same_time, row][-MOST_OF_A_TIME:]
        self.tickers.add(row, received_us)

    def _ticker_us(self, instrument: str, now_us: int) -> int:
        """Return the exchange's time of an instrument's newest ticker; now, if there is none."""
        _, newest = self._newest_ticker.get(instrument, (0, []))
        return int(newest[0][0]) if newest else now_us

    def trades(self, trades: list[TradeData], received_us: int, since_us: int) -> None:
        """Record the trades that are not had yet; a jump in trade_seq opens a gap for what it skipped."""
        self.received += 1
        self.last_tick_us = received_us
        for data in trades:
            self.take_trade(data, "live", received_us, since_us)

    def take_trade(
        self, data: TradeData, source: Literal["live", "backfill"], received_us: int, since_us: int
    ) -> bool:
        """Record a trade, live or fetched, unless it is had; False if there was no room for it."""
        newest = self._newest.get(data.instrument_name) if source == "live" else None
        row = trade_row(data, received_us, newest[0] if newest else None, source)
        return self.owed.take(row, data.instrument_name, data.trade_seq, received_us, since_us, live=source == "live")

    def begun_without_trades(self) -> list[str]:
        """Return live instruments of which nothing is had, and so nobody knows where they begin."""
        if not self.trades_lane.carriers(ALL):
            return []
        return [
            name
            for name, data in self._instruments.items()
            if data.state not in ENDED_STATES and name not in self.owed.had.by_instrument
        ]

    # Instruments

    def chosen(self, listing: Listing, instruments: Iterable[str]) -> None:
        """Take over the exchange's list and what of it is to be recorded, before it is subscribed."""
        now_us = self._now_us()
        if self._instruments:
            begun_us = max(self.recording_since_us, self.owed.complete_before_us)
            for name in listing.instruments.keys() - self._instruments.keys():
                # Listed since, unannounced; or seen before, left out of one list, and back.
                if (listing.instruments[name].creation_timestamp or 0) * US_PER_MS >= begun_us:
                    self.owed.had.begin(name, 0)
        for name in self._instruments.keys() - listing.instruments.keys():
            if self._told.get(name, (None, False))[1]:
                self._tell(name, listing.exchange_us or now_us, now_us, recorded=False)  # gone, unannounced
            for known in (self._told, self._newest, self._newest_ticker):
                known.pop(name, None)
            self._chains.forget(name)
        self._instruments = dict(listing.instruments)
        self.owed.listed({data.instrument_name for data in listing.live}, now_us)
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
        self.owed.had.begin(data.instrument_name, 0)
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
        for lane, granted in ((self.quotes, books), (self.tickers, tickers)):
            lane.subscribed(connection, granted, now_us, refused=refused, exchange_us=exchange_us)
        if trades:
            if self._tape_is_new:
                self._tape_is_new, self.recording_since_us = False, now_us
            self.trades_lane.flows(connection, ALL, now_us)
        if lifecycle:
            if self._lifecycle_missed:
                self._on_list_missed()
            self._lifecycle_missed = False
            self._lifecycle_on.add(connection)

    def left(self, connection: int, instruments: AbstractSet[str], *, trades: bool) -> None:
        """Recording ends where nobody else carries an instrument; it was told when the choice was made."""
        now_us = self._now_us()
        self._chains.passed_by(connection, instruments)
        self.quotes.left(connection, instruments, now_us, known_us=lambda name: self._chains.known_us(name, now_us))
        self.tickers.left(connection, instruments, now_us, known_us=lambda name: self._ticker_us(name, now_us))
        if trades:
            self.trades_lane.left(connection, [ALL], now_us)

    def disconnected(
        self, connection: int, *, cause: Literal["disconnect", "silence"], since_us: int, detail: str
    ) -> None:
        """Open a gap for what no other connection carries."""
        now_us = self._now_us()
        self._chains.lost(connection, cause, since_us=since_us, now_us=now_us, detail=detail)
        for lane in self.lanes:
            lane.lost(connection, cause, since_us=since_us, now_us=now_us, detail=detail)
        self._lifecycle_missed |= self._lifecycle_on == {connection}
        self._lifecycle_on.discard(connection)

    def book_broken(self, connection: int, instrument: str, first_missing: int, last_missing: int) -> None:
        """Open a gap for one book, unless another connection carries it; a new snapshot ends it."""
        self._chains.broken(connection, instrument, first_missing, last_missing, self._now_us())

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
            if family == "book":
                self._chains.passed_by(connection, [instrument])
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
        self.owed.tick(now_us)
        self._chains.tick(now_us)
        for lane in self.lanes:
            lane.tick(now_us)
        if self._told_day and now_us // US_PER_DAY != self._told_day:
            self._told_day = now_us // US_PER_DAY
            for name, (_, recorded) in self._told.items():
                if (data := self._instruments.get(name)) is not None and data.state not in ENDED_STATES:
                    self._instrument_rows.add(instrument_row(data, now_us, now_us, recorded=recorded))

    def clock_stepped(self, step_us: int, before_us: int) -> None:
        """Record a step of the wall clock, as soon as it is taken over.

        Nothing is missing for it, but times across it do not subtract: those that are remembered are carried over.
        """
        now_us = self._now_us()
        self.last_tick_us += step_us if self.last_tick_us else 0
        self.recording_since_us += step_us if self._began_here else 0
        self._chains.clock_stepped(step_us)
        self.gaps.clock_stepped(step_us)
        self.owed.clock_stepped(step_us)
        detail = f"the wall clock was stepped by {step_us / 1e6:+.3f} s"
        for lane in self.lanes:
            lane.clock_stepped(step_us)
            gap = self.gaps.open(lane.stream, None, "clock_step", started_us=before_us, now_us=now_us, detail=detail)
            self.gaps.settle(gap, "void", now_us=now_us, ended_us=now_us)

    def whole_until_us(self, heard_until_us: Callable[[int], int]) -> dict[str, int]:
        """Return, by stream, until when nothing is missing but what a gap tells (see Lane.whole_until_us)."""
        now_us = self._now_us()
        whole_us = {lane.stream: lane.whole_until_us(heard_until_us, now_us) for lane in self.lanes}
        shown_us = self._chains.whole_until_us(now_us)
        return {**whole_us, self.quotes.stream: min(shown_us, whole_us[self.quotes.stream])}

    def all_left(self) -> None:
        """Nothing more comes on any connection: what was shown of books and not brought is told."""
        self._chains.tick(self._now_us(), patience_us=0)

    def stopped(self, whole_us: Mapping[str, int]) -> None:
        """Open the gap that a clean stop leaves, from when each stream was whole; the next start takes it up."""
        now_us = self._now_us()
        self.owed.tell_jumps()
        for lane in self.lanes:
            if not lane.stopped_cleanly():
                self.gaps.open(lane.stream, None, "stopped", started_us=whole_us[lane.stream], now_us=now_us)


def _is_newer(row: Row, newest: list[Row]) -> bool:
    """Whether a ticker goes beyond what was recorded: younger, or as young as those and different from each.

    `received_at` does not count. Some tickers of one time differ, and connections cut them differently.
    """
    if not newest or row[0] > newest[0][0]:
        return True
    return bool(row[0] == newest[0][0] and all(row[3:] != one[3:] for one in newest))
