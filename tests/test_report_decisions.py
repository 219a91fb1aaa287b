"""What a page decides of time and of coverage, as if every second were looked at."""

import hypothesis.strategies as st
import pytest
from hypothesis import given

from analysis.proof import Gap, covered_us, union
from analysis.report.axis import MOST_BUCKETS, Axis, axis_over
from analysis.report.coverage import cells

S = 1_000_000
spans = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20)), max_size=4).map(
    lambda found: union((a * S, (a + more) * S) for a, more in found)
)
gaps = st.lists(
    st.builds(
        lambda cause, a, more: Gap("eth_option_quotes", "A", cause, "lost", a * S, (a + more) * S, None, None),
        st.sampled_from(["crash", "silence"]), st.integers(0, 80), st.integers(1, 30),
    ),
    max_size=6,
)  # fmt: skip


@given(spans, gaps)
def test_a_cell_says_what_share_of_its_time_lies_outside_of_gaps(
    recorded: list[tuple[int, int]], told: list[Gap]
) -> None:
    """As if every second were looked at; and all cells together are what completeness measures."""
    axis = Axis(0, 75 * S, 10 * S)
    found = cells(axis, recorded, told)
    inside = [(max(a, 0), min(b, 75 * S)) for a, b in recorded if a < 75 * S]
    seconds = {second for a, b in inside for second in range(a // S, b // S)}
    missed = {
        cause: {one for gap in told if gap.cause == cause for one in range(gap.from_us // S, gap.to_us // S)}
        & seconds
        for cause in ("crash", "silence")
    }
    told_us = 0.0
    for cell in found:
        own = {second for second in seconds if cell.from_us <= second * S < cell.until_us}
        lost = own & (missed["crash"] | missed["silence"])
        assert own
        assert cell.share == pytest.approx(1 - len(lost) / len(own), abs=0.0001)
        most = max(len(own & one) for one in missed.values())
        assert (cell.cause == "") == (not lost)
        assert not lost or len(own & missed[cell.cause]) == most or cell.until_us - cell.from_us > 10 * S
        told_us += cell.share * len(own) * S
    assert told_us == pytest.approx(
        covered_us(inside, [(one.from_us, one.to_us) for one in told]), abs=0.001 * 75 * S
    )
    assert [cell.from_us for cell in found] == sorted(cell.from_us for cell in found)


@given(st.integers(0, 2**50), st.integers(0, 2**51))
def test_a_chart_has_no_more_points_than_it_can_show(start_us: int, length_us: int) -> None:
    """And its buckets hold all of the time."""
    axis = axis_over(start_us, start_us + length_us)
    assert 0 < len(axis.numbers) <= MOST_BUCKETS
    assert axis.numbers[0] * axis.width_us <= start_us
    assert (axis.numbers[-1] + 1) * axis.width_us > start_us + length_us
    assert all(axis.covered_s(number) >= 1 for number in axis.numbers)


def test_a_bucket_is_told_in_words() -> None:
    """In the largest unit that it is a whole number of."""
    widths = (1, 30, 60, 300, 3600, 10_800, 86_400, 432_000)
    assert [str(Axis(0, 0, width * S)) for width in widths] == [
        "a second", "30 seconds", "a minute", "5 minutes", "an hour", "3 hours", "a day", "5 days",
    ]  # fmt: skip
