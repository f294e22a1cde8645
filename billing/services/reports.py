"""Reads that span models: what was used, by what, and what it costs. Amounts are exact decimals.

Everything is built from the same hours and intervals that invoices are built from, so that
charts, exports and bills agree.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from zoneinfo import ZoneInfo

from django.db.models import Q

from billing.metering import MeterState
from billing.models import BillingAccount, InvoiceLine, UsageInterval
from billing.money import EXACT
from billing.periods import HOUR_MS, from_ms, hour_of, to_ms
from billing.pricing import RateTable, Resource, amount, burn_per_second, cost
from billing.services.rollup import Billable, Key, intervals_in, rate, rate_table
from billing.services.spend import LIVE_SLACK_MS, Spend, spend_of
from config.errors import InvalidArgument, NotFound

MAX_RANGE = timedelta(days=400)
BY = ("sandbox", "template", "api_key")  # and "label:<name>"


@dataclass(kw_only=True)
class Used:
    """Sums of one bucket or group."""

    vcpu_ms: int = 0  # milli-vCPU times ms
    memory_ms: int = 0  # MiB times ms
    cost: Decimal = Decimal(0)
    sandbox_ids: set[str] = field(default_factory=set)

    def add(self, key: Key, quantity: int, table: RateTable) -> None:
        sandbox_id, _hour, resource, price_id = key
        if resource == Resource.VCPU:
            self.vcpu_ms += quantity
        elif resource == Resource.MEMORY:
            self.memory_ms += quantity
        price = table.unit_prices[price_id]
        self.cost = EXACT.add(self.cost, amount(Resource(resource), quantity, price))
        self.sandbox_ids.add(sandbox_id)

    @property
    def vcpu_hours(self) -> float:
        return self.vcpu_ms / (1_000 * HOUR_MS)

    @property
    def memory_gib_hours(self) -> float:
        return self.memory_ms / (1_024 * HOUR_MS)


@dataclass(frozen=True, kw_only=True)
class Bucket:
    start: datetime
    used: Used


@dataclass(frozen=True, kw_only=True)
class Group:
    name: str  # "" where a sandbox has no such key or label
    used: Used


@dataclass(frozen=True, kw_only=True)
class RatedInterval:
    """One interval as it is charged: the most trustworthy explanation of a bill."""

    sandbox_id: str
    state: str
    started_at: datetime
    ended_at: datetime | None
    milli_vcpu: int
    memory_mib: int
    disk_mib: int
    cost: Decimal
    close_reason: str
    template_id: str
    api_key_id: str


@dataclass(frozen=True, kw_only=True)
class LiveCost:
    """A sandbox whose meter runs: what this life cost so far, per second, and at its deadline
    if nothing changes.
    """

    sandbox_id: str
    state: str
    since: datetime
    cost: Decimal
    per_second: Decimal
    at_deadline: Decimal | None


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Usage expected by the end of the period, at the pace of its last seven days."""

    spend: Spend
    per_day: Decimal
    expected: Decimal


def quantities(
    account: BillingAccount, *, start: datetime, end: datetime, now: datetime
) -> tuple[dict[Key, int], RateTable]:
    """Exact quantities of every hour that overlaps [start, end): rolled up, corrected, and live.

    Raises: InvalidArgument when the range is empty or longer than 400 days.
    """
    if not start < end or end - start > MAX_RANGE:
        raise InvalidArgument("the range must end after it starts and span at most 400 days")
    table = rate_table(account)
    from_ms_, to_ms_ = hour_of(to_ms(start)), hour_of(to_ms(end) - 1) + HOUR_MS
    split = min(max(account.rolled_until_ms, from_ms_), to_ms_)
    found: dict[Key, int] = defaultdict(int)
    inside = Q(hour_ms__gte=from_ms_, hour_ms__lt=split)
    columns = ("sandbox_id", "hour_ms", "resource", "price_id", "quantity")
    for rows in (account.hours.filter(inside), account.adjustments.filter(inside)):
        for sandbox_id, hour_ms, resource, price_id, quantity in rows.values_list(*columns):
            found[sandbox_id, hour_ms, resource, price_id] += quantity
    limit = min(to_ms_, to_ms(now))
    live = rate(intervals_in(account.pk, split, limit), table, split, limit, slack_ms=LIVE_SLACK_MS)
    for key, quantity in live.items():
        found[key] += quantity
    return found, table


def usage_over_time(
    account: BillingAccount,
    *,
    start: datetime,
    end: datetime,
    now: datetime,
    step: str = "day",
    zone: str = "UTC",
) -> list[Bucket]:
    """Buckets by hour, day, week or month of a zone; buckets without usage are left out.

    Hours are UTC hours and belong to the bucket they begin in, so every zone shows the same total.
    Raises: InvalidArgument for an unknown step or zone.
    """
    local = _zone(zone)
    _bucket_start(start.astimezone(local), step)
    found, table = quantities(account, start=start, end=end, now=now)
    buckets: dict[datetime, Used] = defaultdict(Used)
    starts: dict[int, datetime] = {}
    for key, quantity in found.items():
        hour_ms = key[1]
        if hour_ms not in starts:
            starts[hour_ms] = _bucket_start(from_ms(hour_ms).astimezone(local), step)
        buckets[starts[hour_ms]].add(key, quantity, table)
    return [Bucket(start=at, used=used) for at, used in sorted(buckets.items())]


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (OSError, ValueError, KeyError):
        raise InvalidArgument(f"unknown time zone {name[:60]!r}") from None


def _bucket_start(local: datetime, step: str) -> datetime:
    if step == "hour":
        return local
    midnight = local.replace(hour=0, minute=0, second=0, microsecond=0)
    if step == "day":
        return midnight
    if step == "week":
        return midnight - timedelta(days=midnight.weekday())
    if step == "month":
        return midnight.replace(day=1)
    raise InvalidArgument("step must be hour, day, week or month")


def usage_by(
    account: BillingAccount, *, start: datetime, end: datetime, now: datetime, by: str
) -> list[Group]:
    """Usage per sandbox, template, API key or metadata label, the dearest first.

    Raises: InvalidArgument for an unknown `by`.
    """
    if by not in BY and not by.startswith("label:"):
        raise InvalidArgument(f"by must be one of {', '.join(BY)} or label:<name>")
    found, table = quantities(account, start=start, end=end, now=now)
    names = _names(account, {key[0] for key in found}, by)
    groups: dict[str, Used] = defaultdict(Used)
    for key, quantity in found.items():
        groups[names.get(key[0], "")].add(key, quantity, table)
    rows = [Group(name=name, used=used) for name, used in groups.items()]
    return sorted(rows, key=lambda row: (-row.used.cost, row.name))


def _names(account: BillingAccount, sandbox_ids: set[str], by: str) -> Mapping[str, str]:
    if by == "sandbox":
        return {sandbox_id: sandbox_id for sandbox_id in sandbox_ids}
    label = by.removeprefix("label:") if by.startswith("label:") else None
    names: dict[str, str] = {}
    ids = sorted(sandbox_ids)
    for first in range(0, len(ids), 500):
        rows = UsageInterval.objects.filter(
            account=account, sandbox_id__in=ids[first : first + 500]
        ).order_by("started_ms")
        for row in rows.only("sandbox_id", "template_id", "api_key_id", "labels"):
            if label is not None:
                names[row.sandbox_id] = str((row.labels or {}).get(label, ""))
            else:
                names[row.sandbox_id] = row.template_id if by == "template" else row.api_key_id
    return names


def rated_intervals(
    account: BillingAccount,
    *,
    start: datetime,
    end: datetime,
    now: datetime,
    sandbox_id: str | None = None,
    limit: int | None = None,
) -> Iterator[RatedInterval]:
    """Intervals that overlap [start, end), oldest first, with the cost of the part inside."""
    table = rate_table(account)
    start_ms, end_ms = to_ms(start), min(to_ms(end), to_ms(now))
    rows = account.intervals.filter(
        Q(ended_ms__isnull=True) | Q(ended_ms__gt=start_ms), started_ms__lt=end_ms
    ).order_by("started_ms", "pk")
    if sandbox_id is not None:
        rows = rows.filter(sandbox_id=sandbox_id)
    for row in rows[:limit] if limit else rows.iterator(chunk_size=2_000):
        yield _rated(row, table, start_ms, end_ms)


def _rated(row: UsageInterval, table: RateTable, start_ms: int, end_ms: int) -> RatedInterval:
    billable = _billable(row)
    begin = max(row.started_ms, start_ms)
    stop = max(begin, billable.end_by(end_ms, slack_ms=LIVE_SLACK_MS))
    return RatedInterval(
        sandbox_id=row.sandbox_id,
        state=row.state,
        started_at=from_ms(row.started_ms),
        ended_at=None if row.ended_ms is None else from_ms(row.ended_ms),
        milli_vcpu=row.milli_vcpu,
        memory_mib=row.memory_mib,
        disk_mib=row.disk_mib,
        cost=cost(billable.size(), begin, stop, table),
        close_reason=row.close_reason,
        template_id=row.template_id,
        api_key_id=row.api_key_id,
    )


def _billable(row: UsageInterval) -> Billable:
    return Billable._make(getattr(row, name) for name in Billable._fields)


def intervals_behind(line: InvoiceLine, *, now: datetime) -> Iterator[RatedInterval]:
    """The intervals whose hours a usage line charges."""
    account = line.invoice.account
    sandbox_ids = set(line.hours.values_list("sandbox_id", flat=True).distinct())
    sandbox_ids |= set(line.adjustments.values_list("sandbox_id", flat=True).distinct())
    for row in rated_intervals(account, start=line.period_start, end=line.period_end, now=now):
        if row.sandbox_id in sandbox_ids:
            yield row


def intervals_of(
    account: BillingAccount, sandbox_id: str, *, now: datetime
) -> tuple[list[RatedInterval], Decimal]:
    """All of one sandbox's intervals and what they cost together. Raises: NotFound for no trace
    of it.
    """
    rows = list(rated_intervals(account, start=from_ms(0), end=now, sandbox_id=sandbox_id, now=now))
    if not rows:
        raise NotFound("sandbox not found")
    total = Decimal(0)
    for row in rows:
        total = EXACT.add(total, row.cost)
    return rows, total


def live_costs(
    account: BillingAccount, *, now: datetime, deadlines: Mapping[str, datetime] | None = None
) -> list[LiveCost]:
    """Every sandbox whose meter runs, the dearest first. `deadlines` by sandbox id come from
    the caller.
    """
    table, now_ms = rate_table(account), to_ms(now)
    open_rows = list(account.intervals.filter(ended_ms__isnull=True))
    past = _cost_of_past(account, [row.sandbox_id for row in open_rows], table)
    costs = []
    for row in open_rows:
        billable = _billable(row)
        until = max(row.started_ms, billable.end_by(now_ms, slack_ms=LIVE_SLACK_MS))
        present = cost(billable.size(), row.started_ms, until, table)
        so_far = EXACT.add(past.get(row.sandbox_id, Decimal(0)), present)
        per_second = burn_per_second(billable.size(), now_ms, table)
        deadline = (deadlines or {}).get(row.sandbox_id)
        ahead = None
        if deadline is not None and row.state == MeterState.RUNNING:
            rest = cost(billable.size(), now_ms, max(now_ms, to_ms(deadline)), table)
            ahead = EXACT.add(so_far, rest)
        costs.append(
            LiveCost(
                sandbox_id=row.sandbox_id,
                state=row.state,
                since=from_ms(row.started_ms),
                cost=so_far,
                per_second=per_second,
                at_deadline=ahead,
            )
        )
    return sorted(costs, key=lambda row: (-row.cost, row.sandbox_id))


def _cost_of_past(
    account: BillingAccount, sandbox_ids: Iterable[str], table: RateTable
) -> dict[str, Decimal]:
    found: dict[str, Decimal] = defaultdict(Decimal)
    ids = list(sandbox_ids)
    for first in range(0, len(ids), 500):
        rows = account.intervals.filter(
            sandbox_id__in=ids[first : first + 500], ended_ms__isnull=False
        )
        for row in rows:
            assert row.ended_ms is not None
            part = cost(_billable(row).size(), row.started_ms, row.ended_ms, table)
            found[row.sandbox_id] = EXACT.add(found[row.sandbox_id], part)
    return found


def forecast(account: BillingAccount, *, now: datetime) -> Forecast:
    spend = spend_of(account, now=now)
    since = max(spend.period_start, now - timedelta(days=7), account.created_at)
    seconds = max(int((now - since).total_seconds()), 3_600)
    recent = Decimal(0)
    if since < now:
        found, table = quantities(account, start=since, end=now, now=now)
        used = Used()
        for key, quantity in found.items():
            used.add(key, quantity, table)
        recent = used.cost
    per_day = (recent * 86_400 / seconds).quantize(Decimal("0.000001"))
    left = max(Decimal((spend.period_end - now).total_seconds()) / 86_400, Decimal(0))
    expected = (spend.total + per_day * left).quantize(Decimal("0.01"))
    return Forecast(spend=spend, per_day=per_day, expected=expected)
