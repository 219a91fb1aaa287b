"""`recorder doctor`: prints one sentence a finding, repairs on request, and says how it stands."""

import sys

from recorder.runtime.data_dir import DataDir
from recorder.runtime.errors import DiskError
from recorder.runtime.exit_codes import ExitCode
from recorder.segments.doctor import Examined, Finding, examine, repair
from recorder.segments.recovery import recover


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
            return _examine(data_dir)
        with data_dir.lock():
            for recovered in recover(data_dir):
                sys.stdout.write(f"{recovered.live}: finished with {recovered.rows} rows\n")
            return _examine(data_dir, mend=True)
    except OSError as exc:
        raise DiskError(f"the disk under {data_dir.root} refused: {exc}", remedy="mend it first") from exc


def _examine(data_dir: DataDir, *, mend: bool = False) -> int:
    examined = Examined()
    findings: dict[object, Finding] = {}
    damaged = 0
    for finding in list(examine(data_dir, examined)):
        sys.stdout.write(f"{finding}\n")
        damaged += finding.damage
        if finding.damage:
            findings.setdefault(finding.path, finding)
    if mend and findings:
        for finding in findings.values():
            sys.stdout.write(f"{repair(data_dir, finding)}\n")
        # What is had follows from the segments: what was lost with a damaged one is no longer had.
        (data_dir.state / "trades.arrow").unlink(missing_ok=True)
    what = "no damage" if not damaged else f"{damaged} finding{'s' if damaged > 1 else ''} of damage"
    sys.stdout.write(f"{examined.segments} segments, {examined.rows} rows: {what}\n")
    return ExitCode.DAMAGED if damaged else ExitCode.DONE
