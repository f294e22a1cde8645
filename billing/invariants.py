"""Laws of the books. Each check reads the tables and names every row that breaks its law."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta

from django.db.models import Count, F, Max, Q, Sum

from billing.metering import MeterState
from billing.models import (
    BillingAccount,
    CreditGrant,
    CreditNote,
    Invoice,
    InvoiceLine,
    NumberSequence,
    ReconcileRun,
    UsageEvent,
    UsageHour,
    UsageInterval,
)
from billing.models.documents import InvoiceStatus
from billing.money import to_minor
from billing.periods import hour_of, to_ms
from billing.pricing import Resource, amount
from billing.services.rollup import Key, intervals_in, rate, rate_table

HELD_TOO_LONG = timedelta(minutes=10)
SILENT_TOO_LONG = timedelta(minutes=10)
LOOK_BACK = timedelta(days=45)


def intervals_do_not_overlap(_now: datetime) -> Iterator[str]:
    last_end: dict[str, int] = {}
    open_ids: set[str] = set()
    rows = UsageInterval.objects.order_by("sandbox_id", "started_ms", "pk")
    for sandbox_id, started, ended in rows.values_list(
        "sandbox_id", "started_ms", "ended_ms"
    ).iterator():
        if sandbox_id in open_ids or started < last_end.get(sandbox_id, started):
            yield f"intervals of {sandbox_id} overlap at {started}"
        if ended is None:
            open_ids.add(sandbox_id)
        else:
            last_end[sandbox_id] = ended


def paused_time_holds_disk_only(_now: datetime) -> Iterator[str]:
    bad = UsageInterval.objects.filter(state=MeterState.PAUSED).exclude(milli_vcpu=0, memory_mib=0)
    for row in bad:
        yield f"paused interval {row.pk} charges vCPU or memory"


def hours_equal_intervals(now: datetime) -> Iterator[str]:
    """What was rolled up, plus corrections, is what the intervals say. Of the last weeks only."""
    since = hour_of(to_ms(now - LOOK_BACK))
    columns = ("sandbox_id", "hour_ms", "resource", "price_id", "quantity")
    for account in BillingAccount.objects.filter(rolled_until_ms__gt=since):
        until = account.rolled_until_ms
        wanted = rate(intervals_in(account.pk, since, until), rate_table(account), since, until)
        stored: dict[Key, int] = defaultdict(int)
        recent = Q(hour_ms__gte=since)
        automatic = account.adjustments.filter(recent, actor="")
        for rows in (account.hours.filter(recent), automatic):
            for sandbox_id, hour_ms, resource, price_id, quantity in rows.values_list(*columns):
                stored[sandbox_id, hour_ms, resource, price_id] += quantity
        for hour in set(wanted) | set(stored):
            if wanted.get(hour, 0) != stored.get(hour, 0):
                yield f"hour {hour} has {stored.get(hour, 0)}, its intervals {wanted.get(hour, 0)}"


def lines_charge_their_hours(_now: datetime) -> Iterator[str]:
    """Every usage line charges exactly the hours frozen by it, at its price, rounded once."""
    for line in InvoiceLine.objects.filter(quantity__isnull=False).select_related("invoice"):
        frozen = line.hours.aggregate(total=Sum("quantity"))["total"] or 0
        frozen += line.adjustments.aggregate(total=Sum("quantity"))["total"] or 0
        if int(frozen) != line.quantity:
            yield f"line {line.pk} charges {line.quantity}, its hours hold {frozen}"
        assert line.unit_price is not None
        exact = amount(Resource(line.resource), int(frozen), line.unit_price)
        if exact != line.exact_amount:
            yield f"line {line.pk} says {line.exact_amount}, exact is {exact}"


def invoices_add_up(_now: datetime) -> Iterator[str]:
    for invoice in Invoice.objects.prefetch_related("lines"):
        lines = list(invoice.lines.all())
        if sum(line.amount_minor for line in lines) != invoice.subtotal_minor:
            yield f"lines of {invoice.number} do not add up"
        for line in lines:
            if to_minor(line.exact_amount, invoice.currency) != line.amount_minor:
                yield f"line {line.pk} is not its exact amount, rounded"
        if invoice.total_minor < 0:
            yield f"{invoice.number} is below zero"


def credits_add_up(_now: datetime) -> Iterator[str]:
    sums = CreditGrant.objects.annotate(total=Sum("entries__amount_minor"))
    columns = ("source_key", "remaining_minor", "total")
    for key, left, total in sums.exclude(total=F("remaining_minor")).values_list(*columns):
        yield f"grant {key} has {left}, its entries {total}"
    for key in CreditGrant.objects.filter(remaining_minor__lt=0).values_list("source_key"):
        yield f"grant {key} is overdrawn"
    burned = Invoice.objects.annotate(
        burned=Sum("credit_entries__amount_minor", filter=Q(credit_entries__kind="burn"))
    )
    for invoice in burned:
        if -(invoice.burned or 0) != invoice.credits_minor:
            yield f"{invoice.number} shows another sum of credit than it burned"
    late = CreditGrant.objects.filter(
        entries__kind="burn", expires_at__lte=F("entries__created_at")
    )
    for key in late.distinct().values_list("source_key", flat=True):
        yield f"grant {key} burned after it expired"


def ledger_agrees_with_status(_now: datetime) -> Iterator[str]:
    for invoice in Invoice.objects.annotate(due=Sum("ledger__amount_minor")):
        due = invoice.due or 0
        is_settled = invoice.status != InvoiceStatus.OPEN
        if is_settled and due != 0:
            yield f"{invoice.number} is {invoice.status} and {due} is due"
        if not is_settled and due <= 0:
            yield f"{invoice.number} is open and {due} is due"


def numbers_have_no_gaps(_now: datetime) -> Iterator[str]:
    for name, model in (("invoice", Invoice), ("credit-note", CreditNote)):
        sequence = NumberSequence.objects.filter(name=name).first()
        issued = model.objects.aggregate(n=Count("pk"), unique=Count("number", distinct=True))
        expected = 0 if sequence is None else sequence.next_value - 1
        if issued["n"] != expected or issued["unique"] != expected:
            yield f"{issued['n']} {name} numbers are issued, the sequence says {expected}"


def no_usage_is_lost(now: datetime) -> Iterator[str]:
    """Events that waited too long for an earlier one, and meters nobody has vouched for."""
    held = UsageEvent.objects.filter(is_applied=False, received_ms__lt=to_ms(now - HELD_TOO_LONG))
    for event in held:
        yield f"usage event {event} waits for an earlier one"
    silent = UsageInterval.objects.filter(
        ended_ms__isnull=True,
        state=MeterState.RUNNING,
        confirmed_until_ms__lt=to_ms(now - SILENT_TOO_LONG),
    )
    for row in silent:
        yield f"the meter of {row.sandbox_id} runs, and no node vouches for it"


def billed_hours_are_final(_now: datetime) -> Iterator[str]:
    """An invoice never holds an hour past what was rolled up."""
    tops = UsageHour.objects.filter(invoice_line__isnull=False).values_list("account_id")
    for account_id, top in tops.annotate(top=Max("hour_ms")):
        account = BillingAccount.objects.get(pk=account_id)
        if top >= account.rolled_until_ms:
            yield f"account {account_id} was billed for an hour that is not over"


CHECKS: tuple[Callable[[datetime], Iterator[str]], ...] = (
    intervals_do_not_overlap,
    paused_time_holds_disk_only,
    hours_equal_intervals,
    lines_charge_their_hours,
    invoices_add_up,
    credits_add_up,
    ledger_agrees_with_status,
    numbers_have_no_gaps,
    no_usage_is_lost,
    billed_hours_are_final,
)


def broken_laws(*, now: datetime) -> list[str]:
    """All violations; empty when the books are right."""
    return [f"{check.__name__}: {problem}" for check in CHECKS for problem in check(now)]


def check_books(*, now: datetime) -> ReconcileRun:
    """Run every check and keep the result for the operator."""
    problems = broken_laws(now=now)
    return ReconcileRun.objects.create(
        kind="books",
        started_at=now,
        checked=len(CHECKS),
        mismatches=len(problems),
        details=problems[:200],
    )
