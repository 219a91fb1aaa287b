"""A lane is one stream's way from the socket to the disk: its buffer, and its gaps from opening to fate."""

from collections.abc import Iterable
from collections.abc import Set as AbstractSet

from recorder.buffers import Buffer
from recorder.gaps import Cause, Gap, GapLog
from recorder.segments.schemas import Row

# A granted channel that has brought nothing for this long gets a gap row of its own instead of holding up all.
RESUME_PATIENCE_US = 30_000_000

# What ends when the stream flows again; the others (overflow, rejected) end by themselves.
_INTERRUPTIONS = ("disconnect", "silence", "crash", "stopped")


class Lane:
    """One stream of ticks: quotes, trades, or tickers.

    `fate` is what becomes of missing rows of this stream once it flows again: books and tickers have no history
    (`lost`), trades may still be fetched (None: their gaps end, but stay open).
    """

    def __init__(self, buffer: Buffer, gaps: GapLog, *, refetchable: bool) -> None:
        self.buffer = buffer
        self.stream = buffer.stream
        self.disk_full = False  # the last flush round failed for want of space
        self._gaps = gaps
        self._refetchable = refetchable
        self._overflow: Gap | None = None
        self._broken = {
            gap.instrument: gap
            for gap in gaps.open_gaps
            if gap.stream == self.stream and gap.instrument is not None and not refetchable
        }
        # Set while whole-stream gaps wait for every instrument to flow again.
        self.resuming = bool(self._interruptions())
        self._resumed: set[str] = set()
        self._expected: set[str] | None = None  # None until a session was granted its channels
        self._patience_ends_us = 0

    def add(self, row: Row, now_us: int) -> bool:
        """Take a row; False if it was dropped, which the overflow gap tells."""
        if self.buffer.add(row):
            if self._overflow is not None:
                self._finish(self._overflow, now_us)
                self._overflow = None
            return True
        if self._overflow is None:
            cause: Cause = "disk_full" if self.disk_full else "overflow"
            self._overflow = self._gaps.open(self.stream, None, cause, started_us=now_us, now_us=now_us)
        return False

    # Whole-stream interruptions

    def interrupted(self, cause: Cause, *, since_us: int, now_us: int, detail: str | None = None) -> None:
        """The stream stopped flowing for every instrument. An interruption that lasts is told once."""
        self.resuming = True
        self._resumed.clear()
        self._expected = None
        if not any(gap.ended_us is None for gap in self._interruptions()):
            self._gaps.open(self.stream, None, cause, started_us=since_us, now_us=now_us, detail=detail)

    def subscribed(self, instruments: AbstractSet[str], now_us: int) -> None:
        """A session was granted these; when each has brought something, the interruption is over."""
        if not self.resuming:
            return
        self._expected = set(instruments)
        self._patience_ends_us = now_us + RESUME_PATIENCE_US
        self._check_resumed(now_us)

    def flows(self, instrument: str, now_us: int) -> None:
        """An instrument's stream is whole from here on: a snapshot, a good ticker."""
        gap = self._broken.pop(instrument, None) if self._broken else None
        if gap is not None:
            self._finish(gap, now_us)
        if self.resuming:
            self._resumed.add(instrument)
            self._check_resumed(now_us)

    def tick(self, now_us: int) -> None:
        """Stop waiting for instruments that stay silent: each gets a gap row of its own."""
        if not self.resuming or self._expected is None or now_us < self._patience_ends_us:
            return
        oldest_us = min((gap.started_us for gap in self._interruptions()), default=now_us)
        for instrument in sorted(self._expected - self._resumed):
            self.broke(instrument, "disconnect", since_us=oldest_us, now_us=now_us, detail="nothing came since")
        self._expected = set()
        self._check_resumed(now_us)

    def _check_resumed(self, now_us: int) -> None:
        if self._expected is not None and self._expected <= self._resumed:
            for gap in self._interruptions():
                self._finish(gap, now_us)
            self.resuming = False
            self._resumed.clear()
            self._expected = None

    def stopped_cleanly(self) -> bool:
        """Whether a clean stop told where the stream ends, and nothing has begun again since."""
        return any(gap.cause == "stopped" for gap in self._interruptions())

    def _interruptions(self) -> Iterable[Gap]:
        """The whole-stream gaps that still last."""
        return [
            gap for gap in self._gaps.find(stream=self.stream) if gap.cause in _INTERRUPTIONS and gap.ended_us is None
        ]

    # One instrument

    def broke(
        self,
        instrument: str,
        cause: Cause,
        *,
        since_us: int,
        now_us: int,
        first_missing: int | None = None,
        last_missing: int | None = None,
        detail: str | None = None,
    ) -> None:
        """One instrument's stream has a hole; it lasts until `flows`. A hole within a hole is told once."""
        if instrument not in self._broken:
            self._broken[instrument] = self._gaps.open(
                self.stream,
                instrument,
                cause,
                started_us=since_us,
                now_us=now_us,
                first_missing=first_missing,
                last_missing=last_missing,
                detail=detail,
            )

    def missed(self, cause: Cause, *, since_us: int, now_us: int, detail: str) -> None:
        """Something was missed in [since, now] and nothing after it: a gap that is over when it is told."""
        gap = self._gaps.open(self.stream, None, cause, started_us=since_us, now_us=now_us, detail=detail)
        self._finish(gap, now_us)

    def _finish(self, gap: Gap, now_us: int) -> None:
        if self._refetchable:
            self._gaps.end(gap, ended_us=now_us, now_us=now_us)
        else:
            self._gaps.settle(gap, "lost", ended_us=now_us, now_us=now_us)
