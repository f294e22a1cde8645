"""How much a team ran at once, and how fast it started more."""

from __future__ import annotations

from datetime import timedelta

from django.http import HttpResponseBase, JsonResponse
from django.utils import timezone
from django.views.decorators.http import require_GET

from frontend.pages import TeamRequest, render, team_page
from sandboxes.limits import limits_for
from sandboxes.models import Sandbox
from sandboxes.team_metrics import points_of

RANGES = [("1h", "1 hour"), ("24h", "24 hours"), ("7d", "7 days"), ("30d", "30 days")]
LENGTHS = {
    "1h": timedelta(hours=1),
    "24h": timedelta(hours=24),
    "7d": timedelta(days=7),
    "30d": timedelta(days=30),
}
DEFAULT_RANGE = "24h"
CHARTS = [
    {"key": "concurrent", "title": "Running at once", "unit": "count"},
    {"key": "starts", "title": "Starts per minute", "unit": "rate"},
]


@require_GET
@team_page(nav="activity")
def activity(request: TeamRequest) -> HttpResponseBase:
    now = timezone.now()
    chosen = request.GET.get("range", DEFAULT_RANGE)
    chosen = chosen if chosen in LENGTHS else DEFAULT_RANGE
    month = points_of(request.team, first=now - LENGTHS["30d"], last=now)
    context = {
        "ranges": RANGES,
        "range": chosen,
        "charts": CHARTS,
        "active": Sandbox.objects.filter(team=request.team).active().count(),
        "limits": limits_for(request.team, now=now),
        "peak": max((point.concurrent for point in month), default=0),
    }
    return render(request, "frontend/activity.html", context)


@require_GET
@team_page(nav="activity")
def activity_points(request: TeamRequest) -> HttpResponseBase:
    now = timezone.now()
    length = LENGTHS.get(request.GET.get("range", ""), LENGTHS[DEFAULT_RANGE])
    points = points_of(request.team, first=now - length, last=now)
    return JsonResponse(
        {
            "at": [point.at.timestamp() for point in points],
            "concurrent": [point.concurrent for point in points],
            "starts": [round(point.start_rate * 60, 3) for point in points],
            "limits": {},
            "marks": [],
        }
    )
