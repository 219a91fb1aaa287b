"""Until when each stream was whole at the last durable round, so that a crash gap begins there and not later.

The last durable row of a stream may be of one connection while another had been silent for seconds: open and dead, or
with books whose snapshots were still to come. What that one missed lies before the last row. A round therefore leaves
a line in `state/heard.json`: for each stream, until when everything had been heard but what a durable gap tells.

It is written over in place after each round, and not fsynced: a process that is killed leaves it as it was, and a
power loss an older one, with which a gap begins too early (by `LONGEST_US` at most) rather than too late. What was
rejected is in docs/design.md.
"""

import json
import zlib
from collections.abc import Mapping
from pathlib import Path

from recorder.runtime import disk
from recorder.runtime.data_dir import DataDir

# A dead connection is noticed within 36 s, and a silent instrument told within 31 s of its grant; but not while the
# machine sleeps.
LONGEST_US = 600_000_000
# One write of constant length: a kill leaves no half of it. A dozen streams fit.
_SIZE_BYTES = 512
_OTHERS = ""  # stands for every stream that is not named, after a line that could not be read


class Heard:
    """The line that each round leaves. One thread at a time may use it."""

    def __init__(self, data_dir: DataDir) -> None:
        self._file = data_dir.state / "heard.json"
        self._lasts = False  # the file was made durable in this run: from here on a power loss leaves one
        self._left = _read(self._file)  # by earlier runs, of other markets too

    def whole_until_us(self, stream: str, last_us: int) -> int:
        """Return until when a stream was whole that ended without a stop.

        `last_us` is what its last durable row says; that is believed where a stream was recorded before there was
        such a line.
        """
        heard_us = self._left.get(stream, self._left.get(_OTHERS, last_us))
        return min(last_us, max(heard_us, last_us - LONGEST_US))

    def clock_stepped(self) -> None:
        """Make the next line durable: after a power loss, one of a clock that was ahead would say nothing."""
        self._lasts = False

    def save(self, whole_us: Mapping[str, int]) -> None:
        """Keep what a durable round says: until when each of these streams was whole.

        Raises:
            OSError: the disk refused. The old line stands; a gap begins too early with it.
        """
        text = json.dumps({**self._left, **whole_us})
        line = f"{zlib.crc32(text.encode()):08x} {text}".encode().ljust(_SIZE_BYTES)
        lasted, self._lasts = self._lasts, False  # if it is refused, or was removed, the next is made anew
        if lasted:
            disk.write_over(self._file, line)
        else:
            disk.make_dir(self._file.parent)
            disk.replace_file(self._file, line)
        self._lasts = True


def _read(file: Path) -> dict[str, int]:
    """Read the line; where there never was one, nothing; a damaged one may have said anything."""
    try:
        crc32, _, text = file.read_bytes().decode(errors="replace").rstrip().partition(" ")
    except FileNotFoundError:
        return {}
    except OSError:
        return {_OTHERS: 0}
    if f"{zlib.crc32(text.encode()):08x}" != crc32:
        return {_OTHERS: 0}
    return {str(stream): int(us) for stream, us in json.loads(text).items()}
