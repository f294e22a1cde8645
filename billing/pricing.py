"""Usage times rate: quantities as exact integers, prices as exact decimals. Pure.

A quantity is size times milliseconds: milli-vCPU·ms for vCPU, MiB·ms for memory and disk. A price
is per vCPU-second or GiB-second. Both ends are exact, so nothing is rounded before a line of an
invoice.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from typing import NamedTuple, Protocol

from billing.money import EXACT, exact_sum
from billing.periods import HOUR_MS


class Resource(StrEnum):
    VCPU = "vcpu"
    MEMORY = "memory"
    DISK = "disk"


UNIT = {Resource.VCPU: "vCPU-second", Resource.MEMORY: "GiB-second", Resource.DISK: "GiB-second"}
UNIT_QUANTITY = {
    Resource.VCPU: 1_000 * 1_000,  # milli-vCPU times ms
    Resource.MEMORY: 1_024 * 1_000,  # MiB times ms
    Resource.DISK: 1_024 * 1_000,
}


FOREVER = 2**62  # ms


@dataclass(frozen=True, kw_only=True)
class Rate:
    """One price in force for [from_ms, to_ms)."""

    price_id: int
    resource: Resource
    unit_price: Decimal
    from_ms: int
    to_ms: int | None = None


class Piece(NamedTuple):
    """Part of an interval inside one hour, under one price."""

    hour_ms: int
    resource: Resource
    price_id: int
    quantity: int


@dataclass(frozen=True, kw_only=True)
class PlanSpan:
    """An account was on a plan for [from_ms, to_ms)."""

    plan_id: int
    from_ms: int
    to_ms: int | None = None


@dataclass(frozen=True, kw_only=True)
class PriceSpan:
    """One price as stored: of one plan, or (None) of every plan that has none of its own."""

    price_id: int
    plan_id: int | None
    resource: Resource
    unit_price: Decimal
    from_ms: int
    to_ms: int | None = None


class RateTable:
    """What an account pays over time: per resource, rates that do not overlap, oldest first."""

    def __init__(self, rates: Iterable[Rate]) -> None:
        self._by_resource: dict[Resource, list[Rate]] = {}
        for rate in sorted(rates, key=lambda r: r.from_ms):
            self._by_resource.setdefault(rate.resource, []).append(rate)
        self._starts = {res: [r.from_ms for r in rates] for res, rates in self._by_resource.items()}
        self._spans = {
            res: [(r.from_ms, FOREVER if r.to_ms is None else r.to_ms, r.price_id) for r in rates]
            for res, rates in self._by_resource.items()
        }
        self.unit_prices = {
            rate.price_id: rate.unit_price for rates in self._by_resource.values() for rate in rates
        }

    @classmethod
    def of(cls, plans: Sequence[PlanSpan], prices: Sequence[PriceSpan]) -> RateTable:
        """A plan's own price wins over the common one, instant by instant."""
        rates: list[Rate] = []
        for plan in plans:
            for resource in Resource:
                own = [p for p in prices if p.resource is resource and p.plan_id == plan.plan_id]
                common = [p for p in prices if p.resource is resource and p.plan_id is None]
                rates += _layered(plan, own, common)
        return cls(rates)

    def spans(self, resource: Resource, from_ms: int) -> list[tuple[int, int, int]]:
        """Plain (from, to, price) tuples for the inner loop of rating, from the one in force at an
        instant on.
        """
        spans = self._spans.get(resource, [])
        if len(spans) == 1:
            return spans
        return spans[max(bisect_right(self._starts.get(resource, []), from_ms) - 1, 0) :]

    def rates(self, resource: Resource, from_ms: int, to_ms: int) -> Iterator[Rate]:
        """Rates in force anywhere in [from_ms, to_ms), oldest first."""
        rates = self._by_resource.get(resource, [])
        first = max(bisect_right(self._starts.get(resource, []), from_ms) - 1, 0)
        for rate in rates[first:]:
            if rate.from_ms >= to_ms:
                return
            if rate.to_ms is None or rate.to_ms > from_ms:
                yield rate

    def price_at(self, resource: Resource, at_ms: int) -> Decimal:
        """The unit price at an instant; zero where nothing is charged."""
        return next((r.unit_price for r in self.rates(resource, at_ms, at_ms + 1)), Decimal(0))


def _layered(
    plan: PlanSpan, own: Sequence[PriceSpan], common: Sequence[PriceSpan]
) -> Iterator[Rate]:
    if plan.to_ms is not None and plan.to_ms <= plan.from_ms:
        return  # two plan changes in one millisecond
    edges = {plan.from_ms}
    for price in (*own, *common):
        edges |= {price.from_ms} | ({price.to_ms} if price.to_ms is not None else set())
    inside = sorted(
        e for e in edges if e >= plan.from_ms and (plan.to_ms is None or e < plan.to_ms)
    )
    for start, end in zip(inside, [*inside[1:], plan.to_ms], strict=True):
        found = _in_force(own, start) or _in_force(common, start)
        if found is not None:
            yield Rate(
                price_id=found.price_id,
                resource=found.resource,
                unit_price=found.unit_price,
                from_ms=start,
                to_ms=end,
            )


def _in_force(prices: Sequence[PriceSpan], at_ms: int) -> PriceSpan | None:
    for price in prices:
        if price.from_ms <= at_ms and (price.to_ms is None or at_ms < price.to_ms):
            return price
    return None


class Sized(Protocol):
    """Anything with a size: `Size`, or a row of intervals."""

    @property
    def milli_vcpu(self) -> int: ...
    @property
    def memory_mib(self) -> int: ...
    @property
    def disk_mib(self) -> int: ...


def sizes(size: Sized) -> tuple[tuple[Resource, int], ...]:
    return (
        (Resource.VCPU, size.milli_vcpu),
        (Resource.MEMORY, size.memory_mib),
        (Resource.DISK, size.disk_mib),
    )


def pieces(billed: Sized, from_ms: int, to_ms: int, table: RateTable) -> Iterator[Piece]:
    """Cut [from_ms, to_ms) at every hour and price change. Only what has a price makes a piece."""
    for resource, size in sizes(billed):
        if not size:
            continue
        for price_from, price_to, price_id in table.spans(resource, from_ms):
            start, end = max(from_ms, price_from), min(to_ms, price_to)
            hour = start - start % HOUR_MS
            while start < end:
                stop = min(hour + HOUR_MS, end)
                yield Piece(hour, resource, price_id, (stop - start) * size)
                start, hour = stop, hour + HOUR_MS


def amount(resource: Resource, quantity: int, unit_price: Decimal) -> Decimal:
    """Exact cost of a quantity."""
    return EXACT.divide(
        EXACT.multiply(Decimal(quantity), unit_price), Decimal(UNIT_QUANTITY[resource])
    )


def cost(billed: Sized, from_ms: int, to_ms: int, table: RateTable) -> Decimal:
    """Exact cost of holding a size for [from_ms, to_ms)."""
    return exact_sum(
        amount(p.resource, p.quantity, table.unit_prices[p.price_id])
        for p in pieces(billed, from_ms, to_ms, table)
    )


def burn_per_second(billed: Sized, at_ms: int, table: RateTable) -> Decimal:
    """What a size costs per second at the prices of an instant."""
    return exact_sum(
        amount(resource, size * 1_000, table.price_at(resource, at_ms))
        for resource, size in sizes(billed)
    )
