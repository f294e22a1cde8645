"""How many sandboxes a team may start, how long, how fast: the plan's limits, asked of billing."""

from __future__ import annotations

from datetime import datetime

from django.conf import settings
from django.core.cache import cache
from django.db import connection

from accounts.models import Team
from billing.services import accounts as billing_accounts
from billing.services import spend
from billing.services.accounts import Limits
from config.errors import InvalidArgument, QuotaExceeded
from sandboxes.models import Sandbox

NO_RETRY = {"Should-Retry": "false"}


def limits_for(team: Team, *, now: datetime) -> Limits:
    """The plan's limits, asked once for each `team` object, so once a request."""
    known: Limits | None = getattr(team, "_known_limits", None)
    if known is None:
        known = billing_accounts.limits_for(team.pk, now=now)
        team._known_limits = known  # type: ignore[attr-defined]
    return known


def check_length(limits: Limits, timeout_seconds: int) -> None:
    """Raises: InvalidArgument."""
    if timeout_seconds > limits.max_length_seconds:
        hours = limits.max_length_seconds / 3600
        raise InvalidArgument(f"Timeout cannot be greater than {hours:g} hours")


def take_place(team: Team, *, cpu_count: int, memory_mb: int, now: datetime) -> None:
    """Check that the team may run one more. Call it in the transaction that inserts or claims the
    row.

    Raises: QuotaExceeded, and what billing raises for a team that must pay first.
    """
    lock_team(team)
    try:
        spend.may_start(
            team.pk,
            milli_vcpu=cpu_count * 1000,
            memory_mib=memory_mb,
            now=now,
            concurrent=Sandbox.objects.filter(team=team).active().count(),
        )
    except QuotaExceeded as error:
        error.headers = {**NO_RETRY, **error.headers}
        raise


def lock_team(team: Team) -> None:
    """Count and insert as one step. SQLite needs nothing: its transactions begin with the write
    lock.
    """
    if connection.features.has_select_for_update:
        Team.objects.select_for_update().only("pk").get(pk=team.pk)


def check_create_rate(team: Team, limits: Limits, *, now: datetime) -> None:
    """A window of one second per team, shared by the processes that share a cache.

    It fails open: a cache that is away stops nobody. Raises: QuotaExceeded.
    """
    allowed = limits.creates_per_second
    if not settings.CREATE_RATE_LIMIT or allowed <= 0:
        return
    key = f"creates:{team.pk}:{int(now.timestamp())}"
    try:
        cache.add(key, 0, timeout=5)
        count = cache.incr(key)
    except Exception:
        return
    if count > allowed:
        raise QuotaExceeded(
            "Rate limit exceeded",
            headers={
                "Retry-After": "1",
                "RateLimit-Limit": str(allowed),
                "RateLimit-Remaining": "0",
                "RateLimit-Reset": "1",
            },
        )
