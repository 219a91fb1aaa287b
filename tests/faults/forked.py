"""Starts real loaders fast, so that hundreds can be killed: forked by a process that has imported everything.

with Forks() as forks:
    pid = forks.start(["load", "--once"], {"DATA_DIR": …}, log)
    os.kill(pid, SIGKILL)
    forks.wait()          # -9

FAULTS in its environment is what the disk does to it: see tests.faults.driver.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

from recorder.runtime import disk
from recorder.runtime.settings import KNOWN_NAMES
from tests.faults.driver import plan_of
from tests.faults.system import System

_ROOT = Path(__file__).parent.parent.parent


class Forks:
    """The process that forks; one loader at a time."""

    def __init__(self) -> None:
        environment = {name: value for name, value in os.environ.items() if name not in KNOWN_NAMES}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.forked"], cwd=_ROOT, env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        with self._process as process:
            assert process.stdin is not None
            process.stdin.close()

    def start(self, arguments: list[str], environment: dict[str, str], log: Path) -> int:
        """Start `python -m loader <arguments>`, as good as; return its process id."""
        assert self._process.stdin is not None
        print(json.dumps([arguments, environment, str(log)]), file=self._process.stdin, flush=True)
        return self._answer()

    def wait(self) -> int:
        """Wait for its end; return its exit code, or minus the signal."""
        return self._answer()

    def _answer(self) -> int:
        assert self._process.stdout is not None
        return int(self._process.stdout.readline())


def _be_loader(arguments: list[str], environment: dict[str, Any], log: str) -> None:
    from loader.cli import main  # noqa: PLC0415 - a child imports nothing that its parent has not

    if faults := environment.pop("FAULTS", ""):
        disk.os = System(plan_of(json.loads(faults)), keep_calls=False, keep_data=True)  # type: ignore[assignment, attr-defined]
    os.environ.update(environment)
    os.chdir(Path(log).parent)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(file, stream)
    code = 70
    try:
        code = main(arguments)
    finally:
        sys.stdout.flush()
        os._exit(code)


def _serve() -> None:
    import loader.run  # noqa: F401, PLC0415 - the heavy part

    ended = 0
    for line in sys.stdin:
        if ended:  # only now: until then its number is nobody else's, and who kills it late kills nobody
            os.waitpid(ended, 0)
        ended = pid = os.fork()
        if pid == 0:
            _be_loader(*json.loads(line))
        print(pid, flush=True)
        end = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert end is not None
        print(end.si_status if end.si_code == os.CLD_EXITED else -end.si_status, flush=True)


if __name__ == "__main__":
    _serve()
