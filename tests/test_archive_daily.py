"""While a loader runs, finished days are archived by themselves: never in its way, and over when it is."""

import signal
from pathlib import Path
from typing import Any

import pytest
import structlog
from structlog.testing import capture_logs

from loader.archive import daily
from loader.archive.archiver import Tally
from loader.archive.plan import Choice
from loader.archive.read import Archive
from loader.errors import ArchiveAway, Stopped
from loader.stop import Stop
from recorder.runtime.data_dir import DataDir
from tests.fix_archive import QUOTES, archived_rows, flip_a_bit, parts, store_of, tape_rows
from tests.fix_postgres import START_US, Process, load_once, quotes, record, run_loader, same_rows, wait_for


class Archivers:
    """Stands in for the archiver: each look ends as it was told."""

    def __init__(self, *ends: Tally | Exception) -> None:
        self._ends = list(ends)

    def run(self, _choice: Choice) -> Tally:
        end = self._ends.pop(0)
        if isinstance(end, Exception):
            raise end
        return end


def looks(*ends: Tally | Exception) -> tuple[list[float], list[dict[str, Any]]]:
    """Return after how long each look was followed by another, and what was logged."""
    structlog.reset_defaults()
    one = daily.Daily(Archivers(*ends), Stop())  # type: ignore[arg-type]
    with capture_logs() as logged:
        return [one.look() for _ in ends], [dict(line) for line in logged]


def test_a_failure_is_told_once_and_tried_again_later_and_later() -> None:
    """Until it succeeds; another reason is another line."""
    away = ArchiveAway("the archive is away")
    waits, logged = looks(away, away, away, ArchiveAway("it is full"), Tally(parts=1), away)

    for wait, step in zip(waits, [60, 120, 240, 480, daily.LOOK_S, 60], strict=True):
        assert step <= wait <= step * 1.1
    events = [(line["event"], line.get("reason")) for line in logged]
    assert events == [
        ("archive.failed", "the archive is away"),
        ("archive.failed", "it is full"),
        ("archive.done", None),
        ("archive.failed", "the archive is away"),
    ]


def test_a_refused_file_is_told_once_while_it_is_refused() -> None:
    """Each hour's look finds it again."""
    bad = Tally(refused={"a": "damaged"})
    _, logged = looks(bad, bad, Tally(), bad)

    assert [line["event"] for line in logged] == ["archive.refused", "archive.refused"]


def test_whatever_goes_wrong_is_no_matter_of_the_loaders() -> None:
    """A bug ends a look, with its traceback in the log, and not the thread."""
    waits, logged = looks(ZeroDivisionError("oops"), Stopped("stopped by a signal"))

    assert waits[0] > daily.AGAIN_S - 1
    assert waits[1] == 0.0
    assert [line["event"] for line in logged] == ["archive.broke", "archive.failed"]


def test_a_loader_archives_finished_days(tmp_path: Path, database: str) -> None:
    """Beside its loading; a stop ends both with exit code 0."""
    root = tmp_path / "tape"
    bad, *_ = record(root, [quotes(20), quotes(20, start_us=START_US + 1_000_000)])
    flip_a_bit(bad)
    with Process("load", root=root, url=database) as process:
        wait_for(lambda: "archive.done" in process.err and "segment.loaded" in process.err)
        assert process.signal(signal.SIGTERM) == 0

    assert process.err.count("archive.refused") == 1
    bad.unlink()
    assert archived_rows(Archive(store_of(root)), QUOTES) == tape_rows(root, QUOTES)
    assert same_rows(root, database, QUOTES)


@pytest.mark.parametrize("arguments", [["load", "--once"], ["load", "--archive-url", "off"]])
def test_a_loader_archives_nothing_when_told_so(tmp_path: Path, database: str, arguments: list[str]) -> None:
    """By ARCHIVE_URL=off, or because it ends at once."""
    root = tmp_path / "tape"
    record(root, [quotes(20)])
    with Process(*arguments, root=root, url=database) as process:
        if "--once" not in arguments:
            wait_for(lambda: "segment.loaded" in process.err)
            process.popen.send_signal(signal.SIGTERM)
        assert process.wait() == 0

    assert parts(root) == []
    assert not DataDir(root).archive.exists()


def test_loading_goes_on_where_archiving_cannot(tmp_path: Path, database: str) -> None:
    """An archive that cannot be written is a line in the log."""
    root = tmp_path / "tape"
    record(root, [quotes(20)])
    (root / "archive").write_text("no folder")
    with Process("load", root=root, url=database) as process:
        wait_for(lambda: "archive.failed" in process.err and "segment.loaded" in process.err)
        assert process.signal(signal.SIGTERM) == 0

    assert load_once(root, database).skipped == 1


def test_a_wrong_url_ends_a_loader_before_it_loads(tmp_path: Path, database: str) -> None:
    """Exit code 2; a person reads it at once, not in the log of a night."""
    root = tmp_path / "tape"
    record(root, [quotes(20)])
    process = run_loader("load", "--archive-url", "b2://bucket", root=root, url=database)

    assert process.popen.returncode == 2
    assert process.err.startswith("error: ARCHIVE_URL=b2://bucket: expected")
    assert "segment.loaded" not in process.err
