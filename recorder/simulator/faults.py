"""What shall go wrong, to order: `disconnect:every=5;gap:every=3` is read here. Pure, and light to import."""

import re
from dataclasses import dataclass

GRAMMAR = """\
faults, joined by `;`: KIND:every=SECONDS, or KIND:at=SECONDS for once (from the start of the simulator)
  disconnect   one connection is cut without a close frame
  gap          one book change is not sent: the next one's prev_change_id jumps
  trade_gap    one trade is not sent to anybody; the history has it
  silence      nothing is sent for so long, heartbeats neither (also needs for=SECONDS): half-open sockets
  malformed    one message is not JSON, then cut short, then of wrong types, then with a text for a price
               (the right one is withheld), then on a channel nobody knows (the right one follows)"""

_KEYS = {"every", "at", "for"}
_MESSAGE_KINDS = {"gap", "malformed"}
_KINDS = {"disconnect", "trade_gap", "silence"} | _MESSAGE_KINDS
_LEVEL_PRICE = re.compile(rb'(\["(?:new|change|delete)",|"mark_price":)[-+.0-9e]+')


@dataclass(frozen=True)
class Fault:
    """One kind of trouble and when."""

    kind: str
    every_s: float | None
    at_s: float | None
    for_s: float | None

    def due_s(self, times: int) -> float | None:
        """Return when it comes for the `times`-th time, counted from 0; None if no more."""
        if self.every_s is not None:
            return (self.at_s or self.every_s) + times * self.every_s
        return self.at_s if times == 0 else None


def parse(spec: str) -> tuple[Fault, ...]:
    """Read a specification.

    Raises:
        ValueError: with the rule that it breaks.
    """
    return tuple(_parse_one(part.strip()) for part in spec.split(";") if part.strip())


def _parse_one(part: str) -> Fault:
    kind, _, arguments = part.partition(":")
    if kind not in _KINDS:
        raise ValueError(f"unknown fault {kind}; expected one of {', '.join(sorted(_KINDS))}")
    values: dict[str, float] = {}
    for argument in arguments.split(","):
        key, _, value = argument.partition("=")
        if key not in _KEYS or not re.fullmatch(r"\d+(\.\d+)?", value) or float(value) == 0:
            raise ValueError(f"{kind} takes every=SECONDS or at=SECONDS, silence also for=SECONDS; all above 0")
        values[key] = float(value)
    if not values.keys() & {"every", "at"}:
        raise ValueError(f"{kind} needs every=SECONDS or at=SECONDS")
    if ("for" in values) != (kind == "silence"):
        raise ValueError("silence, and only silence, needs for=SECONDS")
    return Fault(kind, values.get("every"), values.get("at"), values.get("for"))


def spoil(frame: bytes, channel: str, turn: int) -> tuple[str, bytes, bool]:
    """Return a name, a spoilt message, and whether it comes instead of the right one or before it."""
    match turn % 5:
        case 0:
            return "not json", b"<html><body>502 Bad Gateway</body></html>", True
        case 1:
            return "truncated", frame[: len(frame) // 2], True
        case 2:
            data = b'{"instrument_name":5,"timestamp":"yesterday","change_id":null,"bids":{},"asks":"none"}'
            head = b'{"jsonrpc":"2.0","method":"subscription","params":{"channel":"%b","data":%b}}'
            return "wrong types", head % (channel.encode(), data), True
        case 3:
            spoilt = _LEVEL_PRICE.sub(rb'\1"not a price"', frame, count=1)
            return "bad price", spoilt if spoilt != frame else frame[:-1], True
        case _:
            return "unknown channel", frame.replace(channel.encode(), b"surprise.%b" % channel.encode()), False
