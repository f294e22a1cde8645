"""Steering a sandbox that exists: its deadline, pausing and resuming, its network, its end."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from django.db import transaction
from django.utils import timezone

from config.errors import AppError, Conflict, InvalidArgument, NotFound, Unavailable
from nodeagent import errors as agent_errors
from nodeagent import wire
from sandboxes import limits, live
from sandboxes.access import not_found
from sandboxes.lifecycle import PAUSED_STATES, RUNNING_STATES, EndReason, State
from sandboxes.models import Sandbox
from sandboxes.nodes import directory
from sandboxes.settle import (
    became_ended,
    became_paused,
    became_running,
    instant,
    kill_accepted,
    seconds_of,
    transition,
)
from sandboxes.specs import network_of

logger = logging.getLogger(__name__)

MAX_ROUNDS = 5
WAIT_SECONDS = 30.0
POLL_SECONDS = 0.02
MIN_REFRESH_SECONDS = 15
RETRY = {"Should-Retry": "true", "Retry-After": "1"}

WORD_IN_TRANSITION = {
    State.STARTING: "started",
    State.PAUSING: "paused",
    State.RESUMING: "resumed",
    State.SNAPSHOTTING: "snapshotted",
    State.KILLING: "killed",
}


def kill_sandbox(*, sandbox: Sandbox, now: datetime, reason: EndReason = EndReason.KILLED) -> None:
    """End it, in whatever state it is. When this returns, nothing answers for it any more.

    Who comes second waits for who came first, and succeeds alike.
    Raises: AppError when its node does not confirm; the row stays KILLING and the node is told
    again.
    """
    if not kill_accepted(sandbox, now=now, reason=reason):
        wait_until(sandbox, lambda state: state is State.ENDED, seconds=10)
        return
    try:
        if sandbox.node is not None:
            client = directory.client_of(sandbox.node)
            ended = client.kill(sandbox.public_id, reason=wire.EndReason(reason))
            became_ended(
                sandbox, reason=reason, ended_at=instant(ended.ended_at), now=timezone.now()
            )
        else:
            became_ended(sandbox, reason=reason, now=timezone.now())
    except agent_errors.NotFound:
        became_ended(sandbox, reason=reason, now=timezone.now())
    except agent_errors.AgentError as error:
        logger.warning(
            "A node did not confirm a kill: %s", error, extra={"sandbox_id": sandbox.public_id}
        )
        if sandbox.node is not None and sandbox.node.is_lost:
            return  # nobody reaches it there, and its node is told to kill it should it come back
        raise Unavailable(
            "Error killing sandbox: its node is not answering; it is killed as soon as it does",
            headers={"Should-Retry": "false"},
        ) from error


def set_timeout(*, sandbox: Sandbox, timeout_seconds: int, now: datetime) -> None:
    """Make it end `timeout_seconds` after `now`, but no later than the plan's longest run.

    Raises: NotFound when it is not running, Conflict while it changes, InvalidArgument when it is
    past its longest run already.
    """
    state = State(sandbox.state)
    if state in {State.PAUSED, State.RESUMING}:
        raise not_found(sandbox.public_id)
    if state not in RUNNING_STATES:
        raise _in_transition(sandbox)
    longest = _longest_end(sandbox)
    if longest <= now and timeout_seconds > 0:
        raise InvalidArgument("Max instance length exceeded")
    _put_deadline(sandbox, min(now + timedelta(seconds=timeout_seconds), longest), now=now)


def refresh_sandbox(*, sandbox: Sandbox, duration_seconds: int, now: datetime) -> None:
    """Keep it alive for at least `duration_seconds` more; never shortens. Raises: NotFound."""
    if sandbox.state not in RUNNING_STATES:
        raise not_found(sandbox.public_id)
    wanted = now + timedelta(seconds=max(duration_seconds, MIN_REFRESH_SECONDS))
    wanted = min(wanted, _longest_end(sandbox))
    if sandbox.end_at is not None and wanted > sandbox.end_at:
        _put_deadline(sandbox, wanted, now=now)


def connect_sandbox(
    *,
    sandbox: Sandbox,
    timeout_seconds: int,
    now: datetime,
    keeps_memory: bool = True,
    on_timeout: Sandbox.OnTimeout | None = None,
) -> bool:
    """Have it run for at least `timeout_seconds` more. Returns whether it had to be resumed.

    Raises: NotFound, Conflict, QuotaExceeded, InvalidArgument, Unavailable.
    """
    limits.check_length(limits.limits_for(sandbox.team, now=now), timeout_seconds)
    for _ in range(MAX_ROUNDS):
        state = _settled_state(sandbox, now=timezone.now())
        if state in RUNNING_STATES:
            if _extend(sandbox, timeout_seconds=timeout_seconds):
                return False
        elif state is State.PAUSED and _resume(
            sandbox,
            timeout_seconds=timeout_seconds,
            keeps_memory=keeps_memory,
            on_timeout=on_timeout,
        ):
            return True
        sandbox.refresh_from_db()
    raise Unavailable(
        f"Sandbox '{sandbox.public_id}' is still changing its state, please retry", headers=RETRY
    )


def resume_sandbox(
    *,
    sandbox: Sandbox,
    timeout_seconds: int,
    now: datetime,
    keeps_memory: bool = True,
    on_timeout: Sandbox.OnTimeout | None = None,
) -> None:
    """Resume one that is paused. Raises: Conflict when it runs, and as `connect_sandbox`."""
    if sandbox.state == State.SNAPSHOTTING:
        raise Conflict(
            f"Sandbox snapshot is currently being created for sandbox '{sandbox.public_id}'"
        )
    if sandbox.shown_state(now) == "running" or not connect_sandbox(
        sandbox=sandbox,
        timeout_seconds=timeout_seconds,
        now=now,
        keeps_memory=keeps_memory,
        on_timeout=on_timeout,
    ):
        raise Conflict(f"Sandbox {sandbox.public_id} is already running")


def pause_sandbox(*, sandbox: Sandbox, now: datetime, keeps_memory: bool = True) -> None:
    """Freeze it, or with `keeps_memory` false stop it and keep its files.

    Concurrent pauses all succeed. If its node does not answer, it stays PAUSING and is settled
    later.
    Raises: Conflict when it is paused already, NotFound, Unavailable.
    """
    for _ in range(MAX_ROUNDS):
        state = State(sandbox.state)
        if state is State.PAUSED:
            raise Conflict(
                f"Error pausing sandbox - sandbox '{sandbox.public_id}' is already paused"
            )
        if state is State.PAUSING:
            wait_until(sandbox, lambda state: state is not State.PAUSING)
            if sandbox.state == State.PAUSED:
                return
            continue
        if state in {State.SNAPSHOTTING, State.RESUMING}:
            wait_until(sandbox, lambda state: state not in {State.SNAPSHOTTING, State.RESUMING})
            continue
        if state is not State.RUNNING:
            raise not_found(sandbox.public_id)
        try:
            transition(sandbox, to=State.PAUSING, now=now)  # claim
        except Conflict:
            sandbox.refresh_from_db()
            continue
        _act_pause(sandbox, keeps_memory=keeps_memory)
        return
    raise Unavailable("Error pausing sandbox: it keeps changing its state", headers=RETRY)


def _act_pause(sandbox: Sandbox, *, keeps_memory: bool) -> None:
    try:
        paused = directory.client_for(sandbox).pause(sandbox.public_id, memory=keeps_memory)
    except agent_errors.NotFound:
        raise vanished(sandbox) from None
    except agent_errors.Unavailable as error:
        raise Unavailable(
            "Error pausing sandbox: its node is busy, please retry", headers=RETRY
        ) from error
    except agent_errors.AgentError as error:
        _put_back(sandbox, State.RUNNING)
        raise AppError(
            f"Error pausing sandbox: {error.message}", headers={"Should-Retry": "false"}
        ) from error
    became_paused(
        sandbox,
        paused_at=instant(paused.paused_at),
        keeps_memory=paused.memory,
        now=timezone.now(),
    )


def set_network(
    *,
    sandbox: Sandbox,
    egress: dict[str, Any],
    allow_internet_access: bool | None,
    now: datetime,
) -> None:
    """Replace the whole egress part; the ingress settings stay. In force when this returns.

    Raises: NotFound when it is paused or gone, Conflict while it changes, Unavailable.
    """
    state = State(sandbox.state)
    if state is State.PAUSED:
        raise not_found(sandbox.public_id)
    if state is not State.RUNNING:
        raise _in_transition(sandbox)
    kept = {
        name: value
        for name, value in (sandbox.network or {}).items()
        if name in {"allowPublicTraffic", "maskRequestHost", "httpsPorts"}
    }
    network = {**kept, **egress} or None
    try:
        directory.client_for(sandbox).put_network(
            sandbox.public_id, network_of(network, allow_internet_access)
        )
    except agent_errors.AgentError as error:
        raise _refused(sandbox, error) from error
    Sandbox.objects.filter(pk=sandbox.pk).update(
        network=network, allow_internet_access=allow_internet_access
    )
    sandbox.network, sandbox.allow_internet_access = network, allow_internet_access


# --- Rounds of connect -----------------------------------------------------------------------


def _settled_state(sandbox: Sandbox, *, now: datetime) -> State:
    """Its state, once it is not between two. Raises: NotFound, Conflict."""
    state = State(sandbox.state)
    if state in {State.STARTING, State.PAUSING, State.RESUMING, State.SNAPSHOTTING}:
        between = frozenset({State.STARTING, State.PAUSING, State.RESUMING, State.SNAPSHOTTING})
        state = wait_until(sandbox, lambda state: state not in between)
    if state is State.KILLING:
        raise Conflict(f'Sandbox "{sandbox.public_id}" is being killed')
    if state is State.ENDED:
        raise not_found(sandbox.public_id)
    if state in RUNNING_STATES and sandbox.end_at is not None and sandbox.end_at <= now:
        if sandbox.on_timeout == Sandbox.OnTimeout.KILL:
            raise not_found(sandbox.public_id)
        # Its node pauses it at this very moment; let us pause it with it and go on from there.
        try:
            pause_sandbox(sandbox=sandbox, now=now, keeps_memory=sandbox.auto_pause_memory)
        except Conflict:
            sandbox.refresh_from_db()
        state = State(sandbox.state)
    return state


def _extend(sandbox: Sandbox, *, timeout_seconds: int) -> bool:
    """Only ever later; when it is not later, the deadline stays to the bit. False: look again."""
    now = timezone.now()
    wanted = min(now + timedelta(seconds=timeout_seconds), _longest_end(sandbox))
    if sandbox.end_at is not None and wanted <= sandbox.end_at:
        return True
    try:
        _put_deadline(sandbox, wanted, now=now)
    except Conflict:
        return False
    return True


def _resume(
    sandbox: Sandbox,
    *,
    timeout_seconds: int,
    keeps_memory: bool,
    on_timeout: Sandbox.OnTimeout | None,
) -> bool:
    """False when another request was faster: look again."""
    now = timezone.now()
    changes: dict[str, Any] = {"on_timeout": on_timeout} if on_timeout else {}
    with transaction.atomic():  # claim
        limits.take_place(
            sandbox.team, cpu_count=sandbox.cpu_count, memory_mb=sandbox.memory_mb, now=now
        )
        try:
            transition(sandbox, to=State.RESUMING, now=now, **changes)
        except Conflict:
            return False
    try:
        started = directory.client_for(sandbox).resume(  # act
            sandbox.public_id, timeout_seconds=float(timeout_seconds), memory=keeps_memory
        )
    except agent_errors.NotFound:
        raise vanished(sandbox) from None
    except agent_errors.Unavailable as error:
        raise Unavailable(
            "The sandbox could not be resumed right now because its node is busy, please retry",
            headers=RETRY,
        ) from error
    except agent_errors.AgentError as error:
        _put_back(sandbox, State.PAUSED)
        raise AppError(
            f"Error resuming sandbox: {error.message}", headers={"Should-Retry": "false"}
        ) from error
    became_running(  # settle
        sandbox,
        started_at=instant(started.started_at),
        end_at=instant(started.end_at),
        now=timezone.now(),
    )
    sandbox.refresh_from_db(fields=["state", "started_at", "end_at"])
    return True


# --- Small things ----------------------------------------------------------------------------


def _longest_end(sandbox: Sandbox) -> datetime:
    assert sandbox.started_at is not None
    return sandbox.started_at + timedelta(seconds=sandbox.max_length_seconds)


def _put_deadline(sandbox: Sandbox, end_at: datetime, *, now: datetime) -> None:
    """The node first: were the row first and the node away, it would kill at the old deadline.

    A crash between the two is repaired by the next heartbeat, to what the row says.
    """
    try:
        put = directory.client_for(sandbox).set_deadline(
            sandbox.public_id, end_at=seconds_of(end_at)
        )
    except agent_errors.AgentError as error:
        raise _refused(sandbox, error) from error
    end_at = instant(put.end_at)
    Sandbox.objects.filter(pk=sandbox.pk, state__in=RUNNING_STATES).update(end_at=end_at)
    sandbox.end_at = end_at
    # Not a change of state, but pages show the time that is left.
    live.publish(sandbox.team_id)


def _refused(sandbox: Sandbox, error: agent_errors.AgentError) -> AppError:
    match error:
        case agent_errors.NotFound():
            return vanished(sandbox)
        case agent_errors.Conflict():
            return _in_transition(sandbox)
        case agent_errors.InvalidArgument():
            return InvalidArgument(error.message)
        case _:
            return Unavailable(
                "The sandbox's node is not answering right now, please retry", headers=RETRY
            )


def vanished(sandbox: Sandbox) -> NotFound:
    """Its node does not have it. The node's own report of how it ended, if any, comes first or
    wins.
    """
    sandbox.refresh_from_db(fields=["state", "end_at", "end_reason"])
    now = timezone.now()
    is_due = (
        sandbox.end_at is not None
        and sandbox.end_at <= now
        and sandbox.on_timeout == Sandbox.OnTimeout.KILL
        and sandbox.state not in PAUSED_STATES
    )
    if is_due:
        became_ended(sandbox, reason=EndReason.TIMEOUT, ended_at=sandbox.end_at, now=now)
    else:
        became_ended(sandbox, reason=EndReason.EXITED, detail="its node no longer has it", now=now)
    return not_found(sandbox.public_id)


def _in_transition(sandbox: Sandbox) -> Conflict:
    word = WORD_IN_TRANSITION.get(State(sandbox.state), "paused")
    return Conflict(f'Sandbox "{sandbox.public_id}" is being {word}', headers=RETRY)


def _put_back(sandbox: Sandbox, state: State) -> None:
    try:
        transition(sandbox, to=state, now=timezone.now())
    except Conflict:
        return  # somebody, perhaps a kill, moved it on


def wait_until(
    sandbox: Sandbox, is_reached: Callable[[State], bool], *, seconds: float = WAIT_SECONDS
) -> State:
    """Wait for another request to finish its move. Raises: Conflict when it takes too long."""
    give_up_at = time.monotonic() + seconds
    pause = POLL_SECONDS
    while True:
        sandbox.refresh_from_db()
        state = State(sandbox.state)
        if is_reached(state):
            return state
        if time.monotonic() > give_up_at:
            raise _in_transition(sandbox)
        time.sleep(pause)
        pause = min(pause * 1.5, 0.25)
