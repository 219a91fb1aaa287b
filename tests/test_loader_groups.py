"""Segments share a transaction, and a backlog several connections; each segment stays a ledger entry of its own."""

import contextlib
import random
import subprocess
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import hypothesis.strategies as st
import pyarrow as pa
import pytest
from hypothesis import given

from loader import prepare
from loader.inbox import Candidate
from loader.postgres import ledger
from loader.prepare import (
    AHEAD_BYTES,
    AHEAD_GROUPS,
    GROUP_BYTES,
    GROUP_SEGMENTS,
    Numbered,
    Prepared,
    by_instrument,
    in_groups,
    of_instruments,
    read_ahead,
)
from loader.sender import Target
from tests.fix_postgres import START_US, Process, load_once, query, quotes, record, run_loader, same_rows
from tests.fix_programs import until
from tests.test_kill_points import Record

QUOTES = "eth_option_quotes"
US_PER_SEC = 1_000_000


def numbered(size_bytes: int, *, stream: str = QUOTES, salvage: bool = False, number: int = 0) -> Numbered:
    return Numbered(Candidate(Path("x"), "x", stream, (size_bytes, 0, 0)), number, salvage=salvage)


@pytest.mark.parametrize("size_bytes", [1, GROUP_BYTES])
def test_while_a_group_is_sent_the_next_is_made_ready(size_bytes: int) -> None:
    """However large both are; and never more of them than may be under way."""
    begun: SimpleQueue[int] = SimpleQueue()

    def make(files: Sequence[Numbered]) -> Prepared:
        begun.put(files[0].number)
        return Prepared(None, ())

    groups = [[numbered(size_bytes, number=number)] for number in range(20)]
    with contextlib.closing(read_ahead(groups, make)) as ready:
        for sent, _ in enumerate(ready):
            assert begun.get() == sent
            ahead = min(AHEAD_GROUPS if size_bytes < AHEAD_BYTES else 1, len(groups) - 1 - sent)
            until(lambda most=ahead: begun.qsize() >= most, "the next ones")  # type: ignore[misc]
            assert begun.qsize() == ahead


@given(
    st.lists(
        st.tuples(
            st.integers(0, GROUP_BYTES * 2),
            st.sampled_from([QUOTES, "eth_option_trades"]),
            st.integers(0, 9).map(bool),
        ),
        max_size=40,
    )
)
def test_files_are_cut_into_groups(files: list[tuple[int, str, bool]]) -> None:
    """Every file once; one stream, in its order, a bounded size; what was salvaged stands alone."""
    all_files = [
        numbered(size, stream=stream, salvage=not usual, number=number)
        for number, (size, stream, usual) in enumerate(files)
    ]
    groups = in_groups(all_files)

    assert sorted(file.number for group in groups for file in group) == list(range(len(files)))
    for group in groups:
        assert len({file.candidate.stream for file in group}) == 1
        assert [file.number for file in group] == sorted(file.number for file in group)
        assert len(group) == 1 or sum(file.candidate.size_bytes for file in group) <= GROUP_BYTES
        assert len(group) == 1 or not any(file.salvage for file in group)
    for stream in {stream for _, stream, _ in files}:
        numbers = [file.number for group in groups for file in group if file.candidate.stream == stream]
        assert numbers == sorted(numbers)


def test_many_small_files_make_few_groups() -> None:
    """A thousand of them are five transactions."""
    assert [len(group) for group in in_groups([numbered(1)] * 1000)] == [GROUP_SEGMENTS] * 5


@given(
    st.lists(st.tuples(st.sampled_from(["a", "b", "c", None]), st.one_of(st.none(), st.integers(-5, 5))), max_size=60)
)
def test_rows_are_sorted_stably(rows: list[tuple[str | None, int | None]]) -> None:
    """One run an instrument, each in time order, rows of one time as they came; none is lost."""
    table = pa.table(
        {
            "instrument": pa.chunked_array(
                [[name for name, _ in part] for part in (rows[:7], rows[7:])], pa.string()
            ),
            "timestamp": pa.array([time for _, time in rows], pa.timestamp("us", tz="UTC")),
            "row": pa.array(range(len(rows))),
        }
    )
    found = by_instrument(table)
    names, order = found["instrument"].to_pylist(), found["row"].to_pylist()

    assert sorted(order) == list(range(len(rows)))
    assert sum(one != other for one, other in pairwise(names)) == max(len(set(names)) - 1, 0)
    for name in set(names):
        mine = [number for number in order if rows[number][0] == name]
        assert mine == sorted(mine, key=lambda number: (rows[number][1] or 0, number))


def test_instruments_are_chosen_by_name_or_pattern() -> None:
    """Rows of no instrument concern all of them, and stay."""
    table = pa.table({"instrument": pa.array(["ETH-1", "ETH-2", None, "BTC-1"], pa.string())})

    assert of_instruments(table, ["ETH-*"])["instrument"].to_pylist() == ["ETH-1", "ETH-2", None]
    assert of_instruments(table, ["BTC-1"])["instrument"].to_pylist() == [None, "BTC-1"]
    assert of_instruments(table, None) is table


def backlog(root: Path, segments: int, *, rows: int = 40) -> list[Path]:
    return record(root, [quotes(rows, start_us=START_US + second * US_PER_SEC) for second in range(segments)])


def test_a_backlog_is_loaded_in_groups_over_several_connections(
    tmp_path: Path, any_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All rows, each segment in the ledger with its own number and count."""
    monkeypatch.setattr(prepare, "GROUP_SEGMENTS", 7)
    backlog(tmp_path, 60)
    tally = load_once(tmp_path, any_database, target=Target(connections=3))

    assert (tally.segments, tally.rows) == (60, 2400)
    assert same_rows(tmp_path, any_database, QUOTES)
    of_segment = f"SELECT count(*) FROM {QUOTES} AS rows WHERE rows.segment = ledger.segment"
    ledger = query(any_database, f"SELECT segment, rows, ({of_segment}) FROM loaded_segments AS ledger")
    assert len(ledger) == 60
    assert {(rows, count) for _, rows, count in ledger} == {(40, 40)}
    transactions = query(any_database, "SELECT count(DISTINCT xmin::text) FROM loaded_segments")
    assert transactions == [(9,)]


def test_one_bad_segment_does_not_hold_up_its_group(tmp_path: Path, database: str) -> None:
    """What the table does not take is refused by name; the others of the group are loaded."""
    paths = backlog(tmp_path, 10)
    load_once(tmp_path, database)
    query(database, f"TRUNCATE loaded_segments, {QUOTES}")
    bad_us = START_US + 5 * US_PER_SEC - 50_000
    query(
        database,
        f"ALTER TABLE {QUOTES} ADD CHECK (\"timestamp\" <> to_timestamp({bad_us} / 1e6) OR instrument <> 'ETH-0')",
    )
    tally = load_once(tmp_path, database)

    assert tally.segments == 9
    assert list(tally.refused) == [str(paths[5].relative_to(tmp_path))]
    assert query(database, f"SELECT count(*) FROM {QUOTES}") == [(360,)]


def test_groups_that_overlap_with_another_loaders_are_taken_apart(
    tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another loader brings a part of a group after the ledger was asked: the rest is loaded, nothing twice."""
    paths = backlog(tmp_path, 12)
    asked = ledger.known_ids
    raced: list[int] = []

    def other_loader_comes(connection: Any, ids: Sequence[str]) -> set[str]:
        known = asked(connection, ids)
        if not raced:
            raced.append(len(ids))
            aside = tmp_path.with_name("other")
            for path in paths[::2]:
                (aside / path.relative_to(tmp_path)).parent.mkdir(parents=True, exist_ok=True)
                (aside / path.relative_to(tmp_path)).write_bytes(path.read_bytes())
            assert load_once(aside, database).segments == 6
        return known

    monkeypatch.setattr(ledger, "known_ids", other_loader_comes)
    tally = load_once(tmp_path, database)

    assert raced == [12]
    assert (tally.segments, tally.skipped) == (6, 6)
    assert query(database, f"SELECT count(*), count(DISTINCT segment) FROM {QUOTES}") == [(480, 12)]
    assert same_rows(tmp_path, database, QUOTES)


def test_two_copies_in_one_group_count_once(tmp_path: Path, database: str) -> None:
    """The same segment under two names, neither loaded before."""
    for path in backlog(tmp_path, 5)[::2]:
        path.with_name(path.name.replace("-test-", "-copy-")).write_bytes(path.read_bytes())
    tally = load_once(tmp_path, database)

    assert (tally.segments, tally.skipped, tally.refused) == (5, 3, {})
    assert query(database, f"SELECT count(*) FROM {QUOTES}") == [(200,)]


# What holds the ledger's rows is about to load.
_AT_WORK = """
SELECT count(*)::int FROM pg_locks JOIN pg_class ON pg_class.oid = relation
WHERE relname = 'loaded_segments' AND mode = 'RowExclusiveLock'
"""


def _at_work(database: str, racers: Sequence[Process]) -> bool:
    """Whether one of them loads, or all is loaded."""
    return query(database, _AT_WORK) != [(0,)] or any(racer.popen.poll() is not None for racer in racers)


@pytest.mark.timeout(900)
def test_racing_loaders_killed_at_random_load_each_row_once(
    tmp_path: Path, database: str, full: bool, record_property: Record
) -> None:
    """Two programs over one backlog, killed again and again while they load."""
    seed = random.randrange(10**9)
    print("seed", seed)
    rng = random.Random(seed)
    segments, rounds = (5600, 25) if full else (600, 3)
    backlog(tmp_path, segments, rows=60)
    load_once(tmp_path / "nothing", database)  # the ledger is there, and empty
    found = [0]
    for _ in range(rounds):
        racers = [Process("load", "--once", root=tmp_path, url=database) for _ in range(2)]
        until(partial(_at_work, database, racers), "a loader at work")
        for racer in racers:
            with contextlib.suppress(subprocess.TimeoutExpired):
                racer.popen.wait(rng.uniform(0.0, 0.3))
            racer.popen.kill()
            racer.wait()
        found += query(database, "SELECT count(*)::int FROM loaded_segments")[0]
    assert run_loader("load", "--once", root=tmp_path, url=database).popen.returncode == 0

    killed_at_work = sum(number < segments for number in found[1:])
    print(f"{rounds} rounds, {killed_at_work} ended before all was loaded: {found}")
    assert killed_at_work >= rounds // 2
    assert query(database, f"SELECT count(*), count(DISTINCT segment) FROM {QUOTES}") == [(segments * 60, segments)]
    assert same_rows(tmp_path, database, QUOTES)
    record_property("fault", "1,10")
    record_property("cases", 2 * killed_at_work)
    record_property("shown", f"two loaders killed {2 * rounds} times, {2 * killed_at_work} of them with a backlog")


def test_a_schema_of_its_own_remembers_its_filter(tmp_path: Path, any_database: str) -> None:
    """Replay --into-schema holds the chosen instruments only, again without naming them, and refuses others."""
    backlog(tmp_path, 5)
    load_once(tmp_path, any_database)
    chosen = ["replay", "--into-schema", "part", "--instruments", "ETH-1,ETH-2"]
    first = run_loader(*chosen, root=tmp_path, url=any_database)
    assert first.popen.returncode == 0, first.err
    backlog(tmp_path / "more", 1)  # another tape, whose segments are added to this one
    for path in (tmp_path / "more").glob(f"{QUOTES}/*/*.arrow"):
        path.rename(tmp_path / QUOTES / path.parent.name / path.name.replace("-test-", "-more-"))
    again = run_loader("replay", "--into-schema", "part", root=tmp_path, url=any_database)
    other = run_loader("replay", "--into-schema", "part", "--instruments", "ETH-0", root=tmp_path, url=any_database)

    assert again.out.startswith("loaded 1 segment (26 rows), skipped 5 segments"), again.out + again.err
    assert other.popen.returncode == 2
    assert other.err.splitlines()[-1] == (
        "error: the schema part was made for ETH-1,ETH-2; leave --instruments out, or choose another schema"
    )
    found = query(any_database, f"SELECT instrument, count(*) FROM part.{QUOTES} GROUP BY 1 ORDER BY 1")
    assert found == [("ETH-1", 78), ("ETH-2", 78)]
    assert query(any_database, f"SELECT count(*) FROM public.{QUOTES}") == [(200,)]
    equal = run_loader("audit", "--schema", "part", root=tmp_path, url=any_database)
    assert equal.popen.returncode == 0, equal.out
    query(any_database, f"UPDATE part.{QUOTES} SET mark_price = 7 WHERE segment = 2 AND instrument = 'ETH-1'")
    differs = run_loader("audit", "--schema", "part", "--repair", root=tmp_path, url=any_database)
    assert differs.popen.returncode == 0, differs.out
    assert "repaired" in differs.out
    assert query(any_database, f"SELECT count(*) FROM part.{QUOTES} WHERE mark_price = 7") == [(0,)]
    unnamed = run_loader("replay", "--instruments", "ETH-1", root=tmp_path, url=any_database)
    assert unnamed.popen.returncode == 2
    assert "--instruments needs --into-schema" in unnamed.err


def test_a_dry_run_changes_nothing(tmp_path: Path, database: str) -> None:
    """It tells what would be loaded, in an empty database and in a half-filled one."""
    backlog(tmp_path, 4)
    empty = run_loader("replay", "--dry-run", root=tmp_path, url=database)
    assert empty.out.splitlines()[-1] == "would load 4 segments; 0 segments already there"
    assert query(database, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == [(0,)]
    run_loader("replay", "--to", "2026-05-28T20:26:41.5", root=tmp_path, url=database)
    half = run_loader("replay", "--dry-run", "--streams", "quotes", root=tmp_path, url=database)
    assert half.out.splitlines()[-1] == "would load 2 segments; 2 segments already there"
    none = run_loader("replay", "--dry-run", "--streams", "trades", root=tmp_path, url=database)
    assert none.out.splitlines()[-1] == "would load 0 segments; 0 segments already there"
