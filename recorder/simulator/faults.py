"""What shall go wrong, to order: `disconnect:every=5;gap:every=3` is read here. Pure, and light to import."""

import re
from dataclasses import dataclass
from enum import Enum


class Sort(Enum):
    """What a fault is done to."""

    CONNECTION = "one connection"
    EXCHANGE = "all of it"
    MESSAGE = "the next message that fits"
    MARKET = "what is traded and listed"


@dataclass(frozen=True, slots=True)
class _Rule:
    sort: Sort
    text: str
    takes_for: bool = False
    count: int | None = None  # the default, for those that take one


RULES = {
    "disconnect": _Rule(Sort.CONNECTION, "some connection is cut without a close frame"),
    "kill": _Rule(Sort.CONNECTION, "the same, but the connections are taken in turn"),
    "half_open": _Rule(Sort.CONNECTION, "one, in turn, neither sends nor reads for so long, and is then reset", True),
    "silence": _Rule(Sort.EXCHANGE, "so do all connections at once", True),
    "maintenance": _Rule(
        Sort.EXCHANGE, "told on platform_state, all are closed with 1012; HTTP 503 until it is over", True
    ),
    "lock": _Rule(Sort.EXCHANGE, "the index is locked, told on platform_state: no book moves, nothing trades", True),
    "unauthenticated": _Rule(
        Sort.EXCHANGE, "calls but test and set_heartbeat are answered 11056; told on its channel", True
    ),
    "settlement": _Rule(Sort.EXCHANGE, "the same calls are answered 10041; what is subscribed flows on", True),
    "unavailable": _Rule(Sort.EXCHANGE, "likewise with 13028", True),
    "accept_close": _Rule(Sort.EXCHANGE, "all are closed, and each new connection at once after it opened", True),
    "too_many": _Rule(Sort.EXCHANGE, "connecting is answered HTTP 429, calls 10028 and then closed", True),
    "gap": _Rule(Sort.MESSAGE, "one book change is not sent: the next one's prev_change_id jumps"),
    "malformed": _Rule(
        Sort.MESSAGE,
        "one message is not JSON, then cut short, then of wrong types, then with a text for a price\n"
        "(the right one is withheld), then on a channel nobody knows (the right one follows)",
    ),
    "duplicate": _Rule(Sort.MESSAGE, "one book, ticker or trades message, in turn, comes twice"),
    "reorder": _Rule(
        Sort.MESSAGE, "two messages of different instruments change places, or two of one trades channel"
    ),
    "trade_gap": _Rule(Sort.MARKET, "one trade is not sent to anybody; both hosts have it"),
    "trade_void": _Rule(Sort.MARKET, "one trade_seq of an option never exists; a trade follows"),
    "trade_mixed": _Rule(Sort.MARKET, "3 to 8 numbers in a row are withheld or void, some of each; a trade follows"),
    "sweep": _Rule(
        Sort.MARKET, "an option trades COUNT times in one millisecond; the middle third is withheld", count=1500
    ),
    "expire": _Rule(Sort.MARKET, "the COUNT options that expire first are delivered", count=128),
    "expire_trade_gap": _Rule(Sort.MARKET, "an option is delivered right after a trade that is withheld"),
    "trade_forgotten": _Rule(
        Sort.MARKET, "an option is delivered after two trades, the first withheld; both hosts forget all of them"
    ),
    "list": _Rule(Sort.MARKET, "COUNT new options are listed", count=200),
    "rerank": _Rule(Sort.MARKET, "the open interest is dealt out anew"),
}

_LEVEL_PRICE = re.compile(rb'(\["(?:new|change|delete)",|"mark_price":)[-+.0-9e]+')


@dataclass(frozen=True)
class Fault:
    """One kind of trouble and when."""

    kind: str
    every_s: float | None
    at_s: float | None
    for_s: float | None
    count: int | None = None
    until_s: float | None = None

    def due_s(self, times: int) -> float | None:
        """Return when it comes for the `times`-th time, counted from 0; None if no more."""
        if self.every_s is None:
            return self.at_s if times == 0 else None
        due_s = (self.at_s or self.every_s) + times * self.every_s
        return due_s if self.until_s is None or due_s <= self.until_s else None


def grammar() -> str:
    """Explain all of it, for `--help`."""
    lines = [
        "faults, joined by `;`: KIND:every=SECONDS, or KIND:at=SECONDS for once (from the start of the simulator),",
        "or both, at being the first, and until=SECONDS to end it; those that last also need for=SECONDS, some take",
        "count=NUMBER:",
    ]
    for kind, rule in RULES.items():
        lasting = ", for" if rule.takes_for else f", count={rule.count}" if rule.count else ""
        first, *more = rule.text.split("\n")
        lines.append(f"  {kind + lasting:<20} {first}")
        lines += [f"  {'':<20} {line}" for line in more]
    return "\n".join(lines)


def parse(spec: str) -> tuple[Fault, ...]:
    """Read a specification.

    Raises:
        ValueError: with the rule that it breaks.
    """
    return tuple(_parse_one(part.strip()) for part in spec.split(";") if part.strip())


def _parse_one(part: str) -> Fault:
    kind, _, arguments = part.partition(":")
    if kind not in RULES:
        raise ValueError(f"unknown fault {kind}; expected one of {', '.join(sorted(RULES))}")
    rule = RULES[kind]
    takes = ["every", "at", "until"] + ["for"] * rule.takes_for + ["count"] * (rule.count is not None)
    values: dict[str, float] = {}
    for argument in arguments.split(","):
        key, _, value = argument.partition("=")
        form = r"\d+" if key == "count" else r"\d+(\.\d+)?"
        if key not in takes or not re.fullmatch(form, value) or float(value) == 0:
            raise ValueError(f"{kind} takes {', '.join(takes)}, each with a number above 0")
        values[key] = float(value)
    if not values.keys() & {"every", "at"}:
        raise ValueError(f"{kind} needs every=SECONDS or at=SECONDS")
    if "until" in values and "every" not in values:
        raise ValueError(f"{kind} takes until=SECONDS only with every=SECONDS")
    if rule.takes_for and "for" not in values:
        raise ValueError(f"{kind} needs for=SECONDS")
    count = int(values.get("count", rule.count)) if rule.count is not None else None
    return Fault(kind, values.get("every"), values.get("at"), values.get("for"), count, values.get("until"))


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
