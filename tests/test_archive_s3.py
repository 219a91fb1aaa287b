"""An archive in a real S3 server, through a proxy that refuses what Backblaze B2 refuses: whole or not there."""

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from loader.archive import s3
from loader.archive.read import Archive, open_archive
from loader.archive.store import Store, open_store
from loader.errors import ArchiveAway, Stopped
from loader.settings import LoaderSettings
from recorder.runtime.data_dir import DataDir
from recorder.runtime.errors import SettingsError
from tests.fix_archive import QUOTES, archive, archived_rows, big_tape, nothing, tape_rows
from tests.fix_postgres import ROOT, START_US, Process, quotes, record, run_loader, wait_for
from tests.fix_s3 import KEY, SECRET, Request, Shim

# What takes more than one chunk of a multipart upload.
BIG_ROWS = 192_000


def store_in(settings: LoaderSettings, check: Callable[[], None] = nothing) -> Store:
    store = open_store(settings, check)
    assert store is not None
    return store


def archive_in(settings: LoaderSettings) -> Archive:
    found = open_archive(settings)
    assert found is not None
    return found


def run_archive(settings: LoaderSettings, *, root: Path) -> Process:
    return run_loader("archive", "--archive-url", str(settings.archive_url), root=root)


@pytest.fixture
def tape(tmp_path: Path) -> Path:
    """A tape whose one part takes several chunks."""
    root = tmp_path / "tape"
    big_tape(root, BIG_ROWS, 3)
    return root


def test_a_tape_is_archived_and_read_back(tape: Path, shim: Shim, bucket: LoaderSettings) -> None:
    """By multipart, without a header that B2 refuses; what the reading side gives is the tape, row for row."""
    done = run_archive(bucket, root=tape)

    assert (done.popen.returncode, done.out[:45]) == (0, "archived 3 segments (192,000 rows) in 1 part ")
    assert sum(request.is_chunk for request in shim.requests) >= 2
    assert [request.method for request in shim.requests if "uploads" in request.query] == ["POST"]
    assert shim.refused == []
    # The manifest is the last thing that is put.
    puts = [request.path for request in shim.requests if request.method in ("PUT", "POST")]
    assert "/manifests/" in puts[-1]
    there = archive_in(bucket)
    (manifest,) = there.manifests()
    rows = there.rows(manifest)
    assert rows.num_rows == BIG_ROWS
    assert rows.column_names[-1] == "segment"
    first = [tuple(row.values()) for row in rows.slice(0, 500).to_pylist()]
    assert {row[1] for row in first} == {"ETH-0"}
    assert first == tape_rows(tape, QUOTES, instrument="ETH-0")[:500]
    assert list(DataDir(tape).archive.rglob("*.*")) == []
    assert KEY not in done.out + done.err
    assert SECRET not in done.out + done.err


def test_the_shim_refuses_what_b2_refuses(shim: Shim) -> None:
    """Else the test above would show nothing: obstore told to send a checksum is turned away."""
    import obstore  # noqa: PLC0415
    from obstore.exceptions import BaseError  # noqa: PLC0415
    from obstore.store import S3Store  # noqa: PLC0415

    store = S3Store("ticks", checksum_algorithm="SHA256", client_options={"allow_http": True})
    with pytest.raises(BaseError, match="by the shim"):
        obstore.put(store, "x", b"y")

    assert [name.lower() for name in shim.refused] == ["x-amz-checksum-sha256"]


def test_killed_in_the_middle_of_an_upload(tape: Path, shim: Shim, bucket: LoaderSettings) -> None:
    """Nothing of it can be seen; one that is started then makes it whole, once, and nothing is left behind."""
    reached, go_on = threading.Event(), threading.Event()

    def hold(request: Request) -> int | None:
        if request.is_chunk and request.query["partNumber"] == ["2"] and not go_on.is_set():
            reached.set()
            go_on.wait(30)
            return 503  # who asked is dead
        return None

    shim.act = hold
    store = store_in(bucket)
    with Process("archive", "--archive-url", str(bucket.archive_url), root=tape) as process:
        assert reached.wait(30)
        process.popen.kill()
        assert process.wait() == -signal.SIGKILL
    go_on.set()

    assert store.names("") == {}
    again = run_archive(bucket, root=tape)
    assert again.popen.returncode == 0
    there = archive_in(bucket)
    (manifest,) = there.manifests()
    assert there.rows(manifest).num_rows == BIG_ROWS
    assert set(store.names("")) == {manifest.name, manifest.part_name}
    assert list(DataDir(tape).archive.rglob("*.*")) == []


def test_killed_before_its_manifest(tmp_path: Path, shim: Shim, bucket: LoaderSettings) -> None:
    """The part is there and does not exist; as late segments make it another part, the old one is cleared away."""
    root = tmp_path / "tape"
    record(root, [quotes(20)])
    reached, go_on = threading.Event(), threading.Event()

    def hold(request: Request) -> int | None:
        if request.method == "PUT" and "/manifests/" in request.path and not go_on.is_set():
            reached.set()
            go_on.wait(30)
            return 503
        return None

    shim.act = hold
    with Process("archive", "--archive-url", str(bucket.archive_url), root=root) as process:
        assert reached.wait(30)
        process.popen.kill()
        process.wait()
    go_on.set()
    (orphan,) = store_in(bucket).names("")
    assert archive_in(bucket).manifests() == []
    record(root, [quotes(20, start_us=START_US - 1_000_000)])
    assert run_archive(bucket, root=root).popen.returncode == 0

    there = archive_in(bucket)
    (manifest,) = there.manifests()
    assert manifest.part_name != orphan
    assert set(store_in(bucket).names("")) == {manifest.name, manifest.part_name}
    assert archived_rows(there, QUOTES) == tape_rows(root, QUOTES)


def test_a_server_that_fails_now_and_then_is_asked_again(tape: Path, shim: Shim, bucket: LoaderSettings) -> None:
    """Every kind of request once: the upload goes on where it was."""
    failed = set()

    def fail_once(request: Request) -> int | None:
        kind = (request.method, tuple(sorted(request.query)), request.query.get("partNumber", [""])[0])
        if kind in failed:
            return None
        failed.add(kind)
        return 503

    shim.act = fail_once
    tally = archive(tape, store=store_in(bucket))

    assert tally.segments == 3
    assert {"PUT", "GET", "HEAD", "POST"} <= {kind[0] for kind in failed}
    (manifest,) = archive_in(bucket).manifests()
    assert archive_in(bucket).rows(manifest).num_rows == BIG_ROWS


def test_a_stop_ends_an_upload_that_hangs(tape: Path, shim: Shim, bucket: LoaderSettings) -> None:
    """SIGTERM while the server says nothing: exit code 0, and nothing to be seen."""
    reached, go_on = threading.Event(), threading.Event()

    def hang(request: Request) -> int | None:
        if request.is_chunk and not go_on.is_set():
            reached.set()
            go_on.wait(30)
            return 503
        return None

    shim.act = hang
    with Process("archive", "--archive-url", str(bucket.archive_url), root=tape) as process:
        assert reached.wait(30)
        code = process.signal(signal.SIGTERM)
    go_on.set()

    assert code == 0
    assert process.out == "interrupted: what was published stays; run it again for the rest\n"
    assert store_in(bucket).names("") == {}


def test_a_stop_in_an_upload_that_runs_makes_the_server_forget_it(
    tape: Path, shim: Shim, bucket: LoaderSettings
) -> None:
    """The upload is aborted, so that no chunks stay behind unseen."""
    asked = threading.Event()

    def check() -> None:
        if asked.is_set():
            raise Stopped("stopped by a signal")

    def notice(request: Request) -> int | None:
        if "uploads" in request.query:  # it begins
            asked.set()
        return None

    shim.act = notice
    with pytest.raises(Stopped):
        archive(tape, store=store_in(bucket, check))

    wait_for(lambda: [one for one in shim.requests if one.method == "DELETE" and "uploadId" in one.query])
    assert store_in(bucket).names("") == {}


def test_what_arrived_otherwise_is_not_published(tape: Path, bucket: LoaderSettings) -> None:
    """A server that keeps other bytes than it was sent is found out by reading back, and the part is removed."""
    store = store_in(bucket)
    put = store.put

    def other_bytes(name: str, draft: Path) -> None:
        data = bytearray(draft.read_bytes())
        data[len(data) // 2] ^= 1
        draft.write_bytes(data)
        put(name, draft)

    store.put = other_bytes  # type: ignore[method-assign]
    (why,) = archive(tape, store=store).refused.values()

    assert "its checksum is not that of what was written" in why
    assert store.names("") == {}
    assert archive(tape, store=store_in(bucket)).segments == 3


def test_an_archive_is_enough_without_the_tape(tmp_path: Path, bucket: LoaderSettings) -> None:
    """Every row can be had from the server when the folder of the tape is gone."""
    root = tmp_path / "tape"
    record(root, [quotes(20), {"data_gaps": quotes(3)["eth_option_quotes"][:0]}, quotes(5)])
    before = tape_rows(root, QUOTES)
    archive(root, store=store_in(bucket))
    shutil.rmtree(root)

    assert archived_rows(archive_in(bucket), QUOTES) == before


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("AWS_SECRET_ACCESS_KEY", "wrong-secret-that-no-log-shows", "check AWS_ACCESS_KEY_ID"),
        ("AWS_ENDPOINT", "http://127.0.0.1:1", "error sending request"),
    ],
)
def test_a_server_that_is_away_or_refuses_is_told(
    bucket: LoaderSettings, monkeypatch: pytest.MonkeyPatch, name: str, value: str, told: str
) -> None:
    """One line that says what to do, exit code 1, and no secret."""
    root = Path(bucket.data_dir)
    record(root, [quotes(3)])
    monkeypatch.setenv(name, value)
    process = run_archive(bucket, root=root)

    assert process.popen.returncode == 1, process.out
    assert told in process.err
    assert "secret-that" not in process.err
    assert len(process.err.splitlines()) == 1


@pytest.mark.parametrize("address", ["localhost:8333", "ftp://host", "http://", "http://host:0"])
def test_a_wrong_endpoint_is_a_wrong_setting(
    bucket: LoaderSettings, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    """Told by its name, before anything is tried."""
    monkeypatch.setenv("AWS_ENDPOINT", address)
    with pytest.raises(SettingsError) as raised:
        open_store(bucket, nothing)

    assert raised.value.problems == [f"AWS_ENDPOINT={address}: expected https://host or http://host:port"]


@pytest.mark.parametrize("address", ["http://me:s3cr3t@host", "http://me:s3cr3t/t@host", "http://host?key=s3cr3t"])
def test_a_secret_in_the_endpoint_is_refused_and_not_shown(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """What the server is asked is signed with the key of the environment."""
    monkeypatch.setenv("AWS_ENDPOINT", address)
    with pytest.raises(SettingsError) as raised:
        open_store(LoaderSettings(archive_url="s3://bucket"), nothing)

    (problem,) = raised.value.problems
    assert problem.endswith(": expected https://host or http://host:port")
    assert "s3cr3t" not in problem


def test_only_who_uploads_needs_obstore(tmp_path: Path) -> None:
    """An archive in a folder works where it cannot be imported."""
    record(tmp_path, [quotes(3)])
    (tmp_path / "obstore.py").write_text("raise ImportError('not here')")
    done = subprocess.run(
        [sys.executable, "-m", "loader", "archive"], capture_output=True, text=True, check=False, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}", "DATA_DIR": str(tmp_path)},
    )  # fmt: skip

    assert (done.returncode, done.stdout[:8]) == (0, "archived")


def test_what_a_server_says_is_shown_without_keys() -> None:
    """Of an answer its code and message; what else is in it may be what was signed, and with which key."""
    body = (
        "Server returned non-2xx status code: 403 Forbidden: <?xml version='1.0'?><Error><Code>Sig</Code>"
        "<Message>No match.</Message><AWSAccessKeyId>AKIA</AWSAccessKeyId><StringToSign>x</StringToSign></Error>"
        "\n\nDebug source:\nRetryError { AKIA }"
    )

    assert s3.said(Exception(body)) == "Server returned non-2xx status code: 403 Forbidden: Sig: No match."
    assert s3.said(Exception("no XML at all\nand more")) == "no XML at all and more"


def test_a_panic_of_obstore_is_told(bucket: LoaderSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no Exception; who waits for the answer must not wait for ever."""

    class Panic(BaseException):
        """As pyo3's."""

    def panic(*_args: object) -> None:
        raise Panic("called unwrap on nothing")

    monkeypatch.setattr("obstore.get", panic)
    with pytest.raises(ArchiveAway, match="obstore broke: called unwrap on nothing"):
        store_in(bucket).read("x")


def test_a_missing_object_is_told_as_such(bucket: LoaderSettings) -> None:
    """Neither a size nor bytes, and removing it again is no error."""
    store = store_in(bucket)

    assert store.size("nothing") is None
    assert store.names("nothing") == {}
    store.remove("nothing")
    with pytest.raises(FileNotFoundError):
        store.read("nothing")
    with pytest.raises(FileNotFoundError), store.opened("nothing"):
        pass


def test_a_bucket_that_is_away_in_the_middle_is_told(tape: Path, shim: Shim, bucket: LoaderSettings) -> None:
    """After bounded retries; what was begun is made again by the next run."""

    def refuse(request: Request) -> int | None:
        return 403 if request.is_chunk else None

    shim.act = refuse
    with pytest.raises(ArchiveAway, match="AWS_ACCESS_KEY_ID"):
        archive(tape, store=store_in(bucket))
    shim.act = lambda _request: None

    assert archive(tape, store=store_in(bucket)).segments == 3
