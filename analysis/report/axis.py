"""The time that a page is about, cut into buckets that a chart can show. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

# What is drawn of one series at most: less than a point a pixel, also on a phone.
MOST_BUCKETS = 200
_SECOND_US = 1_000_000
_DAY_S = 86_400
_WIDTHS_S = (
    1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10_800, 21_600, 43_200, _DAY_S, 2 * _DAY_S,
    5 * _DAY_S, 10 * _DAY_S, 30 * _DAY_S, 100 * _DAY_S, 365 * _DAY_S,
)  # fmt: skip


@dataclass(frozen=True)
class Axis:
    """From the oldest row to the newest, both included, in µs since 1970. A bucket's number counts from 1970, too."""

    start_us: int
    end_us: int
    width_us: int

    @property
    def numbers(self) -> range:
        """Return the numbers of all buckets, with rows or without."""
        return range(self.start_us // self.width_us, self.end_us // self.width_us + 1)

    def start_ms(self, number: int) -> float:
        """Return when a bucket begins, in ms since 1970: what a chart takes for a time."""
        return number * self.width_us / 1000

    def covered_s(self, number: int) -> float:
        """Return how much of a bucket lies between the oldest row and the newest; a second at least.

        Ticks come in bunches of 100 ms, so that less than a second says nothing of their rate.
        """
        begin, end = number * self.width_us, (number + 1) * self.width_us
        return max(min(end, self.end_us) - max(begin, self.start_us), _SECOND_US) / 1e6

    def __str__(self) -> str:
        """Return how long a bucket is, for people: `5 minutes`."""
        seconds = self.width_us // _SECOND_US
        units = (("day", _DAY_S), ("hour", 3600), ("minute", 60), ("second", 1))
        unit, unit_s = next(one for one in units if seconds % one[1] == 0)
        number = seconds // unit_s
        if number == 1:
            return "an hour" if unit == "hour" else f"a {unit}"
        return f"{number} {unit}s"


def axis_over(start_us: int, end_us: int) -> Axis:
    """Return the axis with the shortest round bucket of which there are not too many."""
    width_us = next(
        (us for s in _widths_s() if (end_us // (us := s * _SECOND_US)) - start_us // us < MOST_BUCKETS),
    )
    return Axis(start_us, end_us, width_us)


def _widths_s() -> Iterable[int]:
    yield from _WIDTHS_S
    width_s = _WIDTHS_S[-1]
    while True:
        width_s *= 2
        yield width_s


def moment(us: int) -> datetime:
    """Return µs since 1970 as a time."""
    return datetime.fromtimestamp(us / 1e6, UTC)
