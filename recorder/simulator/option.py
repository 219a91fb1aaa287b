"""One listed option and everything about it that moves."""

from dataclasses import dataclass

from recorder.simulator.book import Book
from recorder.simulator.chain import Contract
from recorder.simulator.pricing import Mark


@dataclass(eq=False, slots=True)
class Option:
    """One listed option and everything about it that moves."""

    contract: Contract
    book: Book
    mark: Mark
    index: float
    weight: float
    open_interest: float
    trade_seq: int
    settlement_price: float | None
    timestamp_ms: int
    state: str = "open"
    last_price: float | None = None
    high: float | None = None
    low: float | None = None
    first_price: float | None = None
    volume: float = 0.0
    volume_usd: float = 0.0
    version: int = 1  # of all that a ticker shows
    book_us: int = 0  # when the last book message, and ticker, can have been sent
    ticker_us: int = 0
