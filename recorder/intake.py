"""Takes what connections observe and decides what becomes a row: each tick once, each hole told."""

from collections.abc import Callable, Iterable
from collections.abc import Set as AbstractSet

from recorder.buffers import Buffer
from recorder.deribit.book import Top
from recorder.deribit.messages import InstrumentData, InstrumentStateData, TickerData, TradeData
from recorder.deribit.universe import Listing
from recorder.gaps import Cause, Gap, GapLog
from recorder.lanes import Lane
from recorder.rejects import Rejects
from recorder.rows import US_PER_MS, instrument_row, quote_row, ticker_row, trade_row
from recorder.segments.layout import US_PER_DAY
from recorder.segments.schemas import GAPS_STREAM, stream_name
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
    ) -> None:
        def buffer(stream_kind: str, limit_rows: int) -> Buffer:
            return Buffer(stream_name(currency, kind, stream_kind), limit_rows)

        self.rejects = rejects
        self.had = had
        self.received = 0
        self.last_tick_us = 0
        self._now_us = now_us
        self._gap_rows = Buffer(GAPS_STREAM, BUFFER_SIZE_GAPS)
        self.gaps = GapLog(self._gap_rows.add, open_gaps)
        self.quotes = Lane(buffer("quotes", buffer_size_quotes), self.gaps, refetchable=False)
        self.tickers = Lane(buffer("tickers", buffer_size_tickers), self.gaps, refetchable=False)
        self.trades_lane = Lane(buffer("trades", buffer_size_trades), self.gaps, refetchable=True)
        self._instrument_rows = buffer("instruments", BUFFER_SIZE_INSTRUMENTS)
        self._newest: dict[str, tuple[float | None, float | None]] = {}  # underlying_price, mark_price
        self._chain: dict[str, tuple[int, int]] = {}  # newest recorded change_id, its timestamp_ms
        self._instruments: dict[str, InstrumentData] = {}
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
        newest_id, newest_ms = self._chain.get(instrument, (-1, 0))
        # A snapshot behind the chain is an old one, unless it is younger: then the exchange began a new chain.
        if change_id > newest_id or (prev_change_id is None and timestamp_ms > newest_ms):
            newest = self._newest.get(instrument, (None, None))
            row = quote_row(instrument, timestamp_ms, received_us, top, newest, change_id, prev_change_id)
            if self.quotes.add(row, received_us):
                self._chain[instrument] = (change_id, timestamp_ms)
        if prev_change_id is None:
            self.quotes.flows(instrument, received_us)

    def ticker(self, data: TickerData, received_us: int) -> None:
        """Record a ticker."""
        self.received += 1
        self.last_tick_us = received_us
        self._newest[data.instrument_name] = (data.underlying_price, data.mark_price)
        self.tickers.add(ticker_row(data, received_us), received_us)
        self.tickers.flows(data.instrument_name, received_us)

    def trades(self, trades: list[TradeData], received_us: int, since_us: int) -> None:
        """Record the trades that are not had yet; a jump in trade_seq opens a gap for what it skipped."""
        self.received += 1
        self.last_tick_us = received_us
        for data in trades:
            name, seq = data.instrument_name, data.trade_seq
            new = self.had.add(name, seq)
            if new is False:
                continue
            underlying_price = self._newest.get(name, (None, None))[0]
            if not self.trades_lane.add(trade_row(data, received_us, underlying_price, "live"), received_us):
                self.had.remove(name, seq)
            if isinstance(new, tuple):
                self._missed_trades(name, new, since_us, received_us)
            elif new:
                self._heal(name, seq, received_us)

    def _missed_trades(self, instrument: str, hole: tuple[int, int], since_us: int, now_us: int) -> None:
        whole = self.gaps.find(stream=self.trades_lane.stream)
        cause: Cause = whole[-1].cause if whole else "sequence_break"
        self.gaps.open(
            self.trades_lane.stream,
            instrument,
            cause,
            started_us=whole[-1].started_us if whole else since_us,
            now_us=now_us,
            first_missing=hole[0],
            last_missing=hole[1],
        )

    def _heal(self, instrument: str, trade_seq: int, now_us: int) -> None:
        """Settle the gaps that a late trade has filled to the last number."""
        for gap in self.gaps.find(stream=self.trades_lane.stream, instrument=instrument):
            first, last = gap.first_missing, gap.last_missing
            if first is None or last is None or not first <= trade_seq <= last:
                continue
            if not self.had.missing(instrument, first, last):
                self.gaps.settle(gap, "healed", now_us=now_us, ended_us=now_us)

    # Instruments

    def listed(self, listing: Listing) -> None:
        """Take over the exchange's list, before its instruments are subscribed."""
        self._instruments = {data.instrument_name: data for data in listing.instruments}

    def instrument_created(self, data: InstrumentData, received_us: int) -> None:
        """Record a new listing."""
        self.received += 1
        self._instruments[data.instrument_name] = data
        exchange_ms = data.timestamp or data.creation_timestamp
        self._tell(data.instrument_name, exchange_ms * US_PER_MS if exchange_ms else received_us, received_us)

    def instrument_state(self, data: InstrumentStateData, received_us: int) -> None:
        """Record a change of state."""
        self.received += 1
        known = self._instruments.get(data.instrument_name) or InstrumentData(data.instrument_name)
        known.state = data.state
        self._instruments[data.instrument_name] = known
        self._tell(data.instrument_name, data.timestamp * US_PER_MS, received_us)

    def _tell(self, name: str, timestamp_us: int, now_us: int, *, recorded: bool | None = None) -> None:
        data = self._instruments[name]
        before = self._told.get(name)
        state = (data.state, recorded if recorded is not None else bool(before and before[1]))
        if state != before:
            self._told[name] = state
            self._instrument_rows.add(instrument_row(data, timestamp_us, now_us, recorded=state[1]))

    # Connections

    def subscribed(
        self, *, books: AbstractSet[str], tickers: AbstractSet[str], trades: bool, exchange_us: int | None
    ) -> None:
        """Tell which instruments are recorded from now on, and wait for each to flow."""
        now_us = self._now_us()
        self._told_day = self._told_day or now_us // US_PER_DAY
        for name in self._instruments:
            self._tell(name, exchange_us or now_us, now_us, recorded=name in books and name in tickers)
        self.quotes.subscribed(books, now_us)
        self.tickers.subscribed(tickers, now_us)
        if trades:
            self.trades_lane.subscribed(frozenset(), now_us)

    def disconnected(self, *, cause: Cause, since_us: int, detail: str) -> None:
        """Open a gap in every stream of ticks."""
        now_us = self._now_us()
        for lane in self.lanes:
            lane.interrupted(cause, since_us=since_us, now_us=now_us, detail=detail)

    def book_broken(self, instrument: str, since_us: int, first_missing: int, last_missing: int) -> None:
        """Open a gap for one book; the connection brings a new snapshot, which ends it."""
        self.quotes.broke(
            instrument,
            "sequence_break",
            since_us=since_us,
            now_us=self._now_us(),
            first_missing=first_missing,
            last_missing=last_missing,
        )

    def rejected(self, frame: bytes, reason: str, *, family: str, instrument: str | None, since_us: int) -> None:
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
            lane.broke(instrument, "rejected", since_us=since_us, now_us=now_us, detail=reason)

    # Time

    def tick(self) -> None:
        """Do what time asks for; called before each flush round."""
        now_us = self._now_us()
        for lane in self.lanes:
            lane.tick(now_us)
        if self._told_day and now_us // US_PER_DAY != self._told_day:
            self._told_day = now_us // US_PER_DAY
            for name, (_, recorded) in self._told.items():
                self._instrument_rows.add(instrument_row(self._instruments[name], now_us, now_us, recorded=recorded))

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
