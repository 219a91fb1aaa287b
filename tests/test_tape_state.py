"""What a start knows of the tape, from its cache and from the segments alike."""

from typing import Any

from recorder.runtime.data_dir import DataDir
from recorder.segments.layout import sealed_files
from recorder.tape_state import TapeState
from tests.segment_tools import NOON_US, batches, tape_in

TRADES = "eth_option_trades"


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
