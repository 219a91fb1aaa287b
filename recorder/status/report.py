"""Says how it stands, out of what the programs told in two looks and what the files show. Pure."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from recorder.free_space import WARN_BELOW_BYTES, WARN_BELOW_H
from recorder.runtime.exit_codes import ExitCode
from recorder.segments.schemas import flush_rank, stream_kind
from recorder.status.endpoint import Told
from recorder.status.files import StreamFiles, TapeFiles

# A buffer that is so full is about to drop rows.
FULL_SHARE = 0.8
# The recorder counts once a second, so that what it told of a second may be of two.
_TICK_S = 1.5


@dataclass(frozen=True)
class Stream:
    """One stream, as its files and its recorder tell it."""

    files: StreamFiles
    rows_per_s: float | None = None
    written_rows: int | None = None  # in this run
    unflushed_rows: int | None = None
    buffer_limit_rows: int | None = None
    dropped_rows: int | None = None


@dataclass(frozen=True)
class Recorder:
    """What a recorder told; None is what it did not tell. Times are seconds since 1970."""

    url: str
    up_s: float | None = None
    messages_per_s: float | None = None
    connections: int | None = None
    open_connections: int | None = None
    reconnects: int | None = None
    channels_asked: int | None = None
    channels_granted: int | None = None
    lag_s: float | None = None
    last_message_s: float | None = None
    last_flush_s: float | None = None
    last_seal_s: float | None = None
    open_gaps: dict[str, int] = field(default_factory=dict)  # by cause; those without any are left out
    disk_left_s: float | None = None
    resident_bytes: int | None = None


@dataclass(frozen=True)
class Loader:
    """What a loader told; None is what it did not tell. Times are seconds since 1970."""

    url: str
    up_s: float | None = None
    database_up: bool | None = None
    rows_per_s: float | None = None
    loaded_segments: int | None = None
    loaded_rows: int | None = None
    backlog_segments: int | None = None
    backlog_bytes: int | None = None
    oldest_pending_s: float | None = None  # the first row of the oldest segment that is not loaded
    last_load_s: float | None = None
    refused_segments: int | None = None


@dataclass(frozen=True)
class Report:
    """How it stands."""

    at_s: float  # seconds since 1970
    healthy: bool | None  # None: nobody could be asked
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    recorder: Recorder | None  # None: it did not answer, or was not asked
    loader: Loader | None
    streams: tuple[Stream, ...]
    tape: TapeFiles

    @property
    def exit_code(self) -> ExitCode:
        """Return what the program ends with."""
        return {True: ExitCode.DONE, False: ExitCode.FAILED, None: ExitCode.NOT_CHECKED}[self.healthy]

    def as_json(self) -> str:
        """Return one object."""
        found = asdict(self)
        del found["tape"]["streams"]  # they are told below `streams`
        return json.dumps(found)


def report(recorder: Sequence[Told], loader: Sequence[Told], tape: TapeFiles, now_s: float) -> Report:
    """Judge what was told.

    Args:
        recorder: what it told, oldest first; the newest counts, the others are for rates.
        loader: likewise.
        tape: what the files showed, which may be a few seconds ago.
        now_s: seconds since 1970.
    """
    newest = (recorder[-1], loader[-1])
    problems = [*_of_program(newest[0]), *_of_recorder(newest[0]), *_of_program(newest[1]), *_of_loader(newest[1])]
    problems += _of_tape(tape)
    answered = any(told.answered for told in newest)
    return Report(
        now_s,
        not problems if answered else None,
        tuple(problems),
        tuple(_notes(newest, tape)),
        _recorder(recorder, now_s) if newest[0].answered else None,
        _loader(loader, now_s) if newest[1].answered else None,
        _streams(recorder, tape),
        tape,
    )


def per_second(looks: Sequence[Told], metric: str, label: str = "", *, clock: str = "") -> float | None:
    """Return how fast a counter grew between the first and the last look at one run of a program.

    Args:
        looks: oldest first.
        metric: the counter.
        label: its label.
        clock: a metric that holds when the counter last grew, in seconds. What is counted once a second, or once a
            flush, is divided by the time that it took to come and not by that between the looks, where both agree.

    Returns:
        None if that is not known: one look, a new run in between, or nothing that was counted anew.
    """
    run = [told for told in looks if told.get(metric, label) is not None and _same_run(told, looks[-1])]
    if len(run) < 2 or run[-1].at_s <= run[0].at_s:
        return None
    grown = run[-1].numbers[metric, label] - run[0].numbers[metric, label]
    took_s = run[-1].at_s - run[0].at_s
    if clock:
        counted_s = (run[-1].get(clock) or 0.0) - (run[0].get(clock) or 0.0)
        if abs(counted_s - took_s) <= _TICK_S and counted_s > 0:
            took_s = counted_s
    return max(grown, 0.0) / took_s


def _same_run(one: Told, other: Told) -> bool:
    return one.get("process_start_time_seconds") == other.get("process_start_time_seconds")


# What is wrong


def _of_program(told: Told) -> list[str]:
    if told.trouble:
        return [f"{told.program}: does not answer at {told.url}: {told.trouble}"]
    return [f"{told.program}: {check}: {why}" for check, why in told.checks.items()]


def _of_recorder(told: Told) -> list[str]:
    asked, granted = told.get("recorder_channels_asked"), told.get("recorder_channels_granted")
    problems = []
    # With none granted at all the check above says so.
    if asked is not None and granted and granted < asked:
        problems.append(f"recorder: {asked - granted:,.0f} of {asked:,.0f} channels are not granted")
    limits = told.by_label("recorder_buffer_limit_rows")
    for stream, rows in told.by_label("recorder_unflushed_rows").items():
        if limits.get(stream) and rows >= FULL_SHARE * limits[stream]:
            problems.append(f"recorder: the buffer of {stream} is {100 * rows / limits[stream]:.0f} % full")
    left_s, free = told.get("recorder_disk_left_seconds"), told.get("recorder_disk_free_bytes")
    if left_s is not None and left_s < WARN_BELOW_H * 3600:
        problems.append(f"recorder: the disk is full in {left_s / 3600:.1f} h at the rate of the last hour")
    elif free is not None and free < WARN_BELOW_BYTES:
        problems.append(f"recorder: {free / 1e9:.1f} GB are free on the disk")
    return problems


def _of_loader(told: Told) -> list[str]:
    refused = told.get("loader_refused_segments")
    if not refused:
        return []
    return [f"loader: {many(refused, 'segment')} refused; python -m loader status names them"]


def _of_tape(tape: TapeFiles) -> list[str]:
    if tape.trouble:
        return [f"tape: {tape.data_dir}: {tape.trouble}"]
    problems = [f"tape: {why}" for why in tape.unreadable]
    if tape.quarantined_files:
        problems.append(f"tape: {many(tape.quarantined_files, 'file')} in quarantine: look at them, then remove them")
    return problems


def _notes(newest: Sequence[Told], tape: TapeFiles) -> list[str]:
    names = {"recorder": "METRICS_PORT", "loader": "LOADER_METRICS_PORT"}
    notes = [f"the {told.program} was not asked: {names[told.program]} is off" for told in newest if not told.url]
    notes += [
        f"{many(rows, 'row')} of {stream} found no room since the start, told as overflow gaps"
        for stream, rows in newest[0].by_label("recorder_dropped_rows_total").items()
        if rows
    ]
    if tape.rejected_files:
        notes.append(f"{many(tape.rejected_files, 'file')} of messages that could not be read in rejected/")
    return notes


def many(count: float, noun: str) -> str:
    """Return a count and its noun, in the plural where it is."""
    return f"{count:,.0f} {noun}{'' if count == 1 else 's'}"


# What is


def _recorder(looks: Sequence[Told], now_s: float) -> Recorder:
    told = looks[-1]
    return Recorder(
        told.url,
        up_s=_up_s(told, now_s),
        messages_per_s=per_second(looks, "recorder_messages_total", clock="recorder_last_message_timestamp_seconds"),
        connections=_count(told, "recorder_connections"),
        open_connections=_count(told, "recorder_open_connections"),
        reconnects=_count(told, "recorder_reconnects_total"),
        channels_asked=_count(told, "recorder_channels_asked"),
        channels_granted=_count(told, "recorder_channels_granted"),
        lag_s=told.get("recorder_lag_seconds"),
        # 0 is "never".
        last_message_s=told.get("recorder_last_message_timestamp_seconds") or None,
        last_flush_s=told.get("recorder_last_flush_timestamp_seconds") or None,
        last_seal_s=told.get("recorder_last_seal_timestamp_seconds") or None,
        open_gaps={cause: int(count) for cause, count in told.by_label("recorder_open_gaps").items() if count},
        disk_left_s=told.get("recorder_disk_left_seconds"),
        resident_bytes=_count(told, "process_resident_memory_bytes"),
    )


def _loader(looks: Sequence[Told], now_s: float) -> Loader:
    told = looks[-1]
    up = told.get("loader_database_up")
    return Loader(
        told.url,
        up_s=_up_s(told, now_s),
        database_up=None if up is None else bool(up),
        rows_per_s=per_second(looks, "loader_rows_loaded_total"),
        loaded_segments=_count(told, "loader_segments_loaded_total"),
        loaded_rows=_count(told, "loader_rows_loaded_total"),
        backlog_segments=_count(told, "loader_backlog_segments"),
        backlog_bytes=_count(told, "loader_backlog_bytes"),
        oldest_pending_s=told.get("loader_oldest_pending_segment_timestamp_seconds") or None,
        last_load_s=told.get("loader_last_load_timestamp_seconds") or None,
        refused_segments=_count(told, "loader_refused_segments"),
    )


def _streams(looks: Sequence[Told], tape: TapeFiles) -> tuple[Stream, ...]:
    """Return every stream that either the files or the recorder know."""
    told = looks[-1]
    files = {one.stream: one for one in tape.streams}
    known = {stream for stream in told.by_label("recorder_buffer_limit_rows") if stream_kind(stream)}
    return tuple(
        Stream(
            files.get(stream, StreamFiles(stream)),
            rows_per_s=per_second(
                looks, "recorder_rows_written_total", stream, clock="recorder_last_flush_timestamp_seconds"
            ),
            written_rows=_count(told, "recorder_rows_written_total", stream),
            unflushed_rows=_count(told, "recorder_unflushed_rows", stream),
            buffer_limit_rows=_count(told, "recorder_buffer_limit_rows", stream),
            dropped_rows=_count(told, "recorder_dropped_rows_total", stream),
        )
        for stream in sorted(files.keys() | known, key=lambda stream: (flush_rank(stream), stream))
    )


def _count(told: Told, metric: str, label: str = "") -> int | None:
    value = told.get(metric, label)
    return None if value is None else int(value)


def _up_s(told: Told, now_s: float) -> float | None:
    since_s = told.get("process_start_time_seconds")
    return None if since_s is None else max(now_s - since_s, 0.0)
