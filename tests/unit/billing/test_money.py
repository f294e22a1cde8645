from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.money import (
    exact_sum,
    format_exact,
    format_minor,
    from_minor,
    percent_of_minor,
    split_minor,
    to_minor,
)


def test_halves_round_away_from_zero():
    assert [to_minor(Decimal(x), "USD") for x in ("0.005", "0.0049", "-0.005")] == [1, 0, -1]


def test_each_currency_has_its_own_minor_unit():
    amount = Decimal("12.3456")
    assert [to_minor(amount, c) for c in ("JPY", "USD", "KWD")] == [12, 1235, 12346]
    assert from_minor(1235, "USD") == Decimal("12.35")


def test_an_unknown_currency_is_refused():
    with pytest.raises(ValueError, match="XXX"):
        to_minor(Decimal(1), "XXX")


@pytest.mark.parametrize(
    ("amount", "shown"),
    [
        ("0", "$0.00"),
        ("0.0018", "$0.0018"),
        ("0.00000001234", "$0.000000012"),
        ("0.01", "$0.01"),
        ("1234.567", "$1,234.57"),
        ("-3.5", "-$3.50"),
    ],
)
def test_small_sums_are_shown_honestly(amount, shown):
    assert format_exact(Decimal(amount), "USD") == shown


def test_a_currency_without_symbol_shows_its_code():
    assert format_minor(1500, "CHF") == "15.00 CHF"


@given(st.integers(-(10**12), 10**12), st.lists(st.decimals(0, 10**9, places=9), min_size=1))
def test_split_parts_add_up_and_stay_within_one_unit(total, weights):
    parts = split_minor(total, weights)
    assert sum(parts) == total
    whole = exact_sum(weights)
    if whole:
        for part, weight in zip(parts, weights, strict=True):
            assert abs(part - total * weight / whole) <= Decimal("1.0001")


def test_tax_is_rounded_once():
    assert percent_of_minor(999, Decimal("19")) == 190
    assert percent_of_minor(1, Decimal("50")) == 1
