"""What `analysis completeness` finds, against the exchange's own journal: all holes of all causes, and only those."""

import json
import shutil
import subprocess
import sys
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.accounting import judge
from tests.fix_programs import Programs
from tests.holes_of_all_causes import CAUSES, Recording
from tests.journal_holes import QUOTES, TRADES, BookHole, Exchange, Number, Tape, Told
from tests.test_pool import first_durable_us
from tests.untold import Cut, Saboteur

S = 1_000_000
CLOCKS_DIFFER_US = 20_000
Hole = BookHole | Number


class Found:
    """What `analysis completeness --json` says of a tape."""

    def __init__(self, root: Path) -> None:
        command = [sys.executable, "-m", "analysis", "completeness", "--json", "--data-dir", str(root)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        self.code = done.returncode
        self.said: dict[str, Any] = json.loads(done.stdout)
        # The holes in books, and the numbers of trades that are not there, each with the cause that is told.
        self.books: dict[Hole, str] = {
            BookHole(hole["instrument"], hole["from_us"], hole["to_us"]): str(hole["cause"])
            for hole in self._holes(QUOTES)
        }
        self.numbers: dict[Hole, str] = {
            Number(hole["instrument"], seq): str(hole["cause"])
            for hole in self._holes(TRADES)
            for seq in range(hole["first"], hole["last"] + 1)
        }

    @property
    def untold(self) -> set[Hole]:
        """Return what is listed as told by nothing."""
        found: set[Hole] = set()
        for hole in self.said["untold"]:
            if hole["stream"] == QUOTES:
                found.add(BookHole(hole["instrument"], hole["from_us"], hole["to_us"]))
            else:
                found |= {Number(hole["instrument"], seq) for seq in range(hole["first"], hole["last"] + 1)}
        return found

    def _holes(self, stream: str) -> list[dict[str, Any]]:
        return [hole for one in self.said["streams"][stream]["instruments"].values() for hole in one["holes"]]


def agrees(found: Found, tape: Tape, exchange: Exchange) -> None:
    """Say whether what was found is what the journal shows, and each told by what the gap rows tell of it."""
    told: dict[Hole, set[str]] = {
        **{hole: {gap.cause for gap in tape.tell_book_hole(hole)} for hole in tape.book_holes(exchange)},
        **{number: {gap.cause for gap in tape.tell_number(number)} for number in tape.number_holes()},
    }
    said = found.books | found.numbers
    assert said.keys() == told.keys()
    assert found.numbers.keys() <= exchange.made | exchange.void
    assert {hole: cause for hole, cause in said.items() if cause not in (told[hole] or {""})} == {}
    assert found.untold == {hole for hole, causes in told.items() if not causes}
    assert found.said["unreadable"] == []
    wrong = bool(found.untold or found.said["missing_segments"])
    assert (found.code, found.said["complete"]) == (int(wrong), not wrong)


def every_message_is_accounted_for(exchange: Exchange, root: Path, tape: Tape) -> None:
    """Say whether what was sent and is not there was sent in the time of a gap row, tickers too.

    The clocks of two processes on a busy machine differ by milliseconds.
    """
    told = [as_row(gap) for gap in tape.gaps if gap.status != "void" or gap.first is not None]
    judgement = judge(exchange.account, root, told)
    lost = {Number(*key) for key in judgement.missing_trades}
    assert {number for number in lost if number.instrument not in exchange.forgotten} == set()
    judgement.missing_trades.clear()
    steps = [(gap.start_us, gap.end_us) for gap in tape.gaps if gap.cause == "clock_step"]
    wrong_clock = min(map(min, steps)), max(map(max, steps)) + S
    # By the wrong clock the row that the first snapshot of a run repeats may be later than that snapshot.
    judgement.doubled = [row for row in judgement.doubled if not wrong_clock[0] <= row[-1] <= wrong_clock[1]]
    assert judgement.good, judgement


def as_row(gap: Told) -> dict[str, Any]:
    end_us = gap.end_us + CLOCKS_DIFFER_US
    begin, end = (datetime.fromtimestamp(us / 1e6, UTC) if us < 2**60 else None for us in (gap.start_us, end_us))
    return {
        "stream": gap.stream, "instrument": gap.instrument, "status": gap.status, "started_at": begin,
        "ended_at": end, "first_missing": gap.first, "last_missing": gap.last,
    }  # fmt: skip


def shows_and_nothing_else(found: Found, cuts: list[Cut], holes: dict[BookHole, tuple[int, int]]) -> None:
    """Say whether each cut is named, and whatever is named was cut."""

    def around(name: str, first: int, last: int) -> set[Hole]:
        inside = (hole for hole, (a, b) in holes.items() if hole.instrument == name and a <= first and last <= b)
        return found.untold.intersection(inside)

    expected: set[Hole] = set()
    possible: set[Hole] = set()
    for cut in cuts:
        in_books = {(name, change_id, change_id) for stream, name, change_id in cut.rows if stream == QUOTES}
        for one in cut.holes | in_books:
            assert around(*one), (cut.kind, one)
            expected |= around(*one)
        expected |= {Number(name, seq) for stream, name, seq in cut.rows if stream == TRADES}
        for stream, name, number in cut.gone:  # what was at an end of all that is there of an instrument shows not
            possible |= {Number(name, number)} if stream == TRADES else around(name, number, number)
    assert expected - found.untold == set()
    assert found.untold - expected - possible == set()
    # `eth_option_quotes: segment … is missing: … came after it`
    named = sorted(line.split()[2] for line in found.said["missing_segments"])
    assert named == sorted(cut.segment_id for cut in cuts if cut.segment_id)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", [20261123])
def test_every_hole_is_found_and_no_other(programs: Programs, tmp_path: Path, full: bool, seed: int) -> None:
    """Holes of every cause, all told; then some that nothing tells, made with checksums that fit: just those."""
    holes, rounds = (100, 3) if full else (30, 1)
    recording = Recording(programs, tmp_path, seed)
    recording.make(holes * 2 // 3, rounds=rounds)
    root = recording.tape
    exchange = Exchange(recording.journal, since_us=first_durable_us(root))
    tape, found = Tape.read(root), Found(root)
    assert (found.code, found.said["untold"], found.said["missing_segments"]) == (0, [], [])
    agrees(found, tape, exchange)
    every_message_is_accounted_for(exchange, root, tape)
    assert {gap.cause for gap in tape.gaps} == CAUSES
    told = len(found.books) + len(found.numbers)
    for number, kind in enumerate(Saboteur.KINDS if full else ()):
        copy = shutil.copytree(root, tmp_path / f"copy-{number}")
        cut = Saboteur(copy, exchange, seed + number).make(kind)
        tape, found = Tape.read(copy), Found(copy)
        agrees(found, tape, exchange)
        shows_and_nothing_else(found, [cut], tape.book_holes(exchange))
        assert found.code == 1
        shutil.rmtree(copy)
    saboteur = Saboteur(root, exchange, seed)
    more = holes - recording.made.total()
    cuts = [saboteur.make(saboteur.KINDS[number % len(saboteur.KINDS)]) for number in range(more)]
    tape, found = Tape.read(root), Found(root)
    agrees(found, tape, exchange)
    shows_and_nothing_else(found, cuts, tape.book_holes(exchange))
    made, kinds = recording.made, Counter(cut.kind for cut in cuts)
    print(f"seed {seed}: {made.total()} holes made while recording, {dict(made)}: {told} breaks, all told;")
    print(f"{len(cuts)} made on the tape, {dict(kinds)}: {len(found.untold)} breaks, all named as untold")

    assert found.code == 1
    assert made.total() >= holes // 2
