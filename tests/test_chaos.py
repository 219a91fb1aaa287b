"""What `make chaos` does, for a moment."""

import json
import os
import subprocess
import sys

import pytest

from tests.fix_programs import REPOSITORY


@pytest.mark.fault(20)
def test_chaos_comes_to_a_verdict(full: bool) -> None:
    """Under random faults nothing acknowledged is lost, invented or doubled, and every hole is told."""
    run = subprocess.run(
        [sys.executable, "-m", "tests.chaos", "--minutes", "10" if full else "0.2"],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    verdict = json.loads(run.stdout[run.stdout.index("{") : run.stdout.rindex("}") + 1])

    assert run.returncode == 0, verdict
    assert verdict["acknowledged_rows"] > 1000
