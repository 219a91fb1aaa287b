"""Whatever comes from outside, nothing breaks: wire messages changed anyhow, `.env` files, manifests."""

import asyncio
import copy
import json
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from loader.settings import LoaderSettings
from recorder.deribit import channels
from recorder.deribit.channels import Assignment
from recorder.deribit.connection import Connection
from recorder.deribit.pacer import Pacer
from recorder.deribit.session import Session
from recorder.intake import Intake
from recorder.rejects import Rejects
from recorder.runtime.errors import SettingsError
from recorder.runtime.logging import get_logger
from recorder.runtime.settings import load
from recorder.segments.encode import Identity, encode_segment
from recorder.segments.manifest import ArchivedSegment, BadManifest, Manifest, decode, encode
from recorder.segments.schemas import SCHEMAS, stream_kind
from recorder.settings import RecorderSettings
from recorder.trades_had import TradesHad

NAME = "ETH-27NOV26-3000-C"
NOW_US = 1_780_000_000_000_000
US_PER_SEC = 1_000_000
MANY = settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)

BOOK, TICKER = channels.book(NAME), channels.ticker(NAME)
TRADES, STATE, CREATED = (
    make("option", "ETH") for make in (channels.trades, channels.instrument_state, channels.instrument_creation)
)
WIDE = (TRADES, STATE, CREATED, "platform_state")
DATA: dict[str, Any] = {
    BOOK: {
        "type": "snapshot", "timestamp": 1_780_000_000_000, "instrument_name": NAME, "change_id": 10,
        "bids": [["new", 0.1, 5.0]], "asks": [["new", 0.2, 5.0]],
    },
    TICKER: {
        "timestamp": 1_780_000_000_001, "instrument_name": NAME, "state": "open", "mark_price": 0.1, "mark_iv": 60.5,
        "bid_iv": 59.0, "ask_iv": 61.0, "open_interest": 10.0, "underlying_price": 3000.0, "index_price": 3001.0,
        "underlying_index": "ETH-27NOV26", "best_bid_price": 0.1, "best_bid_amount": 5.0, "last_price": None,
        "greeks": {"delta": 0.5, "gamma": 0.1, "vega": 1.0, "theta": -1.0, "rho": 0.1}, "stats": {"volume": 3.0},
    },
    TRADES: [{
        "trade_seq": 1, "trade_id": "ETH-1", "timestamp": 1_780_000_000_002, "instrument_name": NAME,
        "direction": "buy", "price": 0.1, "amount": 1.0, "tick_direction": 0, "iv": 60.0, "contracts": 1.0,
    }],
    STATE: {"instrument_name": NAME, "state": "closed", "timestamp": 1_780_000_000_003},
    CREATED: {
        "instrument_name": NAME, "kind": "option", "state": "open", "strike": 3000.0, "option_type": "call",
        "expiration_timestamp": 1_795_000_000_000, "creation_timestamp": 1_770_000_000_000, "instrument_id": 7,
        "timestamp": 1_780_000_000_004,
    },
    "platform_state": {"maintenance": True},
}  # fmt: skip

# What a parser of JSON stumbles over; numbers at the edges of what a column holds.
VALUES = st.one_of(
    st.none(), st.booleans(), st.text(max_size=20), st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([
        0, -1, 2**31, 2**53 + 1, 2**63 - 1, 2**63, -(2**63) - 1, 10**30, 1e308, 1e-320, "", "\x00", "\ud800", NAME,
        [], {}, [[]], [["new", 0.1]], [["change", -1.0, 1.0]], [["delete", 0.1, 0.0]], [["new", 1e308, 1e308]] * 3,
    ]),
)  # fmt: skip


def paths(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a JSON value."""
    yield at
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        yield from paths(one, (*at, key))


@st.composite
def frames(draw: st.DrawFn) -> bytes:
    """Draw a message that is nearly right: a value replaced, a key removed or added, bytes changed."""
    channel = draw(st.sampled_from(sorted(DATA)))
    message: Any = {"jsonrpc": "2.0", "method": "subscription", "params": {"channel": channel, "data": DATA[channel]}}
    message = copy.deepcopy(message)
    for _ in range(draw(st.integers(0, 3))):
        *way, last = draw(st.sampled_from([path for path in paths(message) if path]))
        place = message
        for key in way:
            place = place[key]
        if isinstance(place, dict) and draw(st.booleans()):
            del place[last]
        else:
            place[last] = copy.deepcopy(draw(VALUES))  # a later change may be inside of it
    data = bytearray(json.dumps(message, separators=(",", ":")).encode("utf-8", "surrogatepass"))
    for at, value in draw(st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=2)):
        data[at % len(data)] = value
    return bytes(data)


class Wire:
    """A socket that brings what a test gives it, and then closes."""

    arrived_s = 0.0

    def __init__(self, brought: list[bytes]) -> None:
        self._brought = iter(brought)

    async def recv(self, **_options: Any) -> bytes:
        try:
            return next(self._brought)
        except StopIteration:
            raise ConnectionError("closed") from None


def receive(brought: list[bytes], folder: Path) -> Intake:
    """Bring frames to a recorder's intake the way a socket does."""
    intake = Intake(
        currency="ETH", kind="option", buffer_size_quotes=1000, buffer_size_trades=1000, buffer_size_tickers=1000,
        had=TradesHad(), open_gaps=[], rejects=Rejects(folder), now_us=lambda: NOW_US, on_instrument=lambda _: None,
        on_list_missed=lambda: None, log=get_logger("test"),
    )  # fmt: skip

    async def read() -> None:
        connection = Connection(
            0, "ws://127.0.0.1:9/", feed=intake, pacer=Pacer(), changed=lambda: None, now_us=lambda: NOW_US,
            log=get_logger("test"),
        )  # fmt: skip
        assignment = Assignment(frozenset({NAME}), frozenset(WIDE))
        connection.assign(assignment)
        connection._follow(assignment)  # noqa: SLF001 - as granted
        take, refuse = connection._on_notification, connection._on_garbage  # noqa: SLF001
        session = Session(Wire(brought), take, refuse, Pacer())  # type: ignore[arg-type]
        with pytest.raises(ConnectionError):
            await session.read()

    asyncio.run(read())
    return intake


@MANY
@given(brought=st.lists(frames(), min_size=1, max_size=5))
def test_a_message_that_is_nearly_right_is_recorded_or_kept_aside(brought: list[bytes]) -> None:
    """Nothing is raised in the read loop, and every row that comes of it fits into a segment."""
    with tempfile.TemporaryDirectory() as folder:
        intake = receive(brought, Path(folder))
        intake.rejects.write(intake.rejects.take())
        for buffer in intake.buffers:
            schema = SCHEMAS[stream_kind(buffer.stream) or ""]
            encode_segment(schema, IDENTITY, buffer.take())


IDENTITY = Identity(
    segment_id="7d3a3c9e-1111-4222-8333-444455556666", previous="", stream="eth_option_quotes", recorder="r",
    started_at="2026-11-01T00:00:00Z", software="x",
)  # fmt: skip


@pytest.mark.parametrize("at", [b"subscription", b"snapshot", b"jsonrpc"])
def test_a_frame_whose_text_is_no_utf_8_is_kept_aside(tmp_path: Path, at: bytes) -> None:
    """One byte must not end the recorder: frames are handed on as bytes, and nobody has looked at their text."""
    message = {"jsonrpc": "2.0", "method": "subscription", "params": {"channel": BOOK, "data": DATA[BOOK]}}
    right = json.dumps(message).encode()
    intake = receive([right.replace(at, b"\x80" + at[1:])], tmp_path)
    intake.rejects.write(intake.rejects.take())

    assert intake.rejects.count == (at != b"jsonrpc")


def test_what_is_right_is_recorded(tmp_path: Path) -> None:
    """The messages that the others are made of."""
    brought = [
        json.dumps({"method": "subscription", "params": {"channel": channel, "data": data}}).encode()
        for channel, data in DATA.items()
    ]
    intake = receive(brought, tmp_path)

    assert intake.rejects.count == 0
    rows = {buffer.stream: sum(batch.num_rows for batch in buffer.take()) for buffer in intake.buffers}
    assert rows["eth_option_quotes"] == rows["eth_option_tickers"] == rows["eth_option_trades"] == 1


@MANY
@given(text=st.one_of(st.binary(max_size=300), st.from_regex(rb"(?s)([A-Z_]{1,20}=.{0,20}\n){0,5}", fullmatch=True)))
@example(text=b"DATA_DIR='x\nCURRENCY=\"")
@example(text=b"\xff\xfe")
@example(text=b"METRICS_PORT=99999\nLOADER_CONNECTIONS=1e3\nRETENTION_DAYS=nan")
def test_any_env_file_is_read_or_refused(text: bytes) -> None:
    """With lines that say why."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / ".env"
        file.write_bytes(text)
        for kind in (RecorderSettings, LoaderSettings):
            problems = ["none"]
            try:
                load(kind, {}, {}, env_file=file)
            except SettingsError as exc:
                problems = exc.problems
            assert problems


RIGHT_LINES = [
    b"", b"  ", b"# DATA_DIR /x", b"CURRENCY=BTC", b"export KIND=option", b"LOG_LEVEL='INFO' # least", b"REDUNDANCY=",
    b'DATA_DIR="/tmp/a b"', b"'LOG_FORMAT' = json", b"RECORDER_NAME=a_b",
]  # fmt: skip
WRONG_LINES = [
    b'DATA_DIR="/tmp/x', b"DATA_DIR='/tmp/x", b"DATA_DIR /tmp/x", b"DATA_DIR", b"export DATA_DIR", b"=/tmp/x",
    b'DATA_DIR="/tmp/"x', b"p:4@host/x?user=me", b"DATA_DIR: /tmp/x",
]  # fmt: skip


@MANY
@given(
    lines=st.lists(st.sampled_from(RIGHT_LINES + WRONG_LINES), max_size=6),
    end=st.sampled_from([b"\n", b"\r\n", b"\r"]),
)
@example(lines=[b'DATA_DIR="/tmp/x', b"CURRENCY=BTC", b'LOG_LEVEL="INFO"'], end=b"\n")
@example(lines=[b'DATA_DIR="/tmp/x', b"CURRENCY=BTC", b'RECORDER_NAME=a"'], end=b"\n")
@example(lines=[b"", b"", b"CURRENCY=BTC", b"DATA_DIR /tmp/x"], end=b"\n")
def test_an_env_file_is_taken_whole_or_refused(lines: list[bytes], end: bytes) -> None:
    """A line that is no setting is told by the number of the first of them, never passed over nor shown."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / ".env"
        file.write_bytes(end.join(lines))
        problems = []
        try:
            load(RecorderSettings, {}, {}, env_file=file)
        except SettingsError as exc:
            problems = exc.problems

    wrong = [number for number, line in enumerate(lines, 1) if line in WRONG_LINES or line.count(b'"') == 1]
    assert bool(problems) == bool(wrong)
    assert not wrong or problems[0].startswith(f"{file}: line {wrong[0]}: expected NAME=value")
    assert "tmp/" not in "".join(problems).replace(str(file), "")


def manifest() -> bytes:
    at = datetime(2026, 11, 1, tzinfo=UTC)
    segment = ArchivedSegment(
        segment_id="7d3a3c9e-1111-4222-8333-444455556666", previous="", recorder="r", name="x.arrow", rows=5,
        first_received_at=at, last_received_at=at, first_timestamp=at, last_timestamp=at, crc32="00000000",
        size_bytes=10, mtime=at, salvages="", started_at="2026-11-01T00:00:00Z", software="x",
    )  # fmt: skip
    return encode(
        Manifest(
            stream="eth_option_quotes", date="2026-11-01", part="20261101T000000000000Z-0123456789ab.parquet",
            bytes=10, sha256="0" * 64, rows=5, compression="zstd", software="x", made_at=at, segments=(segment,),
        )
    )  # fmt: skip


@MANY
@given(data=st.data())
def test_a_manifest_that_was_changed_is_refused(data: st.DataObject) -> None:
    """Any byte of it, any end of it; arbitrary bytes too."""
    right = manifest().rstrip()
    assert decode(right).rows == 5
    changed = bytearray(right)
    at = data.draw(st.integers(0, len(changed) - 1))
    changed[at] ^= data.draw(st.integers(1, 255))
    for wrong in (bytes(changed), right[:at], data.draw(st.binary(max_size=200))):
        with pytest.raises(BadManifest):
            decode(wrong)
