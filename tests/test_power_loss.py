"""A power loss at any moment: what a round acknowledged is there, and nothing that was not written."""

import errno
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from recorder.runtime.data_dir import DataDir
from recorder.segments.recovery import recover
from tests.faults.power import Disk
from tests.faults.system import Call, System, refused, standing_in
from tests.segment_tools import DAY_US, NOON_US, QUOTES, batches, quote_rows, tape_in

OTHER = "btc_option_quotes"
Rows = Counter[tuple[str, int]]  # stream, change_id


def play(data_dir: DataDir, system: System) -> list[tuple[int, Rows]]:
    """Write rounds over two streams, with rolls, a midnight, and a seal, until every row is durable.

    Returns:
        After which call what was acknowledged.
    """
    acknowledged: list[tuple[int, Rows]] = [(0, Counter())]

    tape = tape_in(data_dir, max_bytes=6_000)
    waiting: dict[str, list[int]] = {QUOTES: [], OTHER: []}
    number, turn = 1, 0
    while turn < 10 or any(waiting.values()):
        start_us = NOON_US + turn * 1_000_000 + (DAY_US if turn >= 7 else 0)
        for stream in (QUOTES, OTHER)[: (1 + turn % 2) * (turn < 10)]:
            waiting[stream] += range(number, number + 20)
            number += 20
        rows = {
            stream: [row for n in numbers for row in quote_rows(1, start_us=start_us + n, first_change_id=n)]
            for stream, numbers in waiting.items()
        }
        result = tape.write_round(batches(**rows), now_us=start_us + 1_000)
        so_far = acknowledged[-1][1].copy()
        for stream, count in result.durable.items():
            so_far.update((stream, n) for n in waiting[stream][:count])
            del waiting[stream][:count]
        acknowledged.append((len(system.calls), so_far))
        turn += 1
    tape.seal_all()
    acknowledged.append((len(system.calls), acknowledged[-1][1]))
    return acknowledged


def rows_on(data_dir: DataDir) -> Rows:
    """What lies in sealed files and live ones, read by pyarrow alone."""
    found: Rows = Counter()
    for path in sorted([*data_dir.root.glob("*/date=*/*.arrow"), *data_dir.root.glob("live/*/*.arrow.open")]):
        stream = path.parent.parent.name if path.suffix == ".arrow" else path.parent.name
        with pa.ipc.open_stream(pa.BufferReader(path.read_bytes()[8:])) as reader:
            for batch in reader:
                found.update((stream, number) for number in batch["change_id"].to_pylist())
    return found


def recorded(tmp_path: Path) -> tuple[DataDir, list[Call], list[tuple[int, Rows]]]:
    data_dir = DataDir(tmp_path / "tape")
    data_dir.root.mkdir(parents=True)
    system = System(keep_data=True, syncs=False)
    with standing_in(system):
        acknowledged = play(data_dir, system)
    return data_dir, system.calls, acknowledged


def recovered(root: Path) -> Rows:
    """What is there after a start."""
    with standing_in(System(syncs=False)):
        recover(DataDir(root))
    for path in root.glob("*/date=*/*.arrow"):
        pa.ipc.open_file(path).read_all()  # a sealed file is whole
    return rows_on(DataDir(root))


def test_a_power_loss_after_any_call_keeps_what_was_acknowledged(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """At each of all calls, with nothing, anything and everything of what was not fsynced: I1, I2, I7."""
    data_dir, calls, acknowledged = recorded(tmp_path)
    written = acknowledged[-1][1]
    seed = random.randrange(10**9)
    rng = random.Random(seed)

    assert len(calls) > 100
    for cut in range(len(calls) + 1):
        disk = Disk(data_dir.root, calls[:cut])
        durable = [rows for at, rows in acknowledged if at <= cut][-1]
        for share in (0.0, 1.0, rng.random()):
            after = tmp_path / f"{cut}-{share}"
            disk.after_power_loss(after, rng, share=share)
            found = recovered(after)

            assert durable <= found, (seed, cut, "acknowledged rows are lost", durable - found)
            assert found <= written, (seed, cut, "rows twice, or of nowhere", found - written)
    record_property("fault", "2,7")
    record_property("cases", 3 * len(calls) + 3)


def test_a_power_loss_in_recovery_loses_nothing_either(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Recovery itself is cut after any of its calls, and runs again: I1, I2."""
    data_dir, calls, acknowledged = recorded(tmp_path)
    cut = len(calls) // 2
    durable = [rows for at, rows in acknowledged if at <= cut][-1]
    first = tmp_path / "first"
    Disk(data_dir.root, calls[:cut]).after_power_loss(first, random.Random(3), share=0.7)
    before = as_calls(first)
    system = System(keep_data=True, syncs=False)
    with standing_in(system):
        recover(DataDir(first))

    assert len(system.calls) > 5
    for at in range(len(system.calls) + 1):
        for share in (0.0, 0.5, 1.0):
            again = tmp_path / f"again{at}-{share}"
            Disk(first, [*before, *system.calls[:at]]).after_power_loss(again, random.Random(at), share=share)
            found = recovered(again)

            assert durable <= found
            assert max(found.values(), default=0) <= 1
    record_property("fault", "2,7")
    record_property("cases", 3 * len(system.calls) + 3)


def as_calls(root: Path) -> list[Call]:
    """The calls that would have made what lies there, durably: the model begins with an empty disk."""
    calls: list[Call] = []
    folders = [root]
    for path in sorted(root.rglob("*")):
        if path.is_dir():
            calls.append(Call(0, "mkdir", str(path)))
            folders.append(path)
        else:
            calls += [Call(0, "open", str(path)), Call(0, "write", str(path), data=path.read_bytes())]
            calls.append(Call(0, "fsync", str(path)))
    return calls + [Call(0, "fsync_dir", str(path)) for path in folders]


@pytest.mark.parametrize(("fault", "error", "many"), [("5", errno.ENOSPC, 3), ("6", errno.EIO, 1)])
def test_a_disk_that_refuses_any_call_loses_nothing_it_acknowledged(
    tmp_path: Path, fault: str, error: int, many: int, record_property: Callable[[str, object], None]
) -> None:
    """Each call in turn is refused, once or some times, and the next ones work: I1, I2, I6, I7."""
    _, calls, acknowledged = recorded(tmp_path / "whole")
    written = acknowledged[-1][1]

    for first in range(1, len(calls) + 1):
        data_dir = DataDir(tmp_path / f"refused{first}")
        data_dir.root.mkdir()
        system = System(plan=refused(error, first=first, last=first + many - 1), keep_data=True, syncs=False)
        with standing_in(system):
            play(data_dir, system)
        found = recovered(data_dir.root)

        assert found == written, (first, "lost", written - found, "twice, or of nowhere", found - written)
    record_property("fault", fault)
    record_property("cases", len(calls))


def test_an_fsync_that_failed_is_never_believed_again(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Each fsync fails once, the next on that file would say yes and lie; then the power goes: I1, I2, I7."""
    _, calls, acknowledged = recorded(tmp_path / "whole")
    written = acknowledged[-1][1]
    fsyncs = [call.number for call in calls if call.name == "fsync"]

    for number in fsyncs:
        data_dir = DataDir(tmp_path / f"refused{number}")
        data_dir.root.mkdir()
        system = System(plan=refused(errno.EIO, first=number, last=number), keep_data=True, syncs=False)
        with standing_in(system):
            play(data_dir, system)
        after = tmp_path / f"after{number}"
        Disk(data_dir.root, system.calls).after_power_loss(after, random.Random(number), share=0.0)

        assert recovered(after) == written, number
    record_property("fault", "6")
    record_property("cases", len(fsyncs))
