"""Sums of money in templates: `{{ invoice.total_minor|minor:"USD" }}`, `{{ cost|exact:"USD" }}`."""

from __future__ import annotations

from decimal import Decimal

from django import template

from billing.money import format_exact, format_minor

register = template.Library()


@register.filter
def minor(amount_minor: int | None, currency: str) -> str:
    return "—" if amount_minor is None else format_minor(int(amount_minor), currency)


@register.filter
def exact(amount: Decimal | None, currency: str) -> str:
    """Small sums keep their digits: $0.0018, never $0.00."""
    return "—" if amount is None else format_exact(Decimal(amount), currency)
