"""Judges a tape by what the exchange says it sent. Shares no code with the product: json, plain pyarrow, SQL."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
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

    def take(self, connection: int, channel: str, data: Any) -> None:
        """Take one notification."""
        match channel.partition(".")[0]:
            case "book":
                self._book(connection, data)
            case "ticker":
                self._ticker(data)
            case "trades":
                for trade in data:
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
        "trades": compare(want.trades, tape_rows(data_dir, f"{prefix}_trades", TRADES)),
    }


@dataclass(frozen=True)
class TradesMade:
    """Every trade that there was, sent or not, and every number that there never was: (instrument, trade_seq)."""

    made: dict[tuple[str, int], int]  # and its time, microseconds since 1970
    void: set[tuple[str, int]]


def trades_made(journal: Path) -> TradesMade:
    """Read all trades from the simulator's journal: sent, withheld, or made while nobody listened."""
    made: dict[tuple[str, int], int] = {}
    void: set[tuple[str, int]] = set()
    with journal.open() as lines:
        for line in lines:
            entry = json.loads(line)
            if entry.get("kind") == "trade_void":
                void.add((entry["instrument"], entry["trade_seq"]))
                continue
            found = entry.get("trade") or entry.get("message")
            params = found.get("params", {}) if isinstance(found, dict) else {}
            some = params["data"] if params.get("channel", "").startswith("trades.") else found
            for trade in some if isinstance(some, list) else [some]:
                if isinstance(trade, dict) and "trade_seq" in trade:
                    made[trade["instrument_name"], trade["trade_seq"]] = trade["timestamp"] * 1000
    return TradesMade(made, void)


def journal_events(journal: Path, name: str) -> list[dict[str, Any]]:
    """The journal's entries of one event."""
    with journal.open() as lines:
        return [entry for entry in map(json.loads, lines) if entry.get("event") == name]
