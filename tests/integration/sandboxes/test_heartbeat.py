"""What a node reports, applied once and reconciled both ways."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from django.utils import timezone

from billing.models import UsageInterval
from nodeagent import wire
from sandboxes import reconcile
from sandboxes.events import apply_heartbeat
from sandboxes.lifecycle import EndReason, State
from sandboxes.models import Node, Sandbox, SandboxEvent, SandboxMetric
from sandboxes.nodes import node_token
from sandboxes.settle import became_paused
from tests.api import Api, check_error
from tests.factories import adopt, make_node, make_sandbox, make_template, start_agent

URL = "/internal/nodes/heartbeat"
LATER = timedelta(minutes=5)


@pytest.fixture
def sandbox(alice, base, agent):
    made = make_sandbox(alice.team, template=base)
    adopt(agent, made)
    return made


def beat(agent, *, now=None, **changes):
    heartbeat = replace(agent.heartbeat(), **changes)
    return apply_heartbeat(heartbeat, now=now or timezone.now())


def fresh(sandbox) -> Sandbox:
    sandbox.refresh_from_db()
    return sandbox


# --- The door --------------------------------------------------------------------------------


def post(agent, token):
    body = wire.encode(agent.heartbeat())
    return Api({"Authorization": f"Bearer {token}"} if token else {}).post(URL, body)


def test_a_nodes_first_heartbeat_registers_it(agent):
    Node.objects.all().delete()
    response = post(agent, agent.token)
    assert response.status_code == 200
    reply = wire.decode(wire.HeartbeatReply, response.data)
    assert (reply.acked_seq, reply.kill) == (0, [])
    node = Node.objects.get(node_id=agent.node_id)
    assert (node.api_url, node.cpu_count) == (agent.api_url, 8)


@pytest.mark.parametrize("token", ["", "wrong", node_token("another-node")])
def test_a_node_without_its_own_token_is_refused(agent, token):
    Node.objects.all().delete()
    check_error(post(agent, token), 401, "the token is not this node's")
    assert not Node.objects.exists()


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"node": 1}', b"[" * 50_000])
def test_what_is_no_heartbeat_is_refused(db, body):
    api = Api({"Authorization": f"Bearer {node_token('n')}"})
    check_error(api.post(URL, body), 400, "not a heartbeat")


def test_a_node_of_another_version_is_told_so(agent):
    heartbeat = replace(agent.heartbeat(), node=agent.status(api_version=99))
    api = Api({"Authorization": f"Bearer {agent.token}"})
    check_error(api.post(URL, wire.encode(heartbeat)), 409, "speaks agent API version")


def test_a_node_of_another_version_keeps_its_sandboxes_and_gets_no_more(agent, sandbox, api):
    Node.objects.update(last_heartbeat_at=timezone.now() - LATER)
    raw = wire.encode(agent.heartbeat())
    raw["node"]["api_version"] = 2
    raw["sandboxes"] = "whatever version 2 makes of it"
    response = Api({"Authorization": f"Bearer {agent.token}"}).post(URL, raw)
    check_error(response, 409, "speaks agent API version")
    reconcile.find_lost_nodes(now=timezone.now())
    assert fresh(sandbox).state == State.RUNNING
    check_error(api.post("/sandboxes", {"templateID": "base"}), 503, "not enough capacity")
    beat(agent)  # it was updated
    assert api.post("/sandboxes", {"templateID": "base"}).status_code == 201


def test_hints_need_the_internal_token(db, settings):
    check_error(Api({"Authorization": "Bearer x"}).post("/internal/live", {"1": ["a"]}), 401, "")
    api = Api({"Authorization": f"Bearer {settings.INTERNAL_TOKEN}"})
    assert api.post("/internal/live", {"1": ["sandboxes"]}).status_code == 204
    check_error(api.post("/internal/live", ["x"]), 400, "not a set of hints")


def test_a_gateway_is_told_which_node_has_a_sandbox(agent, sandbox, base, alice):
    headers = {"Authorization": f"Bearer {agent.token}", "Sandlot-Node": agent.node_id}
    path = f"/internal/sandboxes/{sandbox.public_id}/node"
    assert Api(headers).get(path).data == {
        "nodeID": agent.node_id,
        "gatewayURL": "http://127.0.0.1:1",
    }
    check_error(Api({**headers, "Sandlot-Node": "other"}).get(path), 401, "token")
    check_error(Api().get(path), 401, "token")
    Sandbox.objects.filter(pk=sandbox.pk).update(state=State.KILLING)
    check_error(Api(headers).get(path), 404, "no node has this sandbox")


# --- Events ----------------------------------------------------------------------------------


def test_an_end_is_applied_with_its_reason_and_instant(agent, sandbox):
    ended = agent.end(sandbox.public_id, wire.EndReason.OOM, "2 GiB were not enough")
    reply = beat(agent)
    assert reply.acked_seq == agent.seq
    assert fresh(sandbox).state == State.ENDED
    assert (sandbox.end_reason, sandbox.end_detail) == (EndReason.OOM, "2 GiB were not enough")
    assert sandbox.ended_at.timestamp() == pytest.approx(ended.ended_at, abs=0.1)


def test_the_same_heartbeat_again_changes_nothing(agent, sandbox):
    agent.tell(wire.EventKind.LOG, sandbox.public_id, level="info", message="hello")
    agent.end(sandbox.public_id, wire.EndReason.TIMEOUT)
    heartbeat = agent.heartbeat()
    now = timezone.now()
    first = apply_heartbeat(heartbeat, now=now)
    before = list(SandboxEvent.objects.values()), list(Sandbox.objects.values())
    assert apply_heartbeat(heartbeat, now=now) == first
    assert (list(SandboxEvent.objects.values()), list(Sandbox.objects.values())) == before


def test_events_of_unknown_sandboxes_are_acknowledged(agent):
    agent.tell(wire.EventKind.LOG, "igone", message="x")
    assert beat(agent).acked_seq == 1
    assert not SandboxEvent.objects.exists()


def test_another_node_cannot_end_a_sandbox(agent, sandbox):
    intruder = start_agent()
    try:
        intruder.tell(wire.EventKind.ENDED, sandbox.public_id, reason="killed")
        beat(intruder)
        assert fresh(sandbox).state == State.RUNNING
    finally:
        intruder.close()


def test_the_first_reason_is_kept(agent, sandbox, api):
    api.delete(f"/sandboxes/{sandbox.public_id}")
    agent.tell(wire.EventKind.ENDED, sandbox.public_id, reason="exited")
    beat(agent)
    assert fresh(sandbox).end_reason == EndReason.KILLED


def test_a_log_line_with_a_nul_is_kept_without_it(agent, sandbox):
    agent.tell(
        wire.EventKind.LOG, sandbox.public_id, level="warn", message="a\x00b", fields={"k": "\x00"}
    )
    beat(agent)
    event = SandboxEvent.objects.get()
    assert (event.level, event.message, event.data) == ("warn", "a\ufffdb", {"k": "\ufffd"})


# --- The list --------------------------------------------------------------------------------


def test_a_pause_by_the_node_itself_is_taken_over(agent, sandbox):
    paused_at = sandbox.started_at.timestamp() + 5
    agent.put(
        sandbox.public_id,
        state=wire.NodeSandboxState.PAUSED,
        paused_at=paused_at,
        memory=False,
    )
    beat(agent, now=timezone.now() + LATER)
    assert fresh(sandbox).state == State.PAUSED
    assert sandbox.keeps_memory is False
    assert sandbox.end_at == sandbox.paused_at
    assert sandbox.paused_at.timestamp() == pytest.approx(paused_at, abs=1e-5)


def test_a_wake_by_traffic_is_taken_over(agent, alice, base):
    sandbox = make_sandbox(alice.team, template=base, state=State.PAUSED)
    adopt(agent, sandbox)
    woken_at = sandbox.paused_at.timestamp() + 5
    agent.put(
        sandbox.public_id,
        state=wire.NodeSandboxState.RUNNING,
        started_at=woken_at,
        end_at=woken_at + 300,
        paused_at=None,
    )
    beat(agent)
    assert fresh(sandbox).state == State.RUNNING
    assert (sandbox.end_at - sandbox.started_at).total_seconds() == pytest.approx(300, abs=1e-3)


def test_a_pause_and_a_wake_between_two_heartbeats_are_both_seen(agent, alice, base):
    sandbox = make_sandbox(alice.team, template=base, on_timeout=Sandbox.OnTimeout.PAUSE)
    adopt(agent, sandbox)
    end_at = sandbox.started_at.timestamp() + 1000
    paused = agent.tell(wire.EventKind.PAUSED, sandbox.public_id, memory=True, reason="timeout")
    woken = agent.tell(wire.EventKind.RESUMED, sandbox.public_id, memory=True, end_at=end_at)
    assert woken.at > paused.at
    agent.put(sandbox.public_id, started_at=woken.at, end_at=end_at)
    beat(agent)
    assert fresh(sandbox).state == State.RUNNING
    assert sandbox.started_at.timestamp() == pytest.approx(woken.at, abs=1e-5)
    assert sandbox.end_at.timestamp() == pytest.approx(end_at, abs=1e-5)


def test_a_run_that_began_unseen_is_taken_over(agent, sandbox):
    """As above, with the events lost: the list alone tells."""
    woken_at = sandbox.started_at.timestamp() + 5
    agent.put(sandbox.public_id, started_at=woken_at, end_at=woken_at + 300)
    reply = beat(agent)
    assert fresh(sandbox).state == State.RUNNING
    assert sandbox.started_at.timestamp() == pytest.approx(woken_at, abs=1e-5)
    assert sandbox.end_at.timestamp() == pytest.approx(woken_at + 300, abs=1e-5)
    assert reply.deadlines == {}


def test_an_old_list_cannot_undo_a_pause(agent, sandbox, api):
    stale = agent.heartbeat()
    api.post(f"/sandboxes/{sandbox.public_id}/pause")
    apply_heartbeat(stale, now=timezone.now())
    assert fresh(sandbox).state == State.PAUSED


def test_an_old_list_cannot_undo_a_resume(agent, sandbox, api):
    api.post(f"/sandboxes/{sandbox.public_id}/pause")
    stale = agent.heartbeat()
    api.post(f"/sandboxes/{sandbox.public_id}/connect", {"timeout": 60})
    apply_heartbeat(stale, now=timezone.now())
    assert fresh(sandbox).state == State.RUNNING


def test_news_of_an_earlier_run_cannot_pause_a_later_one(agent, sandbox, api):
    """Rows are read when a heartbeat comes; a request may pause and resume before it is applied."""
    paused_at = timezone.now()
    api.post(f"/sandboxes/{sandbox.public_id}/pause")
    api.post(f"/sandboxes/{sandbox.public_id}/connect", {"timeout": 60})
    as_it_was_read = sandbox
    assert not became_paused(
        as_it_was_read, paused_at=paused_at, keeps_memory=True, now=timezone.now()
    )
    assert fresh(sandbox).state == State.RUNNING


def test_what_is_not_ours_is_killed(agent, alice, base, sandbox):
    ended = make_sandbox(alice.team, template=base, state=State.ENDED)
    elsewhere = make_sandbox(alice.team, template=base, node=make_node())
    known = agent.sandboxes[sandbox.public_id]
    for sandbox_id in ("istranger", ended.public_id, elsewhere.public_id):
        agent.sandboxes[sandbox_id] = replace(known, sandbox_id=sandbox_id)
    reply = beat(agent)
    assert set(reply.kill) == {"istranger", ended.public_id, elsewhere.public_id}
    agent.acknowledge(reply)
    assert set(agent.sandboxes) == {sandbox.public_id}


def test_a_deadline_that_differs_is_corrected_to_ours(agent, sandbox):
    agent.put(sandbox.public_id, end_at=sandbox.end_at.timestamp() - 100)
    assert beat(agent).deadlines == {sandbox.public_id: sandbox.end_at.timestamp()}
    agent.put(sandbox.public_id, end_at=sandbox.end_at.timestamp())
    assert beat(agent).deadlines == {}


def test_one_missing_from_the_list_has_ended(agent, sandbox):
    agent.sandboxes.clear()
    beat(agent)
    assert fresh(sandbox).state == State.RUNNING  # the list may be older than the sandbox
    beat(agent, now=timezone.now() + LATER)
    assert fresh(sandbox).state == State.ENDED
    assert (sandbox.end_reason, sandbox.end_detail) == (
        EndReason.EXITED,
        "its node no longer has it",
    )


def test_a_create_whose_request_died_is_adopted(agent, alice, base):
    sandbox = make_sandbox(alice.team, template=base, state=State.STARTING, node=Node.objects.get())
    began = timezone.now() - timedelta(seconds=30)
    agent.sandboxes[sandbox.public_id] = wire.SandboxState(
        sandbox_id=sandbox.public_id,
        state=wire.NodeSandboxState.RUNNING,
        started_at=began.timestamp(),
        end_at=began.timestamp() + 300,
    )
    reply = beat(agent)
    assert reply.kill == []
    assert fresh(sandbox).state == State.RUNNING
    assert UsageInterval.objects.get(sandbox_id=sandbox.public_id).ended_ms is None


def test_a_create_under_way_is_left_to_its_request(agent, alice, base):
    sandbox = make_sandbox(alice.team, template=base, state=State.STARTING, node=Node.objects.get())
    agent.sandboxes[sandbox.public_id] = wire.SandboxState(
        sandbox_id=sandbox.public_id,
        state=wire.NodeSandboxState.RUNNING,
        started_at=timezone.now().timestamp(),
        end_at=timezone.now().timestamp() + 300,
    )
    assert beat(agent).kill == []
    assert fresh(sandbox).state == State.STARTING


@pytest.mark.parametrize(("later_seconds", "ended"), [(20, False), (40, True)])
def test_a_create_that_never_reached_its_node_ends(agent, alice, base, later_seconds, ended):
    starting = make_sandbox(alice.team, template=base, state=State.STARTING)
    Sandbox.objects.filter(pk=starting.pk).update(node=Node.objects.get())
    beat(agent, now=timezone.now() + timedelta(seconds=later_seconds))
    assert (fresh(starting).state == State.ENDED) is ended
    assert starting.end_reason == (EndReason.START_FAILED if ended else "")


MOVES = {
    State.PAUSING: wire.NodeSandboxState.RUNNING,
    State.SNAPSHOTTING: wire.NodeSandboxState.RUNNING,
    State.RESUMING: wire.NodeSandboxState.PAUSED,
}


@pytest.mark.parametrize("state", MOVES)
@pytest.mark.parametrize("fault", ["request died", "agent died", "under way"])
def test_a_move_that_nobody_is_at_any_more_is_undone(agent, alice, base, state, fault):
    sandbox = make_sandbox(alice.team, template=base, state=State.RUNNING)
    adopt(agent, sandbox)
    before = MOVES[state]
    changes = {"paused_at": sandbox.started_at} if before == "paused" else {}
    Sandbox.objects.filter(pk=sandbox.pk).update(state=state, **changes)
    agent.put(sandbox.public_id, state=before, is_moving=fault == "under way")
    now = timezone.now()
    if fault == "agent died":
        agent.started_at = now.timestamp() + 1
    beat(agent, now=now + timedelta(seconds=3 if fault == "agent died" else 20))
    assert fresh(sandbox).state == (state if fault == "under way" else State(before.value))


def test_a_kill_that_its_node_did_not_hear_is_told_again(agent, sandbox):
    old = timezone.now() - LATER
    Sandbox.objects.filter(pk=sandbox.pk).update(
        state=State.KILLING, state_changed_at=old, end_reason=EndReason.KILLED
    )
    reply = beat(agent)
    assert reply.kill == [sandbox.public_id]
    agent.acknowledge(reply)
    beat(agent)
    assert (fresh(sandbox).state, sandbox.end_reason) == (State.ENDED, EndReason.KILLED)


def test_samples_are_stored_once(agent, sandbox):
    sample = wire.MetricSample(
        sandbox_id=sandbox.public_id,
        at=timezone.now().timestamp(),
        cpu_count=2,
        cpu_used_pct=12.5,
        mem_used=1,
        mem_total=2,
        mem_cache=3,
        disk_used=4,
        disk_total=5,
    )
    stranger = replace(sample, sandbox_id="istranger")
    for _ in range(2):
        beat(agent, metrics=[sample, stranger])
    assert SandboxMetric.objects.get().cpu_used_pct == 12.5


def test_pools_name_the_platforms_builds_and_those_in_use(agent, alice, base):
    make_template("unused", team=alice.team)
    used = make_template("used", team=alice.team, pool_size=3)
    type(used).objects.filter(pk=used.pk).update(last_spawned_at=timezone.now())
    pools = {pool.template_id: pool.size for pool in beat(agent).pools}
    assert pools == {base.public_id: 2, used.public_id: 3}


def test_a_quiet_heartbeat_is_cheap(agent, sandbox, django_assert_max_num_queries):
    beat(agent)
    with django_assert_max_num_queries(6):
        beat(agent)


# --- The loops -------------------------------------------------------------------------------


def test_a_deadline_its_node_let_pass_is_enforced(agent, sandbox):
    Sandbox.objects.filter(pk=sandbox.pk).update(end_at=timezone.now())
    later = timezone.now() + timedelta(seconds=10)
    assert reconcile.end_overdue(now=later) == 1
    assert (fresh(sandbox).state, sandbox.end_reason) == (State.ENDED, EndReason.TIMEOUT)
    assert agent.sandboxes == {}
    assert reconcile.end_overdue(now=later) == 0


def test_an_overdue_auto_pause_pauses(agent, sandbox):
    Sandbox.objects.filter(pk=sandbox.pk).update(
        end_at=timezone.now(), on_timeout="pause", auto_pause_memory=False
    )
    reconcile.end_overdue(now=timezone.now() + timedelta(seconds=10))
    assert (fresh(sandbox).state, sandbox.keeps_memory) == (State.PAUSED, False)


def test_an_overdue_sandbox_its_node_ended_is_settled_as_timed_out(agent, sandbox):
    Sandbox.objects.filter(pk=sandbox.pk).update(end_at=timezone.now())
    agent.sandboxes.clear()
    reconcile.end_overdue(now=timezone.now() + timedelta(seconds=10))
    assert (fresh(sandbox).state, sandbox.end_reason) == (State.ENDED, EndReason.TIMEOUT)


@pytest.mark.parametrize(
    ("state", "on_node", "settled"),
    [
        (State.STARTING, "nothing", State.ENDED),
        (State.STARTING, "running", State.RUNNING),
        (State.PAUSING, "running", State.RUNNING),
        (State.PAUSING, "paused", State.PAUSED),
        (State.RESUMING, "running", State.RUNNING),
        (State.RESUMING, "paused", State.PAUSED),
        (State.SNAPSHOTTING, "running", State.RUNNING),
        (State.KILLING, "running", State.ENDED),
        (State.KILLING, "nothing", State.ENDED),
        (State.PAUSING, "nothing", State.ENDED),
    ],
)
def test_a_row_stuck_between_two_states_is_settled_by_its_node(
    agent, alice, base, state, on_node, settled
):
    sandbox = make_sandbox(alice.team, template=base, now=timezone.now() - timedelta(minutes=1))
    adopt(agent, sandbox)
    if on_node == "nothing":
        agent.sandboxes.clear()
    elif on_node == "paused":
        agent.put(
            sandbox.public_id,
            state=wire.NodeSandboxState.PAUSED,
            paused_at=timezone.now().timestamp(),
        )
    changes = {"started_at": None, "end_at": None} if state is State.STARTING else {}
    Sandbox.objects.filter(pk=sandbox.pk).update(
        state=state, state_changed_at=timezone.now() - LATER, **changes
    )
    assert reconcile.settle_stuck(now=timezone.now()) == 1
    assert fresh(sandbox).state == settled
    assert reconcile.settle_stuck(now=timezone.now()) == 0


def test_a_silent_nodes_sandboxes_end_at_its_last_word(alice, base):
    last_word = timezone.now() - LATER
    node = make_node(now=last_word)
    running = make_sandbox(alice.team, template=base, node=node, now=last_word - LATER)
    paused = make_sandbox(alice.team, template=base, node=node, state=State.PAUSED)
    assert reconcile.find_lost_nodes(now=timezone.now()) == 1
    assert fresh(running).state == State.ENDED
    assert (running.end_reason, running.ended_at) == (EndReason.NODE_LOST, last_word)
    assert fresh(paused).state == State.PAUSED
    assert reconcile.find_lost_nodes(now=timezone.now()) == 0


def test_a_lost_node_that_comes_back_is_told_to_kill_what_was_given_up(agent, sandbox):
    later = timezone.now() + LATER
    reconcile.find_lost_nodes(now=later)
    assert fresh(sandbox).end_reason == EndReason.NODE_LOST
    assert beat(agent, now=later).kill == [sandbox.public_id]
    assert Node.objects.get().is_lost is False


def test_a_node_that_reports_is_not_lost(agent):
    assert reconcile.find_lost_nodes(now=timezone.now()) == 0


def test_old_records_are_forgotten(agent, sandbox):
    agent.tell(wire.EventKind.LOG, sandbox.public_id, message="x")
    beat(agent)
    reconcile.forget_old_records(now=timezone.now() + timedelta(days=6))
    assert SandboxEvent.objects.count() == 1
    reconcile.forget_old_records(now=timezone.now() + timedelta(days=8))
    assert SandboxEvent.objects.count() == 0


def test_the_tasks_run_twice(agent, sandbox):
    from sandboxes import tasks

    for _ in range(2):
        tasks.settle_sandboxes()
        tasks.find_lost_nodes()
        tasks.forget_old_records()
    assert fresh(sandbox).state == State.RUNNING
