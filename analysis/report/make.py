"""`analysis report` as a program: asks the tape, and writes the page, which is there when it is whole."""

import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import duckdb

from analysis.completeness import Completeness, check, gaps_told, recorded_told
from analysis.errors import NoReport
from analysis.report import figures, market, recorded
from analysis.report.axis import Axis, moment
from analysis.report.content import Section, Verdict, count_text, duration_text, time_text
from analysis.report.page import render
from analysis.span import Span
from analysis.tables import open_tape
from analysis.tape import TICKS, Tape
from recorder.runtime.version import software
from recorder.segments.schemas import stream_kind


def make(place: str, span: Span, archive: str | None, file: Path) -> None:
    """Write a page about a tape.

    Raises:
        NoTape: there is none.
        NoReport: the tape cannot be read, or the page cannot be written.
    """
    tape = Tape.at(place, archive)
    try:
        page, words = _page(tape, place, span, archive)
    except (OSError, duckdb.Error) as exc:
        raise NoReport(f"the tape cannot be read: {' '.join(str(exc).split())}") from exc
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        draft.write_text(page, "utf-8", errors="replace")
        size_mb = draft.stat().st_size / 1e6
        draft.replace(file)
    except OSError as exc:
        raise NoReport(f"{file} cannot be written: {exc}") from exc
    finally:
        draft.unlink(missing_ok=True)
    sys.stderr.write(f"{file} ({size_mb:.1f} MB): {words}\n")


def _page(tape: Tape, place: str, span: Span, archive: str | None) -> tuple[str, str]:
    """Return the page, and the words of its verdict."""
    found, verdict = _checked(tape, span)
    streams = tape.streams()  # before the tables are made: a stream may be begun meanwhile
    with open_tape(place, span, archive=archive) as connection:
        facts = figures.facts(connection, streams)
        told = recorded.Recorded(gaps_told(connection), recorded_told(connection, streams))
        axis = figures.time_axis(facts, told.since_us, span.start, span.end)
        part = span.start is not None or span.end is not None
        sections = [
            recorded.streams(facts, found, part=part),
            recorded.told_gaps(connection, facts, axis),
            recorded.tick_rates(connection, facts, axis),
            recorded.coverage(found, told, axis),
            *_market_sections(connection, streams, axis),
        ]
    page = render(
        title=f"The tape {place}",
        told=_told(facts, axis),
        verdict=verdict,
        sections=sections,
        made=f"Made {time_text(datetime.now(UTC))} UTC by {software()}. It needs no network.",
    )
    return page, verdict.words


def _checked(tape: Tape, span: Span) -> tuple[Completeness | None, Verdict]:
    try:
        found = check(tape, span)
    except (OSError, duckdb.Error) as exc:
        return None, Verdict(None, f"could not be checked: {' '.join(str(exc).split())}")
    return found, recorded.verdict(found)


def _market_sections(
    connection: duckdb.DuckDBPyConnection, streams: Sequence[str], axis: Axis | None
) -> list[Section]:
    """Return the sections on each market's ticks; their headings name it where there are several."""
    of_ticks = [(stream, kind) for stream in streams if (kind := stream_kind(stream)) in TICKS]
    markets = sorted({stream.removesuffix(f"_{kind}") for stream, kind in of_ticks}) or [""]
    found = []
    for name in markets:
        figures.take_market(connection, name, streams, axis)
        of_market = market.sections(connection, axis)
        found += of_market if len(markets) == 1 else [section.of_market(name) for section in of_market]
    return found


def _told(facts: Sequence[figures.StreamFacts], axis: Axis | None) -> str:
    """Say in a sentence what the tape is."""
    ticks = [one for one in facts if one.kind in TICKS]
    if axis is None:
        return "There are no ticks on it in this time."
    ticks_told = count_text(sum(one.rows for one in ticks), "tick")
    instruments_told = count_text(max(one.instruments for one in ticks), "instrument")
    return (
        f"{ticks_told} of up to {instruments_told}, from {time_text(moment(axis.start_us))} to "
        f"{time_text(moment(axis.end_us))} UTC ({duration_text(axis.end_us - axis.start_us)})."
    )
