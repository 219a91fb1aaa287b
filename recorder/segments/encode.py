"""Segments as bytes: everything that a segment file holds is made here, in memory (docs/format.md)."""

import zlib
from collections.abc import Iterable
from dataclasses import dataclass

import pyarrow as pa

FORMAT_VERSION = 1
MAGIC = b"ARROW1\0\0"
# End of an IPC stream: the continuation mark and a metadata length of zero.
END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"
FOOTER_MAGIC = b"ARROW1"


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What a segment says of itself, in the metadata of its schema."""

    segment_id: str  # a UUID; the identity, whatever the file is called
    previous: str  # the segment_id before it in this stream; empty for the first of a tape
    stream: str
    recorder: str
    started_at: str  # RFC 3339, UTC: the first row's received_at
    software: str
    salvages: str = ""  # set by doctor --repair: the damaged segment whose good groups these are

    def metadata(self) -> dict[str, str]:
        """Return the schema metadata, `format_version` included."""
        pairs = {"format_version": str(FORMAT_VERSION), **self.__dict__}
        if not self.salvages:
            del pairs["salvages"]
        return pairs


class Encoder:
    """Turns record batches into the bytes of one segment: `header()`, then `group()`s, then `end()`.

    A group is one flush: a record batch of rows, then a commit batch that states its number, the CRC-32 of every
    byte of the file before it, the segment it is of (past damage, where the chain begins anew with what a commit
    states, the second of two groups from another segment would agree with the first), and how many rows there are up
    to it: who counts the rows of a sealed file reads its end alone. No later checksum is over the last commit, so
    that number brings its own.

    Nothing here touches a disk, so that a flush reaches the file in one write and a failed write cannot leave the
    encoder believing otherwise: the file is given up, not the encoder asked.
    """

    def __init__(self, schema: pa.Schema, identity: Identity, *, compression: str | None = "zstd") -> None:
        self.schema = schema.with_metadata(identity.metadata())
        self._segment_id = self.schema.metadata[b"segment_id"].decode()
        self._sink = _Sink()
        options = pa.ipc.IpcWriteOptions(compression=compression, use_threads=False)  # see messages.ONE_THREAD
        self._writer = pa.ipc.new_file(self._sink, self.schema, options=options)
        self._empty = pa.RecordBatch.from_arrays(
            [pa.array([], type=field.type) for field in self.schema], schema=self.schema
        )
        self._header: bytes = MAGIC + self.schema.serialize().to_pybytes()
        self._crc = zlib.crc32(self._header)
        self.commits = 0
        self.rows = 0

    def header(self) -> bytes:
        """Return the magic bytes and the schema message."""
        return self._header

    def group(self, batch: pa.RecordBatch) -> bytes:
        """Return one flush: the rows and the commit that vouches for them and for all before."""
        self._writer.write_batch(batch.replace_schema_metadata(self.schema.metadata))
        rows = self._sink.take()
        if self.commits == 0:
            # Arrow's writer emits the header with its first batch; it was handed out by header() already.
            if not rows.startswith(self._header):
                raise AssertionError("pyarrow wrote another header than schema.serialize() gave")
            rows = rows[len(self._header) :]
        crc = zlib.crc32(rows, self._crc)
        self.rows += batch.num_rows
        stated = {
            "commit": str(self.commits), "crc32": f"{crc:08x}", "segment": self._segment_id,
            "rows": str(self.rows), "rows_crc32": crc32_of_rows(self.rows),
        }  # fmt: skip
        self._writer.write_batch(self._empty, custom_metadata=stated)
        commit = self._sink.take()
        self._crc = zlib.crc32(commit, crc)
        self.commits += 1
        return rows + commit

    def end(self) -> bytes:
        """Return end-of-stream and footer. The encoder is spent after it."""
        self._writer.close()
        tail = self._sink.take()
        return tail if self.commits else tail.removeprefix(self._header)


def encode_segment(
    schema: pa.Schema,
    identity: Identity,
    batches: Iterable[pa.RecordBatch],
    *,
    compression: str | None = "zstd",
) -> bytes:
    """Return a whole sealed segment."""
    encoder = Encoder(schema, identity, compression=compression)
    parts = [encoder.header(), *(encoder.group(batch) for batch in batches)]
    return b"".join([*parts, encoder.end()])


def crc32_of_rows(rows: int) -> str:
    """Return the checksum of how many rows a commit states: of the decimal digits."""
    return f"{zlib.crc32(str(rows).encode()):08x}"


def believed_rows(digits: str, crc32: str) -> int | None:
    """Return how many rows a commit states; None if that is not written as it must be, or its checksum does not fit.

    Raises:
        ValueError: it is no number.
    """
    rows = int(digits)
    return rows if rows >= 0 and (str(rows), crc32_of_rows(rows)) == (digits, crc32) else None


class _Sink:
    """A file for Arrow's writer that keeps what it is given until it is taken."""

    closed = False

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0

    def write(self, data: bytes) -> int:
        part = bytes(data)
        self._parts.append(part)
        self._size += len(part)
        return len(part)

    def tell(self) -> int:
        return self._size

    def take(self) -> bytes:
        data = b"".join(self._parts)
        self._parts.clear()
        return data

    def writable(self) -> bool:
        return True

    def readable(self) -> bool:
        return False

    def seekable(self) -> bool:
        return False

    def flush(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True
