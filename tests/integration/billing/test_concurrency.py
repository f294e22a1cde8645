"""Many at once, on the database that really runs transactions side by side."""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest
from django.db import connection, transaction

from billing.models import (
    BillingAccount,
    CreditGrant,
    Invoice,
    LedgerEntry,
    UsageInterval,
)
from billing.models.documents import GrantKind
from billing.services.accounts import account_of, seed_plans
from billing.services.credits import grant_credit
from billing.services.invoices import close_period
from billing.services.payments import buy_credits, mark_paid
from billing.services.plans import buy_addon, change_plan
from billing.services.spend import may_start
from billing.services.usage import open_usage, running_count
from config.errors import AppError

from .conftest import START, make_team

pytestmark = [pytest.mark.postgres, pytest.mark.django_db(transaction=True)]
LATER = START + timedelta(days=40)


@pytest.fixture(autouse=True)
def side_by_side(transactional_db):
    if connection.vendor != "postgresql":
        pytest.skip("SQLite runs one writer at a time")
    seed_plans()


def at_once(*acts):
    """Run all at the same moment; returns what was raised."""
    barrier, errors = threading.Barrier(len(acts)), []

    def run(act):
        try:
            barrier.wait(timeout=20)
            act()
        except Exception as error:
            errors.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=run, args=(act,)) for act in acts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    return errors


def test_an_account_is_opened_once():
    team = make_team()
    BillingAccount.objects.get(pk=team.pk)
    fresh = make_team("fresh")
    assert at_once(*[lambda: account_of(team_id=fresh.pk, now=START)] * 6) == []
    assert BillingAccount.objects.filter(pk=fresh.pk).count() == 1


def test_a_period_is_billed_once(settings):
    team = make_team(plan="pro", settings=settings)
    assert at_once(*[lambda: close_period(team_id=team.pk, now=LATER)] * 6) == []
    assert Invoice.objects.count() == 1


def test_numbers_have_no_gaps_when_many_invoices_are_written(settings):
    teams = [make_team(f"t{n}", plan="pro", settings=settings) for n in range(8)]
    acts = [lambda t=team: close_period(team_id=t.pk, now=LATER) for team in teams]
    assert at_once(*acts) == []
    numbers = sorted(Invoice.objects.values_list("number", flat=True))
    assert numbers == [f"INV-{n:06d}" for n in range(1, 9)]


def test_two_owners_changing_plan_at_once_pay_once(settings):
    team = make_team(plan="hobby", settings=settings)
    assert at_once(*[lambda: change_plan(team_id=team.pk, code="pro", now=START)] * 4) == []
    assert Invoice.objects.count() == 1


def test_double_clicks_buy_and_pay_once(settings):
    team = make_team(plan="pro", settings=settings)
    buy = lambda: buy_credits(team_id=team.pk, amount_minor=900, key="click-0001", now=START)  # noqa: E731
    addon = lambda: buy_addon(team_id=team.pk, quantity=1, key="click-0002", now=START)  # noqa: E731
    assert at_once(*[buy] * 4, *[addon] * 4) == []
    assert Invoice.objects.count() == 2
    invoice = Invoice.objects.get(kind="credits")
    assert at_once(*[lambda: mark_paid(invoice=invoice, actor="op", now=START)] * 6) == []
    assert LedgerEntry.objects.filter(kind="payment").count() == 1
    assert CreditGrant.objects.filter(kind="paid").count() == 1


def test_the_same_gift_at_once_is_given_once():
    team = make_team()
    account = BillingAccount.objects.get(pk=team.pk)

    def give():
        grant_credit(
            account=account, amount_minor=5, kind=GrantKind.PROMO, source_key="g", now=START
        )

    assert at_once(*[give] * 6) == []
    assert CreditGrant.objects.count() == 1


def test_the_same_report_at_once_opens_one_interval():
    team = make_team()

    def report():
        open_usage(
            team_id=team.pk,
            sandbox_id="isame",
            execution_id="isame",
            seq=1,
            milli_vcpu=1,
            memory_mib=1,
            now=START,
        )

    assert at_once(*[report] * 6) == []
    assert UsageInterval.objects.count() == 1


def test_the_last_place_is_taken_once(settings):
    team = make_team(plan="hobby", settings=settings)
    for number in range(18):
        open_usage(team_id=team.pk, sandbox_id=f"i{number}", milli_vcpu=1, memory_mib=1, now=START)

    def take(number):
        with transaction.atomic():
            may_start(team.pk, milli_vcpu=1, memory_mib=1, now=START)
            open_usage(
                team_id=team.pk, sandbox_id=f"n{number}", milli_vcpu=1, memory_mib=1, now=START
            )

    errors = at_once(*[lambda n=n: take(n) for n in range(8)])
    assert len(errors) == 6
    assert all(isinstance(error, AppError) for error in errors)
    assert running_count(team.pk) == 20
