"""The only way a request gets a sandbox: absent, foreign and ended ones answer alike."""

from __future__ import annotations

from datetime import datetime

from django.utils import timezone

from accounts.models import Team
from config import ids
from config.errors import InvalidArgument, NotFound
from sandboxes.models import Sandbox


def not_found(sandbox_id: str) -> NotFound:
    return NotFound(
        f"Sandbox \"{sandbox_id}\" doesn't exist or you don't have access to it",
        error_code="sandbox_not_found",
    )


def parse_id(raw: str) -> str:
    """Raises: InvalidArgument."""
    sandbox_id = ids.parse_sandbox_id(raw)
    if sandbox_id is None:
        raise InvalidArgument("Invalid sandbox ID")
    return sandbox_id


def access_sandbox(team: Team, sandbox_id: str, *, now: datetime | None = None) -> Sandbox:
    """A sandbox of the team that is running, paused, or on its way between the two.

    Raises: InvalidArgument for what cannot be an id, NotFound.
    """
    parsed = parse_id(sandbox_id)
    sandbox = (
        Sandbox.objects.present(now or timezone.now())
        .select_related("template", "node")
        .filter(team=team, public_id=parsed)
        .first()
    )
    if sandbox is None:
        raise not_found(parsed)
    sandbox.team = team
    return sandbox


def access_any_sandbox(team: Team, sandbox_id: str) -> Sandbox:
    """Also one that starts or has ended: for its history. Raises: InvalidArgument, NotFound."""
    parsed = parse_id(sandbox_id)
    sandbox = (
        Sandbox.objects.select_related("template", "node")
        .filter(team=team, public_id=parsed)
        .first()
    )
    if sandbox is None:
        raise not_found(parsed)
    sandbox.team = team
    return sandbox
