"""An audit's findings for people and for programs, whatever their number: they wait in a file, not in memory."""

import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from io import StringIO
from typing import IO

from loader.audit import Finding, Verdict, equal_of

_HEAD = ("stream", "segments", "equal", "not equal", "not compared", "tape rows", "database rows")
_ANSWERS = {True: "equal", False: "not equal", None: "not all could be compared"}
_SPOOLED_BYTES = 1024 * 1024  # kept in memory up to here


class Report:
    """Sums up findings as they come; what is not plain equality is kept for the end, in a file."""

    def __init__(self, findings: Iterable[Finding], *, as_json: bool, notes: Sequence[str] = ()) -> None:
        """Take all findings; nothing is written yet, so that an audit that fails on the way says nothing.

        Args:
            findings: what an audit yields.
            as_json: whether it is for programs.
            notes: of how it was compared; looked at after the last finding.
        """
        self._json = as_json
        self._notes = notes
        self._streams: dict[str, Counter[str]] = {}
        self._verdicts: Counter[Verdict] = Counter()
        self._shortened = 0  # segments of which retention has dropped a part
        self._dropped_rows = 0
        self._told = tempfile.SpooledTemporaryFile(_SPOOLED_BYTES, "w+", encoding="utf-8")  # noqa: SIM115 - as long as this
        for finding in findings:
            self._add(finding)

    @property
    def equal(self) -> bool | None:
        """The verdict over all."""
        return equal_of(set(self._verdicts))

    def write(self, out: IO[str]) -> None:
        """Write it all, once; as JSON one object."""
        with self._told:
            if self._json:
                self._write_json(out)
            else:
                self._write_text(out)

    def _add(self, finding: Finding) -> None:
        self._verdicts[finding.verdict] += 1
        self._dropped_rows += finding.dropped_rows
        self._shortened += bool(finding.dropped_rows and finding.verdict != Verdict.DROPPED)
        counts = self._streams.setdefault(finding.stream, Counter())
        if finding.verdict not in (Verdict.NOT_HERE, Verdict.DROPPED):
            same = finding.verdict in (Verdict.EQUAL, Verdict.REPAIRED)
            unread = finding.verdict == Verdict.UNREADABLE
            counts["segments"] += bool(finding.name)
            counts["equal"] += same and bool(finding.name)
            counts["not equal"] += not same and not unread
            counts["not compared"] += unread
            counts["tape rows"] += finding.tape_rows
            counts["database rows"] += finding.database_rows
        if finding.verdict != Verdict.EQUAL:
            if self._json:
                self._told.write((", " if self._told.tell() else "") + json.dumps(asdict(finding)))
            else:
                self._told.write(_line(finding) + "\n")

    def _write_json(self, out: IO[str]) -> None:
        names = [name.replace(" ", "_") for name in _HEAD]
        head = {
            "equal": self.equal,
            "streams": [dict(zip(names, row, strict=True)) for row in self._rows()],
            "repaired": self._verdicts[Verdict.REPAIRED],
            "dropped_by_retention": {"segments": self._verdicts[Verdict.DROPPED], "rows": self._dropped_rows},
            "notes": list(self._notes),
        }
        out.write(json.dumps(head)[:-1] + ', "findings": [')
        self._copy_told(out)
        out.write("]}\n")

    def _write_text(self, out: IO[str]) -> None:
        table = [_HEAD, *([f"{cell:,}" if isinstance(cell, int) else cell for cell in row] for row in self._rows())]
        widths = [max(len(str(row[column])) for row in table) for column in range(len(_HEAD))]
        for row in table:
            cells = [
                str(cell).ljust(width) if column == 0 else str(cell).rjust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            ]
            out.write("  ".join(cells).rstrip() + "\n")
        self._copy_told(out)
        for note in self._notes:
            out.write(f"note: {note}\n")
        if self._dropped_rows:
            out.write(
                f"left out, as dropped by retention: {self._dropped_rows:,} rows,"
                f" of {self._verdicts[Verdict.DROPPED]} segments all and of {self._shortened} a part\n"
            )
        out.write(f"database and tape: {_ANSWERS[self.equal]}\n")

    def _copy_told(self, out: IO[str]) -> None:
        self._told.seek(0)
        shutil.copyfileobj(self._told, out)

    def _rows(self) -> list[tuple[str | int, ...]]:
        return [
            (stream, *(counts[column] for column in _HEAD[1:])) for stream, counts in sorted(self._streams.items())
        ]


def as_json(findings: Iterable[Finding]) -> str:
    """Return one object: the verdict, a line for each stream, and every finding that is not plain equality."""
    return _text(findings, as_json=True)


def as_text(findings: Iterable[Finding]) -> str:
    """Return a table of the streams, then a line for each finding that is not plain equality, then the verdict."""
    return _text(findings, as_json=False)


def _text(findings: Iterable[Finding], *, as_json: bool) -> str:
    out = StringIO()
    Report(findings, as_json=as_json).write(out)
    return out.getvalue()


def _line(finding: Finding) -> str:
    return f"{finding.verdict}: {finding.name or finding.stream}" + (f": {finding.detail}" if finding.detail else "")
