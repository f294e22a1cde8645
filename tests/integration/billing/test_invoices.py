from __future__ import annotations

from datetime import timedelta
from decimal import Decimal

import pytest
from django.db import IntegrityError, transaction

from billing.invariants import broken_laws
from billing.models import (
    BillingAccount,
    CreditEntry,
    CreditGrant,
    Invoice,
    InvoiceLine,
    LedgerEntry,
    Plan,
    Subscription,
    UsageHour,
)
from billing.models.documents import GrantKind
from billing.pricing import Resource
from billing.services.accounts import limits_for
from billing.services.credits import (
    expire_credits,
    grant_credit,
    settled_balance,
    void_grant,
)
from billing.services.invoices import amount_due, close_due_periods, close_period
from billing.services.payments import (
    buy_credits,
    credit_invoice,
    extend_due,
    mark_paid,
    record_payment,
    record_refund,
    void_invoice,
    write_off,
)
from billing.services.plans import (
    buy_addon,
    change_plan,
    change_price,
    end_addon,
    final_invoice,
    new_plan_version,
)
from billing.services.usage import close_usage
from config.errors import Conflict, InvalidArgument, NotFound

from .conftest import START, make_team, run, start

DAY = timedelta(days=1)
NEXT = START + 32 * DAY  # the period from 10 March has ended


def account(team):
    return BillingAccount.objects.get(pk=team.pk)


def bill(team, now=NEXT):
    close_period(team_id=team.pk, now=now)
    return Invoice.objects.filter(account_id=team.pk).latest("pk")


def test_a_period_becomes_one_invoice_that_adds_up(pro_team):
    run(pro_team, hours=10)
    invoice = bill(pro_team)
    lines = {line.description: line.amount_minor for line in invoice.lines.all()}
    assert lines == {
        "Memory, per GiB-second": 8,
        "vCPU, per vCPU-second": 101,
        "Pro plan": 15000,
    }
    assert invoice.subtotal_minor == invoice.total_minor == 15109
    assert amount_due(invoice) == 15109
    assert not UsageHour.objects.filter(invoice_line=None).exists()


def test_closing_twice_bills_once(pro_team):
    run(pro_team)
    assert close_due_periods(now=NEXT) == 1
    assert close_due_periods(now=NEXT) == 0
    assert Invoice.objects.count() == 1


def test_a_period_is_not_closed_before_its_grace(pro_team):
    end = Subscription.objects.get(account_id=pro_team.pk).period_end
    assert close_due_periods(now=end + timedelta(minutes=14)) == 0
    assert close_due_periods(now=end + timedelta(minutes=15)) == 1


def test_self_hosted_usage_is_shown_and_included(team):
    run(team, hours=10)
    invoice = bill(team)
    assert invoice.total_minor == 0
    assert invoice.status == "paid"
    assert {line.kind for line in invoice.lines.all()} == {"usage", "included"}
    assert not LedgerEntry.objects.exists()


def test_the_trial_credit_pays_usage_but_no_fees(hobby_team):
    run(hobby_team, hours=10)
    change_plan(team_id=hobby_team.pk, code="pro", now=START + 2 * DAY)
    invoice = bill(hobby_team)
    assert invoice.credits_minor == 109
    assert invoice.total_minor == 15000
    assert settled_balance(account(hobby_team), now=NEXT) == 9_891


def test_tax_is_computed_on_what_is_left_after_credits(hobby_team):
    BillingAccount.objects.update(tax_percent=Decimal("19"), tax_label="VAT")
    change_plan(team_id=hobby_team.pk, code="pro", now=START)
    invoice = Invoice.objects.get()
    assert invoice.tax_minor == round(invoice.subtotal_minor * 0.19)
    assert invoice.snapshot["tax"] == {"label": "VAT", "percent": "19"}


def test_numbers_have_no_gaps_when_an_invoice_fails(pro_team, settings):
    other = make_team("olga", plan="pro", settings=settings)
    bill(pro_team)
    with transaction.atomic():
        close_period(team_id=other.pk, now=NEXT)
        transaction.set_rollback(True)
    bill(other)
    numbers = list(Invoice.objects.order_by("pk").values_list("number", flat=True))
    assert numbers == ["INV-000001", "INV-000002"]


def test_an_issued_invoice_never_changes(pro_team):
    invoice = bill(pro_team)
    for change in ({"total_minor": 1}, {"number": "INV-9"}, {"snapshot": {}}):
        with pytest.raises(IntegrityError), transaction.atomic():
            Invoice.objects.update(**change)
    with pytest.raises(IntegrityError, match="not edited"), transaction.atomic():
        InvoiceLine.objects.update(amount_minor=0)
    with pytest.raises(IntegrityError, match="not edited"), transaction.atomic():
        LedgerEntry.objects.update(amount_minor=0)
    BillingAccount.objects.update(company="New Name")
    assert Invoice.objects.get(pk=invoice.pk).snapshot["buyer"]["name"] == pro_team.name


def test_hours_on_an_invoice_are_frozen(pro_team):
    run(pro_team)
    bill(pro_team)
    with pytest.raises(IntegrityError, match="not edited"), transaction.atomic():
        UsageHour.objects.update(quantity=1)


# --- Plans ------------------------------------------------------------------------------------


def test_an_upgrade_is_prorated_and_counts_at_once(hobby_team):
    assert limits_for(hobby_team.pk, now=START).max_concurrent == 20
    halfway = START + timedelta(days=15)
    for _ in range(2):
        change_plan(team_id=hobby_team.pk, code="pro", now=halfway)
    invoice = Invoice.objects.get()
    assert invoice.kind == "proration"
    assert 7_500 <= invoice.total_minor <= 8_000
    assert limits_for(hobby_team.pk, now=START).max_concurrent == 100


def test_a_downgrade_waits_for_the_end_of_the_period_and_can_be_withdrawn(pro_team):
    change_plan(team_id=pro_team.pk, code="hobby", now=START + DAY)
    assert limits_for(pro_team.pk, now=START).plan_code == "pro"
    change_plan(team_id=pro_team.pk, code="pro", now=START + DAY)
    assert Subscription.objects.get().pending_plan is None
    change_plan(team_id=pro_team.pk, code="hobby", now=START + DAY)
    close_period(team_id=pro_team.pk, now=NEXT)
    assert limits_for(pro_team.pk, now=START).plan_code == "hobby"
    assert not Invoice.objects.exists()  # no usage, and no fee for the plan that was left


def test_plans_that_are_not_public_are_the_operators(hobby_team):
    with pytest.raises(InvalidArgument):
        change_plan(team_id=hobby_team.pk, code="enterprise", now=START)
    with pytest.raises(NotFound):
        change_plan(team_id=hobby_team.pk, code="nonsense", now=START)
    change_plan(team_id=hobby_team.pk, code="enterprise", now=START, is_operator=True)
    assert limits_for(hobby_team.pk, now=START).max_concurrent == 1_100


def test_an_add_on_is_bought_once_per_key_and_billed_until_it_ends(pro_team):
    for _ in range(2):
        addon = buy_addon(team_id=pro_team.pk, quantity=1, key="click-0001", now=START)
    assert limits_for(pro_team.pk, now=START).max_concurrent == 600
    assert Invoice.objects.count() == 1
    assert bill(pro_team).total_minor == 25_000
    end_addon(team_id=pro_team.pk, addon_id=addon.pk, now=NEXT)
    assert limits_for(pro_team.pk, now=START).max_concurrent == 100


@pytest.mark.parametrize("quantity", [0, -1, 10**9])
def test_absurd_add_ons_are_refused(pro_team, quantity):
    with pytest.raises(InvalidArgument):
        buy_addon(team_id=pro_team.pk, quantity=quantity, key="click-0001", now=START)


def test_a_new_plan_version_moves_its_teams_and_keeps_history(pro_team):
    old = Plan.objects.get(code="pro")
    newer = new_plan_version(plan=old, changes={"max_concurrent": 150}, now=START)
    assert limits_for(pro_team.pk, now=START).max_concurrent == 150
    assert newer.version == 2
    with pytest.raises(Conflict):
        new_plan_version(plan=old, changes={"max_concurrent": 1}, now=START)


def test_prices_change_only_ahead_and_within_reason():
    for price, at in (("-1", START), ("0.0000000000001", START), ("1", START - DAY)):
        with pytest.raises(InvalidArgument):
            change_price(resource=Resource.VCPU, unit_price=Decimal(price), from_at=at, now=START)


def test_a_final_invoice_needs_all_sandboxes_ended(pro_team):
    start(pro_team)
    with pytest.raises(Conflict):
        final_invoice(team_id=pro_team.pk, now=START + DAY)
    close_usage(sandbox_id="isandbox", reason="killed", now=START + timedelta(hours=1))
    invoice = final_invoice(team_id=pro_team.pk, now=START + DAY)
    assert invoice.total_minor == 11
    bill(pro_team)
    assert sum(Invoice.objects.values_list("total_minor", flat=True)) == 15011


# --- Credits ----------------------------------------------------------------------------------


def grant(team, amount, key, **extra):
    return grant_credit(
        account=account(team),
        amount_minor=amount,
        kind=GrantKind.PROMO,
        source_key=key,
        now=START,
        **extra,
    )


def test_the_same_gift_is_given_once(team):
    first = grant(team, 500, "promo-1")
    assert grant(team, 900, "promo-1") == first
    assert settled_balance(account(team), now=START) == 500


def test_credit_burns_by_priority_then_expiry_then_age(pro_team):
    grant(pro_team, 60, "oldest")
    grant(pro_team, 60, "expires", expires_at=NEXT + DAY)
    grant(pro_team, 60, "first", priority=1)
    run(pro_team, hours=14)  # 1.52 of usage
    bill(pro_team)
    left = dict(CreditGrant.objects.values_list("source_key", "remaining_minor"))
    assert left == {"first": 0, "expires": 0, "oldest": 28}


def test_expired_credit_never_burns(pro_team):
    grant(pro_team, 500, "short", expires_at=START + DAY)
    run(pro_team, hours=10)
    assert bill(pro_team).credits_minor == 0
    assert expire_credits(now=NEXT) == 1
    assert expire_credits(now=NEXT) == 0
    assert sum(CreditEntry.objects.values_list("amount_minor", flat=True)) == 0


def test_a_grant_can_be_withdrawn(team):
    assert void_grant(grant=grant(team, 500, "oops"), now=START) == 1
    assert settled_balance(account(team), now=START) == 0


@pytest.mark.parametrize("amount", [0, -5, 10**12])
def test_absurd_credit_is_refused(team, amount):
    with pytest.raises(InvalidArgument):
        grant(team, amount, "bad")


def test_the_database_refuses_to_overdraw_a_grant(team):
    given = grant(team, 500, "promo")
    with pytest.raises(IntegrityError), transaction.atomic():
        CreditGrant.objects.filter(pk=given.pk).update(remaining_minor=-1)


def test_bought_credit_arrives_with_the_payment_once(team):
    for _ in range(2):
        invoice = buy_credits(team_id=team.pk, amount_minor=2_000, key="click-0001", now=START)
    assert settled_balance(account(team), now=START) == 0
    for _ in range(2):
        mark_paid(invoice=invoice, actor="operator", now=START)
    assert settled_balance(account(team), now=START) == 2_000


# --- Payment ----------------------------------------------------------------------------------


def test_partial_payments_add_up_and_repeats_do_not(pro_team):
    invoice = bill(pro_team)
    for _ in range(2):
        record_payment(invoice=invoice, amount_minor=5_000, key="wire-1", now=NEXT)
    assert amount_due(invoice) == 10_000
    with pytest.raises(InvalidArgument):
        record_payment(invoice=invoice, amount_minor=10_001, key="wire-2", now=NEXT)
    record_payment(invoice=invoice, amount_minor=10_000, key="wire-3", now=NEXT)
    assert Invoice.objects.get().status == "paid"


def test_a_voided_invoice_gives_credits_back_and_takes_no_payment(hobby_team):
    run(hobby_team, hours=10)
    change_plan(team_id=hobby_team.pk, code="pro", now=START)
    invoice = bill(hobby_team)
    for _ in range(2):
        void_invoice(invoice=invoice, reason="mistake", actor="operator", now=NEXT)
    assert settled_balance(account(hobby_team), now=NEXT) == 10_000
    assert amount_due(invoice) == 0
    with pytest.raises(Conflict):
        record_payment(invoice=invoice, amount_minor=1, key="late", now=NEXT)


def test_a_paid_invoice_cannot_be_voided(pro_team):
    invoice = mark_paid(invoice=bill(pro_team), actor="operator", now=NEXT)
    with pytest.raises(Conflict):
        void_invoice(invoice=invoice, reason="", actor="operator", now=NEXT)


def test_a_credit_note_first_lowers_what_is_due_then_becomes_credit(pro_team):
    invoice = bill(pro_team)
    record_payment(invoice=invoice, amount_minor=14_000, key="wire", now=NEXT)
    for _ in range(2):
        note = credit_invoice(
            invoice=invoice, amount_minor=3_000, reason="outage", key="k1", now=NEXT
        )
    assert note.number == "INV-CN-000001"
    assert Invoice.objects.get().status == "paid"
    assert settled_balance(account(pro_team), now=NEXT) == 2_000
    with pytest.raises(InvalidArgument):
        credit_invoice(invoice=invoice, amount_minor=13_000, reason="", key="k2", now=NEXT)


def test_a_refund_is_booked_once_and_never_more_than_was_billed(pro_team):
    invoice = mark_paid(invoice=bill(pro_team), actor="operator", now=NEXT)
    for _ in range(2):
        record_refund(invoice=invoice, amount_minor=99_999, key="re_1", now=NEXT)
    assert invoice.credit_notes.get().amount_minor == 15_000
    assert amount_due(invoice) == 0


def test_a_written_off_invoice_can_still_be_paid(pro_team):
    invoice = write_off(invoice=bill(pro_team), reason="gone", actor="operator", now=NEXT)
    assert amount_due(invoice) == 0
    paid = mark_paid(invoice=invoice, actor="operator", now=NEXT)
    assert paid.status == "paid"
    assert amount_due(invoice) == 0


def test_a_due_date_only_moves_later(pro_team):
    invoice = bill(pro_team)
    later = extend_due(invoice=invoice, due_at=invoice.due_at + DAY, now=NEXT)
    with pytest.raises(InvalidArgument):
        extend_due(invoice=later, due_at=NEXT, now=NEXT)


def test_the_books_are_right_after_all_of_this(pro_team, hobby_team):
    run(pro_team, hours=30)
    run(hobby_team, "ihobby", hours=3)
    bill(hobby_team)
    mark_paid(invoice=bill(pro_team), actor="operator", now=NEXT)
    assert broken_laws(now=NEXT) == []
