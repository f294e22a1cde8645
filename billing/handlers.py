"""One handler per kind of Stripe event. None trusts what the event carries: it may be old. Each
asks Stripe for the object as it is now, and applies that.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models import F

from billing import stripe_client
from billing.models import BillingAccount, InboundWebhook, Invoice
from billing.outbox import refresh_payment_method
from billing.services.notices import tell
from billing.services.payments import record_refund
from billing.services.remote import apply_remote_invoice
from billing.stripe_client import StripeDown, StripeRefused

log = logging.getLogger(__name__)
RETRY_AFTER = timedelta(minutes=1)
MAX_ATTEMPTS = 50


def handle_webhook(*, webhook_id: int, now: datetime) -> bool:
    """Handle one stored event; True when it is done. Safe to run twice, even at once."""
    row = InboundWebhook.objects.get(pk=webhook_id)
    if row.handled_at is not None:
        return True
    InboundWebhook.objects.filter(pk=row.pk).update(attempts=F("attempts") + 1)
    handler = HANDLERS.get(row.type)
    thing = (row.payload.get("data") or {}).get("object") or {}
    try:
        if handler is not None:
            handler(thing, row, now)
    except (StripeDown, StripeRefused) as error:
        InboundWebhook.objects.filter(pk=row.pk).update(error=str(error)[:2_000])
        return False
    InboundWebhook.objects.filter(pk=row.pk, handled_at__isnull=True).update(
        handled_at=now, error=""
    )
    return True


def sweep_webhooks(*, now: datetime, limit: int = 200) -> int:
    """Handle what no task handled; returns how many are done."""
    if not stripe_client.is_enabled():
        return 0
    rows = InboundWebhook.objects.filter(handled_at__isnull=True, attempts__lt=MAX_ATTEMPTS)
    ids = list(rows.order_by("pk").values_list("pk", flat=True)[:limit])
    return sum(handle_webhook(webhook_id=pk, now=now) for pk in ids)


def _invoice_changed(thing: dict[str, Any], _row: InboundWebhook, now: datetime) -> None:
    remote = stripe_client.client().invoice(str(thing["id"]))
    invoice = Invoice.objects.filter(public_id=remote.local_id).first()
    if invoice is None:
        log.info("an invoice at Stripe that is not ours", extra={"stripe_id": remote.id})
        return
    apply_remote_invoice(invoice_id=invoice.pk, remote=remote, now=now)


def _customer_changed(thing: dict[str, Any], _row: InboundWebhook, now: datetime) -> None:
    customer_id = thing.get("customer") or (
        thing["id"] if thing.get("object") == "customer" else None
    )
    account = BillingAccount.objects.filter(stripe_customer_id=customer_id).first()
    if customer_id and account is not None:
        refresh_payment_method(account, now=now)


def _customer_deleted(thing: dict[str, Any], _row: InboundWebhook, now: datetime) -> None:
    """Forget the customer if it is really gone; the next need creates another."""
    customer_id = str(thing["id"])
    account = BillingAccount.objects.filter(stripe_customer_id=customer_id).first()
    if account is None or stripe_client.client().customer_exists(customer_id):
        return
    BillingAccount.objects.filter(pk=account.pk).update(
        stripe_customer_id=None,
        # Within a day the old idempotency key would give the deleted customer again.
        stripe_generation=F("stripe_generation") + 1,
        has_payment_method=False,
        payment_method_label="",
    )


def _charge_refunded(thing: dict[str, Any], _row: InboundWebhook, now: datetime) -> None:
    invoice_id, refunds = stripe_client.client().refunds_of_charge(str(thing["id"]))
    invoice = Invoice.objects.filter(stripe_invoice_id=invoice_id).first()
    if invoice_id is None or invoice is None:
        return
    for refund in refunds:
        if refund.status == "succeeded":
            record_refund(invoice=invoice, amount_minor=refund.amount_minor, key=refund.id, now=now)


def _dispute_created(thing: dict[str, Any], _row: InboundWebhook, now: datetime) -> None:
    invoice_id, _refunds = stripe_client.client().refunds_of_charge(str(thing["charge"]))
    invoice = Invoice.objects.filter(stripe_invoice_id=invoice_id).first()
    if invoice_id is None or invoice is None:
        return
    log.error("a payment is disputed", extra={"team_id": invoice.account_id})
    with transaction.atomic():
        tell(
            account=invoice.account,
            key=f"dispute:{thing['id']}",
            subject=f"The payment of invoice {invoice.number} is disputed",
            body=f"Your bank disputes a payment.\n{settings.BILLING_PAGE_URL}",
            now=now,
        )


HANDLERS: dict[str, Callable[[dict[str, Any], InboundWebhook, datetime], None]] = {
    "invoice.finalized": _invoice_changed,
    "invoice.paid": _invoice_changed,
    "invoice.payment_succeeded": _invoice_changed,
    "invoice.payment_failed": _invoice_changed,
    "invoice.payment_action_required": _invoice_changed,
    "invoice.finalization_failed": _invoice_changed,
    "invoice.voided": _invoice_changed,
    "invoice.marked_uncollectible": _invoice_changed,
    "invoice.updated": _invoice_changed,
    "checkout.session.completed": _customer_changed,
    "setup_intent.succeeded": _customer_changed,
    "payment_method.attached": _customer_changed,
    "payment_method.detached": _customer_changed,
    "payment_method.updated": _customer_changed,
    "customer.updated": _customer_changed,
    "customer.deleted": _customer_deleted,
    "charge.refunded": _charge_refunded,
    "charge.dispute.created": _dispute_created,
}
