"""Signals: the first SIGINT or SIGTERM asks for a clean stop, the second ends the process at once."""

import os
import queue
import signal
import time
from collections.abc import Callable
from types import FrameType

from recorder.runtime.exit_codes import ExitCode


def on_stop(stop: Callable[[], object]) -> None:
    """Call `stop` at the first SIGINT/SIGTERM; exit 130 at the next.

    `stop` runs inside the signal handler in the main thread: it may schedule a callback (`loop.call_soon_threadsafe`)
    or start a thread, and take no lock that this thread may hold; that of a threading.Event is one (see StopAsked).
    What was fsynced before a second signal is safe.
    """
    asked = False

    def handle(_signal: int, _frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            os._exit(ExitCode.SECOND_SIGNAL)
        asked = True
        stop()

    signal.signal(signal.SIGINT, handle)
    signal.signal(signal.SIGTERM, handle)


class StopAsked:
    """Whether a signal asked for the end, for a main thread that waits.

    No threading.Event: a signal that comes while this very thread is inside Event.wait would wait in Event.set for a
    lock that it holds itself, for ever. `SimpleQueue.put` may interrupt `get` (docs.python.org/3/library/queue.html).
    """

    def __init__(self) -> None:
        """Take SIGINT and SIGTERM from now on."""
        self.asked = False
        self._wakes: queue.SimpleQueue[None] = queue.SimpleQueue()
        on_stop(self._ask)

    def wait(self, seconds: float) -> bool:
        """Wait so long, or until it is asked for; return whether it is. Of one thread only."""
        until_s = time.monotonic() + seconds
        while not self.asked and (left_s := until_s - time.monotonic()) > 0:
            try:
                self._wakes.get(timeout=left_s)
            except queue.Empty:
                break
        return self.asked

    def _ask(self) -> None:
        self.asked = True
        self._wakes.put(None)


def on_hangup(seal: Callable[[], object]) -> None:
    """Call `seal` at each SIGHUP, as log rotation expects."""
    signal.signal(signal.SIGHUP, lambda _signal, _frame: seal())
