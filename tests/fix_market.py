"""A tape of a small chain of options over several days: bids below asks, ivs on a smile, and the numbers whole."""

import random
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from recorder.segments.layout import US_PER_DAY, US_PER_SEC
from recorder.segments.schemas import SCHEMAS
from tests.fix_postgres import record

NOON_US = 1_780_056_000_000_000  # 2026-05-29 12:00:00 UTC
UNDERLYING = 2_700.0
FORGOTTEN = "ETH-29MAY26-2600-C"  # trades, but nothing tells what it is
Row = tuple[Any, ...]


class Option(NamedTuple):
    """One option of the chain."""

    name: str
    option_type: str
    strike: float
    expires_us: int

    def price(self, underlying: float) -> float:
        inside = underlying - self.strike if self.option_type == "call" else self.strike - underlying
        return max(inside, 0.0) / underlying + 0.02


def _expiry_us(day: int) -> int:
    return int(datetime(2026, 6, day, 8, tzinfo=UTC).timestamp()) * US_PER_SEC


CHAIN = [
    Option(f"ETH-{day}JUN26-{strike}-{letter}", option_type, float(strike), _expiry_us(day))
    for day in (5, 26)
    for strike in (2500, 2700, 2900)
    for letter, option_type in (("C", "call"), ("P", "put"))
]


def record_market(root: Path, *, days: int = 3, seed: int = 7) -> list[Path]:
    """Write a tape: of each day and stream two segments, ten minutes apart; return the files."""
    market = _Market(random.Random(seed))
    made = record(root, [{"eth_option_instruments": list(market.instruments())}])
    for day in range(days):
        for half in range(2):
            made += record(root, [market.minutes(day, half)])
    return made


def _row(kind: str, at_us: int, instrument: str | None, late_us: int, **values: Any) -> Row:
    row = {"timestamp": at_us, "instrument": instrument, "received_at": at_us + late_us, **values}
    assert set(row) <= set(SCHEMAS[kind].names)
    return tuple(row.get(name) for name in SCHEMAS[kind].names)


class _Market:
    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._change_id = 1_000
        self._newest: dict[str, int] = {}  # change_id by instrument
        self._traded: Counter[str] = Counter()

    def instruments(self) -> Iterator[Row]:
        for turn in range(2):  # told again a day later: the newest counts
            for number, option in enumerate(CHAIN):
                yield _row(
                    "instruments", NOON_US - US_PER_SEC + turn * US_PER_DAY, option.name, 20_000,
                    option_type=option.option_type, strike=option.strike, expiration_timestamp=option.expires_us,
                    creation_timestamp=NOON_US - 30 * US_PER_DAY, tick_size=0.0001, contract_size=1.0,
                    min_trade_amount=1.0 + turn, quote_currency="ETH", settlement_currency="ETH",
                    settlement_period="week", price_index="eth_usd", instrument_id=400_000 + number, state="open",
                    recorded=True,
                )  # fmt: skip

    def minutes(self, day: int, half: int) -> dict[str, list[Row]]:
        start_us = NOON_US + day * US_PER_DAY + half * 600 * US_PER_SEC
        found = {
            "data_gaps": list(self._gaps(start_us, 2 * day + half)),
            "eth_option_trades": list(self._trades(start_us)),
            "eth_option_tickers": list(self._tickers(start_us)),
            "eth_option_quotes": list(self._quotes(start_us, "ETH")),
        }
        if day == 1:
            found["btc_option_quotes"] = list(self._quotes(start_us, "BTC"))
        return found

    def _quotes(self, start_us: int, currency: str) -> Iterator[Row]:
        rng = self._rng
        underlying = UNDERLYING
        for turn in range(400):
            underlying += rng.uniform(-2, 2)
            option = rng.choice(CHAIN)
            name = currency + option.name[3:]
            mark, width = option.price(underlying), rng.choice((0.0005, 0.001, 0.0025)) * (1 + len(name) % 3)
            no_bid, no_ask, no_ticker = rng.random() < 0.08, rng.random() < 0.05, turn < 20
            self._change_id += rng.randrange(1, 50)
            yield _row(
                "quotes", start_us + turn * 250_000 + rng.randrange(1_000), name, rng.randrange(2_000, 180_000),
                bid_price=None if no_bid else round(mark - width, 4),
                bid_size=None if no_bid else float(rng.randrange(1, 90)),
                ask_price=None if no_ask else round(mark + width * rng.uniform(0.5, 1.5), 4),
                ask_size=None if no_ask else float(rng.randrange(1, 90)),
                underlying_price=None if no_ticker else underlying, mark_price=None if no_ticker else mark,
                change_id=self._change_id, prev_change_id=self._newest.get(name),
            )  # fmt: skip
            self._newest[name] = self._change_id

    def _tickers(self, start_us: int) -> Iterator[Row]:
        rng = self._rng
        for turn in range(120):
            option = CHAIN[turn % len(CHAIN)]
            underlying = UNDERLYING + rng.uniform(-40, 40)
            iv = 55 + 1e-4 * (option.strike - underlying) ** 2 + rng.uniform(0, 1)
            no_bid = rng.random() < 0.1
            yield _row(
                "tickers", start_us + turn * 800_000 + rng.randrange(1_000), option.name,
                rng.randrange(2_000, 90_000),
                underlying_price=underlying, underlying_index="SYN.ETH", index_price=underlying - 1,
                mark_price=option.price(underlying), mark_iv=iv, bid_iv=None if no_bid else iv - 1.5, ask_iv=iv + 1.5,
                bid_price=None if no_bid else option.price(underlying) - 0.001,
                ask_price=option.price(underlying) + 0.001, open_interest=float(rng.randrange(5_000)),
                delta=rng.uniform(-1, 1), gamma=rng.uniform(0, 0.01), vega=rng.uniform(0, 9),
                theta=-rng.uniform(0, 9), rho=rng.uniform(-1, 1), settlement_price=0.05, interest_rate=0.0,
                volume=float(rng.randrange(900)), state="open",
            )  # fmt: skip

    def _trades(self, start_us: int) -> Iterator[Row]:
        rng = self._rng
        for turn in range(60):
            option = rng.choice(CHAIN)
            name = FORGOTTEN if turn % 20 == 7 else option.name
            self._traded[name] += 1
            healed, size = turn % 15 == 1, float(rng.randrange(1, 200))
            yield _row(
                "trades", start_us + turn * 1_700_000 + rng.randrange(1_000), name,
                60 * US_PER_SEC if healed else rng.randrange(2_000, 90_000),
                trade_id=f"ETH-{start_us // US_PER_SEC + turn}", trade_seq=self._traded[name],
                price=option.price(UNDERLYING), size=size, side=rng.choice(("buy", "sell")),
                iv=60 + rng.uniform(-4, 4), underlying_price=None if turn % 9 == 0 else UNDERLYING,
                index_price=UNDERLYING, mark_price=option.price(UNDERLYING), tick_direction=rng.randrange(4),
                contracts=size, block_trade_leg_count=2 if turn % 30 == 0 else None,
                source="backfill" if healed else "live",
            )  # fmt: skip

    def _gaps(self, start_us: int, number: int) -> Iterator[Row]:
        told_us, ended_us = start_us + 2 * US_PER_SEC, start_us + 4 * US_PER_SEC
        option = CHAIN[number % len(CHAIN)].name
        trades: dict[str, Any] = {"cause": "sequence_break", "stream": "eth_option_trades", "instrument": option}
        quotes: dict[str, Any] = {"cause": "disconnect", "stream": "eth_option_quotes", "instrument": None}
        silent: dict[str, Any] = {"cause": "silence", "stream": "eth_option_tickers", "instrument": option}
        for gap, state_no, status, at_us, about in (
            ("a", 1, "open", told_us, quotes),
            ("b", 1, "open", told_us, trades),
            ("a", 2, "lost", ended_us, {**quotes, "ended_at": ended_us}),
            ("b", 2, "healed", ended_us, {**trades, "ended_at": ended_us, "first_missing": 5, "last_missing": 9}),
            ("c", 1, "open", ended_us, silent),
        ):
            yield _row(
                "gaps", at_us, about["instrument"], 0, gap_id=f"{number}-{gap}", state_no=state_no, status=status,
                started_at=start_us + US_PER_SEC, detail="told by a test" if gap == "a" else None,
                **{name: value for name, value in about.items() if name != "instrument"},
            )  # fmt: skip
