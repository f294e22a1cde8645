"""The whole Stripe side against the fake, on a real port."""

from __future__ import annotations

import itertools
import json
import os
import random
import time
from datetime import timedelta

import pytest
from django.db import transaction
from django.utils import timezone

from billing import outbox, stripe_client
from billing.errors import PaymentRequired
from billing.handlers import handle_webhook, sweep_webhooks
from billing.invariants import broken_laws
from billing.models import (
    BillingAccount,
    CreditGrant,
    InboundWebhook,
    Invoice,
    LedgerEntry,
    Notice,
    Outbox,
    PaymentAttempt,
    ReconcileRun,
)
from billing.reconcile import mirror_usage, reconcile_stripe
from billing.services.credits import settled_balance
from billing.services.invoices import amount_due, close_period
from billing.services.payments import (
    buy_credits,
    credit_invoice,
    mark_paid,
    refund_payment,
    void_invoice,
)
from billing.services.plans import change_plan
from billing.services.rollup import roll_due
from tests.fakes.stripe.server import Server
from tests.fakes.stripe.state import DAY, FakeStripe, Fault, Refusal

from .conftest import make_team, run

HOUR = timedelta(hours=1)


@pytest.fixture(scope="module")
def server():
    server = Server(FakeStripe())
    server.start()
    yield server
    server.stop()


@pytest.fixture
def fake(server, settings, plans):
    """A fresh account at the fake, with the keys set."""
    state = FakeStripe(base_url=server.url)
    server.state = state
    settings.STRIPE_SECRET_KEY = "sk_test_fake"
    settings.STRIPE_API_BASE = server.url
    settings.STRIPE_WEBHOOK_SECRETS = [state.secret]
    settings.CELERY_TASK_ALWAYS_EAGER = False
    return state


@pytest.fixture(autouse=True)
def no_broker(monkeypatch):
    """Webhooks are handled when a test says so."""
    monkeypatch.setattr("billing.webhooks._enqueue", lambda pk: None)


@pytest.fixture
def team(fake, settings):
    return make_team("stella", now=timezone.now(), settings=settings)


def account(team):
    return BillingAccount.objects.get(pk=team.pk)


def drain(now=None):
    return outbox.drain_outbox(now=now or timezone.now() + timedelta(seconds=1))


def add_card(team, fake, card="pm_ok"):
    customer = outbox.ensure_customer(account(team))
    fake.attach_card(customer, card)
    outbox.refresh_payment_method(account(team), now=timezone.now())


def deliver(client, fake, *, events=None, shuffle=False, twice=False):
    """Post events to the endpoint, then handle what was stored."""
    events = fake.take_undelivered() if events is None else events
    if twice:
        events = events + events
    if shuffle:
        random.shuffle(events)
    for event in events:
        body, header = fake.signed(event)
        assert post(client, body, header).status_code == 200
    return sweep_webhooks(now=timezone.now())


def post(client, body, header):
    return client.post(
        "/webhooks/stripe",
        data=body,
        content_type="application/json",
        headers={"Stripe-Signature": header},
    )


def buy(team, amount=2_000, key="click-0001"):
    return buy_credits(team_id=team.pk, amount_minor=amount, key=key, now=timezone.now())


def remote(fake, invoice):
    invoice.refresh_from_db()
    return fake.objects["invoice"][invoice.stripe_invoice_id]


# --- Pushing invoices -------------------------------------------------------------------------


def test_a_finished_invoice_is_pushed_charged_and_paid(client, fake, team):
    add_card(team, fake)
    invoice = buy(team)
    assert drain() == 1
    assert remote(fake, invoice)["total"] == 2_000
    fake.advance(1)
    deliver(client, fake)
    invoice.refresh_from_db()
    assert invoice.status == "paid"
    assert invoice.hosted_url.startswith(fake.base_url)
    assert settled_balance(account(team), now=timezone.now()) == 2_000


def test_lines_at_stripe_add_up_to_the_cent_with_credits_and_tax(fake, team):
    BillingAccount.objects.update(tax_percent=19, tax_label="VAT")
    add_card(team, fake)
    change_plan(team_id=team.pk, code="pro", now=timezone.now())
    invoice = Invoice.objects.get()
    drain()
    lines = {line["description"]: line["amount"] for line in remote(fake, invoice)["lines"]["data"]}
    assert lines["VAT 19 %"] == invoice.tax_minor
    assert sum(lines.values()) == invoice.total_minor


@pytest.mark.parametrize(
    "operation",
    ["customers.create", "invoices.create", "invoices.add_lines", "invoices.finalize"],
)
@pytest.mark.parametrize(
    ("kind", "after"),
    [("500", True), ("500", False), ("reset", True), ("429", False), ("409", False)],
)
def test_a_fault_at_any_step_leaves_one_customer_and_one_invoice(
    fake, team, operation, kind, after, monkeypatch
):
    monkeypatch.setattr("stripe._http_client.HTTPClient._sleep_time_seconds", lambda *a, **k: 0)
    invoice = buy(team)
    fake.faults.append(Fault(operation=operation, kind=kind, after=after, times=4))
    now = timezone.now()
    for minutes in range(10):
        if drain(now + timedelta(minutes=10 * minutes)):
            break
    assert len(fake.objects["customer"]) == 1
    assert len(fake.objects["invoice"]) == 1
    assert remote(fake, invoice)["status"] == "open"
    assert remote(fake, invoice)["total"] == 2_000
    assert Outbox.objects.get().done_at


def test_a_crash_after_the_call_finds_what_was_created(fake, team, monkeypatch):
    """Keys are forgotten after a day; by then only looking helps."""
    invoice = buy(team)

    def crash(*_a, **_k):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("billing.outbox.Invoice.objects.filter", crash)
        with pytest.raises(KeyboardInterrupt):
            drain()
    fake.advance(3 * DAY)
    drain(timezone.now() + timedelta(days=3))
    assert len(fake.objects["invoice"]) == 1
    assert remote(fake, invoice)["total"] == 2_000


def test_stripe_is_never_called_inside_a_transaction(fake, team):
    with transaction.atomic(), pytest.raises(RuntimeError, match="transaction"):
        outbox.ensure_customer(account(team))


def test_a_voided_invoice_is_voided_at_stripe(client, fake, team):
    invoice = buy(team)
    drain()
    void_invoice(invoice=invoice, reason="", actor="operator", now=timezone.now())
    drain()
    assert remote(fake, invoice)["status"] == "void"
    deliver(client, fake)
    assert broken_laws(now=timezone.now()) == []


def test_a_payment_by_wire_is_marked_at_stripe_too(client, fake, team):
    invoice = buy(team)
    drain()
    mark_paid(invoice=Invoice.objects.get(), actor="operator", now=timezone.now())
    drain()
    assert remote(fake, invoice)["status"] == "paid"
    deliver(client, fake)
    assert LedgerEntry.objects.filter(kind="payment").count() == 1


def test_both_rails_write_identical_lines_for_the_same_history(fake, settings):
    """Stripe only collects: what is billed does not depend on it."""
    now = timezone.now() - timedelta(days=40)
    lines = []
    for key in ("sk_test_fake", ""):
        settings.STRIPE_SECRET_KEY = key
        team = make_team("twin", plan="pro", now=now, settings=settings)
        run(team, f"i{team.pk}", now=now, hours=12.345)
        close_period(team_id=team.pk, now=now + timedelta(days=35))
        invoice = Invoice.objects.get(account_id=team.pk)
        columns = ("description", "quantity", "exact_amount", "amount_minor")
        lines.append(list(invoice.lines.values_list(*columns)))
    assert lines[0] == lines[1]


# --- Declines ---------------------------------------------------------------------------------


def test_a_declined_card_starts_dunning_and_a_new_card_ends_it(client, fake, team):
    add_card(team, fake, "pm_decline_after_attach")
    invoice = buy(team)
    drain()
    fake.advance(1)
    deliver(client, fake)
    invoice.refresh_from_db()
    assert invoice.status == "open"
    assert PaymentAttempt.objects.filter(is_success=False).count() == 1
    customer = fake.objects["customer"][account(team).stripe_customer_id]
    good = fake.attach_card(customer["id"], "pm_ok")
    customer["invoice_settings"]["default_payment_method"] = good["id"]
    fake.advance(3 * DAY)
    deliver(client, fake)
    invoice.refresh_from_db()
    assert invoice.status == "paid"
    assert account(team).payment_method_label == "visa ···· 4242"


def test_a_plan_with_a_fee_needs_a_card_first(fake, team):
    with pytest.raises(PaymentRequired):
        change_plan(team_id=team.pk, code="pro", now=timezone.now())
    assert not Invoice.objects.exists()


# --- Webhooks ---------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_any_order_and_any_repeats_end_in_stripes_latest_state(client, fake, team, seed):
    random.seed(seed)
    add_card(team, fake)
    invoice = buy(team)
    drain()
    fake.advance(1)
    charge = next(iter(fake.objects["charge"].values()))
    fake.refunds_create(charge=charge["id"], amount="500")
    deliver(client, fake, shuffle=True, twice=True)
    deliver(client, fake, events=list(fake.events), shuffle=True)
    invoice.refresh_from_db()
    assert invoice.status == "paid"
    assert CreditGrant.objects.count() == 1
    assert LedgerEntry.objects.filter(kind="payment").count() == 1
    assert LedgerEntry.objects.filter(kind="refund").get().amount_minor == 500
    assert Notice.objects.values("key").distinct().count() == Notice.objects.count()
    assert broken_laws(now=timezone.now()) == []


def test_lost_webhooks_are_found_by_reconciliation(fake, team):
    add_card(team, fake)
    invoice = buy(team)
    drain()
    fake.advance(1)
    fake.undelivered.clear()  # delivered, says Stripe; we never saw them
    result = reconcile_stripe(now=timezone.now())
    invoice.refresh_from_db()
    assert invoice.status == "paid"
    assert result.mismatches == 0


def test_undelivered_events_are_pulled(fake, team):
    add_card(team, fake)
    invoice = buy(team)
    drain()
    fake.advance(1)
    reconcile_stripe(now=timezone.now())
    invoice.refresh_from_db()
    assert invoice.status == "paid"
    assert InboundWebhook.objects.exists()


def test_a_difference_is_reported(fake, team):
    invoice = buy(team)
    drain()
    remote(fake, invoice)["total"] = 1_999
    fake.invoices_create(customer=account(team).stripe_customer_id, currency="usd")
    details = reconcile_stripe(now=timezone.now()).details
    assert any("1999" in line for line in details)
    assert any("we have no such invoice" in line for line in details)


def test_a_forged_stale_future_or_wrong_mode_webhook_is_refused(client, fake, team):
    event = fake.emit("customer.updated", {"id": "cus_x", "object": "customer"})
    body, header = fake.signed(event)
    stale = fake.signed(event, age=400)[1]
    future = fake.signed(event, age=-400)[1]
    forged = fake.signed(event, secret="whsec_other")[1]
    for wrong in ("", "t=1,v1=abc", "nonsense", stale, future, forged):
        assert post(client, body, wrong).status_code == 400
    assert post(client, body.replace("cus_x", "cus_y"), header).status_code == 400
    live = {**event, "id": "evt_live", "livemode": True}
    assert post(client, *fake.signed(live)).status_code == 400
    assert not InboundWebhook.objects.exists()
    assert post(client, body, header).status_code == 200
    assert client.get("/webhooks/stripe").status_code == 405


def test_an_oversized_or_senseless_body_is_refused(client, fake):
    body = json.dumps({"id": "evt", "type": "x", "pad": "x" * 1_100_000})
    header = stripe_client.sign_webhook(body, fake.secret)
    assert post(client, body, header).status_code == 413
    for body in ("[]", "{}", "no json", '"text"', '{"id": 1}'):
        header = stripe_client.sign_webhook(body, fake.secret)
        assert post(client, body, header).status_code == 400


def test_without_a_secret_every_webhook_is_refused(client, fake, settings):
    event = fake.emit("customer.updated", {"id": "cus_x", "object": "customer"})
    settings.STRIPE_WEBHOOK_SECRETS = []
    assert post(client, *fake.signed(event)).status_code == 400
    settings.STRIPE_WEBHOOK_SECRETS = [" "]
    assert post(client, *fake.signed(event, secret=" ")).status_code == 400


def test_both_secrets_work_while_one_is_rotated(client, fake, settings):
    settings.STRIPE_WEBHOOK_SECRETS = ["whsec_new", fake.secret]
    event = fake.emit("unknown.thing", {"id": "x", "object": "thing"})
    assert post(client, *fake.signed(event)).status_code == 200
    other = {**event, "id": "evt_other"}
    assert post(client, *fake.signed(other, secret="whsec_new")).status_code == 200
    assert sweep_webhooks(now=timezone.now()) == 2  # unknown types are kept and ignored


def test_a_webhook_that_cannot_be_handled_now_is_handled_later(client, fake, team, monkeypatch):
    monkeypatch.setattr("stripe._http_client.HTTPClient._sleep_time_seconds", lambda *a, **k: 0)
    add_card(team, fake)
    invoice = buy(team)
    drain()
    fake.advance(1)
    fake.faults.append(Fault(operation="*", kind="500", times=500))
    deliver(client, fake)
    fake.faults.clear()
    assert InboundWebhook.objects.filter(handled_at=None).exists()
    sweep_webhooks(now=timezone.now())
    invoice.refresh_from_db()
    assert invoice.status == "paid"


def test_handling_an_event_twice_does_it_once(client, fake, team):
    add_card(team, fake)
    buy(team)
    drain()
    fake.advance(1)
    deliver(client, fake)
    for row in InboundWebhook.objects.all():
        InboundWebhook.objects.filter(pk=row.pk).update(handled_at=None)
        assert handle_webhook(webhook_id=row.pk, now=timezone.now())
    assert CreditGrant.objects.count() == 1


# --- Money back, customers, cards -------------------------------------------------------------


def test_a_refund_ordered_here_is_made_there_and_booked_by_its_webhook(client, fake, team):
    add_card(team, fake)
    invoice = buy(team)
    drain()
    fake.advance(1)
    deliver(client, fake)
    for _ in range(2):
        refund_payment(
            invoice=Invoice.objects.get(), amount_minor=700, key="r1", now=timezone.now()
        )
    drain()
    deliver(client, fake)
    assert [r["amount"] for r in fake.objects["refund"].values()] == [700]
    assert invoice.credit_notes.get().amount_minor == 700
    assert broken_laws(now=timezone.now()) == []


def test_a_credit_note_reaches_stripe(client, fake, team):
    invoice = buy(team)
    drain()
    credit_invoice(
        invoice=Invoice.objects.get(), amount_minor=500, reason="sorry", key="k", now=timezone.now()
    )
    drain()
    assert invoice.credit_notes.get().stripe_id.startswith("cn_")
    assert remote(fake, invoice)["amount_remaining"] == 1_500
    assert amount_due(invoice) == 1_500


def test_removing_the_card_is_noticed(client, fake, team):
    add_card(team, fake)
    deliver(client, fake)
    (method,) = fake.objects["payment_method"].values()
    fake.payment_methods_detach(method["id"])
    deliver(client, fake)
    assert not account(team).has_payment_method


def test_a_deleted_customer_is_forgotten_and_made_again(client, fake, team):
    add_card(team, fake)
    old = account(team).stripe_customer_id
    fake.customers_delete(old)
    deliver(client, fake)
    assert account(team).stripe_customer_id is None
    assert outbox.ensure_customer(account(team)) != old


def test_hourly_usage_is_mirrored_once_when_asked_for(fake, team, settings):
    settings.STRIPE_METER_EVENTS = True
    outbox.ensure_customer(account(team))
    now = timezone.now()
    run(team, now=now - 4 * HOUR, hours=1)
    roll_due(now=now)
    for _ in range(2):
        mirror_usage(now=now)
        drain(now)
    values = [e["payload"]["value"] for e in fake.meter_events.values()]
    assert sum(map(int, values)) in range(7_200 + 1_800 - 4, 7_200 + 1_800 + 1)


def test_without_keys_nothing_talks_to_stripe(settings, plans):
    team = make_team("local", now=timezone.now(), settings=settings)
    buy(team)
    assert not Outbox.objects.exists()
    assert reconcile_stripe(now=timezone.now()) is None
    assert not ReconcileRun.objects.exists()


# --- The contract: the fake always, Stripe itself when a test key is set ------------------------


@pytest.fixture(params=["fake", "stripe"])
def door(request, server):
    if request.param == "fake":
        server.state = FakeStripe(base_url=server.url)
        return stripe_client.StripeDoor("sk_test_fake", server.url)
    key = os.environ.get("STRIPE_TEST_KEY", "")
    if not key.startswith("sk_test_"):
        pytest.skip("STRIPE_TEST_KEY is not set")
    return stripe_client.StripeDoor(key)


_keys = (f"contract-{time.time_ns()}-{n}" for n in itertools.count())


def test_contract_an_invoice_is_built_and_finalized_once(door):
    team_id = next(_keys)
    key = next(_keys)
    customer = door.create_customer(team_id=team_id, name="T", email="t@example.com", key=key)
    same = door.create_customer(team_id=team_id, name="T", email="t@example.com", key=key)
    assert customer == same
    local_id = next(_keys)
    create = {
        "customer_id": customer,
        "currency": "USD",
        "local_id": local_id,
        "number": "INV-1",
        "days_until_due": 14,
        "is_charged": False,
        "key": next(_keys),
    }
    draft = door.create_invoice(**create)
    assert door.create_invoice(**create).id == draft.id
    assert (draft.status, draft.total_minor, draft.line_count) == ("draft", 0, 0)
    now = timezone.now()
    lines = [
        stripe_client.RemoteLine(description="a", amount_minor=700, start=now, end=now + HOUR),
        stripe_client.RemoteLine(description="b", amount_minor=-200, start=now, end=now + HOUR),
    ]
    filled = door.add_lines(draft.id, lines, key=next(_keys))
    assert (filled.total_minor, filled.line_count) == (500, 2)
    final = door.finalize_invoice(draft.id, key=next(_keys))
    assert (final.status, final.local_id) == ("open", local_id)
    assert final.hosted_url
    assert door.find_invoice(customer_id=customer, local_id=local_id).id == draft.id
    with pytest.raises(stripe_client.StripeRefused):
        door.finalize_invoice(draft.id, key=next(_keys))
    door.void_invoice(draft.id, key=next(_keys))
    assert door.invoice(draft.id).status == "void"


def test_contract_the_same_key_with_other_parameters_is_refused(door):
    key = next(_keys)
    door.create_customer(team_id="t", name="T", email="t@example.com", key=key)
    with pytest.raises(stripe_client.StripeRefused, match="idempotency"):
        door.create_customer(team_id="t", name="Other", email="t@example.com", key=key)


def test_contract_what_is_absent_is_refused(door):
    with pytest.raises(stripe_client.StripeRefused):
        door.invoice("in_nonsense")
    assert not door.customer_exists("cus_nonsense")


def test_contract_setup_and_portal_pages_have_addresses(door):
    customer = door.create_customer(team_id="t", name="T", email="t@example.com", key=next(_keys))
    url = "https://example.com/billing"
    setup = door.setup_page(customer_id=customer, success_url=url, cancel_url=url, key=next(_keys))
    assert setup.startswith("http")
    assert door.portal_page(customer_id=customer, return_url=url).startswith("http")


def test_the_fake_refuses_what_the_sdk_does_not_know():
    state = FakeStripe()
    for operation, given in (
        ("customers.create", {"nmae": "typo"}),
        ("invoices.add_lines", {}),
        ("invoices.create", {"collection_method": "by_pigeon"}),
        ("invoices.add_lines", {"lines": [{"amuont": "1"}]}),
    ):
        with pytest.raises(Refusal) as caught:
            state.call(operation, ("in_1",), given, key=None)
        assert caught.value.status == 400
