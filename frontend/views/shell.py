"""Theme, account, and the palette's search over a team's objects."""

from __future__ import annotations

import json

from django.contrib.auth.decorators import login_required
from django.db.models import Q, TextField
from django.db.models.functions import Cast
from django.http import HttpRequest, HttpResponse, HttpResponseBase, JsonResponse
from django.shortcuts import redirect
from django.urls import reverse
from django.utils.http import url_has_allowed_host_and_scheme
from django.views.decorators.http import require_GET, require_POST

from accounts.models import Membership
from frontend.pages import TeamRequest, render, team_page
from frontend.preferences import THEME_COOKIE, THEME_MAX_AGE_SECONDS, THEMES
from frontend.views.templates import visible_templates
from sandboxes.models import Sandbox

PALETTE_RESULTS = 8


@require_POST
def theme(request: HttpRequest) -> HttpResponse:
    """Remember the theme in a cookie, also for people who are not logged in."""
    chosen = request.POST.get("theme", "system")
    target = request.POST.get("next", "/")
    if not url_has_allowed_host_and_scheme(
        target, allowed_hosts={request.get_host()}, require_https=request.is_secure()
    ):
        target = "/"
    response = redirect(target)
    if chosen in {value for value, _, _ in THEMES}:
        response.set_cookie(
            THEME_COOKIE,
            chosen,
            max_age=THEME_MAX_AGE_SECONDS,
            samesite="Lax",
            secure=request.is_secure(),
            httponly=True,
        )
    return response


@login_required
@require_GET
def account(request: HttpRequest) -> HttpResponse:
    return render(request, "frontend/account.html", {"nav": "account"})


@require_GET
@team_page(nav="")
def palette(request: TeamRequest) -> HttpResponseBase:
    """Objects of the team that match, for the command palette."""
    words = request.GET.get("q", "").strip()[:100]
    if not words:
        return JsonResponse({"results": []})
    team = request.team
    results = []
    matching = Q(public_id__istartswith=words) | Q(alias__icontains=words)
    encoded = json.dumps(words)[1:-1]
    sandboxes = (
        Sandbox.objects.filter(team=team)
        .annotate(metadata_text=Cast("metadata", TextField()))
        .filter(matching | Q(metadata_text__icontains=words) | Q(metadata_text__icontains=encoded))
        .order_by("-created_at")[:PALETTE_RESULTS]
    )
    for sandbox in sandboxes:
        results.append(
            {
                "label": sandbox.public_id,
                "detail": f"{sandbox.alias or 'sandbox'} · {sandbox.state}",
                "kind": "Sandbox",
                "icon": "box",
                "url": reverse("frontend:sandbox", args=[team.slug, sandbox.public_id]),
            }
        )
    templates = (
        visible_templates(team)
        .filter(Q(public_id__istartswith=words) | Q(aliases__alias__icontains=words))
        .distinct()
        .prefetch_related("aliases")[:PALETTE_RESULTS]
    )
    for template in templates:
        names = [str(alias) for alias in template.aliases.all()]
        results.append(
            {
                "label": names[0] if names else template.public_id,
                "detail": "Template",
                "kind": "Template",
                "icon": "layers",
                "url": reverse("frontend:template", args=[team.slug, template.public_id]),
            }
        )
    members = (
        Membership.objects.filter(team=team)
        .filter(Q(user__email__icontains=words) | Q(user__name__icontains=words))
        .select_related("user")[:PALETTE_RESULTS]
    )
    for member in members:
        results.append(
            {
                "label": member.user.email,
                "detail": member.get_role_display(),
                "kind": "Member",
                "icon": "user",
                "url": reverse("frontend:members", args=[team.slug]),
            }
        )
    return JsonResponse({"results": results})
