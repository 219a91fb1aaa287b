"""The tests are tested: with one barrier of the product removed, a test that is named here must go red."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.fix_programs import REPOSITORY
from tests.test_kill_points import Record


@dataclass(frozen=True)
class Barrier:
    """One thing that keeps ticks from being lost or doubled, how to remove it, and who notices."""

    name: str
    file: str
    text: str
    without: str
    test: str
    quick: bool = False  # tried in every run


_COPY = "        taken = copy_rows(connection, copy_statement(group.stream), group.encoded, stop.check)\n"
_CHECKED = "        check_table(connection, group.stream)\n        _forgive(connection, group)\n"

BARRIERS = (
    Barrier(
        "the fsync of a flush",
        "recorder/segments/writer.py",
        "            disk.write(self._fd, data)\n            disk.fsync(self._fd)\n",
        "            disk.write(self._fd, data)\n",
        "tests/test_power_loss.py::test_a_power_loss_after_any_call_keeps_what_was_acknowledged",
        quick=True,
    ),
    Barrier(
        "the fsync of directories",
        "recorder/runtime/disk.py",
        "    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)\n    try:\n        os.fsync(fd)\n",
        "    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)\n    try:\n        pass\n",
        "tests/test_power_loss.py::test_a_power_loss_after_any_call_keeps_what_was_acknowledged",
    ),
    Barrier(
        "the fsync of a new segment's name",
        "recorder/segments/writer.py",
        "            disk.fsync_dir(self.path.parent)\n",
        "",
        "tests/test_power_loss.py::test_a_power_loss_after_any_call_keeps_what_was_acknowledged",
    ),
    Barrier(
        "the fsync of a footer before the rename",
        "recorder/segments/writer.py",
        "            disk.fsync(self._fd)\n        except OSError:\n            self.abandon()\n            raise\n"
        "        self.abandon()\n",
        "        except OSError:\n            self.abandon()\n            raise\n        self.abandon()\n",
        "tests/test_power_loss.py::test_a_power_loss_after_any_call_keeps_what_was_acknowledged",
    ),
    Barrier(
        "an fsync that failed is not tried again",
        "recorder/runtime/disk.py",
        "    else:\n        os.fsync(fd)\n",
        "    else:\n        try:\n            os.fsync(fd)\n        except OSError:\n            os.fsync(fd)\n",
        "tests/test_power_loss.py::test_an_fsync_that_failed_is_never_believed_again",
    ),
    Barrier(
        "of a given-up file only what was acknowledged counts",
        "recorder/segments/recovery.py",
        "check(data if acknowledged_bytes is None else data[:acknowledged_bytes])",
        "check(data)",
        "tests/test_power_loss.py::test_a_disk_that_refuses_any_call_loses_nothing_it_acknowledged",
    ),
    Barrier(
        "rows that the disk refused are kept for the next round",
        "recorder/flusher.py",
        "buffer.settle(left.get(buffer.stream, ()))",
        "buffer.settle(())",
        "tests/test_disk_manners.py::test_a_full_disk_is_survived_told_and_left_behind",
    ),
    Barrier(
        "each trade is recorded once",
        "recorder/trades_owed.py",
        "        if new is False:\n            return True\n",
        "",
        "tests/test_intake.py::test_a_trade_that_two_connections_bring_is_recorded_once",
        quick=True,
    ),
    Barrier(
        "a connection's snapshot waits for the other to bring what lies between",
        "recorder/chains.py",
        "                if received_us - ahead.since_us < HOLD_BACK_US:\n                    return\n",
        "",
        "tests/test_intake.py::test_a_second_connection_waits_for_the_first_to_bring_what_lies_between",
        quick=True,
    ),
    Barrier(
        "but not for ever",
        "recorder/chains.py",
        "received_us - ahead.since_us < HOLD_BACK_US",
        "True",
        "tests/test_intake.py::test_a_second_connection_does_not_wait_for_a_dead_one",
    ),
    Barrier(
        "a book's chain is checked",
        "recorder/deribit/book.py",
        "            self.change_id = None\n            return Applied.BROKEN\n",
        "            pass\n",
        "tests/deribit/test_book.py",
        quick=True,
    ),
    Barrier(
        "a crash is told as a gap",
        "recorder/record.py",
        'lane.interrupted("crash", since_us=whole_us, now_us=now_us)',
        "pass",
        "tests/test_record.py::test_kill_9_loses_nothing_flushed_and_is_told_as_a_gap",
    ),
    Barrier(
        "a crash gap begins with the first connection that fell silent",
        "recorder/record.py",
        "whole_us = heard.whole_until_us(lane.stream, since_us)",
        "whole_us = since_us",
        "tests/test_kill_points.py::test_a_crash_tells_what_a_half_open_connection_had_not_brought",
    ),
    Barrier(
        "the checksum over rows",
        "recorder/segments/check.py",
        'if f"{crc:08x}" != commit.crc32 or not self.accept(commit, self.at):',
        "if not self.accept(commit, self.at):",
        "tests/segments/test_damage.py::test_a_flip_in_every_byte",
        quick=True,
    ),
    Barrier(
        "ledger row and rows in one transaction",
        "loader/transaction.py",
        _COPY,
        f'        connection.execute("COMMIT")\n        connection.execute("BEGIN")\n{_COPY}',
        "tests/test_loader_kills.py::test_killed_in_a_copy",
    ),
    Barrier(
        "a segment that another loader took meanwhile is not loaded",
        "loader/transaction.py",
        "        if inserted != len(group.segments):\n",
        "        if inserted < 0:\n",
        "tests/test_loader_once.py::test_two_loaders_copies_and_twins",
    ),
    Barrier(
        "the rows that the database took are counted",
        "loader/transaction.py",
        "        if taken != group.rows:\n",
        "        if taken < 0:\n",
        "tests/test_loader.py::test_rows_that_a_table_does_not_take_are_refused",
    ),
    Barrier(
        "a segment's name is durable before it is loaded",
        "loader/load.py",
        "        _make_durable(fresh)\n",
        "",
        "tests/test_loader_once.py::test_power_lost_after_the_loader_took_a_segment_whose_name_was_not_safe",
    ),
    Barrier(
        "a table is checked while the COPY holds it",
        "loader/transaction.py",
        _CHECKED,
        _CHECKED.replace("        check_table(connection, group.stream)\n", ""),
        "tests/test_loader_faults.py::test_a_column_of_another_type_ends_the_loader",
    ),
    Barrier(
        "each pass begins with a look at the ledger",
        "loader/load.py",
        "        self._check_ledger()\n",
        "",
        "tests/test_loader_faults.py::test_what_an_older_backup_lost_is_loaded_again",
    ),
    Barrier(
        "a silent server is left",
        "loader/postgres/patience.py",
        "            shut_down(session)\n",
        "",
        "tests/test_loader_network.py::test_a_connection_on_which_nothing_arrives_is_noticed",
    ),
)


@pytest.mark.parametrize("barrier", BARRIERS, ids=lambda barrier: barrier.name)
def test_without_a_barrier_the_tests_go_red(
    barrier: Barrier, tmp_path: Path, full: bool, record_property: Record
) -> None:
    """Each barrier is removed from a copy of the product, and the test that guards it fails."""
    text = (REPOSITORY / barrier.file).read_text()
    assert text.count(barrier.text) == 1, f"{barrier.file} has changed: say anew what the barrier is"
    if not (full or barrier.quick):
        pytest.skip("only with --full: it takes as long as the test that it runs")
    for folder in ("recorder", "loader", "analysis", "tests"):
        shutil.copytree(REPOSITORY / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    (tmp_path / barrier.file).write_text(text.replace(barrier.text, barrier.without))
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", barrier.test],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert run.returncode == 1, run.stdout[-2000:] + run.stderr[-500:]
    assert " failed" in run.stdout
    record_property("fault", "21")
    record_property("cases", 1)
    record_property("shown", f"without “{barrier.name}” ({barrier.file}): `{barrier.test}` goes red")
