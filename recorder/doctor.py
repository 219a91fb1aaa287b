"""`recorder doctor`: prints one sentence a finding, repairs on request, and says how it stands."""

import sys
from collections.abc import Iterable, Iterator

from recorder.runtime import disk
from recorder.runtime.data_dir import DataDir
from recorder.runtime.errors import DiskError
from recorder.runtime.exit_codes import ExitCode
from recorder.segments.doctor import Examined, Finding, clear_the_way, examine, examine_live, repair
from recorder.segments.recovery import Recovered, recover


def doctor(root: str, *, repair_damage: bool) -> int:
    """Check every segment under `root`; with `repair_damage` take the lock and mend what is damaged.

    Returns:
        0 clean, 6 damage was found (repaired or not).

    Raises:
        DiskError: the directory cannot be read or written.
        DataDirInUse: a recorder holds it, so that nothing may be repaired.
    """
    data_dir = DataDir(root)
    if not data_dir.root.is_dir():
        raise DiskError(f"there is no data directory {data_dir.root}", remedy="set DATA_DIR")
    try:
        if not repair_damage:
            examined = Examined()
            return _sum_up(examined, _say(examine(data_dir, examined)))
        with data_dir.lock():
            return _mend(data_dir)
    except OSError as exc:
        raise DiskError(f"the disk under {data_dir.root} refused: {exc}", remedy="mend it first") from exc


def _mend(data_dir: DataDir) -> int:
    found = _say(examine_live(data_dir, Examined()))
    if found:
        _forget_trades(data_dir)
    found += _say(clear_the_way(data_dir))
    for recovered in recover(data_dir):
        sys.stdout.write(f"{recovered.live}: {_fate(recovered)}\n")
    examined = Examined()
    live = {finding.path for finding in found}
    findings = _say(finding for finding in examine(data_dir, examined) if finding.path not in live)
    if findings:
        _forget_trades(data_dir)
    for finding in _one_each(findings):
        sys.stdout.write(f"{_repair(data_dir, finding, examined)}\n")
    return _sum_up(examined, found + findings)


def _say(findings: Iterable[Finding]) -> list[Finding]:
    """Print each finding; return those of damage."""
    damaged = []
    for finding in findings:
        sys.stdout.write(f"{finding}\n")
        if finding.damage:
            damaged.append(finding)
    return damaged


def _one_each(findings: Iterable[Finding]) -> Iterator[Finding]:
    """Yield one finding of each file: of copies of a segment the one with the most rows first."""
    by_path = {finding.path: finding for finding in findings}
    yield from sorted(by_path.values(), key=lambda finding: (-finding.rows_kept, str(finding.path)))


def _repair(data_dir: DataDir, finding: Finding, examined: Examined) -> Finding:
    try:
        return repair(data_dir, finding, examined)
    except PermissionError as exc:  # of this file; the others go on
        return Finding(finding.path, f"cannot be repaired: {exc.strerror or exc}", damage=True)


def _forget_trades(data_dir: DataDir) -> None:
    """Let the next start read what is had from the segments: what is lost with a damaged one is no longer had.

    Before the damaged one is touched: a cache that outlived it would keep its trades from being fetched for ever.
    """
    cache = data_dir.state / "trades.arrow"
    if cache.exists():
        disk.remove(cache)


def _fate(recovered: Recovered) -> str:
    if recovered.sealed is not None:
        return f"finished with {recovered.rows} rows"
    if recovered.live.exists():
        return "left where it is"
    return "moved to quarantine: it holds no segment"


def _sum_up(examined: Examined, damaged: list[Finding]) -> int:
    what = "no damage" if not damaged else f"{len(damaged)} finding{'s' if len(damaged) > 1 else ''} of damage"
    sys.stdout.write(f"{examined.segments} segments, {examined.rows} rows: {what}\n")
    return ExitCode.DAMAGED if damaged else ExitCode.DONE
