"""Calls to Stripe that our transactions ordered: claim a row, act with no transaction open,
record the result.

Any step may have happened already, here or at Stripe, before a crash; each looks before it
acts, and carries the same idempotency key every time.
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
from billing.models import BillingAccount, CreditNote, Invoice, Outbox
from billing.models.documents import InvoiceStatus
from billing.periods import from_ms
from billing.services.accounts import lock_account
from billing.services.invoices import amount_due
from billing.services.notices import recipients
from billing.services.remote import apply_remote_invoice
from billing.stripe_client import (
    RemoteInvoice,
    RemoteLine,
    StripeDoor,
    StripeDown,
    StripeRefused,
)

log = logging.getLogger(__name__)

LEASE = timedelta(minutes=5)  # longer than any call may take
MAX_ATTEMPTS = 12
FIRST_DELAY, LAST_DELAY = timedelta(seconds=5), timedelta(hours=6)


class NotYet(Exception):
    """An earlier step of the same invoice is still to be done."""


def drain_outbox(*, now: datetime, limit: int = 200) -> int:
    """Do what is due; returns how many rows were done."""
    if not stripe_client.is_enabled():
        return 0
    due = Outbox.objects.filter(done_at__isnull=True, failed_at__isnull=True, next_at__lte=now)
    ids = list(due.order_by("pk").values_list("pk", flat=True)[:limit])
    return sum(_do(pk, now) for pk in ids)


def _do(pk: int, now: datetime) -> bool:
    claimed = Outbox.objects.filter(
        pk=pk, done_at__isnull=True, failed_at__isnull=True, next_at__lte=now
    ).update(next_at=now + LEASE, attempts=F("attempts") + 1)
    if not claimed:
        return False  # another worker has it
    row = Outbox.objects.get(pk=pk)
    try:
        HANDLERS[row.kind](stripe_client.client(), row.payload, row, now)
    except (StripeDown, NotYet) as error:
        _later(row, str(error), now)
        return False
    except StripeRefused as error:
        _failed(row, str(error), now)
        return False
    Outbox.objects.filter(pk=pk).update(done_at=now, error="")
    return True


def _later(row: Outbox, error: str, now: datetime) -> None:
    if row.attempts >= MAX_ATTEMPTS:
        _failed(row, error, now)
        return
    delay = min(FIRST_DELAY * 2 ** (row.attempts - 1), LAST_DELAY)
    Outbox.objects.filter(pk=row.pk).update(next_at=now + delay, error=error[:2_000])


def _failed(row: Outbox, error: str, now: datetime) -> None:
    log.error("outbox step %s failed: %s", row.key, error, extra={"outbox_key": row.key})
    Outbox.objects.filter(pk=row.pk).update(failed_at=now, error=error[:2_000])


def retry_failed(*, pk: int, now: datetime) -> None:
    """The operator fixed the cause."""
    Outbox.objects.filter(pk=pk, done_at__isnull=True).update(
        failed_at=None, next_at=now, attempts=0
    )


def ensure_customer(account: BillingAccount) -> str:
    """The customer at Stripe, created at first need. Raises: StripeDown, StripeRefused."""
    if account.stripe_customer_id:
        return account.stripe_customer_id
    door, team_id = stripe_client.client(), str(account.team.public_id)
    customer_id = door.find_customer(team_id=team_id)
    if customer_id is None:
        emails = recipients(account)
        customer_id = door.create_customer(
            team_id=team_id,
            name=account.company or account.team.name,
            email=emails[0] if emails else "",
            key=f"cust:{team_id}:{account.stripe_generation}",
        )
    BillingAccount.objects.filter(pk=account.pk, stripe_customer_id__isnull=True).update(
        stripe_customer_id=customer_id
    )
    account.refresh_from_db(fields=["stripe_customer_id"])
    return account.stripe_customer_id or customer_id


def remote_lines(invoice: Invoice) -> list[RemoteLine]:
    """Our lines, then credits and tax as lines of their own, so that both totals agree."""
    lines = [
        RemoteLine(
            description=line.description,
            amount_minor=line.amount_minor,
            start=line.period_start,
            end=line.period_end,
        )
        for line in invoice.lines.all()
    ]
    tax = invoice.snapshot["tax"]
    extra = (
        ("Credits", -invoice.credits_minor),
        (f"{tax['label'] or 'Tax'} {tax['percent']} %", invoice.tax_minor),
    )
    for text, amount_minor in extra:
        if amount_minor:
            lines.append(
                RemoteLine(
                    description=text,
                    amount_minor=amount_minor,
                    start=invoice.period_start,
                    end=invoice.period_end,
                )
            )
    return lines


def _push_invoice(door: StripeDoor, payload: dict[str, Any], _row: Outbox, now: datetime) -> None:
    invoice = Invoice.objects.select_related("account__team").get(pk=payload["invoice_id"])
    if invoice.status == InvoiceStatus.VOID and not invoice.stripe_invoice_id:
        return  # withdrawn before Stripe ever saw it
    customer_id = ensure_customer(invoice.account)
    remote = _remote_draft(door, invoice, customer_id)
    lines = remote_lines(invoice)
    if remote.status == "draft":
        if remote.line_count == 0:
            remote = door.add_lines(remote.id, lines, key=f"inv:{invoice.public_id}:lines")
        _same_total(invoice, remote)
        remote = door.finalize_invoice(remote.id, key=f"inv:{invoice.public_id}:finalize")
    _same_total(invoice, remote)
    Invoice.objects.filter(pk=invoice.pk).update(hosted_url=remote.hosted_url[:500])
    apply_remote_invoice(invoice_id=invoice.pk, remote=remote, now=now)


def _remote_draft(door: StripeDoor, invoice: Invoice, customer_id: str) -> RemoteInvoice:
    if invoice.stripe_invoice_id:
        return door.invoice(invoice.stripe_invoice_id)
    remote = door.find_invoice(customer_id=customer_id, local_id=invoice.public_id)
    if remote is None:
        remote = door.create_invoice(
            customer_id=customer_id,
            currency=invoice.currency,
            local_id=invoice.public_id,
            number=invoice.number,
            days_until_due=settings.BILLING_NET_DAYS,
            is_charged=invoice.account.has_payment_method,
            key=f"inv:{invoice.public_id}:create",
        )
    Invoice.objects.filter(pk=invoice.pk).update(stripe_invoice_id=remote.id)
    return remote


def _same_total(invoice: Invoice, remote: RemoteInvoice) -> None:
    if remote.total_minor != invoice.total_minor:
        raise StripeRefused(
            f"{invoice.number}: Stripe's total is {remote.total_minor}, ours {invoice.total_minor}"
        )


def _known(payload: dict[str, Any]) -> tuple[Invoice, str] | None:
    """The invoice and its id at Stripe; None when it is not and never will be there."""
    invoice = Invoice.objects.get(pk=payload["invoice_id"])
    if invoice.stripe_invoice_id:
        return invoice, invoice.stripe_invoice_id
    push = Outbox.objects.filter(key=f"invoice:{invoice.pk}:push").first()
    if push is None or (push.done_at is not None):
        return None
    raise NotYet(f"invoice {invoice.number} is not at Stripe yet")


def _void_invoice(door: StripeDoor, payload: dict[str, Any], row: Outbox, _now: datetime) -> None:
    if (known := _known(payload)) is None:
        return
    invoice, remote_id = known
    status = door.invoice(remote_id).status
    if status in ("open", "uncollectible"):
        door.void_invoice(remote_id, key=row.key)
    elif status == "paid":
        raise StripeRefused(f"{invoice.number} is void here and paid at Stripe: refund it there")


def _paid_out_of_band(
    door: StripeDoor, payload: dict[str, Any], row: Outbox, _now: datetime
) -> None:
    if (known := _known(payload)) is not None and door.invoice(known[1]).status != "paid":
        door.pay_out_of_band(known[1], key=row.key)


def _credit_note(door: StripeDoor, payload: dict[str, Any], row: Outbox, _now: datetime) -> None:
    if (known := _known(payload)) is None:
        return
    note = CreditNote.objects.get(pk=payload["credit_note_id"])
    if note.stripe_id:
        return
    remote = door.invoice(known[1])
    note_id = door.credit_note(
        invoice_id=remote.id,
        amount_minor=note.amount_minor,
        is_paid=remote.status == "paid",
        memo=note.reason,
        key=row.key,
    )
    CreditNote.objects.filter(pk=note.pk).update(stripe_id=note_id)


def _refund(door: StripeDoor, payload: dict[str, Any], row: Outbox, _now: datetime) -> None:
    if (known := _known(payload)) is None:
        raise StripeRefused("the invoice is not at Stripe")
    door.refund_invoice(known[1], amount_minor=payload["amount_minor"], key=row.key)


def _pay_now(door: StripeDoor, payload: dict[str, Any], row: Outbox, now: datetime) -> None:
    """The customer asked to be charged at once. A decline is an answer, not an error."""
    if (known := _known(payload)) is None:
        return
    invoice, remote_id = known
    if amount_due(invoice) <= 0:
        return
    try:
        remote = door.pay_now(remote_id, key=row.key)
    except StripeRefused:
        remote = door.invoice(remote_id)
    apply_remote_invoice(invoice_id=invoice.pk, remote=remote, now=now)


def _meter_event(door: StripeDoor, payload: dict[str, Any], row: Outbox, _now: datetime) -> None:
    door.meter_event(
        name=payload["name"],
        customer_id=payload["customer_id"],
        value=payload["value"],
        at=from_ms(payload["hour_ms"]),
        identifier=row.key,
    )


Handler = Callable[[StripeDoor, dict[str, Any], Outbox, datetime], None]
HANDLERS: dict[str, Handler] = {
    "push_invoice": _push_invoice,
    "void_invoice": _void_invoice,
    "paid_out_of_band": _paid_out_of_band,
    "credit_note": _credit_note,
    "refund": _refund,
    "pay_now": _pay_now,
    "meter_event": _meter_event,
}


def order(*, key: str, kind: str, payload: dict[str, Any], now: datetime) -> Outbox:
    """Order a call once per key."""
    row, _is_new = Outbox.objects.get_or_create(
        key=key, defaults={"kind": kind, "payload": payload, "next_at": now}
    )
    return row


def refresh_payment_method(account: BillingAccount, *, now: datetime) -> None:
    """Ask Stripe which card invoices are charged to, and keep the answer."""
    from billing.services.spend import check_spend

    if not account.stripe_customer_id:
        return
    method = stripe_client.client().payment_method(account.stripe_customer_id)
    with transaction.atomic():
        locked = lock_account(account.pk)
        locked.has_payment_method = method is not None
        locked.payment_method_label = "" if method is None else method.label
        locked.save(update_fields=["has_payment_method", "payment_method_label"])
        check_spend(team_id=account.pk, now=now)
