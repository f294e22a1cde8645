"""Credits, invoices and the ledger. Amounts are integers of the currency's minor unit (cents)."""

from __future__ import annotations

from django.db import models
from django.db.models import F, Q

from billing.fields import ExactDecimalField
from billing.models.accounts import BillingAccount


class GrantKind(models.TextChoices):
    TRIAL = "trial", "Trial"
    PROMO = "promo", "Promotion"
    PAID = "paid", "Bought"
    REFUND = "refund", "Refund"
    MANUAL = "manual", "Granted by the operator"


class CreditGrant(models.Model):
    """Credit given to an account. `remaining_minor` is the sum of its entries, never negative."""

    account = models.ForeignKey(BillingAccount, on_delete=models.PROTECT, related_name="grants")
    kind = models.CharField(max_length=10, choices=GrantKind)
    amount_minor = models.BigIntegerField()
    remaining_minor = models.BigIntegerField()
    priority = models.PositiveSmallIntegerField(default=100)  # lower burns first
    covers_fees = models.BooleanField(default=False)  # False: usage only, as E2B's
    effective_at = models.DateTimeField()
    expires_at = models.DateTimeField(null=True, blank=True)
    source_key = models.CharField(max_length=120, unique=True)  # the same gift never twice
    note = models.CharField(max_length=200, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = [
            models.CheckConstraint(
                name="grant_remaining_in_range",
                condition=Q(remaining_minor__gte=0, remaining_minor__lte=F("amount_minor")),
            ),
        ]

    def __str__(self) -> str:
        return self.source_key


class CreditKind(models.TextChoices):
    GRANT = "grant", "Grant"
    BURN = "burn", "Applied to an invoice"
    EXPIRE = "expire", "Expired"
    VOID = "void", "Withdrawn"
    REVERSAL = "reversal", "Given back"


class CreditEntry(models.Model):
    """One movement of one grant; append-only."""

    grant = models.ForeignKey(CreditGrant, on_delete=models.PROTECT, related_name="entries")
    kind = models.CharField(max_length=10, choices=CreditKind)
    amount_minor = models.BigIntegerField()  # signed
    invoice = models.ForeignKey(
        "billing.Invoice", on_delete=models.PROTECT, null=True, related_name="credit_entries"
    )
    idempotency_key = models.CharField(max_length=160, unique=True)
    created_at = models.DateTimeField()

    def __str__(self) -> str:
        return self.idempotency_key


class NumberSequence(models.Model):
    """The next number of a kind of document; taken under its row lock, so there are no gaps."""

    name = models.CharField(max_length=40, primary_key=True)
    next_value = models.PositiveBigIntegerField(default=1)

    def __str__(self) -> str:
        return f"{self.name}: {self.next_value}"


class InvoiceKind(models.TextChoices):
    CYCLE = "cycle", "Billing period"
    PRORATION = "proration", "Plan change"
    CREDITS = "credits", "Credits"
    FINAL = "final", "Final"


class InvoiceStatus(models.TextChoices):
    OPEN = "open", "Open"
    PAID = "paid", "Paid"
    VOID = "void", "Void"
    UNCOLLECTIBLE = "uncollectible", "Uncollectible"


class Invoice(models.Model):
    """An issued invoice. Written whole in one transaction; its content never changes, only its
    status.
    """

    account = models.ForeignKey(BillingAccount, on_delete=models.PROTECT, related_name="invoices")
    public_id = models.CharField(max_length=40, unique=True)
    kind = models.CharField(max_length=10, choices=InvoiceKind)
    key = models.CharField(max_length=160, unique=True)  # what it bills; the same thing never twice
    number = models.CharField(max_length=40, unique=True)
    currency = models.CharField(max_length=3)
    period_start = models.DateTimeField()
    period_end = models.DateTimeField()
    subtotal_minor = models.BigIntegerField()
    credits_minor = models.BigIntegerField()
    tax_minor = models.BigIntegerField()
    total_minor = models.BigIntegerField()
    snapshot = models.JSONField()  # seller, buyer, tax and plan as they were
    issued_at = models.DateTimeField()
    due_at = models.DateTimeField()
    status = models.CharField(max_length=15, choices=InvoiceStatus, default=InvoiceStatus.OPEN)
    paid_at = models.DateTimeField(null=True, blank=True)
    closed_reason = models.CharField(max_length=200, blank=True)
    stripe_invoice_id = models.CharField(max_length=255, unique=True, null=True, blank=True)
    hosted_url = models.URLField(max_length=500, blank=True)

    class Meta:
        constraints = [
            models.CheckConstraint(
                name="invoice_total_adds_up",
                condition=Q(total_minor=F("subtotal_minor") - F("credits_minor") + F("tax_minor")),
            ),
            models.CheckConstraint(
                name="invoice_sums_not_negative",
                condition=Q(
                    subtotal_minor__gte=0,
                    credits_minor__gte=0,
                    tax_minor__gte=0,
                    total_minor__gte=0,
                ),
            ),
        ]
        indexes = [
            models.Index(fields=["account", "-issued_at"], name="invoices_of_account"),
            models.Index(fields=["status", "due_at"], name="invoices_by_due"),
        ]

    def __str__(self) -> str:
        return self.number


class LineKind(models.TextChoices):
    USAGE = "usage", "Usage"
    ADJUSTMENT = "adjustment", "Correction of earlier usage"
    INCLUDED = "included", "Included in the plan"
    FEE = "fee", "Plan"
    ADDON = "addon", "Add-on"
    CREDITS = "credits", "Credits bought"
    CARRIED = "carried", "Carried over to your credits"


class InvoiceLine(models.Model):
    """One line of an invoice. `exact_amount` is unrounded; `amount_minor` is it, rounded once."""

    invoice = models.ForeignKey(Invoice, on_delete=models.PROTECT, related_name="lines")
    position = models.PositiveSmallIntegerField()
    kind = models.CharField(max_length=12, choices=LineKind)
    description = models.CharField(max_length=200)
    resource = models.CharField(max_length=20, blank=True)
    price = models.ForeignKey(
        "billing.Price", on_delete=models.PROTECT, null=True, related_name="+"
    )
    quantity = ExactDecimalField(max_digits=38, decimal_places=0, null=True)
    unit_price = ExactDecimalField(max_digits=20, decimal_places=12, null=True)
    exact_amount = ExactDecimalField(max_digits=45, decimal_places=25)
    amount_minor = models.BigIntegerField()
    period_start = models.DateTimeField()
    period_end = models.DateTimeField()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["invoice", "position"], name="one_line_per_position")
        ]
        ordering = ["position"]

    def __str__(self) -> str:
        return f"{self.invoice_id}/{self.position} {self.description}"


class LedgerKind(models.TextChoices):
    INVOICE = "invoice", "Invoice"
    PAYMENT = "payment", "Payment"
    REFUND = "refund", "Refund"
    CREDIT_NOTE = "credit_note", "Credit note"
    VOID = "void", "Invoice voided"
    WRITE_OFF = "write_off", "Written off"


class LedgerEntry(models.Model):
    """What an account owes (+) and pays (-); append-only. The balance is the sum."""

    account = models.ForeignKey(BillingAccount, on_delete=models.PROTECT, related_name="ledger")
    invoice = models.ForeignKey(Invoice, on_delete=models.PROTECT, null=True, related_name="ledger")
    kind = models.CharField(max_length=12, choices=LedgerKind)
    amount_minor = models.BigIntegerField()
    note = models.CharField(max_length=200, blank=True)
    actor = models.CharField(max_length=120, blank=True)
    idempotency_key = models.CharField(max_length=160, unique=True)
    created_at = models.DateTimeField()

    def __str__(self) -> str:
        return self.idempotency_key


class CreditNote(models.Model):
    """An issued document that takes back part of an invoice; gapless numbers of its own."""

    invoice = models.ForeignKey(Invoice, on_delete=models.PROTECT, related_name="credit_notes")
    number = models.CharField(max_length=40, unique=True)
    amount_minor = models.BigIntegerField()
    reason = models.CharField(max_length=200)
    key = models.CharField(max_length=160, unique=True)
    stripe_id = models.CharField(max_length=255, blank=True)
    issued_at = models.DateTimeField()

    def __str__(self) -> str:
        return self.number


class PaymentAttempt(models.Model):
    """One try to collect an invoice, as the rail told us."""

    invoice = models.ForeignKey(Invoice, on_delete=models.PROTECT, related_name="attempts")
    rail_id = models.CharField(max_length=255, unique=True)
    is_success = models.BooleanField()
    error = models.CharField(max_length=300, blank=True)
    at = models.DateTimeField()

    def __str__(self) -> str:
        return self.rail_id
