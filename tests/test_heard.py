"""Until when a stream was whole: what each round has heard, and what is made of it after a crash."""

from pathlib import Path

import pytest

from recorder.deribit.health import Health
from recorder.heard import LONGEST_US, Heard
from recorder.lanes import RESUME_PATIENCE_US
from recorder.runtime.data_dir import DataDir
from tests.test_intake import TOP, Bench

QUOTES, TRADES, TICKERS = "eth_option_quotes", "eth_option_trades", "eth_option_tickers"
OTHER = "btc_option_quotes"
LAST_US = 1_780_000_000_000_000
S = 1_000_000


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """An intake with one book on connection 0 and one on both 1 and 2."""
    bench = Bench(tmp_path)
    for connection, name in ((0, "alone"), (1, "shared"), (2, "shared")):
        bench.intake.quote(connection, name, bench.now_us // 1000, TOP, 10, None, bench.now_us)
    bench.now_us += 20 * S
    return bench


def behind_s(bench: Bench, *heard_s: int, kind: str = "quotes") -> float:
    """How long ago a stream was whole, if each connection was last heard so long ago."""
    whole_us = bench.intake.whole_until_us(lambda number: bench.now_us - heard_s[number] * S)
    return (bench.now_us - whole_us[f"eth_option_{kind}"]) / S


def test_a_stream_is_whole_until_the_first_connection_fell_silent(bench: Bench) -> None:
    """Of two that bring the same one is enough."""
    assert behind_s(bench, 0, 1, 2) == 1
    assert behind_s(bench, 0, 9, 2) == 2
    assert behind_s(bench, 7, 1, 2) == 7


def test_who_took_a_ticker_over_late_does_not_prove_what_came_before(tmp_path: Path) -> None:
    """Two connections carry it, one dead; the other began anew, after the first had fallen silent."""
    bench = Bench(tmp_path)
    for connection in (0, 1):
        bench.ticker(connection, bench.now_us // 1000)
    bench.now_us += 2 * S
    bench.intake.disconnected(1, cause="disconnect", since_us=bench.now_us - 2 * S, detail="")
    bench.now_us += 6 * S
    bench.ticker(1, bench.now_us // 1000)
    bench.now_us += S

    assert behind_s(bench, 9, 0, kind="tickers") == 9
    assert behind_s(bench, 0, 0, kind="tickers") == 0


@pytest.mark.parametrize(("ahead_s", "step_s"), [(0, -3600), (0, 3600), (3600, -3600), (-3600, 3600)])
def test_who_flows_beside_a_dead_one_is_known_over_a_step_of_the_clock(
    tmp_path: Path, ahead_s: int, step_s: int
) -> None:
    """Two connections bring the same ticker all the time: neither their loss nor a crash has a gap."""
    bench = Bench(tmp_path)
    exchange_us = bench.now_us
    bench.now_us += ahead_s * S
    for connection in (0, 1):
        bench.ticker(connection, exchange_us // 1000)
    before_us = bench.now_us
    bench.now_us += step_s * S
    bench.intake.clock_stepped(step_s * S, before_us)
    bench.now_us += 9 * S
    heard_us = min(exchange_us, bench.now_us - 9 * S) + 5 * S
    assert bench.intake.whole_until_us(lambda _number: heard_us)[TICKERS] == heard_us
    bench.intake.disconnected(0, cause="silence", since_us=heard_us, detail="")

    assert [gap for gap in bench.rows("data_gaps") if gap["cause"] == "silence"] == []


def test_a_lost_connection_does_not_count_once_its_gap_is_told(bench: Bench) -> None:
    """Its gap says from when; the others go on."""
    bench.intake.disconnected(0, cause="silence", since_us=bench.now_us - 7 * S, detail="")

    assert behind_s(bench, 7, 1, 2) == 1


def test_a_book_that_another_is_ahead_of_is_whole_until_its_own_last_change(bench: Bench) -> None:
    """Whoever carries it may have been dead, though it was heard again since; a stop does not wait any more."""
    bench.intake.quote(1, "alone", bench.now_us // 1000, TOP, 14, None, bench.now_us)
    assert behind_s(bench, 0, 0, 0) == 20
    bench.intake.all_left()
    (gap,) = bench.rows("data_gaps")

    assert behind_s(bench, 0, 0, 0) == 0
    assert (gap["instrument"], gap["first_missing"], gap["last_missing"]) == ("alone", 11, 14)
    assert int(gap["started_at"].timestamp() * 1e6) == bench.now_us - 20 * S


def test_a_stream_is_not_whole_where_something_granted_has_brought_nothing(bench: Bench) -> None:
    """From its grant on, until a gap of its own tells it or it comes."""
    none: frozenset[str] = frozenset()
    late = {"late", "never"}
    bench.intake.subscribed(
        0, books=late, tickers=none, refused=none, trades=False, lifecycle=False, exchange_us=None
    )
    bench.now_us += 4 * S
    assert behind_s(bench, 0, 0, 0) == 4
    bench.intake.quote(0, "late", bench.now_us // 1000, TOP, 10, None, bench.now_us)
    assert behind_s(bench, 0, 0, 0) == 4
    bench.now_us += RESUME_PATIENCE_US
    bench.intake.tick()

    assert behind_s(bench, 0, 0, 0) == 0


@pytest.fixture
def data_dir(tmp_path: Path) -> DataDir:
    return DataDir(tmp_path)


def test_without_a_line_the_last_row_is_believed(data_dir: DataDir) -> None:
    """A tape of an earlier version has none, nor has a stream that was not recorded since."""
    assert Heard(data_dir).whole_until_us(QUOTES, LAST_US) == LAST_US
    Heard(data_dir).save({QUOTES: LAST_US - 5 * S})

    assert Heard(data_dir).whole_until_us(TRADES, LAST_US) == LAST_US


def test_what_fell_silent_before_the_last_row_counts(data_dir: DataDir) -> None:
    """The newest line of a run tells it; what was heard later than the last row does not reach beyond that."""
    heard = Heard(data_dir)
    for behind_us in (9 * S, 5 * S):
        heard.save({QUOTES: LAST_US - behind_us, TRADES: LAST_US + S})

    assert Heard(data_dir).whole_until_us(QUOTES, LAST_US) == LAST_US - 5 * S
    assert Heard(data_dir).whole_until_us(TRADES, LAST_US) == LAST_US


def test_a_line_that_a_power_loss_left_long_behind_makes_no_endless_gap(data_dir: DataDir) -> None:
    """It is not fsynced: no connection can have been silent for longer than it takes to notice."""
    Heard(data_dir).save({QUOTES: LAST_US - 3600 * S})

    assert Heard(data_dir).whole_until_us(QUOTES, LAST_US) == LAST_US - LONGEST_US


def test_a_damaged_line_says_nothing_and_so_the_longest_silence_is_told(data_dir: DataDir) -> None:
    """Each bit of it flipped, and each length that it may be cut to."""
    heard = Heard(data_dir)
    heard.save({QUOTES: LAST_US})
    file = data_dir.state / "heard.json"
    line = file.read_bytes()
    text = len(line.rstrip())
    damaged = [line[:at] + bytes([line[at] ^ 1 << bit]) + line[at + 1 :] for at in range(text) for bit in range(8)]
    damaged += [line[:size] for size in range(text)]
    for one in damaged:
        file.write_bytes(one)
        assert Heard(data_dir).whole_until_us(QUOTES, LAST_US) == LAST_US - LONGEST_US, one


def test_what_other_markets_left_is_kept(data_dir: DataDir) -> None:
    """One tape may hold several, recorded by turns."""
    Heard(data_dir).save({OTHER: LAST_US - 7 * S})
    heard = Heard(data_dir)
    for _ in range(2):
        heard.save({QUOTES: LAST_US})
    assert Heard(data_dir).whole_until_us(OTHER, LAST_US) == LAST_US - 7 * S
    (data_dir.state / "heard.json").write_bytes(b"?")
    Heard(data_dir).save({QUOTES: LAST_US})

    assert Heard(data_dir).whole_until_us(OTHER, LAST_US) == LAST_US - LONGEST_US
    assert Heard(data_dir).whole_until_us(QUOTES, LAST_US) == LAST_US


def test_a_line_that_was_removed_is_made_anew(data_dir: DataDir) -> None:
    """One round says so, the next has it."""
    heard = Heard(data_dir)
    heard.save({QUOTES: LAST_US})
    (data_dir.state / "heard.json").unlink()
    with pytest.raises(FileNotFoundError):
        heard.save({QUOTES: LAST_US})
    heard.save({QUOTES: LAST_US - S})

    assert Heard(data_dir).whole_until_us(QUOTES, LAST_US) == LAST_US - S


def test_a_heartbeat_proves_what_was_sent_before_it() -> None:
    """Of quiet options nothing else may come for minutes; what is read late was sent so much earlier."""
    health = Health(began_us=LAST_US, last_message_us=LAST_US + S)

    assert health.heard_until_us(LAST_US + 60 * S) == LAST_US + S
    assert health.heard_until_us(LAST_US + 60 * S, 10.0) == LAST_US + 50 * S
    assert health.heard_until_us(LAST_US + 60 * S, 59.5) == LAST_US + S
    health.lag_us = 2 * S
    assert health.heard_until_us(LAST_US + 60 * S, 10.0) == LAST_US + 48 * S
    health.late_us = 3 * S  # a book's change came later still
    assert health.heard_until_us(LAST_US + 60 * S, 10.0) == LAST_US + 47 * S


def test_a_line_is_written_over_in_one_piece(data_dir: DataDir) -> None:
    """A shorter one leaves nothing of a longer one."""
    heard = Heard(data_dir)
    heard.save({QUOTES: LAST_US, TRADES: LAST_US})
    heard.save({QUOTES: LAST_US - S})

    assert Heard(data_dir).whole_until_us(QUOTES, LAST_US) == LAST_US - S
    assert Heard(data_dir).whole_until_us(TRADES, LAST_US) == LAST_US
