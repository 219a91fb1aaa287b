"""Lays a report out as lines of text, for a terminal of some size or for a file. Pure."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from recorder.status.report import Loader, Recorder, Report, Stream, many

# From this width on a table shows all its columns.
WIDE = 100
_UNKNOWN = "-"


@dataclass(frozen=True)
class Line:
    """A line, and what it is: the one that says how it stands, what is wrong, a heading, a note, or plain."""

    text: str
    kind: str = "plain"  # good, bad, heading, note, plain


def lay_out(found: Report, *, width: int) -> list[Line]:
    """Return all lines; those for people to act on come first."""
    at = datetime.fromtimestamp(found.at_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    whose = f" of {found.tape.recorder}" if found.tape.recorder else ""
    tape = found.tape.data_dir
    room = max(width - len(f"tape {whose} at {at}") - 1, 8)
    tape = tape if len(tape) <= room else "…" + tape[1 - room :]  # the end of a path tells more
    lines = [Line(f"tape {tape}{whose} at {at}", "heading"), _verdict(found)]
    lines += [Line(f"  {problem}", "bad") for problem in found.problems]
    lines += [Line(f"  {note}", "note") for note in found.notes]
    if found.recorder:
        lines += _recorder(found.recorder, found)
    if found.loader:
        lines += _loader(found.loader, found.at_s)
    if not found.tape.trouble:
        lines += _tape(found)
        lines += _streams(found.streams, found.tape.at_s, wide=width >= WIDE)
    return lines


def fit(lines: Sequence[Line], *, width: int, height: int) -> list[Line]:
    """Cut lines to a terminal's size, and say how many are not shown."""
    most = max(height, 1)
    shown = list(lines)
    if len(shown) > most:
        hidden = len(shown) - most + 1
        shown = [*shown[: most - 1], Line(f"… {many(hidden, 'line')} more: enlarge the terminal", "note")]
    return [
        Line(line.text if len(line.text) <= width else line.text[: max(width - 1, 0)] + "…", line.kind)
        for line in shown
    ]


def duration(seconds: float) -> str:
    """Return a time span in the unit that suits it."""
    seconds = max(seconds, 0.0)
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    for per, unit, until in ((1, "s", 120), (60, "min", 120), (3600, "h", 48)):
        if round(seconds / per) < until:
            return f"{seconds / per:.0f} {unit}"
    return f"{seconds / 86_400:,.0f} days"


def _verdict(found: Report) -> Line:
    if found.healthy:
        return Line("healthy", "good")
    if found.healthy is None:
        return Line("nobody could be asked; this is what the files show", "bad")
    return Line(f"not healthy: {many(len(found.problems), 'problem')}", "bad")


def _recorder(told: Recorder, found: Report) -> Iterator[Line]:
    now_s = found.at_s
    yield Line(f"recorder     {told.url}{_running(told.up_s)}{_memory(told.resident_bytes)}", "heading")
    lag = "" if told.lag_s is None else f", {max(told.lag_s, 0.0) * 1000:,.0f} ms behind the exchange"
    yield Line(f"  messages   {_number(told.messages_per_s)}/s, the last {_ago(told.last_message_s, now_s)}{lag}")
    yield Line(
        f"  channels   {_number(told.channels_granted)} of {_number(told.channels_asked)} granted,"
        f" on {_number(told.open_connections)} of {_number(told.connections)} connections"
        f" ({_number(told.reconnects)} lost so far)"
    )
    yield Line(
        f"  disk       flushed {_ago(told.last_flush_s, now_s)}, sealed {_ago(told.last_seal_s, now_s)};"
        f" {_space(found.tape.disk_free_bytes)}{_left(told.disk_left_s)}"
    )
    yield Line(f"  open gaps  {_counts(told.open_gaps)}")


def _loader(told: Loader, now_s: float) -> Iterator[Line]:
    database = {True: "up", False: "away", None: _UNKNOWN}[told.database_up]
    yield Line(f"loader       {told.url}{_running(told.up_s)}; the database is {database}", "heading")
    last = f", the last {_ago(told.last_load_s, now_s)}" if told.last_load_s else ""
    yield Line(
        f"  loaded     {_number(told.loaded_segments)} segments, {_number(told.loaded_rows)} rows"
        f" ({_number(told.rows_per_s)}/s){last}"
    )
    oldest = f", the oldest of {_ago(told.oldest_pending_s, now_s)}" if told.oldest_pending_s else ""
    yield Line(f"  backlog    {_number(told.backlog_segments)} segments, {_megabytes(told.backlog_bytes)} MB{oldest}")


def _tape(found: Report) -> Iterator[Line]:
    tape = found.tape
    # A recorder tells of the disk itself, with the time that is left.
    yield Line("files" + ("" if found.recorder else f"        {_space(tape.disk_free_bytes)}"), "heading")
    gaps = [
        f"{cause} {sum(by_status.values()):,} ({', '.join(f'{n:,} {status}' for status, n in by_status.items())})"
        for cause, by_status in tape.gaps_today.items()
    ]
    yield Line(f"  gaps today {'; '.join(gaps) or 'none'}")
    until = f", until {tape.archived_until}" if tape.archived_until else ""
    yield Line(
        f"  archive    {many(tape.archived_parts, 'part')}{until}; quarantine {many(tape.quarantined_files, 'file')}"
    )


def _streams(streams: Sequence[Stream], now_s: float, *, wide: bool) -> Iterator[Line]:
    if not streams:
        return
    head = ["stream", "rows/s", "buffer", "written", "live MB", "age", "sealed"]
    rows = [
        [
            one.files.stream,
            _number(one.rows_per_s),
            _number(one.unflushed_rows),
            _number(one.written_rows),
            _megabytes(one.files.live_bytes) if one.files.live_since_s else _UNKNOWN,
            _span(one.files.live_since_s, now_s),
            _span(one.files.last_seal_s, now_s),
        ]
        for one in streams
    ]
    if wide:
        head[7:] = ["sealed today", "MB", "dropped"]
        for row, one in zip(rows, streams, strict=True):
            row += [
                f"{one.files.sealed_today:,}", _megabytes(one.files.sealed_today_bytes), _number(one.dropped_rows)
            ]  # fmt: skip
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    for number, row in enumerate([head, *rows]):
        cells = [row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))]
        yield Line("  ".join(cells), "plain" if number else "heading")


def _running(up_s: float | None) -> str:
    return "" if up_s is None else f", up {duration(up_s)}"


def _memory(resident_bytes: int | None) -> str:
    return "" if resident_bytes is None else f", {resident_bytes / 1e6:,.0f} MB of memory"


def _space(free_bytes: int | None) -> str:
    return "" if free_bytes is None else f"{free_bytes / 1e9:,.1f} GB free"


def _left(left_s: float | None) -> str:
    return "" if left_s is None else f", full in {duration(left_s)}"


def _counts(by_name: dict[str, int]) -> str:
    told = ", ".join(f"{name} {count:,}" for name, count in sorted(by_name.items()))
    return f"{sum(by_name.values()):,} ({told})" if told else "none"


def _number(value: float | None) -> str:
    return _UNKNOWN if value is None else f"{value:,.0f}"


def _megabytes(size_bytes: int | None) -> str:
    return _UNKNOWN if size_bytes is None else f"{size_bytes / 1e6:,.1f}"


def _span(then_s: float | None, now_s: float) -> str:
    return _UNKNOWN if then_s is None else duration(now_s - then_s)


def _ago(then_s: float | None, now_s: float) -> str:
    return "never" if then_s is None else f"{duration(now_s - then_s)} ago"
