"""How a connection is doing, and until when it was heard."""

from dataclasses import dataclass


@dataclass
class Health:
    """What a person or a pool wants to know of a connection."""

    connected: bool = False
    failed: bool = False  # the last attempt failed, or the session was lost, and no new one is open yet
    reconnects: int = 0
    began_us: int = 0  # when its session was opened
    messages: int = 0
    last_message_us: int = 0  # of the session that is open
    lag_us: int = 0  # of the newest ticker: received minus the exchange's time
    late_us: int = 0  # of the newest change of a book, or trade, since that: it may have waited there for 100 ms, too
    longest_wait_s: float = 0.0  # of a message inside this process, since somebody set it to 0
    channels: int = 0

    def heard_until_us(self, now_us: int, heartbeat_age_s: float | None = None) -> int:
        """Until when, by the exchange's clock, nothing can be missing of what it sent: its begin if nothing came yet.

        A process that stood still reads late what was sent before: `last_message_us` alone lies after it, and so
        would the lag of a ticker from before, where a book's change or a trade was all that came after that. All
        comes in order, so a heartbeat that came so long ago proves it for whatever was sent before.
        """
        last_us = self.last_message_us or self.began_us or now_us
        if heartbeat_age_s is not None:
            last_us = max(last_us, now_us - int(heartbeat_age_s * 1e6))
        return last_us - max(self.lag_us, self.late_us, 0)

    def began(self, now_us: int) -> None:
        """Begin with a session from which nothing came yet."""
        self.connected, self.failed = True, False
        self.began_us, self.last_message_us, self.lag_us, self.late_us = now_us, 0, 0, 0

    def clock_stepped(self, step_us: int) -> None:
        """Say by the clock as it is now when the last message came, and how long after the exchange sent it."""
        if self.began_us:
            self.began_us += step_us
        if self.last_message_us:
            self.last_message_us += step_us
        if self.lag_us:  # else there was no ticker yet
            self.lag_us += step_us
        if self.late_us:
            self.late_us += step_us
