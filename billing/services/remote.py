"""Making a local invoice agree with what Stripe says of it now. The order in which we hear of
things does not matter: only the latest state is applied, and only by moves that are legal here.
"""

from __future__ import annotations

import logging
from datetime import datetime

from django.db import transaction

from billing.models import Invoice
from billing.models.documents import InvoiceStatus
from billing.services.invoices import amount_due
from billing.services.payments import record_attempt, record_payment, void_invoice, write_off
from billing.stripe_client import RemoteInvoice

log = logging.getLogger(__name__)
ACTOR = "stripe"


def apply_remote_invoice(*, invoice_id: int, remote: RemoteInvoice, now: datetime) -> None:
    """Bring our invoice to the state Stripe reports. Applying the same report again changes
    nothing.
    """
    with transaction.atomic():
        invoice = Invoice.objects.get(pk=invoice_id)
        if invoice.stripe_invoice_id is None:
            Invoice.objects.filter(pk=invoice.pk).update(stripe_invoice_id=remote.id)
        elif invoice.stripe_invoice_id != remote.id:
            log.error("two Stripe invoices for one of ours", extra={"invoice": invoice.number})
            return
        match remote.status:
            case "paid":
                _paid(invoice, remote, now)
            case "void" if invoice.status in (InvoiceStatus.OPEN, InvoiceStatus.UNCOLLECTIBLE):
                void_invoice(invoice=invoice, reason="voided at Stripe", actor=ACTOR, now=now)
            case "uncollectible" if invoice.status == InvoiceStatus.OPEN:
                write_off(invoice=invoice, reason="given up at Stripe", actor=ACTOR, now=now)
            case "open" if remote.is_attempted:
                _failed(invoice, remote, now)


def _paid(invoice: Invoice, remote: RemoteInvoice, now: datetime) -> None:
    if invoice.status == InvoiceStatus.VOID:
        log.error("paid at Stripe, void here", extra={"invoice": invoice.number})
        return
    if invoice.status == InvoiceStatus.PAID:
        return
    due = amount_due(invoice)
    if invoice.status == InvoiceStatus.UNCOLLECTIBLE:
        due = invoice.total_minor
    record_payment(
        invoice=invoice,
        amount_minor=due,
        key=f"stripe:{remote.id}:paid",
        actor=ACTOR,
        now=now,
    )
    if remote.attempts:
        rail_id = f"{remote.id}:{remote.attempts}"
        record_attempt(invoice=invoice, rail_id=rail_id, is_success=True, error="", at=now, now=now)


def _failed(invoice: Invoice, remote: RemoteInvoice, now: datetime) -> None:
    record_attempt(
        invoice=invoice,
        rail_id=f"{remote.id}:{remote.attempts}",
        is_success=False,
        error=remote.error,
        at=now,
        now=now,
    )
