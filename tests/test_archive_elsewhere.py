"""An archive outside of DATA_DIR, which ARCHIVE_URL names, is part of the tape for every command of the analysis."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

import analysis
from analysis.cli import main
from analysis.settings import AnalysisSettings, archive_of
from loader.archive.store import FolderStore, open_store
from loader.settings import LoaderSettings
from recorder.runtime.data_dir import DataDir
from recorder.runtime.errors import SettingsError
from recorder.segments.layout import sealed_files
from tests.fix_archive import QUOTES, archive
from tests.segment_tools import batches, quote_rows, tape_in
from tests.test_notebook import Run

COUNT = f"SELECT count(*) AS n FROM {QUOTES}"
WHOLE = ("complete, or told by gap rows", 0)


@pytest.fixture
def root(data_dir: DataDir, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a tape of five segments that tell one whole chain of 50 changes; it is DATA_DIR."""
    tape = tape_in(data_dir)
    for number in range(5):
        start = quote_rows(1)[0][0] + number * 1_000_000
        rows = quote_rows(10, start_us=start, first_change_id=10 * number + 1)
        assert tape.write_round(batches(eth_option_quotes=rows), now_us=start).failure is None
        tape.seal_all()
    monkeypatch.setenv("DATA_DIR", str(data_dir.root))
    return data_dir.root


@pytest.fixture
def moved(root: Path, tmp_path: Path) -> Path:
    """Return a folder beside the tape, in which all of it is archived; of the tape the middle is gone."""
    archive(root, store=FolderStore(tmp_path / "my archive"))
    prune(root)
    return tmp_path / "my archive"


def prune(root: Path) -> None:
    for path in sealed_files(DataDir(root), QUOTES)[1:3]:
        path.unlink()


def verdict(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[str, int]:
    code = main(["completeness", *arguments])
    return capsys.readouterr().out.splitlines()[-1], code


def count(capsys: pytest.CaptureFixture[str], *arguments: str) -> int:
    assert main(["sql", COUNT, "--json", *arguments]) == 0
    ((rows,),) = [list(row.values()) for row in json.loads(capsys.readouterr().out)]
    return int(rows)


@pytest.mark.parametrize("form", ["{}", "file://{}", ".env"])
def test_what_lies_elsewhere_is_not_missing(
    moved: Path, form: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the environment names the archive, by its path or as a URL, or `.env` does."""
    assert (verdict(capsys)[1], count(capsys)) == (1, 30)
    if form == ".env":
        Path(".env").write_text(f"ARCHIVE_URL={moved}\n")
    else:
        monkeypatch.setenv("ARCHIVE_URL", form.format(str(moved).replace(" ", "%20" if "://" in form else " ")))

    assert (verdict(capsys), count(capsys)) == (WHOLE, 50)


@pytest.mark.parametrize("flag", ["--archive", "--archive-url"])
def test_a_flag_wins_over_the_setting(
    moved: Path, flag: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The short one as the one that every setting has."""
    monkeypatch.setenv("ARCHIVE_URL", str(moved / "nowhere"))
    assert verdict(capsys)[1] == 1

    assert (verdict(capsys, flag, str(moved)), count(capsys, flag, str(moved))) == (WHOLE, 50)


def test_report_and_notebook_know_of_it(
    root: Path, moved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They count its rows, and call complete what is."""
    monkeypatch.setenv("ARCHIVE_URL", str(moved))

    assert main(["report", "--out", str(tmp_path / "page.html")]) == 0
    assert capsys.readouterr().err.endswith(": complete, or told by gap rows\n")
    page = (tmp_path / "page.html").read_text()
    assert "50 ticks of up to 1 instrument" in page
    run = Run(root, monkeypatch)
    assert "holds 50 quotes of 1 options" in run.text
    assert run.text.endswith("complete, or told by gap rows")


def test_off_hides_nothing_that_was_archived(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says that no archive is made; the one that lies in DATA_DIR is read as before."""
    archive(root)
    prune(root)
    for url in ("off", ""):
        monkeypatch.setenv("ARCHIVE_URL", url)

        assert (verdict(capsys), count(capsys)) == (WHOLE, 50)


def test_in_python_the_archive_is_that_in_the_tape_s_folder(
    root: Path, moved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless another is named: a program's own environment is not read behind its back."""
    monkeypatch.setenv("ARCHIVE_URL", str(moved))

    assert analysis.open(root).sql(COUNT).fetchall() == [(30,)]
    assert analysis.open(root, archive=moved).sql(COUNT).fetchall() == [(50,)]


@pytest.mark.parametrize("url", ["gs://bucket", "s3://key:secret@bucket", "s3://host:9000/bucket"])
def test_a_wrong_archive_url_is_a_wrong_setting(url: str, root: Path) -> None:
    """For the analysis as for the loader: told, and not an archive that is not there."""
    with pytest.raises(SettingsError, match="ARCHIVE_URL="):
        archive_of(AnalysisSettings(data_dir=str(root), archive_url=url))


def test_a_manifest_names_its_files_and_its_segments(
    root: Path, moved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By their full paths, which sha256sum finds from DATA_DIR; the chain is whole, and a lost part is named."""
    monkeypatch.setenv("ARCHIVE_URL", str(moved))
    file = tmp_path / "manifest"

    assert verdict(capsys, "--manifest", str(file)) == WHOLE
    parts = sorted(str(path) for path in moved.glob("*/date=*/*.parquet"))
    assert {line.partition("  ")[2] for line in file.read_text().splitlines()} > {*parts}
    assert subprocess.run(["sha256sum", "--quiet", "-c", file], cwd=root, check=False).returncode == 0
    assert len((tmp_path / "manifest.chain").read_text().splitlines()) == 5
    assert verdict(capsys, "--verify", str(file)) == ("all as it was", 0)
    Path(parts[0]).unlink()
    main(["completeness", "--verify", str(file)])
    assert f"{parts[0]}: missing" in capsys.readouterr().out.splitlines()


def test_an_archive_in_s3_is_asked_by_every_command(
    root: Path, bucket: LoaderSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Its rows count and its segments are in the chain; that its files are not hashed is said in a line."""
    store = open_store(LoaderSettings(data_dir=str(root), archive_url=bucket.archive_url), lambda: None)
    assert store is not None
    archive(root, store=store)
    prune(root)
    shutil.rmtree(root / "archive", ignore_errors=True)
    file = tmp_path / "manifest"
    verdict(capsys, "--manifest", str(file))
    assert verdict(capsys, "--verify", str(file))[1] == 1  # without it the chain is broken
    monkeypatch.setenv("ARCHIVE_URL", str(bucket.archive_url))

    assert (verdict(capsys), count(capsys)) == (WHOLE, 50)
    assert main(["completeness", "--manifest", str(file)]) == 0
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith(f"the files of the archive {bucket.archive_url} are not hashed; ")
    assert len(said) == 2
    assert len(file.read_text().splitlines()) == 3
    assert len((tmp_path / "manifest.chain").read_text().splitlines()) == 5
    assert verdict(capsys, "--verify", str(file)) == ("all as it was", 0)


def test_checksums_are_of_a_tape_in_a_folder(
    bucket: LoaderSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of an archive by itself there is nothing to hash: 7, and no empty file that proves nothing."""
    for flag in ("--manifest", "--verify"):
        assert main(["completeness", "--data-dir", str(bucket.archive_url), flag, str(tmp_path / "file")]) == 7
        assert "an archive alone" in capsys.readouterr().err
    assert not (tmp_path / "file").exists()
