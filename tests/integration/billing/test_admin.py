from __future__ import annotations

import pytest
from django.urls import reverse

from billing.models import BillingAccount, CreditGrant, Invoice, Plan, Price
from billing.services.accounts import limits_for
from billing.services.payments import buy_credits
from tests import factories

from .conftest import START

MODELS = [
    "plan",
    "price",
    "billingaccount",
    "creditgrant",
    "invoice",
    "usageinterval",
    "subscription",
    "accountblock",
    "ledgerentry",
    "inboundwebhook",
    "outbox",
    "reconcilerun",
    "notice",
]


@pytest.fixture
def operator(client, plans):
    user = factories.make_user("operator", is_staff=True, is_superuser=True)
    client.force_login(user)
    return client


def admin(name, *args):
    return reverse(f"admin:billing_{name}", args=args)


def test_every_list_opens(operator, team):
    for model in MODELS:
        assert operator.get(admin(f"{model}_changelist")).status_code == 200


def test_saving_a_plan_makes_a_version_and_keeps_the_old_one(operator, pro_team):
    plan = Plan.objects.get(code="pro")
    form = operator.get(admin("plan_change", plan.pk)).context["adminform"].form
    data = {name: value for name, value in form.initial.items() if value is not None}
    operator.post(admin("plan_change", plan.pk), {**data, "max_concurrent": 250})
    assert list(Plan.objects.filter(code="pro").values_list("version", "max_concurrent")) == [
        (1, 100),
        (2, 250),
    ]
    assert limits_for(pro_team.pk, now=START).max_concurrent == 250


def test_adding_a_price_ends_the_one_before(operator):
    data = {"resource": "vcpu", "currency": "USD", "unit_price": "0.00002", "plan": ""}
    operator.post(admin("price_add"), data)
    old, new = Price.objects.filter(resource="vcpu").order_by("pk")
    assert old.to_ms == new.from_ms
    assert new.to_ms is None


def test_giving_credit_and_acting_on_invoices_and_accounts(operator, team):
    operator.post(
        admin("creditgrant_add"), {"account": team.pk, "amount_minor": 700, "note": "sorry"}
    )
    assert CreditGrant.objects.get().remaining_minor == 700
    buy_credits(team_id=team.pk, amount_minor=500, key="click-0001", now=START)
    chosen = {"action": "mark_as_paid", "_selected_action": [Invoice.objects.get().pk]}
    operator.post(admin("invoice_changelist"), chosen)
    assert Invoice.objects.get().status == "paid"
    for action, reason in (("suspend", "banned"), ("restore", "")):
        chosen = {"action": action, "_selected_action": [team.pk]}
        operator.post(admin("billingaccount_changelist"), chosen)
        assert limits_for(team.pk, now=START).block_reason == reason
    assert BillingAccount.objects.count() == 1


def test_books_cannot_be_edited_or_deleted_from_the_desk(operator, team):
    buy_credits(team_id=team.pk, amount_minor=500, key="click-0001", now=START)
    invoice = Invoice.objects.get()
    operator.post(admin("invoice_change", invoice.pk), {"total_minor": 1})
    assert operator.post(admin("invoice_delete", invoice.pk)).status_code == 403
    assert Invoice.objects.get().total_minor == 500
