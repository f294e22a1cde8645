from __future__ import annotations

import csv
import io
from datetime import timedelta
from decimal import Decimal

import pytest
from django.utils import timezone

from accounts.models import AuditEvent, Role
from billing.models import Invoice
from billing.services.accounts import account_of
from billing.services.invoices import close_period
from billing.services.payments import mark_paid
from billing.services.reports import (
    intervals_behind,
    live_costs,
    usage_by,
    usage_over_time,
)
from billing.services.usage import confirm_usage
from tests import factories

from .conftest import run, start

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
NOW = (timezone.now() - HOUR).replace(minute=30, second=0, microsecond=0)
AGO = NOW - 40 * DAY


@pytest.fixture
def alice(plans, settings):
    settings.BILLING_DEFAULT_PLAN = "pro"
    person = factories.make_person("alice")
    account_of(team_id=person.team.pk, now=AGO)
    settings.BILLING_DEFAULT_PLAN = "self-hosted"
    return person


@pytest.fixture
def charlie(plans):
    return factories.make_person("charlie")


@pytest.fixture
def invoice(alice):
    run(alice.team, "iold", now=AGO + HOUR, hours=2, template_id="tmpl", labels={"job": "x"})
    close_period(team_id=alice.team.pk, now=NOW)
    return Invoice.objects.get()


def get(client, person, path, expect=200, **query):
    response = client.get(f"/v1/billing{path}", query, headers=person.headers)
    assert response.status_code == expect, response.content
    return response


def send(client, person, method, path, expect, headers=None, **data):
    response = getattr(client, method)(
        f"/v1/billing{path}",
        data=data,
        content_type="application/json",
        headers=headers or person.user_headers,
    )
    assert response.status_code == expect, response.content
    return response


def test_the_summary_says_plan_limits_spend_and_forecast(client, alice):
    start(alice.team, now=NOW - HOUR)
    confirm_usage(sandbox_ids=["isandbox"], now=timezone.now())
    body = get(client, alice, "").json()
    assert body["plan"]["code"] == "pro"
    assert body["limits"]["maxConcurrent"] == 100
    assert body["blockReason"] is None
    assert Decimal(body["spend"]["usage"]) > Decimal("0.1")
    assert body["spend"]["running"] == 1


def test_usage_by_time_adds_up_to_usage_by_everything_else(client, alice):
    run(alice.team, "i1", now=NOW - 30 * HOUR, hours=5, template_id="a", labels={"job": "x"})
    run(alice.team, "i2", now=NOW - 20 * HOUR, hours=1, template_id="b")
    span = {
        "start": (NOW - 5 * DAY).isoformat().replace("+00:00", "Z"),
        "end": (NOW + HOUR).isoformat().replace("+00:00", "Z"),
    }
    expected = Decimal("0.1089") * 6
    for query in (
        {"step": "hour"},
        {"step": "day"},
        {"step": "week", "zone": "Asia/Kathmandu"},
        {"step": "month", "zone": "America/New_York"},
    ):
        buckets = get(client, alice, "/usage", **span, **query).json()["buckets"]
        assert sum(Decimal(bucket["cost"]) for bucket in buckets) == expected
    for by, names in (
        ("sandbox", ["i1", "i2"]),
        ("template", ["a", "b"]),
        ("api_key", [""]),
        ("label:job", ["x", ""]),
    ):
        groups = get(client, alice, "/usage", **span, by=by).json()["groups"]
        assert [group["name"] for group in groups] == names
        assert sum(Decimal(group["cost"]) for group in groups) == expected


@pytest.mark.parametrize(
    "query",
    [
        {"start": "yesterday"},
        {"start": "2026-01-02T00:00:00Z", "end": "2026-01-01T00:00:00Z"},
        {"start": "2020-01-01T00:00:00Z"},
        {"by": "mood"},
        {"step": "eon"},
        {"zone": "../../etc/passwd"},
        {"zone": "Mars/Olympus"},
    ],
)
def test_bad_questions_are_refused(client, alice, query):
    assert get(client, alice, "/usage", 400, **query).json()["code"] == 400


def test_exports_hold_the_same_sum_in_csv_and_json(client, alice):
    run(alice.team, "i1", now=NOW - 30 * HOUR, hours=5)
    query = {"start": (NOW - 5 * DAY).isoformat().replace("+00:00", "Z")}
    for path in ("/usage/export", "/intervals"):
        rows = get(client, alice, path, **query).json()
        text = get(client, alice, path, format="csv", **query).getvalue().decode()
        table = list(csv.DictReader(io.StringIO(text)))
        assert len(rows) == len(table)
        total = sum(Decimal(row["cost"]) for row in table)
        assert total == sum(Decimal(row["cost"]) for row in rows) == Decimal("0.5445")
    get(client, alice, "/intervals", 400, format="xml")


def test_live_costs_show_now_and_at_the_deadline(alice):
    start(alice.team, now=NOW - HOUR)
    confirm_usage(sandbox_ids=["isandbox"], now=NOW)
    account = account_of(team_id=alice.team.pk, now=NOW)
    (row,) = live_costs(account, now=NOW, deadlines={"isandbox": NOW + HOUR})
    assert row.cost == Decimal("0.1089")
    assert row.at_deadline == Decimal("0.2178")
    assert row.per_second * 3_600 == Decimal("0.1089")


def test_one_sandbox_shows_all_its_intervals_and_their_cost(client, alice):
    run(alice.team, "ione", now=NOW - 3 * DAY, hours=2)
    body = get(client, alice, "/sandboxes/ione").json()
    assert Decimal(body["cost"]) == Decimal("0.2178")
    assert [row["end_reason"] for row in body["intervals"]] == ["killed"]


def test_every_usage_line_opens_the_intervals_behind_it(client, alice, invoice):
    body = get(client, alice, f"/invoices/{invoice.public_id}").json()
    assert sum(line["amountMinor"] for line in body["lines"]) == body["subtotalMinor"]
    line = next(line for line in body["lines"] if line["resource"] == "vcpu")
    path = f"/invoices/{invoice.number}/lines/{line['position']}/intervals"
    (interval,) = get(client, alice, path).json()
    assert interval["sandbox_id"] == "iold"
    row = invoice.lines.get(position=line["position"])
    assert [i.sandbox_id for i in intervals_behind(row, now=NOW)] == ["iold"]


def test_an_invoice_comes_as_html_and_pdf(client, alice, invoice):
    html = get(client, alice, f"/invoices/{invoice.public_id}", format="html").content.decode()
    assert invoice.number in html
    assert "14,400 vCPU-seconds" in html
    pdf = get(client, alice, f"/invoices/{invoice.public_id}", format="pdf")
    assert pdf.content.startswith(b"%PDF")
    get(client, alice, f"/invoices/{invoice.public_id}", 400, format="doc")


def test_names_on_an_invoice_cannot_become_html(client, alice, settings):
    send(
        client,
        alice,
        "put",
        "/details",
        204,
        company="<script>alert(1)</script><img src=http://evil>",
    )
    close_period(team_id=alice.team.pk, now=NOW)
    invoice = Invoice.objects.get()
    html = get(client, alice, f"/invoices/{invoice.public_id}", format="html").content.decode()
    assert "<script>" not in html
    assert get(client, alice, f"/invoices/{invoice.public_id}", format="pdf").status_code == 200


def test_charlie_sees_nothing_of_alice(client, charlie, invoice, alice):
    for path in (
        f"/invoices/{invoice.public_id}",
        f"/invoices/{invoice.number}",
        f"/invoices/{invoice.public_id}/lines/1/intervals",
        "/sandboxes/iold",
    ):
        get(client, charlie, path, 404)
    assert get(client, charlie, "/invoices").json() == []
    assert get(client, charlie, "/intervals").json() == []
    send(client, charlie, "post", f"/invoices/{invoice.public_id}/pay", 404)
    other = factories.make_user("mallory")
    factories.join(alice.team, other, Role.ADMIN)
    assert client.get("/v1/billing").status_code == 401


def test_only_owners_change_what_costs_money(client, alice, charlie):
    writes = [
        ("put", "/plan", {"plan": "hobby"}),
        ("post", "/addons", {"quantity": 1, "idempotencyKey": "key-00001"}),
        ("delete", "/addons/1", {}),
        ("post", "/credits", {"amountMinor": 500, "idempotencyKey": "key-00001"}),
        ("put", "/spend-policy", {"hardLimitMinor": 5}),
        ("put", "/details", {"company": "x"}),
        ("post", "/portal", {}),
        ("post", "/payment-method", {}),
    ]
    factories.join(alice.team, charlie.user, Role.ADMIN)
    as_admin = {**charlie.user_headers, "X-Team-ID": str(alice.team.public_id)}
    for method, path, data in writes:
        send(client, alice, method, path, 403, headers=alice.headers, **data)
        send(client, alice, method, path, 403, headers=as_admin, **data)


def test_an_owner_changes_plan_buys_and_limits_and_each_leaves_a_trace(client, alice):
    send(client, alice, "put", "/plan", 200, plan="hobby")
    assert get(client, alice, "").json()["pendingPlan"] == "hobby"
    send(client, alice, "put", "/plan", 404, plan="nonsense")
    send(client, alice, "put", "/plan", 400, plan="enterprise")
    for _ in range(2):
        body = send(
            client, alice, "post", "/addons", 201, quantity=1, idempotencyKey="click-0001"
        ).json()
    assert len(get(client, alice, "/addons").json()) == 1
    send(client, alice, "delete", f"/addons/{body['id']}", 204)
    send(client, alice, "delete", "/addons/999", 404)
    for _ in range(2):
        send(client, alice, "post", "/credits", 201, amountMinor=500, idempotencyKey="click-0002")
    assert Invoice.objects.filter(kind="credits").count() == 1
    send(client, alice, "put", "/spend-policy", 200, hardLimitMinor=0)
    assert get(client, alice, "").json()["blockReason"] == "billing_limit"
    send(client, alice, "put", "/spend-policy", 200, hardLimitMinor=None)
    assert get(client, alice, "").json()["blockReason"] is None
    actions = set(AuditEvent.objects.values_list("action", flat=True))
    assert {"billing.plan_chosen", "billing.addon_bought", "billing.spend_policy_set"} <= actions


@pytest.mark.parametrize(
    ("method", "path", "data"),
    [
        ("post", "/credits", {"amountMinor": -1, "idempotencyKey": "key-00001"}),
        ("post", "/credits", {"amountMinor": 10**18, "idempotencyKey": "key-00001"}),
        ("post", "/credits", {"amountMinor": 1.5, "idempotencyKey": "key-00001"}),
        ("post", "/credits", {"amountMinor": 500, "idempotencyKey": "k"}),
        ("post", "/addons", {"quantity": 0, "idempotencyKey": "key-00001"}),
        ("put", "/spend-policy", {"hardLimitMinor": -1}),
        ("put", "/spend-policy", {"thresholds": [0]}),
        ("put", "/spend-policy", {"action": "explode"}),
        ("put", "/details", {"billingEmails": ["nobody"]}),
        ("put", "/details", {"company": "x" * 500}),
    ],
)
def test_bad_input_is_refused_and_changes_nothing(client, alice, method, path, data):
    assert send(client, alice, method, path, 400, **data).json()["message"]
    assert not Invoice.objects.exists()


def test_without_stripe_there_is_no_card_to_manage(client, alice, invoice):
    send(client, alice, "post", "/portal", 409)
    send(client, alice, "post", f"/invoices/{invoice.public_id}/pay", 409)


def test_a_blocked_team_still_reads_and_pays(client, alice, invoice):
    send(client, alice, "put", "/spend-policy", 200, hardLimitMinor=0)
    for path in ("", "/usage", "/intervals", "/invoices", "/credits", "/live", "/alerts"):
        get(client, alice, path)
    mark_paid(invoice=invoice, actor="operator", now=NOW)
    send(client, alice, "post", "/credits", 201, amountMinor=500, idempotencyKey="click-0001")


def test_reports_agree_with_the_invoice(alice, invoice):
    account = account_of(team_id=alice.team.pk, now=NOW)
    span = {"start": AGO, "end": NOW, "now": NOW}
    exact = sum(line.exact_amount for line in invoice.lines.filter(kind="usage"))
    assert sum(b.used.cost for b in usage_over_time(account, **span)) == exact
    assert sum(g.used.cost for g in usage_by(account, by="sandbox", **span)) == exact
