"""The team itself: its members, and what they did."""

from __future__ import annotations

import csv
import io
import json
import logging
from datetime import datetime, time, timedelta
from typing import Any, cast

from django.conf import settings
from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.core.mail import send_mail
from django.core.paginator import Paginator
from django.db.models import Case, IntegerField, Q, QuerySet, Value, When
from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.shortcuts import redirect
from django.template.loader import render_to_string
from django.urls import reverse
from django.utils import timezone
from django.utils.dateparse import parse_date
from django.views.decorators.debug import sensitive_variables
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from accounts.members import (
    INVITATION_DAYS,
    accept_invitation,
    change_role,
    find_invitation,
    found_team,
    invite,
    manageable_roles,
    remove_member,
    rename_team,
    withdraw_invitation,
)
from accounts.models import AuditEvent, Invitation, Membership, Role, Team, User
from accounts.services import Actor
from config.errors import AppError, NotFound
from config.ids import parse_uuid
from frontend.forms import InviteForm
from frontend.pages import TeamRequest, actor_of, refusal, render, team_page

logger = logging.getLogger(__name__)

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
    return _members(request)


def _members(
    request: TeamRequest, *, form: InviteForm | None = None, link: str = "", status: int = 200
) -> HttpResponse:
    roles = manageable_roles(request.membership.role)
    context = {
        "members": members_of(request.team)[:500],
        "invitations": (
            request.team.invitations.filter(expires_at__gt=timezone.now()).order_by("-created_at")
            if request.can["manage_members"]
            else []
        ),
        "roles": [(role.value, role.label) for role in ROLE_ORDER if role in roles],
        "manageable": roles,
        "form": form or InviteForm(roles=roles),
        "link": link,
    }
    return render(request, "frontend/members.html", context, status=status)


def access_member(team: Team, user_id: str) -> Membership:
    """Raises: NotFound."""
    parsed = parse_uuid(user_id)
    member = members_of(team).filter(user__public_id=parsed).first() if parsed else None
    if member is None:
        raise NotFound("There is no such member.")
    return member


def members_url(request: TeamRequest) -> str:
    return reverse("frontend:members", args=[request.team.slug])


@require_POST
@team_page(nav="members", needs="manage_members")
@sensitive_variables("secret", "link")
def member_invite(request: TeamRequest) -> HttpResponseBase:
    form = InviteForm(request.POST, roles=manageable_roles(request.membership.role))
    if not form.is_valid():
        return _members(request, form=form, status=422)
    invitation, secret = invite(
        team=request.team,
        email=form.cleaned_data["email"],
        role=form.cleaned_data["role"],
        by=request.membership,
        actor=actor_of(request),
        now=timezone.now(),
    )
    link = settings.PUBLIC_URL + reverse("frontend:invitation", args=[secret])
    try:
        send_invitation(invitation, link)
    except OSError:
        # Mail is not set up, or its server is away: the link still works by any other way.
        logger.warning("An invitation could not be mailed", exc_info=True)
        messages.warning(request, "The mail could not be sent. Pass the link on yourself.")
    else:
        messages.success(request, f"Invited {invitation.email}.")
    # Shown once, to the person who invites: without mail settings it is the only way.
    return _members(request, link=link)


def send_invitation(invitation: Invitation, link: str) -> None:
    context = {"invitation": invitation, "link": link, "days": INVITATION_DAYS}
    # A team's name goes into the subject: without line breaks, so that it adds no header.
    subject = " ".join(f"Join {invitation.team.name} on Sandlot".split())
    body = render_to_string("frontend/mail/invitation.txt", context)
    send_mail(subject, body, None, [invitation.email])


@require_POST
@team_page(nav="members", needs="manage_members")
def invitation_withdraw(request: TeamRequest, invitation_id: str) -> HttpResponseBase:
    parsed = parse_uuid(invitation_id)
    invitation = request.team.invitations.filter(public_id=parsed).first() if parsed else None
    if invitation is None:
        raise NotFound("There is no such invitation.")
    withdraw_invitation(invitation=invitation, by=request.membership, actor=actor_of(request))
    messages.success(request, f"Withdrew the invitation of {invitation.email}.")
    return redirect(members_url(request))


@require_POST
@team_page(nav="members", needs="manage_members")
def member_role(request: TeamRequest, user_id: str) -> HttpResponseBase:
    member = access_member(request.team, user_id)
    change_role(
        member=member,
        role=request.POST.get("role", ""),
        by=request.membership,
        actor=actor_of(request),
    )
    messages.success(request, f"{member.user.email} is {Role(member.role).label} now.")
    return redirect(members_url(request))


@require_POST
@team_page(nav="members")
def member_remove(request: TeamRequest, user_id: str) -> HttpResponseBase:
    """Anybody may leave; taking out others is for those who manage their role."""
    member = access_member(request.team, user_id)
    is_leaving = member.pk == request.membership.pk
    remove_member(member=member, by=request.membership, actor=actor_of(request))
    if is_leaving:
        messages.success(request, f"You left {request.team.name}.")
        return redirect("frontend:home")
    messages.success(request, f"Removed {member.user.email}.")
    return redirect(members_url(request))


@require_POST
@team_page(nav="members", needs="manage_team")
def team_rename(request: TeamRequest) -> HttpResponseBase:
    rename_team(team=request.team, name=request.POST.get("name", ""), actor=actor_of(request))
    messages.success(request, "Renamed the team.")
    return redirect(members_url(request))


@login_required
@require_http_methods(["GET", "POST"])
def invitation(request: HttpRequest, secret: str) -> HttpResponse:
    """Shows who invites to what; joining is a press of a button, never a mere look."""
    user = cast(User, request.user)
    try:
        found = find_invitation(secret=secret, user=user, now=timezone.now())
        if request.method == "POST":
            actor = Actor.of_user(user, ip_address=request.META.get("REMOTE_ADDR") or None)
            accept_invitation(invitation=found, user=user, actor=actor)
            messages.success(request, f"You joined {found.team.name}.")
            return redirect("frontend:team-home", team_slug=found.team.slug)
    except AppError as error:
        return refusal(request, error)
    return render(request, "frontend/invitation.html", {"invitation": found, "nav": ""})


@login_required
@require_POST
def team_create(request: HttpRequest) -> HttpResponse:
    try:
        team = found_team(name=request.POST.get("name", ""), owner=cast(User, request.user))
    except AppError as error:
        return refusal(request, error)
    messages.success(request, f"Created {team.name}.")
    return redirect("frontend:team-home", team_slug=team.slug)


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
