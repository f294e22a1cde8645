"""Choosing a plan, buying add-ons, and the operator's new versions of plans and prices."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Any

from django.db import transaction

from billing.errors import PaymentRequired
from billing.models import AddOn, BillingAccount, Invoice, Plan, PlanTerm, Price, Subscription
from billing.models.accounts import Rail
from billing.models.documents import InvoiceKind, LineKind
from billing.money import from_minor
from billing.periods import prorated_minor, to_ms
from billing.pricing import Resource
from billing.services.accounts import (
    account_of,
    current_plan,
    live_subscription,
    lock_account,
    refresh_limits,
)
from billing.services.invoices import DraftLine, issue_invoice, proration_lines, usage_lines
from billing.services.rollup import roll_account
from billing.services.spend import check_spend
from config.errors import Conflict, InvalidArgument, NotFound

ADDON_SIZE, ADDON_FEE_MINOR, ADDON_LIMIT = 500, 100_00, 1_000
PLAN_EDITABLE = (
    "name",
    "base_fee_minor",
    "included_usage_minor",
    "trial_credit_minor",
    "needs_credit",
    "max_concurrent",
    "max_length_seconds",
    "creates_per_second",
    "max_milli_vcpu",
    "max_memory_mib",
    "max_disk_mib",
    "concurrent_builds",
    "log_days",
    "is_public",
    "is_addon_allowed",
)


def find_plan(code: str) -> Plan:
    """Raises: NotFound."""
    try:
        return current_plan(code)
    except Plan.DoesNotExist:
        raise NotFound(f"there is no plan {code!r}") from None


def change_plan(
    *, team_id: int, code: str, now: datetime, is_operator: bool = False
) -> Subscription:
    """Move a team to another plan: at once and prorated if the fee rises, else at the end of the
    period.

    Asking twice changes nothing the second time. Choosing the present plan withdraws a planned
    change.
    Raises: NotFound, InvalidArgument (not a public plan), PaymentRequired (Stripe, no payment
    method).
    """
    plan = find_plan(code)
    account_of(team_id=team_id, now=now)
    with transaction.atomic():
        account = lock_account(team_id)
        subscription = live_subscription(account)
        if not (plan.is_public or is_operator or plan.pk == subscription.plan_id):
            raise InvalidArgument(f"the {plan.name} plan is arranged with the operator")
        _forget_planned(account, subscription)
        if plan.pk == subscription.plan_id:
            subscription.save()
        elif plan.base_fee_minor < subscription.plan.base_fee_minor and not is_operator:
            _plan_change(account, subscription, plan)
        else:
            _switch_now(account, subscription, plan, now)
        return subscription


def _forget_planned(account: BillingAccount, subscription: Subscription) -> None:
    if subscription.pending_plan_id is None:
        return
    subscription.pending_plan = None
    end_ms = to_ms(subscription.period_end)
    account.terms.filter(from_ms=end_ms, to_ms__isnull=True).delete()
    account.terms.filter(to_ms=end_ms).update(to_ms=None)


def _plan_change(account: BillingAccount, subscription: Subscription, plan: Plan) -> None:
    subscription.pending_plan = plan
    subscription.save()
    begin_term(account, plan, to_ms(subscription.period_end))


def _switch_now(
    account: BillingAccount, subscription: Subscription, plan: Plan, now: datetime
) -> None:
    old = subscription.plan
    if plan.base_fee_minor > old.base_fee_minor:
        if account.rail == Rail.STRIPE and not account.has_payment_method:
            raise PaymentRequired(f"add a payment method before choosing the {plan.name} plan")
        changes = account.invoices.filter(kind=InvoiceKind.PRORATION).count()
        issue_invoice(
            account=account,
            kind=InvoiceKind.PRORATION,
            key=f"proration:{subscription.pk}:{changes + 1}",
            drafts=proration_lines(account, old, plan, subscription, now),
            plan=plan,
            period=(now, subscription.period_end),
            now=now,
        )
    subscription.plan = plan
    subscription.save()
    begin_term(account, plan, to_ms(now))
    refresh_limits(account=account)
    check_spend(team_id=account.pk, now=now)


def begin_term(account: BillingAccount, plan: Plan, from_ms: int) -> None:
    account.terms.filter(to_ms__isnull=True).update(to_ms=from_ms)
    PlanTerm.objects.create(account=account, plan=plan, from_ms=from_ms)


def final_invoice(*, team_id: int, now: datetime) -> Invoice | None:
    """Bill at once all hours that are final, before a team leaves. Its sandboxes must have ended.

    Raises: Conflict while something still runs. What the last, unfinished hour holds is billed by
    the period's end.
    """
    roll_account(team_id=team_id, now=now)
    with transaction.atomic():
        account = lock_account(team_id)
        if account.intervals.filter(ended_ms__isnull=True).exists():
            raise Conflict("the team still has sandboxes; end them first")
        subscription = live_subscription(account)
        return issue_invoice(
            account=account,
            kind=InvoiceKind.FINAL,
            key=f"final:{subscription.pk}:{to_ms(now)}",
            drafts=usage_lines(account, subscription.plan, until=now),
            plan=subscription.plan,
            period=(subscription.period_start, now),
            now=now,
        )


def buy_addon(*, team_id: int, quantity: int, key: str, now: datetime) -> AddOn:
    """Add blocks of 500 concurrent sandboxes, prorated to the period's end. The same key buys once.

    Raises: InvalidArgument, PaymentRequired.
    """
    if not 1 <= quantity <= ADDON_LIMIT:
        raise InvalidArgument(f"quantity must be between 1 and {ADDON_LIMIT}")
    if not 8 <= len(key) <= 80:
        raise InvalidArgument("the idempotency key must have 8 to 80 characters")
    account_of(team_id=team_id, now=now)
    with transaction.atomic():
        account = lock_account(team_id)
        stored_key = f"{team_id}:{key}"
        if known := AddOn.objects.filter(idempotency_key=stored_key).first():
            return known
        subscription = live_subscription(account)
        if not subscription.plan.is_addon_allowed:
            raise InvalidArgument(f"the {subscription.plan.name} plan has no add-ons")
        if account.rail == Rail.STRIPE and not account.has_payment_method:
            raise PaymentRequired("add a payment method before buying an add-on")
        addon = AddOn.objects.create(
            account=account,
            quantity=ADDON_SIZE * quantity,
            fee_minor=ADDON_FEE_MINOR * quantity,
            from_at=now,
            idempotency_key=stored_key,
        )
        _bill_addon(account, subscription, addon, now)
        refresh_limits(account=account)
        return addon


def _bill_addon(
    account: BillingAccount, subscription: Subscription, addon: AddOn, now: datetime
) -> None:
    fee = prorated_minor(
        addon.fee_minor,
        start=subscription.period_start,
        end=subscription.period_end,
        since=now,
    )
    draft = DraftLine(
        kind=LineKind.ADDON,
        description=f"{addon.quantity} more concurrent sandboxes, rest of period",
        exact=from_minor(fee, account.currency),
        start=now,
        end=subscription.period_end,
    )
    issue_invoice(
        account=account,
        kind=InvoiceKind.PRORATION,
        key=f"addon:{addon.pk}",
        drafts=[draft],
        plan=subscription.plan,
        period=(now, subscription.period_end),
        now=now,
    )


def end_addon(*, team_id: int, addon_id: int, now: datetime) -> None:
    """Stop an add-on now; it is not billed again. Ending it twice changes nothing. Raises:
    NotFound.
    """
    with transaction.atomic():
        account = lock_account(team_id)
        addon = account.addons.filter(pk=addon_id).first()
        if addon is None:
            raise NotFound("there is no such add-on")
        account.addons.filter(pk=addon_id, to_at__isnull=True).update(to_at=now)
        refresh_limits(account=account)


def new_plan_version(*, plan: Plan, changes: dict[str, Any], now: datetime) -> Plan:
    """Supersede a plan. Teams on the old version move to the new one; hours already rated keep
    their price.

    Raises: InvalidArgument for a field that a version may not change; Conflict when it is
    superseded already.
    """
    if unknown := set(changes) - set(PLAN_EDITABLE):
        raise InvalidArgument(f"a plan version cannot change {', '.join(sorted(unknown))}")
    with transaction.atomic():
        if not Plan.objects.filter(pk=plan.pk, retired_at__isnull=True).update(retired_at=now):
            raise Conflict(f"{plan} has a newer version already")
        kept = {name: getattr(plan, name) for name in PLAN_EDITABLE}
        newer = Plan.objects.create(
            code=plan.code, version=plan.version + 1, currency=plan.currency, **{**kept, **changes}
        )
        Subscription.objects.filter(pending_plan=plan).update(pending_plan=newer)
        movers = Subscription.objects.filter(plan=plan).values_list("account_id", flat=True)
        for team_id in sorted(movers):
            account = lock_account(team_id)
            subscription = live_subscription(account)
            subscription.plan = newer
            subscription.save()
            refresh_limits(account=account)
        _copy_prices(plan, newer)
        return newer


def _copy_prices(plan: Plan, newer: Plan) -> None:
    """Terms keep naming the old version, so a plan's own prices exist for both."""
    for price in Price.objects.filter(plan=plan, to_ms__isnull=True):
        Price.objects.create(
            plan=newer,
            resource=price.resource,
            currency=price.currency,
            unit_price=price.unit_price,
            from_ms=price.from_ms,
        )


def change_price(
    *,
    resource: Resource,
    unit_price: Decimal,
    from_at: datetime,
    now: datetime,
    plan: Plan | None = None,
    currency: str = "USD",
) -> Price:
    """Put a new price in force from a coming instant. What was used before keeps the old one.

    Raises: InvalidArgument for a negative price, more than 12 decimals, or an instant that is past.
    """
    if from_at < now:
        raise InvalidArgument("a price cannot change in the past")
    exponent = unit_price.as_tuple().exponent
    if unit_price < 0 or not isinstance(exponent, int) or exponent < -12 or unit_price > 1_000:
        raise InvalidArgument("a price is between 0 and 1000 with at most 12 decimals")
    from_ms = to_ms(from_at)
    with transaction.atomic():
        current = (
            Price.objects.select_for_update()
            .filter(plan=plan, resource=resource, currency=currency, to_ms__isnull=True)
            .first()
        )
        if current is not None:
            if current.from_ms >= from_ms:
                raise Conflict("a later price is already planned")
            Price.objects.filter(pk=current.pk).update(to_ms=from_ms)
        return Price.objects.create(
            plan=plan,
            resource=resource,
            currency=currency,
            unit_price=unit_price,
            from_ms=from_ms,
        )
