"""Writes docs/faults.md from a run of the tests: `pytest --full --faults-table=docs/faults.md`.

A test says which fault it makes by `@pytest.mark.fault(4)` or `record_property("fault", "4")`, and in how many cases
by `record_property("cases", n)`; what it shows is its docstring, and what else it tells by
`record_property("shown", text)`.
"""

from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import pytest

FAULTS = {
    1: "kill -9 at every write boundary, and at any time",
    2: "power loss: what was not fsynced is lost, torn, or reordered",
    3: "torn tail",
    4: "garbled tail or middle",
    5: "disk full",
    6: "an fsync or write that fails once and then succeeds",
    7: "a directory's entry that is lost",
    8: "database killed before, during and after COPY, and at COMMIT",
    9: "database away, full, restored, changed, read-only",
    10: "two loaders, copied segments, identical rows",
    11: "partition, half-open socket, reset, slow link, duplicates, disorder",
    12: "book breaks, missing snapshots, unknown fields, errors of the exchange",
    13: "listings and expiries in a storm, ranks that flap",
    14: "slow disk, slow consumer, a burst",
    15: "the wall clock is stepped",
    16: "a reader while the writer runs and is killed",
    17: "segments of other format versions",
    18: "the life of a segment against a model",
    19: "arbitrary bytes",
    20: "long runs under random faults",
    21: "the tests themselves: one barrier removed at a time",
}


@dataclass
class _Shown:
    cases: int = 0
    passed: int = 0
    failed: int = 0
    sentences: dict[str, str] = field(default_factory=dict)  # by test
    more: list[str] = field(default_factory=list)


class FaultsTable:
    """A pytest plugin. Where tests run in several processes (pytest-xdist) each says what its tests show, and the one
    that collects the reports writes the table.
    """  # noqa: D205

    def __init__(self, file: Path, *, full: bool, worker: bool) -> None:
        self._file, self._full, self._worker = file, full, worker
        self._shown: dict[int, _Shown] = defaultdict(_Shown)
        self._failed: list[str] = []

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Let the reports of each test carry what it says of itself."""
        for item in items:
            text = getattr(getattr(item, "function", None), "__doc__", None) or ""
            item.user_properties.append(("sentence", " ".join(text.split())))
            for marker in item.iter_markers("fault"):
                item.user_properties.append(("marked", ",".join(map(str, marker.args))))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count what a test shows."""
        properties = {name: str(value) for name, value in report.user_properties}
        if report.failed:
            self._failed.append(report.nodeid)
        told = f"{properties.get('fault', '')},{properties.get('marked', '')}".split(",")
        if report.when != "call" or report.skipped:
            return
        for number in {int(number) for number in told if number}:
            shown = self._shown[number]
            shown.cases += int(properties.get("cases", "1"))
            shown.passed += report.passed
            shown.failed += report.failed
            shown.sentences[report.nodeid.partition("[")[0]] = properties["sentence"]
            if report.passed and "shown" in properties:
                shown.more.append(properties["shown"])

    def pytest_sessionfinish(self) -> None:
        """Write the table."""
        if self._worker:
            return
        size = "full" if self._full else "default"
        lines = [
            "# What was done to it",
            "",
            f"Written by a run of the tests ({size} sizes): `pytest --full --faults-table=docs/faults.md`.",
            "A case is one fault made once: one kill, one prefix of the disk's calls, one flipped bit.",
            f"Tests of this run that failed: {', '.join(self._failed) or 'none'}.",
            "",
            "| # | fault | cases | tests | what happened |",
            "|---|---|---|---|---|",
        ]
        for number, name in FAULTS.items():
            shown = self._shown.get(number, _Shown())
            outcome = "not in this run" if not shown.passed + shown.failed else "all held"
            if shown.failed:
                outcome = f"**{shown.failed} failed**"
            lines.append(f"| {number} | {name} | {shown.cases:,} | {shown.passed + shown.failed} | {outcome} |")
        for number, name in FAULTS.items():
            shown = self._shown.get(number, _Shown())
            if shown.sentences:
                lines += ["", f"## {number}. {name}", ""]
                lines += [f"- {text} (`{test}`)" for test, text in sorted(shown.sentences.items())]
                lines += [f"  - {text}" for text in sorted(shown.more)]
        self._file.write_text("\n".join(lines) + "\n")
