from __future__ import annotations

from datetime import timedelta

import pytest
from django.utils import timezone

from accounts.models import Role
from billing.models import Invoice, Outbox, ReconcileRun, SpendPolicy
from billing.services.accounts import account_of, live_subscription
from billing.services.invoices import close_period
from billing.services.spend import set_spend_policy
from billing.services.usage import confirm_usage
from tests import factories
from tests.fakes.stripe.server import Server
from tests.fakes.stripe.state import FakeStripe

from .conftest import run, start

NOW = timezone.now()


@pytest.fixture
def alice(plans, settings):
    settings.BILLING_DEFAULT_PLAN = "pro"
    person = factories.make_person("alice")
    account_of(team_id=person.team.pk, now=NOW - timedelta(days=40))
    return person


@pytest.fixture
def page(client, alice):
    client.force_login(alice.user)
    return f"/t/{alice.team.slug}"


def text(client, path, expect=200):
    response = client.get(path)
    assert response.status_code == expect, path
    return response.content.decode()


def test_usage_shows_totals_live_cost_and_groups(client, page, alice):
    run(alice.team, "iold", now=NOW - timedelta(hours=30), hours=2)
    start(alice.team, "ilive", now=NOW - timedelta(hours=1))
    confirm_usage(sandbox_ids=["ilive"], now=NOW)
    for query in ("", "?range=7d&by=sandbox", "?range=30d&by=api_key", "?range=nonsense&by=x"):
        html = text(client, f"{page}/usage{query}")
        assert "ilive" in html
    run(alice.team, "ijob", now=NOW - timedelta(hours=30), hours=1, labels={"job": "nightly"})
    assert "nightly" in text(client, f"{page}/usage?range=7d&label=job")
    assert "$0.44" in text(client, f"{page}/usage?range=7d")
    csv = client.get(f"{page}/usage/intervals.csv?range=7d").getvalue().decode()
    assert csv.count("iold") == 1
    assert client.get(f"{page}/usage/secrets.csv").status_code == 404


def test_every_billing_page_opens(client, page, alice):
    run(alice.team, "iold", now=NOW - timedelta(days=39), hours=2)
    close_period(team_id=alice.team.pk, now=NOW)
    invoice = Invoice.objects.get()
    assert invoice.number in text(client, f"{page}/billing")
    html = text(client, f"{page}/billing/invoices/{invoice.public_id}")
    line = invoice.lines.get(resource="vcpu")
    path = f"{page}/billing/invoices/{invoice.public_id}/lines/{line.position}"
    assert path in html
    assert "iold" in text(client, path)
    assert "nonce=" in text(client, f"{page}/billing/invoices/{invoice.public_id}/print")
    pdf = client.get(f"{page}/billing/invoices/{invoice.public_id}/pdf")
    assert pdf.content.startswith(b"%PDF")
    assert client.get("/billing").url == f"{page}/billing"


def test_a_blocked_team_is_told_why_and_what_to_do(client, page, alice):
    set_spend_policy(
        team_id=alice.team.pk,
        hard_limit_minor=0,
        alert_minor=None,
        action="block_new",
        now=NOW,
    )
    assert "blocked: billing limit reached" in text(client, f"{page}/billing")


def test_an_owner_acts_with_plain_forms(client, page, alice):
    client.post(f"{page}/billing/limits", {"limit": "12.50", "action": "kill_running"})
    policy = SpendPolicy.objects.get()
    assert (policy.hard_limit_minor, policy.action) == (1_250, "kill_running")
    client.post(f"{page}/billing/limits", {"limit": "", "action": "pause_running"})
    assert SpendPolicy.objects.get().hard_limit_minor is None
    for _ in range(2):  # a double click
        client.post(f"{page}/billing/credit", {"amount": "50", "key": "credit-12345678"})
    assert Invoice.objects.get().total_minor == 5_000
    client.post(f"{page}/billing/plan", {"plan": "hobby"})
    account = account_of(team_id=alice.team.pk, now=NOW)
    assert live_subscription(account).pending_plan.code == "hobby"
    client.post(f"{page}/billing/details", {"company": "ACME", "emails": "a@b.example"})
    account.refresh_from_db()
    assert (account.company, account.billing_emails) == ("ACME", ["a@b.example"])


@pytest.mark.parametrize(
    ("path", "form", "status"),
    [
        ("limits", {"limit": "-5", "action": "pause_running"}, 400),
        ("limits", {"limit": "1.234", "action": "pause_running"}, 400),
        ("limits", {"limit": "NaN", "action": "pause_running"}, 400),
        ("limits", {"limit": "1e9", "action": "pause_running"}, 400),
        ("limits", {"limit": "5", "action": "explode"}, 400),
        ("credit", {"amount": "", "key": "credit-12345678"}, 400),
        ("credit", {"amount": "99999999999", "key": "credit-12345678"}, 400),
        ("addons", {"quantity": "x", "key": "addon-12345678"}, 400),
        ("plan", {"plan": "nonsense"}, 404),
        ("card", {}, 409),
    ],
)
def test_bad_forms_are_refused_kindly(client, page, path, form, status):
    response = client.post(f"{page}/billing/{path}", form)
    assert response.status_code == status
    assert not Invoice.objects.exists()


def test_charlie_finds_no_page_and_members_only_look(client, page, alice):
    close_period(team_id=alice.team.pk, now=NOW)
    invoice = Invoice.objects.get()
    charlie = factories.make_person("charlie")
    client.force_login(charlie.user)
    for path in ("usage", "billing", f"billing/invoices/{invoice.public_id}"):
        assert client.get(f"{page}/{path}").status_code == 404
    own = f"/t/{charlie.team.slug}"
    assert client.get(f"{own}/billing/invoices/{invoice.public_id}").status_code == 404
    factories.join(alice.team, charlie.user, Role.DEVELOPER)
    assert "Only owners change billing" in text(client, f"{page}/billing")
    assert client.post(f"{page}/billing/plan", {"plan": "hobby"}).status_code == 403


def test_the_operators_page_runs_the_checks(client, page, alice):
    assert client.get(f"{page}/books").status_code == 404
    assert client.post(f"{page}/books/check").status_code == 404
    alice.user.is_staff = True
    alice.user.save()
    step = Outbox.objects.create(
        key="x", kind="push_invoice", payload={}, next_at=NOW, failed_at=NOW, error="refused"
    )
    assert "refused" in text(client, f"{page}/books")
    client.post(f"{page}/books/check")
    assert ReconcileRun.objects.get(kind="books").mismatches == 0
    client.post(f"{page}/books/steps/{step.pk}/retry")
    step.refresh_from_db()
    assert step.failed_at is None


def test_adding_a_card_goes_through_stripes_page(client, page, alice, settings):
    server = Server(FakeStripe())
    server.start()
    try:
        settings.STRIPE_SECRET_KEY = "sk_test_fake"
        settings.STRIPE_API_BASE = server.url
        account = account_of(team_id=alice.team.pk, now=NOW)
        type(account).objects.update(rail="stripe")
        answer = client.post(f"{page}/billing/card")
        assert answer.headers["Location"].startswith(f"{server.url}/pay/checkout/")
        session = answer.headers["Location"].rsplit("/", 1)[1]
        server.state.complete_session(session, "pm_ok")
        html = text(client, f"{page}/billing?card=saved")
        assert "visa ···· 4242" in html
        assert "/pay/portal/" in client.post(f"{page}/billing/portal").headers["Location"]
    finally:
        server.stop()
