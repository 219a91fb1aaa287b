"""The life of segments against a model in memory: written, rolled, sealed, torn, copied, damaged, mended, read."""

import contextlib
import io
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from recorder.doctor import doctor
from recorder.runtime.data_dir import DataDir
from recorder.segments.layout import live_files, sealed_files
from recorder.segments.reader import choose_sealed, read_segment, snapshot
from recorder.segments.recovery import recover
from recorder.segments.tape import Tape
from tests.segment_tools import NOON_US, QUOTES, quotes, tape_in
from tests.segments import damages, judge

Record = Callable[[str, object], None]

pytestmark = pytest.mark.timeout(3600)  # the full sizes take long


class Life(RuleBasedStateMachine):
    """One stream on one disk. The model: which rows must be there, and which may be, since their group was hit."""

    steps: ClassVar[Counter[str]] = Counter()

    def __init__(self) -> None:
        super().__init__()
        self.folder = TemporaryDirectory()
        self.data_dir = DataDir(Path(self.folder.name))
        self.tape: Tape | None = None
        self.next_number = 2
        self.must: set[int] = set()
        self.may: set[int] = set()
        self.untouchable: set[str] = set()  # names of files that were copied or hit

    def teardown(self) -> None:
        self.crash()
        self.folder.cleanup()

    @initialize(max_bytes=st.sampled_from([3_000, 9_000, 1 << 30]))
    def begin(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes

    def writing(self) -> Tape:
        if self.tape is None:
            recover(self.data_dir)
            self.tape = tape_in(self.data_dir, max_bytes=self.max_bytes)
        return self.tape

    @rule(rows=st.integers(1, 5))
    def flush(self, rows: int) -> None:
        numbers = range(self.next_number, self.next_number + rows)
        result = self.writing().write_round(
            quotes(rows, first_change_id=numbers[0], start_us=NOON_US + numbers[0]), now_us=NOON_US
        )
        assert result.durable == {QUOTES: rows}
        self.next_number += rows
        self.must |= set(numbers)
        self.steps["flushes"] += 1

    @precondition(lambda self: self.tape is not None)
    @rule()
    def seal(self) -> None:
        assert self.tape is not None
        result = self.tape.seal_all()
        assert not result.incidents
        self.steps["seals"] += 1

    @precondition(lambda self: self.tape is not None)
    @rule()
    def crash(self) -> None:
        if self.tape is not None:
            for writer in self.tape._open.values():  # noqa: SLF001 - a dead process keeps no descriptor
                writer.abandon()
        self.tape = None

    @rule(rows=st.integers(1, 3), share=st.floats(0, 1))
    def crash_in_a_flush(self, rows: int, share: float) -> None:
        """The last flush reached the disk up to some byte."""
        self.writing()
        self.flush(rows)
        self.crash()
        live = live_files(self.data_dir, QUOTES)
        if not live:
            return  # that flush was the one that sealed it
        data = live[0].read_bytes()
        last = judge.read(data).groups[-1]
        cut = last.start + round(share * (last.end - last.start))
        live[0].write_bytes(data[:cut])
        if cut < last.end:
            self.must -= set(range(self.next_number - rows, self.next_number))
        self.steps["torn flushes"] += 1

    @rule()
    def start_again(self) -> None:
        self.crash()
        recover(self.data_dir)
        assert live_files(self.data_dir, QUOTES) == []

    @rule(pick=st.integers(0, 100))
    def copy(self, pick: int) -> None:
        """A hand-made copy of a sealed segment."""
        path = self.pick(pick)
        if path is not None:
            target = path.with_name(path.name.replace("-test-", "-copy-"))
            shutil.copyfile(path, target)
            self.untouchable |= {path.name, target.name}
            self.steps["copies"] += 1

    @rule(pick=st.integers(0, 100), place=st.floats(0, 1), bit=st.integers(0, 7), zeros=st.booleans())
    def damage(self, pick: int, place: float, bit: int, zeros: bool) -> None:
        """A flipped bit, or a page of zeros, in a sealed segment."""
        path = self.pick(pick)
        if path is None:
            return
        original = judge.read(path.read_bytes())
        at = round(place * (len(original.data) - 1))
        case = damages.flip(original, at, bit)
        if zeros:
            case = next(damages.zeroed_pages(original, range(at, at + 1)), case)
        path.write_bytes(case.data)
        hit = {row[9] for n, rows in enumerate(original.rows) if n not in case.kept for row in rows}
        self.must -= hit
        self.may |= hit
        self.untouchable.add(path.name)
        self.steps["damages"] += 1

    def pick(self, number: int) -> Path | None:
        sound = [path for path in sealed_files(self.data_dir, QUOTES) if path.name not in self.untouchable]
        return sound[number % len(sound)] if sound else None

    @rule()
    def mend(self) -> None:
        """Doctor, with repair, until there is nothing more to do."""
        self.crash()
        with contextlib.redirect_stdout(io.StringIO()):
            doctor(str(self.data_dir.root), repair_damage=True)
            assert doctor(str(self.data_dir.root), repair_damage=True) == 0
        copies = {path.name for path in sealed_files(self.data_dir, QUOTES) if "-copy-" in path.name}
        self.untouchable = copies | {name.replace("-copy-", "-test-") for name in copies}
        # What a repair kept is kept from now on; what it did not is gone.
        there = {row[9] for row in self.rows()}
        self.must |= self.may & there
        self.may = set()
        self.steps["repairs"] += 1

    @rule()
    def read(self) -> None:
        found = Counter(row[9] for row in self.rows())
        assert not [number for number, times in found.items() if times > 1], "rows twice"
        assert self.must <= found.keys(), ("lost", self.must - found.keys())
        assert found.keys() <= self.must | self.may, ("invented", found.keys() - self.must - self.may)
        self.steps["reads"] += 1

    def rows(self) -> list[judge.Row]:
        """What our readers return, each row held against what was written."""
        found = snapshot(self.data_dir, QUOTES)
        choice = choose_sealed(found.sealed, QUOTES)
        tables: list[Any] = [*choice.rows, *(read_segment(path).table for path in choice.paths)]
        rows = [row for table in tables for row in judge.tuples(table)]
        rows += [] if found.live is None else judge.tuples(found.live)
        for row in rows:
            assert (row[0], row[1], row[2], row[10]) == (NOON_US + row[2] - NOON_US, "ETH-1", row[0], row[9] - 1)
        return rows


def test_segments_live_as_the_model_does(full: bool, record_property: Record) -> None:
    """Whatever happens in whatever order: what must be there is, once, and nothing that was not written."""
    Life.steps.clear()
    run_state_machine_as_test(
        Life,
        settings=settings(
            max_examples=400 if full else 20,
            stateful_step_count=40 if full else 20,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    print(dict(Life.steps))
    record_property("fault", "18")
    record_property("cases", sum(Life.steps.values()))
