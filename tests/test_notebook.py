"""The notebook: over several days, over what is being recorded, over nothing; and it speaks to nobody."""

import re
import shlex
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import altair as alt
import pytest

from analysis import notebook
from recorder.runtime.data_dir import DataDir
from recorder.segments.schemas import SCHEMAS, rows_to_batch
from recorder.segments.tape import Tape
from tests.fix_archive import archive
from tests.fix_market import CHAIN, record_market
from tests.fix_postgres import make_rows
from tests.fix_programs import REPOSITORY, until
from tests.fix_s3 import free_ports

QUOTES = "eth_option_quotes"


class Run:
    """What a run of all cells left; whoever connects to anything meanwhile fails."""

    def __init__(self, data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(_socket: socket.socket, address: Any) -> NoReturn:
            raise AssertionError(f"connects to {address}")

        monkeypatch.setenv("DATA_DIR", str(data_dir))
        self.defs: Mapping[str, Any]
        with monkeypatch.context() as patch:
            patch.setattr(socket.socket, "connect", refuse)
            outputs, self.defs = notebook.app.run()
        self.charts = [one.to_dict() for one in outputs if isinstance(one, alt.LayerChart)]  # which checks them, too
        self.html = "\n".join(one.text for one in outputs if hasattr(one, "text"))
        self.text = re.sub("<.*?>", "", self.html)

    def rows(self, name: str) -> list[dict[str, Any]]:
        return list(self.defs[name].to_dicts())


def test_a_tape_of_days_is_told_and_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts, tables, a ready query, bars, a smile, gaps by cause, and what the numbers prove."""
    record_market(tmp_path)
    archive(tmp_path)
    run = Run(tmp_path, monkeypatch)

    assert "holds 3,200 quotes of 24 options, 720 tickers of 12 options, and 360 trades of 13 options" in run.text
    assert "received from 2026-05-29 12:00:00 to 2026-05-31 12:1" in run.text
    assert {"quotes", "btc_option_quotes", "gaps", "bars"} < {row["name"] for row in run.rows("tables")}
    assert len(run.rows("newest_trades")) == 10
    assert [row["trades"] for row in run.rows("answer")][:1] == [43]
    bars, smile = run.charts
    assert {row["instrument"] for row in run.rows("bars_of_option")} == {run.defs["option"].value}
    assert len(run.rows("bars_of_option")) == 12 == len(next(iter(bars["datasets"].values())))
    assert run.defs["expiry"].value == "2026-06-05 08:00"
    of_expiry = {option.name for option in CHAIN if "-5JUN26-" in option.name}
    assert {row["instrument"] for row in run.rows("smile_of_expiry")} == of_expiry
    assert len(next(iter(smile["datasets"].values()))) == 6
    assert [(row["cause"], row["status"], row["gaps"]) for row in run.rows("gaps_by_cause")] == [
        ("disconnect", "lost", 6),
        ("sequence_break", "healed", 6),
        ("silence", "open", 6),
    ]
    assert "eth_option_quotes: 6 segments, 400 rows of 12 instruments\n" in run.text  # of the newest ten minutes
    assert run.text.endswith("complete, or told by gap rows")


def test_what_is_being_recorded_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A live segment of quotes alone: bars, but no smile."""
    writer = Tape(DataDir(tmp_path), recorder="live", software="x", segment_max_age_s=1e9, segment_max_bytes=1 << 40)
    rows = make_rows(QUOTES, 50)
    assert writer.write_round({QUOTES: [rows_to_batch(SCHEMAS["quotes"], rows)]}, now_us=rows[0][0]).failure is None
    run = Run(tmp_path, monkeypatch)

    assert "holds 50 quotes of 3 options, 0 tickers of 0 options, and 0 trades of 0 options" in run.text
    assert len(run.charts) == 1
    assert "No tickers yet." in run.text


def test_over_nothing_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty tape is no error: it has all tables."""
    run = Run(tmp_path, monkeypatch)

    assert f"There is nothing in {tmp_path} yet." in run.text
    assert len(run.rows("tables")) == 19
    assert run.rows("answer") == run.rows("gaps_by_cause") == []
    for said in ("No quotes yet.", "No tickers yet.", "Nothing to check yet."):
        assert said in run.text
    assert run.charts == []


def test_without_a_tape_it_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And no cell that would ask it is run."""
    run = Run(tmp_path / "nowhere", monkeypatch)

    assert f"there is no data directory {tmp_path / 'nowhere'}; set DATA_DIR, or record something first." in run.html
    assert "tape" not in run.defs


def test_it_runs_as_a_script(tmp_path: Path) -> None:
    """Without a browser or a server."""
    record_market(tmp_path / "data", days=1)
    command = [sys.executable, str(REPOSITORY / "analysis" / "notebook.py")]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    assert (ran.returncode, ran.stderr) == (0, "")


def test_make_notebook_opens_it_and_asks_nobody_for_a_newer_version(tmp_path: Path) -> None:
    """The Makefile's own command serves the page, and whatever goes out of the machine would come by a proxy."""
    (port,) = free_ports(1)
    recipe = re.search(r"^notebook:.*\n\t(.*)$", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    assert recipe is not None
    command = recipe[1].replace("$(PY)", shlex.quote(sys.executable))
    command = command.replace("$(ARGS)", f"--headless --no-token --port {port}")
    with socket.create_server(("127.0.0.1", 0)) as proxy, (tmp_path / "log").open("wb") as log:
        url = f"http://127.0.0.1:{proxy.getsockname()[1]}"
        environment = {
            "PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "DATA_DIR": str(tmp_path), "no_proxy": "127.0.0.1",
            "http_proxy": url, "https_proxy": url,
        }  # fmt: skip
        server = subprocess.Popen(
            ["sh", "-c", f"exec env {command}"], cwd=REPOSITORY, env=environment, stdout=log, stderr=log
        )
        try:
            page = until(lambda: _get(f"http://127.0.0.1:{port}/"), "the notebook's page", every_s=0.2)
        finally:
            server.terminate()
            server.wait()
        proxy.setblocking(False)
        with pytest.raises(BlockingIOError):
            proxy.accept()

    assert "<title>ticktape</title>" in page


def _get(url: str) -> str:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return str(answer.read(), "utf-8")
    except OSError:
        return ""
