"""Checks of create options that depend on the team, or that refuse what this server lacks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.utils import timezone

from accounts.models import Team
from config.errors import InvalidArgument
from sandboxes import limits


def checked_timeout(team: Team, timeout_seconds: int) -> int:
    """Raises: InvalidArgument."""
    if timeout_seconds <= 0:
        raise InvalidArgument("Timeout must be greater than 0")
    limits.check_length(limits.limits_for(team, now=timezone.now()), timeout_seconds)
    return timeout_seconds


def check_iam(iam: Any) -> None:
    """Workload identity is not offered. Raises: InvalidArgument when tokens are asked for."""
    if iam is None or not iam.tokens:
        return
    if len(iam.tokens) > 5:
        raise InvalidArgument(f"iam.tokens: too many tokens: {len(iam.tokens)} (max 5)")
    if any(not name for name in iam.tokens):
        raise InvalidArgument("iam.tokens: token name must not be empty")
    raise InvalidArgument("Sandbox IAM workload tokens are not available for your team.")


def check_volume_mounts(mounts: Sequence[Any] | None) -> None:
    """Volumes are not offered yet. Raises: InvalidArgument when one is asked for."""
    if mounts:
        raise InvalidArgument("Volume mounts are not enabled.")
