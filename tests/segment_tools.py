"""Rows and segments for tests."""

import io
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa

from recorder.runtime.data_dir import DataDir
from recorder.segments.encode import Identity, encode_segment
from recorder.segments.schemas import SCHEMAS, Row, rows_to_batch, stream_kind
from recorder.segments.tape import Tape

QUOTES = "eth_option_quotes"
NOON_US = 1_763_812_800_000_000  # 2025-11-22T12:00:00Z
DAY_US = 86_400_000_000


def quote_rows(
    count: int, *, start_us: int = NOON_US, first_change_id: int = 1, instrument: str = "ETH-1"
) -> list[Row]:
    """Rows of quotes a microsecond apart, in one whole chain."""
    return [
        (
            start_us + i, instrument, start_us + i, 0.1 + i / 1000, 1.0, None, None, 2000.5, None,
            first_change_id + i, None if i == 0 and first_change_id == 1 else first_change_id + i - 1,
        )
        for i in range(count)
    ]  # fmt: skip


def tape_in(
    data_dir: DataDir, *, max_age_s: float = 3600.0, max_bytes: int = 1 << 30, compression: str | None = "zstd"
) -> Tape:
    """A tape of recorder `test`."""
    return Tape(
        data_dir,
        recorder="test",
        software="ticktape/test",
        segment_max_age_s=max_age_s,
        segment_max_bytes=max_bytes,
        compression=compression,
    )


def identity(stream: str = QUOTES, segment_id: str = "id-1") -> Identity:
    return Identity(
        segment_id=segment_id, previous="", stream=stream, recorder="test", started_at="2025-11-22", software="test"
    )


def segment_bytes(groups: Sequence[Sequence[Row]], *, stream: str = QUOTES, segment_id: str = "id-1") -> bytes:
    """A whole sealed segment."""
    schema = SCHEMAS[stream_kind(stream) or ""]
    return encode_segment(schema, identity(stream, segment_id), [rows_to_batch(schema, rows) for rows in groups])


def by_another(state: Callable[[int], dict[str, str]]) -> bytes:
    """Two flushes of two quotes each, by another writer; `state` says what each of its commits states besides."""
    schema = SCHEMAS["quotes"].with_metadata(identity().metadata())
    file = io.BytesIO()
    with pa.ipc.new_file(file, schema) as writer:
        for number in range(2):
            writer.write_batch(rows_to_batch(schema, quote_rows(2, first_change_id=1 + 2 * number)))
            crc32 = f"{zlib.crc32(file.getvalue()):08x}"
            commit = {"commit": str(number), "crc32": crc32, **state(number)}
            writer.write_batch(rows_to_batch(schema, []), custom_metadata=commit)
    return file.getvalue()


def batches(**rows: Sequence[Row]) -> dict[str, list[pa.RecordBatch]]:
    """Rows by full stream name, as a flush round takes them."""
    return {stream: [rows_to_batch(SCHEMAS[stream_kind(stream) or ""], some)] for stream, some in rows.items()}


def quotes(count: int, **options: Any) -> dict[str, list[pa.RecordBatch]]:
    """`quote_rows` as a flush round takes them."""
    return batches(**{QUOTES: quote_rows(count, **options)})
