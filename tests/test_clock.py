"""The clock of `received_at` under a wall clock that does what it likes."""

from recorder.clock import Clock
from recorder.runtime.backoff import Backoff

S = 1_000_000_000


class Time:
    """A wall clock and a monotonic one, moved by hand."""

    def __init__(self) -> None:
        self.wall, self.monotonic = 1_000_000 * S, 50 * S

    def clock(self) -> Clock:
        return Clock(lambda: self.wall, lambda: self.monotonic)

    def pass_s(self, seconds: float) -> None:
        self.wall += int(seconds * S)
        self.monotonic += int(seconds * S)


def test_a_stepped_wall_clock_does_not_turn_time_back() -> None:
    """Rows go on in monotonic time until the step is taken over on purpose."""
    time = Time()
    clock = time.clock()
    time.pass_s(5)
    time.wall -= 3600 * S

    assert clock.now_us() == 1_000_005_000_000
    assert clock.step_us() == -3_600_000_000
    clock.slew()
    assert clock.now_us() == 1_000_005_000_000
    clock.set()
    assert clock.now_us() == 1_000_005_000_000 - 3_600_000_000
    assert clock.step_us() == 0


def test_drift_is_taken_up_without_running_backwards() -> None:
    """Less than a second is no step; where it is negative, time stands still for it."""
    time = Time()
    clock = time.clock()
    before_us = clock.now_us()
    time.wall -= S // 2
    clock.slew()

    assert clock.step_us() == 0
    assert clock.now_us() == before_us
    time.pass_s(0.6)
    assert clock.now_us() == before_us + 100_000


def test_backoff_doubles_to_a_minute_and_starts_again_only_when_told() -> None:
    """1, 2, 4 … 60 s, each up to a tenth more."""
    backoff = Backoff(seed=1)
    delays = [backoff.next_delay_s() for _ in range(9)]

    for step, delay in zip([1, 2, 4, 8, 16, 32, 60, 60, 60], delays, strict=True):
        assert step <= delay <= min(step * 1.1, 60)
    backoff.reset()
    assert backoff.next_delay_s() < 2
