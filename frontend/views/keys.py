"""API keys: create, show once, revoke."""

from __future__ import annotations

from django.http import HttpResponseBase
from django.urls import reverse
from django.utils import timezone
from django.views.decorators.debug import sensitive_variables
from django.views.decorators.http import require_GET, require_POST

from accounts.access import access_api_key
from accounts.models import APIKey
from accounts.services import create_api_key, revoke_api_key
from frontend import connect
from frontend.forms import KeyForm
from frontend.pages import TeamRequest, actor_of, done, is_partial, render, team_page

SHOWN_KEYS = 200


@require_GET
@team_page(nav="keys")
def key_list(request: TeamRequest) -> HttpResponseBase:
    keys = APIKey.objects.filter(team=request.team).active().select_related("created_by")
    context = {
        "keys": keys.order_by("-created_at")[:SHOWN_KEYS],
        "form": KeyForm(),
        "show_form": "new" in request.GET,
        "now": timezone.now(),
    }
    return render(request, "frontend/keys.html", context, partial="frontend/_keys.html")


@require_POST
@team_page(nav="keys", needs="create_key")
@sensitive_variables("secret")
def key_create(request: TeamRequest) -> HttpResponseBase:
    form = KeyForm(request.POST)
    if not form.is_valid():
        context = {"form": form, "keys": [], "show_form": True, "now": timezone.now()}
        return render(
            request,
            "frontend/keys.html",
            context,
            partial="frontend/_key_form.html",
            status=422,
        )
    now = timezone.now()
    key, secret = create_api_key(
        team=request.team,
        name=form.cleaned_data["name"],
        created_by=request.user,
        expires_at=form.expires_at(now),
        actor=actor_of(request),
        now=now,
    )
    context = {"key": key, "secret": secret, "snippet_shell": connect.shell_settings(secret)}
    response = render(
        request, "frontend/key_created.html", context, partial="frontend/_key_created.html"
    )
    if is_partial(request):
        response.headers["HX-Trigger"] = '{"live-changed": {"topics": ["keys"]}}'
    return response


@require_POST
@team_page(nav="keys", needs="create_key")
def key_revoke(request: TeamRequest, key_id: str) -> HttpResponseBase:
    key = access_api_key(request.team, key_id)
    revoke_api_key(key=key, actor=actor_of(request), now=timezone.now())
    return done(
        request,
        f"Revoked {key.name}.",
        to=reverse("frontend:keys", args=[request.team.slug]),
        changed="keys",
    )
