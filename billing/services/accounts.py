"""Accounts, seeded plans and the one resolved row of limits."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

from django.conf import settings
from django.db import IntegrityError, transaction
from django.db.models import Sum

from accounts.models import Membership, Role
from billing.models import (
    AccountBlock,
    BillingAccount,
    EffectiveLimits,
    Plan,
    PlanTerm,
    Price,
    SpendPolicy,
    Subscription,
)
from billing.models.accounts import BlockReason, Rail
from billing.models.documents import GrantKind
from billing.models.plans import SubscriptionStatus
from billing.periods import period_containing
from billing.pricing import Resource

HOUR, DAY = 3_600, 86_400

# E2B's public plans (e2b.dev/docs, March 2026) and one for people who run Sandlot for themselves.
SEEDED_PLANS: tuple[dict[str, Any], ...] = (
    {
        "code": "self-hosted",
        "name": "Self-hosted",
        "included_usage_minor": None,
        "max_concurrent": 100,
        "max_length_seconds": DAY,
        "creates_per_second": 100,
        "max_disk_mib": 20_480,
        "is_public": False,
    },
    {
        "code": "hobby",
        "name": "Hobby",
        "trial_credit_minor": 100_00,
        "needs_credit": True,
        "max_concurrent": 20,
        "max_length_seconds": HOUR,
        "creates_per_second": 1,
        "max_disk_mib": 10_240,
    },
    {
        "code": "pro",
        "name": "Pro",
        "base_fee_minor": 150_00,
        "max_concurrent": 100,
        "max_length_seconds": DAY,
        "creates_per_second": 5,
        "max_disk_mib": 20_480,
        "log_days": 30,
        "is_addon_allowed": True,
    },
    {
        "code": "enterprise",
        "name": "Enterprise",
        "max_concurrent": 1_100,
        "max_length_seconds": DAY,
        "creates_per_second": 50,
        "max_milli_vcpu": 32_000,
        "max_memory_mib": 65_536,
        "max_disk_mib": 102_400,
        "concurrent_builds": 100,
        "log_days": 90,
        "is_public": False,
        "is_addon_allowed": True,
    },
)
# Per second: one vCPU; one GiB of memory. Disk is included.
SEEDED_PRICES = {Resource.VCPU: Decimal("0.000014"), Resource.MEMORY: Decimal("0.0000045")}


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a team may do right now."""

    plan_code: str
    max_concurrent: int
    max_length_seconds: int
    creates_per_second: int
    max_milli_vcpu: int
    max_memory_mib: int
    max_disk_mib: int
    concurrent_builds: int
    log_days: int
    block_reason: str  # "" when not blocked
    headroom: Decimal | None  # what may still be spent in this period; None: no cap


_PLAN_LIMITS = (
    "max_concurrent",
    "max_length_seconds",
    "creates_per_second",
    "max_milli_vcpu",
    "max_memory_mib",
    "max_disk_mib",
    "concurrent_builds",
    "log_days",
)


def seed_plans() -> None:
    """Create the plans and prices that are missing; what the operator changed stays."""
    for seeded in SEEDED_PLANS:
        if not Plan.objects.filter(code=seeded["code"]).exists():
            Plan.objects.get_or_create(code=seeded["code"], version=1, defaults=seeded)
    for resource, unit_price in SEEDED_PRICES.items():
        if not Price.objects.filter(plan=None, resource=resource).exists():
            Price.objects.create(resource=resource, unit_price=unit_price, from_ms=0)


def current_plan(code: str) -> Plan:
    """Raises: Plan.DoesNotExist."""
    return Plan.objects.get(code=code, retired_at__isnull=True)


def default_plan() -> Plan:
    try:
        return current_plan(settings.BILLING_DEFAULT_PLAN)
    except Plan.DoesNotExist:
        seed_plans()
        return current_plan(settings.BILLING_DEFAULT_PLAN)


def ensure_account(*, team_id: int, now: datetime) -> None:
    """Open the account of a team that has none yet."""
    if not BillingAccount.objects.filter(pk=team_id).exists():
        account_of(team_id=team_id, now=now)


def account_of(*, team_id: int, now: datetime) -> BillingAccount:
    """The team's account, opened on the default plan at first use, with the plan's trial credit."""
    account = BillingAccount.objects.filter(pk=team_id).first()
    if account is not None:
        return account
    try:
        with transaction.atomic():
            return _open_account(team_id, now)
    except IntegrityError:  # another request opened it at the same moment
        return BillingAccount.objects.get(pk=team_id)


def _open_account(team_id: int, now: datetime) -> BillingAccount:
    from billing.services.credits import grant_credit  # these need accounts
    from billing.services.spend import check_spend

    plan = default_plan()
    account = BillingAccount.objects.create(
        team_id=team_id,
        currency=plan.currency,
        anchor_day=now.day,
        rail=Rail.STRIPE if settings.STRIPE_SECRET_KEY else Rail.LOCAL,
    )
    start, end = period_containing(now, anchor_day=account.anchor_day)
    Subscription.objects.create(account=account, plan=plan, period_start=start, period_end=end)
    PlanTerm.objects.create(account=account, plan=plan, from_ms=0)
    SpendPolicy.objects.create(account=account)
    refresh_limits(account=account)
    if plan.trial_credit_minor:
        grant_credit(
            account=account,
            amount_minor=plan.trial_credit_minor,
            kind=GrantKind.TRIAL,
            source_key=_trial_key(team_id),
            note=f"{plan.name} trial credit",
            now=now,
        )
    if plan.needs_credit:
        check_spend(team_id=team_id, now=now)
    return account


def _trial_key(team_id: int) -> str:
    """One trial per person, however many teams they found; a team without an owner has its own."""
    owners = Membership.objects.filter(team_id=team_id, role=Role.OWNER).order_by("pk")
    founder = owners.values_list("user_id", flat=True).first()
    return f"trial:team:{team_id}" if founder is None else f"trial:user:{founder}"


def live_subscription(account: BillingAccount) -> Subscription:
    return (
        Subscription.objects.select_related("plan", "pending_plan")
        .exclude(status=SubscriptionStatus.CANCELED)
        .get(account=account)
    )


def lock_account(team_id: int) -> BillingAccount:
    """The account, locked until the transaction ends. Everything that changes money holds this
    lock.
    """
    return BillingAccount.objects.select_for_update().get(pk=team_id)


def refresh_limits(*, account: BillingAccount) -> None:
    """Resolve the limits row again: plan, plus add-ons in force, plus the gravest active block."""
    plan = live_subscription(account).plan
    extra = account.addons.filter(kind="concurrency", to_at__isnull=True)
    resolved: dict[str, Any] = {name: getattr(plan, name) for name in _PLAN_LIMITS}
    resolved["max_concurrent"] += extra.aggregate(total=Sum("quantity"))["total"] or 0
    resolved |= {"plan_code": plan.code, "block_reason": gravest_block(account)}
    EffectiveLimits.objects.update_or_create(account=account, defaults=resolved)


def gravest_block(account: BillingAccount) -> str:
    active = set(
        AccountBlock.objects.filter(account=account, cleared_at__isnull=True).values_list(
            "reason", flat=True
        )
    )
    return next((reason for reason in BlockReason.values if reason in active), "")


def limits_for(team_id: int, *, now: datetime) -> Limits:
    """One row, one query; opens the account at first use."""
    row = EffectiveLimits.objects.filter(pk=team_id).first()
    if row is None:
        account_of(team_id=team_id, now=now)
        row = EffectiveLimits.objects.get(pk=team_id)
    return limits_of(row)


def limits_of(row: EffectiveLimits) -> Limits:
    return Limits(
        plan_code=row.plan_code,
        block_reason=row.block_reason,
        headroom=row.headroom,
        **{name: getattr(row, name) for name in _PLAN_LIMITS},
    )
