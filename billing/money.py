"""Exact sums of money: no floats, one rounding point, parts that add up to their whole. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from decimal import ROUND_HALF_UP, Context, Decimal, DivisionByZero, Inexact, InvalidOperation

# Every price and unit ends after finitely many decimals, so exact arithmetic never needs to round.
# The trap turns a lost digit into an error instead of a wrong bill.
EXACT = Context(prec=100, traps=[Inexact, InvalidOperation, DivisionByZero])
_ROUNDING = Context(prec=100, rounding=ROUND_HALF_UP, traps=[InvalidOperation])

EXPONENTS = {
    "AUD": 2, "BRL": 2, "CAD": 2, "CHF": 2, "CZK": 2, "DKK": 2, "EUR": 2, "GBP": 2, "INR": 2,
    "JPY": 0, "KRW": 0, "KWD": 3, "NOK": 2, "NZD": 2, "PLN": 2, "SEK": 2, "SGD": 2, "USD": 2,
}  # fmt: skip
SYMBOLS = {"USD": "$", "EUR": "€", "GBP": "£", "JPY": "¥"}


def exponent(currency: str) -> int:
    """Decimals of the currency's minor unit. Raises: ValueError for a currency we have no table row
    for.
    """
    try:
        return EXPONENTS[currency]
    except KeyError:
        raise ValueError(f"unknown currency {currency!r}") from None


def exact_sum(amounts: Iterable[Decimal]) -> Decimal:
    total = Decimal(0)
    for amount in amounts:
        total = EXACT.add(total, amount)
    return total


def to_minor(amount: Decimal, currency: str) -> int:
    """Whole minor units, halves away from zero. The one place where money is rounded."""
    scaled = amount.scaleb(exponent(currency), context=EXACT)
    return int(scaled.quantize(Decimal(1), context=_ROUNDING))


def from_minor(amount_minor: int, currency: str) -> Decimal:
    return Decimal(amount_minor).scaleb(-exponent(currency), context=EXACT)


def split_minor(total_minor: int, weights: Sequence[Decimal]) -> list[int]:
    """Split a total in proportion to non-negative weights, by largest remainder, so that the parts
    add up to it.
    """
    if not weights:
        return []
    whole = exact_sum(weights)
    if not whole:
        return [total_minor] + [0] * (len(weights) - 1)
    sign = -1 if total_minor < 0 else 1
    shares = [
        _ROUNDING.divide(_ROUNDING.multiply(Decimal(abs(total_minor)), w), whole) for w in weights
    ]
    parts = [int(share) for share in shares]
    by_remainder = sorted(range(len(weights)), key=lambda i: (parts[i] - shares[i], i))
    for index in by_remainder[: abs(total_minor) - sum(parts)]:
        parts[index] += 1
    return [sign * part for part in parts]


def percent_of_minor(amount_minor: int, percent: Decimal) -> int:
    """A percentage of a sum, in whole minor units; used for tax on an invoice's subtotal."""
    share = EXACT.multiply(Decimal(amount_minor), percent).scaleb(-2, context=EXACT)
    return int(share.quantize(Decimal(1), context=_ROUNDING))


def format_minor(amount_minor: int, currency: str) -> str:
    return _format(from_minor(amount_minor, currency), currency, exponent(currency))


def format_exact(amount: Decimal, currency: str) -> str:
    """For people: whole minor units when there are any, else two significant digits: $0.0018, never
    a false $0.00.
    """
    decimals = exponent(currency)
    smallest = Decimal(1).scaleb(-decimals)
    if amount and abs(amount) < smallest:
        decimals = min(12, 1 - amount.adjusted())
    return _format(amount, currency, decimals)


def _format(amount: Decimal, currency: str, decimals: int) -> str:
    rounded = amount.quantize(Decimal(1).scaleb(-decimals), context=_ROUNDING)
    sign = "-" if rounded < 0 else ""
    digits = f"{abs(rounded):,.{decimals}f}"
    symbol = SYMBOLS.get(currency)
    return f"{sign}{symbol}{digits}" if symbol else f"{sign}{digits} {currency}"
