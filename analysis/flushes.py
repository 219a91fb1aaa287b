"""Reads columns of a sealed segment as its footer says, all flushes of a file with one zstd context; and counts rows.

Arrow makes a context for each buffer, of which a minute's file has hundreds, of a few kB each. In a virtual machine
that takes longer than to decompress them: zstd asks what the processor can do, and the host has to answer. So Arrow
reads the schema, and where the buffers lie is read here, from the tables of Arrow's File.fbs and Message.fbs.

Nothing of it is believed: what does not fit together raises one of READ_ERRORS, and no text leads out of its bytes.
Values are not checked, nor does Arrow: that takes the checksums of `recorder.segments.reader.read_segment`. Who
counts takes the number that the last commit states if its own checksum fits; nothing before it is looked at.
"""

import os
import struct
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import zstandard

from recorder.segments.encode import END_OF_STREAM, FOOTER_MAGIC, MAGIC, believed_rows
from recorder.segments.messages import ARROW_ERRORS

# What is raised on bytes that are not as they should be.
READ_ERRORS = (*ARROW_ERRORS, struct.error, zstandard.ZstdError, OverflowError)

_ENDING_BYTES = 4 + len(FOOTER_MAGIC)  # after the footer: how long it is, and the mark
_COMMIT_BYTES = 4096  # before the footer: one of ours is shorter, the end of the stream included
_BLOCK = np.dtype([("offset", "<i8"), ("metadata", "<i4"), ("padding", "<i4"), ("body", "<i8")])
_PREFIX_BYTES = 8  # before a message's FlatBuffer: the mark, and its length
_RECORD_BATCH = 3  # of MessageHeader
_ZSTD = 1  # of CompressionType
_SIZE_BYTES = 8  # before a compressed buffer: how large it is when it is not
_NOT_COMPRESSED = -1  # in that place: this one is as it is
_MOST_BYTES = 2**31 - 1  # of a column: where a text begins is an int32
_PADDING_BYTES = 64  # a buffer may be longer than its rows need, up to a multiple of this

_Numbers = npt.NDArray[np.int64]
_Bits = npt.NDArray[np.uint8]  # each in a byte

_int32 = struct.Struct("<i").unpack_from
_uint32 = struct.Struct("<I").unpack_from
_uint16 = struct.Struct("<H").unpack_from
_uint16s = [struct.Struct(f"<{count}H").unpack_from for count in range(6)]
_int64 = struct.Struct("<q").unpack_from
_last_block = struct.Struct("<qiiq").unpack_from


def read_columns(path: Path, needed: Sequence[int], schema: pa.Schema) -> pa.Table:
    """Read columns of a file, each of them in one piece.

    Args:
        path: the file.
        needed: which columns, by number.
        schema: the stream's columns.

    Raises:
        FileNotFoundError: it was archived and pruned meanwhile.
        Any of READ_ERRORS: it is not as its footer says, or not as segments are made.
    """
    file = _File(path, schema)
    columns = [file.column(number) for number in needed]
    return pa.table(columns, schema=pa.schema([schema.field(number) for number in needed]))


def count_rows(path: Path, schema: pa.Schema) -> int:
    """Count the rows of a file as its last commit states, or if it states none as its messages tell; none is decoded.

    Raises:
        FileNotFoundError: it was archived and pruned meanwhile.
        Any of READ_ERRORS: it is not as its footer says, or not as segments are made.
    """
    stated = _stated_rows(path)
    return sum(_File(path, schema).rows) if stated is None else stated


def _stated_rows(path: Path) -> int | None:
    """Return how many rows the last commit of a file states, by reading its end alone; None if it states none."""
    fd = os.open(path, os.O_RDONLY)  # not through a file object: a day has 1,440 files, and it takes longer
    try:
        ending = os.fstat(fd).st_size - _ENDING_BYTES
        last_bytes = os.pread(fd, _ENDING_BYTES, ending)
        footer = ending - _int32(last_bytes)[0]
        if not last_bytes.endswith(FOOTER_MAGIC) or not 0 < footer < ending:
            raise pa.ArrowInvalid("the file does not end in a footer")
        begin = max(footer - _COMMIT_BYTES, 0)
        data = memoryview(os.pread(fd, ending - begin, begin))
    finally:
        os.close(fd)
    tail = data[footer - begin :]
    at, count = _vector(tail, _table(tail, 0)[3])
    if not count:
        raise pa.ArrowInvalid("there is no message")
    offset, metadata_bytes, _, body_bytes = _last_block(tail, at + _BLOCK.itemsize * (count - 1))
    if offset + metadata_bytes + body_bytes + len(END_OF_STREAM) != footer:
        raise pa.ArrowInvalid("the last message does not end where the footer says")
    if offset < begin:
        return None  # no commit of ours is that long
    commit = data[offset - begin :]
    at, count = _vector(commit, _table(commit, _PREFIX_BYTES)[4])
    if count < 2:
        return None
    last_two = (_texts_at(commit, at + 4 * number) for number in (count - 2, count - 1))
    (rows_key, digits), (crc32_key, crc32) = last_two
    if (rows_key, crc32_key) != ("rows", "rows_crc32"):
        return None
    rows = believed_rows(digits, crc32)
    return rows if rows is not None and rows < _MOST_BYTES else None


class _File:
    """A sealed file, and where each buffer of each flush lies in it."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        with pa.memory_map(str(path)) as file:
            mapped = file.read_buffer()
        stated = pa.ipc.open_file(mapped).schema
        if stated.types != schema.types or stated.names != schema.names:
            raise pa.ArrowInvalid("the footer names other columns")
        self._types = schema.types
        self._first = list(accumulate((3 if pa.types.is_string(one) else 2 for one in self._types), initial=0))
        self._data = memoryview(mapped).cast("B")
        self._zstd = zstandard.ZstdDecompressor()
        # After every batch of rows comes one of a commit, which has none.
        blocks = _blocks(self._data)[::2]
        told = _Messages(self._data, blocks)
        self.rows: list[int] = told.rows[:, 0].tolist()
        self._nulls = told.nulls(len(self._types))
        self._begins, self._sizes_bytes = told.places(self._first[-1], blocks["body"][:, np.newaxis])
        self._begins += (blocks["offset"] + blocks["metadata"])[:, np.newaxis]
        self._compressed = told.compressed

    def column(self, number: int) -> pa.Array:
        """Return a column; its memory is its own.

        Raises:
            Any of READ_ERRORS: it cannot be read.
        """
        kind, first, nulls = self._types[number], self._first[number], self._nulls[:, number].tolist()
        validity = self._validity(first, nulls)
        if pa.types.is_string(kind):
            buffers = self._texts(first + 1)
        elif pa.types.is_boolean(kind):
            buffers = [_packed(self._bits(first + 1, self.rows))]
        else:
            buffers = [self._joined(first + 1, [rows * kind.bit_width // 8 for rows in self.rows])]
        array = pa.Array.from_buffers(kind, sum(self.rows), [validity, *buffers], null_count=sum(nulls))
        array.validate(full=pa.types.is_string(kind))  # a number is one whatever it is
        return array

    def _validity(self, buffer: int, nulls: Sequence[int]) -> pa.Buffer | None:
        """Return the bits that say which values are not null; None if all are."""
        told = self._sizes_bytes[:, buffer] > 0  # a flush without nulls may leave them out
        if not told.any() and not any(nulls):
            return None
        bits = self._bits(buffer, [rows if one else 0 for rows, one in zip(self.rows, told, strict=True)])
        if [one.size - int(one.sum()) for one in bits] != nulls:
            raise pa.ArrowInvalid("another number of values is null")
        return _packed(
            [one if one.size else np.ones(rows, np.uint8) for one, rows in zip(bits, self.rows, strict=True)]
        )

    def _bits(self, buffer: int, counts: Sequence[int]) -> list[_Bits]:
        """Return the first bits of a buffer, so many of each flush."""
        pieces = self._pieces(buffer, [-(-count // 8) for count in counts])
        return [
            np.unpackbits(np.frombuffer(piece, np.uint8), count=count, bitorder="little")
            for piece, count in zip(pieces, counts, strict=True)
        ]

    def _texts(self, first: int) -> list[pa.Buffer]:
        """Return where each text begins, and the texts, of all flushes together."""
        counts = np.array(self.rows) + 1
        begins = np.frombuffer(self._joined(first, (4 * counts).tolist()), "<i4")
        last = counts.cumsum() - 1  # of each flush: in its place lies where the texts end
        sizes_bytes = begins[last].tolist()
        texts = self._joined(first + 1, sizes_bytes)
        if begins[last - counts + 1].any():
            raise pa.ArrowInvalid("the first text of a flush does not begin where its texts do")
        before = [0, *accumulate(sizes_bytes)]
        joined = pa.allocate_buffer(begins.nbytes - 4 * len(last) + 4)
        own = np.frombuffer(joined, "<i4")
        np.add(np.delete(begins, last), np.repeat(np.array(before[:-1], np.int32), self.rows), out=own[:-1])
        own[-1] = before[-1]
        return [joined, texts]

    def _joined(self, buffer: int, needs_bytes: Sequence[int]) -> pa.Buffer:
        """Return a buffer of all flushes together; of Arrow's memory, whose pages are used again."""
        if sum(needs_bytes) > _MOST_BYTES:
            raise OverflowError("a column is too large")
        joined = pa.allocate_buffer(sum(needs_bytes))
        view, at = memoryview(joined).cast("B"), 0
        for piece, need_bytes in zip(self._pieces(buffer, needs_bytes), needs_bytes, strict=True):
            view[at : at + need_bytes] = piece
            at += need_bytes
        return joined

    def _pieces(self, buffer: int, needs_bytes: Sequence[int]) -> Iterator[bytes | memoryview]:
        """Yield a buffer of each flush, as many bytes of it as are needed."""
        begins, sizes_bytes = self._begins[:, buffer].tolist(), self._sizes_bytes[:, buffer].tolist()
        pieces: list[Any] = [
            self._data[begin : begin + size] for begin, size in zip(begins, sizes_bytes, strict=True)
        ]
        if self._compressed:
            self._decompress(pieces, needs_bytes)
        for piece, need_bytes in zip(pieces, needs_bytes, strict=True):
            if not 0 <= need_bytes <= len(piece):
                raise pa.ArrowInvalid("a buffer is too short for its rows")
            yield piece[:need_bytes]

    def _decompress(self, pieces: list[Any], needs_bytes: Sequence[int]) -> None:
        """Put what they hold in place of pieces that are compressed, in one call, which lets other threads go on."""
        found: dict[int, int] = {}
        for number, (piece, need_bytes) in enumerate(zip(pieces, needs_bytes, strict=True)):
            if not len(piece):
                continue
            (size_bytes,) = _int64(piece)
            pieces[number] = frame = piece[_SIZE_BYTES:]
            if size_bytes == _NOT_COMPRESSED:
                continue
            # The frame's size is what is allocated.
            if size_bytes != zstandard.frame_content_size(frame) or size_bytes >= need_bytes + _PADDING_BYTES:
                raise pa.ArrowInvalid("a buffer is larger than its rows need")
            if size_bytes:
                found[number] = size_bytes
            else:
                pieces[number] = b""
        if found:
            sizes = struct.pack(f"<{len(found)}Q", *found.values())
            whole = self._zstd.multi_decompress_to_buffer([pieces[one] for one in found], sizes, threads=1)
            for place, number in enumerate(found):
                pieces[number] = memoryview(whole[place])  # type: ignore[arg-type] # its stub does not say so


class _Messages:
    """What the messages of the flushes say: a row of each array for each flush.

    All of a file are built alike: the first tells where the numbers lie, and the others must be as it is elsewhere.
    """

    def __init__(self, data: memoryview, blocks: npt.NDArray[np.void]) -> None:
        if not blocks.size or (blocks["metadata"] != blocks["metadata"][0]).any():
            raise pa.ArrowInvalid("there is no message, or they are of different lengths")
        offset, metadata_bytes = int(blocks["offset"][0]), int(blocks["metadata"][0])
        first = data[offset : offset + metadata_bytes]
        if (*_int32(first), *_int32(first, 4)) != (-1, metadata_bytes - _PREFIX_BYTES):
            raise pa.ArrowInvalid("no message begins where the footer says")
        _version, kind, header, body, _metadata = _table(first, _PREFIX_BYTES)
        length, nodes, buffers, compression, _views = _table(first, header)
        if first[kind] != _RECORD_BATCH or (compression and first[_table(first, compression)[0]] != _ZSTD):
            raise pa.ArrowInvalid("it is no record batch, or compressed otherwise")
        self.compressed = bool(compression)
        self._messages = np.frombuffer(data, np.uint8)[blocks["offset"][:, np.newaxis] + np.arange(metadata_bytes)]
        self.rows = self._taken(length, 1)
        self._nodes = self._taken(*_pairs(first, nodes))  # of each column: its rows, and how many are null
        self._buffers = self._taken(*_pairs(first, buffers))  # of each: where it begins in the body, and its bytes
        if (self._taken(body, 1)[:, 0] != blocks["body"]).any() or (self._messages != self._messages[0]).any():
            raise pa.ArrowInvalid("messages are not alike")

    def nulls(self, columns: int) -> _Numbers:
        """Return how many values of each column are null."""
        lengths, nulls = self._nodes[:, ::2], self._nodes[:, 1::2]
        if lengths.shape[1] != columns or (lengths != self.rows).any() or (self.rows > _MOST_BYTES).any():
            raise pa.ArrowInvalid("columns are not as long as their batch")
        if (nulls < 0).any() or (nulls > self.rows).any():
            raise pa.ArrowInvalid("more values are null than there are")
        return nulls

    def places(self, count: int, bodies_bytes: _Numbers) -> tuple[_Numbers, _Numbers]:
        """Return where in its body each buffer begins, and its bytes."""
        begins, sizes_bytes = self._buffers[:, ::2], self._buffers[:, 1::2]
        if begins.shape[1] != count or (self._buffers < 0).any() or (self._buffers > bodies_bytes).any():
            raise pa.ArrowInvalid("buffers lead out of their batch")
        if (begins + sizes_bytes > np.hstack([begins[:, 1:], bodies_bytes])).any():
            raise pa.ArrowInvalid("buffers overlap")
        return begins, sizes_bytes

    def _taken(self, at: int, count: int) -> _Numbers:
        """Return numbers of each message, and leave zeros in their place."""
        place = self._messages[:, at : at + 8 * count]
        numbers = place.copy().view("<i8")
        place[:] = 0
        return numbers


def _packed(bits: Sequence[_Bits]) -> pa.Buffer:
    return pa.py_buffer(np.packbits(np.concatenate(bits), bitorder="little"))


def _blocks(data: memoryview) -> npt.NDArray[np.void]:
    """Return where messages lie as the footer tells it: one after another, from the header to the end of stream."""
    footer_end = len(data) - len(FOOTER_MAGIC) - 4
    footer = footer_end - _int32(data, footer_end)[0]
    at, count = _vector(data, _table(data, footer)[3])
    blocks = np.frombuffer(data, _BLOCK, count, at)
    header_end = len(MAGIC) + _PREFIX_BYTES + _int32(data, len(MAGIC) + 4)[0]
    begins = np.append(blocks["offset"], footer - len(END_OF_STREAM))
    ends = np.append(header_end, blocks["offset"] + blocks["metadata"] + blocks["body"])
    if (
        count % 2
        or (begins != ends).any()
        or any((blocks[name] < 0).any() for name in ("offset", "metadata", "body"))
    ):
        raise pa.ArrowInvalid("messages do not follow one another")
    return blocks


def _pairs(data: memoryview, at: int) -> tuple[int, int]:
    """Return where the numbers of a vector of pairs begin, and how many they are."""
    start, count = _vector(data, at)
    return start, 2 * count


def _vector(data: memoryview, at: int) -> tuple[int, int]:
    """Return where the elements of a vector begin, and how many they are; `at` is where its offset lies."""
    start = at + _uint32(data, at)[0]
    return start + 4, _uint32(data, start)[0]


def _texts_at(data: memoryview, at: int) -> tuple[str, str]:
    """Return a key and its value; `at` is where the offset of their table lies."""
    key, value = (_vector(data, place) for place in _table(data, at)[:2])
    return str(data[key[0] : sum(key)], "utf-8"), str(data[value[0] : sum(value)], "utf-8")


def _table(data: memoryview, at: int) -> list[int]:
    """Return where the first five fields of a table lie; `at` is where its offset lies.

    Where a field is left out it is 0: there lies the mark of a message or of a file, or what leads to the footer's
    table, and none of what is looked for.
    """
    table = at + _uint32(data, at)[0]
    vtable = table - _int32(data, table)[0]
    count = _uint16(data, vtable)[0] // 2 - 2 if vtable >= 0 else -1
    if count < 0:
        raise pa.ArrowInvalid("an offset leads nowhere")
    places = _uint16s[min(count, 5)](data, vtable + 4)
    return [place and table + place for place in places] + [0] * (5 - len(places))
