"""The life of sandboxes on a node whose engine is a fake."""

import asyncio

import pytest

from nodeagent.errors import (
    Conflict,
    DeadlineExceeded,
    InvalidArgument,
    NotFound,
    Unavailable,
)
from nodeagent.runtime.base import ContainerSpec
from nodeagent.wire import (
    EndReason,
    EventKind,
    NetworkConfig,
    NodeSandboxState,
    OnTimeout,
)
from tests.unit.nodeagent.fakes import IMAGE, create_spec, pool_spec

RUNNING, PAUSED = NodeSandboxState.RUNNING, NodeSandboxState.PAUSED


async def warm(stage, count=1, **changes):
    stage.control_plane.reply["pools"] = [pool_spec(count, **changes)]
    stage.agent.put_pools([pool_spec(count, **changes)])
    await stage.until(lambda: stage.agent.status().warm.get("build1") == count)


def ended_events(stage):
    return {
        event.sandbox_id: event.data["reason"]
        for event in stage.control_plane.events
        if event.kind is EventKind.ENDED
    }


async def heard(stage, kind, sandbox_id="i1"):
    def found():
        return [
            event
            for event in stage.control_plane.events
            if event.kind is kind and event.sandbox_id == sandbox_id
        ]

    await stage.until(found)
    return found()[-1]


# -- create


async def test_a_cold_start_runs_from_when_it_is_ready(stage):
    started = await stage.agent.create(create_spec(timeout_seconds=60))

    assert not started.warm
    assert started.end_at == started.started_at + 60
    assert stage.agent.state("i1").state is RUNNING
    event = await heard(stage, EventKind.STARTED)
    assert (event.at, event.data["end_at"]) == (started.started_at, started.end_at)


async def test_a_warm_start_makes_no_call_to_the_engine(stage):
    await warm(stage)
    stage.runtime.calls.clear()
    stage.runtime.boot_gate.clear()  # nor may it wait for the refill

    started = await stage.agent.create(create_spec())

    assert started.warm
    assert set(stage.runtime.calls) <= {"boot"}
    assert stage.firewall.calls == []
    stage.runtime.boot_gate.set()


async def test_a_warm_container_serves_one_tenant_only(stage):
    await warm(stage)
    first = await stage.agent.create(create_spec("i1"))
    container_id = stage.agent.find("i1").container_id
    stage.agent.kill("i1", reason=EndReason.KILLED)
    await stage.until(lambda: stage.agent.status().warm == {"build1": 1})
    await stage.agent.create(create_spec("i2"))

    assert first.warm
    assert stage.agent.find("i2").container_id != container_id


async def test_another_size_of_the_same_build_is_not_served_from_the_pool(stage):
    await warm(stage)
    assert not (await stage.agent.create(create_spec(memory_mb=512))).warm


async def test_the_start_command_of_a_warm_container_ran_before_it_was_claimed(stage):
    await warm(stage, start_cmd="serve", ready_cmd="check", template_env={"A": "1"})
    spec = create_spec(start_cmd="serve", ready_cmd="check", template_env={"A": "1"})
    await stage.agent.create(spec)

    started = stage.agent.find("i1").link.started
    assert [item["args"][-1] for item in started] == ["serve", "check"]
    assert started[0]["env"] == {"A": "1"}
    assert started[0]["user"] == "user"


async def test_a_ready_command_is_asked_until_it_passes(stage):
    stage.runtime.exit_codes = [0, 1, 1]
    await stage.agent.create(create_spec(start_cmd="serve", ready_cmd="check"))
    assert [item["args"][-1] for item in stage.agent.find("i1").link.started] == [
        "serve", "check", "check", "check",
    ]  # fmt: skip


async def test_a_pure_wait_is_no_reason_to_wait(stage):
    await stage.agent.create(create_spec(start_cmd="serve", ready_cmd="sleep 20"))
    assert len(stage.agent.find("i1").link.started) == 1


async def test_the_same_create_twice_makes_one_sandbox(stage):
    first, second = await asyncio.gather(
        stage.agent.create(create_spec()), stage.agent.create(create_spec())
    )
    third = await stage.agent.create(create_spec())

    assert first == second == third
    assert len(stage.runtime.running) == 1


async def test_the_answer_to_a_repeated_create_outlives_a_restart(stage):
    first = await stage.agent.create(create_spec())
    await stage.restart()
    assert await stage.agent.create(create_spec()) == first


@pytest.mark.parametrize(
    "changes",
    [
        {"sandbox_id": "../../etc/x"},
        {"sandbox_id": ""},
        {"sandbox_id": "UPPER"},
        {"image": "--privileged"},
        {"image": ""},
        {"cpu_count": 0},
        {"memory_mb": -1},
        {"timeout_seconds": 0.0},
        {"timeout_seconds": float("nan")},
        {"network": NetworkConfig(deny_out=["nonsense"])},
    ],
)
async def test_a_bad_create_makes_nothing(stage, changes):
    with pytest.raises(InvalidArgument):
        await stage.agent.create(create_spec(**changes))
    assert stage.runtime.calls == []
    assert stage.agent.states() == []


async def test_a_boot_that_fails_leaves_nothing(stage):
    stage.runtime.boot_error = Unavailable("no space")
    with pytest.raises(Unavailable, match="no space"):
        await stage.agent.create(create_spec())

    assert stage.agent.states() == []
    assert stage.runtime.running == {}
    stage.runtime.boot_error = None
    await stage.agent.create(create_spec())  # the id is free again


async def test_a_start_whose_rules_cannot_be_set_leaves_no_container(stage):
    stage.firewall.error = Unavailable("iptables is busy")
    await warm(stage)
    with pytest.raises(Unavailable):
        await stage.agent.create(create_spec(network=NetworkConfig(deny_out=["0.0.0.0/0"])))

    assert stage.agent.states() == []
    warm_id = None
    await stage.until(lambda: stage.agent.status().warm == {"build1": 1})
    (warm_id,) = stage.runtime.running
    assert warm_id == "c2"  # the claimed one is gone; what is there is its successor


async def test_a_ready_command_that_never_passes_ends_the_start(stage):
    await stage.kill()
    await stage.start(create_timeout_seconds=0.2)
    stage.runtime.exit_codes = [0] + [1] * 100
    with pytest.raises(DeadlineExceeded, match="ready command"):
        await stage.agent.create(create_spec(start_cmd="serve", ready_cmd="check"))
    await stage.until(lambda: not stage.runtime.running and not stage.runtime.stopped)


async def test_rules_are_in_force_before_the_sandbox_is_there(stage):
    network = NetworkConfig(allow_internet_access=False)
    await stage.agent.create(create_spec(network=network))
    sandbox = stage.agent.find("i1")
    assert stage.firewall.rules == {sandbox.container_id: (sandbox.container.ip, network)}


async def test_a_full_node_says_so(stage):
    await stage.kill()
    await stage.start(max_sandboxes=1)
    await stage.agent.create(create_spec("i1"))
    with pytest.raises(Unavailable, match="full"):
        await stage.agent.create(create_spec("i2"))


async def test_a_caller_that_gives_up_does_not_undo_the_start(stage):
    stage.runtime.boot_gate.clear()
    impatient = asyncio.create_task(stage.agent.create(create_spec()))
    await stage.until(lambda: "boot" in stage.runtime.calls)
    impatient.cancel()
    stage.runtime.boot_gate.set()
    await stage.until(lambda: stage.agent.find("i1"))


async def test_a_sandbox_that_is_starting_is_listed(stage):
    stage.runtime.boot_gate.clear()
    creating = asyncio.create_task(stage.agent.create(create_spec()))
    await stage.until(lambda: "boot" in stage.runtime.calls)

    assert [state.state for state in stage.agent.states()] == [NodeSandboxState.STARTING]
    assert stage.agent.find("i1") is None
    stage.runtime.boot_gate.set()
    await creating


# -- end


async def test_a_kill_unroutes_and_resets_before_anything_else(stage):
    await stage.agent.create(create_spec())
    sandbox = stage.agent.find("i1")
    seen = []
    sandbox.aborts.add(lambda: seen.append((sandbox.is_routable, "remove" in stage.runtime.calls)))

    stage.agent.kill("i1", reason=EndReason.KILLED)

    assert seen == [(False, False)]
    assert stage.agent.find("i1") is None
    with pytest.raises(NotFound):
        stage.agent.kill("i1", reason=EndReason.KILLED)
    await stage.until(lambda: not stage.runtime.running and not stage.runtime.stopped)
    assert (await heard(stage, EventKind.ENDED)).data["reason"] == "killed"


async def test_a_kill_takes_rules_away_with_the_container(stage):
    await stage.agent.create(create_spec(network=NetworkConfig(deny_out=["1.1.1.1"])))
    stage.agent.kill("i1", reason=EndReason.KILLED)
    await stage.until(lambda: not stage.firewall.rules)


async def test_a_kill_during_the_start_wins(stage):
    stage.runtime.boot_gate.clear()
    creating = asyncio.create_task(stage.agent.create(create_spec()))
    await stage.until(lambda: "boot" in stage.runtime.calls)

    stage.agent.kill("i1", reason=EndReason.KILLED)

    with pytest.raises(Conflict, match="killed"):
        await creating
    assert stage.agent.states() == []
    with pytest.raises(Conflict, match="ended"):
        await stage.agent.create(create_spec())


async def test_a_container_that_dies_by_itself_ends_its_sandbox(stage):
    await stage.agent.create(create_spec("i1"))
    await stage.agent.create(create_spec("i2"))
    stage.runtime.die(stage.agent.find("i1").container_id)
    stage.runtime.die(stage.agent.find("i2").container_id, oom=True)

    await stage.until(lambda: len(ended_events(stage)) == 2)
    assert ended_events(stage) == {"i1": "exited", "i2": "oom"}
    await stage.until(lambda: not stage.runtime.stopped)


async def test_a_warm_container_that_dies_is_replaced(stage):
    await warm(stage)
    (dead,) = stage.runtime.running
    stage.runtime.die(dead)
    await stage.until(lambda: dead not in stage.runtime.stopped and stage.runtime.running)
    await stage.until(lambda: stage.agent.status().warm == {"build1": 1})
    await stage.agent.create(create_spec())
    assert stage.agent.find("i1").container_id != dead


# -- deadlines


async def test_a_deadline_kills(stage):
    await stage.agent.create(create_spec(timeout_seconds=60))
    stage.clock.advance(59.9)
    stage.agent.enforce_due()
    assert stage.agent.find("i1")

    stage.clock.advance(0.1)
    stage.agent.enforce_due()
    assert stage.agent.find("i1") is None
    assert (await heard(stage, EventKind.ENDED)).data["reason"] == "timeout"


async def test_a_deadline_pauses_where_that_was_asked(stage):
    await stage.agent.create(create_spec(timeout_seconds=60, on_timeout=OnTimeout.PAUSE))
    stage.clock.advance(60)
    stage.agent.enforce_due()
    event = await heard(stage, EventKind.PAUSED)
    assert event.data == {"memory": True, "reason": "timeout"}
    assert stage.agent.state("i1").state is PAUSED


async def test_a_moved_deadline_counts_from_then_on(stage):
    await stage.agent.create(create_spec(timeout_seconds=60))
    stage.agent.set_deadline("i1", stage.clock.now + 5)
    stage.clock.advance(5)
    stage.agent.enforce_due()
    assert stage.agent.find("i1") is None


async def test_a_deadline_is_capped_by_the_longest_life(stage):
    started = await stage.agent.create(create_spec(max_length_seconds=100))
    assert started.end_at == started.started_at + 100
    state = stage.agent.set_deadline("i1", stage.clock.now + 1000)
    assert state.end_at == started.started_at + 100


async def test_the_loop_itself_acts_on_time(stage):
    await stage.agent.create(create_spec(timeout_seconds=60))
    stage.clock.advance(60)
    stage.agent.set_deadline("i1", stage.clock.now)  # what wakes the loop
    await stage.until(lambda: stage.agent.find("i1") is None)


# -- pause and resume


async def test_a_pause_with_memory_freezes_and_a_resume_goes_on(stage):
    await stage.agent.create(create_spec())
    sandbox = stage.agent.find("i1")
    stage.clock.advance(10)
    paused = await stage.agent.pause("i1", memory=True)

    assert paused.memory
    assert not sandbox.is_routable
    assert stage.runtime.frozen == {sandbox.container_id}
    assert stage.agent.state("i1").end_at == paused.paused_at == stage.clock.now

    stage.clock.advance(1000)
    stage.agent.enforce_due()  # a paused sandbox has no deadline
    resumed = await stage.agent.resume("i1", timeout_seconds=50, memory=True)
    assert resumed.warm
    assert (resumed.started_at, resumed.end_at) == (stage.clock.now, stage.clock.now + 50)
    assert sandbox.is_routable
    assert "reboot" not in stage.runtime.calls


async def test_a_pause_without_memory_boots_again(stage):
    network = NetworkConfig(deny_out=["1.1.1.1"])
    await stage.agent.create(create_spec(start_cmd="serve", network=network))
    sandbox = stage.agent.find("i1")
    paused = await stage.agent.pause("i1", memory=False)
    assert not paused.memory
    assert sandbox.container_id in stage.runtime.stopped

    resumed = await stage.agent.resume("i1", timeout_seconds=50, memory=True)
    assert not resumed.warm
    assert stage.agent.find("i1") is sandbox
    assert [item["args"][-1] for item in sandbox.link.started] == ["serve", "serve"]
    assert sandbox.container_id in stage.firewall.rules


async def test_memory_can_be_left_behind_at_resume(stage):
    await stage.agent.create(create_spec())
    await stage.agent.pause("i1", memory=True)
    resumed = await stage.agent.resume("i1", timeout_seconds=50, memory=False)
    assert not resumed.warm
    assert stage.runtime.calls[-2:] == ["halt", "reboot"]


async def test_pauses_and_resumes_at_once_join(stage):
    await stage.agent.create(create_spec())
    first, second = await asyncio.gather(
        stage.agent.pause("i1", memory=True), stage.agent.pause("i1", memory=False)
    )
    assert first == second
    again = await asyncio.gather(
        *(stage.agent.resume("i1", timeout_seconds=9, memory=True) for _ in range(3))
    )
    assert again[0].end_at == again[1].end_at == again[2].end_at
    assert stage.runtime.calls.count("freeze") == stage.runtime.calls.count("thaw") == 1


async def test_a_resume_of_a_running_sandbox_leaves_it_alone(stage):
    started = await stage.agent.create(create_spec())
    resumed = await stage.agent.resume("i1", timeout_seconds=5, memory=True)
    assert (resumed.started_at, resumed.end_at) == (started.started_at, started.end_at)


async def test_a_pause_that_fails_lets_the_sandbox_run_on(stage):
    await stage.agent.create(create_spec())
    sandbox = stage.agent.find("i1")
    container = stage.runtime.running.pop(sandbox.container_id)  # freeze will fail
    with pytest.raises(Unavailable):
        await stage.agent.pause("i1", memory=True)
    stage.runtime.running[sandbox.container_id] = container

    assert sandbox.is_routable
    assert stage.agent.state("i1").state is RUNNING
    stage.clock.advance(10_000)
    stage.agent.enforce_due()
    assert stage.agent.find("i1") is None


async def test_a_kill_wins_over_a_pause_under_way(stage):
    await stage.agent.create(create_spec())
    sandbox = stage.agent.find("i1")
    pausing = asyncio.create_task(stage.agent.pause("i1", memory=True))
    await asyncio.sleep(0)
    stage.agent.kill("i1", reason=EndReason.KILLED)
    with pytest.raises(NotFound):
        await pausing
    await stage.until(lambda: sandbox.container_id not in stage.runtime.running)
    assert stage.agent.states() == []


async def test_a_paused_sandbox_that_loses_its_container_process_keeps_its_files(stage):
    await stage.agent.create(create_spec())
    await stage.agent.pause("i1", memory=True)
    stage.runtime.die(stage.agent.find("i1").container_id)
    await stage.until(lambda: not stage.agent.state("i1").memory)

    resumed = await stage.agent.resume("i1", timeout_seconds=5, memory=True)
    assert not resumed.warm


# -- waking by traffic


async def test_traffic_wakes_for_the_time_of_the_create(stage):
    await stage.agent.create(create_spec(auto_resume=True, timeout_seconds=400))
    sandbox = stage.agent.find("i1")
    stage.agent.set_deadline("i1", stage.clock.now + 7)
    await stage.agent.pause("i1", memory=True)
    await asyncio.gather(stage.agent.wake(sandbox), stage.agent.wake(sandbox))
    assert sandbox.is_routable
    assert sandbox.end_at == pytest.approx(stage.clock.now + 400, abs=0.01)


async def test_traffic_wakes_for_five_minutes_at_least(stage):
    await stage.agent.create(create_spec(auto_resume=True, timeout_seconds=3))
    await stage.agent.pause("i1", memory=True)
    await stage.agent.wake(stage.agent.find("i1"))
    assert stage.agent.state("i1").end_at == pytest.approx(stage.clock.now + 300, abs=0.01)


@pytest.mark.parametrize(("auto_resume", "memory"), [(False, True), (True, False)])
async def test_traffic_does_not_wake_without_leave_or_memory(stage, auto_resume, memory):
    await stage.agent.create(create_spec(auto_resume=auto_resume))
    await stage.agent.pause("i1", memory=memory)
    with pytest.raises(NotFound):
        await stage.agent.wake(stage.agent.find("i1"))
    assert stage.agent.state("i1").state is PAUSED


# -- network, snapshots, images


async def test_new_rules_replace_old_ones_and_outlive_a_restart(stage):
    await stage.agent.create(create_spec(network=NetworkConfig(deny_out=["1.1.1.1"])))
    fresh = NetworkConfig(deny_out=["2.2.2.2"])
    await stage.agent.put_network("i1", fresh)
    await stage.restart()
    container_id = stage.agent.find("i1").container_id
    assert stage.firewall.rules[container_id][1] == fresh


async def test_bad_rules_change_nothing(stage):
    network = NetworkConfig(deny_out=["1.1.1.1"])
    await stage.agent.create(create_spec(network=network))
    with pytest.raises(InvalidArgument):
        await stage.agent.put_network("i1", NetworkConfig(deny_out=["x"]))
    assert stage.agent.find("i1").spec.network == network


async def test_a_snapshot_leaves_the_sandbox_running(stage):
    await stage.agent.create(create_spec())
    size_bytes = await stage.agent.snapshot("i1", "snapshots/s1:latest")
    assert size_bytes > 0
    assert stage.agent.find("i1").is_routable
    assert "snapshots/s1:latest" in stage.runtime.images


async def test_an_image_goes_right_after_its_last_sandbox(stage):
    await warm(stage, image="snap:1")
    await stage.agent.create(create_spec(image="snap:1"))
    with pytest.raises(Conflict):
        await stage.agent.delete_image("snap:1")
    stage.agent.kill("i1", reason=EndReason.KILLED)
    await stage.agent.delete_image("snap:1")
    await stage.agent.delete_image("snap:1")  # once more is no error


# -- an agent that dies


async def test_everything_outlives_the_agent(stage):
    await warm(stage, 2)
    await stage.agent.create(create_spec("i1", timeout_seconds=60))
    await stage.until(lambda: stage.agent.status().warm == {"build1": 2})
    await stage.agent.create(create_spec("i2", timeout_seconds=5))
    await stage.agent.create(create_spec("i3", envd_access_token="secret"))
    await stage.agent.pause("i3", memory=True)
    before = {box.sandbox_id: box.container_id for box in stage.agent.all()}
    await stage.kill()
    stage.clock.advance(10)
    stage.runtime.calls.clear()
    await stage.start()

    await stage.until(lambda: stage.agent.find("i2") is None)  # overdue meanwhile
    assert ended_events(stage).get("i2", "timeout") == "timeout"
    assert {box.sandbox_id: box.container_id for box in stage.agent.all()} == {
        "i1": before["i1"],
        "i3": before["i3"],
    }
    assert stage.agent.find("i3").spec.envd_access_token == "secret"
    assert stage.agent.state("i3").state is PAUSED
    resumed = await stage.agent.resume("i3", timeout_seconds=5, memory=True)
    assert resumed.warm


async def test_the_data_plane_takes_over_what_runs_and_a_frozen_one_once_it_thaws(stage):
    for sandbox_id in ("i1", "i2"):
        await stage.agent.create(create_spec(sandbox_id))
    await stage.agent.pause("i2", memory=True)
    stage.adopted.clear()
    await stage.restart()
    assert stage.adopted == ["i1"]  # a frozen guest would not answer

    await stage.agent.resume("i2", timeout_seconds=5, memory=True)
    assert stage.adopted == ["i1", "i2"]


async def test_a_sandbox_that_died_with_the_agent_is_told_of(stage):
    await stage.agent.create(create_spec())
    container_id = stage.agent.find("i1").container_id
    await stage.kill()
    stage.runtime.stopped[container_id] = stage.runtime.running.pop(container_id)
    await stage.start()

    assert (await heard(stage, EventKind.ENDED)).data["reason"] == "exited"
    await stage.until(lambda: not stage.runtime.stopped)


async def test_half_made_containers_are_removed(stage):
    await stage.kill()
    await stage.runtime.boot(create_spec_container())
    await stage.start()
    await stage.until(lambda: not stage.runtime.running)


async def test_a_container_claimed_in_the_moment_of_death_is_not_warm_again(stage):
    await warm(stage)
    warm_dir = stage.state_dir / "node/n1/warm"
    (kept,) = warm_dir.iterdir()
    text = kept.read_text()
    stage.control_plane.reply["pools"] = []
    await stage.agent.create(create_spec())
    await stage.kill()
    kept.write_text(text)  # as if it had not been deleted yet
    await stage.start()

    assert stage.agent.find("i1")
    await stage.until(lambda: not kept.exists())
    assert stage.agent.status().warm == {}


# -- the control plane


async def test_events_wait_for_a_control_plane_that_is_away(stage):
    stage.control_plane.is_down = True
    await stage.agent.create(create_spec())
    stage.agent.kill("i1", reason=EndReason.KILLED)
    stage.control_plane.is_down = False
    await heard(stage, EventKind.ENDED)
    assert [event.seq for event in stage.control_plane.events] == [1, 2]


async def test_a_heartbeat_kills_what_the_control_plane_does_not_know(stage):
    await stage.agent.create(create_spec())
    stage.control_plane.reply["kill"] = ["i1", "never-heard-of"]
    await stage.until(lambda: stage.agent.find("i1") is None)
    assert (await heard(stage, EventKind.ENDED)).data["reason"] == "unknown_to_control_plane"


async def test_a_heartbeat_brings_pools_and_deadlines(stage):
    started = await stage.agent.create(create_spec())
    stage.control_plane.reply["pools"] = [pool_spec(2)]
    stage.control_plane.reply["deadlines"] = {"i1": started.end_at + 60}
    await stage.until(lambda: stage.agent.status().warm == {"build1": 2})
    await stage.until(lambda: stage.agent.state("i1").end_at == started.end_at + 60)


async def test_pools_no_longer_wanted_drain(stage):
    await warm(stage, 2)
    stage.control_plane.reply["pools"] = []
    await stage.until(lambda: not stage.runtime.running and not stage.runtime.stopped)


async def test_lines_of_logs_wait_for_each_other_and_other_events_do_not(stage, monkeypatch):
    monkeypatch.setattr("nodeagent.agent.LOG_COALESCE_SECONDS", 3600.0)
    await stage.agent.create(create_spec())
    await heard(stage, EventKind.STARTED)
    sandbox = stage.agent.find("i1")
    stage.agent.log(sandbox, "info", "a line", {})
    assert not stage.agent._heartbeat_now.is_set()
    stage.agent.kill("i1", reason=EndReason.KILLED)
    await heard(stage, EventKind.ENDED)
    assert "a line" in [event.data.get("message") for event in stage.control_plane.events]


async def test_a_log_that_floods_is_cut(stage):
    await stage.agent.create(create_spec())
    sandbox = stage.agent.find("i1")
    for number in range(1000):
        stage.agent.log(sandbox, "info", f"line {number}", {"pid": 1})
    await heard(stage, EventKind.LOG)
    await asyncio.sleep(0)
    lines = [event for event in stage.control_plane.events if event.kind is EventKind.LOG]
    assert 0 < len(lines) <= 60
    assert lines[0].data["fields"] == {"pid": "1"}


def create_spec_container():
    return ContainerSpec(
        name="sandlot-n1-x", image=IMAGE, template_id="t", build_id="b",
        cpu_count=1, memory_mb=64, disk_size_mb=64,
    )  # fmt: skip
