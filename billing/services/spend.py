"""What an account has spent, whether it may go on, and what must stop.

Spent means usage of the current billing period at list price, before credits and without the plan's
fee. The sweep runs every CHECK_INTERVAL. Between two sweeps a team can spend at most its burn rate
times the interval plus the time a stop takes, so that is the most by which a hard limit is passed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal

from django.conf import settings
from django.db import connection, transaction
from django.db.models import Sum

from accounts.models import Team
from billing.errors import TeamBlocked
from billing.metering import MeterState, Size
from billing.models import (
    AccountBlock,
    BillingAccount,
    EffectiveLimits,
    SpendAlert,
    SpendPolicy,
    UsageHour,
    UsageInterval,
)
from billing.models.accounts import BlockReason, StopAction
from billing.money import EXACT, exact_sum, format_minor, from_minor, to_minor
from billing.periods import to_ms
from billing.pricing import RateTable, Resource, amount, burn_per_second
from billing.services.accounts import (
    Limits,
    account_of,
    gravest_block,
    limits_for,
    limits_of,
    live_subscription,
    lock_account,
    refresh_limits,
)
from billing.services.credits import settled_balance
from billing.services.notices import tell
from billing.services.rollup import intervals_in, rate, rate_table
from billing.services.usage import running_count
from config.errors import InvalidArgument, QuotaExceeded

CHECK_INTERVAL = timedelta(seconds=15)
STOP_TIME = timedelta(seconds=15)  # to pause or kill what runs, generously
LIVE_SLACK_MS = 15_000  # a heartbeat comes every 10 s; until the next one we believe in life
MAX_LIMIT_MINOR = 1_000_000_000_00


@dataclass(frozen=True, kw_only=True)
class Spend:
    """Usage of the current period, exact, in the account's currency."""

    period_start: datetime
    period_end: datetime
    total: Decimal
    burn_per_second: Decimal
    running: int


@dataclass(frozen=True, kw_only=True)
class Overdrawn:
    """A team that must stop: `sandboxes` pauses or kills what it runs, as `action` says."""

    team_id: int
    action: StopAction
    reason: BlockReason


def may_start(
    team_id: int,
    *,
    milli_vcpu: int,
    memory_mib: int,
    now: datetime,
    concurrent: int | None = None,
    length_seconds: int | None = None,
) -> Limits:
    """Check that a team may start (create, resume, fork) one more sandbox of this size. Call it in
    the transaction that inserts or claims the sandbox's row: the limits row is locked, so two
    requests cannot both take the last place.

    `concurrent`: the team's running and starting sandboxes, without this one; None counts the
    running meters, which do not show what is only starting.
    Raises: TeamBlocked (403), QuotaExceeded (429), InvalidArgument (400).
    """
    limits = _locked_limits(team_id, now)
    refuse_blocked(limits)
    if concurrent is None:
        concurrent = running_count(team_id)
    if concurrent >= limits.max_concurrent:
        raise QuotaExceeded(
            "you have reached the maximum number of concurrent E2B sandboxes"
            f" ({limits.max_concurrent}). If you need more, please visit"
            f" '{settings.BILLING_PAGE_URL}'"
        )
    if milli_vcpu > limits.max_milli_vcpu:
        raise InvalidArgument(
            f"{milli_vcpu / 1000:g} vCPU is more than the {limits.max_milli_vcpu / 1000:g}"
            f" that the {limits.plan_code} plan allows"
        )
    if memory_mib > limits.max_memory_mib:
        raise InvalidArgument(
            f"{memory_mib} MiB of memory is more than the {limits.max_memory_mib} MiB"
            f" that the {limits.plan_code} plan allows"
        )
    if length_seconds is not None and length_seconds > limits.max_length_seconds:
        hours = limits.max_length_seconds / 3600
        raise InvalidArgument(f"Timeout cannot be greater than {hours:g} hours")
    if limits.headroom is not None and settings.BILLING_ENFORCEMENT:
        _check_headroom(team_id, limits.headroom, milli_vcpu, memory_mib, now)
    return limits


def refuse_blocked(limits: Limits) -> None:
    """Raises: TeamBlocked when the team may not start billable work: create, resume, connect, fork,
    build.
    """
    if limits.block_reason and settings.BILLING_ENFORCEMENT:
        raise TeamBlocked(BlockReason(limits.block_reason))


def _locked_limits(team_id: int, now: datetime) -> Limits:
    if connection.in_atomic_block and connection.features.has_select_for_update:
        row = EffectiveLimits.objects.select_for_update().filter(pk=team_id).first()
        if row is not None:
            return limits_of(row)
    return limits_for(team_id, now=now)


def _check_headroom(
    team_id: int, headroom: Decimal, milli_vcpu: int, memory_mib: int, now: datetime
) -> None:
    """Refuse what would pass the cap before the next sweep can see it."""
    account = BillingAccount.objects.get(pk=team_id)
    table, now_ms = rate_table(account), to_ms(now)
    new = Size(milli_vcpu=milli_vcpu, memory_mib=memory_mib, disk_mib=0)
    burn = EXACT.add(_burn(account, table, now_ms), burn_per_second(new, now_ms, table))
    window = Decimal(int((CHECK_INTERVAL + STOP_TIME).total_seconds()))
    if EXACT.multiply(burn, window) > headroom:
        raise TeamBlocked(BlockReason.BILLING_LIMIT)


def _burn(account: BillingAccount, table: RateTable, now_ms: int) -> Decimal:
    sizes = UsageInterval.objects.filter(account=account, ended_ms__isnull=True).values_list(
        "milli_vcpu", "memory_mib", "disk_mib"
    )
    return exact_sum(
        burn_per_second(Size(milli_vcpu=cpu, memory_mib=mem, disk_mib=disk), now_ms, table)
        for cpu, mem, disk in sizes
    )


def spend_of(account: BillingAccount, *, now: datetime) -> Spend:
    """Hours that are rolled up, plus what runs since, up to this moment."""
    subscription = live_subscription(account)
    table = rate_table(account)
    start_ms, now_ms = to_ms(subscription.period_start), to_ms(now)
    live_ms = min(max(account.rolled_until_ms, start_ms), now_ms)
    settled = UsageHour.objects.filter(
        account=account, hour_ms__gte=start_ms, hour_ms__lt=live_ms
    ).values_list("resource", "price_id")
    amounts = [
        amount(Resource(resource), int(quantity), table.unit_prices[price_id])
        for resource, price_id, quantity in settled.annotate(total=Sum("quantity"))
    ]
    live = list(intervals_in(account.pk, live_ms, now_ms))
    for key, quantity in rate(live, table, live_ms, now_ms, slack_ms=LIVE_SLACK_MS).items():
        amounts.append(amount(Resource(key[2]), quantity, table.unit_prices[key[3]]))
    return Spend(
        period_start=subscription.period_start,
        period_end=subscription.period_end,
        total=exact_sum(amounts),
        burn_per_second=exact_sum(
            burn_per_second(i.size(), now_ms, table) for i in live if i.ended_ms is None
        ),
        running=sum(i.ended_ms is None and i.state == MeterState.RUNNING for i in live),
    )


def sweep_spend(*, now: datetime) -> int:
    """Check every account that runs something, has a block, or lives on a cap; returns how many."""
    ids = set(
        UsageInterval.objects.filter(ended_ms__isnull=True)
        .values_list("account_id", flat=True)
        .distinct()
    )
    ids |= set(
        AccountBlock.objects.filter(
            cleared_at__isnull=True,
            reason__in=[BlockReason.BILLING_LIMIT, BlockReason.CREDITS_EXHAUSTED],
        ).values_list("account_id", flat=True)
    )
    for team_id in sorted(ids):
        check_spend(team_id=team_id, now=now)
    return len(ids)


def check_spend(*, team_id: int, now: datetime) -> None:
    """Fire alerts, and set or clear the blocks that follow from spend. Safe at any time, any number
    of times.
    """
    with transaction.atomic():
        account = lock_account(team_id)
        spend = spend_of(account, now=now)
        policy = SpendPolicy.objects.get(account=account)
        _fire_alerts(account, policy, spend, now)
        cap_left = _cap_left(account, policy, spend)
        credit_left = _credit_left(account, spend, now)
        set_block(
            account,
            BlockReason.BILLING_LIMIT,
            is_on=cap_left is not None and cap_left <= 0,
            action=StopAction(policy.action),
            now=now,
        )
        set_block(
            account,
            BlockReason.CREDITS_EXHAUSTED,
            is_on=credit_left is not None and credit_left <= 0,
            action=StopAction.PAUSE_RUNNING,
            now=now,
        )
        lefts = [left for left in (cap_left, credit_left) if left is not None]
        headroom = max(min(lefts), Decimal(0)) if lefts else None
        EffectiveLimits.objects.filter(pk=account.pk).update(
            block_reason=gravest_block(account), headroom=headroom
        )


def _cap_left(account: BillingAccount, policy: SpendPolicy, spend: Spend) -> Decimal | None:
    if policy.hard_limit_minor is None:
        return None
    return EXACT.subtract(from_minor(policy.hard_limit_minor, account.currency), spend.total)


def _credit_left(account: BillingAccount, spend: Spend, now: datetime) -> Decimal | None:
    """Credit after current usage, where a plan lives on credit alone. It may be below zero; the
    settled one never is.
    """
    plan = live_subscription(account).plan
    if not plan.needs_credit or account.has_payment_method:
        return None
    return balance_after_usage(account, spend, now=now)


def balance_after_usage(account: BillingAccount, spend: Spend, *, now: datetime) -> Decimal:
    settled = from_minor(settled_balance(account, now=now), account.currency)
    return EXACT.subtract(settled, spend.total)


def _fire_alerts(account: BillingAccount, policy: SpendPolicy, spend: Spend, now: datetime) -> None:
    marks: list[tuple[str, Decimal]] = []
    if policy.alert_minor is not None:
        marks.append(("alert", from_minor(policy.alert_minor, account.currency)))
    if policy.hard_limit_minor:
        limit = from_minor(policy.hard_limit_minor, account.currency)
        marks += [
            (str(percent), EXACT.multiply(limit, Decimal(percent)).scaleb(-2))
            for percent in policy.thresholds
        ]
    for threshold, mark in marks:
        if spend.total < mark:
            continue
        _alert, is_new = SpendAlert.objects.get_or_create(
            account=account,
            policy_version=policy.version,
            period_start=spend.period_start,
            threshold=threshold,
            defaults={"spent_minor": to_minor(spend.total, account.currency), "fired_at": now},
        )
        if is_new:
            _tell_threshold(account, policy, spend, threshold, now)


def _tell_threshold(
    account: BillingAccount, policy: SpendPolicy, spend: Spend, threshold: str, now: datetime
) -> None:
    spent = format_minor(to_minor(spend.total, account.currency), account.currency)
    if threshold == "alert":
        what = "your alert amount"
    else:
        limit = format_minor(policy.hard_limit_minor or 0, account.currency)
        what = f"{threshold} % of your limit of {limit}"
    tell(
        account=account,
        key=f"spend:{account.pk}:{policy.version}:{spend.period_start:%Y%m%d}:{threshold}",
        subject=f"Sandlot: usage reached {what}",
        body=f"Usage since {spend.period_start:%d %B %Y} (UTC) is {spent}: {what}.",
        now=now,
    )


def set_block(
    account: BillingAccount,
    reason: BlockReason,
    *,
    is_on: bool,
    now: datetime,
    action: StopAction = StopAction.BLOCK_NEW,
    detail: str = "",
) -> None:
    """Make a block reason active or not, and the limits row with it. The account must be locked."""
    active = AccountBlock.objects.filter(account=account, reason=reason, cleared_at__isnull=True)
    if not is_on:
        changed = bool(active.update(cleared_at=now))
    elif block := active.first():
        changed = block.action != action
        active.update(action=action)
    else:
        AccountBlock.objects.create(
            account=account, reason=reason, action=action, detail=detail, since=now
        )
        changed = True
    if changed:
        reason_now = gravest_block(account)
        EffectiveLimits.objects.filter(pk=account.pk).update(block_reason=reason_now)
        _mark_team(account.pk, reason_now)


def _mark_team(team_id: int, reason: str) -> None:
    """Authentication reads the team's own row, so that every billable request is refused alike."""
    is_blocked = bool(reason) and settings.BILLING_ENFORCEMENT
    Team.objects.filter(pk=team_id).update(
        is_blocked=is_blocked, blocked_reason=BlockReason(reason).label if is_blocked else ""
    )


def block_team(*, team_id: int, detail: str, now: datetime) -> None:
    """Suspend a team by hand: nothing new starts, what runs is paused."""
    with transaction.atomic():
        account = lock_account(team_id)
        set_block(
            account,
            BlockReason.BANNED,
            is_on=True,
            action=StopAction.PAUSE_RUNNING,
            detail=detail,
            now=now,
        )


def unblock_team(*, team_id: int, now: datetime) -> None:
    with transaction.atomic():
        set_block(lock_account(team_id), BlockReason.BANNED, is_on=False, now=now)


def overdrawn_teams() -> list[Overdrawn]:
    """Teams whose running sandboxes must stop, the gravest action of each. Empty when enforcement
    is off.

    `sandboxes` asks this after each sweep and stops what still runs with reason OUT_OF_CREDIT.
    """
    if not settings.BILLING_ENFORCEMENT:
        return []
    order = [StopAction.PAUSE_RUNNING, StopAction.KILL_RUNNING]
    worst: dict[int, Overdrawn] = {}
    blocks = AccountBlock.objects.filter(cleared_at__isnull=True, action__in=order)
    for block in blocks.order_by("pk"):
        action, known = StopAction(block.action), worst.get(block.account_id)
        if known is None or order.index(action) > order.index(known.action):
            worst[block.account_id] = Overdrawn(
                team_id=block.account_id, action=action, reason=BlockReason(block.reason)
            )
    return list(worst.values())


def set_spend_policy(
    *,
    team_id: int,
    hard_limit_minor: int | None,
    alert_minor: int | None,
    action: str,
    thresholds: Sequence[int] | None = None,
    now: datetime,
) -> SpendPolicy:
    """Replace the owner's policy and check at once, so that raising a limit unblocks immediately.

    Raises: InvalidArgument for negative or absurd sums, unknown actions or thresholds.
    """
    for sum_minor in (hard_limit_minor, alert_minor):
        if sum_minor is not None and not 0 <= sum_minor <= MAX_LIMIT_MINOR:
            raise InvalidArgument(f"a limit must be between 0 and {MAX_LIMIT_MINOR} minor units")
    if action not in StopAction.values:
        raise InvalidArgument(f"action must be one of {', '.join(StopAction.values)}")
    if thresholds is not None and not all(1 <= t <= 100 for t in thresholds):
        raise InvalidArgument("thresholds are percentages from 1 to 100")
    account_of(team_id=team_id, now=now)
    with transaction.atomic():
        account = lock_account(team_id)
        policy = SpendPolicy.objects.get(account=account)
        policy.hard_limit_minor, policy.alert_minor = hard_limit_minor, alert_minor
        policy.action, policy.version = action, policy.version + 1
        if thresholds is not None:
            policy.thresholds = sorted(set(thresholds))
        policy.save()
        refresh_limits(account=account)
        check_spend(team_id=team_id, now=now)
    return policy
