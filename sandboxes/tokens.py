"""The tokens of a sandbox: derived, so the same after every pause, and never stored."""

from __future__ import annotations

import hashlib
import hmac

from django.conf import settings

from sandboxes.models import Sandbox


def envd_access_token(sandbox: Sandbox) -> str | None:
    """What envd wants in X-Access-Token; None when the sandbox is not secured."""
    return _derive(sandbox.public_id) if sandbox.is_secure else None


def traffic_access_token(sandbox: Sandbox) -> str | None:
    """What the gateway wants for the user's ports; None while everyone may reach them."""
    if sandbox.allows_public_traffic:
        return None
    return _derive(f"sandbox-traffic-{sandbox.public_id}")


def _derive(text: str) -> str:
    secret = settings.SANDBOX_TOKEN_SECRET.encode()
    return hmac.new(secret, text.encode(), hashlib.sha256).hexdigest()
