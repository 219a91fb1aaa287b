"""Judges a tape by what the exchange says it sent. Shares no code with the product: json, plain pyarrow, SQL."""

import json
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds

Row = tuple[Any, ...]

# What is compared: every column but received_at, which only the recorder knows.
QUOTES = (
    "timestamp instrument bid_price bid_size ask_price ask_size underlying_price mark_price change_id prev_change_id"
).split()
TICKERS = (
    "timestamp instrument underlying_price underlying_index index_price mark_price mark_iv bid_iv ask_iv bid_price"
    " bid_size ask_price ask_size open_interest delta gamma vega theta rho last_price settlement_price interest_rate"
    " volume state"
).split()
TRADES = (
    "timestamp instrument trade_id trade_seq price size side iv underlying_price index_price mark_price"
    " tick_direction liquidation contracts block_trade_id block_trade_leg_count combo_id source"
).split()

_UNDERLYING, _SOURCE = TRADES.index("underlying_price"), TRADES.index("source")


@dataclass
class Expected:
    """The rows that a faultless recorder makes of what was sent, in the order sent."""

    quotes: list[Row] = field(default_factory=list)
    tickers: list[Row] = field(default_factory=list)
    trades: list[Row] = field(default_factory=list)
    _newest: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    _chain: dict[str, int] = field(default_factory=dict)
    _books: dict[tuple[int, str], tuple[dict[float, float], dict[float, float]]] = field(default_factory=dict)
    _at: dict[tuple[int, str], int] = field(default_factory=dict)
    _trades_had: set[tuple[str, int]] = field(default_factory=set)
    # Trades that came on another connection than their instrument's tickers: (instrument, trade_seq). In which order
    # two sockets are read nobody can know who only sees what was sent.
    unordered: set[tuple[str, int]] = field(default_factory=set)
    _ticker_connections: dict[str, set[int]] = field(default_factory=dict)

    def take(self, connection: int, channel: str, data: Any) -> None:
        """Take one notification."""
        match channel.partition(".")[0]:
            case "book":
                self._book(connection, data)
            case "ticker":
                self._ticker_connections.setdefault(data["instrument_name"], set()).add(connection)
                self._ticker(data)
            case "trades":
                for trade in data:
                    if self._ticker_connections.get(trade["instrument_name"], {connection}) != {connection}:
                        self.unordered.add((trade["instrument_name"], trade["trade_seq"]))
                    self._trade(trade)

    def _book(self, connection: int, data: dict[str, Any]) -> None:
        name = data["instrument_name"]
        prev = data.get("prev_change_id")
        follows = data.get("type") == "change" and prev is not None and prev == self._at.get((connection, name))
        if data.get("type") == "snapshot" or (not prev and not follows):
            self._books[connection, name] = ({}, {})
            prev = None
        self._at[connection, name] = data["change_id"]
        bids, asks = self._books[connection, name]
        for side, levels in ((bids, data["bids"]), (asks, data["asks"])):
            for action, price, amount in levels:
                if action == "delete":
                    side.pop(float(price), None)
                else:
                    side[float(price)] = float(amount)
        if data["change_id"] <= self._chain.get(name, -1):
            return
        self._chain[name] = data["change_id"]
        bid, ask = max(bids, default=None), min(asks, default=None)
        self.quotes.append(
            (
                data["timestamp"] * 1000, name, bid, bids[bid] if bid is not None else None,
                ask, asks[ask] if ask is not None else None, *self._newest.get(name, (None, None)),
                data["change_id"], prev,
            )
        )  # fmt: skip

    def _ticker(self, data: dict[str, Any]) -> None:
        name = data["instrument_name"]
        self._newest[name] = (_float(data.get("underlying_price")), _float(data.get("mark_price")))
        sides = {}
        for side in ("bid", "ask"):
            there = bool(data.get(f"best_{side}_price")) or bool(data.get(f"best_{side}_amount"))
            sides[side] = [
                _float(data.get(key)) if there else None
                for key in (f"{side}_iv", f"best_{side}_price", f"best_{side}_amount")
            ]
        greeks = data.get("greeks") or {}
        self.tickers.append(
            (
                data["timestamp"] * 1000, name, _float(data.get("underlying_price")), data.get("underlying_index"),
                _float(data.get("index_price")), _float(data.get("mark_price")), _float(data.get("mark_iv")),
                sides["bid"][0], sides["ask"][0], *sides["bid"][1:], *sides["ask"][1:],
                _float(data.get("open_interest")),
                *(_float(greeks.get(g)) for g in ("delta", "gamma", "vega", "theta", "rho")),
                _float(data.get("last_price")), _float(data.get("settlement_price")),
                _float(data.get("interest_rate")), _float((data.get("stats") or {}).get("volume")), data.get("state"),
            )
        )  # fmt: skip

    def _trade(self, data: dict[str, Any]) -> None:
        key = (data["instrument_name"], data["trade_seq"])
        if key in self._trades_had:
            return
        self._trades_had.add(key)
        self.trades.append(
            (
                data["timestamp"] * 1000, data["instrument_name"], data["trade_id"], data["trade_seq"],
                float(data["price"]), float(data["amount"]), data["direction"], _float(data.get("iv")),
                self._newest.get(data["instrument_name"], (None, None))[0], _float(data.get("index_price")),
                _float(data.get("mark_price")), data.get("tick_direction"), data.get("liquidation"),
                _float(data.get("contracts")), data.get("block_trade_id"), data.get("block_trade_leg_count"),
                data.get("combo_id"), "live",
            )
        )  # fmt: skip


def _float(value: Any) -> float | None:
    return None if value is None else float(value)


def sent(journal: Path) -> Iterator[tuple[int, str, Any]]:
    """Read the simulator's journal: (connection, channel, data) of each message sent."""
    with journal.open() as lines:
        for line in lines:
            entry = json.loads(line)
            if "event" not in entry:  # an event tells of what was not sent, or not as a message
                params = entry["message"]["params"]
                yield entry["connection"], params["channel"], params["data"]


def expected(messages: Iterable[tuple[int, str, Any]]) -> Expected:
    """Turn messages into the rows they should have become."""
    result = Expected()
    for connection, channel, data in messages:
        result.take(connection, channel, data)
    return result


def tape_rows(data_dir: Path, stream: str, columns: list[str]) -> list[Row]:
    """Read a stream's sealed segments with plain pyarrow; times as integer microseconds."""
    folder = data_dir / stream
    if not folder.is_dir():
        return []
    return table_rows(ds.dataset(folder, format="ipc").to_table(columns=columns))


def table_rows(table: pa.Table) -> list[Row]:
    """Turn a table into comparable tuples."""
    columns = [
        (column.cast(pa.int64()) if pa.types.is_timestamp(column.type) else column).to_pylist()
        for column in table.columns
    ]
    return list(zip(*columns, strict=True))


@dataclass(frozen=True)
class Verdict:
    """How two collections of rows differ."""

    equal: int
    lost: list[Row]
    invented: list[Row]

    @property
    def same(self) -> bool:
        return not self.lost and not self.invented

    def __str__(self) -> str:
        return (
            f"{self.equal} equal, {len(self.lost)} lost, {len(self.invented)} invented or doubled"
            + "".join(f"\n  lost {row}" for row in self.lost[:3])
            + "".join(f"\n  invented {row}" for row in self.invented[:3])
        )


def compare(wanted: Iterable[Row], found: Iterable[Row]) -> Verdict:
    """Compare as multisets: a row that is there twice is one too many."""
    want, have = Counter(wanted), Counter(found)
    return Verdict((want & have).total(), list((want - have).elements()), list((have - want).elements()))


def judge(want: Expected, data_dir: Path, prefix: str = "eth_option") -> dict[str, Verdict]:
    """Compare a tape that is not being written with what was sent."""
    return {
        "quotes": compare(want.quotes, tape_rows(data_dir, f"{prefix}_quotes", QUOTES)),
        "tickers": compare(want.tickers, tape_rows(data_dir, f"{prefix}_tickers", TICKERS)),
        "trades": compare(want.trades, _with_sent_prices(want, data_dir, prefix)),
    }


def _with_sent_prices(want: Expected, data_dir: Path, prefix: str) -> list[Row]:
    """Read the tape's trades; where the order over sockets decided on `underlying_price`, it is as it was sent.

    Only one value is right even there: that of the newest ticker that the recorder had received, which the tape tells
    by `received_at` (of two within a microsecond, either). Another one becomes what can equal nothing.
    """
    ticker_columns = ["instrument", "received_at", "underlying_price"]
    tickers: dict[str, list[tuple[int, float | None]]] = {}
    for name, received_us, price in tape_rows(data_dir, f"{prefix}_tickers", ticker_columns):
        tickers.setdefault(name, []).append((received_us, price))
    for some in tickers.values():
        some.sort(key=lambda ticker: ticker[0])
    sent_prices = {(row[1], row[3]): row[_UNDERLYING] for row in want.trades}
    rows = []
    for *row, received_us in tape_rows(data_dir, f"{prefix}_trades", [*TRADES, "received_at"]):
        key = (row[1], row[3])
        some = tickers.get(row[1], [])
        after = bisect_right(some, received_us, key=lambda ticker: ticker[0])
        same = bisect_left(some, received_us, key=lambda ticker: ticker[0])
        possible = {price for _, price in some[max(0, same - 1) : after]} if after else {None}
        if same == 0:
            possible.add(None)
        if key in want.unordered and row[_SOURCE] == "live":
            told = row[_UNDERLYING]
            row[_UNDERLYING] = sent_prices[key] if told in possible else f"{told}, not of {possible}"
        rows.append(tuple(row))
    return rows


@dataclass
class TradesMade:
    """Every trade that there was, sent or not, and every number that there never was: (instrument, trade_seq)."""

    made: dict[tuple[str, int], int] = field(default_factory=dict)  # and its time, microseconds since 1970
    void: set[tuple[str, int]] = field(default_factory=set)
    forgotten: set[str] = field(default_factory=set)  # instruments of which neither host has any trade
    over: set[str] = field(default_factory=set)  # instruments of which the main host has none
    values: dict[tuple[str, int], Row] = field(default_factory=dict)  # all that does not depend on who received it
    # From the first grant of a trades channel until the last was given up: microseconds since 1970.
    listened_us: tuple[int, int] = (0, 0)

    def fates(self, key: tuple[str, int], told_us: int, main_keeps_us: int) -> set[str]:
        """Return what a number that is not on the tape could rightly be called at a time.

        Void needs a later trade on both hosts: where the main host has none, it can only be said to be lost.
        """
        if key not in self.void:
            return {"lost"} if key[0] in self.forgotten else set()
        shown_us = [made_us for (name, seq), made_us in self.made.items() if name == key[0] and seq > key[1]]
        # Asked some time before it was told: only what the main host had from then on it certainly showed.
        quiet = not any(told_us - main_keeps_us // 2 < made_us < told_us - _LAG_US for made_us in shown_us)
        return {"void", "lost"} if quiet or key[0] in self.over else {"void"}


# The market's clock lags a busy machine's by up to two seconds; so much nearer to an end no trade is judged.
_LAG_US = 3_000_000
_OWN = [name for name in TRADES if name not in ("underlying_price", "source")]


def trades_made(journal: Path) -> TradesMade:
    """Read all trades from the simulator's journal: sent, withheld, or made while nobody listened."""
    truth = TradesMade()
    begun_us = ended_us = 0
    with journal.open() as lines:
        for line in lines:
            entry = json.loads(line)
            event, kind = entry.get("event"), entry.get("kind")
            if kind == "trade_void":
                truth.void.add((entry["instrument"], entry["trade_seq"]))
            elif kind == "trade_forgotten":
                truth.forgotten.add(entry["instrument"])
            elif event == "delivered":
                truth.over.update(entry["instruments"])
            elif event in ("subscribed", "unsubscribed") and any(c.startswith("trades.") for c in entry["channels"]):
                begun_us = begun_us or entry["sent_us"]
                ended_us = entry["sent_us"]
            else:
                for trade in _trades_in(entry):
                    key = trade["instrument_name"], trade["trade_seq"]
                    truth.made[key] = trade["timestamp"] * 1000
                    truth.values[key] = _own_values(trade)
    truth.listened_us = (begun_us, ended_us)
    return truth


def _trades_in(entry: dict[str, Any]) -> list[dict[str, Any]]:
    found = entry.get("trade") or entry.get("message")
    params = found.get("params", {}) if isinstance(found, dict) else {}
    some = params["data"] if params.get("channel", "").startswith("trades.") else found
    return [
        trade
        for trade in (some if isinstance(some, list) else [some])
        if isinstance(trade, dict) and "trade_seq" in trade
    ]


def _own_values(data: dict[str, Any]) -> Row:
    alone = Expected()
    alone.take(0, "trades.", [data])
    return tuple(value for name, value in zip(TRADES, alone.trades[0], strict=True) if name in _OWN)


def judge_trades(
    truth: TradesMade, data_dir: Path, *, main_keeps_s: float = 1e9, prefix: str = "eth_option"
) -> list[str]:
    """Say everything about a tape's trades that is not as it should be, however they came there.

    Each trade that was made while somebody listened is there once, with its values, but for those that nobody could
    ever fetch. Each number that is not there has one fate, its true one. A gap's fates are all of its numbers. What
    is open is only what a clean stop opened.
    """
    found = Counter(tape_rows(data_dir, f"{prefix}_trades", ["instrument", "trade_seq"]))
    own = {(row[1], row[3]): row for row in tape_rows(data_dir, f"{prefix}_trades", _OWN)}
    begun_us, ended_us = truth.listened_us
    wrong = [f"{key} is on the tape {times} times" for key, times in found.items() if times > 1]
    wrong += [f"{key} was never made" for key in found.keys() - truth.made.keys()]
    wrong += [f"{key} has other values" for key, row in own.items() if truth.values.get(key) not in (None, row)]
    wrong += [
        f"{key} is missing"
        for key, made_us in truth.made.items()
        if begun_us + _LAG_US < made_us < ended_us - _LAG_US and key not in found and key[0] not in truth.forgotten
    ]
    states = gap_states(data_dir, f"{prefix}_trades")
    return wrong + _wrong_fates(truth, found.keys(), states, int(main_keeps_s * 1e6)) + _untold(found.keys(), states)


def _wrong_fates(
    truth: TradesMade, found: AbstractSet[Row], gaps: dict[str, list[Row]], main_keeps_us: int
) -> list[str]:
    wrong: list[str] = []
    for gap_id, states in gaps.items():
        (_, name, cause, status, first, last, _), *rest = states
        if [state[0] for state in states] != list(range(len(states))) or status != "open":
            wrong.append(f"gap {gap_id} has the states {states}")
        if name is None:
            if states[-1][3] == "open" and cause != "stopped":
                wrong.append(f"gap {gap_id} of {cause} is open")
            continue
        fates = [state for state in rest if state[3] != "open"]
        numbers = [number for *_, low, high, _ in fates for number in range(low, high + 1)]
        if numbers != list(range(first, last + 1)):
            wrong.append(f"gap {gap_id} of {name} {first} to {last} has the fates {fates}")
        for *_, fate, low, high, told_us in fates:
            for key in ((name, number) for number in range(low, high + 1)):
                right = {"healed"} if key in found else truth.fates(key, told_us, main_keeps_us)
                if fate not in right:
                    wrong.append(f"{key} is called {fate}, not {' or '.join(right)}")
    return wrong


def _untold(found: AbstractSet[Row], gaps: dict[str, list[Row]]) -> list[str]:
    """Return the holes in numbers that no fate tells, and what is told twice."""
    told = Counter(
        (name, number)
        for states in gaps.values()
        for _, name, _, status, low, high, _ in states
        if name is not None and status != "open"
        for number in range(low, high + 1)
    )
    had: dict[str, list[int]] = {}
    for name, number in found:
        had.setdefault(name, []).append(number)
    holes = {(name, n) for name, numbers in had.items() for n in range(min(numbers), max(numbers))} - found
    wrong = [f"{key} is a hole that nothing tells" for key in holes - told.keys()]
    return wrong + [f"{key} was told {times} times" for key, times in told.items() if times > 1]


def gap_states(data_dir: Path, stream: str) -> dict[str, list[Row]]:
    """The states of each gap in order: (state_no, instrument, cause, status, first_missing, last_missing, time)."""
    columns = "gap_id state_no instrument cause status first_missing last_missing timestamp stream".split()
    states: dict[str, list[Row]] = {}
    for gap_id, *state, of_stream in tape_rows(data_dir, "data_gaps", columns):
        if of_stream == stream:
            states.setdefault(gap_id, []).append(tuple(state))
    return {gap_id: sorted(some, key=lambda state: state[0]) for gap_id, some in states.items()}


def journal_events(journal: Path, name: str) -> list[dict[str, Any]]:
    """The journal's entries of one event."""
    with journal.open() as lines:
        return [entry for entry in map(json.loads, lines) if entry.get("event") == name]
