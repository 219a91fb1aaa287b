"""What `analysis completeness` found, in words and for programs."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import islice
from typing import Any

from analysis.completeness import Completeness, Stream
from analysis.proof import Hole
from analysis.tape import TICKS

# Of a tape that is broken everywhere as many lines of a kind are for people; --json has all.
_MOST_LINES = 50


def as_json(found: Completeness, least: float | None) -> dict[str, Any]:
    """Return all that was found, for programs."""
    return {
        "complete": found.verdict(least),
        "start": found.start and found.start.isoformat(),
        "end": found.end and found.end.isoformat(),
        "untold": [asdict(hole) for hole in found.untold],
        "missing_segments": found.missing_segments,
        "unreadable": found.unreadable,
        "below_min_coverage": [] if least is None else [list(one) for one in found.below(least)],
        "streams": {
            name: {
                "segments": stream.segments,
                "provable": stream.provable,
                "proven_until": stream.proven_until and stream.proven_until.isoformat(),
                "not_provable": stream.not_provable and [moment.isoformat() for moment in stream.not_provable],
                "instruments": {
                    instrument: {
                        "rows": one.rows, "coverage": one.coverage, "recorded_s": one.recorded_s,
                        "covered_s": one.covered_s,
                        "proven_until": one.proven_until and one.proven_until.isoformat(),
                        "holes": [asdict(hole) for hole in one.holes],
                    }
                    for instrument, one in sorted(stream.instruments.items())
                },
            }
            for name, stream in found.streams.items()
        },
    }  # fmt: skip


def as_lines(found: Completeness, least: float | None) -> Iterator[str]:
    """Yield what was found, for people."""
    for name, stream in found.streams.items():
        if stream.kind not in TICKS:
            continue
        rows = [one.rows for one in stream.instruments.values() if one.rows]
        yield f"{name}: {stream.segments:,} segments, {sum(rows):,} rows of {len(rows):,} instruments"
        if stream.provable:
            told = [hole for hole in stream.holes if hole.told]
            by_cause = Counter((hole.cause, hole.status) for hole in told)
            causes = ", ".join(f"{count} {cause} ({status})" for (cause, status), count in sorted(by_cause.items()))
            yield f"  proven by its numbers until {_until(stream)}"
            yield f"  holes that gap rows tell: {causes or 'none'}"
        else:
            yield "  not provable: a ticker has no number; gap rows tell when some may be missing"
        if stream.not_provable and _second(stream.not_provable[0]) != _second(stream.not_provable[1]):
            yield f"  not provable: {' to '.join(map(_second, stream.not_provable))}, after the newest row"
        shares = sorted(one.coverage for one in stream.instruments.values() if one.coverage is not None)
        if shares:
            yield f"  time outside of gap rows: least {shares[0]:.2%}, median {shares[len(shares) // 2]:.2%}"
        elif rows and stream.kind != "trades":
            yield "  time outside of gap rows: not known, since nothing tells what was to be recorded"
    yield from _first("NOT TOLD", found.missing_segments)
    yield from _first("NOT TOLD", [_hole(hole) for hole in found.untold])
    yield from _first("not readable", found.unreadable)
    if least is not None:
        below = [f"{name} {instrument}: {share:.2%}" for name, instrument, share in found.below(least)]
        yield from _first(f"below {least:.2%}", below)
    yield _answer(found, least)


def _until(stream: Stream) -> str:
    """Say until when most instruments are proven, and until when each is: many books rest for minutes."""
    proven = sorted(one.proven_until for one in stream.instruments.values() if one.proven_until)
    if not proven:
        return "nothing"
    newest, median, least = map(_second, (proven[-1], proven[len(proven) // 2], proven[0]))
    return newest if newest == least else f"{newest}; half of the instruments until {median}, each until {least}"


def _second(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S}"


def _first(what: str, lines: Sequence[str]) -> Iterator[str]:
    yield from (f"{what}: {line}" for line in islice(lines, _MOST_LINES))
    if len(lines) > _MOST_LINES:
        yield f"{what}: … and {len(lines) - _MOST_LINES:,} more: --json lists all"


def _answer(found: Completeness, least: float | None) -> str:
    verdict = found.verdict(least)
    if found.unreadable:
        return "could not be checked: something cannot be read"
    if verdict is None and not found.nothing:
        return "could not be checked: nothing tells what was to be recorded"
    if verdict is None:
        return "nothing to check: there are no ticks in this time"
    if verdict:
        return "complete, or told by gap rows"
    if found.untold or found.missing_segments:
        return "NOT complete: something is missing that nothing tells"
    return f"NOT complete: less than {least:.2%} of the time is covered"


def _hole(hole: Hole) -> str:
    between = " and ".join(
        f"{datetime.fromtimestamp(us / 1e6, UTC):%Y-%m-%d %H:%M:%S.%f}" for us in (hole.from_us, hole.to_us)
    )
    what = "a break in the book" if hole.first is None else f"trades {hole.first} to {hole.last}"
    if hole.begins:
        what = "nothing came of it"
    return f"{hole.stream} {hole.instrument}: {what}, between {between}"
