"""Real messages of the exchange, 2019 to 2024, and hostile ones."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from recorder.deribit import messages
from recorder.deribit.book import Applied, Book
from recorder.deribit.messages import peek_channel
from recorder.rows import quote_row, ticker_row, trade_row
from recorder.segments.schemas import SCHEMAS, rows_to_batch

DECODERS: dict[str, Callable[[bytes], messages.Notification[Any]]] = {
    "book": messages.decode_book,
    "ticker": messages.decode_ticker,
    "trades": messages.decode_trades,
    "instrument": messages.decode_state,
}


def sample_lines(samples: Path) -> list[tuple[str, bytes]]:
    return [
        (path.name, line.encode())
        for path in sorted(samples.glob("*.jsonl"))
        for line in path.read_text().splitlines()
        if line.strip()
    ]


def test_every_sample_is_understood_or_refused_with_a_reason(samples: Path) -> None:
    """All messages of the kinds that are recorded become rows; of the others the channel at least is known."""
    understood, passed_over = 0, set()
    for _, line in sample_lines(samples):
        envelope = messages.decode_envelope(line)
        if envelope.method != "subscription":
            assert envelope.id is not None
            continue
        assert envelope.params is not None
        family = envelope.params.channel.split(".")[0]
        if family not in DECODERS:
            passed_over.add(family)
            continue
        data = DECODERS[family](line).params.data
        if family == "ticker":
            assert rows_to_batch(SCHEMAS["tickers"], [ticker_row(data, 1)]).num_rows == 1
        elif family == "trades":
            assert rows_to_batch(SCHEMAS["trades"], [trade_row(t, 1, None, "live") for t in data]).num_rows == len(
                data
            )
        elif family == "book":
            book = Book()
            if book.apply(data) in (Applied.NEW, Applied.SNAPSHOT):
                row = quote_row(data.instrument_name, data.timestamp, 1, book.top, (None, None), data.change_id, None)
                assert rows_to_batch(SCHEMAS["quotes"], [row]).num_rows == 1
        understood += 1

    assert understood >= 30
    assert "quote" in passed_over


def test_the_gap_in_a_real_book_is_found(samples: Path) -> None:
    """In the testnet capture the fifth notification ends at …462 and the sixth begins at …463."""
    book, results = Book(), []
    for name, line in sample_lines(samples):
        if name.startswith("testnet") and peek_channel(line):
            results.append(book.apply(messages.decode_book(line).params.data))

    assert results == [Applied.SNAPSHOT, *[Applied.NEW] * 3, Applied.BROKEN]


def ticker(**fields: object) -> bytes:
    data = {"instrument_name": "X", "timestamp": 1, **fields}
    return json.dumps({"method": "subscription", "params": {"channel": "ticker.X.100ms", "data": data}}).encode()


@pytest.mark.parametrize("empty", [{"best_bid_price": 0.0, "best_bid_amount": 0.0, "bid_iv": 0.0}, {}, {
    "best_bid_price": None, "best_bid_amount": None, "bid_iv": None}])  # fmt: skip
def test_an_empty_side_is_null_however_it_is_said(empty: dict[str, object]) -> None:
    """Null, 0.0, or nothing: the tape has null, with its iv; the other side is kept."""
    data = messages.decode_ticker(ticker(**empty, best_ask_price=2.8e-4, best_ask_amount=1, ask_iv=0.0)).params.data
    row = dict(zip(SCHEMAS["tickers"].names, ticker_row(data, 1), strict=True))

    assert [row[name] for name in ("bid_price", "bid_size", "bid_iv")] == [None] * 3
    assert [row[name] for name in ("ask_price", "ask_size", "ask_iv")] == [0.00028, 1.0, 0.0]


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (ticker(mark_price="0.1"), "Expected `float | null`, got `str` - at `$.params.data.mark_price`"),
        (ticker(timestamp=2**63), "Expected `int` <= 253402300799999"),
        (ticker()[:-3], "truncated"),
        (b"\xff\xfe", "malformed"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_place(frame: bytes, reason: str) -> None:
    """Before it becomes a row, and saying where."""
    with pytest.raises(msgspec.DecodeError, match=re.escape(reason)):
        messages.decode_ticker(frame)


def test_unknown_fields_and_any_order_of_keys_are_accepted() -> None:
    """The exchange adds fields, and its keys have no order."""
    data = {"starbase_id": 225_000_000_000_000_000, "timestamp": 5, "instrument_name": "X"}
    text = json.dumps(
        {"params": {"data": data, "channel": "t.X"}, "method": "subscription", "jsonrpc": "2.0"}
    ).encode()

    assert messages.decode_ticker(text).params.data.timestamp == 5
    assert messages.decode_envelope(text).params == messages.Params(channel="t.X")


@pytest.mark.parametrize(
    ("frame", "channel"),
    [
        (ticker().replace(b'": "', b'":"'), "ticker.X.100ms"),
        (b'{"id":1}', None),
        (b'"channel":"abc', None),
        (b"", None),
    ],
)
def test_a_channel_is_peeked_without_decoding(frame: bytes, channel: str | None) -> None:
    """Only where it lies near the start and is whole."""
    assert peek_channel(frame) == channel
