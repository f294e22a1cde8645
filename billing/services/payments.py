"""After an invoice is issued: paid, voided, credited, refunded, and what happens while it is not
paid.
"""

from __future__ import annotations

from datetime import datetime

from django.conf import settings
from django.db import transaction

from billing.models import (
    BillingAccount,
    CreditNote,
    Invoice,
    LedgerEntry,
    Outbox,
    PaymentAttempt,
)
from billing.models.accounts import Rail
from billing.models.documents import GrantKind, InvoiceKind, InvoiceStatus, LedgerKind, LineKind
from billing.money import from_minor
from billing.services.accounts import (
    account_of,
    live_subscription,
    lock_account,
)
from billing.services.credits import give_back_burns, grant_credit
from billing.services.dunning import refresh_dunning
from billing.services.invoices import DraftLine, amount_due, issue_invoice, take_number
from billing.services.notices import tell
from billing.services.spend import check_spend
from config.errors import Conflict, InvalidArgument

MAX_CREDITS_MINOR = 100_000_00


def record_payment(
    *, invoice: Invoice, amount_minor: int, key: str, now: datetime, actor: str = "", note: str = ""
) -> Invoice:
    """Book a payment once per key; an invoice whose due amount reaches zero is paid.

    Raises: InvalidArgument for a sum that is not positive or exceeds what is due, Conflict for a
    void invoice.
    """
    with transaction.atomic():
        account, invoice = _locked(invoice)
        if LedgerEntry.objects.filter(idempotency_key=key).exists():
            return invoice
        if invoice.status == InvoiceStatus.VOID:
            raise Conflict(f"invoice {invoice.number} is void")
        due = amount_due(invoice)
        if invoice.status == InvoiceStatus.UNCOLLECTIBLE:
            due = invoice.total_minor  # it was written off; money that comes after all undoes that
        if not 0 < amount_minor <= due:
            raise InvalidArgument(
                f"a payment must be between 1 and {due} minor units, not {amount_minor}"
            )
        if invoice.status == InvoiceStatus.UNCOLLECTIBLE:
            _book(invoice, LedgerKind.WRITE_OFF, invoice.total_minor, f"{key}:back", now)
        _book(invoice, LedgerKind.PAYMENT, -amount_minor, key, now, actor=actor, note=note)
        if amount_due(invoice) == 0:
            _settle_paid(account, invoice, now)
        return invoice


def mark_paid(*, invoice: Invoice, actor: str, now: datetime, note: str = "") -> Invoice:
    """The operator saw the money arrive. Marking twice changes nothing."""
    if invoice.status == InvoiceStatus.PAID:
        return invoice
    with transaction.atomic():
        _account, invoice = _locked(invoice)
        if invoice.status == InvoiceStatus.PAID:
            return invoice
        due = amount_due(invoice)
        if invoice.status == InvoiceStatus.UNCOLLECTIBLE:
            due = invoice.total_minor
        paid = record_payment(
            invoice=invoice,
            amount_minor=due,
            key=f"invoice:{invoice.pk}:marked-paid",
            actor=actor,
            note=note,
            now=now,
        )
        if paid.stripe_invoice_id:
            _to_stripe(paid, "paid_out_of_band", now)
        return paid


def _settle_paid(account: BillingAccount, invoice: Invoice, now: datetime) -> None:
    invoice.status, invoice.paid_at = InvoiceStatus.PAID, now
    invoice.save(update_fields=["status", "paid_at"])
    if invoice.kind == InvoiceKind.CREDITS:
        _grant_bought(account, invoice, now)
    refresh_dunning(account, now)
    check_spend(team_id=account.pk, now=now)


def _grant_bought(account: BillingAccount, invoice: Invoice, now: datetime) -> None:
    grant_credit(
        account=account,
        amount_minor=invoice.subtotal_minor,
        kind=GrantKind.PAID,
        source_key=f"invoice:{invoice.pk}:bought",
        note=f"Bought with invoice {invoice.number}",
        covers_fees=True,
        priority=200,  # given credit burns before bought credit
        now=now,
    )


def buy_credits(*, team_id: int, amount_minor: int, key: str, now: datetime) -> Invoice:
    """An invoice for prepaid credit; the credit is granted when it is paid. The same key buys once.

    Raises: InvalidArgument.
    """
    if not 1 <= amount_minor <= MAX_CREDITS_MINOR:
        raise InvalidArgument(f"credit must be between 1 and {MAX_CREDITS_MINOR} minor units")
    if not 8 <= len(key) <= 80:
        raise InvalidArgument("the idempotency key must have 8 to 80 characters")
    account_of(team_id=team_id, now=now)
    with transaction.atomic():
        account = lock_account(team_id)
        stored_key = f"credits:{team_id}:{key}"
        if known := Invoice.objects.filter(key=stored_key).first():
            return known
        subscription = live_subscription(account)
        draft = DraftLine(
            kind=LineKind.CREDITS,
            description="Prepaid credit",
            exact=from_minor(amount_minor, account.currency),
            start=now,
            end=now,
        )
        invoice = issue_invoice(
            account=account,
            kind=InvoiceKind.CREDITS,
            key=stored_key,
            drafts=[draft],
            plan=subscription.plan,
            period=(now, now),
            now=now,
        )
        assert invoice is not None
        return invoice


def void_invoice(*, invoice: Invoice, reason: str, actor: str, now: datetime) -> Invoice:
    """Withdraw an unpaid invoice; burned credits come back. Its usage is waived, not billed again.

    Raises: Conflict when something was paid on it.
    """
    with transaction.atomic():
        _account, invoice = _locked(invoice)
        if invoice.status == InvoiceStatus.VOID:
            return invoice
        due = amount_due(invoice)
        if invoice.status == InvoiceStatus.PAID or due != invoice.total_minor:
            raise Conflict(f"invoice {invoice.number} has payments; issue a credit note instead")
        _book(invoice, LedgerKind.VOID, -due, f"invoice:{invoice.pk}:void", now, actor=actor)
        give_back_burns(invoice=invoice, now=now)
        _close(invoice, InvoiceStatus.VOID, reason)
        _to_stripe(invoice, "void_invoice", now)
        refresh_dunning(_account, now)
        return invoice


def write_off(*, invoice: Invoice, reason: str, actor: str, now: datetime) -> Invoice:
    """Give up collecting an invoice; it can still be paid. Raises: Conflict unless open."""
    with transaction.atomic():
        account, invoice = _locked(invoice)
        if invoice.status != InvoiceStatus.OPEN:
            raise Conflict(f"invoice {invoice.number} is {invoice.status}, not open")
        due = amount_due(invoice)
        key = f"invoice:{invoice.pk}:write-off"
        _book(invoice, LedgerKind.WRITE_OFF, -due, key, now, actor=actor)
        _close(invoice, InvoiceStatus.UNCOLLECTIBLE, reason)
        refresh_dunning(account, now)
        return invoice


def extend_due(*, invoice: Invoice, due_at: datetime, now: datetime) -> Invoice:
    """Give more time. Raises: Conflict unless open, InvalidArgument when the date is not later."""
    with transaction.atomic():
        account, invoice = _locked(invoice)
        if invoice.status != InvoiceStatus.OPEN:
            raise Conflict(f"invoice {invoice.number} is {invoice.status}, not open")
        if due_at <= invoice.due_at:
            raise InvalidArgument("the new due date must be later")
        invoice.due_at = due_at
        invoice.save(update_fields=["due_at"])
        refresh_dunning(account, now)
        return invoice


def credit_invoice(
    *, invoice: Invoice, amount_minor: int, reason: str, key: str, now: datetime, actor: str = ""
) -> CreditNote:
    """Take back part of an invoice. What was not paid is simply no longer due; what was paid
    becomes credit.

    Raises: InvalidArgument when more than the invoice is taken back, Conflict for a void invoice.
    """
    with transaction.atomic():
        account, invoice = _locked(invoice)
        stored_key = f"invoice:{invoice.pk}:credit:{key}"
        if known := CreditNote.objects.filter(key=stored_key).first():
            return known
        if invoice.status == InvoiceStatus.VOID:
            raise Conflict(f"invoice {invoice.number} is void")
        left = _creditable(invoice)
        if not 0 < amount_minor <= left:
            raise InvalidArgument(f"a credit note must be between 1 and {left} minor units")
        note = _credit_note(invoice, amount_minor, reason, stored_key, now)
        unpaid = min(amount_minor, max(amount_due(invoice), 0))
        if unpaid:
            _book(invoice, LedgerKind.CREDIT_NOTE, -unpaid, stored_key, now, actor=actor)
            if amount_due(invoice) == 0 and invoice.status == InvoiceStatus.OPEN:
                _settle_paid(account, invoice, now)
        if amount_minor > unpaid:
            grant_credit(
                account=account,
                amount_minor=amount_minor - unpaid,
                kind=GrantKind.REFUND,
                source_key=stored_key,
                note=f"Credit note {note.number}",
                covers_fees=True,
                now=now,
            )
        _to_stripe(invoice, "credit_note", now, credit_note_id=note.pk)
        return note


def record_refund(*, invoice: Invoice, amount_minor: int, key: str, now: datetime) -> None:
    """Money went back to the customer's card: a credit note and a refund that cancel out. Once per
    key.
    """
    with transaction.atomic():
        _account, invoice = _locked(invoice)
        stored_key = f"invoice:{invoice.pk}:refund:{key}"
        if CreditNote.objects.filter(key=stored_key).exists():
            return
        amount_minor = min(amount_minor, _creditable(invoice))
        if amount_minor <= 0:
            return
        _credit_note(invoice, amount_minor, "Refunded to your card", stored_key, now)
        _book(invoice, LedgerKind.CREDIT_NOTE, -amount_minor, f"{stored_key}:note", now)
        _book(invoice, LedgerKind.REFUND, amount_minor, stored_key, now)


def refund_payment(*, invoice: Invoice, amount_minor: int, key: str, now: datetime) -> None:
    """Send money back. On Stripe's rail it is ordered there and booked when Stripe confirms it.

    Raises: InvalidArgument for more than was paid and not yet taken back, Conflict unless paid.
    """
    with transaction.atomic():
        _account, invoice = _locked(invoice)
        if invoice.status != InvoiceStatus.PAID:
            raise Conflict(f"invoice {invoice.number} is {invoice.status}, not paid")
        if Outbox.objects.filter(key=f"invoice:{invoice.pk}:refund:{key}").exists():
            return
        if not 0 < amount_minor <= _creditable(invoice):
            raise InvalidArgument(f"a refund is between 1 and {_creditable(invoice)} minor units")
        if invoice.stripe_invoice_id is None:
            record_refund(invoice=invoice, amount_minor=amount_minor, key=key, now=now)
            return
        Outbox.objects.create(
            key=f"invoice:{invoice.pk}:refund:{key}",
            kind="refund",
            payload={"invoice_id": invoice.pk, "amount_minor": amount_minor},
            next_at=now,
        )


def _creditable(invoice: Invoice) -> int:
    taken = sum(invoice.credit_notes.values_list("amount_minor", flat=True))
    return invoice.total_minor - taken


def _credit_note(
    invoice: Invoice, amount_minor: int, reason: str, key: str, now: datetime
) -> CreditNote:
    return CreditNote.objects.create(
        invoice=invoice,
        number=take_number("credit-note", f"{settings.BILLING_INVOICE_PREFIX}CN-"),
        amount_minor=amount_minor,
        reason=reason[:200],
        key=key,
        issued_at=now,
    )


def record_attempt(
    *, invoice: Invoice, rail_id: str, is_success: bool, error: str, at: datetime, now: datetime
) -> None:
    """One try to collect, as the rail told us. A failed one starts dunning."""
    with transaction.atomic():
        account, invoice = _locked(invoice)
        _attempt, is_new = PaymentAttempt.objects.get_or_create(
            rail_id=rail_id,
            defaults={
                "invoice": invoice,
                "is_success": is_success,
                "error": error[:300],
                "at": at,
            },
        )
        if is_new and not is_success and invoice.status == InvoiceStatus.OPEN:
            tell(
                account=account,
                key=f"invoice:{invoice.pk}:failed:{rail_id}",
                subject=f"Payment of invoice {invoice.number} failed",
                body=f"We could not collect invoice {invoice.number}: {error or 'declined'}.\n"
                f"Please check your payment method: {settings.BILLING_PAGE_URL}",
                now=now,
            )
            refresh_dunning(account, now)


def _locked(invoice: Invoice) -> tuple[BillingAccount, Invoice]:
    account = lock_account(invoice.account_id)
    return account, Invoice.objects.get(pk=invoice.pk)


def _close(invoice: Invoice, status: InvoiceStatus, reason: str) -> None:
    invoice.status, invoice.closed_reason = status, reason[:200]
    invoice.save(update_fields=["status", "closed_reason"])


def _book(
    invoice: Invoice,
    kind: LedgerKind,
    amount_minor: int,
    key: str,
    now: datetime,
    *,
    actor: str = "",
    note: str = "",
) -> None:
    if amount_minor:
        LedgerEntry.objects.create(
            account_id=invoice.account_id,
            invoice=invoice,
            kind=kind,
            amount_minor=amount_minor,
            note=note[:200],
            actor=actor[:120],
            idempotency_key=key,
            created_at=now,
        )


def _to_stripe(invoice: Invoice, kind: str, now: datetime, **extra: int) -> None:
    """Tell Stripe, if the invoice is, or will be, there. The outbox keeps the order of one
    invoice's steps.
    """
    if invoice.account.rail != Rail.STRIPE or not invoice.total_minor:
        return
    suffix = "".join(f":{value}" for value in extra.values())
    Outbox.objects.get_or_create(
        key=f"invoice:{invoice.pk}:{kind}{suffix}",
        defaults={
            "kind": kind,
            "payload": {"invoice_id": invoice.pk, **extra},
            "next_at": now,
        },
    )
