"""The states of a sandbox and the moves between them. Pure: no query, no clock."""

from __future__ import annotations

from django.db.models import TextChoices

from nodeagent import wire


class State(TextChoices):
    STARTING = "starting"
    RUNNING = "running"
    SNAPSHOTTING = "snapshotting"
    PAUSING = "pausing"
    PAUSED = "paused"
    RESUMING = "resuming"
    KILLING = "killing"
    ENDED = "ended"


class EndReason(TextChoices):
    """Why a sandbox ended: the wire's words, with what people read."""

    KILLED = wire.EndReason.KILLED.value, "Killed"
    TIMEOUT = wire.EndReason.TIMEOUT.value, "Timed out"
    OOM = wire.EndReason.OOM.value, "Out of memory"
    EXITED = wire.EndReason.EXITED.value, "Container stopped"
    NODE_LOST = wire.EndReason.NODE_LOST.value, "Node lost"
    START_FAILED = wire.EndReason.START_FAILED.value, "Failed to start"
    OUT_OF_CREDIT = wire.EndReason.OUT_OF_CREDIT.value, "Out of credit"
    UNKNOWN_TO_CONTROL_PLANE = (
        wire.EndReason.UNKNOWN_TO_CONTROL_PLANE.value,
        "Unknown to the control plane",
    )


# Any move may repeat a claim that failed; kill wins over everything; ended is final.
ALLOWED: dict[State, frozenset[State]] = {
    State.STARTING: frozenset({State.RUNNING, State.KILLING, State.ENDED}),
    State.RUNNING: frozenset(
        {State.PAUSING, State.PAUSED, State.SNAPSHOTTING, State.KILLING, State.ENDED}
    ),
    State.SNAPSHOTTING: frozenset(
        {State.RUNNING, State.PAUSING, State.PAUSED, State.KILLING, State.ENDED}
    ),
    State.PAUSING: frozenset({State.PAUSED, State.RUNNING, State.KILLING, State.ENDED}),
    State.PAUSED: frozenset({State.RESUMING, State.RUNNING, State.KILLING, State.ENDED}),
    State.RESUMING: frozenset({State.RUNNING, State.PAUSED, State.KILLING, State.ENDED}),
    State.KILLING: frozenset({State.ENDED}),
    State.ENDED: frozenset(),
}

RUNNING_STATES = frozenset({State.RUNNING, State.SNAPSHOTTING})
PAUSED_STATES = frozenset({State.PAUSING, State.PAUSED, State.RESUMING})
LISTED = RUNNING_STATES | PAUSED_STATES
# Those that take one of the team's concurrency slots.
ACTIVE = frozenset(
    {State.STARTING, State.RUNNING, State.SNAPSHOTTING, State.PAUSING, State.RESUMING}
)
# Those that wait for a node's answer; a reconcile loop settles them when it never comes.
TRANSITIONAL = frozenset(
    {State.STARTING, State.SNAPSHOTTING, State.PAUSING, State.RESUMING, State.KILLING}
)


def may_move(state: State, *, to: State) -> bool:
    return to in ALLOWED[state]
