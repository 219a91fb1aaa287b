"""The recorder from the socket to the disk, as a process against a simulated exchange, judged by the oracle."""

import json
import os
import signal
import socket
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow.dataset as ds
import pytest

import analysis
from recorder.runtime.data_dir import DataDir
from recorder.segments.layout import live_files, sealed_files
from tests.fix_programs import Programs, until
from tests.oracle import QUOTES, TICKERS, Expected, compare, expected, judge, sent, table_rows, tape_rows


def gaps(data_dir: Path) -> list[dict[str, Any]]:
    """The newest state of every gap."""
    with analysis.open(data_dir) as con:
        rows = con.sql("SELECT * FROM gaps ORDER BY started_at, stream").to_arrow_table().to_pylist()
    return list(rows)


def read_capture(path: Path, currency: str) -> Expected:
    """Read a captured file by itself: what a recorder of one currency should make of it."""
    messages = []
    for line in path.read_text().splitlines():
        stamp, _, text = line.partition(": ")
        if not stamp.replace(".", "").isdigit():
            continue
        message = json.loads(text)
        if message.get("method") == "subscription" and message["params"]["channel"].split(".")[1].startswith(
            currency
        ):
            messages.append((1, message["params"]["channel"], message["params"]["data"]))
    return expected(messages)


def test_a_captured_production_feed_is_recorded_to_the_last_value(
    programs: Programs, samples: Path, tmp_path: Path
) -> None:
    """Thirty seconds of the real exchange, ETH and BTC: 46 quotes and 89 tickers, every value equal, no gap."""
    capture = samples / "production-2021-07-22.ws.txt"
    tape = tmp_path / "tape"
    quotes = tickers = 0
    for currency in ("ETH", "BTC"):
        want = read_capture(capture, currency)
        exchange, url = programs.simulate("--capture", capture, "--speed", 100)
        recorder = programs.record(url, tape, "--currency", currency, "--top-n-instruments", 0)
        prefix = f"{currency.lower()}_option"
        until_rows(tape, f"{prefix}_tickers", len(want.tickers))
        assert recorder.stop() == 0
        exchange.stop()
        for stream, verdict in judge(want, tape, prefix).items():
            assert verdict.same, f"{stream}: {verdict}"
        quotes += len(tape_rows(tape, f"{prefix}_quotes", QUOTES))
        tickers += len(tape_rows(tape, f"{prefix}_tickers", TICKERS))

    assert (quotes, tickers) == (46, 89)
    assert {gap["cause"] for gap in gaps(tape)} == {"stopped"}
    empty = [row for row in tape_rows(tape, "eth_option_quotes", QUOTES) if row[1] == "ETH-27AUG21-4000-P"]
    assert [row[2:6] for row in empty] == [(None, None, None, None)]


def until_rows(data_dir: Path, stream: str, rows: int) -> None:
    until(lambda: count(data_dir, stream) >= rows, f"{rows} rows of {stream}")


def count(data_dir: Path, stream: str) -> int:
    """Rows of a stream, live ones included."""
    with analysis.open(data_dir) as con:
        if (stream,) not in con.sql("SHOW TABLES").fetchall():
            return 0
        return int(con.sql(f"SELECT count(*) FROM {stream}").fetchall()[0][0])


def test_every_message_sent_is_on_the_tape_once(programs: Programs, tmp_path: Path) -> None:
    """50 options at 2,000 messages a second: nothing lost, nothing doubled, every value equal."""
    journal, tape = tmp_path / "journal", tmp_path / "tape"
    exchange, url = programs.simulate("--instruments", 50, "--rate", 2000, "--seed", 5, "--journal", journal)
    recorder = programs.record(url, tape, "--for", 8, "--segment-max-age-sec", 2)
    assert recorder.wait() == 0
    exchange.stop()
    want = expected(sent(journal))

    assert len(want.quotes) + len(want.tickers) > 8000
    for stream, verdict in judge(want, tape).items():
        assert verdict.same, f"{stream}: {verdict}"
    assert {gap["cause"] for gap in gaps(tape)} == {"stopped"}


def test_rows_are_seen_while_the_recorder_runs(programs: Programs, tmp_path: Path) -> None:
    """SQL over the live segment returns rows younger than FLUSH_INTERVAL_SEC + 1 s."""
    _, url = programs.simulate("--instruments", 20, "--rate", 500)
    programs.record(url, tmp_path / "tape")
    query = "SELECT epoch_us(now()) - epoch_us(max(received_at)) FROM eth_option_quotes"

    def age_us() -> int:
        with analysis.open(tmp_path / "tape") as con:
            return int(con.execute(query).fetchall()[0][0] or 10**9)

    until(lambda: count(tmp_path / "tape", "eth_option_quotes") > 100, "quotes")
    assert min(age_us() for _ in range(5)) < 2_000_000


def test_kill_9_loses_nothing_flushed_and_is_told_as_a_gap(programs: Programs, tmp_path: Path) -> None:
    """After a crash all rows seen before are there, stock readers read them, and a gap covers the hole."""
    journal, tape = tmp_path / "journal", tmp_path / "tape"
    exchange, url = programs.simulate("--instruments", 30, "--rate", 1000, "--seed", 6, "--journal", journal)
    first = programs.record(url, tape, "--flush-interval-sec", 0.2, "--segment-max-age-sec", 2)
    until(lambda: count(tape, "eth_option_quotes") > 3000, "quotes")
    with analysis.open(tape) as con:
        seen = table_rows(con.sql(f"SELECT {', '.join(QUOTES)}, received_at FROM eth_option_quotes").to_arrow_table())
    first.kill()
    second = programs.record(url, tape)
    before = count(tape, "eth_option_quotes")
    until(lambda: count(tape, "eth_option_quotes") > before + 500, "more quotes")
    assert second.stop() == 0
    exchange.stop()

    found = tape_rows(tape, "eth_option_quotes", [*QUOTES, "received_at"])
    assert not compare(seen, found).lost
    # Nothing was invented: every change id and top of book was sent. (The oracle sees one chain, the tape two runs.)
    books = {(row[1], row[8]): row[2:6] for row in expected(sent(journal)).quotes}
    assert all(books[row[1], row[8]] == row[2:6] for row in found if (row[1], row[8]) in books)
    assert len({(row[1], row[8]) for row in found} - books.keys()) == 0
    crash = [gap for gap in gaps(tape) if gap["cause"] == "crash" and gap["stream"] == "eth_option_quotes"]
    assert [gap["status"] for gap in crash] == ["lost"]
    stamps = sorted(row[-1] for row in found)
    holes = sorted(((b - a, a, b) for a, b in pairwise(stamps)), reverse=True)
    _, start, end = holes[0]
    assert int(crash[0]["started_at"].timestamp() * 1e6) <= start + 1
    assert int(crash[0]["ended_at"].timestamp() * 1e6) >= end - 1

    sealed = tape / "eth_option_quotes"
    assert pl.scan_ipc(sealed).select(pl.len()).collect().item() == len(found)
    dataset = ds.dataset(sealed, format="ipc")
    assert dataset.count_rows() == len(found)
    assert duckdb.execute("SELECT count(*) FROM dataset").fetchall() == [(len(found),)]
    assert programs.run("recorder", "doctor", "--data-dir", tape).process.returncode == 0


def test_a_stop_leaves_a_gap_that_the_next_start_closes(programs: Programs, tmp_path: Path) -> None:
    """From the stop to the first new rows quotes and tickers are told as lost; trades stay open to be fetched."""
    _, url = programs.simulate("--instruments", 10, "--rate", 200)
    tape = tmp_path / "tape"
    for _run in range(2):
        assert programs.record(url, tape, "--for", 2).wait() == 0
    states = {(gap["stream"], gap["status"], gap["ended_at"] is None) for gap in gaps(tape)}

    assert states == {
        ("eth_option_quotes", "lost", False),
        ("eth_option_tickers", "lost", False),
        ("eth_option_trades", "open", False),
        ("eth_option_quotes", "open", True),
        ("eth_option_tickers", "open", True),
        ("eth_option_trades", "open", True),
    }


@pytest.mark.fault(11)
def test_a_lost_connection_is_a_gap_and_recording_goes_on(programs: Programs, tmp_path: Path) -> None:
    """After a disconnect the books are taken up anew, no change id comes twice, and the hole is told."""
    journal, tape = tmp_path / "journal", tmp_path / "tape"
    exchange, url = programs.simulate(
        "--instruments", 20, "--rate", 400, "--faults", "disconnect:every=3", "--journal", journal
    )
    recorder = programs.record(url, tape)
    recorder.until_event("subscribed", 2)
    until(lambda: any(gap["status"] == "lost" for gap in gaps(tape)), "the gap's end")
    assert recorder.stop() == 0
    exchange.stop()
    rows = tape_rows(tape, "eth_option_quotes", ["instrument", "change_id", "prev_change_id", "received_at"])
    told = [gap for gap in gaps(tape) if gap["cause"] == "disconnect"]

    # A book that was not back yet when the connection was lost once more has one of its own.
    of_all = {gap["stream"] for gap in told if gap["instrument"] is None}
    assert of_all == {f"eth_option_{kind}" for kind in ("quotes", "trades", "tickers")}
    assert len({row[:2] for row in rows}) == len(rows)
    assert unexplained_holes(rows, gaps(tape)) == []


def unexplained_holes(rows: list[tuple[Any, ...]], told: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """Holes in the chain of (instrument, change_id, prev_change_id, received_at) that no gap row touches."""
    spans = [
        (
            gap["instrument"],
            int(gap["started_at"].timestamp() * 1e6),
            int(gap["ended_at"].timestamp() * 1e6) if gap["ended_at"] else 2**62,
        )
        for gap in told
        if gap["stream"].endswith("quotes")
    ]
    newest: dict[str, tuple[int, int]] = {}
    bad = []
    for name, change_id, prev, received in sorted(rows, key=lambda row: (row[0], row[3])):
        if name in newest:
            last_id, last_received = newest[name]
            hole = prev is None or prev > last_id
            if hole and not any(
                instrument in (None, name) and start <= received and end >= last_received
                for instrument, start, end in spans
            ):
                bad.append((name, last_id, prev, received))
        newest[name] = (change_id, received)
    return bad


@pytest.mark.fault(12)
def test_a_break_in_one_book_is_told_and_mended_alone(programs: Programs, tmp_path: Path) -> None:
    """A change that the exchange skips opens a gap for that instrument only; a new snapshot ends it."""
    tape = tmp_path / "tape"
    exchange, url = programs.simulate("--instruments", 20, "--rate", 400, "--faults", "gap:every=1", "--seed", 3)
    recorder = programs.record(url, tape)
    until(lambda: len([g for g in gaps(tape) if g["status"] == "lost"]) >= 3, "three mended breaks")
    assert recorder.stop() == 0
    exchange.stop()
    told = [gap for gap in gaps(tape) if gap["cause"] == "sequence_break"]
    rows = tape_rows(tape, "eth_option_quotes", ["instrument", "change_id", "prev_change_id", "received_at"])

    assert {gap["stream"] for gap in told} == {"eth_option_quotes"}
    assert all(gap["instrument"] and gap["first_missing"] <= gap["last_missing"] for gap in told)
    assert unexplained_holes(rows, gaps(tape)) == []
    assert len(recorder.events("subscribed")) == 1


@pytest.mark.fault(12, 19)
def test_malformed_messages_are_kept_aside_and_recording_goes_on(programs: Programs, tmp_path: Path) -> None:
    """What cannot be understood lies in rejected/ with the reason; the rest is recorded, the hole told."""
    journal, tape = tmp_path / "journal", tmp_path / "tape"
    exchange, url = programs.simulate(
        "--instruments", 20, "--rate", 400, "--faults", "malformed:every=0.3", "--journal", journal
    )
    recorder = programs.record(url, tape, "--for", 6)
    assert recorder.wait() == 0
    exchange.stop()
    lines = [json.loads(line) for path in (tape / "rejected").iterdir() for line in path.read_text().splitlines()]

    assert len(lines) >= 5
    assert all(line["reason"] and line["frame"] for line in lines)
    assert recorder.events("message.rejected")
    assert "rejected" in {gap["cause"] for gap in gaps(tape)}
    assert count(tape, "eth_option_tickers") > 500


def test_no_pages_of_2_mb_are_taken(programs: Programs, tmp_path: Path) -> None:
    """A recorder that runs for weeks does not grow by a huge page for a few kB now and then."""
    _, url = programs.simulate("--instruments", 5, "--rate", 20)
    recorder = programs.record(url, tmp_path / "tape")
    status = Path(f"/proc/{recorder.process.pid}/status")
    if not status.exists() or "THP_enabled" not in status.read_text():
        pytest.skip("needs a Linux that tells it")

    assert "THP_enabled:\t0\n" in status.read_text()


def test_silence_is_noticed_and_said(programs: Programs, tmp_path: Path) -> None:
    """A warning comes after ten seconds without any tick, while the socket stays open."""
    _, url = programs.simulate("--instruments", 5, "--rate", 50, "--faults", "silence:at=2,for=60")
    recorder = programs.record(url, tmp_path / "tape")

    assert recorder.until_event("feed.quiet")["seconds_without_tick"] >= 10


def test_without_a_network_each_attempt_is_one_line_and_it_keeps_trying(programs: Programs, tmp_path: Path) -> None:
    """Nobody listens: one line an attempt with growing delays; a signal still ends it with 0."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"ws://127.0.0.1:{free.getsockname()[1]}/ws/api/v2"
    recorder = programs.start("recorder", "record", "--deribit-ws-url", url, "--data-dir", tmp_path / "tape")
    recorder.until_event("exchange.unreachable", 3)

    delays = [event["retry_in_s"] for event in recorder.events("exchange.unreachable")]
    assert [round(delay) for delay in delays[:3]] == [1, 2, 4]
    assert recorder.stop() == 0


def test_an_exchange_that_is_not_reached_in_time_is_exit_code_3(programs: Programs, tmp_path: Path) -> None:
    """With --connect-timeout the recorder gives up and says so."""
    recorder = programs.run(
        "recorder", "record", "--deribit-ws-url", "ws://127.0.0.1:9/ws/api/v2", "--data-dir", tmp_path / "tape",
        "--connect-timeout", 1,
    )  # fmt: skip

    assert recorder.process.returncode == 3
    assert "was not reached within 1 s" in recorder.err.splitlines()[-1]


def test_a_secret_in_the_url_is_in_no_log_and_in_no_file(programs: Programs, tmp_path: Path) -> None:
    """Neither while the exchange is there, nor after it has gone, nor where it is never reached."""
    exchange, url = programs.simulate("--instruments", 5, "--rate", 100)
    tape = tmp_path / "tape"
    secret = {"DERIBIT_WS_URL": url.replace("://", "://me:s3cr3t@") + "?key=s3cr3t", "DATA_DIR": str(tape)}
    recorder = programs.start("recorder", "record", **secret)
    recorder.until_event("subscribed")
    until((tape / "state" / "universe.json").exists, "the remembered list")
    exchange.kill()
    lost = recorder.until_event("exchange.lost")
    recorder.until_event("exchange.unreachable")
    assert recorder.stop() == 0
    late = programs.run("recorder", "record", "--connect-timeout", 1, **secret)

    assert late.process.returncode == 3
    shown = url.replace("://", "://***@") + "?***"
    assert lost["url"] == shown
    assert late.err.splitlines()[-1].startswith(f"error: {shown} was not reached within 1 s")
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path for path in files if b"s3cr3t" in path.read_bytes()] == []


def test_sighup_seals_now(programs: Programs, tmp_path: Path) -> None:
    """After SIGHUP what was live is sealed, and recording goes on."""
    _, url = programs.simulate("--instruments", 5, "--rate", 100)
    recorder = programs.record(url, tmp_path / "tape")
    data_dir = DataDir(tmp_path / "tape")
    until(lambda: live_files(data_dir, "eth_option_quotes"), "a live segment")
    recorder.process.send_signal(signal.SIGHUP)

    until(lambda: sealed_files(data_dir, "eth_option_quotes"), "a sealed segment")
    assert recorder.process.poll() is None


def test_a_second_signal_ends_at_once_with_130(programs: Programs, tmp_path: Path) -> None:
    """Whoever asks twice does not wait."""
    _, url = programs.simulate("--instruments", 5, "--rate", 100)
    recorder = programs.record(url, tmp_path / "tape")
    os.kill(recorder.process.pid, signal.SIGSTOP)
    for number in (signal.SIGTERM, signal.SIGINT):
        recorder.process.send_signal(number)
    os.kill(recorder.process.pid, signal.SIGCONT)

    assert recorder.wait() == 130


@pytest.mark.parametrize(
    ("arguments", "environment", "code", "says"),
    [
        (["--flush-intervall-sec", "1"], {}, 2, "unrecognized arguments"),
        (["--deribit-url", "ws://me:s3cr3t@host/x"], {}, 2, "unrecognized arguments: --deribit-url ws://***@host/x"),
        (["--top-n-instruments", "many"], {}, 2, "TOP_N_INSTRUMENTS=many: expected int"),
        ([], {"SEGMENT_MAX_MB": "-1"}, 2, "SEGMENT_MAX_MB=-1: expected float > 0.0"),
        (["--data-dir", "/dev/null/tape"], {}, 5, "cannot write to the data directory"),
    ],
)
def test_bad_input_is_one_line_and_a_documented_exit_code(
    programs: Programs, arguments: list[str], environment: dict[str, str], code: int, says: str
) -> None:
    """What is wrong, and what to do, in a line each; no traceback."""
    recorder = programs.run("recorder", "record", *arguments, **environment)

    assert recorder.process.returncode == code
    assert says in recorder.err
    assert len(recorder.err.strip().splitlines()) == 1


def test_all_wrong_settings_are_told_at_once(programs: Programs, tmp_path: Path) -> None:
    """Flags, environment and .env are checked together, unknown names in .env too."""
    (tmp_path / "programs" / ".env").write_text("FLUSH_INTERVALL_SEC=1\nBUFFER_SIZE_TRADES=3\n")
    recorder = programs.run("recorder", "record", "--redundancy", 7, CURRENCY="eth")

    assert recorder.process.returncode == 2
    assert sorted(line.split(":")[1].strip().split("=")[0] for line in recorder.err.splitlines()) == [
        ".env",
        "BUFFER_SIZE_TRADES",
        "CURRENCY",
        "REDUNDANCY",
    ]


def test_a_line_of_env_that_is_no_setting_is_refused(programs: Programs, tmp_path: Path) -> None:
    """Each by its number, with all the other problems, and without its text: nothing is recorded to a default."""
    folder = tmp_path / "programs"
    (folder / ".env").write_text(
        "TOP_N_INSTRUMENTS=-1\n\n# a comment\n"
        'DATABASE_URL="postgresql://me:secret@host/x\nDATA_DIR /x\nexport KIND=option\n'
    )
    recorder = programs.run("recorder", "record", "--for", 1)

    assert recorder.process.returncode == 2
    assert [line[: line.index(": expected")] for line in recorder.err.splitlines()] == [
        "error: .env: line 4",
        "error: .env: line 5",
        "error: TOP_N_INSTRUMENTS=-1",
    ]
    assert "secret" not in recorder.err
    assert not (folder / "data").exists()


def test_a_second_recorder_on_the_same_tape_is_refused(programs: Programs, tmp_path: Path) -> None:
    """Exit code 4, a line that says who holds it, and the first one is not disturbed."""
    _, url = programs.simulate("--instruments", 5, "--rate", 100)
    first = programs.record(url, tmp_path / "tape")
    second = programs.run("recorder", "record", "--deribit-ws-url", url, "--data-dir", tmp_path / "tape")

    assert second.process.returncode == 4
    assert "is in use by recorder 'test'" in second.err
    assert first.stop() == 0
    other = programs.run("recorder", "record", "--data-dir", tmp_path / "tape", "--recorder-name", "other")
    assert other.process.returncode == 4


def test_doctor_names_a_flipped_bit_and_a_text_file(programs: Programs, tmp_path: Path) -> None:
    """Each is one sentence and exit code 6; --repair keeps the good rows and deletes nothing."""
    _, url = programs.simulate("--instruments", 10, "--rate", 300)
    tape = tmp_path / "tape"
    assert programs.record(url, tape, "--for", 3, "--flush-interval-sec", 0.5).wait() == 0
    path = sealed_files(DataDir(tape), "eth_option_quotes")[0]
    rows = len(tape_rows(tape, "eth_option_quotes", QUOTES))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    (path.parent / "notes.arrow").write_text("not a segment")
    doctor = programs.run("recorder", "doctor", "--data-dir", tape)

    assert doctor.process.returncode == 6
    assert "is damaged at byte" in doctor.out
    assert "not a segment" in doctor.out
    assert programs.run("recorder", "doctor", "--repair", "--data-dir", tape).process.returncode == 6
    assert programs.run("recorder", "doctor", "--data-dir", tape).process.returncode == 0
    assert 0 < len(tape_rows(tape, "eth_option_quotes", QUOTES)) < rows
    quarantined = {found.name: found.read_bytes() for found in (tape / "quarantine").iterdir()}
    assert quarantined == {path.name: bytes(data), "notes.arrow": b"not a segment"}


@pytest.mark.parametrize("program", ["recorder", "loader", "analysis"])
def test_help_imports_nothing_heavy(program: str) -> None:
    """--help answers without pyarrow, polars, duckdb, psycopg, or structlog."""
    code = (
        f"import sys, runpy; sys.argv = ['{program}', '--help']\n"
        f"try: runpy.run_module('{program}', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "print(sorted({'pyarrow', 'polars', 'duckdb', 'psycopg', 'structlog', 'websockets'} & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parent.parent
    )

    assert done.stdout.splitlines()[-1] == "[]"
