"""Every reader of the tape: while it is written and its writer is killed, of every version, of copies and strays."""

import hashlib
import json
import logging
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pytest

import analysis
from loader.inbox import Candidate
from loader.prepare import Numbered, Refused, prepare
from recorder.doctor import doctor
from recorder.runtime.data_dir import DataDir
from recorder.segments import reader
from recorder.segments.encode import encode_segment
from recorder.segments.layout import live_files, sealed_files
from recorder.segments.reader import choose_sealed, read_segment, snapshot
from recorder.segments.recovery import recover
from recorder.segments.schemas import SCHEMAS, rows_to_batch
from tests.endless_writer import newest, row
from tests.fix_programs import REPOSITORY, Programs, until
from tests.segment_tools import NOON_US, QUOTES, identity, quote_rows, quotes, tape_in
from tests.segments import judge
from tests.segments.test_doctor import flip, identity_of, tape, tree, version_2

FORMAT_1 = Path(__file__).parent / "fixtures" / "format-1"
SELECT = f"SELECT * FROM {QUOTES} ORDER BY change_id"
# A tape that grows while it is asked may have many millions of rows: these tell whether they are 1, 2, 3 …
NUMBERS = f"""
SELECT count(*) AS rows, count(DISTINCT change_id) AS numbers, max(change_id) AS newest FROM {QUOTES}
WHERE change_id >= 1
"""
Record = Callable[[str, object], None]

pytestmark = pytest.mark.timeout(3600)  # the full sizes take long


# A writer that is killed


class Writer:
    """A process that writes numbered quotes, and what it said of them."""

    def __init__(self, root: Path, log: Path, seed: int) -> None:
        self._log = log
        self._root = root
        self._seed = seed
        self._process: subprocess.Popen[bytes] | None = None
        self.starts = 0

    def start(self) -> None:
        """Start it, and wait until it has recovered what lies there."""
        self.starts += 1
        command = [sys.executable, "-m", "tests.endless_writer", str(self._root), str(self._log)]
        self._process = subprocess.Popen([*command, f"{self._seed}-{self.starts}"], cwd=REPOSITORY)
        until(
            lambda: self._alive() and len(self._said("ready")) == self.starts,
            "the writer",
            patience_s=120,
            every_s=0.01,
        )

    def kill(self) -> None:
        """SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def durable(self) -> int:
        """Up to which number all is durable."""
        return max((int(line) for line in self._said("durable")), default=0)

    def tried(self) -> int:
        """Up to which number something may be on the disk."""
        return max((int(line) for line in self._said("writes")), default=0)

    def _alive(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None
        return True

    def _said(self, word: str) -> list[str]:
        lines = self._log.read_text().splitlines(keepends=True) if self._log.exists() else []
        return [line.split()[1] for line in lines if line.startswith(word) and line.endswith("\n")]


def is_prefix(found: list[tuple[Any, ...]], writer: Writer, before: int, what: str) -> None:
    """Say whether these are the first rows that were written, whole, and all that was durable before the look."""
    assert [one[9] for one in found] == list(range(1, len(found) + 1)), (what, "no prefix, or a row twice")
    assert before <= len(found) <= writer.tried(), (what, before, len(found), writer.tried())
    for one in (*found[:3], *found[-50:]):
        assert one == row(one[9]), (what, "never written")


def by_analysis(root: Path) -> list[tuple[Any, ...]]:
    with analysis.open(root) as con:
        return judge.tuples(con.sql(SELECT).to_arrow_table())


def by_refresh(root: Path) -> list[tuple[Any, ...]]:
    with analysis.open(root) as con:
        first = con.sql(f"SELECT count(*) FROM {QUOTES}").fetchall()
        analysis.refresh(con)
        found = judge.tuples(con.sql(SELECT).to_arrow_table())
    assert first[0][0] <= len(found)
    return found


def by_polars(root: Path) -> list[tuple[Any, ...]]:
    table = pl.scan_ipc(root / QUOTES, hive_partitioning=False).sort("change_id").collect()
    return judge.tuples(
        table.to_arrow().cast(pa.schema([(f.name, one_type(f.type)) for f in table.to_arrow().schema]))
    )


def one_type(kind: pa.DataType) -> pa.DataType:
    return pa.string() if pa.types.is_large_string(kind) or str(kind) == "string_view" else kind


def by_pyarrow(root: Path) -> list[tuple[Any, ...]]:
    return judge.tuples(ds.dataset(root / QUOTES, format="ipc").to_table().sort_by("change_id"))


@pytest.mark.parametrize("turn", range(2))
def test_readers_see_a_committed_prefix_while_the_writer_is_killed(
    tmp_path: Path, turn: int, full: bool, programs: Programs, record_property: Record,
    request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    """DuckDB, polars, pyarrow, and the program, in a loop: all that was durable before the look, nothing else."""
    seed = random.randrange(10**9)
    print("seed", seed)
    rng = random.Random(seed)
    root = tmp_path / "tape"
    writer = Writer(root, tmp_path / "said", seed)
    request.addfinalizer(writer.kill)  # else a test that fails leaves it writing, and its disk fills
    looks = 0
    for kill in range(40 if full else 3):
        writer.start()
        until(writer.durable, "a first row")
        end_s = time.monotonic() + rng.uniform(0.1, 0.8)
        while time.monotonic() < end_s:
            read = rng.choice((by_analysis, by_analysis, by_refresh, by_polars, by_pyarrow))
            before = writer.durable()
            if read in (by_polars, by_pyarrow):  # they see what is sealed
                before = 0
                if not list(root.glob(f"{QUOTES}/date=*/*.arrow")):
                    continue
            is_prefix(read(root), writer, before, f"seed {seed}, kill {kill}, {read.__name__}")
            looks += 1
        if kill % 3 == turn:
            before = writer.durable()
            ran = programs.run("analysis", "sql", NUMBERS, "--json", "--data-dir", root)
            assert ran.process.returncode == 0, ran.err
            (found,) = json.loads(ran.out)
            assert found["rows"] == found["numbers"] == found["newest"] or found["rows"] == 0, found
            assert before <= found["rows"] <= writer.tried()
            looks += 1
        writer.kill()
        is_prefix(by_analysis(root), writer, writer.durable(), f"seed {seed}, kill {kill}, after it")
    recover(DataDir(root))

    assert newest(root) >= writer.durable() > 0
    is_prefix(by_pyarrow(root), writer, writer.durable(), f"seed {seed}, in the end")
    record_property("fault", "16")
    record_property("cases", looks)


def test_no_length_of_a_live_file_disturbs_a_reader(data_dir: DataDir, record_property: Record) -> None:
    """Cut at any byte, as a crash may leave it, a live file gives its committed rows and never an exception."""
    writer = tape_in(data_dir)
    for number in range(3):
        writer.write_round(quotes(2, first_change_id=2 + 2 * number), now_us=NOON_US)
    (live,) = live_files(data_dir, QUOTES)
    original = judge.read(live.read_bytes())
    for cut in range(0, len(original.data), 5):
        live.write_bytes(original.data[:cut])
        found = snapshot(data_dir, QUOTES)
        whole = sum(place.end <= cut for place in original.groups)

        assert (0 if found.live is None else found.live.num_rows) == 2 * whole
        assert found.left_out == ()
    record_property("fault", "16")
    record_property("cases", len(range(0, len(original.data), 5)))


@pytest.mark.parametrize("look", ["live_files", "read_segment", "sealed_files"])
def test_a_segment_that_is_sealed_during_a_look_is_seen_once(
    data_dir: DataDir, monkeypatch: pytest.MonkeyPatch, look: str
) -> None:
    """Sealed after the live files were listed, one was read, or the sealed ones were listed: all rows, once."""
    writer = tape_in(data_dir)
    writer.write_round(quotes(3, first_change_id=2), now_us=NOON_US)
    real = getattr(reader, look)

    def then_sealed(*arguments: Any) -> Any:
        found = real(*arguments)
        writer.seal_all()
        return found

    monkeypatch.setattr(reader, look, then_sealed)
    found = snapshot(data_dir, QUOTES)
    rows = 0 if found.live is None else found.live.num_rows

    assert rows + sum(read_segment(path).rows for path in found.sealed) == 3
    assert len(sealed_files(data_dir, QUOTES)) == 1


# Versions


def fixture_rows() -> dict[str, list[judge.Row]]:
    content = json.loads((FORMAT_1 / "rows.json").read_text())
    return {stream: [tuple(one) for one in rows] for stream, rows in content.items()}


@pytest.fixture
def format_1(tmp_path: Path) -> DataDir:
    """A copy of the tape of version 1."""
    shutil.copytree(FORMAT_1, tmp_path / "format-1", ignore=shutil.ignore_patterns("rows.json", "README.md"))
    return DataDir(tmp_path / "format-1")


def test_the_tape_of_version_1_is_what_it_was() -> None:
    """The fixture was written once; a change of it would hide a change of what is read."""
    digest = hashlib.sha256()
    for path in sorted([*FORMAT_1.rglob("*.arrow"), *FORMAT_1.rglob("*.open"), FORMAT_1 / "rows.json"]):
        digest.update(path.relative_to(FORMAT_1).as_posix().encode() + path.read_bytes())

    assert digest.hexdigest() == "9827601519c7c3413d9b685f7940cd3185cc1674494b72d7c626e9eb73d55e28"


@pytest.mark.parametrize("stream", sorted(fixture_rows()))
def test_version_1_is_read_for_ever(format_1: DataDir, stream: str, record_property: Record) -> None:
    """Each stream by DuckDB and the checker, what is sealed by polars too: every value as it was."""
    rows = fixture_rows()[stream]
    sealed, live = sealed_files(format_1, stream), live_files(format_1, stream)

    with analysis.open(format_1.root) as con:
        assert judge.tuples(con.sql(f"SELECT * FROM {stream} ORDER BY timestamp").to_arrow_table()) == rows
    assert [row for path in (*sealed, *live) for row in judge.tuples(read_segment(path).table)] == rows
    assert [read_segment(path).sealed for path in (*sealed, *live)] == [True, *(False for _ in live)]
    assert not any(read_segment(path).damage for path in (*sealed, *live))
    assert pl.scan_ipc(format_1.root / stream).select(pl.len()).collect().item() == len(rows) - 4 * len(live)
    record_property("fault", "17")
    record_property("cases", len(sealed) + len(live))


def test_version_1_is_sound_and_can_be_finished(format_1: DataDir, capsys: pytest.CaptureFixture[str]) -> None:
    """Doctor finds nothing wrong, and what was left live is sealed with the same rows."""
    assert doctor(str(format_1.root), repair_damage=False) == 0
    assert capsys.readouterr().out == "11 segments, 44 rows: no damage\n"
    recover(format_1)
    for stream, rows in fixture_rows().items():
        assert judge.sealed_rows(format_1.root, stream) == rows


def candidate(data_dir: DataDir, path: Path) -> Candidate:
    return Candidate(path, str(path.relative_to(data_dir.root)), QUOTES, (path.stat().st_size, 0, 0))


def test_version_1_is_loaded(format_1: DataDir) -> None:
    """The loader takes every sealed segment."""
    for stream, rows in fixture_rows().items():
        for path in sealed_files(format_1, stream):
            one = Candidate(path, path.name, stream, (path.stat().st_size, 0, 0))
            prepared = prepare([Numbered(one, 1)])
            assert prepared.group, prepared
            assert prepared.group.rows == min(4, len(rows))


def test_a_newer_version_is_left_where_it_is_and_named_by_everybody(
    data_dir: DataDir, caplog: pytest.LogCaptureFixture, record_property: Record
) -> None:
    """Recovery, loader, and analysis each leave version 2 out and say so; doctor's test is its own."""
    paths = tape(data_dir)
    newer = version_2(paths[1])
    paths[1].write_bytes(newer)
    live = data_dir.live_dir(QUOTES) / f"{paths[2].name.replace('000003', '000004')}.open"
    live.write_bytes(newer)
    before = tree(data_dir.root)
    (recovered,) = recover(data_dir)

    assert (recovered.sealed, recovered.rows) == (None, 0)
    assert "format version 2 is not known" in str(recovered.damage[0])
    (refused,) = prepare([Numbered(candidate(data_dir, paths[1]), 1)]).aside
    assert isinstance(refused, Refused)
    assert "its format version is 2" in refused.reason
    with caplog.at_level(logging.WARNING), analysis.open(data_dir.root) as con:
        assert con.sql(f"SELECT count(*) FROM {QUOTES}").fetchall() == [(24,)]
    named = sorted(str(record.getMessage()) for record in caplog.records)
    why = "its format version is 2, this program knows 1: left where it is"
    assert named == sorted(f"left out {path}: {why}" for path in (paths[1], live))
    assert tree(data_dir.root) == before
    record_property("fault", "17")
    record_property("cases", 8)


def test_the_program_names_a_newer_version_on_stderr(data_dir: DataDir, programs: Programs) -> None:
    """Data goes to stdout; what is left out is named beside it."""
    paths = tape(data_dir)
    paths[1].write_bytes(version_2(paths[1]))
    query = f"SELECT count(*) AS n FROM {QUOTES}"
    ran = programs.run("analysis", "sql", query, "--json", "--data-dir", data_dir.root)

    assert json.loads(ran.out) == [{"n": 24}]
    assert f"left out {paths[1]}: its format version is 2" in ran.err


# What lies there besides


def test_a_copied_segment_counts_once(data_dir: DataDir) -> None:
    """A segment under a second name gives its rows once, as it does in a database."""
    paths = tape(data_dir)
    shutil.copyfile(paths[1], paths[1].with_name("a-copy.arrow"))

    assert len(by_analysis(data_dir.root)) == 36


@pytest.mark.parametrize(("software_bytes", "named"), [(10_000, False), (300_000, True)])
def test_a_segment_that_says_much_of_itself_gives_its_rows(
    data_dir: DataDir, caplog: pytest.LogCaptureFixture, software_bytes: int, named: bool
) -> None:
    """Its beginning is longer than what is read at first; where it is longer than is looked at, it is named."""
    paths = tape(data_dir)
    batch = rows_to_batch(SCHEMAS["quotes"], quote_rows(5))
    talkative = replace(identity(), software="x" * software_bytes)
    long = paths[0].with_name("long.arrow")
    long.write_bytes(encode_segment(batch.schema, talkative, [batch]))

    with warned(caplog, *([f"{long}: all but 5 rows, for its beginning is longer"] if named else [])):
        assert len(by_analysis(data_dir.root)) == 41


def test_a_damaged_segment_and_its_salvage_do_not_count_twice(data_dir: DataDir) -> None:
    """A repair that was interrupted leaves both; the salvage counts."""
    paths = tape(data_dir)
    flip(paths[1])
    damaged = paths[1].read_bytes()
    doctor(str(data_dir.root), repair_damage=True)
    paths[1].write_bytes(damaged)
    chosen, _, left_out = choose_sealed(sealed_files(data_dir, QUOTES), QUOTES)

    assert len(chosen) == 3
    assert paths[1] not in chosen
    assert left_out == []
    assert {identity_of(path).salvages for path in chosen} == {"", identity_of(paths[1]).segment_id}


@contextmanager
def warned(caplog: pytest.LogCaptureFixture, *sentences: str) -> Iterator[None]:
    """Expect one warning for each sentence."""
    with caplog.at_level(logging.WARNING):
        yield
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == len(sentences)
    for sentence in sentences:
        assert any(sentence in message for message in messages), (sentence, messages)


def test_strays_among_the_segments_do_not_spoil_a_query(data_dir: DataDir, caplog: pytest.LogCaptureFixture) -> None:
    """Text, nothing, and a segment of another stream are left out, each named in one sentence."""
    paths = tape(data_dir)
    (paths[0].parent / "notes.arrow").write_text("not a segment\n")
    (paths[0].parent / "empty.arrow").write_bytes(b"")
    other = sealed_files(DataDir(FORMAT_1), "btc_option_quotes")[0]
    shutil.copyfile(other, paths[0].parent / other.name)

    with warned(caplog, "notes.arrow: it is no segment", "empty.arrow: it is no segment", "it is of stream btc_"):
        assert len(by_analysis(data_dir.root)) == 36


def test_a_segment_whose_beginning_is_damaged_still_counts(
    data_dir: DataDir, caplog: pytest.LogCaptureFixture
) -> None:
    """A flip that made it another stream's, or another version, costs no row where the rest of the file proves it."""
    paths = tape(data_dir)
    content = paths[1].read_bytes()
    paths[1].write_bytes(content.replace(b"eth_option_quotes", b"dth_option_quotes", 1))

    with warned(caplog, f"{paths[1].name}: all but 12 rows, for the schema is not what was written"):
        assert len(by_analysis(data_dir.root)) == 36


def test_a_live_file_of_another_stream_does_not_spoil_a_query(
    data_dir: DataDir, caplog: pytest.LogCaptureFixture
) -> None:
    """A live file in the wrong folder, whose columns are others', is left out and named."""
    tape(data_dir)
    trades = live_files(DataDir(FORMAT_1), "eth_option_trades")[0]
    shutil.copyfile(trades, data_dir.live_dir(QUOTES) / trades.name)

    with warned(caplog, "it is of stream eth_option_trades, but lies under eth_option_quotes"):
        assert len(by_analysis(data_dir.root)) == 36
