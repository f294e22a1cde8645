"""Starting a sandbox: claim a place, let a node act, settle what came of it."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from django.db import transaction
from django.db.models import F
from django.utils import timezone

from accounts.models import APIKey, Team, User
from config.errors import AppError, Conflict, Unavailable
from nodeagent import errors as agent_errors
from nodeagent import wire
from sandboxes import limits, live
from sandboxes.lifecycle import EndReason, State
from sandboxes.models import Node, Sandbox
from sandboxes.nodes import directory, rank_nodes_for, release_connection
from sandboxes.settle import became_ended, became_running, instant
from sandboxes.specs import create_spec
from templates_app.access import ResolvedTemplate
from templates_app.models import TemplateBuild
from templates_app.services import note_spawn

logger = logging.getLogger(__name__)

MAX_NODES_TRIED = 3
RETRY = {"Should-Retry": "true", "Retry-After": "1"}
NO_RETRY = {"Should-Retry": "false"}
NO_CAPACITY = (
    "Failed to place sandbox: not enough capacity for the requested resources right now,"
    " please retry shortly"
)


@dataclass(frozen=True, kw_only=True)
class CreateOptions:
    """What a caller may choose, already checked in itself."""

    timeout_seconds: int
    on_timeout: Sandbox.OnTimeout = Sandbox.OnTimeout.KILL
    auto_pause_memory: bool = True
    auto_resume: bool = False
    is_secure: bool = True
    allow_internet_access: bool | None = None
    network: dict[str, Any] | None = None
    metadata: dict[str, str] | None = None
    env_vars: dict[str, str] = field(default_factory=dict)


def create_sandbox(
    *,
    team: Team,
    resolved: ResolvedTemplate,
    options: CreateOptions,
    now: datetime,
    key: APIKey | None = None,
    user: User | None = None,
) -> Sandbox:
    """A running sandbox, answered only when its envd and its template's ready command are.

    A failure leaves no container, and a row that says why.
    Raises: InvalidArgument, QuotaExceeded, and AppErrors whose text begins `Failed to place
    sandbox`.
    """
    team_limits = limits.limits_for(team, now=now)
    limits.check_length(team_limits, options.timeout_seconds)
    limits.check_create_rate(team, team_limits, now=now)
    sandbox = new_row(
        team=team,
        resolved=resolved,
        options=options,
        max_length_seconds=team_limits.max_length_seconds,
        now=now,
        key=key,
        user=user,
    )
    start(sandbox, resolved.build, now=now)
    return sandbox


def new_row(
    *,
    team: Team,
    resolved: ResolvedTemplate,
    options: CreateOptions,
    max_length_seconds: int,
    now: datetime,
    key: APIKey | None,
    user: User | None,
) -> Sandbox:
    """A row that is not stored yet."""
    build = resolved.build
    return Sandbox(
        team=team,
        template=resolved.template,
        build=build,
        created_by_key=key,
        created_by_user=user,
        alias=resolved.alias,
        state=State.STARTING,
        state_changed_at=now,
        created_at=now,
        cpu_count=build.cpu_count,
        memory_mb=build.memory_mb,
        disk_size_mb=build.disk_size_mb,
        envd_version=build.envd_version,
        timeout_seconds=options.timeout_seconds,
        max_length_seconds=max_length_seconds,
        on_timeout=options.on_timeout,
        auto_pause_memory=options.auto_pause_memory,
        auto_resume=options.auto_resume,
        is_secure=options.is_secure,
        allow_internet_access=options.allow_internet_access,
        network=options.network,
        metadata=options.metadata or {},
        has_metadata=options.metadata is not None,
        env_vars=options.env_vars,
    )


def start(sandbox: Sandbox, build: TemplateBuild, *, now: datetime) -> None:
    """Store the row and have it started, on the best node that takes it."""
    with transaction.atomic():  # claim
        limits.take_place(
            sandbox.team, cpu_count=build.cpu_count, memory_mb=build.memory_mb, now=now
        )
        nodes = rank_nodes_for(build, now=now)
        if not nodes:
            raise _no_place(build)
        sandbox.node = nodes[0]
        sandbox.save(force_insert=True)
    live.publish(sandbox.team_id)
    failures: list[agent_errors.AgentError] = []
    for node in nodes[:MAX_NODES_TRIED]:
        if node is not sandbox.node:
            sandbox.node = node
            # The instant too: the new node cannot know of it yet, and must not be asked why.
            Sandbox.objects.filter(pk=sandbox.pk).update(node=node, state_changed_at=timezone.now())
        try:
            started = _act(sandbox, build, node)
        except agent_errors.AgentError as error:
            logger.warning(
                "A node could not start a sandbox: %s",
                error,
                extra={"sandbox_id": sandbox.public_id, "node_id": node.node_id},
            )
            Node.objects.filter(pk=node.pk).update(create_fails=F("create_fails") + 1)
            failures.append(error)
            if not isinstance(error, agent_errors.Unavailable | agent_errors.QuotaExceeded):
                break
            continue
        _settle(sandbox, started)
        return
    _give_up(sandbox, failures)


def _act(sandbox: Sandbox, build: TemplateBuild, node: Node) -> wire.SandboxStarted:
    release_connection()
    client = directory.client_of(node)
    try:
        return client.create(create_spec(sandbox, build))
    except agent_errors.Unavailable:
        # It may have started all the same: the same id must not live on two nodes.
        _forget(sandbox, node)
        raise


def _forget(sandbox: Sandbox, node: Node) -> None:
    try:
        directory.client_of(node).kill(sandbox.public_id, reason=wire.EndReason.START_FAILED)
    except agent_errors.AgentError:
        # Not there, or not answering: its next heartbeat is told to kill what is not its own.
        return


def _settle(sandbox: Sandbox, started: wire.SandboxStarted) -> None:
    now = timezone.now()
    is_settled = became_running(
        sandbox,
        started_at=instant(started.started_at),
        end_at=instant(started.end_at),
        was_warm=started.warm,
        now=now,
    )
    if is_settled:
        note_spawn(sandbox.template_id, now=now)
        return
    sandbox.refresh_from_db(fields=["state", "started_at", "end_at"])
    if sandbox.state == State.RUNNING:
        return  # its node's own report was faster
    assert sandbox.node is not None
    _forget(sandbox, sandbox.node)
    raise Conflict(f'Sandbox "{sandbox.public_id}" is being killed')


def _give_up(sandbox: Sandbox, failures: list[agent_errors.AgentError]) -> None:
    last = failures[-1]
    became_ended(sandbox, reason=EndReason.START_FAILED, detail=last.message, now=timezone.now())
    raise _as_app_error(last, tried=len(failures)) from last


def _as_app_error(error: agent_errors.AgentError, *, tried: int) -> AppError:
    if error.error_code == agent_errors.AgentError.error_code:
        # The client takes a node's own 500 for unavailable, since neither tells what took effect.
        return _create_failed(error, tried=tried)
    match error:
        case agent_errors.Unavailable() | agent_errors.QuotaExceeded() | agent_errors.NoSpace():
            return Unavailable(
                NO_CAPACITY, error_code="sandbox_capacity_unavailable", headers=RETRY
            )
        case agent_errors.DeadlineExceeded():
            return AppError(
                f"Failed to place sandbox: placement timed out after {tried} attempt(s),"
                f" please retry; {error.message}",
                error_code="sandbox_placement_timeout",
                http_status=504,
                headers=NO_RETRY,
            )
        case agent_errors.InvalidArgument() | agent_errors.NotFound():
            return AppError(
                f"Failed to place sandbox: {error.message}",
                error_code="sandbox_create_refused",
                headers=NO_RETRY,
            )
        case agent_errors.Conflict():
            return Conflict(f"Failed to place sandbox: {error.message}")
        case _:
            return _create_failed(error, tried=tried)


def _create_failed(error: agent_errors.AgentError, *, tried: int) -> AppError:
    return AppError(
        f"Failed to place sandbox: sandbox creation failed on {tried} node(s),"
        f" please retry; {error.message}",
        error_code="sandbox_create_failed",
        headers=NO_RETRY,
    )


def _no_place(build: TemplateBuild) -> AppError:
    if build.node_id and not Node.objects.filter(node_id=build.node_id, is_lost=False).exists():
        return Unavailable(
            "Failed to place sandbox: no compatible node for this template's requirements",
            error_code="sandbox_no_compatible_node",
            headers=NO_RETRY,
        )
    return Unavailable(NO_CAPACITY, error_code="sandbox_capacity_unavailable", headers=RETRY)
