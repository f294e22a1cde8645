"""Which user a call is for, and what is said when there is none."""

from __future__ import annotations

from nodeagent.errors import Unauthenticated
from nodeagent.sandbox import LiveSandbox


def default_user(sandbox: LiveSandbox) -> str:
    """Raises: Unauthenticated when the template names none."""
    if not sandbox.spec.default_user:
        raise Unauthenticated("no user specified")
    return sandbox.spec.default_user


def user_error(asked: str | None, used: str) -> Unauthenticated:
    """For RPC; /files has its own words."""
    kind = "username" if asked else "default user"
    return Unauthenticated(f"invalid {kind}: '{used}'")
