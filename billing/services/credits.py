"""Credit grants: given, burned by invoices, expired, withdrawn. The settled balance never goes
below zero.
"""

from __future__ import annotations

from datetime import datetime

from django.db import transaction
from django.db.models import F, Q, QuerySet, Sum

from billing.models import BillingAccount, CreditEntry, CreditGrant, Invoice
from billing.models.documents import CreditKind, GrantKind
from config.errors import InvalidArgument

MAX_GRANT_MINOR = 100_000_000_00


def grant_credit(
    *,
    account: BillingAccount,
    amount_minor: int,
    kind: GrantKind,
    source_key: str,
    now: datetime,
    note: str = "",
    expires_at: datetime | None = None,
    priority: int = 100,
    covers_fees: bool = False,
) -> CreditGrant:
    """Give credit once per `source_key`; a repeat returns the first grant.

    Raises: InvalidArgument for a sum that is not positive or absurdly large, or an expiry in the
    past.
    """
    if not 0 < amount_minor <= MAX_GRANT_MINOR:
        raise InvalidArgument(f"credit must be between 1 and {MAX_GRANT_MINOR} minor units")
    if expires_at is not None and expires_at <= now:
        raise InvalidArgument("credit cannot expire in the past")
    with transaction.atomic():
        grant, is_new = CreditGrant.objects.get_or_create(
            source_key=source_key,
            defaults={
                "account": account,
                "kind": kind,
                "amount_minor": amount_minor,
                "remaining_minor": amount_minor,
                "priority": priority,
                "covers_fees": covers_fees,
                "effective_at": now,
                "expires_at": expires_at,
                "note": note,
            },
        )
        if is_new:
            _entry(grant, CreditKind.GRANT, amount_minor, f"{source_key}:grant", now)
    return grant


def usable_grants(account: BillingAccount, *, now: datetime) -> QuerySet[CreditGrant]:
    """In burn order: priority, then what expires first, then the oldest."""
    alive = Q(expires_at__isnull=True) | Q(expires_at__gt=now)
    return account.grants.filter(alive, effective_at__lte=now, remaining_minor__gt=0).order_by(
        "priority", F("expires_at").asc(nulls_last=True), "created_at", "pk"
    )


def settled_balance(account: BillingAccount, *, now: datetime) -> int:
    """Credit that invoices may still burn, in minor units."""
    total = usable_grants(account, now=now).aggregate(total=Sum("remaining_minor"))["total"]
    return int(total or 0)


def burn_credits(
    *, account: BillingAccount, usage_minor: int, fees_minor: int, now: datetime
) -> list[tuple[CreditGrant, int]]:
    """Decide which grants pay how much of an invoice, and take it from them. The account must be
    locked.
    """
    burns: list[tuple[CreditGrant, int]] = []
    for grant in usable_grants(account, now=now):
        of_usage = min(grant.remaining_minor, usage_minor)
        of_fees = min(grant.remaining_minor - of_usage, fees_minor) if grant.covers_fees else 0
        if taken := of_usage + of_fees:
            usage_minor, fees_minor = usage_minor - of_usage, fees_minor - of_fees
            burns.append((grant, taken))
    return burns


def record_burns(burns: list[tuple[CreditGrant, int]], *, invoice: Invoice, now: datetime) -> None:
    for grant, taken in burns:
        _move(grant, -taken)
        key = f"invoice:{invoice.pk}:burn:{grant.pk}"
        _entry(grant, CreditKind.BURN, -taken, key, now, invoice)


def give_back_burns(*, invoice: Invoice, now: datetime) -> None:
    """Return what a voided invoice burned. A grant that expired meanwhile gets it back and expires
    it again.
    """
    for entry in invoice.credit_entries.filter(kind=CreditKind.BURN).select_related("grant"):
        key = f"{entry.idempotency_key}:reversal"
        if not CreditEntry.objects.filter(idempotency_key=key).exists():
            _move(entry.grant, -entry.amount_minor)
            _entry(entry.grant, CreditKind.REVERSAL, -entry.amount_minor, key, now, invoice)


def expire_credits(*, now: datetime) -> int:
    """Write off what is left of expired grants; returns how many."""
    expired = CreditGrant.objects.filter(expires_at__lte=now, remaining_minor__gt=0)
    return sum(
        _end_grant(pk, CreditKind.EXPIRE, now) for pk in expired.values_list("pk", flat=True)
    )


def void_grant(*, grant: CreditGrant, now: datetime) -> int:
    """Withdraw what is left of a grant; returns 1, or 0 when nothing was left."""
    return _end_grant(grant.pk, CreditKind.VOID, now)


def _end_grant(grant_id: int, kind: CreditKind, now: datetime) -> int:
    with transaction.atomic():
        grant = CreditGrant.objects.select_for_update().get(pk=grant_id)
        left = grant.remaining_minor
        if not left:
            return 0
        entries = grant.entries.count()  # a grant can end again after a reversal
        _move(grant, -left)
        _entry(grant, kind, -left, f"{grant.source_key}:{kind}:{entries}", now)
        return 1


def _move(grant: CreditGrant, amount_minor: int) -> None:
    """The database refuses to take more than is left."""
    CreditGrant.objects.filter(pk=grant.pk).update(
        remaining_minor=F("remaining_minor") + amount_minor
    )


def _entry(
    grant: CreditGrant,
    kind: CreditKind,
    amount_minor: int,
    key: str,
    now: datetime,
    invoice: Invoice | None = None,
) -> None:
    CreditEntry.objects.create(
        grant=grant,
        kind=kind,
        amount_minor=amount_minor,
        invoice=invoice,
        idempotency_key=key,
        created_at=now,
    )
