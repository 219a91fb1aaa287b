"""Manifests of the Parquet archive: what a part holds, told by one file that is written last and never changed. Pure.

A manifest is one line of JSON. Its last member is a CRC-32 of every byte before the comma in front of it, so that a
reader in any language can check it without writing JSON the way this program does (docs/format.md, section 7).
"""

import re
import zlib
from datetime import datetime

import msgspec

FORMAT = 1
MANIFESTS = "manifests"  # the folder of manifests, beside those of the streams
PART_SUFFIX = ".parquet"
MANIFEST_SUFFIX = ".json"

_CRC = re.compile(rb',"crc32":"([0-9a-f]{8})"}\n?\Z')
_DATE = re.compile(r"^\d{4}-\d{2}-\d{2}$")


class BadManifest(ValueError):
    """The bytes are no manifest, or not one that this program knows; the text says why."""


class ArchivedSegment(msgspec.Struct, frozen=True, kw_only=True):
    """One segment whose rows are in a part: all that its file on the tape would tell of it."""

    segment_id: str
    previous: str
    recorder: str
    name: str  # path below DATA_DIR when it was archived
    rows: int
    first_received_at: datetime | None  # None without rows
    last_received_at: datetime | None
    first_timestamp: datetime | None
    last_timestamp: datetime | None
    crc32: str  # what its last commit states; "" without one
    size_bytes: int
    mtime: datetime  # when its file was last written
    salvages: str
    started_at: str  # RFC 3339
    software: str  # what recorded it


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """One part: a Parquet file of whole segments of one stream and UTC day."""

    format: int = FORMAT
    stream: str
    date: str  # YYYY-MM-DD
    part: str  # file name of the part, in `<stream>/date=<date>/`
    bytes: int
    sha256: str
    rows: int
    compression: str
    software: str  # what archived it
    made_at: datetime
    segments: tuple[ArchivedSegment, ...]

    @property
    def part_name(self) -> str:
        """Where the part lies in the archive."""
        return part_name(self.stream, self.date, self.part)

    @property
    def name(self) -> str:
        """Where the manifest itself lies in the archive."""
        return manifest_name(self.stream, self.date, self.part)


def part_name(stream: str, date: str, part: str) -> str:
    """Return where a part lies in the archive."""
    return f"{stream}/date={date}/{part}"


def manifest_name(stream: str, date: str, part: str) -> str:
    """Return where a part's manifest lies.

    Not beside it: polars refuses a folder that holds files of another kind, whatever they are called, and a stream's
    folder of Parquet is to be taken whole by any reader.
    """
    return f"{MANIFESTS}/{stream}/date={date}/{part.removesuffix(PART_SUFFIX)}{MANIFEST_SUFFIX}"


def encode(manifest: Manifest) -> bytes:
    """Return a manifest as the bytes of its file."""
    text = msgspec.json.encode(manifest)
    return b'%s,"crc32":"%08x"}\n' % (text[:-1], zlib.crc32(text[:-1]))


def decode(data: bytes) -> Manifest:
    """Read a manifest's bytes.

    Raises:
        BadManifest: they are damaged, of a newer format, or contradict themselves.
    """
    found = _CRC.search(data)
    if found is None:
        raise BadManifest("it does not end as a manifest does")
    if int(found[1], 16) != zlib.crc32(data[: found.start()]):
        raise BadManifest("its checksum does not fit")
    text = data[: found.start()] + b"}"
    try:
        known = msgspec.json.decode(text, type=_Format)
        if known.format != FORMAT:
            raise BadManifest(f"its format is {known.format}, this program knows {FORMAT}")
        manifest = msgspec.json.decode(text, type=Manifest)
    except msgspec.MsgspecError as exc:
        raise BadManifest(f"it is no manifest: {exc}") from exc
    if manifest.rows != sum(segment.rows for segment in manifest.segments):
        raise BadManifest("its rows are not those of its segments")
    # The names become paths; a manifest that was made by hand must not lead out of the archive.
    if not _DATE.match(manifest.date) or "/" in manifest.part or not manifest.part.endswith(PART_SUFFIX):
        raise BadManifest("it names no part of a day")
    return manifest


class _Format(msgspec.Struct):
    format: int
