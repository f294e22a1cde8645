"""Recording what happened to a sandbox: the row, its meter and the pages' hint, all or nothing.

Every path ends here: an API call that got its node's answer, a node's event, a node's list, and the
loops that find what none of them told. Each function is safe to call again and says whether it
moved the row.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from typing import Any

from django.db import transaction

from billing.services import usage
from config.errors import Conflict
from sandboxes import live
from sandboxes.lifecycle import ALLOWED, EndReason, State
from sandboxes.models import Sandbox, SandboxEvent

logger = logging.getLogger(__name__)


def instant(seconds: float) -> datetime:
    """A node's instant as ours, to the microsecond."""
    return datetime.fromtimestamp(seconds, UTC)


def seconds_of(at: datetime) -> float:
    return at.timestamp()


def transition(sandbox: Sandbox, *, to: State, now: datetime, **changes: Any) -> None:
    """Claim: move a sandbox to `to`, which nobody else can do at the same time.

    Raises: Conflict when the move is not allowed, or another request moved it first.
    """
    if not _move(sandbox, frozenset({State(sandbox.state)}), to=to, now=now, **changes):
        raise Conflict(f"Sandbox '{sandbox.public_id}' cannot become {State(to).label.lower()} now")


def _move(
    sandbox: Sandbox,
    sources: frozenset[State],
    *,
    to: State,
    now: datetime,
    of_same_run: bool = False,
    **changes: Any,
) -> bool:
    """The conditional update that is the lock.

    of_same_run: only if the row was neither paused nor started again since `sandbox` was read, so
    that news of an earlier run cannot change a later one.
    """
    allowed = [state for state in sources if to in ALLOWED[state]]
    row = Sandbox.objects.filter(pk=sandbox.pk, state__in=allowed)
    if of_same_run:
        row = row.filter(started_at=sandbox.started_at, paused_at=sandbox.paused_at)
    values = {"state": to, "state_changed_at": now, **changes}
    if not allowed or not row.update(**values):
        return False
    for name, value in values.items():
        setattr(sandbox, name, value)
    live.publish(sandbox.team_id)
    return True


def became_running(
    sandbox: Sandbox,
    *,
    started_at: datetime,
    end_at: datetime,
    now: datetime,
    was_warm: bool | None = None,
    sources: frozenset[State] = frozenset({State.STARTING, State.RESUMING, State.PAUSED}),
) -> bool:
    """It answers on its node: charge from here."""
    was_starting = sandbox.started_at is None
    changes: dict[str, Any] = {
        "started_at": started_at,
        "end_at": end_at,
        "paused_at": None,
    }
    if was_starting and was_warm is not None:
        changes["was_warm"] = was_warm
    with transaction.atomic():
        if not _move(sandbox, sources, to=State.RUNNING, now=now, of_same_run=True, **changes):
            return False
        node_id = sandbox.node.node_id if sandbox.node else ""
        if was_starting:
            usage.open_usage(
                team_id=sandbox.team_id,
                sandbox_id=sandbox.public_id,
                milli_vcpu=sandbox.cpu_count * 1000,
                memory_mib=sandbox.memory_mb,
                disk_mib=sandbox.disk_size_mb,
                template_id=sandbox.template.public_id,
                api_key_id=str(sandbox.created_by_key_id or ""),
                node_id=node_id,
                labels=sandbox.metadata,
                now=now,  # not `started_at`: a node whose clock is behind would charge the past
            )
        else:
            usage.resume_usage(sandbox_id=sandbox.public_id, now=now, node_id=node_id)
    return True


def became_paused(
    sandbox: Sandbox, *, paused_at: datetime, keeps_memory: bool, now: datetime
) -> bool:
    """It holds still on its node: vCPU and memory cost nothing from here."""
    sources = frozenset({State.RUNNING, State.SNAPSHOTTING, State.PAUSING, State.RESUMING})
    with transaction.atomic():
        moved = _move(
            sandbox,
            sources,
            to=State.PAUSED,
            now=now,
            of_same_run=True,
            paused_at=paused_at,
            end_at=paused_at,
            keeps_memory=keeps_memory,
        )
        if moved:
            ran_for = _ran_for(sandbox, until=paused_at)
            usage.pause_usage(sandbox_id=sandbox.public_id, now=now, ran_for=ran_for)
    return moved


def _ran_for(sandbox: Sandbox, *, until: datetime) -> timedelta | None:
    """How long the present run lasted; both instants are its node's, so its clock's offset
    cancels out.
    """
    if sandbox.started_at is None or until < sandbox.started_at:
        return None
    return until - sandbox.started_at


def became_ended(
    sandbox: Sandbox,
    *,
    reason: EndReason,
    now: datetime,
    ended_at: datetime | None = None,
    detail: str = "",
    ran_for: timedelta | None = None,
) -> bool:
    """It is gone. The first reason told is kept."""
    sources = frozenset(State) - {State.ENDED}
    was_started = sandbox.started_at is not None
    with transaction.atomic():
        moved = _move(
            sandbox,
            sources,
            to=State.ENDED,
            now=now,
            ended_at=min(ended_at or now, now),
            end_reason=reason,
            end_detail=detail[:500],
        )
        if moved and was_started:
            if reason is EndReason.NODE_LOST:
                usage.lose_usage(sandbox_ids=[sandbox.public_id], now=now)
            else:
                usage.close_usage(
                    sandbox_id=sandbox.public_id,
                    reason=str(reason),
                    now=now,
                    at=ended_at,
                    ran_for=ran_for,
                )
    return moved


def kill_accepted(sandbox: Sandbox, *, now: datetime, reason: EndReason) -> bool:
    """From here on nobody sees it and nobody pays for it, whatever its node says."""
    sources = frozenset(State) - {State.ENDED, State.KILLING}
    was_started = sandbox.started_at is not None
    with transaction.atomic():
        moved = _move(sandbox, sources, to=State.KILLING, now=now, end_reason=reason)
        if moved and was_started:
            usage.close_usage(sandbox_id=sandbox.public_id, reason=str(reason), now=now)
    return moved


def add_event(
    sandbox: Sandbox,
    *,
    kind: str,
    at: datetime,
    message: str,
    level: str = "info",
    data: dict[str, object] | None = None,
) -> None:
    """Something the control plane itself has to tell of a sandbox."""
    SandboxEvent.objects.create(
        sandbox=sandbox, kind=kind, at=at, message=message, level=level, data=data or {}
    )
