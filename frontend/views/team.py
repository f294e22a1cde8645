"""The team itself: its members, and what they did."""

from __future__ import annotations

import csv
import io
import json
from datetime import datetime, time, timedelta
from typing import Any

from django.core.paginator import Paginator
from django.db.models import Case, IntegerField, Q, QuerySet, Value, When
from django.http import HttpResponse, HttpResponseBase
from django.utils import timezone
from django.utils.dateparse import parse_date
from django.views.decorators.http import require_GET

from accounts.models import AuditEvent, Membership, Role, Team
from frontend.pages import TeamRequest, render, team_page

AUDIT_PAGE = 100
EXPORT_ROWS = 50_000
ROLE_ORDER = [Role.OWNER, Role.ADMIN, Role.DEVELOPER, Role.VIEWER]


def members_of(team: Team) -> QuerySet[Membership]:
    rank = Case(
        *[When(role=role, then=Value(index)) for index, role in enumerate(ROLE_ORDER)],
        output_field=IntegerField(),
    )
    return (
        Membership.objects.filter(team=team)
        .select_related("user")
        .annotate(rank=rank)
        .order_by("rank", "user__email")
    )


@require_GET
@team_page(nav="members")
def members(request: TeamRequest) -> HttpResponseBase:
    context = {"members": members_of(request.team)[:500]}
    return render(request, "frontend/members.html", context, partial="frontend/_members.html")


def matching_events(request: TeamRequest) -> tuple[QuerySet[AuditEvent], dict[str, str]]:
    """The team's events that fit the query string, and that query as it was understood."""
    filters = {
        "q": request.GET.get("q", "").strip()[:100],
        "action": request.GET.get("action", "")[:64],
        "since": request.GET.get("since", ""),
        "until": request.GET.get("until", ""),
    }
    found = AuditEvent.objects.filter(team=request.team)
    if filters["q"]:
        found = found.filter(
            Q(actor_label__icontains=filters["q"])
            | Q(target__icontains=filters["q"])
            | Q(action__icontains=filters["q"])
        )
    if filters["action"]:
        found = found.filter(action=filters["action"])
    since, until = _day(filters["since"]), _day(filters["until"])
    if since:
        found = found.filter(at__gte=since)
    if until:
        found = found.filter(at__lt=until + timedelta(days=1))
    return found.order_by("-at", "-pk"), filters


def _day(raw: str) -> datetime | None:
    try:
        day = parse_date(raw)
    except ValueError:
        return None
    return timezone.make_aware(datetime.combine(day, time.min)) if day else None


@require_GET
@team_page(nav="audit", needs="see_audit_log")
def audit_log(request: TeamRequest) -> HttpResponseBase:
    found, filters = matching_events(request)
    page = Paginator(found, AUDIT_PAGE).get_page(request.GET.get("page"))
    actions = (
        AuditEvent.objects.filter(team=request.team)
        .order_by("action")
        .values_list("action", flat=True)
        .distinct()
    )
    context = {
        "page": page,
        "filters": filters,
        "is_filtered": any(filters.values()),
        "actions": list(actions[:200]),
    }
    return render(request, "frontend/audit.html", context, partial="frontend/_audit.html")


@require_GET
@team_page(nav="audit", needs="see_audit_log")
def audit_export(request: TeamRequest) -> HttpResponseBase:
    found, _ = matching_events(request)
    sheet = io.StringIO()
    writer = csv.writer(sheet)
    writer.writerow(["at", "actor", "action", "target", "ip_address", "data"])
    for event in found[:EXPORT_ROWS].iterator():
        row = [
            event.at.isoformat(),
            event.actor_label,
            event.action,
            event.target,
            event.ip_address or "",
            json.dumps(event.data, sort_keys=True),
        ]
        writer.writerow([_harmless(value) for value in row])
    response = HttpResponse(sheet.getvalue(), content_type="text/csv; charset=utf-8")
    response.headers["Content-Disposition"] = (
        f'attachment; filename="audit-{request.team.slug}.csv"'
    )
    return response


def _harmless(value: Any) -> str:
    """Spreadsheets run cells that start like a formula; a quote before it keeps it text."""
    text = str(value)
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text
