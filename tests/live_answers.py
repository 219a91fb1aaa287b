"""Judges answers about a tape that is being written: each row once, none lost since, all that was acknowledged there.

What is compared is what was answered, by polars' joins; times are integer microseconds.
"""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import polars as pl

from recorder.segments.schemas import SCHEMAS
from tests.faults.driver import KEYS, kind_of
from tests.oracle import Row

QUOTES, TRADES = "eth_option_quotes", "eth_option_trades"
NUMBERS = {QUOTES: "change_id", TRADES: "trade_seq"}


class Acknowledged:
    """What the recorder has reported durable, read as it grows."""

    def __init__(self, account: Path) -> None:
        """Take the account that tests.faults.driver keeps."""
        self._account = account
        self._read_bytes = 0
        self._keys: dict[str, list[pl.DataFrame]] = defaultdict(list)

    def keys(self, stream: str) -> pl.DataFrame:
        """Return the keys of all rows of a stream that are durable by now."""
        self._read_on()
        return pl.concat(self._keys[stream]) if self._keys[stream] else _frame_of_keys(stream, [])

    def _read_on(self) -> None:
        if not self._account.exists():
            return
        with self._account.open("rb") as file:
            file.seek(self._read_bytes)
            *lines, _half = file.read().split(b"\n")
        self._read_bytes += sum(len(line) + 1 for line in lines)
        for line in lines:
            try:
                told = json.loads(line)
            except ValueError:
                continue  # a kill came while it was written: of this one and the next nothing is known
            for stream in told.keys() & NUMBERS.keys():
                self._keys[stream].append(_frame_of_keys(stream, told[stream]))


def _frame_of_keys(stream: str, keys: list[Any]) -> pl.DataFrame:
    names = KEYS[kind_of(stream)]
    types = [pl.String if name == "instrument" else pl.Int64 for name in names]
    return pl.DataFrame(keys, schema=dict(zip(names, types, strict=True)), orient="row")


def as_numbers(answer: pl.DataFrame) -> pl.DataFrame:
    """Return an answer with its times as microseconds since 1970."""
    return answer.with_columns(pl.col(pl.Datetime).dt.cast_time_unit("us").cast(pl.Int64))


class Answers:
    """All answers so far; each is judged as it comes, and all against the last."""

    def __init__(self, acknowledged: Acknowledged) -> None:
        self.count = 0
        self._acknowledged = acknowledged
        self._newest: dict[str, pl.DataFrame] = {}
        self._some: list[tuple[str, pl.DataFrame]] = []  # of some columns only

    def durable(self) -> dict[str, pl.DataFrame]:
        """Look what is durable, before it is asked."""
        return {stream: self._acknowledged.keys(stream) for stream in NUMBERS}

    def take(self, what: str, stream: str, answer: pl.DataFrame, durable: pl.DataFrame) -> None:
        """Judge an answer by what was durable before it was asked.

        Args:
            what: who was asked.
            stream: of what.
            answer: its rows, of all columns or at least those that tell rows apart.
            durable: their keys.
        """
        self.count += 1
        lost = missing_in(answer, durable)
        assert lost.is_empty(), (what, stream, "acknowledged and not there", lost.height, lost.head(3).rows())
        self._is_once(what, stream, answer)
        before = self._newest.get(stream)
        if before is not None:
            gone = missing_in(answer, before.select(answer.columns))
            assert gone.is_empty(), (what, stream, "there before, and not now", gone.height, gone.head(3).rows())
        if answer.columns == SCHEMAS[kind_of(stream)].names:
            self._newest[stream] = answer
        else:
            self._some.append((stream, answer))

    def rows(self, stream: str, columns: list[str]) -> list[Row]:
        """Return the rows of the last answer."""
        return self._newest[stream].select(columns).rows()

    def all_are_in_the_last(self) -> None:
        """Say whether the answers of some columns had no row that the last of all columns has not."""
        for stream, answer in self._some:
            more = missing_in(self._newest[stream].select(answer.columns), answer)
            assert more.is_empty(), (stream, "answered once, and nowhere else", more.head(3).rows())

    def _is_once(self, what: str, stream: str, answer: pl.DataFrame) -> None:
        """The first snapshot of a run may repeat the newest change of the run before; nothing else is there twice."""
        number = NUMBERS[stream]
        alone = answer.filter(pl.col("prev_change_id").is_not_null()) if stream == QUOTES else answer
        for rows, key in ((alone, ["instrument", number]), (answer, ["instrument", number, "received_at"])):
            twice = rows.filter(rows.select(key).is_duplicated())
            assert twice.is_empty(), (what, stream, "twice", twice.height, twice.head(4).rows())


def missing_in(answer: pl.DataFrame, wanted: pl.DataFrame) -> pl.DataFrame:
    """Return what of the wanted rows an answer does not have, by the columns of the former."""
    return wanted.join(answer, on=wanted.columns, how="anti", nulls_equal=True)
