"""`make demo`: the whole chain offline, with the programs that a user has, in a folder that is removed at the end.

A simulated Deribit, the recorder, a query over live segments, the loader into an embedded PostgreSQL, and the proof
that tape and database agree.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RECORD_S = 15
LATEST = """
SELECT instrument, strftime(max(received_at), '%H:%M:%S.%f') AS received,
       arg_max(bid_price, change_id) AS bid, arg_max(ask_price, change_id) AS ask,
       round(arg_max(underlying_price, change_id), 2) AS underlying, count(*) AS quotes
FROM eth_option_quotes GROUP BY instrument ORDER BY quotes DESC LIMIT 5
"""


def main() -> int:
    """Run the demo; 0 if the database holds exactly what the tape holds."""
    begun_s = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="ticktape-demo-"))
    running: list[subprocess.Popen[str]] = []
    try:
        return _demo(folder, running, begun_s)
    finally:
        for process in reversed(running):
            process.terminate()
        for process in reversed(running):
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
        shutil.rmtree(folder, ignore_errors=True)


def _demo(folder: Path, running: list[subprocess.Popen[str]], begun_s: float) -> int:
    _say("1. A simulated Deribit: 50 ETH options, 500 messages a second")
    exchange = _start(running, folder, "recorder", "simulate", "--port", "0", "--instruments", "50", "--rate", "500")
    assert exchange.stdout is not None
    url = exchange.stdout.readline().split()[-1]
    print(f"   {url}")

    _say(f"2. The recorder, for {RECORD_S} s, a segment every 4 s; beside it the loader, into an embedded PostgreSQL")
    recorder = _start(
        running, folder, "recorder", "record", "--deribit-ws-url", url, "--for", str(RECORD_S),
        "--segment-max-age-sec", "4",
    )  # fmt: skip
    _start(running, folder, "loader", "load")
    time.sleep(RECORD_S / 2)

    _say("3. While both run: the latest quotes, from live and sealed segments alike")
    if _run(folder, "analysis", "sql", LATEST).returncode:
        return 1

    if recorder.wait() or _run(folder, "loader", "load", "--once").returncode:
        print((folder / "log").read_text(), file=sys.stderr)
        return 1
    _say("4. Every segment of the tape is whole")
    doctor = _run(folder, "recorder", "doctor")

    _say("5. What the numbers on the tape prove, and what they cannot")
    proof = _run(folder, "analysis", "completeness")

    _say("6. Rows on the tape and in the database: their counts, and sums over all columns")
    audit = _run(folder, "loader", "audit")
    seconds = time.monotonic() - begun_s
    if audit.returncode or doctor.returncode or proof.returncode:
        print(f"\nSomething is NOT as it should be ({seconds:.0f} s).")
        return 1
    print(f"\nThe tape is whole, and the database equals it ({seconds:.0f} s). Nothing is left running.")
    return 0


def _start(running: list[subprocess.Popen[str]], folder: Path, *arguments: str) -> subprocess.Popen[str]:
    with (folder / "log").open("a") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=_environment(folder),
        )
    running.append(process)
    return process


def _run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", *arguments], capture_output=True, text=True, check=False, env=_environment(folder)
    )
    if done.returncode:
        print(done.stderr, file=sys.stderr)
    for line in done.stdout.splitlines():
        print(f"   {line}".rstrip())
    return done


def _environment(folder: Path) -> dict[str, str]:
    # The demo is the same for everyone: no setting of the person who runs it is taken over.
    environment = {name: value for name, value in os.environ.items() if name not in ("DATABASE_URL", "CURRENCY")}
    return {**environment, "DATA_DIR": str(folder / "data"), "LOG_FORMAT": "json"}


def _say(text: str) -> None:
    print(f"\n{text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
