from dataclasses import replace

from nodeagent.reconcile import WantedSandbox, plan_containers, plan_reply
from nodeagent.runtime.base import FoundContainer
from nodeagent.wire import HeartbeatReply, NodeSandboxState

RUNNING, PAUSED = NodeSandboxState.RUNNING, NodeSandboxState.PAUSED


def wanted(sandbox_id, *, state=RUNNING, keeps_memory=True):
    return WantedSandbox(
        sandbox_id=sandbox_id,
        container_id=f"c-{sandbox_id}",
        state=state,
        keeps_memory=keeps_memory,
    )


def found(container_id, *, running=True, frozen=False):
    return FoundContainer(
        container_id=container_id,
        name=f"name-{container_id}",
        is_running=running,
        is_frozen=frozen,
        created_at=0.0,
    )


def plan(sandboxes=(), containers=(), warm=()):
    return plan_containers(sandboxes=list(sandboxes), warm=set(warm), found=list(containers))


def test_a_running_sandbox_whose_container_runs_is_kept():
    result = plan([wanted("a")], [found("c-a")])
    assert result.keep == ["a"]
    assert not result.remove


def test_a_sandbox_without_container_is_lost():
    assert plan([wanted("a")]).lost == ["a"]


def test_a_running_sandbox_whose_container_stopped_is_lost_and_its_container_removed():
    result = plan([wanted("a")], [found("c-a", running=False)])
    assert result.lost == ["a"]
    assert [container.container_id for container in result.remove] == ["c-a"]


def test_a_stopped_container_that_was_being_halted_is_a_pause():
    sandbox = replace(wanted("a"), is_halting=True)
    result = plan([sandbox], [found("c-a", running=False)])
    assert result.halted == ["a"]
    assert not result.lost
    assert not result.remove
    assert plan([sandbox], [found("c-a")]).keep == ["a"]


def test_a_running_sandbox_found_frozen_is_thawed():
    assert plan([wanted("a")], [found("c-a", frozen=True)]).thaw == ["a"]


def test_a_paused_sandbox_that_lost_its_processes_keeps_its_files():
    result = plan([wanted("a", state=PAUSED)], [found("c-a", running=False)])
    assert result.demote == ["a"]
    assert not result.remove
    assert not result.lost


def test_a_paused_sandbox_without_memory_is_kept_stopped():
    result = plan([wanted("a", state=PAUSED, keeps_memory=False)], [found("c-a", running=False)])
    assert result.keep == ["a"]


def test_warm_containers_stay_warm_while_they_run():
    result = plan(containers=[found("w1"), found("w2", running=False)], warm={"w1", "w2"})
    assert result.keep_warm == ["w1"]
    assert [container.container_id for container in result.remove] == ["w2"]


def test_a_claimed_container_is_never_warm_again():
    result = plan([wanted("a")], [found("c-a")], warm={"c-a"})
    assert result.keep == ["a"]
    assert result.keep_warm == []


def test_what_nobody_knows_is_removed():
    assert [item.container_id for item in plan(containers=[found("x")]).remove] == ["x"]


def test_a_reply_cannot_kill_what_its_heartbeat_did_not_list():
    reply = HeartbeatReply(acked_seq=0, kill=["old", "new"])
    assert plan_reply(reply, reported={"old"}, running={"old": 1.0, "new": 1.0}).kill == ["old"]


def test_a_reply_moves_only_deadlines_that_differ():
    reply = HeartbeatReply(
        acked_seq=0, kill=["k"], deadlines={"a": 1.0, "b": 2.0, "k": 3.0, "x": 4.0}
    )
    result = plan_reply(reply, reported={"a", "b", "k"}, running={"a": 1.0, "b": 1.5, "k": 1.0})
    assert result.deadlines == {"b": 2.0}
