"""Create, pause, resume, snapshot and end, on a real engine."""

import time

import pytest

from nodeagent.errors import Conflict, DeadlineExceeded, NotFound
from nodeagent.wire import EndReason, EventKind, NodeSandboxState, OnTimeout
from tests.integration.nodeagent.conftest import running_agent, until

pytestmark = pytest.mark.docker

BOOT_ID = "cat /proc/sys/kernel/random/boot_id"


def test_cold_and_warm_sandboxes_run_commands_and_leave_nothing(agent):
    cold = agent.spec()
    assert not agent.client.create(cold).warm
    agent.keep_warm(1)
    warm = agent.spec()
    assert agent.client.create(warm).warm
    assert agent.run(cold.sandbox_id, "echo $((6*7)); id -un", user="user") == (0, "42\nuser")
    assert agent.run(warm.sandbox_id, BOOT_ID) != agent.run(cold.sandbox_id, BOOT_ID)

    agent.client.kill(cold.sandbox_id)
    agent.client.kill(warm.sandbox_id)
    agent.keep_warm(0)
    until(lambda: not agent.containers(), what=agent.log)
    run_dir = agent.state_dir / "node" / agent.node_id / "run"
    until(lambda: not list(run_dir.iterdir()))
    assert not list((run_dir.parent / "warm").iterdir())
    assert not list((run_dir.parent / "sandboxes").iterdir())
    with pytest.raises(NotFound):
        agent.client.kill(cold.sandbox_id)


def test_a_missing_image_is_named_and_leaves_nothing(agent):
    before = agent.containers()
    with pytest.raises(NotFound, match="not on this node") as error:
        agent.create(image="sandlot/never-built:1")
    assert error.value.error_code == "image_not_found"
    assert agent.containers() == before


def test_a_ready_command_that_never_passes_leaves_nothing(engine, image):
    with running_agent(engine, image, SANDLOT_CREATE_TIMEOUT_SECONDS="2") as agent:
        with pytest.raises(DeadlineExceeded):
            agent.create(start_cmd="sleep 100", ready_cmd="false")
        until(lambda: not agent.containers(), what=agent.log)


def test_a_deadline_is_met_within_a_tenth_of_a_second(agent):
    doomed = agent.spec(timeout_seconds=1.0)
    started = agent.client.create(doomed)
    until(lambda: agent.control_plane.events_of(doomed.sandbox_id, EventKind.ENDED))
    (ended,) = agent.control_plane.events_of(doomed.sandbox_id, EventKind.ENDED)
    assert ended.data["reason"] == EndReason.TIMEOUT
    assert 0 <= ended.at - started.end_at < 0.1


def test_a_deadline_may_pause(agent):
    sandbox_id = agent.create(timeout_seconds=0.5, on_timeout=OnTimeout.PAUSE)
    until(lambda: agent.client.get_sandbox(sandbox_id).state is NodeSandboxState.PAUSED)
    agent.client.kill(sandbox_id)


def test_a_pause_keeps_processes_and_boot_id(agent):
    sandbox_id = agent.create()
    counting = "i=0; while :; do i=$((i+1)); echo $i > /tmp/count; sleep 0.02; done"
    agent.run(sandbox_id, f"setsid bash -c '{counting}' > /dev/null 2>&1 & sleep 0.2")
    boot_id = agent.run(sandbox_id, BOOT_ID)

    began = time.monotonic()
    assert agent.client.pause(sandbox_id).memory
    assert time.monotonic() - began < 1
    assert agent.inspect(sandbox_id)["State"]["Paused"]
    agent.client.resume(sandbox_id, timeout_seconds=60)

    _, first = agent.run(sandbox_id, "cat /tmp/count")
    until(lambda: int(agent.run(sandbox_id, "cat /tmp/count")[1] or 0) > int(first or 0))
    assert agent.run(sandbox_id, BOOT_ID) == boot_id
    agent.client.kill(sandbox_id)


def test_a_pause_without_memory_keeps_files_and_boots_anew(agent):
    sandbox_id = agent.create(
        start_cmd="date +%s%N >> /tmp/starts; exec sleep 1000", ready_cmd="test -s /tmp/starts"
    )
    agent.run(sandbox_id, "head -c 3000000 /dev/urandom > /root/data; sha256sum /root/data")
    digest = agent.run(sandbox_id, "sha256sum /root/data")
    boot_id = agent.run(sandbox_id, BOOT_ID)

    for _ in range(2):
        assert not agent.client.pause(sandbox_id, memory=False).memory
        assert not agent.inspect(sandbox_id)["State"]["Running"]
        assert not agent.client.resume(sandbox_id, timeout_seconds=60).warm
        assert agent.run(sandbox_id, BOOT_ID) != boot_id
        assert agent.run(sandbox_id, "sha256sum /root/data") == digest

    until(lambda: agent.run(sandbox_id, "wc -l < /tmp/starts") == (0, "3"))
    agent.client.kill(sandbox_id)


def test_a_snapshot_holds_the_files_and_the_sandbox_runs_on(agent):
    sandbox_id = agent.create()
    agent.run(sandbox_id, "echo kept > /root/note")
    image = f"sandlot-{agent.node_id}/snap:1"
    assert agent.client.snapshot(sandbox_id, image=image) > 0
    assert agent.run(sandbox_id, "echo on") == (0, "on")

    copy_id = agent.create(image=image, build_id="snap")
    assert agent.run(copy_id, "cat /root/note") == (0, "kept")
    agent.run(copy_id, "echo changed > /root/note")
    assert agent.run(sandbox_id, "cat /root/note") == (0, "kept")
    with pytest.raises(Conflict):
        agent.client.delete_image(image)

    agent.client.kill(copy_id)
    agent.client.delete_image(image)  # at once: it waits for the container to go
    agent.client.kill(sandbox_id)


def test_usage_is_measured(agent):
    sandbox_id = agent.create()
    agent.run(sandbox_id, "head -c 20000000 /dev/zero > /root/big; sync")
    agent.run(sandbox_id, "setsid sh -c 'while :; do :; done' > /dev/null 2>&1 &")

    def busy_sample():
        return [
            sample
            for sample in list(agent.control_plane.metrics)
            if sample.sandbox_id == sandbox_id and sample.cpu_used_pct > 50
        ]

    until(busy_sample, what=agent.log)
    sample = busy_sample()[-1]
    assert sample.mem_total == 256 * 1024 * 1024
    assert 1_000_000 < sample.mem_used < sample.mem_total
    assert sample.disk_total == 1024 * 1024 * 1024
    agent.client.kill(sandbox_id)


def test_a_container_removed_behind_our_back_ends_its_sandbox(agent):
    sandbox_id = agent.create()
    agent.engine.api.remove_container(agent.stored(sandbox_id)["container_id"], force=True)
    until(lambda: agent.control_plane.events_of(sandbox_id, EventKind.ENDED), what=agent.log)
    (ended,) = agent.control_plane.events_of(sandbox_id, EventKind.ENDED)
    assert ended.data["reason"] == EndReason.EXITED


def test_what_a_start_command_says_is_in_the_log(agent):
    start_cmd = "echo before; echo trouble >&2; sleep 0.5; echo after; exec sleep 1000"
    sandbox_id = agent.create(start_cmd=start_cmd, ready_cmd="true")

    def said():
        events = agent.control_plane.events_of(sandbox_id, EventKind.LOG)
        return [event.data["message"] for event in events if event.data["fields"].get("stream")]

    until(lambda: sorted(said()) == ["after", "before", "trouble"], what=lambda: str(said()))
    agent.client.kill(sandbox_id)
