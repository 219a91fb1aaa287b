"""What a signal does to a program that waits."""

import subprocess
import sys

from tests.fix_programs import PATIENCE_S, REPOSITORY

ROUNDS = 300
SIGNALLED = f"""
import os, random, signal, threading
from recorder.runtime.signals import StopAsked

for number in range({ROUNDS}):
    stop = StopAsked()
    patience_s = (0.0, 1e-9, 60.0)[number % 3]
    threading.Timer(random.uniform(0, 0.004), os.kill, (os.getpid(), signal.SIGTERM)).start()
    while not stop.wait(patience_s):
        pass
    print("asked", flush=True)
"""


def test_a_signal_at_any_moment_of_a_wait_ends_it() -> None:
    """Whether it comes before, after, or amidst of it; the handler waits for no lock of the waiting thread."""
    ran = subprocess.run(
        [sys.executable, "-c", SIGNALLED], cwd=REPOSITORY, timeout=PATIENCE_S, capture_output=True, check=True
    )

    assert ran.stdout.split() == [b"asked"] * ROUNDS
