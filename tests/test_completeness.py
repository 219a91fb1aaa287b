"""What `analysis completeness` proves, names, and will not say."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from analysis.proof import BEGINS_US, Gap, Gaps, covered_us, recorded_spans, union
from recorder.lanes import RESUME_PATIENCE_US
from recorder.runtime.data_dir import DataDir
from recorder.segments.layout import live_files, sealed_files
from recorder.segments.schemas import Row
from recorder.segments.tape import Tape
from tests.fix_archive import archive, flip_a_bit
from tests.segment_tools import NOON_US, batches, tape_in

QUOTES, TICKERS, TRADES = "eth_option_quotes", "eth_option_tickers", "eth_option_trades"
S = 1_000_000
Answer = tuple[int, dict[str, Any]]
Rows = dict[str, list[Row]]


def quote(at_s: float, change_id: int, prev: int | None, name: str = "A") -> Row:
    at_us = NOON_US + round(at_s * S)
    return (at_us, name, at_us, 1.0, 1.0, 2.0, 1.0, None, None, change_id, prev)


def ticker(at_s: float, name: str = "A") -> Row:
    at_us = NOON_US + round(at_s * S)
    return (at_us, name, at_us, *[None] * 22)


def trade(at_s: float, seq: int, name: str = "A") -> Row:
    at_us = NOON_US + round(at_s * S)
    return (at_us, name, at_us, str(seq), seq, 0.1, 1.0, "buy", *[None] * 10, "live")


def gap(
    stream: str,
    status: str,
    from_s: float,
    to_s: float | None,
    first: int | None = None,
    last: int | None = None,
    *,
    state_no: int = 0,
    name: str | None = "A",
    cause: str = "disconnect",
) -> Row:
    now_us = NOON_US + round(100 * S) + state_no
    ended = None if to_s is None else NOON_US + round(to_s * S)
    return (now_us, name, now_us, f"g{first}{from_s}", state_no, stream, cause, status,
            NOON_US + round(from_s * S), ended, first, last, None)  # fmt: skip


def option(at_s: float, *, recorded: bool, name: str = "A") -> Row:
    at_us = NOON_US + round(at_s * S)
    return (at_us, name, at_us, *[None] * 12, "open", recorded)


def write(tape: Tape, at_s: float = 0, /, **rows: list[Row]) -> None:
    """Write one segment a stream, as of so many seconds after noon."""
    assert tape.write_round(batches(**rows), now_us=NOON_US + round(at_s * S)).failure is None
    tape.seal_all()


def clock(second: float) -> str:
    """Return a time after noon as an argument."""
    return datetime.fromtimestamp((NOON_US + second * S) / 1e6, UTC).isoformat()


def completeness(root: Path, *arguments: str) -> Answer:
    done = subprocess.run(
        [sys.executable, "-m", "analysis", "completeness", "--data-dir", str(root), "--json", *arguments],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.returncode, json.loads(done.stdout) if done.stdout.startswith("{") else {
        "said": done.stdout + done.stderr
    }


def told(root: Path, *arguments: str) -> list[str]:
    """Return what is printed for people."""
    command = [sys.executable, "-m", "analysis", "completeness", "--data-dir", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()


@pytest.fixture
def tape(data_dir: DataDir) -> Tape:
    """Return a tape of three segments of quotes that are whole, ten seconds each, and one of tickers."""
    tape = tape_in(data_dir)
    write(
        tape, eth_option_instruments=[option(0, recorded=True)],
        eth_option_quotes=[quote(0, 1, None), quote(1, 2, 1)], eth_option_tickers=[ticker(0), ticker(30)],
    )  # fmt: skip
    write(tape, eth_option_quotes=[quote(10, 3, 2), quote(11, 4, 3)])
    write(tape, eth_option_quotes=[quote(20, 5, 4), quote(30, 6, 5)])
    return tape


@pytest.mark.usefixtures("tape")
def test_a_whole_tape_is_complete(data_dir: DataDir) -> None:
    """Exit 0; what has no numbers is said not to be provable."""
    code, found = completeness(data_dir.root, "--min-coverage", "0.98")

    assert (code, found["complete"], found["untold"]) == (0, True, [])
    assert found["streams"][QUOTES]["instruments"]["A"]["coverage"] == 1.0
    assert (found["streams"][QUOTES]["provable"], found["streams"]["eth_option_tickers"]["provable"]) == (True, False)


@pytest.mark.usefixtures("tape")
def test_a_missing_segment_is_named(data_dir: DataDir) -> None:
    """The one after it names it; in the archive it is as good as on the tape."""
    archive(data_dir.root)
    sealed_files(data_dir, QUOTES)[1].unlink()
    assert completeness(data_dir.root)[0] == 0
    for manifest in (data_dir.archive / "manifests" / QUOTES).rglob("*.json"):
        manifest.unlink()
    code, found = completeness(data_dir.root)

    assert code == 1
    assert len(found["missing_segments"]) == 1
    assert [hole["instrument"] for hole in found["untold"]] == ["A"]


@pytest.mark.parametrize("told", [False, True])
def test_a_break_in_a_book_is_told_or_named(tape: Tape, data_dir: DataDir, told: bool) -> None:
    """A change that begins after the last one ended, and a snapshot out of nowhere."""
    rows: Rows = {"data_gaps": [gap(QUOTES, "lost", 31, 39)]} if told else {}
    write(tape, 0, eth_option_quotes=[quote(40, 9, 8)], **rows)
    code, found = completeness(data_dir.root)
    assert (code, len(found["untold"])) == ((0, 0) if told else (1, 1))
    assert [hole["cause"] for hole in found["streams"][QUOTES]["instruments"]["A"]["holes"]] == ["disconnect" * told]

    write(tape, eth_option_quotes=[quote(50, 20, None)])
    code, found = completeness(data_dir.root)
    assert code == 1
    assert found["untold"][-1]["from_us"] == NOON_US + 40 * S


@pytest.mark.parametrize(
    ("rows", "untold"),
    [
        ([], [(2, 4)]),
        ([gap(TRADES, "void", 0, 9, 2, 4)], []),
        ([gap(TRADES, "lost", 0, 9, 2, 3)], [(4, 4)]),
        ([gap(TRADES, "open", 0, None, 2, 4)], []),
        ([gap(TRADES, "open", 0, None, 2, 4), gap(TRADES, "healed", 0, 9, 2, 4, state_no=1)], [(2, 4)]),
        ([gap(TRADES, "open", 0, None, name=None)], []),
        ([gap(TRADES, "healed", 0, 9, name=None)], [(2, 4)]),
        ([gap(QUOTES, "lost", 0, 9, 2, 4)], [(2, 4)]),
    ],
)
def test_a_missing_trade_has_a_fate_or_is_named(
    tape: Tape, data_dir: DataDir, rows: list[Row], untold: list[tuple[int, int]]
) -> None:
    """By its number; what was healed and is not there is missing; an open hole in time tells before numbers do."""
    write(tape, eth_option_trades=[trade(1, 1), trade(5, 5), trade(5, 6)], **({"data_gaps": rows} if rows else {}))
    code, found = completeness(data_dir.root)

    assert [(hole["first"], hole["last"]) for hole in found["untold"]] == untold
    assert code == (1 if untold else 0)


@pytest.mark.parametrize(("created_s", "told", "untold"), [(15, False, [(1, 2)]), (15, True, []), (5, False, [])])
def test_an_option_that_was_listed_since_has_each_trade_from_the_first(
    tape: Tape, data_dir: DataDir, created_s: int, told: bool, untold: list[tuple[int, int]]
) -> None:
    """It is known when it was created; what was there when recording began may have traded before."""
    word: Rows = {"data_gaps": [gap(TRADES, "void", 15, 20, 1, 2, name="B")]} if told else {}
    write(tape, **listed(created_s), eth_option_trades=[trade(20, 3, "B"), trade(21, 4, "B")], **word)
    for arguments in [(), ("--from", clock(12)), ("--to", clock(25))]:
        code, found = completeness(data_dir.root, *arguments)
        assert [(hole["first"], hole["last"]) for hole in found["untold"]] == untold
        assert code == (1 if untold else 0)
    assert completeness(data_dir.root, "--from", clock(5), "--to", clock(14))[1]["untold"] == []


def test_an_option_that_was_listed_in_a_gap_is_owed_from_where_it_was_seen(tape: Tape, data_dir: DataDir) -> None:
    """Also when the gap has been healed: its first numbers may never have been a trade."""
    gaps = [gap(TRADES, status, 14, 16, name=None, state_no=no) for no, status in enumerate(("open", "healed"))]
    write(tape, **listed(15), eth_option_trades=[trade(20, 3, "B")], data_gaps=gaps)

    assert completeness(data_dir.root)[1]["untold"] == []


def test_when_recording_began_is_told_by_the_exchanges_clock(data_dir: DataDir) -> None:
    """A machine that starts with a clock that is days behind has seen none of the listings since."""
    tape, days_s = tape_in(data_dir), 3 * 86_400
    begun = list(option(0, recorded=True))
    begun[0] += days_s * S
    write(
        tape, **listed(86_400), eth_option_quotes=[quote(0, 1, None)], eth_option_tickers=[ticker(0)],
        eth_option_trades=[trade(days_s + 5, 40, "B")],
    )  # fmt: skip
    write(tape, eth_option_instruments=[tuple(begun)])

    assert completeness(data_dir.root)[1]["untold"] == []


def listed(created_s: float) -> Rows:
    """Return the row of an option that was created so many seconds after noon."""
    row = list(option(created_s, recorded=False, name="B"))
    row[6] = NOON_US + round(created_s * S)
    return {"eth_option_instruments": [tuple(row)]}


def test_time_in_gap_rows_is_not_covered(tape: Tape, data_dir: DataDir) -> None:
    """Of thirty seconds twelve were missed: told, and so complete; but less than was asked for."""
    write(tape, data_gaps=[gap(QUOTES, "lost", 1, 10), gap(QUOTES, "lost", 9, 13, name=None)])
    code, found = completeness(data_dir.root)
    assert code == 0
    assert found["streams"][QUOTES]["instruments"]["A"]["coverage"] == pytest.approx(0.6)
    code, found = completeness(data_dir.root, "--min-coverage", "0.98")
    assert (code, found["below_min_coverage"]) == (1, [[QUOTES, "A", pytest.approx(0.6)]])
    after = "2025-11-22T12:00:15"
    assert completeness(data_dir.root, "--min-coverage", "0.98", "--from", after)[0] == 0


def test_a_step_of_the_clock_tells_no_hole(tape: Tape, data_dir: DataDir) -> None:
    """Nothing was missed for it, though its row spans an hour: a hole in that hour is untold, and all is covered."""
    step = gap(QUOTES, "void", 31, 3631, name=None, cause="clock_step")
    write(
        tape, data_gaps=[step], eth_option_quotes=[quote(40, 7, 6), quote(41, 8, 7)], eth_option_tickers=[ticker(41)]
    )
    code, found = completeness(data_dir.root, "--min-coverage", "1")
    assert (code, found["untold"]) == (0, [])
    assert found["streams"][QUOTES]["instruments"]["A"]["coverage"] == 1.0
    write(tape, eth_option_quotes=[quote(50, 20, 19)])
    code, found = completeness(data_dir.root)

    assert (code, [hole["from_us"] for hole in found["untold"]]) == (1, [NOON_US + 41 * S])


def test_a_hole_over_which_the_clock_was_set_back_is_told_by_its_gap(tape: Tape, data_dir: DataDir) -> None:
    """The row after it has an earlier time than the one before it; the gap row lies between the two."""
    crash = gap(QUOTES, "lost", 7, 9, name=None, cause="crash")
    write(tape, data_gaps=[crash], eth_option_quotes=[quote(9, 20, None), quote(10, 21, 20)])
    code, found = completeness(data_dir.root)

    assert (code, found["untold"]) == (0, [])
    assert [hole["cause"] for hole in found["streams"][QUOTES]["instruments"]["A"]["holes"]] == ["crash"]


def test_who_was_left_out_for_a_while_has_no_hole_there(tape: Tape, data_dir: DataDir) -> None:
    """An option that fell out of the top N and came back begins with a snapshot; before that it was not recorded."""
    write(
        tape,
        eth_option_instruments=[option(31, recorded=False), option(60, recorded=True)],
        eth_option_quotes=[quote(61, 90, None), quote(62, 91, 90)],
        eth_option_tickers=[ticker(62)],
    )
    code, found = completeness(data_dir.root, "--min-coverage", "1")

    assert (code, found["untold"]) == (0, [])
    assert found["streams"][QUOTES]["instruments"]["A"]["recorded_s"] == 33


def test_people_are_told_the_same(tape: Tape, data_dir: DataDir) -> None:
    """What is whole, what was missed and why, what nothing tells, and each answer in one line."""
    assert told(data_dir.root) == [
        f"{QUOTES}: 3 segments, 6 rows of 1 instruments",
        "  proven by its numbers until 2025-11-22 12:00:30",
        "  holes that gap rows tell: none",
        "  time outside of gap rows: least 100.00%, median 100.00%",
        f"{TICKERS}: 1 segments, 2 rows of 1 instruments",
        "  not provable: a ticker has no number; gap rows tell when some may be missing",
        "  time outside of gap rows: least 100.00%, median 100.00%",
        f"{TRADES}: 0 segments, 0 rows of 0 instruments",
        "  proven by its numbers until nothing",
        "  holes that gap rows tell: none",
        "  not provable: 2025-11-22 12:00:00 to 2025-11-22 12:00:30, after the newest row",
        "complete, or told by gap rows",
    ]
    write(
        tape, eth_option_quotes=[quote(40, 9, 8)], eth_option_tickers=[ticker(40)],
        data_gaps=[gap(QUOTES, "lost", 31, 39)],
    )  # fmt: skip
    assert told(data_dir.root)[2] == "  holes that gap rows tell: 1 disconnect (lost)"
    assert told(data_dir.root, "--min-coverage", "0.98")[-2:] == [
        f"below 98.00%: {QUOTES} A: 80.00%",
        "NOT complete: less than 98.00% of the time is covered",
    ]
    write(tape, eth_option_quotes=[quote(50, 20, None)])
    day = "2025-11-22"
    assert told(data_dir.root)[-2:] == [
        f"NOT TOLD: {QUOTES} A: a break in the book, between {day} 12:00:40.000000 and {day} 12:00:50.000000",
        "NOT complete: something is missing that nothing tells",
    ]
    flip_a_bit(sealed_files(data_dir, QUOTES)[2])
    assert told(data_dir.root)[-1] == "could not be checked: something cannot be read"


@pytest.mark.parametrize("explained", [False, True])
def test_a_hole_at_the_end_of_a_range_is_found(data_dir: DataDir, explained: bool) -> None:
    """The row before the range and the row after it are looked for, however far away they lie."""
    tape = tape_in(data_dir)
    rows: Rows = {"data_gaps": [gap(QUOTES, "lost", 31, 3599)]} if explained else {}
    began: Rows = {"eth_option_instruments": [option(0, recorded=True), option(0, recorded=True, name="B")]}
    other = [quote(0, 1, None, "B"), *(quote(60 * minute, minute + 1, minute, "B") for minute in range(1, 121))]
    began |= {TICKERS: [ticker(second, name) for second in (0, 7200) for name in "AB"]}
    write(tape, 0, eth_option_quotes=[quote(0, 1, None), quote(30, 2, 1), *other[:1]], **began, **rows)
    for minute in range(1, 121, 10):
        mine = [quote(3600, 9, 8)] if minute == 61 else []
        write(tape, 60 * minute, eth_option_quotes=[*mine, *other[minute : minute + 10]])
    for begin, end in [(1800, 5400), (600, 1200), (0, 1800), (3000, 3600)]:
        code, found = completeness(data_dir.root, "--from", clock(begin), "--to", clock(end))

        assert (code, [hole["instrument"] for hole in found["untold"]]) == ((0, []) if explained else (1, ["A"]))
        assert found["streams"][QUOTES]["instruments"]["B"]["coverage"] == 1.0
    code, found = completeness(data_dir.root, "--from", clock(600), "--to", clock(1200), "--min-coverage", "0.98")
    below = [(name, share) for _, name, share in found["below_min_coverage"]]
    assert (code, below) == (1, [("A", 0.0)])
    assert completeness(data_dir.root, "--from", clock(4000), "--to", clock(5000), "--min-coverage", "1")[0] == 0


def test_a_hole_in_trades_at_the_end_of_a_range_is_found(data_dir: DataDir) -> None:
    """Also of an option that did not trade in it."""
    tape = tape_in(data_dir)
    write(tape, 0, eth_option_trades=[trade(0, 1), trade(10, 2)])
    write(tape, 3600, eth_option_trades=[trade(3600, 4)])
    for begin, end in [(5, 20), (1000, 2000), (3000, 4000)]:
        code, found = completeness(data_dir.root, "--from", clock(begin), "--to", clock(end))

        assert (code, [(hole["first"], hole["last"]) for hole in found["untold"]]) == (1, [(3, 3)])


@pytest.mark.usefixtures("tape")
def test_the_time_after_the_newest_row_is_not_provable(data_dir: DataDir) -> None:
    """A recorder that died is not taken for one that had nothing to record."""
    hour = ("--from", clock(0), "--to", clock(3600))
    code, found = completeness(data_dir.root, *hour)
    assert (code, found["streams"][QUOTES]["not_provable"]) == (0, [clock(30), clock(3600)])
    assert completeness(data_dir.root, *hour, "--min-coverage", "0.98")[0] == 1
    assert told(data_dir.root, *hour)[3] == (
        "  not provable: 2025-11-22 12:00:30 to 2025-11-22 13:00:00, after the newest row"
    )


def test_the_time_in_which_other_streams_went_on_is_not_provable(tape: Tape, data_dir: DataDir) -> None:
    """Without an end of the range its end is the newest row of the market: what ended before that is not covered."""
    write(tape, eth_option_tickers=[ticker(60)])
    code, found = completeness(data_dir.root, "--min-coverage", "0.98")

    assert found["streams"][QUOTES]["not_provable"] == [clock(30), clock(60)]
    assert (code, found["below_min_coverage"]) == (1, [[QUOTES, "A", pytest.approx(0.5)]])
    assert completeness(data_dir.root)[0] == 0


@pytest.mark.parametrize("kind", ["quotes", "tickers"])
def test_a_stream_of_which_nothing_is_left_is_missed(tape: Tape, data_dir: DataDir, kind: str) -> None:
    """Each instrument was to be recorded in it, and nothing tells why there is nothing."""
    write(tape, eth_option_quotes=[quote(90, 7, 6)], eth_option_tickers=[ticker(90)])
    shutil.rmtree(data_dir.root / f"eth_option_{kind}")
    for arguments in [(), ("--from", clock(5)), ("--from", clock(5), "--to", clock(85))]:
        code, found = completeness(data_dir.root, *arguments)
        begun_s, end_s = (5 if arguments else 0), (85 if len(arguments) == 4 else 90)
        # Of tickers it is not looked for what there was before the range.
        holes = [] if arguments and kind == "tickers" else [(NOON_US + begun_s * S, NOON_US + end_s * S)]

        assert [(hole["from_us"], hole["to_us"]) for hole in found["untold"]] == holes
        assert code == (1 if holes else 0)
        assert found["streams"][f"eth_option_{kind}"]["instruments"]["A"]["coverage"] == 0.0
    shutil.rmtree(data_dir.root / "eth_option_instruments")
    assert completeness(data_dir.root, "--min-coverage", "0.1")[0] == 7
    assert told(data_dir.root, "--min-coverage", "0.1")[-1] == (
        "could not be checked: nothing tells what was to be recorded"
    )


@pytest.mark.parametrize("why", ["nothing", "a gap", "a step of the clock", "it had begun before"])
def test_an_instrument_of_which_nothing_came_is_missed(tape: Tape, data_dir: DataDir, why: str) -> None:
    """A channel begins with what there is: whose brings nothing was not recorded, unless something tells why."""
    rows: Rows = {
        "nothing": {},
        "a gap": {"data_gaps": [gap(QUOTES, "lost", 2, 89, name=None), gap(TICKERS, "lost", 3, 89, name=None)]},
        "a step of the clock": {
            "data_gaps": [
                gap(stream, "void", from_s, 89, name=None, cause="clock_step")
                for stream, from_s in ((QUOTES, 2), (TICKERS, 3))
            ]
        },
        "it had begun before": {QUOTES: [quote(-60, 1, None, "B")], TICKERS: [ticker(-60, "B")]},
    }[why]
    write(tape, eth_option_quotes=[quote(90, 7, 6)], eth_option_tickers=[ticker(90)])
    write(tape, eth_option_instruments=[option(1, recorded=True, name="B")], **rows)
    code, found = completeness(data_dir.root)

    holes = {(hole["stream"], hole["instrument"], hole["begins"]) for hole in found["untold"]}
    assert holes == ({(stream, "B", True) for stream in (QUOTES, TICKERS)} if why == "nothing" else set())
    assert code == (1 if holes else 0)
    if holes:
        assert f"NOT TOLD: {QUOTES} B: nothing came of it, between 2025-11-22 12:00:01" in "\n".join(
            told(data_dir.root)
        )


def test_nothing_is_missed_before_the_recorder_would_have_told_it() -> None:
    """It tells a silence after its patience and a round."""
    assert RESUME_PATIENCE_US + 3 * S < BEGINS_US


def test_an_option_that_has_expired_brings_nothing(tape: Tape, data_dir: DataDir) -> None:
    """Its channels are left when it is settled, half a minute later, and its states are told until then."""
    states = [list(option(second, recorded=second < 160, name="E")) for second in (0, 101, 160)]
    for state in states:
        state[5] = NOON_US + 100 * S
    write(
        tape, eth_option_instruments=[tuple(state) for state in states],
        eth_option_quotes=[quote(0, 1, None, "E"), quote(200, 7, 6)],
        eth_option_tickers=[ticker(0, "E"), ticker(99, "E"), ticker(200)],
    )  # fmt: skip
    for arguments in [(), ("--from", clock(100)), ("--from", clock(50), "--to", clock(150))]:
        assert completeness(data_dir.root, *arguments)[1]["untold"] == []
    assert completeness(data_dir.root)[1]["streams"][TICKERS]["instruments"]["E"]["recorded_s"] == 100


def test_what_was_told_last_and_has_no_rows_yet_is_not_missed(tape: Tape, data_dir: DataDir) -> None:
    """It is told before its rows are durable: a crash may come between, and so may a copy of the tape."""
    hour = ("--from", clock(0), "--to", clock(3600))
    write(tape, eth_option_instruments=[option(29, recorded=True, name="B")])
    assert completeness(data_dir.root)[1]["untold"] == []
    assert completeness(data_dir.root, *hour)[1]["untold"] == []
    for stream in (QUOTES, TICKERS):
        shutil.rmtree(data_dir.root / stream)
    for arguments in [(), hour, ("--from", clock(0), "--to", "2099-01-01")]:
        code, found = completeness(data_dir.root, *arguments)
        assert (code, found["untold"]) == (7, [])


def test_an_archive_alone_may_lack_a_stream_that_is_still_to_come(tape: Tape, data_dir: DataDir) -> None:
    """Its streams come one after another."""
    write(tape, eth_option_quotes=[quote(90, 7, 6)], eth_option_tickers=[ticker(90)])
    archive(data_dir.root)
    shutil.rmtree(data_dir.archive / "manifests" / TICKERS)
    code, found = completeness(data_dir.archive)

    assert (code, found["untold"]) == (0, [])
    assert found["streams"][TICKERS]["instruments"]["A"]["coverage"] == 0.0


def test_a_trade_that_was_received_before_the_range_is_no_end_of_it(tape: Tape, data_dir: DataDir) -> None:
    """By a clock that is behind the exchange's; trades are of a range by the exchange's time."""
    late = list(trade(50, 1))
    late[2] = NOON_US + 47 * S
    write(tape, eth_option_trades=[tuple(late)])

    assert completeness(data_dir.root, "--from", clock(49))[0] in (0, 7)


@pytest.mark.usefixtures("tape")
def test_nothing_is_not_called_complete(data_dir: DataDir, tmp_path: Path) -> None:
    """An empty folder, a time before the tape, and one that is still to come."""
    empty = tmp_path / "empty"
    empty.mkdir()
    day_s = 86_400
    for root, arguments in [
        (empty, ("--min-coverage", "0.98")),
        (data_dir.root, ("--to", clock(-2 * day_s))),
        (data_dir.root, ("--from", clock(1e4 * day_s), "--to", clock(1e4 * day_s + 60))),
    ]:
        assert completeness(root, *arguments)[0] == 7
        assert told(root, *arguments)[-1] == "nothing to check: there are no ticks in this time"


def test_a_live_segment_names_the_one_before_it(tape: Tape, data_dir: DataDir) -> None:
    """Its predecessor is missed before it is sealed itself."""
    assert tape.write_round(batches(eth_option_tickers=[ticker(31)]), now_us=NOON_US + 9 * S).failure is None
    assert completeness(data_dir.root)[0] == 0
    (sealed,) = sealed_files(data_dir, TICKERS)
    sealed.unlink()

    code, found = completeness(data_dir.root)
    assert (code, len(found["missing_segments"])) == (1, 1)


def test_damage_of_a_live_segment_is_named(tape: Tape, data_dir: DataDir) -> None:
    """A flipped bit between commits is no torn end: rows that were acknowledged are gone."""
    for second in (40, 41):
        assert tape.write_round(batches(eth_option_tickers=[ticker(second)]), now_us=NOON_US).failure is None
    assert completeness(data_dir.root)[0] == 0
    (live,) = live_files(data_dir, TICKERS)
    flip_a_bit(live)

    code, found = completeness(data_dir.root)
    assert (code, len(found["unreadable"])) == (7, 1)
    assert str(live) in found["unreadable"][0]


@pytest.mark.usefixtures("tape")
def test_what_cannot_be_read_is_not_proven(data_dir: DataDir) -> None:
    """A damaged segment, whose rows may be what is missed; and no tape at all."""
    flip_a_bit(sealed_files(data_dir, QUOTES)[2])
    code, found = completeness(data_dir.root)
    assert code == 7
    assert len(found["unreadable"]) == 1
    assert completeness(data_dir.root / "nothing")[0] == 7


@pytest.mark.usefixtures("tape")
def test_a_manifest_is_checked_by_sha256sum_and_by_us(data_dir: DataDir, tmp_path: Path) -> None:
    """Changed, removed, and a segment that was left out of the chain are each named, offline."""
    archive(data_dir.root)
    file = tmp_path / "manifest"
    assert completeness(data_dir.root, "--manifest", str(file))[0] == 0
    checked = subprocess.run(["sha256sum", "--quiet", "-c", file], cwd=data_dir.root, check=False)
    assert checked.returncode == 0
    assert completeness(data_dir.root, "--verify", str(file)) == (0, {"said": "all as it was\n"})
    assert completeness(data_dir.root, "--verify", str(file), "--min-coverage", "0.5")[0] == 2
    chain = file.with_name("manifest.chain")
    whole = chain.read_text()
    chain.write_text(f"{whole}cut of")
    code, said = completeness(data_dir.root, "--verify", str(file))
    assert (code, "is not a chain of segments: 'cut of'" in said["said"]) == (7, True)
    chain.write_text(whole)
    paths = sealed_files(data_dir, QUOTES)
    flip_a_bit(paths[0])
    paths[1].unlink()
    chain = file.with_name("manifest.chain")
    lines = chain.read_text().splitlines(keepends=True)
    chain.write_text("".join(lines[:2] + lines[3:]))
    code, found = completeness(data_dir.root, "--verify", str(file))

    assert code == 1
    said = found["said"].splitlines()
    assert [line.rpartition(": ")[2] for line in said[:3]] == ["changed", "missing", "missing"]
    assert completeness(data_dir.root, "--verify", str(tmp_path / "none"))[0] == 7


# Decisions

ranges = st.lists(
    st.tuples(st.integers(0, 50), st.integers(1, 20)).map(lambda one: (one[0], one[0] + one[1])), max_size=8
)


@given(ranges, ranges)
def test_covered_time_is_counted_once(spans: list[tuple[int, int]], missed: list[tuple[int, int]]) -> None:
    """However ranges overlap: as if every moment were looked at."""
    apart = union(spans)
    moments = {at for a, b in apart for at in range(a, b)} - {at for a, b in missed for at in range(a, b)}
    assert covered_us(apart, missed) == len(moments)


@given(st.lists(st.tuples(st.integers(0, 50), st.booleans()), max_size=10).map(sorted))
def test_spans_of_recording(told: list[tuple[int, bool]]) -> None:
    """From a yes to the next no, never backwards."""
    spans = recorded_spans(told, 60)
    last = dict(told)  # of several words of one moment the last counts
    expected, now = set(), False
    for moment in range(60):
        now = last.get(moment, now)
        expected |= {moment} if now else set()
    assert {moment for a, b in spans for moment in range(a, b)} == expected


fates = st.lists(
    st.tuples(st.integers(1, 9), st.integers(0, 5), st.sampled_from(["open", "void", "lost", "healed"])), max_size=5
)


@given(fates, st.integers(1, 9), st.integers(0, 6))
def test_each_missing_number_has_one_word(told: list[tuple[int, int, str]], first: int, length: int) -> None:
    """The cuts cover the run once, and say of each number what its rows say."""
    rows = [Gap(TRADES, "A", "crash", status, 0, 1, a, a + more) for a, more, status in told]
    cuts = Gaps([], rows).numbers(TRADES, "A", first, first + length)
    numbers = [number for (a, b), _ in cuts for number in range(a, b + 1)]
    assert numbers == list(range(first, first + length + 1))
    for (a, b), word in cuts:
        for number in range(a, b + 1):
            said = {status for begin, more, status in told if begin <= number <= begin + more}
            best: Callable[[str], bool] = said.__contains__
            expected = next((status for status in ("void", "lost", "healed", "open") if best(status)), None)
            assert (word.status if word else None) == (None if expected == "healed" else expected)


def test_of_a_tape_that_is_broken_everywhere_some_lines_are_shown_and_the_rest_counted(data_dir: DataDir) -> None:
    """Fifty of a kind for people; --json has all."""
    write(
        tape_in(data_dir), eth_option_quotes=[quote(second, 10 * second, 10 * second - 5) for second in range(1, 60)]
    )
    lines = told(data_dir.root)
    assert len([line for line in lines if line.startswith("NOT TOLD: eth_option_quotes A")]) == 50
    assert lines[-2] == "NOT TOLD: … and 8 more: --json lists all"
    assert len(completeness(data_dir.root)[1]["untold"]) == 58
