"""What a start knows of the tape, from its cache and from the segments alike."""

import itertools
import json
import shutil
import zlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from recorder.gaps import Gap
from recorder.runtime.data_dir import DataDir
from recorder.segments.chain import End
from recorder.segments.layout import sealed_files
from recorder.segments.schemas import Row
from recorder.tape_state import TapeState, carry_over, first_row_us
from tests.fix_archive import archive, flip_a_bit, parts
from tests.segment_tools import NOON_US, batches, tape_in

TRADES = "eth_option_trades"
HOUR_US = 3_600_000_000


def trade(seq: int) -> tuple[Any, ...]:
    return (NOON_US, "A", NOON_US + seq, str(seq), seq, 0.1, 1.0, "buy", *[None] * 10, "live")


def gap(state_no: int, status: str, first: int, last: int) -> tuple[Any, ...]:
    now_us = NOON_US + state_no
    return (now_us, "A", now_us, "g", state_no, TRADES, "sequence_break", status, now_us, None, first, last, None)


def test_a_gap_is_open_until_its_last_number_has_a_fate(data_dir: DataDir) -> None:
    """What is void stays decided, from the cache and rebuilt without it; what is open is taken up."""
    tape = tape_in(data_dir)
    tape.write_round(
        batches(data_gaps=[gap(0, "open", 2, 4)], eth_option_trades=[trade(1), trade(5)]), now_us=NOON_US
    )
    tape.seal_all()
    state = TapeState(data_dir, TRADES)
    assert [one.gap_id for one in state.open_gaps] == ["g"]
    assert state.had.by_instrument["A"].holes == [(2, 4)]
    state.save()
    fates = [gap(1, "healed", 2, 2), gap(2, "void", 3, 3), gap(3, "healed", 4, 4)]
    tape.write_round(batches(data_gaps=fates, eth_option_trades=[trade(2), trade(4)]), now_us=NOON_US)
    tape.seal_all()

    for _ in ("with the cache", "without it"):
        again = TapeState(data_dir, TRADES)
        assert again.open_gaps == []
        assert again.had.by_instrument["A"].holes == []
        (data_dir.state / "trades.arrow").unlink(missing_ok=True)
    assert len(sealed_files(data_dir, TRADES)) == 2


def test_a_damaged_cache_is_rebuilt(data_dir: DataDir) -> None:
    """It is a cache of the tape: whatever its bytes, the segments tell the same."""
    tape = tape_in(data_dir)
    tape.write_round(batches(eth_option_trades=[trade(1), trade(3)]), now_us=NOON_US)
    tape.seal_all()
    TapeState(data_dir, TRADES).save()
    cache = data_dir.state / "trades.arrow"
    whole = cache.read_bytes()
    for position in range(0, len(whole), 97):
        cache.write_bytes(whole[:position] + bytes([whole[position] ^ 8]) + whole[position + 1 :])
        assert TapeState(data_dir, TRADES).had.by_instrument["A"].holes == [(2, 2)]


def sealed(data_dir: DataDir, **rows: list[Row]) -> None:
    """One round, sealed, of a run of its own."""
    tape = tape_in(data_dir)
    tape.write_round(batches(**rows), now_us=NOON_US)
    tape.seal_all()


def at(row: tuple[Any, ...], received_us: int) -> tuple[Any, ...]:
    return (*row[:2], received_us, *row[3:])


def known(state: TapeState) -> tuple[list[Gap], dict[str, list[tuple[int, int]]]]:
    return state.open_gaps, {name: had.holes for name, had in state.had.by_instrument.items()}


def test_what_is_sealed_after_a_step_backwards_is_had(data_dir: DataDir) -> None:
    """Segments younger than the cache count, though their names are older than all that is in it."""
    sealed(data_dir, data_gaps=[gap(0, "open", 2, 2)], eth_option_trades=[trade(1), trade(3)])
    TapeState(data_dir, TRADES).save()
    earlier_us = NOON_US - HOUR_US
    sealed(
        data_dir,
        data_gaps=[at(gap(1, "healed", 2, 2), earlier_us)],
        eth_option_trades=[at(trade(2), earlier_us), at(trade(7), earlier_us + 1)],
    )

    state = TapeState(data_dir, TRADES)
    assert state.open_gaps == []
    assert state.had.by_instrument["A"].holes == [(4, 6)]


HISTORIES = {
    "settled in runs": [gap(0, "open", 2, 4), gap(1, "healed", 2, 2), gap(2, "void", 3, 3), gap(3, "healed", 4, 4)],
    "ended, then settled": [gap(0, "open", 2, 2), gap(1, "open", 2, 2), gap(2, "lost", 2, 2)],
    "in time": [(*gap(n, status, 0, 0)[:10], None, None, None) for n, status in enumerate(["open", "lost"])],
    "still open": [gap(0, "open", 2, 4), gap(1, "open", 2, 4), gap(2, "void", 2, 2)],
}


@pytest.mark.parametrize("history", HISTORIES)
@pytest.mark.parametrize("saved", [False, True], ids=["at once", "from start to start"])
def test_the_order_of_folding_makes_no_difference(data_dir: DataDir, history: str, *, saved: bool) -> None:
    """Whichever segment comes first, the same gaps are open, and the next state of one has a number of its own."""
    rows = HISTORIES[history]
    sealed(data_dir, eth_option_trades=[trade(1), trade(5)])
    for n, row in enumerate(rows):
        sealed(data_dir, data_gaps=[at(row, NOON_US + n)])
    paths = {path: stream for stream in ("data_gaps", TRADES) for path in sealed_files(data_dir, stream)}
    folder = data_dir.root / "away"
    folder.mkdir()
    away = [(path.rename(folder / f"{n}"), path) for n, path in enumerate(paths)]
    results = []
    for order in itertools.permutations(away):
        shutil.rmtree(data_dir.state, ignore_errors=True)
        state = TapeState(data_dir, TRADES)
        for where, path in order:
            shutil.copy(where, path)
            if saved:
                state = TapeState(data_dir, TRADES)
                state.save()
            else:
                state.fold(paths[path], path)
        results.append(known(state))
        for _, path in away:
            path.unlink()

    assert all(result == results[0] for result in results)
    open_gaps, holes = results[0]
    assert [(one.state_no, one.opened_us) for one in open_gaps] == ([(2, NOON_US)] if history == "still open" else [])
    assert holes["A"] == {"settled in runs": [(2, 2), (4, 4)], "in time": [(2, 4)]}.get(
        history, [(3, 4)]
    )  # fmt: skip


def test_a_copy_of_a_segment_tells_nothing_new(data_dir: DataDir) -> None:
    """A gap that was settled stays so when the segment that opened it lies there once more, or under another name."""
    sealed(data_dir, data_gaps=[gap(0, "open", 2, 2)], eth_option_trades=[trade(1)])
    sealed(data_dir, data_gaps=[at(gap(1, "lost", 2, 2), NOON_US + 9)])
    TapeState(data_dir, TRADES).save()
    first = sealed_files(data_dir, "data_gaps")[0]
    shutil.copy(first, first.with_name("copy.arrow"))
    for _ in ("twice there", "renamed"):
        state = TapeState(data_dir, TRADES)
        state.save()
        assert state.open_gaps == []
        first.unlink(missing_ok=True)


def content(data_dir: DataDir) -> dict[str, Any]:
    table = pa.ipc.open_file(data_dir.state / "trades.arrow").read_all()
    return dict(json.loads(table.schema.metadata[b"state"]))


def test_the_cache_is_bounded_by_what_exists(data_dir: DataDir) -> None:
    """Files that are gone and gaps of which all is told are not remembered; what they held is."""
    for n in range(3):
        sealed(data_dir, eth_option_trades=[at(trade(1 + 2 * n), NOON_US + n)])
    sealed(data_dir, data_gaps=[gap(0, "open", 2, 2)])
    sealed(data_dir, data_gaps=[at(gap(1, "lost", 2, 2), NOON_US + 9)])
    TapeState(data_dir, TRADES).save()
    pruned, *left = sealed_files(data_dir, TRADES)
    pruned.unlink()
    state = TapeState(data_dir, TRADES)
    state.save()

    assert list(content(data_dir)["folded"][TRADES]) == [path.name for path in left]
    assert content(data_dir)["gaps"] == {}
    assert TapeState(data_dir, TRADES).had.by_instrument["A"].first == 1


def test_a_cache_of_an_older_program_is_rebuilt(data_dir: DataDir) -> None:
    """One that is whole, but tells something else, is as good as none."""
    sealed(data_dir, eth_option_trades=[trade(1), trade(3)])
    TapeState(data_dir, TRADES).save()
    cache = data_dir.state / "trades.arrow"
    table = pa.ipc.open_file(cache.read_bytes()).read_all()
    text = json.dumps({"trades_stream": TRADES, "through": {TRADES: "9"}, "decided": [], "open_gaps": []})
    rows: list[dict[str, Any]] = []
    metadata = {"state": text, "crc32": crc32_of(text, rows)}
    with pa.ipc.new_file(cache, table.schema.with_metadata(metadata)) as writer:
        writer.write_table(table.slice(0, 0).replace_schema_metadata(metadata))

    assert TapeState(data_dir, TRADES).had.by_instrument["A"].holes == [(2, 2)]


def crc32_of(text: str, rows: list[dict[str, Any]]) -> str:
    return f"{zlib.crc32((text + json.dumps(rows)).encode()):08x}"


def test_a_segment_that_cannot_be_folded_is_named_at_every_start(data_dir: DataDir) -> None:
    """It is not passed over for good: when it is mended, or in its place, it counts."""
    sealed(data_dir, eth_option_trades=[trade(1)])
    sealed(data_dir, eth_option_trades=[at(trade(2), NOON_US + 9)])
    first, second = sealed_files(data_dir, TRADES)
    whole = first.read_bytes()
    first.write_bytes(whole[:30])
    strange = Path(shutil.copy(second, data_dir.root / "data_gaps.arrow"))
    folder = data_dir.root / "data_gaps" / "date=2025-11-22"
    folder.mkdir(parents=True)
    strange.rename(folder / "of-trades.arrow")
    for _ in range(2):
        state = TapeState(data_dir, TRADES)
        state.save()
        assert sorted(path.name for path in state.damaged) == sorted([first.name, "of-trades.arrow"])
        assert state.had.by_instrument["A"].first == 2
    first.write_bytes(whole)

    assert TapeState(data_dir, TRADES).had.by_instrument["A"].first == 1


@pytest.mark.parametrize(
    ("started_us", "ended_us", "last_us", "expected"),
    [
        pytest.param(90, None, 150, (90, None), id="before now: as it is"),
        pytest.param(150, None, 150, (70, None), id="at the last row: where that is sure"),
        pytest.param(170, None, 150, (70, None), id="after the last row: the same"),
        pytest.param(120, None, 150, (40, None), id="before the last row: as long before"),
        pytest.param(120, 140, 150, (40, 100), id="its end is not in the future"),
        pytest.param(90, 140, 150, (90, 100), id="its end alone"),
        pytest.param(150, None, 70, (70, None), id="the last row is old"),
        pytest.param(150, None, None, (70, None), id="no row"),
    ],
)
def test_a_gap_told_by_a_clock_since_set_back_is_told_in_the_time_of_now(
    started_us: int, ended_us: int | None, last_us: int | None, expected: tuple[int, int | None]
) -> None:
    """It begins no later than what it hides, and never after now."""
    one = Gap("g", TRADES, None, "stopped", started_us, ended_us, opened_us=started_us + 5)
    carry_over(one, End("1", "2025", last_us), since_us=70, now_us=100)

    assert (one.started_us, one.ended_us) == expected
    assert one.opened_us == min(started_us + 5, 100)


@pytest.mark.parametrize(
    ("exchange_us", "began_us"),
    [
        pytest.param(NOON_US - HOUR_US, NOON_US - HOUR_US, id="an hour ahead"),
        pytest.param(NOON_US - 30_000_000, NOON_US, id="a quiet half minute"),
        pytest.param(NOON_US + HOUR_US, NOON_US, id="behind"),
    ],
)
def test_recording_began_by_the_exchange_where_the_clock_was_ahead(
    data_dir: DataDir, exchange_us: int, began_us: int
) -> None:
    """Else what traded in the first hour of a tape would count as older than the tape."""
    sealed(data_dir, eth_option_trades=[(exchange_us, *at(trade(1), NOON_US)[1:])])
    sealed(data_dir, eth_option_instruments=[(NOON_US, "A", NOON_US + 5, *[None] * 14)])

    assert first_row_us(data_dir, "eth_option_") == began_us
    assert first_row_us(data_dir, "btc_option_") is None


def test_recording_began_as_the_name_says_where_the_segment_cannot_be_read(data_dir: DataDir) -> None:
    """A damaged first segment costs nothing but its exchange's time."""
    sealed(data_dir, eth_option_trades=[trade(1)])
    (path,) = sealed_files(data_dir, TRADES)
    path.write_bytes(b"")
    assert first_row_us(data_dir, "eth_option_") == NOON_US + 1
    path.unlink()
    path.symlink_to("nowhere")

    assert first_row_us(data_dir, "eth_option_") is None


def test_what_was_pruned_comes_back_from_the_archive(data_dir: DataDir) -> None:
    """Without the cache, and without the segments that it was made from, the archive beside them tells the same."""
    tape = tape_in(data_dir)
    rounds: list[dict[str, list[Row]]] = [
        {"eth_option_trades": [trade(1), trade(2), trade(5)], "data_gaps": [gap(0, "open", 3, 4)]},
        {"eth_option_trades": [trade(6), trade(9)], "data_gaps": [gap(1, "void", 3, 3)]},
        {"eth_option_trades": [trade(10)]},
    ]
    for rows in rounds:
        tape.write_round(batches(**rows), now_us=NOON_US)
        tape.seal_all()
    before = TapeState(data_dir, TRADES)
    archive(data_dir.root)
    for stream in (TRADES, "data_gaps"):
        for path in sealed_files(data_dir, stream)[:2]:
            path.unlink()
    after = TapeState(data_dir, TRADES)

    assert after.had.by_instrument == before.had.by_instrument
    assert after.open_gaps == before.open_gaps
    assert len(before.open_gaps) == 1
    assert after.damaged == []
    for part in parts(data_dir.root):
        flip_a_bit(part)
    assert len(TapeState(data_dir, TRADES).damaged) == 2
