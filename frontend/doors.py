"""From a sandbox's row to the door its pages go through."""

from __future__ import annotations

from datetime import datetime
from urllib.parse import urlsplit

from django.conf import settings

from config.errors import Conflict, Unavailable
from frontend.envd import Door
from sandboxes.lifecycle import RUNNING_STATES
from sandboxes.models import Sandbox
from sandboxes.tokens import envd_access_token


def door_of(sandbox: Sandbox, *, now: datetime) -> Door:
    """Raises: Conflict when it does not run, Unavailable when its node has no address."""
    if sandbox.state not in RUNNING_STATES:
        raise Conflict(f"The sandbox is {sandbox.state}, not running.")
    if sandbox.node is None or not sandbox.node.gateway_url:
        raise Unavailable("The sandbox's node has not told its address yet.")
    return Door(
        gateway_url=sandbox.node.gateway_url,
        sandbox_id=sandbox.public_id,
        access_token=envd_access_token(sandbox) if sandbox.is_secure else None,
    )


def port_url(sandbox: Sandbox, port: int) -> str:
    """Where a browser reaches a port of the sandbox."""
    public = urlsplit(settings.SANDBOX_URL)
    domain = settings.SANDBOX_DOMAIN or settings.DOMAIN
    suffix = f":{public.port}" if public.port else ""
    return f"{public.scheme}://{port}-{sandbox.public_id}.{domain}{suffix}/"
