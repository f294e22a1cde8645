"""The first page: what runs now, and how to run the first sandbox."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from django.contrib.auth.decorators import login_required
from django.db.models import Count, Q, Sum
from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.shortcuts import redirect
from django.utils import timezone
from django.views.decorators.http import require_GET, require_POST

from accounts.models import APIKey, Team
from accounts.services import create_api_key
from frontend import connect
from frontend.pages import TeamRequest, actor_of, default_team, render, team_page
from frontend.views.sandboxes import rows_of
from sandboxes.lifecycle import ACTIVE, PAUSED_STATES, RUNNING_STATES
from sandboxes.models import Sandbox

LATEST = 5
FIRST_KEY_NAME = "My first key"


@login_required
@require_GET
def home(request: HttpRequest) -> HttpResponse:
    team = default_team(request.user)  # type: ignore[arg-type]  # login_required
    if team is None:
        return render(request, "frontend/no_team.html", {"nav": ""})
    return redirect("frontend:team-home", team_slug=team.slug)


@require_GET
@team_page(nav="team-home")
def team_home(request: TeamRequest) -> HttpResponseBase:
    return _home(request)


@require_GET
@team_page(nav="team-home")
def home_live(request: TeamRequest) -> HttpResponseBase:
    return render(request, "frontend/_home_live.html", live_of(request.team))


@require_POST
@team_page(nav="team-home", needs="create_key")
def home_key(request: TeamRequest) -> HttpResponseBase:
    """A key in one press; the page that answers is the only one that shows it."""
    _key, secret = create_api_key(
        team=request.team,
        name=FIRST_KEY_NAME,
        created_by=request.user,
        actor=actor_of(request),
        now=timezone.now(),
    )
    return _home(request, new_key=secret)


def _home(request: TeamRequest, new_key: str = "") -> HttpResponse:
    key_count = APIKey.objects.filter(team=request.team).active().count()
    context = live_of(request.team) | {
        "key_count": key_count,
        "has_keys": key_count > 0,
        "new_key": new_key,
        "snippet_shell": connect.shell_settings(new_key or connect.KEY_PLACEHOLDER),
        "snippets": connect.snippets(),
    }
    return render(request, "frontend/home.html", context)


def live_of(team: Team) -> dict[str, Any]:
    """What the live part of the home page shows."""
    mine = Sandbox.objects.filter(team=team)
    latest = rows_of(list(mine.select_related("template").order_by("-created_at")[:LATEST]))
    totals = mine.aggregate(
        running=Count("pk", filter=Q(state__in=RUNNING_STATES)),
        paused=Count("pk", filter=Q(state__in=PAUSED_STATES)),
        cpu_count=Sum("cpu_count", filter=Q(state__in=ACTIVE), default=0),
        memory_mb=Sum("memory_mb", filter=Q(state__in=ACTIVE), default=0),
        started_today=Count("pk", filter=Q(created_at__gte=timezone.now() - timedelta(days=1))),
    )
    return {
        "latest": latest,
        "has_history": bool(latest),
        "is_first": len(latest) == 1 and latest[0].is_live,
        "totals": totals,
    }
