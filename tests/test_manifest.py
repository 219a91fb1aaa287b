"""What `completeness --verify` says of a tape that is not as it was, and that `sha256sum -c` says the same."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from analysis.prove import completeness, verify
from analysis.span import Span
from recorder.runtime.data_dir import DataDir
from recorder.segments.layout import sealed_files
from tests.fix_archive import DAY_US, archive, parts, salvage_of
from tests.fix_postgres import START_US, make_rows, record
from tests.segment_tools import NOON_US

QUOTES, TRADES = "eth_option_quotes", "eth_option_trades"
Said = Callable[[], tuple[int, list[str]]]


def rounds(count: int, start_us: int) -> list[dict[str, list[tuple[object, ...]]]]:
    return [
        {stream: make_rows(stream, 20, start_us=start_us + number * DAY_US) for stream in (QUOTES, TRADES)}
        for number in range(count)
    ]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a tape of three days of quotes and trades, all archived, and the segments still there."""
    record(tmp_path / "tape", rounds(3, START_US))
    archive(tmp_path / "tape")
    return tmp_path / "tape"


@pytest.fixture
def said(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Said:
    """Write a manifest; return who checks it, by us and by sha256sum: the exit code and what is wrong."""
    file = tmp_path / "manifest"
    completeness(str(root), Span(), least=None, as_json=True, manifest=file)
    capsys.readouterr()

    def check() -> tuple[int, list[str]]:
        code = verify(str(root), file)
        *lines, _answer = capsys.readouterr().out.splitlines()
        theirs = subprocess.run(
            ["sha256sum", "--quiet", "-c", file], cwd=root, capture_output=True, text=True, check=False
        )
        wrong = sorted(line.partition(": ")[0] for line in lines if line.endswith((": changed", ": missing")))
        assert int(bool(theirs.returncode)) == code
        # `NAME: FAILED`, or `NAME: FAILED open or read`
        assert sorted(line.partition(": ")[0] for line in theirs.stdout.splitlines()) == wrong
        return code, lines

    assert check() == (0, [])
    return check


def name_of(root: Path, path: Path) -> str:
    return str(path.relative_to(root))


@pytest.mark.parametrize("place", [0, 9, 0.1, 0.5, 0.9, -1])
@pytest.mark.parametrize("kind", ["segment", "part", "manifest"])
def test_one_changed_byte_is_found_and_the_file_named(root: Path, said: Said, place: float, kind: str) -> None:
    """At its first byte or its last, of whichever file; changed back, all is as it was."""
    path = {
        "segment": sealed_files(DataDir(root), TRADES)[1],
        "part": parts(root)[1],
        "manifest": next((root / "archive" / "manifests").rglob("*.json")),
    }[kind]
    data = bytearray(path.read_bytes())
    at = int(place * len(data)) if isinstance(place, float) else place
    data[at] ^= 1
    path.write_bytes(data)
    assert said() == (1, [f"{name_of(root, path)}: changed"])
    data[at] ^= 1
    path.write_bytes(data)
    assert said() == (0, [])


def test_a_removed_file_is_missing(root: Path, said: Said) -> None:
    """Whether or not what it held lies elsewhere, too."""
    removed = [sealed_files(DataDir(root), QUOTES)[1], parts(root)[0]]
    for path in removed:
        path.unlink()

    code, lines = said()
    assert (code, sorted(lines)) == (1, sorted(f"{name_of(root, path)}: missing" for path in removed))


def test_an_added_file_is_counted_and_changes_nothing(root: Path, said: Said) -> None:
    """A tape that is recorded on is still as it was; how much came later is told."""
    record(root, rounds(1, NOON_US))
    code, lines = said()

    assert (code, len(lines)) == (0, 1)
    assert lines[0].startswith("2 files are not named in ")


def test_files_that_changed_places_are_both_changed(root: Path, said: Said) -> None:
    """Each is whole, and of the same stream; the names are part of what was written down."""
    one, other = sealed_files(DataDir(root), QUOTES)[:2]
    a, b = one.read_bytes(), other.read_bytes()
    one.write_bytes(b)
    other.write_bytes(a)

    assert said() == (1, [f"{name_of(root, path)}: changed" for path in (one, other)])


@pytest.mark.parametrize("pruned", [False, True])
def test_what_was_salvaged_stands_for_the_damaged_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], *, pruned: bool
) -> None:
    """Also when it is in the archive alone: the one after it names one that is nowhere, and nothing is missing."""
    root, file = tmp_path / "tape", tmp_path / "manifest"
    record(root, rounds(3, START_US))
    for stream in (QUOTES, TRADES):
        damaged = sealed_files(DataDir(root), stream)[1]
        salvaged = salvage_of(damaged, damaged.with_name("salvaged"))
        salvaged.replace(damaged)
    archive(root)
    if pruned:
        for stream in (QUOTES, TRADES):
            sealed_files(DataDir(root), stream)[1].unlink()
    completeness(str(root), Span(), least=None, as_json=True, manifest=file)
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["missing_segments"] == []

    assert verify(str(root), file) == 0
    assert capsys.readouterr().out == "all as it was\n"


def test_a_manifest_that_names_nothing_proves_nothing(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was cut off, or is of no tape: 7, not 0."""
    (tmp_path / "empty").touch()
    (tmp_path / "empty.chain").touch()

    assert verify(str(root), tmp_path / "empty") == 7
    assert "names no file" in capsys.readouterr().err
