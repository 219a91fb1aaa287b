"""Frames that could not be understood are kept aside with the reason, up to a bound, then counted only."""

import json
from datetime import UTC, datetime
from pathlib import Path

MOST_BYTES = 256 * 1024 * 1024
MOST_WAITING_BYTES = 16 * 1024 * 1024
LOG_EVERY_US = 60_000_000


class Rejects:
    """Collects on the event loop, writes in the writer thread: `take` there, `write` here."""

    def __init__(self, folder: Path) -> None:
        self.count = 0
        self._folder = folder
        self._waiting: list[dict[str, str]] = []
        self._waiting_bytes = 0
        self._size_bytes: int | None = None  # of the folder; unknown until the first write
        self._logged_us = -LOG_EVERY_US
        self._logged_count = 0
        self.newest_reason = ""

    def add(self, frame: bytes, reason: str, now_us: int) -> None:
        """Keep a frame; past the bound it is counted only."""
        self.count += 1
        self.newest_reason = reason
        if self._waiting_bytes + len(frame) <= MOST_WAITING_BYTES:
            self._waiting_bytes += len(frame) + 200
            received_at = datetime.fromtimestamp(now_us / 1e6, UTC).isoformat()
            text = frame.decode("utf-8", errors="backslashreplace")
            self._waiting.append({"received_at": received_at, "reason": reason, "frame": text})

    def take(self) -> list[dict[str, str]]:
        """Hand over what waits."""
        waiting, self._waiting, self._waiting_bytes = self._waiting, [], 0
        return waiting

    def write(self, waiting: list[dict[str, str]]) -> None:
        """Append to `rejected/<UTC date>.jsonl`. Evidence, not tape: no fsync.

        Raises:
            OSError: the disk refused; the frames are counted only.
        """
        if not waiting:
            return
        if self._size_bytes is None:
            self._size_bytes = sum(path.stat().st_size for path in self._folder.glob("*.jsonl"))
        self._folder.mkdir(parents=True, exist_ok=True)
        for entry in waiting:
            line = json.dumps(entry) + "\n"
            if self._size_bytes + len(line) > MOST_BYTES:
                return
            with (self._folder / f"{entry['received_at'][:10]}.jsonl").open("a") as file:
                file.write(line)
            self._size_bytes += len(line)

    def log_due(self, now_us: int) -> bool:
        """Tell whether something new was rejected, at most once a minute."""
        if self.count == self._logged_count or now_us - self._logged_us < LOG_EVERY_US:
            return False
        self._logged_us, self._logged_count = now_us, self.count
        return True
