"""Plan, credits, invoices and limits. Everyone in the team looks; its owners act."""

from __future__ import annotations

import re
import secrets
from decimal import Decimal
from typing import Any

from django.contrib.auth.decorators import login_required
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseBase
from django.shortcuts import redirect
from django.urls import reverse
from django.utils import timezone
from django.views.decorators.http import require_GET, require_POST

from accounts.services import audit
from billing import invariants, outbox
from billing.access import access_invoice, access_line
from billing.documents import invoice_context, invoice_html, invoice_pdf
from billing.models import InboundWebhook, Outbox, Plan, ReconcileRun, SpendPolicy
from billing.models.accounts import BlockReason, StopAction
from billing.money import exponent
from billing.reconcile import reconcile_stripe
from billing.services import reports
from billing.services.accounts import account_of, limits_for, live_subscription
from billing.services.credits import settled_balance
from billing.services.details import set_details
from billing.services.payments import buy_credits
from billing.services.plans import ADDON_FEE_MINOR, ADDON_SIZE, buy_addon, change_plan, end_addon
from billing.services.rail_pages import (
    pay_invoice,
    payment_method_page,
    portal_page,
    refresh_card,
)
from billing.services.spend import (
    CHECK_INTERVAL,
    STOP_TIME,
    balance_after_usage,
    set_spend_policy,
)
from config.errors import InvalidArgument
from frontend.pages import TeamRequest, actor_of, default_team, done, render, team_page

SHOWN_INVOICES, SHOWN_GRANTS, SHOWN_ALERTS = 100, 50, 50
SHOWN_INTERVALS = 1_000


@login_required
@require_GET
def billing_home(request: HttpRequest) -> HttpResponse:
    """Where mails and API errors point: the person's own team."""
    team = default_team(request.user)  # type: ignore[arg-type]  # login_required
    if team is None:
        return redirect("frontend:home")
    query = f"?{request.GET.urlencode()}" if request.GET else ""
    return redirect(reverse("frontend:billing", args=[team.slug]) + query)


@require_GET
@team_page(nav="billing")
def overview(request: TeamRequest) -> HttpResponseBase:
    now = timezone.now()
    account = account_of(team_id=request.team.pk, now=now)
    if "card" in request.GET:  # back from the page that stores cards; a webhook may come later
        refresh_card(account=account, now=now)
        account.refresh_from_db()
    subscription = live_subscription(account)
    forecast = reports.forecast(account, now=now)
    limits = limits_for(request.team.pk, now=now)
    policy = SpendPolicy.objects.get(account=account)
    context: dict[str, Any] = {
        "account": account,
        "currency": account.currency,
        "subscription": subscription,
        "plan": subscription.plan,
        "plans": Plan.objects.filter(retired_at__isnull=True, is_public=True).order_by(
            "base_fee_minor", "pk"
        ),
        "limits": limits,
        "block_label": BlockReason(limits.block_reason).label if limits.block_reason else "",
        "spend": forecast.spend,
        "forecast": forecast,
        "settled": settled_balance(account, now=now),
        "after_usage": balance_after_usage(account, forecast.spend, now=now),
        "grants": account.grants.order_by("-created_at", "-pk")[:SHOWN_GRANTS],
        "invoices": account.invoices.order_by("-issued_at", "-pk")[:SHOWN_INVOICES],
        "alerts": account.alerts.order_by("-fired_at", "-pk")[:SHOWN_ALERTS],
        "policy": policy,
        "limit_shown": _shown(policy.hard_limit_minor, account.currency),
        "alert_shown": _shown(policy.alert_minor, account.currency),
        "actions": StopAction.choices,
        "overshoot_seconds": int((CHECK_INTERVAL + STOP_TIME).total_seconds()),
        "addons": account.addons.filter(to_at__isnull=True).order_by("pk"),
        "addon_size": ADDON_SIZE,
        "addon_fee": ADDON_FEE_MINOR,
        "has_stripe": account.rail == "stripe",
        "form_key": secrets.token_hex(16),  # a form sent twice acts once
        "is_owner": request.can.manage_billing,
    }
    return render(request, "frontend/billing.html", context)


@require_POST
@team_page(nav="billing", needs="manage_billing")
def choose_plan(request: TeamRequest) -> HttpResponseBase:
    code = request.POST.get("plan", "")
    subscription = change_plan(team_id=request.team.pk, code=code, now=timezone.now())
    _note(request, "plan_chosen", plan=code)
    if subscription.pending_plan is not None:
        text = f"You move to {subscription.pending_plan.name} when this period ends."
    else:
        text = f"You are on the {subscription.plan.name} plan."
    return _done(request, text)


@require_POST
@team_page(nav="billing", needs="manage_billing")
def add_credit(request: TeamRequest) -> HttpResponseBase:
    account = account_of(team_id=request.team.pk, now=timezone.now())
    amount = _minor(request.POST.get("amount", ""), account.currency)
    if amount is None:
        raise InvalidArgument("Say how much credit to buy.")
    invoice = buy_credits(
        team_id=request.team.pk,
        amount_minor=amount,
        key=request.POST.get("key", ""),
        now=timezone.now(),
    )
    _note(request, "credits_bought", number=invoice.number)
    return _done(
        request, f"Invoice {invoice.number} is ready; the credit arrives with its payment."
    )


@require_POST
@team_page(nav="billing", needs="manage_billing")
def add_addon(request: TeamRequest) -> HttpResponseBase:
    raw = request.POST.get("quantity", "")
    addon = buy_addon(
        team_id=request.team.pk,
        quantity=int(raw) if raw.isascii() and raw.isdigit() else 0,
        key=request.POST.get("key", ""),
        now=timezone.now(),
    )
    _note(request, "addon_bought", quantity=addon.quantity)
    return _done(request, f"{addon.quantity} more concurrent sandboxes.")


@require_POST
@team_page(nav="billing", needs="manage_billing")
def remove_addon(request: TeamRequest, addon_id: int) -> HttpResponseBase:
    end_addon(team_id=request.team.pk, addon_id=addon_id, now=timezone.now())
    _note(request, "addon_ended", addon=addon_id)
    return _done(request, "The add-on has ended.")


@require_POST
@team_page(nav="billing", needs="manage_billing")
def set_policy(request: TeamRequest) -> HttpResponseBase:
    account = account_of(team_id=request.team.pk, now=timezone.now())
    policy = set_spend_policy(
        team_id=request.team.pk,
        hard_limit_minor=_minor(request.POST.get("limit", ""), account.currency),
        alert_minor=_minor(request.POST.get("alert", ""), account.currency),
        action=request.POST.get("action", ""),
        now=timezone.now(),
    )
    _note(request, "spend_policy_set", limit=policy.hard_limit_minor, action=policy.action)
    return _done(request, "The limits are in force.")


@require_POST
@team_page(nav="billing", needs="manage_billing")
def save_details(request: TeamRequest) -> HttpResponseBase:
    set_details(
        team_id=request.team.pk,
        company=request.POST.get("company", ""),
        address=request.POST.get("address", ""),
        tax_id=request.POST.get("tax_id", ""),
        billing_emails=request.POST.get("emails", "").replace(",", " ").split(),
        now=timezone.now(),
    )
    _note(request, "details_set")
    return _done(request, "Coming invoices carry these details.")


@require_POST
@team_page(nav="billing", needs="manage_billing")
def add_card(request: TeamRequest) -> HttpResponseBase:
    account = account_of(team_id=request.team.pk, now=timezone.now())
    return _leave(payment_method_page(account=account, return_url=_own_url(request)))


@require_POST
@team_page(nav="billing", needs="manage_billing")
def open_portal(request: TeamRequest) -> HttpResponseBase:
    account = account_of(team_id=request.team.pk, now=timezone.now())
    return _leave(portal_page(account=account, return_url=f"{_own_url(request)}?card=changed"))


@require_POST
@team_page(nav="billing", needs="manage_billing")
def pay(request: TeamRequest, invoice_id: str) -> HttpResponseBase:
    invoice = access_invoice(request.team.pk, invoice_id)
    url = pay_invoice(invoice=invoice, now=timezone.now())
    _note(request, "invoice_paid", number=invoice.number)
    return _leave(url) if url else _done(request, "Your card is being charged.")


@require_GET
@team_page(nav="billing")
def invoice(request: TeamRequest, invoice_id: str) -> HttpResponseBase:
    row = access_invoice(request.team.pk, invoice_id)
    context = invoice_context(row) | {"is_owner": request.can.manage_billing}
    return render(request, "frontend/invoice.html", context)


@require_GET
@team_page(nav="billing")
def invoice_print(request: TeamRequest, invoice_id: str) -> HttpResponseBase:
    row = access_invoice(request.team.pk, invoice_id)
    nonce = str(getattr(request, "csp_nonce", ""))
    return HttpResponse(invoice_html(row, nonce=nonce))


@require_GET
@team_page(nav="billing")
def invoice_file(request: TeamRequest, invoice_id: str) -> HttpResponseBase:
    row = access_invoice(request.team.pk, invoice_id)
    response = HttpResponse(invoice_pdf(row), content_type="application/pdf")
    response.headers["Content-Disposition"] = f'attachment; filename="{row.number}.pdf"'
    return response


@require_GET
@team_page(nav="billing")
def invoice_line(request: TeamRequest, invoice_id: str, position: int) -> HttpResponseBase:
    line = access_line(request.team.pk, invoice_id, position)
    rows = []
    for row in reports.intervals_behind(line, now=timezone.now()):
        rows.append(row)
        if len(rows) > SHOWN_INTERVALS:
            break
    context = {
        "invoice": line.invoice,
        "line": line,
        "rows": rows[:SHOWN_INTERVALS],
        "is_cut": len(rows) > SHOWN_INTERVALS,
    }
    return render(request, "frontend/invoice_line.html", context)


# --- For the operator --------------------------------------------------------------------------


@require_GET
@team_page(nav="books")
def books(request: TeamRequest) -> HttpResponseBase:
    """Whether the books are right: the laws they must keep, Stripe's side, and what is stuck."""
    _operators_only(request)
    context = {
        "runs": ReconcileRun.objects.order_by("-started_at", "-pk")[:20],
        "failed": Outbox.objects.filter(failed_at__isnull=False, done_at__isnull=True)[:100],
        "waiting": Outbox.objects.filter(failed_at__isnull=True, done_at__isnull=True).count(),
        "unhandled": InboundWebhook.objects.filter(handled_at__isnull=True).order_by("-pk")[:100],
        "laws": [check.__name__.replace("_", " ") for check in invariants.CHECKS],
    }
    return render(request, "frontend/books.html", context)


@require_POST
@team_page(nav="books")
def books_check(request: TeamRequest) -> HttpResponseBase:
    _operators_only(request)
    run = invariants.check_books(now=timezone.now())
    reconcile_stripe(now=timezone.now())
    found = "Every law holds." if not run.mismatches else f"{run.mismatches} problems were found."
    return done(request, found, to=reverse("frontend:books", args=[request.team.slug]))


@require_POST
@team_page(nav="books")
def books_retry(request: TeamRequest, step_id: int) -> HttpResponseBase:
    _operators_only(request)
    outbox.retry_failed(pk=step_id, now=timezone.now())
    return done(
        request, "It is tried again.", to=reverse("frontend:books", args=[request.team.slug])
    )


def _operators_only(request: TeamRequest) -> None:
    if not request.user.is_staff:
        raise Http404("Not here.")


# --- Small things ------------------------------------------------------------------------------


def _own_url(request: TeamRequest) -> str:
    return request.build_absolute_uri(reverse("frontend:billing", args=[request.team.slug]))


def _leave(url: str) -> HttpResponse:
    return HttpResponse(status=303, headers={"Location": url})


def _done(request: TeamRequest, message: str) -> HttpResponse:
    return done(request, message, to=reverse("frontend:billing", args=[request.team.slug]))


def _note(request: TeamRequest, what: str, **data: Any) -> None:
    audit(team=request.team, actor=actor_of(request), action=f"billing.{what}", data=data)


def _minor(raw: str, currency: str) -> int | None:
    """A sum a person typed, in minor units; None for an empty field. Raises: InvalidArgument."""
    raw = raw.strip().removeprefix("$").replace(",", "")
    if not raw:
        return None
    if not re.fullmatch(r"[0-9]{1,12}(\.[0-9]{1,6})?", raw, re.ASCII):
        raise InvalidArgument(f"{raw[:30]!r} is not a sum of money.")
    scaled = Decimal(raw).scaleb(exponent(currency))
    if scaled != scaled.to_integral_value():
        raise InvalidArgument(f"{raw!r} has more decimals than {currency}.")
    return int(scaled)


def _shown(amount_minor: int | None, currency: str) -> str:
    if amount_minor is None:
        return ""
    places = exponent(currency)
    return f"{Decimal(amount_minor).scaleb(-places):.{places}f}"
