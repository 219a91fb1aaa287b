"""Archives and prunes a tape again and again, at full speed: `python -m tests.restless_archive HOUR_S DATA_DIR`.

Today, too, and whatever its age. HOUR_S stands for the hour for which a file is still there after its manifest. A
line for each turn says how many parts were made, and how many segments removed, so far.
"""

import sys
from datetime import timedelta
from pathlib import Path

from loader.archive import prune
from loader.archive.archiver import Archiver
from loader.archive.plan import Choice
from loader.archive.read import Archive
from loader.errors import NoArchive
from recorder.runtime import logging
from recorder.runtime.data_dir import DataDir
from tests.fix_archive import nothing, store_of


def main(root: Path) -> None:
    """Do it for ever."""
    logging.configure(level="ERROR", form="json")
    restless = Archiver(DataDir(root), store_of(root), compression="zstd", check=nothing)
    parts = removed = 0
    while True:
        parts += restless.run(Choice(today=True)).parts
        pruner = prune.Pruner(DataDir(root), Archive(store_of(root)), keep=timedelta(), dry_run=False, check=nothing)
        try:
            removed += pruner.run().segments.total()
        except NoArchive:
            continue  # not yet
        print(parts, removed, flush=True)


if __name__ == "__main__":
    prune.MANIFEST_AGE, prune.STATE_AGE = timedelta(seconds=float(sys.argv[1])), timedelta()
    main(Path(sys.argv[2]))
