from hypothesis import given
from hypothesis import strategies as st

from nodeagent.pool_policy import HALF_LIFE_SECONDS, wanted_size


def test_without_demand_the_floor_is_kept():
    assert wanted_size([], now=1000.0, floor=3, ceiling=10) == 3


def test_a_burst_is_met_from_stock_the_next_time():
    burst = [1000.0 + i * 0.1 for i in range(8)]
    assert wanted_size(burst, now=1001.0, floor=2, ceiling=20) == 8


def test_demand_above_the_ceiling_is_cut():
    assert wanted_size([1000.0] * 50, now=1000.0, floor=2, ceiling=20) == 20


def test_a_floor_above_the_ceiling_wins():
    assert wanted_size([], now=0.0, floor=30, ceiling=20) == 30


def test_a_steady_trickle_does_not_add_up():
    trickle = [float(at) for at in range(0, 600, 15)]
    assert wanted_size(trickle, now=600.0, floor=0, ceiling=20) == 1


def test_demand_is_forgotten_with_time():
    burst = [1000.0] * 8
    sizes = [
        wanted_size(burst, now=1000.0 + half_lives * HALF_LIFE_SECONDS, floor=0, ceiling=20)
        for half_lives in range(7)
    ]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == 8
    assert sizes[-1] == 0


@given(
    st.lists(st.floats(0, 1e6), max_size=50).map(sorted),
    st.integers(0, 20),
    st.integers(0, 20),
)
def test_the_size_is_always_within_its_bounds(claimed_at, floor, ceiling):
    size = wanted_size(claimed_at, now=1e6, floor=floor, ceiling=ceiling)
    assert floor <= size <= max(floor, ceiling)
