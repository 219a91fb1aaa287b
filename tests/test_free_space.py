"""The disk's end is seen coming."""

from recorder.free_space import FreeSpace

GB = 10**9


def test_the_hours_left_follow_from_the_faster_of_own_writing_and_the_disks_loss() -> None:
    """At 1 GB/h by us 100 GB last 100 h; at 10 GB/h by whomever, 10 h."""
    ours, others = FreeSpace(), FreeSpace()
    for minute in range(11):
        ours.add(minute * 60.0, 100 * GB, 0 if minute == 0 else GB // 60)
        others.add(minute * 60.0, 100 * GB - minute * 10 * GB // 60, 0)

    assert ours.hours_left is not None
    assert round(ours.hours_left) == 100
    assert not ours.warning_due(600.0)
    assert others.hours_left is not None
    assert 9 < others.hours_left < 10


def test_the_warning_comes_once_an_hour_and_not_before_the_rate_is_known() -> None:
    """Nothing is said of a minute's start; then once, and again after an hour."""
    space = FreeSpace()
    told = []
    for second in range(0, 7300, 10):
        space.add(float(second), 20 * GB, 10 * GB // 360)  # 10 GB/h
        if space.warning_due(float(second)):
            told.append(second)

    assert told == [60, 3660, 7260]


def test_a_nearly_full_disk_is_told_at_once() -> None:
    """Less than 1 GB is too little at any rate."""
    space = FreeSpace()
    space.add(0.0, GB // 2, 0)

    assert space.hours_left is None
    assert space.warning_due(0.0)


def test_only_a_window_of_samples_is_kept() -> None:
    """A week of rounds is no more than ten minutes of samples, and an old burst is forgotten."""
    space = FreeSpace()
    space.add(0.0, 100 * GB, 50 * GB)
    for second in range(1, 20_000):
        space.add(float(second), 100 * GB, 0)

    assert len(space.samples) < 70
    assert space.hours_left is None
