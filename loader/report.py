"""An audit's findings for people and for programs. Pure."""

import json
from collections.abc import Sequence
from dataclasses import asdict

from loader.audit import Finding, Verdict, equal

_HEAD = ("stream", "segments", "equal", "not equal", "not compared", "tape rows", "database rows")
_ANSWERS = {True: "equal", False: "not equal", None: "not all could be compared"}


def as_json(findings: Sequence[Finding]) -> str:
    """Return one object: the verdict, a line for each stream, and every finding that is not plain equality."""
    return json.dumps(
        {
            "equal": equal(findings),
            "streams": [
                dict(zip([name.replace(" ", "_") for name in _HEAD], row, strict=True)) for row in _rows(findings)
            ],
            "findings": [asdict(finding) for finding in findings if finding.verdict != Verdict.EQUAL],
        }
    )


def as_text(findings: Sequence[Finding]) -> str:
    """Return a table of the streams, then a line for each finding that is not plain equality, then the verdict."""
    table = [_HEAD, *([f"{cell:,}" if isinstance(cell, int) else cell for cell in row] for row in _rows(findings))]
    widths = [max(len(str(row[column])) for row in table) for column in range(len(_HEAD))]
    lines = [
        "  ".join(
            str(cell).ljust(width) if column == 0 else str(cell).rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]
    lines += [_line(finding) for finding in findings if finding.verdict != Verdict.EQUAL]
    return "\n".join([*lines, f"database and tape: {_ANSWERS[equal(findings)]}"])


def _rows(findings: Sequence[Finding]) -> list[tuple[str | int, ...]]:
    rows: list[tuple[str | int, ...]] = []
    for stream in sorted({finding.stream for finding in findings}):
        of_stream = [
            finding for finding in findings if finding.stream == stream and finding.verdict != Verdict.NOT_HERE
        ]
        same = sum(finding.verdict == Verdict.EQUAL for finding in of_stream)
        unreadable = sum(finding.verdict == Verdict.UNREADABLE for finding in of_stream)
        rows.append((
            stream, sum(finding.verdict != Verdict.FOREIGN for finding in of_stream), same,
            len(of_stream) - same - unreadable, unreadable,
            sum(finding.tape_rows for finding in of_stream), sum(finding.database_rows for finding in of_stream),
        ))  # fmt: skip
    return rows


def _line(finding: Finding) -> str:
    return f"{finding.verdict}: {finding.name or finding.stream}" + (f": {finding.detail}" if finding.detail else "")
