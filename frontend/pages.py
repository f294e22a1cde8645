"""What every page of a team shares: who looks, what they may do, and what the sidebar shows.

To add a page: 1 a view under `views/`, decorated with `@team_page(...)`, that ends in `render`;
2 a line in `urls.py`; 3 a template that extends `frontend/shell.html` and fills `page`; 4 a row in
`NAVIGATION` when it belongs in the sidebar. The decorator answers 404 to people outside the team
and 403 to roles below the page's, so a view only sees requests it may serve.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any, cast
from urllib.parse import quote

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseBase
from django.shortcuts import redirect
from django.shortcuts import render as django_render
from django.urls import reverse
from django.utils.functional import SimpleLazyObject

from accounts.models import Membership, Role, Team, User
from accounts.services import Actor
from config.errors import AppError, PermissionDenied

REFUSALS = {
    403: "You may not do that",
    404: "Not here",
    409: "It moved on",
    429: "A limit is reached",
    503: "Not answering right now",
}

# What each role may do from a page. Reading is everyone's.
PERMISSIONS: dict[str, frozenset[str]] = {
    Role.VIEWER: frozenset(),
    Role.DEVELOPER: frozenset(
        {"create_sandbox", "change_sandboxes", "open_terminal", "change_files", "create_key"}
    ),
}
PERMISSIONS[Role.ADMIN] = PERMISSIONS[Role.DEVELOPER] | {
    "change_templates",
    "manage_members",
    "see_audit_log",
    "manage_team",
}
PERMISSIONS[Role.OWNER] = PERMISSIONS[Role.ADMIN] | {"manage_owners", "manage_billing"}


class TeamRequest(HttpRequest):
    """A request to a page of a team, by one of its members."""

    user: User
    team: Team
    membership: Membership
    can: Can
    nav: str


class Can:
    """`can.create_key` in templates; unknown names are false."""

    def __init__(self, membership: Membership | None) -> None:
        self._names = PERMISSIONS[membership.role] if membership else frozenset()

    def __getattr__(self, name: str) -> bool:
        return name in self._names

    def __getitem__(self, name: str) -> bool:
        return name in self._names


@dataclass(frozen=True, kw_only=True)
class NavItem:
    key: str
    label: str
    icon: str
    shortcut: str = ""
    needs: str = ""  # a permission; others do not see the row
    operators_only: bool = False
    url: str = ""


NAVIGATION: tuple[tuple[str, tuple[NavItem, ...]], ...] = (
    (
        "",
        (
            NavItem(key="team-home", label="Home", icon="house", shortcut="h"),
            NavItem(key="sandboxes", label="Sandboxes", icon="box", shortcut="s"),
            NavItem(key="templates", label="Templates", icon="layers", shortcut="t"),
            NavItem(key="activity", label="Activity", icon="activity", shortcut="v"),
        ),
    ),
    (
        "Team",
        (
            NavItem(key="keys", label="API keys", icon="key-round", shortcut="k"),
            NavItem(key="members", label="Members", icon="users", shortcut="m"),
            NavItem(key="usage", label="Usage", icon="gauge", shortcut="u"),
            NavItem(key="billing", label="Billing", icon="receipt", shortcut="b"),
            NavItem(
                key="audit",
                label="Audit log",
                icon="history",
                shortcut="a",
                needs="see_audit_log",
            ),
        ),
    ),
    (
        "Operator",
        (
            NavItem(key="nodes", label="Nodes", icon="server", shortcut="n", operators_only=True),
            NavItem(
                key="books", label="Books", icon="book-open", shortcut="o", operators_only=True
            ),
        ),
    ),
)


def team_page(
    *, nav: str, needs: str = ""
) -> Callable[[Callable[..., HttpResponseBase]], Callable[..., HttpResponseBase]]:
    """Resolve `team_slug` to a team of the person who asks, and check the permission `needs`.

    Raises: Http404 for who is not a member, whether or not the team exists; PermissionDenied.
    """

    def decorate(view: Callable[..., HttpResponseBase]) -> Callable[..., HttpResponseBase]:
        @wraps(view)
        @login_required
        def wrapped(request: HttpRequest, team_slug: str, **kwargs: Any) -> HttpResponseBase:
            membership = membership_of(cast(User, request.user), team_slug)
            if membership is None:
                raise Http404("No such team.")
            page_request = cast(TeamRequest, request)
            page_request.membership = membership
            page_request.team = membership.team
            page_request.can = Can(membership)
            page_request.nav = nav
            try:
                if needs and not page_request.can[needs]:
                    raise PermissionDenied("Your role in this team does not allow that.")
                return view(page_request, **kwargs)
            except AppError as error:
                return refusal(page_request, error)

        return wrapped

    return decorate


def actor_of(request: TeamRequest) -> Actor:
    """Who asks, for the audit log."""
    return Actor.of_user(request.user, ip_address=request.META.get("REMOTE_ADDR") or None)


def refusal(request: HttpRequest, error: AppError) -> HttpResponse:
    """An anticipated failure, for whoever asked: a header for htmx to show, a page for people."""
    if is_partial(request):
        response = HttpResponse(status=error.http_status)
        response.headers["X-Error-Message"] = quote(error.message)
        return response
    context = {"title": REFUSALS.get(error.http_status, "That did not work"), "error": error}
    return render(request, "frontend/refusal.html", context, status=error.http_status)


def done(request: HttpRequest, message: str, *, to: str, changed: str = "") -> HttpResponse:
    """Answer an action: a toast and a hint of what `changed` for htmx, a redirect without it."""
    if is_partial(request):
        events: dict[str, Any] = {"toast": {"message": message, "level": "success"}}
        if changed:
            events["live-changed"] = {"topics": changed.split()}
        return HttpResponse(status=204, headers={"HX-Trigger": json.dumps(events)})
    messages.success(request, message)
    return redirect(to)


def membership_of(user: User, team_slug: str) -> Membership | None:
    return (
        Membership.objects.select_related("team")
        .filter(user=user, team__slug=team_slug, team__is_banned=False)
        .first()
    )


def default_team(user: User) -> Team | None:
    """Where a person lands: their default team, else the first they joined."""
    memberships = Membership.objects.filter(user=user, team__is_banned=False)
    first = memberships.select_related("team").order_by("-is_default", "pk").first()
    return first.team if first else None


def is_partial(request: HttpRequest) -> bool:
    """Asked by htmx for a part of the page, not by a person for all of it."""
    return "HX-Request" in request.headers and "HX-History-Restore-Request" not in request.headers


def render(
    request: HttpRequest,
    template: str,
    context: dict[str, Any] | None = None,
    *,
    partial: str = "",
    status: int = 200,
) -> HttpResponse:
    """The page, or for htmx its `partial` alone. Never cached: a page shows what is true now."""
    chosen = partial if partial and is_partial(request) else template
    response = django_render(request, chosen, context, status=status)
    response.headers["Cache-Control"] = "no-store"
    response.headers["Vary"] = "HX-Request, Cookie"
    return response


def shell(request: HttpRequest) -> dict[str, Any]:
    """Context processor: the sidebar's content. Lazy, since partials and mails need none of it."""
    user = getattr(request, "user", None)
    if user is None or not user.is_authenticated:
        return {}

    def team_or_none() -> Team | None:
        return getattr(request, "team", None) or default_team(user)

    team = SimpleLazyObject(team_or_none)
    return {
        "team": team,
        "can": getattr(request, "can", None) or Can(None),
        "nav": getattr(request, "nav", ""),
        "teams": SimpleLazyObject(
            lambda: list(Team.objects.filter(memberships__user=user).order_by("pk"))
        ),
        "navigation": SimpleLazyObject(lambda: _navigation(request, user, team)),
        "live_socket_path": SimpleLazyObject(lambda: f"/ws/teams/{team.slug}/live"),
    }


def _navigation(request: HttpRequest, user: User, team: Any) -> list[dict[str, Any]]:
    if not team:
        return []
    can = getattr(request, "can", None) or Can(membership_of(user, team.slug))
    groups = []
    for title, items in NAVIGATION:
        shown = [
            {
                "key": item.key,
                "label": item.label,
                "icon": item.icon,
                "shortcut": item.shortcut,
                "url": reverse(f"frontend:{item.key}", args=[team.slug]),
            }
            for item in items
            if (not item.needs or can[item.needs]) and (not item.operators_only or user.is_staff)
        ]
        if shown:
            groups.append({"title": title, "entries": shown})
    return groups
