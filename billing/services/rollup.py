"""From intervals to hours. Hours are computed again from the intervals, never added to, so running
it twice or in any order gives the same. An hour is written once nothing that touches it can change
any more, as far as anyone knows; what still comes later becomes an adjustment if the hour is on an
invoice, else a new value of the hour.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from typing import NamedTuple

from django.db import transaction
from django.db.models import F, Min, Q, Sum

from billing.metering import MeterState, Size
from billing.models import (
    BillingAccount,
    DirtyHour,
    PlanTerm,
    Price,
    UsageAdjustment,
    UsageHour,
    UsageInterval,
)
from billing.periods import HOUR_MS, hour_of, to_ms
from billing.pricing import PlanSpan, PriceSpan, RateTable, Resource, pieces
from billing.services.accounts import lock_account

# A transaction that began in an hour may commit after its end; none takes this long.
ROLL_GRACE = timedelta(minutes=2)

Key = tuple[str, int, str, int]  # sandbox, hour, resource, price


class Billable(NamedTuple):
    """The columns of an interval that rating reads."""

    sandbox_id: str
    state: str
    started_ms: int
    ended_ms: int | None
    confirmed_until_ms: int
    milli_vcpu: int
    memory_mib: int
    disk_mib: int

    def size(self) -> Size:
        return Size(milli_vcpu=self.milli_vcpu, memory_mib=self.memory_mib, disk_mib=self.disk_mib)

    def end_by(self, limit_ms: int, *, slack_ms: int = 0) -> int:
        """Where the bill stands: the end, else the last proof of life (plus slack). What is paused
        needs no proof.
        """
        if self.ended_ms is not None:
            return min(self.ended_ms, limit_ms)
        if self.state == MeterState.PAUSED:
            return limit_ms
        return min(self.confirmed_until_ms + slack_ms, limit_ms)


def rate_table(account: BillingAccount) -> RateTable:
    terms = PlanTerm.objects.filter(account=account).order_by("from_ms")
    prices = Price.objects.filter(currency=account.currency)
    return RateTable.of(
        [PlanSpan(plan_id=t.plan_id, from_ms=t.from_ms, to_ms=t.to_ms) for t in terms],
        [
            PriceSpan(
                price_id=p.pk,
                plan_id=p.plan_id,
                resource=Resource(p.resource),
                unit_price=p.unit_price,
                from_ms=p.from_ms,
                to_ms=p.to_ms,
            )
            for p in prices
        ],
    )


def intervals_in(account_id: int, from_ms: int, to_ms: int) -> Iterator[Billable]:
    """Intervals of an account that overlap [from_ms, to_ms)."""
    rows = UsageInterval.objects.filter(
        Q(ended_ms__isnull=True) | Q(ended_ms__gt=from_ms),
        account_id=account_id,
        started_ms__lt=to_ms,
    )
    for row in rows.values_list(*Billable._fields).iterator(chunk_size=5_000):
        yield Billable._make(row)


def rate(
    intervals: Iterable[Billable],
    table: RateTable,
    from_ms: int,
    to_ms: int,
    *,
    slack_ms: int = 0,
) -> dict[Key, int]:
    """Exact quantities per sandbox, hour, resource and price inside [from_ms, to_ms)."""
    quantities: dict[Key, int] = defaultdict(int)
    for interval in intervals:
        start = max(interval.started_ms, from_ms)
        end = interval.end_by(to_ms, slack_ms=slack_ms)
        if start < end:
            for hour, resource, price_id, quantity in pieces(interval, start, end, table):
                quantities[interval.sandbox_id, hour, resource.value, price_id] += quantity
    return quantities


def roll_due(*, now: datetime) -> int:
    """Roll up every account that has something to roll; returns how many hours were finished."""
    ready_ms = hour_of(to_ms(now - ROLL_GRACE))
    fresh = UsageInterval.objects.filter(
        Q(ended_ms__isnull=True) | Q(ended_ms__gt=F("account__rolled_until_ms")),
        started_ms__lt=ready_ms,
        account__rolled_until_ms__lt=ready_ms,
    )
    ids = set(fresh.values_list("account_id", flat=True).distinct())
    ids |= set(DirtyHour.objects.values_list("account_id", flat=True).distinct())
    return sum(roll_account(team_id=team_id, now=now) for team_id in sorted(ids))


def roll_account(*, team_id: int, now: datetime) -> int:
    """Write all hours that are final, and those a late fact touched."""
    with transaction.atomic():
        account = lock_account(team_id)
        table = rate_table(account)
        dirty = DirtyHour.objects.filter(account=account).order_by("hour_ms")
        for first, after in _ranges(dirty.values_list("hour_ms", flat=True)):
            recompute(account, first, after, table=table, now=now)
        dirty.delete()
        start, end = account.rolled_until_ms, _provable_until(account, now)
        if end <= start:
            return 0
        recompute(account, start, end, table=table, now=now)
        account.rolled_until_ms = end
        account.save(update_fields=["rolled_until_ms"])
        return (end - start) // HOUR_MS if start else 1


def recompute(
    account: BillingAccount, from_ms: int, to_ms: int, *, table: RateTable, now: datetime
) -> None:
    """Make the hours of [from_ms, to_ms) say what the intervals say. The account must be locked."""
    wanted = rate(intervals_in(account.pk, from_ms, to_ms), table, from_ms, to_ms)
    stored = UsageHour.objects.filter(account=account, hour_ms__gte=from_ms, hour_ms__lt=to_ms)
    frozen: dict[Key, int] = {}
    for hour in stored.iterator(chunk_size=5_000):
        key = (hour.sandbox_id, hour.hour_ms, hour.resource, hour.price_id)
        if hour.invoice_line_id is not None:
            frozen[key] = hour.quantity
        elif (quantity := wanted.pop(key, 0)) != hour.quantity:
            _rewrite(hour, quantity)
    if frozen:
        _adjust(account, frozen, wanted, from_ms, to_ms, now)
    UsageHour.objects.bulk_create(
        (
            UsageHour(
                account=account,
                sandbox_id=sandbox_id,
                hour_ms=hour_ms,
                resource=resource,
                price_id=price_id,
                quantity=quantity,
            )
            for (sandbox_id, hour_ms, resource, price_id), quantity in wanted.items()
            if quantity
        ),
        batch_size=500,
    )


def _ranges(hours: Iterable[int]) -> list[tuple[int, int]]:
    """Hours in order, as stretches without gaps."""
    found: list[tuple[int, int]] = []
    for hour_ms in hours:
        if found and found[-1][1] == hour_ms:
            found[-1] = (found[-1][0], hour_ms + HOUR_MS)
        else:
            found.append((hour_ms, hour_ms + HOUR_MS))
    return found


def _rewrite(hour: UsageHour, quantity: int) -> None:
    if quantity:
        UsageHour.objects.filter(pk=hour.pk).update(quantity=quantity)
    else:
        hour.delete()


def _adjust(
    account: BillingAccount,
    frozen: dict[Key, int],
    wanted: dict[Key, int],
    from_ms: int,
    to_ms: int,
    now: datetime,
) -> None:
    """For hours on an invoice, book the difference to what was billed and adjusted so far."""
    booked = dict(frozen)
    earlier = UsageAdjustment.objects.filter(
        account=account, hour_ms__gte=from_ms, hour_ms__lt=to_ms, actor=""
    )
    groups = earlier.values_list("sandbox_id", "hour_ms", "resource", "price_id")
    for sandbox_id, hour_ms, resource, price_id, total in groups.annotate(total=Sum("quantity")):
        key = (sandbox_id, hour_ms, resource, price_id)
        booked[key] = booked.get(key, 0) + int(total)
    for key, quantity in booked.items():
        sandbox_id, hour_ms, resource, price_id = key
        difference = wanted.pop(key, 0) - quantity
        if difference:
            UsageAdjustment.objects.create(
                account=account,
                sandbox_id=sandbox_id,
                hour_ms=hour_ms,
                resource=resource,
                price_id=price_id,
                quantity=difference,
                reason="usage became known after the invoice",
                created_at=now,
            )


def _provable_until(account: BillingAccount, now: datetime) -> int:
    """Start of the first hour that is not over, or in which a running sandbox has not proven its
    life to the end.
    """
    ready_ms = hour_of(to_ms(now - ROLL_GRACE))
    open_running = UsageInterval.objects.filter(
        account=account,
        ended_ms__isnull=True,
        state=MeterState.RUNNING,
        confirmed_until_ms__lt=ready_ms,
    )
    unproven = open_running.aggregate(first=Min("confirmed_until_ms"))["first"]
    return ready_ms if unproven is None else min(ready_ms, hour_of(unproven))
