"""How far a replay is: a bar with rows a second and the time left, if stderr is a terminal; else the log tells."""

import contextlib
import logging
import sys
import threading
import time
from collections.abc import Iterator

from loader.load import Tally

_REFRESH_S = 0.5


@contextlib.contextmanager
def shown(tally: Tally) -> Iterator[None]:
    """Within, show how far a tally is, on stderr if that is a terminal."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console  # noqa: PLC0415 - heavy
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn  # noqa: PLC0415

    bar = Progress(
        TextColumn("{task.fields[rows]:,} rows, {task.fields[speed]:,} rows/s"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        auto_refresh=False,
    )
    task, begun_s, done = bar.add_task("", total=None, rows=0, speed=0), time.monotonic(), threading.Event()

    def follow() -> None:
        last = False
        while not last:
            last = done.wait(_REFRESH_S)
            speed = round(tally.rows / max(time.monotonic() - begun_s, 0.001))
            total = tally.listed_bytes or None
            bar.update(task, total=total, completed=tally.done_bytes, rows=tally.rows, speed=speed, refresh=True)

    # A line for each segment would push the bar away; it tells the same.
    logger = logging.getLogger("loader")
    level = logger.level
    logger.setLevel(logging.WARNING)
    with bar:
        thread = threading.Thread(target=follow, name="progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            logger.setLevel(level)
