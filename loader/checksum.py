"""A checksum of rows that PostgreSQL and numpy compute alike, whatever order the rows are in.

Of each row PostgreSQL's hash of a record (`hash_record_extended`, 64 bits) is taken over all columns but the key's,
seeded with the hash of the key's, and these are added modulo 2^64. The seed ties the values to their row: a plain sum
of row hashes is linear in the columns, and two values that changed places would leave it as it is.

Sources, in PostgreSQL's own tree: `hash_record_extended` in src/backend/utils/adt/rowtypes.c;
`hash_bytes_extended` and `hash_bytes_uint32_extended` in src/common/hashfn.c, which are Bob Jenkins' lookup3 (2006);
`hashint8extended`, `hashfloat8extended`, `hashtextextended` in src/backend/access/hash/hashfunc.c. They are not
promised to stay as they are over major versions: `agrees` asks a server before its sums are believed.

Blind to 0.0 against -0.0 and to one NaN against another, which PostgreSQL calls equal, as EXCEPT does. A whole number
or a time enters as its two halves folded into 32 bits.
"""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import psycopg
import pyarrow as pa
import pyarrow.compute as pc
from psycopg import sql

from loader.postgres.session import Connection
from recorder.segments.schemas import SCHEMAS, stream_kind

_Words = npt.NDArray[np.uint32]
_Hashes = npt.NDArray[np.uint64]

MODULUS = 2**64
# Rows hashed at a time: what is at work then fits into the processor's cache, or nearly so.
BATCH_ROWS = 16_384

# What identifies a row of a stream; all its other columns are hashed under that.
_KEYS = {
    "quotes": ("timestamp", "instrument", "change_id"),
    "trades": ("timestamp", "instrument", "trade_seq"),
    "tickers": ("timestamp", "instrument"),
    "instruments": ("timestamp", "instrument"),
    "gaps": ("timestamp", "instrument", "gap_id", "state_no"),
}
_POSTGRES_EPOCH_US = 946_684_800_000_000  # 2000-01-01 UTC, from which PostgreSQL counts times

# lookup3: how far its words are rotated while they are mixed, and at the end.
_MIX = ((4, 6, 8), (16, 19, 4))
_FINAL = ((2, 1, 14), (0, 2, 11), (1, 0, 25), (2, 1, 16), (0, 2, 4), (1, 0, 14), (2, 1, 24))
_START = 0x9E3779B9 + 3923095
_TRIPLE_BYTES = 12  # lookup3 takes three words of four bytes at a time

# A value of every type that a stream has, a null, and texts on either side of a triple's end.
_CONSTANT_KEY: tuple[tuple[str, pa.DataType, Any], ...] = (
    ("timestamptz", pa.timestamp("us", tz="UTC"), datetime(1999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)),
    ("text", pa.string(), "ETH-27NOV26-2500-C é"),
)
_CONSTANT_REST: tuple[tuple[str, pa.DataType, Any], ...] = (
    ("float8", pa.float64(), -0.1),
    ("float8", pa.float64(), None),
    ("float8", pa.float64(), float("nan")),
    ("int8", pa.int64(), -(2**63)),
    ("int4", pa.int32(), -7),
    ("bool", pa.bool_(), True),
    ("text", pa.string(), "twelve bytes"),
    ("text", pa.string(), ""),
)


def key_columns(stream: str) -> tuple[str, ...]:
    """Return the columns that identify a row of a stream."""
    return _KEYS[stream_kind(stream) or ""]


def other_columns(stream: str) -> tuple[str, ...]:
    """Return the rest of the tape's columns, in order; the ledger's number is no such column."""
    kind = stream_kind(stream) or ""
    return tuple(name for name in SCHEMAS[kind].names if name not in _KEYS[kind])


def sum_in_sql(stream: str) -> sql.Composed:
    """Return the expression that sums up the rows of a stream's table; what it gives is for `from_sql`."""
    return sql.SQL("sum({})").format(
        _hash_in_sql(
            [sql.Identifier(name) for name in key_columns(stream)],
            [sql.Identifier(name) for name in other_columns(stream)],
        )
    )


def from_sql(value: Any) -> int:
    """Return the checksum that a server's sum stands for."""
    return int(value or 0) % MODULUS


def of_stream(stream: str, table: pa.Table) -> int:
    """Return the checksum of a stream's rows."""
    return checksum(table, key_columns(stream), other_columns(stream))


def checksum(table: pa.Table, key: Sequence[str], rest: Sequence[str]) -> int:
    """Return the checksum of rows that some columns identify."""
    total = 0
    for start in range(0, table.num_rows, BATCH_ROWS):
        part = table.slice(start, BATCH_ROWS)
        seeds = _hash_rows(part, key, np.zeros(part.num_rows, np.uint64))
        total += int(_hash_rows(part, rest, seeds).sum(dtype=np.uint64))
    return total % MODULUS


def agrees(connection: Connection) -> bool:
    """Return whether this server hashes a constant row as this module does.

    Not one before PostgreSQL 14, nor on a machine that puts the high byte first. No transaction may be open.
    """
    key, rest = ([sql.SQL("%s::" + kind) for kind, _, _ in part] for part in (_CONSTANT_KEY, _CONSTANT_REST))
    values = [value for _, _, value in _CONSTANT_REST + _CONSTANT_KEY]  # as they stand in the statement
    try:
        row = connection.execute(sql.SQL("SELECT {}").format(_hash_in_sql(key, rest)), values).fetchone()
    except psycopg.ProgrammingError:
        return False  # it has no such function
    return row is not None and from_sql(row[0]) == _of_constant_row()


def _of_constant_row() -> int:
    columns = [pa.array([value], kind) for _, kind, value in _CONSTANT_KEY + _CONSTANT_REST]
    names = [str(place) for place in range(len(columns))]
    return checksum(pa.table(columns, names), names[: len(_CONSTANT_KEY)], names[len(_CONSTANT_KEY) :])


def _hash_in_sql(key: Sequence[sql.Composable], rest: Sequence[sql.Composable]) -> sql.Composed:
    return sql.SQL("hash_record_extended(ROW({}), hash_record_extended(ROW({}), 0))").format(
        sql.SQL(", ").join(rest), sql.SQL(", ").join(key)
    )


def _hash_rows(table: pa.Table, columns: Sequence[str], seeds: _Hashes) -> _Hashes:
    """Hash each row over some columns: 31 times what is had, plus the column's hash; a null's is 0."""
    hashes = np.zeros(table.num_rows, np.uint64)
    for name in columns:
        column = table[name].combine_chunks()
        hashed = _hasher(column.type)(column, seeds)
        if column.null_count:
            hashed = np.where(_plain(column.is_null()), np.uint64(0), hashed)
        hashes = (hashes << np.uint64(5)) - hashes + hashed
    return hashes


def _hasher(kind: pa.DataType) -> Callable[[pa.Array, _Hashes], _Hashes]:
    if pa.types.is_string(kind):
        return _hash_texts
    return _hash_floats if pa.types.is_floating(kind) else _hash_integers


def _hash_integers(column: pa.Array, seeds: _Hashes) -> _Hashes:
    """Hash whole numbers of any width, times, and truths: equal numbers alike, whatever their width.

    The high half of a small number is all zeros or all ones, and folding leaves the low half as it is.
    """
    values = _plain(pc.fill_null(column.cast(pa.int64()), 0))
    if pa.types.is_timestamp(column.type):
        values = values - _POSTGRES_EPOCH_US
    low, high = values.astype(np.uint32), (values >> 32).astype(np.uint32)
    state = _started(4, seeds)
    state[0] += low ^ np.where(values >= 0, high, ~high)
    return _final(state)


def _hash_floats(column: pa.Array, seeds: _Hashes) -> _Hashes:
    """Hash floats: zero of either sign is the seed itself, and every NaN is the same one."""
    values = _plain(pc.fill_null(column, 0.0))
    words = np.where(np.isnan(values), np.nan, values).astype("<f8").view("<u4").reshape(-1, 2)
    state = _started(8, seeds)
    state[0] += words[:, 0]
    state[1] += words[:, 1]
    return np.where(values == 0, seeds, _final(state))


def _hash_texts(column: pa.Array, seeds: _Hashes) -> _Hashes:
    """Hash texts as their bytes in UTF-8, those of one length together; nulls as anything."""
    hashes = np.zeros(len(column), np.uint64)
    lengths = _plain(pc.fill_null(pc.binary_length(column), -1))
    _, offsets_buffer, data_buffer = column.buffers()
    offsets = np.frombuffer(offsets_buffer, np.int32)[column.offset :] if offsets_buffer else np.zeros(0, np.int32)
    data = np.frombuffer(data_buffer, np.uint8) if data_buffer else np.zeros(0, np.uint8)
    for length in map(int, np.unique(lengths[lengths >= 0])):
        rows = np.flatnonzero(lengths == length)
        padded = np.zeros((len(rows), length - length % _TRIPLE_BYTES + _TRIPLE_BYTES), np.uint8)
        padded[:, :length] = data[offsets[rows][:, None] + np.arange(length)]
        hashes[rows] = _hash_bytes(padded.view("<u4"), length, seeds[rows])
    return hashes


def _hash_bytes(words: _Words, length: int, seeds: _Hashes) -> _Hashes:
    """Hash byte strings of one length: words of four bytes, zeros behind the end up to a whole triple more."""
    state = _started(length, seeds)
    last = length // _TRIPLE_BYTES * 3
    for place in range(0, last, 3):
        for part in range(3):
            state[part] += words[:, place + part]
        _mix(state)
    state[0] += words[:, last]
    state[1] += words[:, last + 1]
    state[2] += words[:, last + 2] << np.uint32(8)  # its lowest byte is reserved for the length
    return _final(state)


def _started(length: int, seeds: _Hashes) -> list[_Words]:
    """Return lookup3's three words for strings of one length; a seed of 0 is none, and is not mixed in."""
    state = [np.full(len(seeds), (_START + length) % 2**32, np.uint32) for _ in range(3)]
    seeded = seeds != 0
    if not seeded.any():
        return state
    mixed = [word.copy() for word in state]
    mixed[0] += (seeds >> np.uint64(32)).astype(np.uint32)
    mixed[1] += seeds.astype(np.uint32)
    _mix(mixed)
    return mixed if seeded.all() else [np.where(seeded, *both) for both in zip(mixed, state, strict=True)]


def _mix(state: list[_Words]) -> None:
    a, b, c = state
    for first, second, third in _MIX:
        a -= c
        a ^= _rotated(c, first)
        c += b
        b -= a
        b ^= _rotated(a, second)
        a += c
        c -= b
        c ^= _rotated(b, third)
        b += a


def _final(state: list[_Words]) -> _Hashes:
    for changed, by, places in _FINAL:
        state[changed] ^= state[by]
        state[changed] -= _rotated(state[by], places)
    hashes: _Hashes = (state[1].astype(np.uint64) << np.uint64(32)) | state[2].astype(np.uint64)
    return hashes


def _rotated(word: _Words, places: int) -> _Words:
    return (word << np.uint32(places)) | (word >> np.uint32(32 - places))


def _plain(column: pa.Array) -> npt.NDArray[Any]:
    values: npt.NDArray[Any] = column.to_numpy(zero_copy_only=False)
    return values
