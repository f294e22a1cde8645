from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from billing.metering import Size
from billing.money import exact_sum
from billing.periods import HOUR_MS
from billing.pricing import (
    PlanSpan,
    PriceSpan,
    RateTable,
    Resource,
    amount,
    burn_per_second,
    cost,
    pieces,
)

VCPU, MEMORY = Decimal("0.000014"), Decimal("0.0000045")
SIZE = Size(milli_vcpu=2000, memory_mib=512, disk_mib=10240)


def price(price_id, resource, unit_price, from_ms=0, to_ms=None, plan_id=None):
    return PriceSpan(
        price_id=price_id,
        plan_id=plan_id,
        resource=resource,
        unit_price=unit_price,
        from_ms=from_ms,
        to_ms=to_ms,
    )


COMMON = [price(1, Resource.VCPU, VCPU), price(2, Resource.MEMORY, MEMORY)]
TABLE = RateTable.of([PlanSpan(plan_id=1, from_ms=0)], COMMON)


def test_an_hour_of_the_usual_sandbox_costs_what_e2b_says():
    assert cost(SIZE, 0, HOUR_MS, TABLE) == 2 * Decimal("0.0504") + Decimal("0.0162") / 2


def test_one_millisecond_of_one_mebibyte_has_an_exact_price():
    one = Size(milli_vcpu=0, memory_mib=1, disk_mib=0)
    assert cost(one, 0, 1, TABLE) == Decimal("0.00000000000439453125")


@given(st.integers(0, 10**9), st.integers(0, 10**8), st.integers(0, 10**8))
def test_cutting_time_anywhere_costs_the_same(start, first, second):
    middle, end = start + first, start + first + second
    parts = exact_sum([cost(SIZE, start, middle, TABLE), cost(SIZE, middle, end, TABLE)])
    assert parts == cost(SIZE, start, end, TABLE)


@given(st.integers(0, 10**9), st.integers(1, 10**8), st.integers(0, 10**9))
def test_pieces_cover_the_interval_once_whatever_prices_do(start, length, change_ms):
    prices = [
        price(1, Resource.VCPU, VCPU, to_ms=change_ms + 1),
        price(3, Resource.VCPU, VCPU * 2, from_ms=change_ms + 1),
    ]
    table = RateTable.of([PlanSpan(plan_id=1, from_ms=0)], prices)
    found = list(pieces(SIZE, start, start + length, table))
    assert sum(p.quantity for p in found) == length * SIZE.milli_vcpu
    for piece in found:
        assert piece.quantity <= HOUR_MS * SIZE.milli_vcpu
        assert piece.hour_ms % HOUR_MS == 0
    before = sum(p.quantity for p in found if p.price_id == 1)
    assert before == max(0, min(start + length, change_ms + 1) - start) * SIZE.milli_vcpu


def test_a_plans_own_price_wins_while_the_account_is_on_it():
    prices = [*COMMON, price(3, Resource.VCPU, VCPU / 2, plan_id=2, to_ms=3_000)]
    terms = [PlanSpan(plan_id=1, from_ms=0, to_ms=1_000), PlanSpan(plan_id=2, from_ms=1_000)]
    table = RateTable.of(terms, prices)
    assert [table.price_at(Resource.VCPU, at) for at in (999, 1_000, 2_999, 3_000)] == [
        VCPU,
        VCPU / 2,
        VCPU / 2,
        VCPU,
    ]


def test_what_has_no_price_makes_no_piece():
    assert {p.resource for p in pieces(SIZE, 0, 1, TABLE)} == {Resource.VCPU, Resource.MEMORY}
    assert TABLE.price_at(Resource.DISK, 5) == 0


def test_burn_is_the_cost_of_one_second():
    assert burn_per_second(SIZE, 0, TABLE) == cost(SIZE, 0, 1_000, TABLE)


def test_amounts_of_huge_fleets_stay_exact():
    quantity = 10**24 + 1
    assert amount(Resource.VCPU, quantity, VCPU) * 10**6 == quantity * VCPU


def test_a_plan_held_for_no_time_prices_nothing():
    terms = [PlanSpan(plan_id=1, from_ms=0, to_ms=0), PlanSpan(plan_id=2, from_ms=0)]
    assert RateTable.of(terms, COMMON).price_at(Resource.VCPU, 0) == VCPU
