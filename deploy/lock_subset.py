"""Prints that part of requirements.lock that installs what a report of pip names: versions and hashes are the lock's.

pip takes hashes only for what is pinned in the list itself, so the list has to be the whole of what is installed.

    python -m pip install --dry-run --report REPORT …
    python deploy/lock_subset.py REPORT < requirements.lock
"""

import json
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path


def normal(name: str) -> str:
    """Return a package's name as it is compared."""
    return re.sub(r"[-_.]+", "-", name).lower()


def subset(lock: Iterable[str], names: set[str]) -> Iterator[str]:
    """Yield the lines of the named packages, and remove from the names those that were found."""
    wanted = False
    for line in lock:
        if found := re.match(r"[A-Za-z0-9]\S*?(?==)", line):
            wanted = normal(found[0]) in names
            names.discard(normal(found[0]))
        if wanted:
            yield line


def main() -> int:
    """Read the report that is named, and the lock on stdin."""
    report = json.loads(Path(sys.argv[1]).read_text())
    names = {normal(one["metadata"]["name"]) for one in report["install"]}
    sys.stdout.writelines(subset(sys.stdin, names))
    if names:
        sys.stderr.write(f"error: not in requirements.lock: {', '.join(sorted(names))}\n")
    return 1 if names else 0


if __name__ == "__main__":
    sys.exit(main())
