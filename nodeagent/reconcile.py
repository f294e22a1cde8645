"""What to do where wanted and actual differ: pure plans for start, sweeps and heartbeats."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from nodeagent.runtime.base import FoundContainer
from nodeagent.wire import HeartbeatReply, NodeSandboxState


@dataclass(frozen=True, kw_only=True)
class WantedSandbox:
    """What the state directory says of one sandbox."""

    sandbox_id: str
    container_id: str
    state: NodeSandboxState
    keeps_memory: bool
    is_halting: bool = False


@dataclass(frozen=True, kw_only=True)
class Plan:
    """keep: sandboxes that go on as they were. halted: running ones whose pause without memory got
    as far as their end; their files are all that is wanted of them. demote: paused ones whose
    processes are gone, to be resumed from their files. lost: sandboxes whose container died or
    vanished. thaw: running ones found frozen, left by a pause or a snapshot that an agent's death
    cut short. keep_warm, remove: containers.
    """

    keep: list[str] = field(default_factory=list)
    halted: list[str] = field(default_factory=list)
    demote: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    thaw: list[str] = field(default_factory=list)
    keep_warm: list[str] = field(default_factory=list)
    remove: list[FoundContainer] = field(default_factory=list)


def plan_containers(
    *,
    sandboxes: Iterable[WantedSandbox],
    warm: Collection[str],
    found: Iterable[FoundContainer],
) -> Plan:
    """warm: ids the state directory calls warm; one that a sandbox claims is not."""
    plan = Plan()
    actual = {container.container_id: container for container in found}
    claimed = set()
    for sandbox in sandboxes:
        claimed.add(sandbox.container_id)
        container = actual.get(sandbox.container_id)
        if container is None:
            plan.lost.append(sandbox.sandbox_id)
        elif sandbox.state is NodeSandboxState.PAUSED:
            lost_memory = sandbox.keeps_memory and not container.is_frozen
            (plan.demote if lost_memory else plan.keep).append(sandbox.sandbox_id)
        elif not container.is_running:
            (plan.halted if sandbox.is_halting else plan.lost).append(sandbox.sandbox_id)
        else:
            (plan.thaw if container.is_frozen else plan.keep).append(sandbox.sandbox_id)
    lost = {sandbox.container_id for sandbox in sandboxes if sandbox.sandbox_id in set(plan.lost)}
    for container_id, container in actual.items():
        if container_id in claimed and container_id not in lost:
            continue
        if container_id in warm and container_id not in claimed and container.is_running:
            plan.keep_warm.append(container_id)
        else:
            plan.remove.append(container)
    return plan


@dataclass(frozen=True, kw_only=True)
class HeartbeatPlan:
    kill: list[str]
    deadlines: dict[str, float]


def plan_reply(
    reply: HeartbeatReply, *, reported: Collection[str], running: Mapping[str, float]
) -> HeartbeatPlan:
    """What a heartbeat's reply asks of us.

    reported: the sandboxes that heartbeat listed; the reply cannot judge one that began after it.
    running: sandbox id -> end_at.
    """
    return HeartbeatPlan(
        kill=[sandbox_id for sandbox_id in reply.kill if sandbox_id in reported],
        deadlines={
            sandbox_id: end_at
            for sandbox_id, end_at in reply.deadlines.items()
            if sandbox_id in running
            and running[sandbox_id] != end_at
            and sandbox_id not in reply.kill
        },
    )
