from datetime import UTC, datetime, timedelta

import pytest

from config.errors import InvalidArgument
from sandboxes.team_metrics import checked_range, highest, sweep

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)


def at(seconds):
    return NOON + timedelta(seconds=seconds)


def test_the_peak_of_each_step_is_told():
    spans = [(at(-10), None), (at(5), at(10)), (at(6), at(70)), (at(200), at(210))]
    points = sweep(spans, [at(5), at(6)], first=NOON, last=at(90))
    assert [point.concurrent for point in points] == [3, 2, 2, 1]
    assert points[0].start_rate == 2 / 30
    assert highest(points, "concurrent_sandboxes")["value"] == 3


def test_what_ended_before_the_range_does_not_count():
    assert sweep([(at(-10), at(-5))], [], first=NOON, last=at(60))[0].concurrent == 0


def test_an_empty_range_is_one_point_of_nothing():
    [point] = sweep([], [], first=NOON, last=NOON)
    assert (point.at, point.concurrent, point.start_rate) == (NOON, 0, 0)


def test_a_long_range_stays_short():
    assert len(sweep([], [], first=NOON, last=NOON + timedelta(days=31))) <= 501


@pytest.mark.parametrize(
    ("start", "end"), [(20, 10), (-1, None), (None, 10**12), (10**12, None), (0, -5)]
)
def test_an_impossible_range_is_refused(start, end):
    with pytest.raises(InvalidArgument):
        checked_range(start, end, now=NOON)


def test_the_default_is_the_last_seven_days():
    assert checked_range(None, None, now=NOON) == (NOON - timedelta(days=7), NOON)
