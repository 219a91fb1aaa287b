"""A book put together from captured messages keeps every number as it was written."""

import msgspec
from msgspec import Raw, Struct


class _Book(Struct):
    instrument_name: str
    timestamp: Raw
    change_id: Raw
    bids: list[tuple[str, Raw, Raw]]
    asks: list[tuple[str, Raw, Raw]]
    type: str = "change"


class BookState:
    """The levels of one book, by the text of their price."""

    def __init__(self, data: bytes) -> None:
        self.timestamp = self.change_id = b""
        self.sides: tuple[dict[bytes, bytes], dict[bytes, bytes]] = ({}, {})
        self.apply(data)

    def apply(self, data: bytes) -> None:
        """Apply one message."""
        book = msgspec.json.decode(data, type=_Book)
        self.timestamp, self.change_id = bytes(book.timestamp), bytes(book.change_id)
        for side, levels in zip(self.sides, (book.bids, book.asks), strict=True):
            if book.type == "snapshot":
                side.clear()
            for action, price, amount in levels:
                if action == "delete":
                    side.pop(bytes(price), None)
                else:
                    side[bytes(price)] = bytes(amount)

    def snapshot(self, name: str) -> bytes:
        """Write the book as a snapshot."""
        bids, asks = (b",".join(b'["new",%b,%b]' % level for level in self._levels(side)) for side in (0, 1))
        return b'{"type":"snapshot","timestamp":%b,"instrument_name":"%b","change_id":%b,"bids":[%b],"asks":[%b]}' % (
            self.timestamp,
            name.encode(),
            self.change_id,
            bids,
            asks,
        )

    def order_book(self, name: str, depth: int) -> str:
        """Write the book as get_order_book answers it."""
        bids, asks = (b",".join(b"[%b,%b]" % level for level in self._levels(side)[:depth]) for side in (0, 1))
        return (
            b'{"timestamp":%b,"instrument_name":"%b","change_id":%b,"bids":[%b],"asks":[%b]}'
            % (self.timestamp, name.encode(), self.change_id, bids, asks)
        ).decode()

    def _levels(self, side: int) -> list[tuple[bytes, bytes]]:
        return sorted(self.sides[side].items(), key=lambda level: float(level[0]), reverse=side == 0)
