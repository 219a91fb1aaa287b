"""What `loader status` tells of a tape and its database."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

from tests.fix_postgres import ROOT, START_US, query, quotes, record, run_loader

US_PER_SEC = 1_000_000


def backlog(root: Path, segments: int, *, recorder: str = "test") -> list[Path]:
    rounds = [quotes(40, start_us=START_US + second * US_PER_SEC) for second in range(segments)]
    return record(root, rounds, recorder=recorder)


def test_status_tells_backlog_lag_speed_and_refused(tmp_path: Path, database: str) -> None:
    """Before anything was loaded, in between, and after; it changes nothing itself."""
    paths = backlog(tmp_path, 3)
    before = run_loader("status", root=tmp_path, url=database)
    assert "nothing was loaded yet" in before.out
    assert "backlog    3 segments" in before.out
    assert before.out.count("20260528T202640000000Z") == 1
    assert query(database, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == [(0,)]
    damaged = bytearray(paths[1].read_bytes())
    damaged[len(damaged) // 2] ^= 1
    paths[1].write_bytes(damaged)
    run_loader("load", "--once", root=tmp_path, url=database)
    backlog(tmp_path, 2, recorder="later")
    after = run_loader("status", "--json", root=tmp_path, url=database)
    told = json.loads(after.out)

    assert after.popen.returncode == 0
    assert (told["tape_segments"], told["backlog_segments"]) == (5, 3)
    assert (told["loaded_segments"], told["loaded_rows"]) == (2, 80)
    assert told["rows_per_s"] == 80 / 300
    assert told["lag_s"] > 0
    assert list(told["refused"]) == [str(paths[1].relative_to(tmp_path))]


def test_a_replay_on_a_terminal_shows_how_far_it_is(tmp_path: Path, database: str) -> None:
    """A bar with rows and rows a second, on stderr; the summary goes to stdout as ever."""
    backlog(tmp_path, 30)
    terminal, far_end = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "loader", "replay", "--data-dir", str(tmp_path)],
        stdout=subprocess.PIPE, stderr=far_end, text=True, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "DATABASE_URL": database, "TERM": "xterm"},
    ) as replay:  # fmt: skip
        os.close(far_end)
        shown = b""
        try:
            while piece := os.read(terminal, 4096):
                shown += piece
        except OSError:
            pass  # the far end was closed: the program has ended
        out, _ = replay.communicate()
    os.close(terminal)

    assert out == "loaded 30 segments (1,200 rows), skipped 0 segments already there, refused 0\n"
    assert b"1,200 rows" in shown
    assert b"rows/s" in shown
    assert b"segment.loaded" not in shown
