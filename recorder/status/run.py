"""`recorder status`: asks, looks, and shows it, once or until Ctrl-C."""

import sys
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from recorder.runtime import signals
from recorder.runtime.data_dir import DataDir
from recorder.runtime.exit_codes import ExitCode
from recorder.settings import StatusSettings
from recorder.status.endpoint import Told, ask
from recorder.status.files import Looker, TapeFiles
from recorder.status.layout import WIDE, fit, lay_out
from recorder.status.report import Report, report

if TYPE_CHECKING:
    from rich.console import Console

EVERY_S = 1.0
_POLL_S = 0.05
# The recorder counts once a second.
BETWEEN_LOOKS_S = 2.0
# Over which rates are taken; a loader loads in bursts, as often as segments are sealed.
_RECORDER_WINDOW_S = 10.0
_LOADER_WINDOW_S = 60.0
# Files are listed seldom: a year of them takes a while.
_FILES_EVERY_S = 5.0
_STYLES = {"good": "bold green", "bad": "bold red", "heading": "bold", "note": "dim", "plain": ""}


class Watch:
    """Asks again and again, and keeps what was told of late."""

    def __init__(self, settings: StatusSettings) -> None:
        """Take whom to ask; nobody is yet."""
        self._settings = settings
        self._looker = Looker(DataDir(settings.data_dir))
        self._recorder: deque[Told] = deque()
        self._loader: deque[Told] = deque()
        self._tape: TapeFiles | None = None

    def look(self) -> None:
        """Ask both programs, at the same time."""
        host = self._settings.metrics_host
        with ThreadPoolExecutor(2) as pool:
            recorder = pool.submit(ask, "recorder", host, self._settings.metrics_port)
            loader = pool.submit(ask, "loader", host, self._settings.loader_metrics_port)
        _keep(self._recorder, recorder.result(), _RECORDER_WINDOW_S)
        _keep(self._loader, loader.result(), _LOADER_WINDOW_S)

    def report(self) -> Report:
        """Say how it stands, by what was told last and by the files."""
        now_s = time.time()
        if self._tape is None or not 0 <= now_s - self._tape.at_s < _FILES_EVERY_S:
            self._tape = self._looker.look(now_s)
        return report(self._recorder, self._loader, self._tape, now_s)

    def look_and_report(self) -> Report:
        """Do both."""
        self.look()
        return self.report()


def status(settings: StatusSettings, *, once: bool, as_json: bool) -> int:
    """Show how recorder, loader, and tape are doing.

    Returns:
        0 healthy, 1 not, 7 if neither program could be asked.
    """
    watch = Watch(settings)
    if not once and not as_json and sys.stdout.isatty():
        from rich.console import Console  # noqa: PLC0415 - heavy

        console = Console(highlight=False)
        if not console.is_dumb_terminal:
            return _live(watch, console)
    if settings.metrics_port is not None or settings.loader_metrics_port is not None:
        watch.look()
        time.sleep(BETWEEN_LOOKS_S)
    found = watch.look_and_report()
    if as_json:
        sys.stdout.write(f"{found.as_json()}\n")
    else:
        sys.stdout.writelines(f"{line.text}\n" for line in lay_out(found, width=WIDE))
    return found.exit_code


def _live(watch: Watch, console: "Console") -> int:
    """Show it until Ctrl-C or SIGTERM; the terminal is then as it was before."""
    from rich.live import Live  # noqa: PLC0415 - heavy
    from rich.text import Text  # noqa: PLC0415

    def shown(found: Report) -> Text:
        lines = fit(lay_out(found, width=console.width), width=console.width, height=console.height)
        return Text("\n", no_wrap=True, overflow="crop").join(Text(line.text, _STYLES[line.kind]) for line in lines)

    stop = signals.StopAsked()
    # Beside this thread, so that Ctrl-C does not wait for who does not answer.
    beside = ThreadPoolExecutor(1)
    found: Report | None = None
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while not stop.asked:
            looking = beside.submit(watch.look_and_report)
            while not looking.done() and not stop.wait(_POLL_S):
                pass
            if looking.done():
                found = looking.result()
                live.update(shown(found), refresh=True)
                stop.wait(EVERY_S)
    beside.shutdown(wait=False)
    return found.exit_code if found else ExitCode.NOT_CHECKED


def _keep(looks: "deque[Told]", told: Told, window_s: float) -> None:
    looks.append(told)
    while told.at_s - looks[0].at_s > window_s:
        looks.popleft()
