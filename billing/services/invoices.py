"""Invoices: written whole in one transaction (lock, freeze hours, lines, credits, tax, number), so
a crash leaves either nothing or an issued invoice. What must then happen at Stripe is in the outbox
of the same transaction.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models import F, Max, Min, QuerySet, Sum

from billing.metering import MeterState
from billing.models import (
    BillingAccount,
    Invoice,
    InvoiceLine,
    LedgerEntry,
    NumberSequence,
    Outbox,
    Plan,
    Price,
    Subscription,
    UsageAdjustment,
    UsageHour,
    UsageInterval,
)
from billing.models.accounts import Rail
from billing.models.documents import (
    GrantKind,
    InvoiceKind,
    InvoiceStatus,
    LedgerKind,
    LineKind,
)
from billing.models.plans import SubscriptionStatus
from billing.money import exact_sum, format_minor, from_minor, percent_of_minor, to_minor
from billing.periods import from_ms, next_period_start, prorated_minor, to_ms
from billing.pricing import UNIT, Resource, amount
from billing.services.accounts import live_subscription, lock_account, refresh_limits
from billing.services.credits import burn_credits, grant_credit, record_burns
from billing.services.notices import tell
from billing.services.rollup import rate_table, recompute, roll_account
from billing.services.spend import check_spend
from billing.services.usage import lose_usage

# After a period's end we wait this long for late facts; what comes later is corrected on the next
# invoice.
CLOSE_GRACE = timedelta(minutes=15)
# A meter without proof of life holds its hour open. At most this long; then it is closed where the
# proof ends.
SILENCE_LIMIT = timedelta(hours=24)
RESOURCE_NAME = {Resource.VCPU: "vCPU", Resource.MEMORY: "Memory", Resource.DISK: "Disk"}


@dataclass(kw_only=True)
class DraftLine:
    """A line before its invoice exists. `exact` is unrounded; it is rounded once, here."""

    kind: LineKind
    description: str
    exact: Decimal
    start: datetime
    end: datetime
    resource: str = ""
    price_id: int | None = None
    quantity: int | None = None
    unit_price: Decimal | None = None

    def minor(self, currency: str) -> int:
        return to_minor(self.exact, currency)


def close_due_periods(*, now: datetime) -> int:
    """Close every period whose end and grace have passed; returns how many."""
    due = Subscription.objects.exclude(status=SubscriptionStatus.CANCELED).filter(
        period_end__lte=now - CLOSE_GRACE
    )
    return sum(
        close_period(team_id=team_id, now=now)
        for team_id in due.order_by("account_id").values_list("account_id", flat=True)
    )


def close_period(*, team_id: int, now: datetime) -> bool:
    """Bill an account's ended period and begin the next; False when it is not due, or hours are
    still open.

    Safe to run twice: the period moves in the transaction that bills it.
    """
    _end_silent_meters(team_id, now)
    roll_account(team_id=team_id, now=now)
    with transaction.atomic():
        account = lock_account(team_id)
        subscription = live_subscription(account)
        end = subscription.period_end
        if now < end + CLOSE_GRACE or (account.rolled_until_ms < to_ms(end) and _has_open(account)):
            return False
        _settle_hours(account, subscription, now)
        plan_next = subscription.pending_plan or subscription.plan
        period_next = (end, next_period_start(end, anchor_day=account.anchor_day))
        drafts = usage_lines(account, subscription.plan, until=end)
        drafts += fee_lines(account, plan_next, period_next)
        issue_invoice(
            account=account,
            kind=InvoiceKind.CYCLE,
            key=f"cycle:{subscription.pk}:{end:%Y%m%d}",
            drafts=drafts,
            plan=subscription.plan,
            period=(subscription.period_start, end),
            now=now,
        )
        subscription.plan, subscription.pending_plan = plan_next, None
        subscription.period_start, subscription.period_end = period_next
        subscription.save()
        refresh_limits(account=account)
        check_spend(team_id=team_id, now=now)  # the new period begins with its whole limit
        return True


def _has_open(account: BillingAccount) -> bool:
    return account.intervals.filter(ended_ms__isnull=True, state=MeterState.RUNNING).exists()


def _end_silent_meters(team_id: int, now: datetime) -> None:
    silent = UsageInterval.objects.filter(
        account_id=team_id,
        ended_ms__isnull=True,
        state=MeterState.RUNNING,
        confirmed_until_ms__lt=to_ms(now - SILENCE_LIMIT),
    )
    ids = list(silent.values_list("sandbox_id", flat=True))
    if ids:
        lose_usage(sandbox_ids=ids, now=now, reason="silent")


def _settle_hours(account: BillingAccount, subscription: Subscription, now: datetime) -> None:
    """Compute the whole period once more from its intervals: the roll-ups were early views of the
    same sum.
    """
    end_ms = to_ms(subscription.period_end)
    unbilled = account.hours.filter(invoice_line__isnull=True, hour_ms__lt=end_ms)
    first = unbilled.aggregate(first=Min("hour_ms"))["first"]
    start_ms = min(to_ms(subscription.period_start), end_ms if first is None else first)
    recompute(account, start_ms, end_ms, table=rate_table(account), now=now)
    if account.rolled_until_ms < end_ms:
        account.rolled_until_ms = end_ms
        account.save(update_fields=["rolled_until_ms"])


def usage_lines(account: BillingAccount, plan: Plan, *, until: datetime) -> list[DraftLine]:
    """Lines for all final usage and corrections before `until` that no invoice holds yet."""
    until_ms = to_ms(until)
    drafts = _grouped(_unbilled_hours(account, until_ms), LineKind.USAGE)
    drafts += _grouped(_unbilled_adjustments(account, until_ms), LineKind.ADJUSTMENT)
    used_minor = sum(draft.minor(account.currency) for draft in drafts)
    included = plan.included_usage_minor
    covered = used_minor if included is None else min(included, used_minor)
    if covered > 0:
        start, end = min(d.start for d in drafts), max(d.end for d in drafts)
        exact = from_minor(-covered, account.currency)
        text = f"Usage included in {plan.name}"
        drafts.append(
            DraftLine(kind=LineKind.INCLUDED, description=text, exact=exact, start=start, end=end)
        )
    return drafts


def _unbilled_hours(account: BillingAccount, until_ms: int) -> QuerySet[UsageHour]:
    return account.hours.filter(invoice_line__isnull=True, hour_ms__lt=until_ms)


def _unbilled_adjustments(account: BillingAccount, until_ms: int) -> QuerySet[UsageAdjustment]:
    return account.adjustments.filter(invoice_line__isnull=True, hour_ms__lt=until_ms)


def _grouped(rows: QuerySet[Any], kind: LineKind) -> list[DraftLine]:
    prices = {price.pk: price for price in Price.objects.all()}
    groups = (
        rows.order_by()
        .values_list("resource", "price_id")
        .annotate(total=Sum("quantity"), first=Min("hour_ms"), last=Max("hour_ms"))
        .order_by("resource", "price_id")
    )
    drafts = []
    for resource, price_id, total, first, last in groups:
        price, name = prices[price_id], RESOURCE_NAME[Resource(resource)]
        text = f"{name}, per {UNIT[Resource(resource)]}"
        drafts.append(
            DraftLine(
                kind=kind,
                description=text if kind is LineKind.USAGE else f"Correction: {text}",
                exact=amount(Resource(resource), int(total), price.unit_price),
                start=from_ms(first),
                end=from_ms(last) + timedelta(hours=1),
                resource=resource,
                price_id=price_id,
                quantity=int(total),
                unit_price=price.unit_price,
            )
        )
    return drafts


def fee_lines(
    account: BillingAccount, plan: Plan, period: tuple[datetime, datetime]
) -> list[DraftLine]:
    """The plan's fee and add-ons for a coming period, in advance."""
    drafts = []
    if plan.base_fee_minor:
        drafts.append(_fee(LineKind.FEE, f"{plan.name} plan", plan.base_fee_minor, account, period))
    for addon in account.addons.filter(to_at__isnull=True):
        text = f"{addon.quantity} more concurrent sandboxes"
        drafts.append(_fee(LineKind.ADDON, text, addon.fee_minor, account, period))
    return drafts


def _fee(
    kind: LineKind,
    text: str,
    fee_minor: int,
    account: BillingAccount,
    period: tuple[datetime, datetime],
) -> DraftLine:
    exact = from_minor(fee_minor, account.currency)
    return DraftLine(kind=kind, description=text, exact=exact, start=period[0], end=period[1])


def proration_lines(
    account: BillingAccount, old: Plan, new: Plan, subscription: Subscription, now: datetime
) -> list[DraftLine]:
    """The rest of the period at the new fee, less the same rest at the old one."""
    period = (now, subscription.period_end)
    left = {
        plan: prorated_minor(
            plan.base_fee_minor,
            start=subscription.period_start,
            end=subscription.period_end,
            since=now,
        )
        for plan in (old, new)
    }
    drafts = [_fee(LineKind.FEE, f"{new.name} plan, rest of period", left[new], account, period)]
    if left[old]:
        text = f"Unused time on {old.name}"
        drafts.append(_fee(LineKind.FEE, text, -left[old], account, period))
    return drafts


def issue_invoice(
    *,
    account: BillingAccount,
    kind: InvoiceKind,
    key: str,
    drafts: Sequence[DraftLine],
    plan: Plan,
    period: tuple[datetime, datetime],
    now: datetime,
) -> Invoice | None:
    """Write an invoice in the caller's transaction, with the account locked. None when there is
    nothing to say.

    A negative subtotal (corrections) is carried over as credit, so that no invoice is below zero.
    """
    if not drafts:
        return None
    drafts = list(drafts)
    currency = account.currency
    subtotal = sum(draft.minor(currency) for draft in drafts)
    carried = -subtotal if subtotal < 0 else 0
    if carried:
        exact = from_minor(carried, currency)
        drafts.append(
            DraftLine(
                kind=LineKind.CARRIED,
                description=LineKind.CARRIED.label,
                exact=exact,
                start=period[0],
                end=period[1],
            )
        )
        subtotal = 0
    usage_kinds = (LineKind.USAGE, LineKind.ADJUSTMENT, LineKind.INCLUDED, LineKind.CARRIED)
    usage_minor = sum(d.minor(currency) for d in drafts if d.kind in usage_kinds)
    fees_minor = sum(d.minor(currency) for d in drafts if d.kind in (LineKind.FEE, LineKind.ADDON))
    usage_minor = min(max(usage_minor, 0), subtotal)
    fees_minor = min(max(fees_minor, 0), subtotal - usage_minor)
    burns = burn_credits(account=account, usage_minor=usage_minor, fees_minor=fees_minor, now=now)
    credits_minor = sum(taken for _grant, taken in burns)
    tax_minor = percent_of_minor(subtotal - credits_minor, account.tax_percent)
    total = subtotal - credits_minor + tax_minor
    invoice = Invoice.objects.create(
        account=account,
        public_id=f"inv_{secrets.token_hex(12)}",
        kind=kind,
        key=key,
        number=take_number("invoice", settings.BILLING_INVOICE_PREFIX),
        currency=currency,
        period_start=period[0],
        period_end=period[1],
        subtotal_minor=subtotal,
        credits_minor=credits_minor,
        tax_minor=tax_minor,
        total_minor=total,
        snapshot=_snapshot(account, plan),
        issued_at=now,
        due_at=now + timedelta(days=settings.BILLING_NET_DAYS),
        status=InvoiceStatus.OPEN if total else InvoiceStatus.PAID,
        paid_at=None if total else now,
    )
    _write_lines(invoice, drafts, account)
    record_burns(burns, invoice=invoice, now=now)
    _settle_money(invoice, account, carried, now)
    return invoice


def _write_lines(invoice: Invoice, drafts: Sequence[DraftLine], account: BillingAccount) -> None:
    until_ms = to_ms(invoice.period_end)
    for position, draft in enumerate(drafts, start=1):
        line = InvoiceLine.objects.create(
            invoice=invoice,
            position=position,
            kind=draft.kind,
            description=draft.description,
            resource=draft.resource,
            price_id=draft.price_id,
            quantity=None if draft.quantity is None else Decimal(draft.quantity),
            unit_price=draft.unit_price,
            exact_amount=draft.exact,
            amount_minor=draft.minor(account.currency),
            period_start=draft.start,
            period_end=draft.end,
        )
        match = {"resource": draft.resource, "price_id": draft.price_id}
        if draft.kind is LineKind.USAGE:
            _unbilled_hours(account, until_ms).filter(**match).update(invoice_line=line)
        elif draft.kind is LineKind.ADJUSTMENT:
            _unbilled_adjustments(account, until_ms).filter(**match).update(invoice_line=line)


def _settle_money(
    invoice: Invoice, account: BillingAccount, carried_minor: int, now: datetime
) -> None:
    if carried_minor:
        grant_credit(
            account=account,
            amount_minor=carried_minor,
            kind=GrantKind.REFUND,
            source_key=f"invoice:{invoice.pk}:carried",
            note=f"Carried over from invoice {invoice.number}",
            covers_fees=True,
            priority=10,
            now=now,
        )
    if not invoice.total_minor:
        return
    LedgerEntry.objects.create(
        account=account,
        invoice=invoice,
        kind=LedgerKind.INVOICE,
        amount_minor=invoice.total_minor,
        idempotency_key=f"invoice:{invoice.pk}",
        created_at=now,
    )
    if account.rail == Rail.STRIPE:
        Outbox.objects.create(
            key=f"invoice:{invoice.pk}:push",
            kind="push_invoice",
            payload={"invoice_id": invoice.pk},
            next_at=now,
        )
    total = format_minor(invoice.total_minor, invoice.currency)
    tell(
        account=account,
        key=f"invoice:{invoice.pk}:issued",
        subject=f"Invoice {invoice.number}: {total}",
        body=f"Invoice {invoice.number} over {total} is due on {invoice.due_at:%d %B %Y}.\n"
        f"{settings.BILLING_PAGE_URL}",
        now=now,
    )


def take_number(sequence: str, prefix: str) -> str:
    """The next document number. Its row stays locked until the transaction ends, so there are no
    gaps.
    """
    NumberSequence.objects.get_or_create(name=sequence)
    NumberSequence.objects.filter(name=sequence).update(next_value=F("next_value") + 1)
    value = NumberSequence.objects.get(name=sequence).next_value - 1
    return f"{prefix}{value:06d}"


def _snapshot(account: BillingAccount, plan: Plan) -> dict[str, Any]:
    """Names and addresses as they are today; a later change must not alter an issued invoice."""
    return {
        "seller": {
            "name": settings.BILLING_SELLER_NAME,
            "address": settings.BILLING_SELLER_ADDRESS,
            "tax_id": settings.BILLING_SELLER_TAX_ID,
            "bank": settings.BILLING_SELLER_BANK,
        },
        "buyer": {
            "name": account.company or account.team.name,
            "address": account.address,
            "tax_id": account.tax_id,
        },
        "tax": {"label": account.tax_label, "percent": f"{account.tax_percent.normalize():f}"},
        "plan": plan.code,
    }


def amount_due(invoice: Invoice) -> int:
    """What is still to pay: the sum of the invoice's ledger entries."""
    return int(invoice.ledger.aggregate(total=Sum("amount_minor"))["total"] or 0)


def unbilled_total(account: BillingAccount) -> Decimal:
    """Exact worth of all final usage and corrections that no invoice holds yet."""
    rows = [*_grouped(account.hours.filter(invoice_line__isnull=True), LineKind.USAGE)]
    rows += _grouped(account.adjustments.filter(invoice_line__isnull=True), LineKind.ADJUSTMENT)
    return exact_sum(row.exact for row in rows)
