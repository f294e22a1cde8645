"""Usage, invoices, credits, plan, limits. Everyone in a team reads; what costs money is its
owner's to do.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

from django.conf import settings
from django.http import HttpResponse, HttpResponseBase, StreamingHttpResponse
from django.utils import timezone
from drf_spectacular.utils import extend_schema

from accounts.auth import TeamAPIView, TeamRequest
from accounts.models import Role
from accounts.services import audit
from billing import exports
from billing.access import access_invoice, access_line
from billing.api import serializers as shapes
from billing.documents import invoice_html, invoice_pdf
from billing.models import BillingAccount, Plan, SpendPolicy
from billing.services import reports
from billing.services.accounts import account_of, limits_for, live_subscription
from billing.services.credits import settled_balance
from billing.services.details import set_details
from billing.services.payments import buy_credits
from billing.services.plans import buy_addon, change_plan, end_addon
from billing.services.rail_pages import pay_invoice, payment_method_page, portal_page
from billing.services.spend import balance_after_usage, set_spend_policy, spend_of
from config.drf import answer, from_wire_time, no_content, parse
from config.errors import InvalidArgument, PermissionDenied

EVERYTHING = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE"})


class BillingView(TeamAPIView):
    """A blocked team must be able to see why, and to pay."""

    allowed_when_blocked = EVERYTHING

    def account(self, request: TeamRequest) -> BillingAccount:
        return account_of(team_id=request.team.pk, now=timezone.now())

    def owner_only(self, request: TeamRequest) -> None:
        """A key in an agent's hands must not be able to buy. Raises: PermissionDenied."""
        if not (request.caller.role == Role.OWNER or request.caller.is_operator):
            raise PermissionDenied("only an owner of the team may change its billing")

    def note(self, request: TeamRequest, what: str, **data: Any) -> None:
        actor = request.caller.actor(request)
        audit(team=request.team, actor=actor, action=f"billing.{what}", data=data)

    def span(self, request: TeamRequest, account: BillingAccount) -> tuple[datetime, datetime]:
        """`start` and `end` of the query; the current billing period by default."""
        now = timezone.now()
        default = live_subscription(account).period_start
        start = _time(request, "start", default)
        return start, _time(request, "end", max(now, start + timedelta(milliseconds=1)))


class Summary(BillingView):
    """GET /v1/billing"""

    @extend_schema(responses={200: dict[str, Any]}, operation_id="getBilling")
    def get(self, request: TeamRequest) -> HttpResponse:
        now, account = timezone.now(), self.account(request)
        subscription = live_subscription(account)
        forecast = reports.forecast(account, now=now)
        limits = limits_for(request.team.pk, now=now)
        after = balance_after_usage(account, forecast.spend, now=now)
        pending = subscription.pending_plan
        return answer(
            {
                "plan": shapes.plan_json(subscription.plan),
                "pendingPlan": pending.code if pending else None,
                "status": subscription.status,
                "blockReason": limits.block_reason or None,
                "limits": shapes.limits_json(limits),
                "spend": shapes.spend_json(forecast.spend),
                "forecast": shapes.forecast_json(forecast),
                "currency": account.currency,
                "creditMinor": settled_balance(account, now=now),
                "creditAfterUsage": f"{after:f}",
                "paymentMethod": account.payment_method_label or None,
                "rail": account.rail,
            }
        )


class Usage(BillingView):
    """GET /v1/billing/usage"""

    @extend_schema(responses={200: dict[str, Any]}, operation_id="getUsage")
    def get(self, request: TeamRequest) -> HttpResponse:
        """By time (`step`, `zone`) or, with `by`, per sandbox, template, key or label:<name>."""
        now, account = timezone.now(), self.account(request)
        start, end = self.span(request, account)
        query = request.query_params
        span = {"start": start, "end": end, "now": now}
        if "by" in query:
            groups = reports.usage_by(account, by=query["by"], **span)
            return answer({"groups": [shapes.group_json(row) for row in groups]})
        buckets = reports.usage_over_time(
            account, step=query.get("step", "day"), zone=query.get("zone", "UTC"), **span
        )
        return answer({"buckets": [shapes.bucket_json(row) for row in buckets]})


class UsageExport(BillingView):
    """GET /v1/billing/usage/export, ?format=csv or json"""

    @extend_schema(responses={200: list[dict[str, Any]]}, operation_id="exportUsage")
    def get(self, request: TeamRequest) -> HttpResponseBase:
        account = self.account(request)
        start, end = self.span(request, account)
        rows = exports.usage_rows(account, start=start, end=end, now=timezone.now())
        return _export(request, rows, "usage")


class Intervals(BillingView):
    """GET /v1/billing/intervals, ?format=csv or json, ?sandboxID="""

    @extend_schema(responses={200: list[dict[str, Any]]}, operation_id="listIntervals")
    def get(self, request: TeamRequest) -> HttpResponseBase:
        account = self.account(request)
        start, end = self.span(request, account)
        rows = reports.rated_intervals(
            account,
            start=start,
            end=end,
            now=timezone.now(),
            sandbox_id=request.query_params.get("sandboxID"),
        )
        return _export(request, map(exports.interval_row, rows), "intervals")


class Live(BillingView):
    """GET /v1/billing/live"""

    @extend_schema(responses={200: list[dict[str, Any]]}, operation_id="getLiveCosts")
    def get(self, request: TeamRequest) -> HttpResponse:
        rows = reports.live_costs(self.account(request), now=timezone.now())
        return answer([shapes.live_json(row) for row in rows])


class SandboxCost(BillingView):
    """GET /v1/billing/sandboxes/{sandboxID}"""

    @extend_schema(responses={200: dict[str, Any]}, operation_id="getSandboxCost")
    def get(self, request: TeamRequest, sandbox_id: str) -> HttpResponse:
        rows, total = reports.intervals_of(self.account(request), sandbox_id, now=timezone.now())
        return answer(
            {"cost": f"{total:f}", "intervals": [exports.interval_row(row) for row in rows]}
        )


class Invoices(BillingView):
    """GET /v1/billing/invoices"""

    @extend_schema(responses={200: list[dict[str, Any]]}, operation_id="listInvoices")
    def get(self, request: TeamRequest) -> HttpResponseBase:
        account = self.account(request)
        if request.query_params.get("format") == "csv":
            return _export(request, exports.invoice_rows(account), "invoices")
        invoices = account.invoices.order_by("-issued_at", "-pk")[:1_000]
        return answer([shapes.invoice_json(invoice) for invoice in invoices])


class InvoiceDetail(BillingView):
    """GET /v1/billing/invoices/{invoiceID}, ?format=json, html or pdf"""

    @extend_schema(responses={200: dict[str, Any]}, operation_id="getInvoice")
    def get(self, request: TeamRequest, invoice_id: str) -> HttpResponse:
        invoice = access_invoice(request.team.pk, invoice_id)
        match request.query_params.get("format", "json"):
            case "html":
                return HttpResponse(invoice_html(invoice, nonce=_nonce(request)))
            case "pdf":
                response = HttpResponse(invoice_pdf(invoice), content_type="application/pdf")
                name = f'attachment; filename="{invoice.number}.pdf"'
                response.headers["Content-Disposition"] = name
                return response
            case "json":
                lines = [shapes.line_json(line) for line in invoice.lines.all()]
                return answer({**shapes.invoice_json(invoice), "lines": lines})
            case _:
                raise InvalidArgument("format must be json, html or pdf")


class LineIntervals(BillingView):
    """GET /v1/billing/invoices/{invoiceID}/lines/{position}/intervals"""

    @extend_schema(responses={200: list[dict[str, Any]]}, operation_id="listLineIntervals")
    def get(self, request: TeamRequest, invoice_id: str, position: int) -> HttpResponseBase:
        line = access_line(request.team.pk, invoice_id, position)
        rows = reports.intervals_behind(line, now=timezone.now())
        return _export(
            request, map(exports.interval_row, rows), f"{line.invoice.number}-{position}"
        )


class PayInvoice(BillingView):
    """POST /v1/billing/invoices/{invoiceID}/pay"""

    @extend_schema(request=None, responses={202: dict[str, Any]}, operation_id="payInvoice")
    def post(self, request: TeamRequest, invoice_id: str) -> HttpResponse:
        self.owner_only(request)
        invoice = access_invoice(request.team.pk, invoice_id)
        url = pay_invoice(invoice=invoice, now=timezone.now())
        self.note(request, "invoice_paid", number=invoice.number)
        return answer({"url": url or None}, status=202)


class Credits(BillingView):
    """GET, POST /v1/billing/credits"""

    @extend_schema(responses={200: dict[str, Any]}, operation_id="getCredits")
    def get(self, request: TeamRequest) -> HttpResponse:
        now, account = timezone.now(), self.account(request)
        after = balance_after_usage(account, spend_of(account, now=now), now=now)
        grants = account.grants.order_by("-created_at", "-pk")[:500]
        return answer(
            {
                "settledMinor": settled_balance(account, now=now),
                "afterUsage": f"{after:f}",
                "grants": [shapes.grant_json(grant) for grant in grants],
            }
        )

    @extend_schema(
        request=shapes.CreditsInput, responses={201: dict[str, Any]}, operation_id="buyCredits"
    )
    def post(self, request: TeamRequest) -> HttpResponse:
        """An invoice for credit; the credit arrives with its payment."""
        self.owner_only(request)
        body = parse(shapes.CreditsInput, request.data)
        invoice = buy_credits(
            team_id=request.team.pk,
            amount_minor=body.amountMinor,
            key=body.idempotencyKey,
            now=timezone.now(),
        )
        self.note(request, "credits_bought", number=invoice.number)
        return answer(shapes.invoice_json(invoice), status=201)


class Plans(BillingView):
    """GET /v1/billing/plans"""

    @extend_schema(responses={200: list[dict[str, Any]]}, operation_id="listPlans")
    def get(self, request: TeamRequest) -> HttpResponse:
        plans = Plan.objects.filter(retired_at__isnull=True, is_public=True)
        return answer([shapes.plan_json(plan) for plan in plans.order_by("base_fee_minor", "pk")])


class ChoosePlan(BillingView):
    """PUT /v1/billing/plan"""

    @extend_schema(
        request=shapes.PlanInput, responses={200: dict[str, Any]}, operation_id="choosePlan"
    )
    def put(self, request: TeamRequest) -> HttpResponse:
        self.owner_only(request)
        body = parse(shapes.PlanInput, request.data)
        subscription = change_plan(team_id=request.team.pk, code=body.plan, now=timezone.now())
        self.note(request, "plan_chosen", plan=body.plan)
        pending = subscription.pending_plan
        return answer(
            {"plan": subscription.plan.code, "pendingPlan": pending.code if pending else None}
        )


class AddOns(BillingView):
    """GET, POST /v1/billing/addons"""

    @extend_schema(responses={200: list[dict[str, Any]]}, operation_id="listAddOns")
    def get(self, request: TeamRequest) -> HttpResponse:
        addons = self.account(request).addons.filter(to_at__isnull=True).order_by("pk")
        return answer([shapes.addon_json(addon) for addon in addons])

    @extend_schema(
        request=shapes.AddOnInput, responses={201: dict[str, Any]}, operation_id="buyAddOn"
    )
    def post(self, request: TeamRequest) -> HttpResponse:
        self.owner_only(request)
        body = parse(shapes.AddOnInput, request.data)
        addon = buy_addon(
            team_id=request.team.pk,
            quantity=body.quantity,
            key=body.idempotencyKey,
            now=timezone.now(),
        )
        self.note(request, "addon_bought", quantity=addon.quantity)
        return answer(shapes.addon_json(addon), status=201)


class AddOnDetail(BillingView):
    """DELETE /v1/billing/addons/{addOnID}"""

    @extend_schema(responses={204: None}, operation_id="endAddOn")
    def delete(self, request: TeamRequest, addon_id: int) -> HttpResponse:
        self.owner_only(request)
        self.account(request)
        end_addon(team_id=request.team.pk, addon_id=addon_id, now=timezone.now())
        self.note(request, "addon_ended", addon=addon_id)
        return no_content()


class SpendLimits(BillingView):
    """GET, PUT /v1/billing/spend-policy"""

    @extend_schema(responses={200: dict[str, Any]}, operation_id="getSpendPolicy")
    def get(self, request: TeamRequest) -> HttpResponse:
        policy = SpendPolicy.objects.get(account=self.account(request))
        return answer(shapes.policy_json(policy))

    @extend_schema(
        request=shapes.SpendPolicyInput,
        responses={200: dict[str, Any]},
        operation_id="setSpendPolicy",
    )
    def put(self, request: TeamRequest) -> HttpResponse:
        self.owner_only(request)
        body = parse(shapes.SpendPolicyInput, request.data)
        policy = set_spend_policy(
            team_id=request.team.pk,
            hard_limit_minor=body.hardLimitMinor,
            alert_minor=body.alertMinor,
            action=body.action,
            thresholds=body.thresholds,
            now=timezone.now(),
        )
        self.note(request, "spend_policy_set", limit=body.hardLimitMinor, action=body.action)
        return answer(shapes.policy_json(policy))


class Alerts(BillingView):
    """GET /v1/billing/alerts"""

    @extend_schema(responses={200: list[dict[str, Any]]}, operation_id="listSpendAlerts")
    def get(self, request: TeamRequest) -> HttpResponse:
        alerts = self.account(request).alerts.order_by("-fired_at", "-pk")[:200]
        return answer([shapes.alert_json(alert) for alert in alerts])


class Details(BillingView):
    """PUT /v1/billing/details"""

    @extend_schema(
        request=shapes.DetailsInput, responses={204: None}, operation_id="setBillingDetails"
    )
    def put(self, request: TeamRequest) -> HttpResponse:
        self.owner_only(request)
        body = parse(shapes.DetailsInput, request.data)
        set_details(
            team_id=request.team.pk,
            company=body.company,
            address=body.address,
            tax_id=body.taxID,
            billing_emails=body.billingEmails,
            now=timezone.now(),
        )
        self.note(request, "details_set")
        return no_content()


class PaymentMethod(BillingView):
    """POST /v1/billing/payment-method"""

    @extend_schema(request=None, responses={201: dict[str, Any]}, operation_id="addPaymentMethod")
    def post(self, request: TeamRequest) -> HttpResponse:
        self.owner_only(request)
        account = self.account(request)
        url = payment_method_page(account=account, return_url=settings.BILLING_PAGE_URL)
        return answer({"url": url}, status=201)


class Portal(BillingView):
    """POST /v1/billing/portal"""

    @extend_schema(request=None, responses={201: dict[str, Any]}, operation_id="openPortal")
    def post(self, request: TeamRequest) -> HttpResponse:
        self.owner_only(request)
        url = portal_page(account=self.account(request), return_url=settings.BILLING_PAGE_URL)
        return answer({"url": url}, status=201)


def _time(request: TeamRequest, name: str, default: datetime) -> datetime:
    raw = request.query_params.get(name)
    if raw is None:
        return default
    try:
        return from_wire_time(raw)
    except (ValueError, OverflowError):
        raise InvalidArgument(f"{name} must be a time such as 2026-01-31T00:00:00Z") from None


def _export(request: TeamRequest, rows: Iterable[exports.Row], name: str) -> HttpResponseBase:
    match request.query_params.get("format", "json"):
        case "csv":
            response = StreamingHttpResponse(
                exports.to_csv(rows), content_type="text/csv; charset=utf-8"
            )
            response.headers["Content-Disposition"] = f'attachment; filename="{name}.csv"'
            return response
        case "json":
            return answer(list(rows))
        case _:
            raise InvalidArgument("format must be json or csv")


def _nonce(request: TeamRequest) -> str:
    return str(getattr(request, "csp_nonce", ""))
