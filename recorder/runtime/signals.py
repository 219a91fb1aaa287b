"""Signals: the first SIGINT or SIGTERM asks for a clean stop, the second ends the process at once."""

import os
import signal
from collections.abc import Callable
from types import FrameType

from recorder.runtime.exit_codes import ExitCode


def on_stop(stop: Callable[[], object]) -> None:
    """Call `stop` at the first SIGINT/SIGTERM; exit 130 at the next.

    `stop` runs inside the signal handler in the main thread: it may set an event or schedule a callback
    (`loop.call_soon_threadsafe`), nothing more. What was fsynced before a second signal is safe.
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


def on_hangup(seal: Callable[[], object]) -> None:
    """Call `seal` at each SIGHUP, as log rotation expects."""
    signal.signal(signal.SIGHUP, lambda _signal, _frame: seal())
