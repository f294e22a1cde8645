from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.periods import (
    from_ms,
    hour_of,
    next_period_start,
    period_containing,
    prorated_minor,
    to_ms,
)

INSTANTS = st.datetimes(datetime(2000, 1, 1), datetime(2090, 1, 1), timezones=st.just(UTC))


def test_an_anchor_past_the_end_of_a_month_means_its_last_day():
    start, end = period_containing(datetime(2027, 2, 28, 12, tzinfo=UTC), anchor_day=31)
    assert (start.month, start.day, end.month, end.day) == (2, 28, 3, 31)
    assert period_containing(datetime(2028, 2, 29, tzinfo=UTC), anchor_day=30)[0].day == 29


@given(INSTANTS, st.integers(1, 31))
def test_periods_tile_time(at, anchor_day):
    start, end = period_containing(at, anchor_day=anchor_day)
    assert start <= at < end
    assert next_period_start(start, anchor_day=anchor_day) == end
    assert period_containing(end, anchor_day=anchor_day)[0] == end


@given(INSTANTS)
def test_milliseconds_round_down_and_hours_hold_them(at):
    ms = to_ms(at)
    assert timedelta(0) <= at - from_ms(ms) < timedelta(milliseconds=1)
    assert hour_of(ms) <= ms < hour_of(ms) + 3_600_000


def test_instants_of_other_zones_are_the_same_instants():
    assert to_ms(datetime.fromisoformat("2026-01-01T05:30:00+05:30")) == to_ms(
        datetime(2026, 1, 1, tzinfo=UTC)
    )


@given(st.integers(0, 10**9), st.floats(0, 1))
def test_proration_never_leaves_the_fee(fee, share):
    start, end = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 2, 1, tzinfo=UTC)
    part = prorated_minor(fee, start=start, end=end, since=start + share * (end - start))
    assert 0 <= part <= fee


def test_proration_of_the_whole_and_of_nothing():
    start, end = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 2, 1, tzinfo=UTC)
    assert prorated_minor(15000, start=start, end=end, since=start) == 15000
    assert prorated_minor(15000, start=start, end=end, since=end + timedelta(1)) == 0


def test_an_impossible_anchor_is_refused():
    with pytest.raises(ValueError, match="anchor day"):
        period_containing(datetime(2026, 1, 1, tzinfo=UTC), anchor_day=32)
