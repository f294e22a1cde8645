"""What a team used: over time, by what, and what runs right now."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.http import HttpResponseBase, StreamingHttpResponse
from django.utils import timezone
from django.views.decorators.http import require_GET

from accounts.models import APIKey, Team
from billing import exports
from billing.models import BillingAccount
from billing.services import reports
from billing.services.accounts import account_of, live_subscription
from billing.services.reports import Group, Used
from config.errors import NotFound
from frontend.pages import TeamRequest, render, team_page
from sandboxes.models import Sandbox
from templates_app.models import Template

RANGES = [("period", "This period"), ("7d", "7 days"), ("30d", "30 days"), ("90d", "90 days")]
GROUPINGS = [("template", "Template"), ("api_key", "API key"), ("sandbox", "Sandbox")]
SHOWN_GROUPS, SHOWN_LIVE = 100, 100
DAYS_BY_HOUR = 3  # a range this short is shown by the hour


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of a table, with its share of the dearest line in percent."""

    name: str
    used: Used
    share: int


@require_GET
@team_page(nav="usage")
def usage(request: TeamRequest) -> HttpResponseBase:
    now = timezone.now()
    account = account_of(team_id=request.team.pk, now=now)
    chosen = _choice(request, "range", RANGES)
    label = request.GET.get("label", "").strip()[:64]
    by = f"label:{label}" if label else _choice(request, "by", GROUPINGS, default="template")
    start = _start_of(chosen, account, now)
    step = "hour" if now - start <= timedelta(days=DAYS_BY_HOUR) else "day"
    buckets = reports.usage_over_time(account, start=start, end=now, now=now, step=step)
    groups = reports.usage_by(account, start=start, end=now, now=now, by=by)
    total = Used()
    for group in groups:
        total.vcpu_ms += group.used.vcpu_ms
        total.memory_ms += group.used.memory_ms
        total.cost += group.used.cost
        total.sandbox_ids |= group.used.sandbox_ids
    running = Sandbox.objects.filter(team=request.team).active().only("public_id", "end_at")
    deadlines = {row.public_id: row.end_at for row in running if row.end_at is not None}
    live = reports.live_costs(account, now=now, deadlines=deadlines)
    top = max((bucket.used.cost for bucket in buckets), default=0)
    context: dict[str, Any] = {
        "account": account,
        "ranges": RANGES,
        "range": chosen,
        "groupings": GROUPINGS,
        "by": by,
        "label": label,
        "step": step,
        "start": start,
        "total": total,
        "buckets": [
            {"start": b.start, "used": b.used, "share": int(100 * b.used.cost / top) if top else 0}
            for b in buckets
        ],
        "groups": _rows(request.team, by, groups),
        "hidden_groups": max(len(groups) - SHOWN_GROUPS, 0),
        "live": live[:SHOWN_LIVE],
        "forecast": reports.forecast(account, now=now),
    }
    return render(request, "frontend/usage.html", context)


@require_GET
@team_page(nav="usage")
def usage_export(request: TeamRequest, kind: str) -> HttpResponseBase:
    """CSV of hours or intervals of the chosen range."""
    now = timezone.now()
    account = account_of(team_id=request.team.pk, now=now)
    start = _start_of(_choice(request, "range", RANGES), account, now)
    exporters = {"hours": exports.usage_rows, "intervals": exports.interval_rows}
    if kind not in exporters:
        raise NotFound("There is no such export.")
    rows = exporters[kind](account, start=start, end=now, now=now)
    response = StreamingHttpResponse(exports.to_csv(rows), content_type="text/csv; charset=utf-8")
    name = f"{kind}-{request.team.slug}.csv"
    response.headers["Content-Disposition"] = f'attachment; filename="{name}"'
    return response


def _choice(
    request: TeamRequest, name: str, choices: list[tuple[str, str]], default: str = ""
) -> str:
    value = request.GET.get(name, "")
    return value if value in dict(choices) else default or choices[0][0]


def _start_of(chosen: str, account: BillingAccount, now: datetime) -> datetime:
    if chosen == "period":
        return live_subscription(account).period_start
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    return midnight - timedelta(days=int(chosen.removesuffix("d")) - 1)


def _rows(team: Team, by: str, groups: list[Group]) -> list[Row]:
    names = _names(team, by, [group.name for group in groups[:SHOWN_GROUPS]])
    top = max((group.used.cost for group in groups), default=0)
    return [
        Row(
            name=names.get(group.name, group.name) or "—",
            used=group.used,
            share=int(100 * group.used.cost / top) if top else 0,
        )
        for group in groups[:SHOWN_GROUPS]
    ]


def _names(team: Team, by: str, ids: list[str]) -> dict[str, str]:
    """What people call the templates or keys behind these ids."""
    if by == "api_key":
        numbers = [int(key_id) for key_id in ids if key_id.isdigit()]
        keys = APIKey.objects.filter(team=team, pk__in=numbers)
        return {str(pk): name for pk, name in keys.values_list("pk", "name")}
    if by == "template":
        rows = Template.objects.filter(public_id__in=ids).prefetch_related("aliases")
        names = {}
        for row in rows:
            alias = next(iter(row.aliases.all()), None)
            names[row.public_id] = alias.alias if alias else row.public_id
        return names
    return {}
