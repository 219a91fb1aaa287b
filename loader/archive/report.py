"""What an archiver or a pruner did, for people. Pure."""

from loader.archive.archiver import Tally
from loader.archive.prune import Pruned


def archived(tally: Tally, where: str) -> str:
    """Return the line that tells what an archive run did."""
    return (
        f"archived {_count(tally.segments, 'segment')} ({_count(tally.rows, 'row')}) in {_count(tally.parts, 'part')}"
        f" ({_size(tally.bytes)}) to {where}, left out {len(tally.refused):,}"
    )


def pruned(done: Pruned, *, dry_run: bool) -> str:
    """Return a line for each stream that lost segments, one for each reason to keep some, and the sum."""
    lines = [
        f"{stream}: {_count(count, 'segment')}, {_size(done.bytes[stream])}"
        for stream, count in sorted(done.segments.items())
    ]
    lines += [f"kept {_count(count, 'segment')}: {why}" for why, count in sorted(done.kept.items())]
    verb = "would remove" if dry_run else "removed"
    total = f"{_count(done.segments.total(), 'segment')}, {_size(done.bytes.total())}"
    return "\n".join([*lines, f"{verb} {total}"])


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _size(number: int) -> str:
    size = float(number)
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:,.0f} {unit}" if unit == "bytes" else f"{size:,.1f} {unit}"
        size /= 1000
    return f"{size:,.1f} GB"
