"""Applying what a node reports: its events once each, its whole list against ours, both ways."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

from django.db import transaction
from django.db.models import Q

from billing.services import usage
from nodeagent import wire
from sandboxes import live, pools
from sandboxes.lifecycle import LISTED, RUNNING_STATES, EndReason, State
from sandboxes.models import Node, Sandbox, SandboxEvent, SandboxMetric
from sandboxes.settle import became_ended, became_paused, became_running, instant, seconds_of

logger = logging.getLogger(__name__)

# A list is made before it arrives, and a request may change a row meanwhile: only rows that have
# been still for so long are judged by their absence from it.
LIST_GRACE = timedelta(seconds=15)
# A move that its node is not at. Shorter: to judge one too early does no harm, see _is_forgotten.
MOVE_GRACE = timedelta(seconds=5)
# A create that its node does not know of: its request, or the agent that was at it, has died.
START_GRACE = timedelta(seconds=30)
# A create that the node finished so long ago and nobody settled: its request died with its process.
ORPHANED_START = timedelta(seconds=10)
NODE_WRITE_EVERY = timedelta(seconds=2)
DEADLINE_TOLERANCE_SECONDS = 0.001

MESSAGES = {
    wire.EventKind.STARTED: "Sandbox started",
    wire.EventKind.PAUSED: "Sandbox paused",
    wire.EventKind.RESUMED: "Sandbox resumed",
    wire.EventKind.ENDED: "Sandbox ended",
    wire.EventKind.DEADLINE: "Deadline changed",
}


def apply_heartbeat(heartbeat: wire.Heartbeat, *, now: datetime) -> wire.HeartbeatReply:
    """Everything a heartbeat says, and the answer. The same heartbeat again changes nothing."""
    status = heartbeat.node
    node = register_node(status, now=now)
    sandboxes = _sandboxes_named(heartbeat)
    acked_seq = apply_events(node, heartbeat.events, sandboxes, now=now)
    kill, deadlines = reconcile_list(node, heartbeat.sandboxes, sandboxes, now=now)
    store_metrics(heartbeat.metrics, sandboxes)
    return wire.HeartbeatReply(
        acked_seq=acked_seq,
        pools=pools.wanted_pools(node.node_id, now=now),
        kill=kill,
        deadlines=deadlines,
    )


def register_node(status: wire.NodeStatus, *, now: datetime) -> Node:
    """The node's row, created at its first heartbeat, written only when it says something new."""
    node, is_new = Node.objects.get_or_create(
        node_id=status.node_id,
        defaults={**_facts(status), "last_heartbeat_at": now, "status_changed_at": now},
    )
    if is_new:
        logger.info("A node registered itself.", extra={"node_id": node.node_id})
        return node
    was_lost = node.is_lost
    facts = _facts(status)
    is_stale = node.last_heartbeat_at is None or now - node.last_heartbeat_at >= NODE_WRITE_EVERY
    is_changed = any(
        getattr(node, name) != value for name, value in facts.items() if name in _TELLING
    )
    if is_stale or is_changed or was_lost:
        changes: dict[str, Any] = {**facts, "last_heartbeat_at": now, "is_lost": False}
        if was_lost or node.is_draining != status.draining:
            changes["status_changed_at"] = now
        Node.objects.filter(pk=node.pk).update(**changes)
        for name, value in changes.items():
            setattr(node, name, value)
    return node


def note_other_version(node_id: str, api_version: int, *, now: datetime) -> None:
    """It lives, though we do not understand it: no new sandboxes go there until one is updated."""
    Node.objects.filter(node_id=node_id).update(
        api_version=min(max(api_version, 0), 32_767), last_heartbeat_at=now
    )


# Facts that are worth a write at once; the others (free memory and disk) drift all the time.
_TELLING = frozenset(
    {"api_url", "gateway_url", "version", "api_version", "agent_started_at", "is_draining", "warm"}
)


def _facts(status: wire.NodeStatus) -> dict[str, Any]:
    return {
        "api_url": status.api_url,
        "gateway_url": status.gateway_url,
        "version": status.version[:64],
        "api_version": status.api_version,
        "agent_started_at": instant(status.started_at),
        "is_draining": status.draining,
        "cpu_count": status.cpu_count,
        "memory_mb": status.memory_mb,
        "memory_available_mb": status.memory_available_mb,
        "disk_total_mb": status.disk_total_mb,
        "disk_available_mb": status.disk_available_mb,
        "max_sandboxes": status.max_sandboxes,
        "docker_version": status.docker_version[:64],
        "storage_driver": status.storage_driver[:64],
        "cgroup_version": status.cgroup_version,
        "warm": status.warm,
    }


def _sandboxes_named(heartbeat: wire.Heartbeat) -> dict[str, Sandbox]:
    names = {state.sandbox_id for state in heartbeat.sandboxes}
    names |= {event.sandbox_id for event in heartbeat.events}
    names |= {sample.sandbox_id for sample in heartbeat.metrics}
    found: dict[str, Sandbox] = {}
    for chunk in _chunks(sorted(names), 500):
        rows = Sandbox.objects.select_related("node", "template").filter(public_id__in=chunk)
        found |= {row.public_id: row for row in rows}
    return found


def _chunks(items: list[Any], size: int) -> Iterable[list[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


# --- Events ----------------------------------------------------------------------------------


def apply_events(
    node: Node, events: list[wire.NodeEvent], sandboxes: dict[str, Sandbox], *, now: datetime
) -> int:
    """Apply those not seen before, in order. Returns the number up to which all are safe."""
    fresh = sorted(
        (event for event in events if event.seq > node.last_event_seq), key=lambda event: event.seq
    )
    if not fresh:
        return node.last_event_seq
    rows = []
    with transaction.atomic():
        for event in fresh:
            sandbox = sandboxes.get(event.sandbox_id)
            if sandbox is None:
                continue
            if sandbox.node_id == node.pk:
                _apply_event(sandbox, event, now=now)
            rows.append(_event_row(node, sandbox, event))
        SandboxEvent.objects.bulk_create(rows, ignore_conflicts=True)
        last_seq = fresh[-1].seq
        # Two heartbeats of one node at once: the later number stands.
        Node.objects.filter(pk=node.pk, last_event_seq__lt=last_seq).update(last_event_seq=last_seq)
    node.last_event_seq = last_seq
    for team_id in {row.sandbox.team_id for row in rows}:
        live.publish(team_id, topics=("events",))
    return last_seq


def _apply_event(sandbox: Sandbox, event: wire.NodeEvent, *, now: datetime) -> None:
    """Ends are final; of pauses and resumes those count that are later than what the row knows.

    The node's list would tell of most of them too, but not of a pause that traffic has woken
    already when the list is made.
    """
    match event.kind:
        case wire.EventKind.PAUSED:
            _take_pause(
                sandbox,
                paused_at=instant(event.at),
                keeps_memory=event.data.get("memory") is not False,
                now=now,
            )
        case wire.EventKind.RESUMED:
            end_at = event.data.get("end_at")
            if isinstance(end_at, int | float):
                _take_resume(sandbox, started_at=instant(event.at), end_at=instant(end_at), now=now)
        case wire.EventKind.ENDED:
            _take_end(sandbox, event, now=now)


def _take_pause(
    sandbox: Sandbox, *, paused_at: datetime, keeps_memory: bool, now: datetime
) -> bool:
    """False for one that a later start has undone, or that the row knows already."""
    is_news = (
        sandbox.started_at is not None
        and paused_at > sandbox.started_at
        and sandbox.state in RUNNING_STATES | {State.PAUSING}
    )
    return is_news and became_paused(
        sandbox, paused_at=paused_at, keeps_memory=keeps_memory, now=now
    )


def _take_resume(
    sandbox: Sandbox, *, started_at: datetime, end_at: datetime, now: datetime
) -> bool:
    """False for one that a later pause has undone, or that the row knows already."""
    is_news = (
        sandbox.state in {State.PAUSED, State.RESUMING}
        and sandbox.paused_at is not None
        and started_at > sandbox.paused_at
    )
    return is_news and became_running(sandbox, started_at=started_at, end_at=end_at, now=now)


def _take_end(sandbox: Sandbox, event: wire.NodeEvent, *, now: datetime) -> None:
    try:
        reason = EndReason(str(event.data.get("reason")))
    except ValueError:
        reason = EndReason.EXITED
    if sandbox.state == State.KILLING and sandbox.end_reason:
        reason = EndReason(sandbox.end_reason)
    ended_at = instant(event.at)
    ran_for = None
    if sandbox.state in RUNNING_STATES and sandbox.started_at is not None:
        ran_for = max(ended_at - sandbox.started_at, timedelta(0))
    became_ended(
        sandbox,
        reason=reason,
        detail=str(event.data.get("detail") or ""),
        ended_at=ended_at,
        ran_for=ran_for,
        now=now,
    )


def _event_row(node: Node, sandbox: Sandbox, event: wire.NodeEvent) -> SandboxEvent:
    data = event.data
    is_log = event.kind is wire.EventKind.LOG
    level = str(data.get("level") or "info") if is_log else "info"
    message = str(data.get("message") or "") if is_log else MESSAGES.get(event.kind, event.kind)
    if event.kind is wire.EventKind.ENDED:
        message = f"Sandbox ended: {data.get('reason', '')}"
    return SandboxEvent(
        sandbox=sandbox,
        node=node,
        seq=event.seq,
        at=instant(event.at),
        kind=event.kind.value,
        level=level if level in {"debug", "info", "warn", "error"} else "info",
        message=message[:8000].replace("\x00", "\ufffd"),
        data=_without_nulls(data.get("fields") or {}) if is_log else data,
    )


def _without_nulls(data: Any) -> dict[str, str]:
    """PostgreSQL keeps no NUL in text or JSON; a sandbox may log one."""
    if not isinstance(data, dict):
        return {}
    return {
        str(key).replace("\x00", "\ufffd"): str(value).replace("\x00", "\ufffd")
        for key, value in data.items()
    }


# --- The list --------------------------------------------------------------------------------


def reconcile_list(
    node: Node, states: list[wire.SandboxState], sandboxes: dict[str, Sandbox], *, now: datetime
) -> tuple[list[str], dict[str, float]]:
    """Bring our rows to what the node says it runs. Returns what it must kill, and deadlines to
    correct.

    A list says what was so when it was made. Instants decide, so that an old list cannot undo what
    a request did meanwhile: a pause counts when it is later than the start we know, and the other
    way round.
    """
    kill: list[str] = []
    deadlines: dict[str, float] = {}
    alive: list[str] = []
    for state in states:
        sandbox = sandboxes.get(state.sandbox_id)
        if sandbox is None or sandbox.node_id != node.pk:
            kill.append(state.sandbox_id)
            continue
        if sandbox.state in {State.ENDED, State.KILLING}:
            # A kill under way gets there by itself; one that is old lost its request.
            if sandbox.state == State.ENDED or now - sandbox.state_changed_at > LIST_GRACE:
                kill.append(state.sandbox_id)
            continue
        _reconcile_one(sandbox, state, now=now)
        if state.state is wire.NodeSandboxState.RUNNING:
            alive.append(sandbox.public_id)
            wanted = _wanted_deadline(sandbox, state)
            if wanted is not None:
                deadlines[sandbox.public_id] = wanted
    _end_missing(node, {state.sandbox_id for state in states}, now=now)
    if alive:
        usage.confirm_usage(sandbox_ids=alive, now=now)
    return kill, deadlines


def _reconcile_one(sandbox: Sandbox, state: wire.SandboxState, *, now: datetime) -> None:
    match state.state:
        case wire.NodeSandboxState.RUNNING:
            started_at = instant(state.started_at)
            row_state = State(sandbox.state)
            is_orphan = row_state is State.STARTING and now - started_at > ORPHANED_START
            is_unseen = (
                row_state in RUNNING_STATES
                and sandbox.started_at is not None
                and started_at > sandbox.started_at
            )
            if is_unseen:
                # It was paused and woken, and the events that told of it are lost.
                paused_at = min(
                    sandbox.end_at or started_at, started_at - timedelta(microseconds=1)
                )
                _take_pause(sandbox, paused_at=paused_at, keeps_memory=True, now=now)
            # A pause or snapshot whose request died, and which the node never began or gave up.
            is_stuck = row_state in {State.PAUSING, State.SNAPSHOTTING} and _is_forgotten(
                sandbox, state, now=now
            )
            end_at = instant(state.end_at)
            if is_orphan:
                became_running(sandbox, started_at=started_at, end_at=end_at, now=now)
            elif _take_resume(sandbox, started_at=started_at, end_at=end_at, now=now):
                return
            elif is_stuck:
                Sandbox.objects.filter(pk=sandbox.pk, state=row_state).update(
                    state=State.RUNNING, state_changed_at=now
                )
                live.publish(sandbox.team_id)
        case wire.NodeSandboxState.PAUSED:
            paused_at = instant(state.paused_at) if state.paused_at is not None else now
            is_failed_resume = sandbox.state == State.RESUMING and _is_forgotten(
                sandbox, state, now=now
            )
            if _take_pause(sandbox, paused_at=paused_at, keeps_memory=state.memory, now=now):
                return
            if is_failed_resume:
                became_paused(sandbox, paused_at=paused_at, keeps_memory=state.memory, now=now)
            elif sandbox.state == State.PAUSED and sandbox.keeps_memory and not state.memory:
                # The node had to give the memory up, for instance when its machine restarted.
                Sandbox.objects.filter(pk=sandbox.pk, state=State.PAUSED).update(keeps_memory=False)
        case wire.NodeSandboxState.STARTING:
            return


def _is_forgotten(sandbox: Sandbox, state: wire.SandboxState, *, now: datetime) -> bool:
    """True for a move that the node is not at, nor will be: its request, or the agent that was at
    it, has died. Should the request live after all, it settles the row as if nothing had been.
    """
    if state.is_moving:
        return False
    node = sandbox.node
    has_new_agent = (
        node is not None
        and node.agent_started_at is not None
        and sandbox.state_changed_at < node.agent_started_at
    )
    return has_new_agent or now - sandbox.state_changed_at > MOVE_GRACE


def _wanted_deadline(sandbox: Sandbox, state: wire.SandboxState) -> float | None:
    if sandbox.state not in RUNNING_STATES or sandbox.end_at is None:
        return None
    if sandbox.started_at != instant(state.started_at):
        return None  # the list speaks of another run
    wanted = seconds_of(sandbox.end_at)
    return wanted if abs(wanted - state.end_at) > DEADLINE_TOLERANCE_SECONDS else None


def _end_missing(node: Node, listed: set[str], *, now: datetime) -> None:
    """Rows this node should have and does not name: it told no end, yet they are gone."""
    quiet = Sandbox.objects.filter(
        Q(state__in=[*LISTED, State.KILLING], state_changed_at__lt=now - LIST_GRACE)
        | Q(state=State.STARTING, state_changed_at__lt=now - START_GRACE),
        node=node,
    ).select_related("node", "template")
    for sandbox in quiet:
        if sandbox.public_id in listed:
            continue
        if sandbox.state == State.STARTING:
            became_ended(
                sandbox,
                reason=EndReason.START_FAILED,
                detail="the request that created it was interrupted",
                now=now,
            )
        elif sandbox.state == State.KILLING:
            became_ended(sandbox, reason=EndReason(sandbox.end_reason or EndReason.KILLED), now=now)
        else:
            became_ended(
                sandbox, reason=EndReason.EXITED, detail="its node no longer has it", now=now
            )


# --- Metrics ---------------------------------------------------------------------------------


def store_metrics(samples: list[wire.MetricSample], sandboxes: dict[str, Sandbox]) -> None:
    rows = [
        SandboxMetric(
            sandbox=sandboxes[sample.sandbox_id],
            at=instant(sample.at),
            cpu_count=sample.cpu_count,
            cpu_used_pct=sample.cpu_used_pct,
            mem_used=sample.mem_used,
            mem_total=sample.mem_total,
            mem_cache=sample.mem_cache,
            disk_used=sample.disk_used,
            disk_total=sample.disk_total,
        )
        for sample in samples
        if sample.sandbox_id in sandboxes
    ]
    if rows:
        SandboxMetric.objects.bulk_create(rows, ignore_conflicts=True)
        for team_id in {row.sandbox.team_id for row in rows}:
            live.publish(team_id, topics=("metrics",))
