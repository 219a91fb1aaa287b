"""The disk's end is seen coming."""

import pytest

from recorder.free_space import FreeSpace

GB = 10**9


def test_the_hours_left_follow_from_the_faster_of_own_writing_and_the_disks_loss() -> None:
    """At 1 GB/h by us 100 GB last 100 h; at 10 GB/h by whomever, 10 h."""
    ours, others = FreeSpace(), FreeSpace()
    for minute in range(61):
        ours.add(minute * 60.0, 100 * GB, 0 if minute == 0 else GB // 60)
        others.add(minute * 60.0, 100 * GB - minute * 10 * GB // 60, 0)

    assert ours.hours_left is not None
    assert round(ours.hours_left) == 100
    assert not ours.warning_due(3600.0)
    assert others.hours_left is not None
    assert round(others.hours_left, 1) == 9.0


@pytest.mark.parametrize("at_s", [0, 300, 3600])
@pytest.mark.parametrize("took_s", [10, 180])
def test_what_is_written_once_foretells_nothing(at_s: int, took_s: int) -> None:
    """6 GB of 60, at a start or later, at once or for minutes: at no moment is the disk to be full in a day."""
    space = FreeSpace()
    for second in range(0, 3 * 3600, 10):
        once = 6 * GB * min(max(second - at_s, 0), took_s) // took_s
        space.add(float(second), 60 * GB - once - second * GB // 3600 // 5, 0)
        assert space.hours_left is None or space.hours_left > 200
        assert not space.warning_due(float(second))

    assert space.hours_left is not None


def test_what_goes_on_is_foretold_within_the_hour() -> None:
    """30 GB/h after a quiet hour: long before 60 GB are full, and to the minute once it has gone on for an hour."""
    space, told_s = FreeSpace(), 0
    for second in range(0, 7210, 10):
        space.add(float(second), 60 * GB - max(second - 3600, 0) * 30 * GB // 3600, 0)
        if space.hours_left is not None and space.hours_left < 2 and not told_s:
            told_s = second - 3600

    assert 1200 < told_s <= 2160
    assert space.hours_left is not None
    assert round(space.hours_left, 2) == 1.0


def test_a_pause_of_the_feed_is_no_end_of_the_filling() -> None:
    """Ten minutes of maintenance, in which nothing is written, change nothing of what is coming."""
    space = FreeSpace()
    used = 0
    for second in range(0, 7200, 10):
        used += 0 if 3600 <= second < 4200 else 6 * GB // 360
        space.add(float(second), 100 * GB - used, 0)
        assert second < 1200 or (space.hours_left is not None and space.hours_left < 24)


def test_the_warning_comes_once_an_hour_and_not_before_the_rate_is_known() -> None:
    """Nothing is said in the first twenty minutes; then once, and again after an hour."""
    space = FreeSpace()
    told = []
    for second in range(0, 8500, 10):
        space.add(float(second), 20 * GB, 10 * GB // 360)  # 10 GB/h
        if space.warning_due(float(second)):
            told.append(second)

    assert told == [1200, 4800, 8400]


def test_a_nearly_full_disk_is_told_at_once() -> None:
    """Less than 1 GB is too little at any rate."""
    space = FreeSpace()
    space.add(0.0, GB // 2, 0)

    assert space.hours_left is None
    assert space.warning_due(0.0)


def test_only_a_window_of_samples_is_kept() -> None:
    """Hours of rounds are no more than an hour of samples, and what was written before is forgotten."""
    space = FreeSpace()
    for second in range(20_000):
        space.add(float(second), 100 * GB, GB if second < 7200 else 0)

    assert len(space.samples) < 370
    assert space.hours_left is None
