"""Accounts for every message that the exchange says it sent, and for every moment in which nobody listened.

The journal of the simulator says what was sent on each connection and who held which channel when. Whatever is not on
the tape must lie inside a gap row: what was sent and did not arrive, and what was not sent because nobody held the
channel. Rows are kept as their hashes, so that a journal of millions of messages can be read.
"""

import json
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.dataset as ds

from tests.oracle import QUOTES, TICKERS, TRADES, Expected, Row, table_rows

# Trades of the last moments may have been in a window that was never sent.
LAST_WINDOW_US = 300_000
# Where two connections carry an instrument, a ticker that another one overtook within this is not recorded any more.
OVERTAKEN_US = 500_000
# A gap begins when the last message before it was read, which on a busy machine is so much later than it was sent.
LAG_US = 1_000_000

Span = tuple[int, int]  # microseconds since 1970, both included


class Ticker(NamedTuple):
    """One ticker that was sent, on whatever connection first."""

    instrument: str
    sent_us: int
    exchange_us: int


class Account:
    """What the exchange sent, who held what, and what it traded, read from its journal in one pass."""

    def __init__(self, journal: Path, *, since_us: int = 0) -> None:
        """Ask nothing of what was sent before `since_us`: of that nothing was durable, and no tape can tell."""
        self.since_us = since_us
        self.messages = 0
        # Rows that they should become, by hash: of quotes without and with what tickers add to them.
        self.quotes: set[int] = set()
        self.whole_quotes: set[int] = set()
        self.trades: set[int] = set()
        self.tickers: dict[int, Ticker] = {}
        self.ticker_sent_us: dict[int, int] = {}  # when it was sent last
        self.ticker_times: Counter[tuple[int, int]] = Counter()  # how often, by connection and hash
        self.changes: dict[str, list[tuple[int, int]]] = defaultdict(list)  # of books: change_id, when it was sent
        self.held: dict[str, list[Span]] = defaultdict(list)  # by channel; each connection that held it
        self.made: dict[tuple[str, int], int] = {}  # every trade that there was, sent or not: its time
        # By connection and instrument; its books begin anew with each subscription.
        self._expected: dict[tuple[int, str | None], Expected] = defaultdict(Expected)
        self._since: dict[tuple[int, str], int] = {}
        self._at_us = 0
        self._open: set[int] = set()
        with journal.open() as lines:
            for line in lines:
                self._read(json.loads(line))
        self._let_go(list(self._since))

    def of_one_holder(self) -> set[str]:
        """Return instruments that one connection held, once: nothing of theirs may differ in any way."""
        holders = Counter[str]()
        for channel, spans in self.held.items():
            if (name := instrument_of(channel)) is not None:
                holders[name] = max(holders[name], len(spans))
        return {name for name, count in holders.items() if count == 1}

    def shared(self) -> set[str]:
        """Return instruments that two connections held at the same time."""
        found = set()
        for channel, spans in self.held.items():
            name = instrument_of(channel)
            if name is not None and any(later < until for (_, until), (later, _) in pairwise(sorted(spans))):
                found.add(name)
        return found

    def unheld(self, channel: str) -> list[Span]:
        """Return when nobody held a channel, between its first holder and its last."""
        found, until_us = [], 0
        for start, end in sorted(self.held.get(channel, ())):
            if until_us and start > until_us:
                found.append((until_us, start))
            until_us = max(until_us, end)
        return found

    def owed_trades(self) -> set[tuple[str, int]]:
        """Return the trades that were made between the first moment in which they were listened to and the last."""
        spans = [span for channel, found in self.held.items() if channel.startswith("trades.") for span in found]
        first, last = min(start for start, _ in spans), max(end for _, end in spans) - LAST_WINDOW_US
        return {key for key, made_us in self.made.items() if first <= made_us <= last}

    def _read(self, entry: dict[str, Any]) -> None:
        self._at_us = entry["sent_us"]
        connection = entry.get("connection", 0)
        match entry.get("event"):
            case None:
                params = entry["message"]["params"]
                self._take(connection, params["channel"], params["data"])
            case "subscribed":
                for channel in entry["channels"]:
                    self._since[connection, channel] = self._at_us
                    if channel.startswith("book."):  # begins anew; a ticker may be granted beside a book that flows
                        self._expected.pop((connection, instrument_of(channel)), None)
            case "unsubscribed":
                self._let_go([(connection, channel) for channel in entry["channels"]])
            case "close":
                self._open.discard(connection)
                self._let_go([key for key in self._since if key[0] == connection])
            case "open":
                self._open.add(connection)
            case "unsent":
                self._take_unsent(connection, entry["message"]["params"])
            case "cut":
                self._note_trades(entry["message"]["params"]["data"])
            case _:
                self._note_trades([entry.get("trade") or entry.get("message")])

    def _let_go(self, keys: list[tuple[int, str]]) -> None:
        for connection, channel in keys:
            since_us = self._since.pop((connection, channel))
            if self._at_us > self.since_us:
                self.held[channel].append((max(since_us, self.since_us), self._at_us))

    def _take(self, connection: int, channel: str, data: Any) -> None:
        self._note_trades(data)
        expected = self._expected[connection, instrument_of(channel)]
        expected.take(connection, channel, data)
        self._note_rows(connection, expected)
        self.messages += self._at_us >= self.since_us
        if channel.startswith("book.") and self._at_us >= self.since_us:
            self.changes[data["instrument_name"]].append((data["change_id"], self._at_us))

    def _take_unsent(self, connection: int, params: dict[str, Any]) -> None:
        """Take what a connection that played dead did not send: owed where nobody else held its channel.

        Its time is the exchange's: nobody sent it.
        """
        channel, data = params["channel"], params["data"]
        if any(other != connection and (other, channel) in self._since for other in self._open):
            return
        if channel.startswith("ticker."):
            expected = Expected()
            expected.take(connection, channel, data)
            for row in expected.tickers:
                self.tickers.setdefault(hash(row), Ticker(row[1], row[0], row[0]))
                self.ticker_sent_us[hash(row)] = row[0]
        elif data["timestamp"] * 1000 >= self.since_us:
            self.changes[data["instrument_name"]].append((data["change_id"], data["timestamp"] * 1000))

    def _note_rows(self, connection: int, expected: Expected) -> None:
        for row in expected.quotes:
            self.quotes.add(hash(bare_quote(row)))
            self.whole_quotes.add(hash(row))
        for row in expected.tickers:
            self.tickers.setdefault(hash(row), Ticker(row[1], self._at_us, row[0]))
            self.ticker_sent_us[hash(row)] = self._at_us
            self.ticker_times[connection, hash(row)] += 1
        self.trades.update(hash(bare_trade(row)) for row in expected.trades)
        for rows in (expected.quotes, expected.tickers, expected.trades):
            rows.clear()

    def _note_trades(self, found: Any) -> None:
        for trade in found if isinstance(found, list) else ():
            if isinstance(trade, dict) and "trade_seq" in trade:
                self.made[trade["instrument_name"], trade["trade_seq"]] = trade["timestamp"] * 1000


def bare_quote(row: Row) -> Row:
    """Leave out of a row of QUOTES what tickers add: of two connections only the recorder knows which was newest."""
    return (*row[:6], *row[8:])


def bare_trade(row: Row) -> Row:
    """Leave out of a row of TRADES what a ticker, perhaps on another connection, adds, and how it was had."""
    return (*row[:8], *row[9:-1])


def instrument_of(channel: str) -> str | None:
    """Return the instrument of a book or ticker channel."""
    family, _, rest = channel.partition(".")
    return rest.rpartition(".")[0] if family in ("book", "ticker") else None


class Gaps:
    """When, by the gap rows, ticks may be missing."""

    def __init__(self, told: list[dict[str, Any]], late: list[Span]) -> None:
        """Take the newest state of each gap, and when rows were received late, by how much.

        A gap begins when the last message before it was received, on the recorder's clock; where the recorder had
        been standing still that is so much later than the exchange sent it.
        """
        self._spans: dict[tuple[str, str | None], list[Span]] = defaultdict(list)
        self._merged: dict[tuple[str, str | None], list[Span]] = {}
        for gap in told:
            end_us = int(gap["ended_at"].timestamp() * 1e6) if gap["ended_at"] else 2**62
            kind = gap["stream"].rpartition("_")[2]
            start_us = int(gap["started_at"].timestamp() * 1e6)
            since = bisect_left(late, (start_us - LAG_US, 0))
            until = bisect_left(late, (start_us + 1, 0))
            late_us = max((by_us for _, by_us in late[since:until]), default=0)
            self._spans[kind, gap["instrument"]].append((start_us - late_us, end_us))

    def cover(self, kind: str, instrument: str | None, start_us: int, end_us: int) -> bool:
        """Whether a span of the exchange's time lies inside of gap rows as a whole."""
        return any(start <= start_us + LAG_US and end_us <= end for start, end in self._of(kind, instrument))

    def touch(self, kind: str, instrument: str | None, one_us: int, other_us: int) -> bool:
        """Whether there is a gap row at some time between two."""
        first, last = sorted((one_us, other_us))
        return any(start <= last and first <= end for start, end in self._of(kind, instrument))

    def _of(self, kind: str, instrument: str | None) -> list[Span]:
        """Return the spans in which an instrument's ticks may be missing: its own and everybody's, merged."""
        merged = self._merged.setdefault((kind, instrument), [])
        if not merged:
            for start, end in sorted({*self._spans[kind, instrument], *self._spans[kind, None]}):
                if merged and start <= merged[-1][1]:
                    merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
                else:
                    merged.append((start, end))
        return merged


@dataclass
class Judgement:
    """What is wrong with a tape, each with what it is about."""

    invented: list[Row] = field(default_factory=list)  # nobody was sent this
    doubled: list[Row] = field(default_factory=list)
    untold: list[Row] = field(default_factory=list)  # not recorded, and in no gap row
    unwatched: list[Row] = field(default_factory=list)  # nobody held this channel meanwhile, and no gap row tells
    missing_trades: list[Row] = field(default_factory=list)
    owed_trades: list[Row] = field(default_factory=list)  # not there yet, and an open gap says so
    rows: Counter[str] = field(default_factory=Counter)

    @property
    def good(self) -> bool:
        """Whether nothing is wrong."""
        return not any(
            (self.invented, self.doubled, self.untold, self.unwatched, self.missing_trades, self.owed_trades)
        )

    def __str__(self) -> str:
        names = ("invented", "doubled", "untold", "unwatched", "missing_trades", "owed_trades")
        wrong = {name: (len(found), found[:3]) for name in names if (found := getattr(self, name))}
        return f"{dict(self.rows)}: {wrong or 'all accounted for'}"


def judge(account: Account, tape: Path, told: list[dict[str, Any]]) -> Judgement:
    """Judge a tape that is not being written, with the newest state of each of its gaps."""
    result, late = Judgement(), _late(tape)
    gaps = Gaps(told, late)
    _judge_quotes(account, tape, gaps, result)
    _judge_tickers(account, tape, gaps, result)
    _judge_trades(account, tape, Gaps([gap for gap in told if not gap["ended_at"]], late), result)
    _tell_owed([gap for gap in told if gap.get("status") == "open"], account, late, result)
    for channel in account.held:
        kind = {"book": "quotes", "ticker": "tickers", "trades": "trades"}.get(channel.partition(".")[0])
        if kind is not None:
            name = instrument_of(channel)
            result.unwatched += [(channel, *s) for s in account.unheld(channel) if not gaps.cover(kind, name, *s)]
    return result


def _late(tape: Path) -> list[Span]:
    """Return when a change of a book was received more than LAG_US after it was made, and by how much."""
    rows = _rows(tape, "quotes", ["timestamp", "prev_change_id"], Judgement())
    return sorted((at, at - made) for (made, prev), at in rows if prev is not None and at - made > LAG_US)


def _rows(tape: Path, kind: str, columns: list[str], result: Judgement) -> Iterator[tuple[Row, int]]:
    """Read each row and its `received_at`; a long tape does not fit into memory as tuples."""
    folder = tape / f"eth_option_{kind}"
    if folder.is_dir():
        for batch in ds.dataset(folder, format="ipc").to_batches(columns=[*columns, "received_at"]):
            result.rows[kind] += batch.num_rows
            yield from ((row[:-1], row[-1]) for row in table_rows(batch))


def _judge_quotes(account: Account, tape: Path, gaps: Gaps, result: Judgement) -> None:
    found: dict[str, list[tuple[int, int | None, int]]] = defaultdict(list)
    of_one_holder = account.of_one_holder()
    for row, received_us in _rows(tape, "quotes", QUOTES, result):
        name = row[1]
        known = (
            hash(row) in account.whole_quotes if name in of_one_holder else hash(bare_quote(row)) in account.quotes
        )
        if not known:
            result.invented.append(row)
        found[name].append((row[-2], row[-1], received_us))
    for name, rows in found.items():
        rows.sort(key=lambda row: (row[0], row[2]))
        for (a, _, a_us), (b, prev, b_us) in pairwise(rows):
            told = gaps.touch("quotes", name, a_us, b_us)
            if a == b and not (prev is None and told):  # the first snapshot after a hole may repeat the newest
                result.doubled.append((name, a, a_us, b_us))
            if (prev is None or prev > a) and not told:
                result.untold.append((name, a, prev, b, a_us, b_us))
    for name, changes in account.changes.items():
        rows = found[name]
        for change_id, sent_us in changes:
            at = bisect_left(rows, change_id, key=lambda row: row[0])
            # A row covers (prev_change_id, change_id], however other connections cut their windows.
            covered = at < len(rows) and (rows[at][0] == change_id or (rows[at][1] or change_id) < change_id)
            if not covered and not gaps.cover("quotes", name, sent_us, sent_us):
                result.untold.append((name, change_id, sent_us))


def _judge_tickers(account: Account, tape: Path, gaps: Gaps, result: Judgement) -> None:
    most, of_one_holder = _most_times(account), account.of_one_holder()
    found: dict[int, list[int]] = defaultdict(list)
    for row, received_us in _rows(tape, "tickers", TICKERS, result):
        found[hash(row)].append(received_us)
        if hash(row) not in account.tickers:
            result.invented.append(row)
    for key, received in found.items():
        if len(received) > most[key] and key in account.tickers:
            name = account.tickers[key].instrument
            if not gaps.touch("tickers", name, min(received), max(received)):
                result.doubled.append((name, *received))
    late = _overtaken(account, found)
    for key, ticker in account.tickers.items():
        if ticker.sent_us < account.since_us:
            continue
        missing = key not in found or (ticker.instrument in of_one_holder and len(found[key]) < most[key])
        told = gaps.cover("tickers", ticker.instrument, ticker.sent_us, ticker.sent_us)
        if missing and not told and ticker not in late:
            result.untold.append(ticker)


def _most_times(account: Account) -> Counter[int]:
    """Return how often each ticker was sent by the connection that sent it most often."""
    most = Counter[int]()
    for (_, key), times in account.ticker_times.items():
        most[key] = max(most[key], times)
    return most


def _overtaken(account: Account, found: Mapping[int, list[int]]) -> set[Ticker]:
    """Return those that another connection may have overtaken: an older ticker is not recorded after a younger.

    A recorder that had been standing still reads its connections one after another: the younger one that it received
    late may have overtaken whatever was sent since.
    """
    lost = [ticker for key, ticker in account.tickers.items() if key not in found]
    shared = account.shared()
    concerned = {ticker.instrument for ticker in lost} & shared
    others: dict[str, list[tuple[Ticker, int]]] = defaultdict(list)
    for key, ticker in account.tickers.items():
        if ticker.instrument in concerned:
            # Not repeated since: a connection that begins repeats the last ticker of a quiet option.
            late_us = max(0, min(found.get(key, ()), default=0) - account.ticker_sent_us[key])
            others[ticker.instrument].append((ticker, late_us))
    return {
        ticker
        for ticker in lost
        if any(
            other.exchange_us > ticker.exchange_us
            and -OVERTAKEN_US < other.sent_us - ticker.sent_us < OVERTAKEN_US + late_us
            for other, late_us in others[ticker.instrument]
        )
    }


def _judge_trades(account: Account, tape: Path, lasting: Gaps, result: Judgement) -> None:
    """Every trade must be there, however it was had, but what a stop that lasts has told of."""
    found = Counter[tuple[str, int]]()
    for row, _ in _rows(tape, "trades", TRADES, result):
        found[row[1], row[3]] += 1
        if (row[1], row[3]) not in account.made or (
            row[-1] == "live" and hash(bare_trade(row)) not in account.trades
        ):
            result.invented.append(row)
    result.doubled += [(*key, times) for key, times in found.items() if times > 1]
    missing = sorted(account.owed_trades() - found.keys())
    made = account.made
    result.missing_trades += [key for key in missing if not lasting.cover("trades", key[0], made[key], made[key])]


def _tell_owed(opened: list[dict[str, Any]], account: Account, late: list[Span], result: Judgement) -> None:
    """Tell trades that an open gap names, by number or by time, from those that nothing tells."""
    times, made = Gaps(opened, late), account.made
    numbers = defaultdict(list)
    for gap in opened:
        if gap["first_missing"] is not None:
            numbers[gap["instrument"]].append((gap["first_missing"], gap["last_missing"]))
    for key in result.missing_trades:
        by_number = any(first <= key[1] <= last for first, last in numbers[key[0]])
        if by_number or times.cover("trades", key[0], made[key], made[key]):
            result.owed_trades.append(key)
    result.missing_trades = [key for key in result.missing_trades if key not in set(result.owed_trades)]
