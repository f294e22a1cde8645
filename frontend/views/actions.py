"""What a person does to sandboxes from a page. Each is the verb the API uses."""

from __future__ import annotations

from collections.abc import Callable

from django.http import HttpResponseBase
from django.urls import reverse
from django.utils import timezone
from django.views.decorators.http import require_POST

from config.errors import AppError, Conflict, InvalidArgument
from frontend.pages import TeamRequest, done, team_page
from sandboxes.access import access_any_sandbox, access_sandbox
from sandboxes.lifecycle import State
from sandboxes.models import Sandbox
from sandboxes.services import (
    CreateOptions,
    create_sandbox,
    kill_sandbox,
    pause_sandbox,
    resume_sandbox,
    set_timeout,
)
from sandboxes.services.snapshots import snapshot_sandbox
from templates_app.access import resolve_for_start

MAX_MINUTES = 24 * 60
MAX_AT_ONCE = 100
RESUME_SECONDS = 15 * 60


def minutes_of(request: TeamRequest) -> int:
    """Raises: InvalidArgument."""
    raw = request.POST.get("minutes", "")
    if not raw.isdecimal() or not 1 <= int(raw[:9]) <= MAX_MINUTES:
        raise InvalidArgument(f"Minutes must be a whole number from 1 to {MAX_MINUTES}.")
    return int(raw)


def list_url(request: TeamRequest) -> str:
    return reverse("frontend:sandboxes", args=[request.team.slug])


def sandbox_url(request: TeamRequest, sandbox: Sandbox) -> str:
    return reverse("frontend:sandbox", args=[request.team.slug, sandbox.public_id])


@require_POST
@team_page(nav="sandboxes", needs="create_sandbox")
def create(request: TeamRequest) -> HttpResponseBase:
    minutes = minutes_of(request)
    resolved = resolve_for_start(request.team, request.POST.get("template", ""))
    sandbox = create_sandbox(
        team=request.team,
        resolved=resolved,
        options=CreateOptions(timeout_seconds=minutes * 60),
        now=timezone.now(),
        user=request.user,
    )
    return done(
        request,
        f"Started {sandbox.public_id}.",
        to=sandbox_url(request, sandbox),
        changed="sandboxes",
    )


@require_POST
@team_page(nav="sandboxes", needs="change_sandboxes")
def kill(request: TeamRequest, sandbox_id: str) -> HttpResponseBase:
    """Killing one that is gone already is no error: the person wanted it gone."""
    sandbox = access_any_sandbox(request.team, sandbox_id)
    _kill(sandbox)
    return done(request, f"Killed {sandbox.public_id}.", to=list_url(request), changed="sandboxes")


@require_POST
@team_page(nav="sandboxes", needs="change_sandboxes")
def pause(request: TeamRequest, sandbox_id: str) -> HttpResponseBase:
    sandbox = access_sandbox(request.team, sandbox_id)
    _pause(sandbox)
    return done(
        request,
        f"Paused {sandbox.public_id}.",
        to=sandbox_url(request, sandbox),
        changed="sandboxes",
    )


@require_POST
@team_page(nav="sandboxes", needs="change_sandboxes")
def resume(request: TeamRequest, sandbox_id: str) -> HttpResponseBase:
    sandbox = access_sandbox(request.team, sandbox_id)
    resume_sandbox(sandbox=sandbox, timeout_seconds=RESUME_SECONDS, now=timezone.now())
    return done(
        request,
        f"Resumed {sandbox.public_id} for {RESUME_SECONDS // 60} min.",
        to=sandbox_url(request, sandbox),
        changed="sandboxes",
    )


@require_POST
@team_page(nav="sandboxes", needs="change_sandboxes")
def snapshot(request: TeamRequest, sandbox_id: str) -> HttpResponseBase:
    """Keep its files as an image that new sandboxes start from. It goes on meanwhile."""
    sandbox = access_sandbox(request.team, sandbox_id)
    name = request.POST.get("name", "").strip() or None
    template, _, _ = snapshot_sandbox(
        sandbox=sandbox, name=name, now=timezone.now(), user=request.user
    )
    return done(
        request,
        f"Saved as {name or template.public_id}.",
        to=sandbox_url(request, sandbox),
        changed="sandboxes",
    )


@require_POST
@team_page(nav="sandboxes", needs="change_sandboxes")
def change_timeout(request: TeamRequest, sandbox_id: str) -> HttpResponseBase:
    minutes = minutes_of(request)
    sandbox = access_sandbox(request.team, sandbox_id)
    set_timeout(sandbox=sandbox, timeout_seconds=minutes * 60, now=timezone.now())
    return done(
        request,
        f"The time limit is {minutes} min from now.",
        to=sandbox_url(request, sandbox),
        changed="sandboxes",
    )


@require_POST
@team_page(nav="sandboxes", needs="change_sandboxes")
def change_many(request: TeamRequest) -> HttpResponseBase:
    """Kill or pause the chosen ones; one that refuses does not keep the others back."""
    verbs: dict[str, tuple[str, Callable[[Sandbox], None]]] = {
        "kill": ("Killed", _kill),
        "pause": ("Paused", _pause),
    }
    chosen = list(dict.fromkeys(request.POST.getlist("sandbox")))
    word, verb = verbs.get(request.POST.get("verb", ""), ("", _kill))
    if not word:
        raise InvalidArgument("Choose what to do with them.")
    if not 1 <= len(chosen) <= MAX_AT_ONCE:
        raise InvalidArgument(f"Choose 1 to {MAX_AT_ONCE} sandboxes.")
    found = Sandbox.objects.filter(team=request.team, public_id__in=chosen)
    refusals = []
    count = 0
    for sandbox in found.select_related("node", "template"):
        sandbox.team = request.team
        try:
            verb(sandbox)
            count += 1
        except AppError as error:
            refusals.append(error.message)
    if refusals and not count:
        raise Conflict(refusals[0])
    message = f"{word} {count}."
    if refusals:
        message += f" {len(refusals)} refused: {refusals[0]}"
    return done(request, message, to=list_url(request), changed="sandboxes")


def _kill(sandbox: Sandbox) -> None:
    if sandbox.state != State.ENDED:
        kill_sandbox(sandbox=sandbox, now=timezone.now())


def _pause(sandbox: Sandbox) -> None:
    pause_sandbox(sandbox=sandbox, now=timezone.now(), keeps_memory=sandbox.auto_pause_memory)
