"""Comparing our books with Stripe's, both ways, and repairing what a lost message left behind."""

from __future__ import annotations

from collections import defaultdict
from datetime import datetime, timedelta

from django.conf import settings
from django.db.models import Sum

from billing import outbox, stripe_client
from billing.handlers import handle_webhook
from billing.models import BillingAccount, InboundWebhook, Invoice, Outbox, ReconcileRun, UsageHour
from billing.models.accounts import Rail
from billing.models.documents import InvoiceStatus
from billing.periods import HOUR_MS, hour_of, to_ms
from billing.pricing import UNIT_QUANTITY, Resource
from billing.services.remote import apply_remote_invoice
from billing.stripe_client import RemoteInvoice, StripeDoor, StripeDown, StripeRefused
from billing.webhooks import store_event

EVENTS_BACK = timedelta(days=3)
PUSH_TIME = timedelta(hours=1)
STATUS_AT_STRIPE = {
    InvoiceStatus.OPEN: {"open", "draft"},
    InvoiceStatus.PAID: {"paid"},
    InvoiceStatus.VOID: {"void"},
    InvoiceStatus.UNCOLLECTIBLE: {"uncollectible"},
}
METERS = {Resource.VCPU: "sandlot_vcpu_seconds", Resource.MEMORY: "sandlot_memory_gib_seconds"}


def pull_events(*, now: datetime) -> int:
    """Fetch events that Stripe could not deliver and handle them; returns how many were new."""
    fresh = 0
    for event in stripe_client.client().undelivered_events(since=now - EVENTS_BACK):
        if store_event(event):
            fresh += 1
            row = InboundWebhook.objects.get(source="stripe", event_id=event.id)
            handle_webhook(webhook_id=row.pk, now=now)
    return fresh


def reconcile_stripe(*, now: datetime) -> ReconcileRun | None:
    """Compare every invoice on Stripe's rail. A status that only lags is repaired; the rest is
    reported.
    """
    if not stripe_client.is_enabled():
        return None
    problems: list[str] = []
    checked = 0
    door = stripe_client.client()
    try:
        pull_events(now=now)
        for account in BillingAccount.objects.filter(rail=Rail.STRIPE):
            checked += _reconcile_account(door, account, problems, now)
    except (StripeDown, StripeRefused) as error:
        problems.append(f"Stripe did not answer: {error}")
    for row in Outbox.objects.filter(failed_at__isnull=False, done_at__isnull=True)[:100]:
        problems.append(f"step {row.key} failed: {row.error[:200]}")
    return ReconcileRun.objects.create(
        kind="stripe",
        started_at=now,
        checked=checked,
        mismatches=len(problems),
        details=problems[:200],
    )


def _reconcile_account(
    door: StripeDoor, account: BillingAccount, problems: list[str], now: datetime
) -> int:
    ours = {i.public_id: i for i in account.invoices.filter(total_minor__gt=0)}
    if account.stripe_customer_id is None:
        late = [i for i in ours.values() if _should_be_there(i, now)]
        problems += [f"invoice {i.number} is not at Stripe" for i in late]
        return len(ours)
    if not door.customer_exists(account.stripe_customer_id):
        problems.append(f"customer {account.stripe_customer_id} is gone at Stripe")
        return len(ours)
    theirs: dict[str, list[RemoteInvoice]] = defaultdict(list)
    for remote in door.invoices_of(account.stripe_customer_id):
        theirs[remote.local_id].append(remote)
    for local_id, remotes in theirs.items():
        if local_id not in ours:
            names = ", ".join(r.id for r in remotes)
            problems.append(f"Stripe has {names} for {account.pk}, we have no such invoice")
    for public_id, invoice in ours.items():
        _reconcile_invoice(invoice, theirs.get(public_id, []), problems, now)
    return len(ours)


def _reconcile_invoice(
    invoice: Invoice, remotes: list[RemoteInvoice], problems: list[str], now: datetime
) -> None:
    if not remotes:
        if _should_be_there(invoice, now):
            problems.append(f"invoice {invoice.number} is not at Stripe")
        return
    if len(remotes) > 1:
        problems.append(f"invoice {invoice.number} is {len(remotes)} times at Stripe")
    remote = remotes[0]
    if remote.status == "draft":
        if invoice.issued_at < now - PUSH_TIME:
            problems.append(f"invoice {invoice.number} is still a draft at Stripe")
        return
    if remote.total_minor != invoice.total_minor:
        problems.append(
            f"{invoice.number}: Stripe says {remote.total_minor}, we say {invoice.total_minor}"
        )
    if remote.status not in STATUS_AT_STRIPE[InvoiceStatus(invoice.status)]:
        apply_remote_invoice(invoice_id=invoice.pk, remote=remote, now=now)
        invoice.refresh_from_db()
        if remote.status not in STATUS_AT_STRIPE[InvoiceStatus(invoice.status)]:
            problems.append(
                f"{invoice.number} is {invoice.status} here and {remote.status} at Stripe"
            )


def _should_be_there(invoice: Invoice, now: datetime) -> bool:
    never = (InvoiceStatus.VOID, InvoiceStatus.PAID)
    return invoice.issued_at < now - PUSH_TIME and invoice.status not in never


def mirror_usage(*, now: datetime) -> int:
    """Order meter events for the last day's finished hours: for charts at Stripe only, no price
    uses them.
    """
    if not (settings.STRIPE_METER_EVENTS and stripe_client.is_enabled()):
        return 0
    since = hour_of(to_ms(now)) - 24 * HOUR_MS
    ordered = 0
    accounts = BillingAccount.objects.filter(stripe_customer_id__isnull=False)
    for account in accounts:
        rows = UsageHour.objects.filter(account=account, hour_ms__gte=since, resource__in=METERS)
        sums = rows.values_list("hour_ms", "resource").annotate(total=Sum("quantity"))
        for hour_ms, resource, total in sums:
            kind = Resource(resource)
            outbox.order(
                key=f"meter:{account.pk}:{resource}:{hour_ms}",
                kind="meter_event",
                payload={
                    "name": METERS[kind],
                    "customer_id": account.stripe_customer_id,
                    "value": int(total) // UNIT_QUANTITY[kind],
                    "hour_ms": hour_ms,
                },
                now=now,
            )
            ordered += 1
    return ordered
