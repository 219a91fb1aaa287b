"""The inbox: what a pass has to look at, and nothing else."""

import os
import time
from pathlib import Path

import pytest

from loader import inbox as module
from loader.inbox import Inbox
from recorder.runtime.data_dir import DataDir


def put(root: Path, name: str, *, text: str = "x") -> Path:
    """Write a file below the data directory."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def names(inbox: Inbox) -> list[str]:
    """Return the names of what is unsettled."""
    return [candidate.name for candidate in inbox.unsettled()]


def test_only_sealed_files_of_streams_are_listed_oldest_first(tmp_path: Path) -> None:
    """Gaps before trades before quotes of the same moment; live files, other folders and names are passed over."""
    wanted = [
        "data_gaps/date=2026-11-01/20261101T000000000000Z-a-000001.arrow",
        "eth_option_trades/date=2026-11-01/20261101T000000000000Z-a-000001.arrow",
        "eth_option_quotes/date=2026-11-01/20261101T000000000000Z-a-000001.arrow",
        "eth_option_quotes/date=2026-11-01/20261101T000100000000Z-a-000002.arrow",
        "btc_option_quotes/date=2026-11-02/20261102T000000000000Z-a-000003.arrow",
        "eth_option_quotes/date=2026-11-02/notes.arrow",
    ]
    others = [
        "live/eth_option_quotes/20261101T000000000000Z-a-000001.arrow.open",
        "quarantine/20261101T000000000000Z-a-000001.arrow",
        "eth_option_quotes/20261101T000000000000Z-a-000001.arrow",
        "eth_option_quotes/date=2026-11-01/20261101T000000000000Z-a-000001.arrow.tmp",
        "eth_option_quotes/other/20261101T000000000000Z-a-000001.arrow",
        "postgres/date=2026-11-01/20261101T000000000000Z-a-000001.arrow",
    ]
    for name in [*reversed(wanted), *others]:
        put(tmp_path, name)
    assert names(Inbox(DataDir(tmp_path))) == wanted


@pytest.mark.parametrize("quiet_ns", [0, 10**18])
@pytest.mark.parametrize("for_good", [True, False])
def test_what_is_settled_comes_up_again_only_if_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quiet_ns: int, *, for_good: bool
) -> None:
    """Whether or not its folder is listed again; a loaded file at the next change of its folder."""
    monkeypatch.setattr(module, "_QUIET_NS", quiet_ns)
    path = put(tmp_path, "eth_option_quotes/date=2026-11-01/one.arrow")
    inbox = Inbox(DataDir(tmp_path))
    for candidate in inbox.unsettled():
        inbox.settle(candidate, for_good=for_good)
    assert names(inbox) == []
    path.write_text("longer")
    time.sleep(0.02)  # so that the folder's mtime differs, whatever the granularity of the kernel's clock
    put(tmp_path, "eth_option_quotes/date=2026-11-01/two.arrow")
    assert [name[-9:] for name in names(inbox)] == ["one.arrow", "two.arrow"]


def test_a_refused_file_that_is_mended_in_place_comes_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder's mtime does not tell; a chmod changes neither size nor mtime, and comes up all the same."""
    monkeypatch.setattr(module, "_QUIET_NS", 0)
    path = put(tmp_path, "eth_option_quotes/date=2026-11-01/one.arrow")
    inbox = Inbox(DataDir(tmp_path))
    for mend in (lambda: path.write_text("other"), lambda: path.chmod(0o600), lambda: os.utime(path, (1, 1))):
        (candidate,) = inbox.unsettled()
        inbox.settle(candidate, for_good=False)
        assert names(inbox) == []
        time.sleep(0.02)
        mend()
    assert len(names(inbox)) == 1


def test_an_unchanged_folder_is_not_looked_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rescan of many loaded files costs one look at their folder."""
    monkeypatch.setattr(module, "_QUIET_NS", 0)
    for number in range(50):
        put(tmp_path, f"eth_option_quotes/date=2026-11-01/{number}.arrow")
    inbox = Inbox(DataDir(tmp_path))
    for candidate in inbox.unsettled():
        inbox.settle(candidate, for_good=True)
    looked: list[str] = []
    monkeypatch.setattr(Inbox, "_look", lambda _self, _stream, name: looked.append(name))
    assert names(inbox) == []
    assert looked == []


def test_what_went_away_is_forgotten(tmp_path: Path) -> None:
    """A file, or its whole folder; when it comes back it is looked at again."""
    path = put(tmp_path, "eth_option_quotes/date=2026-11-01/one.arrow")
    name = str(path.relative_to(tmp_path))
    inbox = Inbox(DataDir(tmp_path))
    for remove_folder in (False, True):
        (candidate,) = inbox.unsettled()
        inbox.settle(candidate, for_good=True)
        assert inbox.has(name)
        path.unlink()
        if remove_folder:
            path.parent.rmdir()
        assert names(inbox) == []
        assert not inbox.has(name)
        put(tmp_path, name)
    assert names(inbox) == [name]
