from __future__ import annotations

from datetime import timedelta
from decimal import Decimal

from django.db.models import Sum

from billing.models import BillingAccount, Invoice, UsageAdjustment, UsageHour
from billing.periods import hour_of, to_ms
from billing.pricing import Resource
from billing.services.invoices import close_period, unbilled_total
from billing.services.plans import change_price
from billing.services.rollup import roll_account, roll_due
from billing.services.usage import close_usage, confirm_usage, find_usage, lose_usage

from .conftest import START, run, start

HOUR = timedelta(hours=1)
TWO_CPU_HOUR = Decimal("0.1089")  # 2 vCPU and 512 MiB for one hour


def quantity(team, resource="vcpu"):
    total = UsageHour.objects.filter(account_id=team.pk, resource=resource)
    return int(total.aggregate(total=Sum("quantity"))["total"] or 0)


def test_hours_hold_exactly_what_the_intervals_hold(team):
    run(team, hours=2.75)
    roll_due(now=START + 4 * HOUR)
    assert quantity(team) == 2.75 * 3_600_000 * 2_000
    assert quantity(team, "memory") == 2.75 * 3_600_000 * 512
    assert unbilled_total(BillingAccount.objects.get(pk=team.pk)) == TWO_CPU_HOUR * Decimal("2.75")
    hours = sorted(set(UsageHour.objects.values_list("hour_ms", flat=True)))
    assert hours == [hour_of(to_ms(START)) + n * 3_600_000 for n in range(4)]


def test_rolling_again_changes_nothing(team):
    run(team, hours=2)
    roll_due(now=START + 4 * HOUR)
    before = list(UsageHour.objects.values())
    roll_due(now=START + 4 * HOUR)
    roll_account(team_id=team.pk, now=START + 9 * HOUR)
    assert list(UsageHour.objects.values()) == before


def test_an_hour_waits_for_proof_of_life(team):
    start(team)
    confirm_usage(sandbox_ids=["isandbox"], now=START + HOUR)
    roll_due(now=START + 5 * HOUR)
    assert quantity(team) == 0.5 * 3_600_000 * 2_000  # 09:30 to 10:00
    close_usage(sandbox_id="isandbox", reason="killed", now=START + 5 * HOUR)
    roll_due(now=START + 6 * HOUR)
    assert quantity(team) == 5 * 3_600_000 * 2_000


def test_a_late_fact_changes_an_hour_that_no_invoice_holds(team):
    start(team)
    confirm_usage(sandbox_ids=["isandbox"], now=START + HOUR)
    lose_usage(sandbox_ids=["isandbox"], now=START + 2 * HOUR)
    roll_due(now=START + 4 * HOUR)
    assert quantity(team) == 3_600_000 * 2_000
    find_usage(sandbox_id="isandbox", is_proven=True, now=START + 4 * HOUR)
    close_usage(sandbox_id="isandbox", reason="killed", now=START + 4 * HOUR)
    roll_due(now=START + 6 * HOUR)
    assert quantity(team) == 4 * 3_600_000 * 2_000
    assert not UsageAdjustment.objects.exists()


def test_a_late_fact_of_an_invoiced_hour_becomes_an_adjustment(pro_team):
    start(pro_team)
    confirm_usage(sandbox_ids=["isandbox"], now=START + HOUR)
    lose_usage(sandbox_ids=["isandbox"], now=START + 2 * HOUR)
    close_period(team_id=pro_team.pk, now=START + timedelta(days=40))
    first = Invoice.objects.get()
    late = START + timedelta(days=40)
    find_usage(sandbox_id="isandbox", is_proven=True, now=late)
    close_usage(sandbox_id="isandbox", reason="exited", at=START + 3 * HOUR, now=late)
    roll_due(now=late + HOUR)
    roll_due(now=late + 2 * HOUR)
    # 10:30 to 11:00 belongs to an hour on the invoice, 11:00 to 12:30 to hours nobody billed yet.
    adjusted = UsageAdjustment.objects.filter(resource="vcpu")
    assert adjusted.aggregate(total=Sum("quantity"))["total"] == 0.5 * 3_600_000 * 2_000
    assert quantity(pro_team) == 2.5 * 3_600_000 * 2_000
    close_period(team_id=pro_team.pk, now=START + timedelta(days=80))
    kinds = {
        (line.kind, line.resource): line.exact_amount
        for invoice in Invoice.objects.exclude(pk=first.pk)
        for line in invoice.lines.all()
    }
    assert kinds["adjustment", "vcpu"] == Decimal("0.0504")
    assert kinds["usage", "vcpu"] == Decimal("0.0504") * 3
    assert Invoice.objects.get(pk=first.pk).subtotal_minor == first.subtotal_minor


def test_a_price_change_inside_an_hour_splits_it(team):
    change_price(
        resource=Resource.VCPU,
        unit_price=Decimal("0.000028"),
        from_at=START + timedelta(minutes=15),
        now=START,
    )
    run(team, hours=0.5)
    roll_due(now=START + 4 * HOUR)
    rows = UsageHour.objects.filter(resource="vcpu").order_by("price_id")
    assert [row.quantity for row in rows] == [15 * 60_000 * 2_000] * 2
    assert rows[0].price.unit_price * 2 == rows[1].price.unit_price
