"""Runs a program under a wall clock that a test steps: `python -m tests.stepped_clock MODULE ARGUMENTS`.

The file that CLOCK_FILE names holds by how many seconds the wall clock is wrong, and may be replaced at any moment.
"""

import os
import runpy
import sys
import time
from pathlib import Path


def main() -> None:
    file = Path(os.environ["CLOCK_FILE"])
    true_ns = time.time_ns
    # Before anything of ours is imported, since a default argument keeps the function that it found.
    time.time_ns = lambda: true_ns() + int(float(file.read_text()) * 1e9)
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
