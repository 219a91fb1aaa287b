"""What is done to single messages: each fault to the first message of its connection that fits."""

from dataclasses import dataclass

from recorder.simulator.faults import spoil
from recorder.simulator.journal import Journal

FAMILIES = ("book.", "ticker.", "trades.")
_QUOTES = ("book.", "ticker.")

# What is sent instead of a message: each with whether it carries data as it was meant.
Instead = list[tuple[bytes, bool]]


@dataclass(frozen=True, slots=True)
class _Armed:
    kind: str
    number: int  # of the connection
    family: str  # the beginning of the channel


@dataclass(frozen=True, slots=True)
class _Held:
    """A message that waits for the one that it changes places with."""

    channel: str
    frame: bytes

    def swaps_with(self, channel: str) -> bool:
        """Say whether a later message may overtake this one: another instrument's, or the same trades'."""
        if self.channel.startswith("trades."):
            return channel == self.channel
        return channel.startswith(_QUOTES) and not self.is_same_instrument(channel)

    def is_same_instrument(self, channel: str) -> bool:
        """Say whether a channel is of this message's instrument."""
        return self.channel.split(".")[1] == channel.split(".")[1]


class Tampering:
    """Does to messages what was ordered, and writes down what and to which."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._armed: list[_Armed] = []
        self._skips: list[tuple[str, set[int]]] = []  # channel, connections that it is done to
        self._held: dict[int, _Held] = {}  # by connection
        self._forms = 0

    def arm(self, kind: str, number: int, family: str) -> None:
        """Do this to the next message of a connection whose channel begins so."""
        self._armed.append(_Armed(kind, number, family))

    def skip(self, channel: str, connections: set[int]) -> None:
        """Withhold the next change on a book channel from each of these connections."""
        self._skips.append((channel, connections))

    def release(self, number: int) -> list[bytes]:
        """Return the messages that are held back from a connection: they change places with nothing."""
        held = self._held.pop(number, None)
        return [] if held is None else [held.frame]

    def forget(self, number: int) -> None:
        """Drop what was meant for a connection that is gone."""
        self._armed = [armed for armed in self._armed if armed.number != number]

    def apply(self, number: int, channel: str, frame: bytes) -> Instead | None:
        """Do to a message what is due, and return what is sent instead; None: the message as it is."""
        if not self._armed and not self._skips and not self._held:
            return None
        if (held := self._held.get(number)) is not None:
            overtaken = self._overtake(held, number, channel, frame)
            if overtaken is not None:
                return overtaken
        is_change = channel.startswith("book.") and b'"type":"change"' in frame
        for skipped, connections in self._skips:
            if is_change and channel == skipped and number in connections:
                connections.discard(number)
                self._skips = [skip for skip in self._skips if skip[1]]
                return self._withhold("gap", number, channel, frame)
        for armed in self._armed:
            fits = channel.startswith(armed.family) and (is_change or armed.kind != "gap")
            if armed.number == number and fits and not (armed.kind == "reorder" and number in self._held):
                self._armed.remove(armed)
                return self._strike(armed.kind, number, channel, frame)
        return None

    def _strike(self, kind: str, number: int, channel: str, frame: bytes) -> Instead:
        match kind:
            case "duplicate":
                self._note(kind, number, channel=channel, sent=frame.decode())
                return [(frame, True), (frame, True)]
            case "reorder":
                self._held[number] = _Held(channel, frame)
                return []
            case "malformed":
                return self._spoil(number, channel, frame)
        return self._withhold(kind, number, channel, frame)

    def _overtake(self, held: _Held, number: int, channel: str, frame: bytes) -> Instead | None:
        if held.swaps_with(channel):
            del self._held[number]
            self._note("reorder", number, channels=[channel, held.channel])
            return [(frame, True), (held.frame, True)]
        if held.channel.startswith("trades.") or not channel.startswith(_QUOTES):
            return None
        # Of one instrument the order is kept: the later one waits in the place of the earlier.
        self._held[number] = _Held(channel, frame)
        return [(held.frame, True)]

    def _spoil(self, number: int, channel: str, frame: bytes) -> Instead:
        form, spoilt, instead = spoil(frame, channel, self._forms)
        self._forms += 1
        facts = {"form": form, "sent": spoilt.decode()}
        if instead:
            return [(spoilt, False), *self._withhold("malformed", number, channel, frame, **facts)]
        self._note("malformed", number, channel=channel, **facts)
        return [(spoilt, False), (frame, True)]

    def _withhold(self, kind: str, number: int, channel: str, frame: bytes, **facts: str) -> Instead:
        self._journal.event("fault", frame, kind=kind, connection=number, channel=channel, **facts)
        return []

    def _note(self, kind: str, number: int, **facts: object) -> None:
        self._journal.event("fault", kind=kind, connection=number, **facts)
