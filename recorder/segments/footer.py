"""Reads an Arrow file's footer so that none of its bits is passed over: what is not told must be a zero.

A stock reader looks at a part of a footer only: of the flips of a single bit in one it notices 86 %. The rest hits
paddings, and sizes that a FlatBuffers reader never asks for. Here every byte belongs to one thing that is told, and
to no second one, or is a padding zero; what is told is then compared as a whole with what it must be.

(FlatBuffers: a table begins with the distance back to its vtable; that holds its own size, the table's size, and
where in the table each field lies, 0 for one that is left out. Vectors and strings begin with their length. An
offset counts from where it lies.)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple


class Malformed(ValueError):
    """These bytes are no footer of a segment."""


class Block(NamedTuple):
    """Where a message lies, as the footer tells it."""

    offset_bytes: int
    metadata_bytes: int  # the mark and the length before the metadata included
    body_bytes: int


@dataclass(frozen=True)
class Footer:
    """All that a footer tells."""

    version: int
    schema: Any  # nested tuples, to be compared
    dictionaries: tuple[Block, ...]
    batches: tuple[Block, ...]


def read_footer(data: bytes) -> Footer:
    """Read the FlatBuffer of a footer; every bit of it is either told in the result or was found to be zero.

    Raises:
        Malformed: it is none, or something in it is not accounted for.
    """
    buffer = _Buffer(data)
    version, schema, dictionaries, batches, metadata = buffer.root(_FOOTER)
    if metadata is not None:
        raise Malformed("it has metadata of its own")
    buffer.close()
    return Footer(version, schema, dictionaries or (), batches or ())


def read_schema(metadata: bytes) -> tuple[int, Any]:
    """Read the FlatBuffer of a schema message, as `Footer.version` and `Footer.schema` would tell it.

    Raises:
        Malformed: it is none.
    """
    version, kind, schema, *_ = _Buffer(metadata).root(_MESSAGE)
    if kind != 1:
        raise Malformed("it is no schema message")
    return version, schema


def sizes_of_commit(metadata: bytes) -> tuple[int, int]:
    """Return how many bytes the FlatBuffer of a commit batch takes, and how many its body, both without padding.

    Arrow's reader believes the lengths that a message states, which may take in what follows it.

    Raises:
        Malformed: it is none.
    """
    buffer = _Buffer(metadata)
    _version, kind, batch, *_ = buffer.root(_MESSAGE)
    if kind != 3:
        raise Malformed("it is no record batch")
    return buffer.told_bytes, max((at + size for at, size in batch[2] or ()), default=0)


class _Buffer:
    """A FlatBuffer, and which of its bytes were told."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self._told = bytearray(len(data))
        self._vtables: dict[int, list[int]] = {}
        self._ends: set[int] = set()  # of tables and vtables: what comes before them is packed without padding

    @property
    def told_bytes(self) -> int:
        """Where the last thing that was told ends."""
        return self._told.rfind(1) + 1

    def number(self, at: int, size: int, *, signed: bool = True) -> int:
        if at < 0 or at + size > len(self.data):
            raise Malformed("an offset leads out of it")
        return int.from_bytes(self.data[at : at + size], "little", signed=signed)

    def tell(self, at: int, size: int) -> bytes:
        """Take these bytes; nobody else may."""
        if at < 0 or size < 0 or at + size > len(self.data):
            raise Malformed("an offset leads out of it")
        if self._told.find(1, at, at + size) >= 0:
            raise Malformed("two things in it overlap")
        self._told[at : at + size] = b"\1" * size
        return self.data[at : at + size]

    def follow(self, at: int) -> int:
        """Return where the offset that lies at `at` leads to."""
        target = at + self.number(at, 4, signed=False)
        if target == at or target % 4:
            raise Malformed("an offset leads nowhere")
        return target

    def root(self, spec: "_Table") -> tuple[Any, ...]:
        self.tell(0, 4)
        return spec(self, 0)

    def vtable(self, at: int) -> list[int]:
        """Return the table's size, and where each field lies in it; several tables may share a vtable."""
        if at not in self._vtables:
            size = self.number(at, 2, signed=False)
            if size < 4 or size % 2:
                raise Malformed("a table has no size")
            self.tell(at, size)
            self._ends.add(at + size)
            self._vtables[at] = [self.number(at + place, 2, signed=False) for place in range(2, size, 2)]
            if self._vtables[at][0] < 4:
                raise Malformed("a table has no size")
        return self._vtables[at]

    def table(self, at: int) -> list[int]:
        size, *places = self.vtable(at - self.number(at, 4))
        self.tell(at, size)
        self._ends.add(at + size)
        return [size, *places]

    def close(self) -> None:
        """Check what was not told: only padding, each of it zero, and none where none belongs."""
        if any(end < len(self.data) and not self._told[end] for end in self._ends):
            raise Malformed("a size in it is wrong")
        if any(byte and not told for byte, told in zip(self.data, self._told, strict=True)):
            raise Malformed("it has bytes that belong to nothing")


# How to read a field: given the buffer and where the field lies. Next to it, how many bytes it takes there.
_Field = tuple[int, Callable[[_Buffer, int], Any]]


def _scalar(size: int) -> _Field:
    def read(buffer: _Buffer, at: int) -> int:
        value = buffer.number(at, size)
        if not value:
            raise Malformed("a default value is written out")
        return value

    return size, read


def _string(buffer: _Buffer, at: int) -> bytes:
    start = buffer.follow(at)
    size = buffer.number(start, 4, signed=False)
    whole = buffer.tell(start, 4 + size + 1)
    if whole[-1]:
        raise Malformed("a text in it does not end")
    return whole[4:-1]


def _blocks(buffer: _Buffer, at: int) -> tuple[Block, ...]:
    start = buffer.follow(at)
    data = buffer.tell(start, 4 + 24 * buffer.number(start, 4, signed=False))
    found = []
    for place in range(4, len(data), 24):
        if any(data[place + 12 : place + 16]):
            raise Malformed("it has bytes that belong to nothing")
        sizes = (data[place : place + 8], data[place + 8 : place + 12], data[place + 16 : place + 24])
        found.append(Block(*(int.from_bytes(one, "little", signed=True) for one in sizes)))
    return tuple(found)


def _pairs(buffer: _Buffer, at: int) -> tuple[tuple[int, int], ...]:
    """Read the places of buffers, or of columns: two numbers each."""
    start = buffer.follow(at)
    data = buffer.tell(start, 4 + 16 * buffer.number(start, 4, signed=False))
    numbers = [int.from_bytes(data[place : place + 8], "little", signed=True) for place in range(4, len(data), 8)]
    return tuple(zip(numbers[::2], numbers[1::2], strict=True))


class _Table:
    """A kind of table: reads its fields in their order, None for one that is left out."""

    def __init__(self, *fields: _Field) -> None:
        self.fields = fields

    def __call__(self, buffer: _Buffer, at: int) -> tuple[Any, ...]:
        start = buffer.follow(at)
        size, *places = buffer.table(start)
        if any(places[len(self.fields) :]):
            raise Malformed("a table has a field that is not known")
        inside = bytearray(size)
        inside[:4] = b"\1" * 4
        found: list[Any] = []
        for (width, read), place in zip(self.fields, _padded(places, len(self.fields)), strict=True):
            if place and (place + width > size or any(inside[place : place + width])):
                raise Malformed("two things in it overlap")
            if place:
                inside[place : place + width] = b"\1" * width
            found.append(self.read(buffer, read, start + place, found) if place else None)
        if any(byte and not told for byte, told in zip(buffer.data[start : start + size], inside, strict=True)):
            raise Malformed("it has bytes that belong to nothing")
        return tuple(found)

    def read(self, buffer: _Buffer, read: Callable[[_Buffer, int], Any], at: int, _before: list[Any]) -> Any:
        return read(buffer, at)


class _Union(_Table):
    """A table with a field whose kind of table another field tells, the one right before it."""

    def __init__(self, kinds: dict[int, _Table], *fields: _Field) -> None:
        super().__init__(*fields)
        self.kinds = kinds

    def read(self, buffer: _Buffer, read: Callable[[_Buffer, int], Any], at: int, before: list[Any]) -> Any:
        if read is not _by_kind:
            return read(buffer, at)
        kind = self.kinds.get(before[-1])
        if kind is None:
            raise Malformed("a field is of no type that segments have")
        return kind(buffer, at)


def _by_kind(_buffer: _Buffer, _at: int) -> Any:
    raise Malformed("a field's type is not told")


def _many(kind: Callable[[_Buffer, int], Any]) -> _Field:
    def read(buffer: _Buffer, at: int) -> tuple[Any, ...]:
        start = buffer.follow(at)
        count = buffer.number(start, 4, signed=False)
        buffer.tell(start, 4 + 4 * count)
        return tuple(kind(buffer, start + 4 + 4 * index) for index in range(count))

    return 4, read


def _padded(places: Sequence[int], count: int) -> list[int]:
    return [*places[:count], *(0 for _ in range(count - len(places)))]


# Arrow's Schema.fbs, File.fbs and Message.fbs, as far as segments need them. A kind of table that is never there
# (dictionaries, children, features, metadata of a field) reads as one without fields, and so must be empty.
_TEXT: _Field = (4, _string)
_NONE = _Table()
_KEY_VALUE = _Table(_TEXT, _TEXT)
_TYPES = {
    2: _Table(_scalar(4), _scalar(1)),  # Int: width, signed
    3: _Table(_scalar(2)),  # FloatingPoint: precision
    5: _NONE,  # Utf8
    6: _NONE,  # Bool
    10: _Table(_scalar(2), _TEXT),  # Timestamp: unit, time zone
}
_COLUMN = _Union(
    _TYPES, _TEXT, _scalar(1), _scalar(1), (4, _by_kind), (4, _NONE), _many(_NONE), _many(_NONE)
)  # name, nullable, kind of type, type, dictionary, children, metadata
_SCHEMA = _Table(_scalar(2), _many(_COLUMN), _many(_KEY_VALUE), _many(_NONE))
_FOOTER = _Table(_scalar(2), (4, _SCHEMA), (4, _blocks), (4, _blocks), _many(_KEY_VALUE))
_BATCH = _Table(_scalar(8), (4, _pairs), (4, _pairs), (4, _Table(_scalar(1), _scalar(1))), _many(_NONE))
_MESSAGE = _Union({1: _SCHEMA, 3: _BATCH}, _scalar(2), _scalar(1), (4, _by_kind), _scalar(8), _many(_KEY_VALUE))
