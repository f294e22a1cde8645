"""Making true what no message made true: deadlines, lost nodes, requests that died half-way."""

from __future__ import annotations

import contextlib
import logging
from datetime import datetime, timedelta

from django.conf import settings
from django.db.models import Q

from nodeagent import errors as agent_errors
from nodeagent import wire
from sandboxes.lifecycle import TRANSITIONAL, EndReason, State
from sandboxes.models import IdempotencyRecord, Node, Sandbox, SandboxEvent, SandboxMetric
from sandboxes.nodes import directory
from sandboxes.settle import became_ended, became_paused, became_running, instant, kill_accepted
from templates_app.models import TemplateBuild

logger = logging.getLogger(__name__)

OVERDUE_GRACE = timedelta(seconds=3)  # the node acts within 100 ms; we act when it did not
STUCK_AFTER = timedelta(seconds=180)  # longer than any request to a node may take
KILL_STUCK_AFTER = timedelta(seconds=15)
IMAGE_GRACE = timedelta(minutes=10)  # a snapshot or fork may still be under way
BATCH = 200
DELETE_BATCH = 5000
IDEMPOTENCY_RETENTION = timedelta(hours=24)


def end_overdue(*, now: datetime) -> int:
    """Have sandboxes killed or paused whose node let the deadline pass. Returns how many."""
    overdue = (
        Sandbox.objects.overdue(now - OVERDUE_GRACE)
        .select_related("node", "template", "team")
        .order_by("end_at")[:BATCH]
    )
    count = 0
    for sandbox in overdue:
        node = sandbox.node
        if node is None or node.is_lost:
            continue  # its node's end will end it
        try:
            settle_from_node(sandbox, now=now)
            if sandbox.state not in {State.RUNNING, State.SNAPSHOTTING}:
                count += 1
                continue
            client = directory.client_of(node)
            if sandbox.on_timeout == Sandbox.OnTimeout.PAUSE:
                paused = client.pause(sandbox.public_id, memory=sandbox.auto_pause_memory)
                became_paused(
                    sandbox,
                    paused_at=instant(paused.paused_at),
                    keeps_memory=paused.memory,
                    now=now,
                )
            elif kill_accepted(sandbox, now=now, reason=EndReason.TIMEOUT):
                client.kill(sandbox.public_id, reason=wire.EndReason.TIMEOUT)
                became_ended(sandbox, reason=EndReason.TIMEOUT, now=now)
            count += 1
        except agent_errors.AgentError as error:
            logger.info(
                "A node did not end an overdue sandbox: %s",
                error,
                extra={"sandbox_id": sandbox.public_id, "node_id": node.node_id},
            )
    return count


def settle_stuck(*, now: datetime) -> int:
    """Settle rows between two states whose request died. Returns how many moved."""
    between = TRANSITIONAL - {State.KILLING}
    stuck = (
        Sandbox.objects.filter(
            Q(state__in=between, state_changed_at__lt=now - STUCK_AFTER)
            | Q(state=State.KILLING, state_changed_at__lt=now - KILL_STUCK_AFTER)
        )
        .select_related("node", "template")
        .order_by("state_changed_at")[:BATCH]
    )
    count = 0
    for sandbox in stuck:
        before = sandbox.state
        try:
            if sandbox.state == State.KILLING:
                _kill_again(sandbox, now=now)
            else:
                settle_from_node(sandbox, now=now)
        except agent_errors.AgentError as error:
            logger.info(
                "A node could not tell of a stuck sandbox: %s",
                error,
                extra={"sandbox_id": sandbox.public_id},
            )
        count += sandbox.state != before
    return count


def settle_from_node(sandbox: Sandbox, *, now: datetime) -> None:
    """Ask the node and record its answer. Raises: AgentError when it does not answer."""
    node = sandbox.node
    if node is None or node.is_lost:
        if sandbox.state == State.STARTING:
            became_ended(sandbox, reason=EndReason.START_FAILED, detail="its node is lost", now=now)
        return
    try:
        state = directory.client_of(node).get_sandbox(sandbox.public_id)
    except agent_errors.NotFound:
        _gone(sandbox, now=now)
        return
    if state.state is wire.NodeSandboxState.PAUSED:
        paused_at = instant(state.paused_at) if state.paused_at is not None else now
        became_paused(sandbox, paused_at=paused_at, keeps_memory=state.memory, now=now)
    elif state.state is wire.NodeSandboxState.RUNNING and sandbox.state not in {State.RUNNING}:
        became_running(
            sandbox,
            started_at=instant(state.started_at),
            end_at=instant(state.end_at),
            now=now,
            sources=frozenset({State.STARTING, State.RESUMING, State.PAUSING, State.SNAPSHOTTING}),
        )


def _gone(sandbox: Sandbox, *, now: datetime) -> None:
    if sandbox.state == State.STARTING:
        reason, detail = EndReason.START_FAILED, "the request that created it was interrupted"
    elif (
        sandbox.end_at is not None
        and sandbox.end_at <= now
        and sandbox.on_timeout == Sandbox.OnTimeout.KILL
    ):
        reason, detail = EndReason.TIMEOUT, ""
    else:
        reason, detail = EndReason.EXITED, "its node no longer has it"
    became_ended(
        sandbox,
        reason=reason,
        detail=detail,
        ended_at=sandbox.end_at if reason is EndReason.TIMEOUT else now,
        now=now,
    )


def _kill_again(sandbox: Sandbox, *, now: datetime) -> None:
    reason = EndReason(sandbox.end_reason or EndReason.KILLED)
    node = sandbox.node
    if node is not None and not node.is_lost:
        with contextlib.suppress(agent_errors.NotFound):
            directory.client_of(node).kill(sandbox.public_id, reason=wire.EndReason(reason))
    became_ended(sandbox, reason=reason, now=now)


def find_lost_nodes(*, now: datetime) -> int:
    """End the sandboxes of nodes that have been silent for too long. Returns how many nodes were
    lost.
    """
    silent_since = now - timedelta(seconds=settings.NODE_LOST_AFTER_SECONDS)
    count = 0
    for node in Node.objects.filter(is_lost=False, last_heartbeat_at__lt=silent_since):
        # The condition again: a heartbeat may have come in between.
        is_lost = Node.objects.filter(
            pk=node.pk, is_lost=False, last_heartbeat_at__lt=silent_since
        ).update(is_lost=True, status_changed_at=now)
        if not is_lost:
            continue
        count += 1
        logger.warning("A node is lost.", extra={"node_id": node.node_id})
        _end_all_of(node, now=now)
    for node in Node.objects.filter(is_lost=True):
        _end_all_of(node, now=now)  # what a crash of this loop left
    return count


def _end_all_of(node: Node, *, now: datetime) -> None:
    """Running ones end at the last heartbeat. Paused ones wait: their files may still be there."""
    sandboxes = (
        Sandbox.objects.filter(node=node)
        .exclude(state__in=[State.ENDED, State.PAUSED])
        .select_related("node", "template")
    )
    for sandbox in sandboxes:
        if sandbox.state == State.STARTING:
            reason = EndReason.START_FAILED
        elif sandbox.state == State.KILLING:
            reason = EndReason(sandbox.end_reason or EndReason.KILLED)
        else:
            reason = EndReason.NODE_LOST
        became_ended(
            sandbox,
            reason=reason,
            ended_at=node.last_heartbeat_at,
            detail=f"node {node.node_id} stopped answering",
            now=now,
        )


def forget_old_records(*, now: datetime) -> None:
    """Apply the retention settings."""
    events = now - timedelta(days=settings.EVENT_RETENTION_DAYS)
    metrics = now - timedelta(days=settings.METRIC_RETENTION_DAYS)
    for model, before in ((SandboxEvent, events), (SandboxMetric, metrics)):
        while True:
            old = list(
                model.objects.filter(at__lt=before).values_list("pk", flat=True)[:DELETE_BATCH]
            )
            if not old:
                break
            model.objects.filter(pk__in=old).delete()
    IdempotencyRecord.objects.filter(created_at__lt=now - IDEMPOTENCY_RETENTION).delete()


def remove_unused_images(*, now: datetime) -> int:
    """Reclaim the disk of deleted snapshots once nothing stands on them. Returns how many."""
    unused = TemplateBuild.objects.filter(
        ~Q(image=""),
        ~Q(node_id=""),
        template__deleted_at__isnull=False,
        created_at__lt=now - IMAGE_GRACE,
    ).exclude(sandboxes__state__in=[state for state in State if state is not State.ENDED])[:BATCH]
    count = 0
    for build in unused:
        node = Node.objects.filter(node_id=build.node_id, is_lost=False).first()
        if node is None:
            continue
        try:
            directory.client_of(node).delete_image(build.image)
        except agent_errors.AgentError as error:
            logger.info("An image was not removed: %s", error, extra={"node_id": node.node_id})
            continue
        TemplateBuild.objects.filter(pk=build.pk).update(image="", updated_at=now)
        count += 1
    return count
