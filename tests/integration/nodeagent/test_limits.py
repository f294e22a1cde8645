"""A sandbox that takes all it can get harms itself alone."""

import time

import pytest

from nodeagent.wire import EndReason, EventKind
from tests.integration.nodeagent.conftest import running_agent, until

pytestmark = pytest.mark.docker

BOMB = """python3 -c '
import os, time
for _ in range(300):
    try:
        if not os.fork():
            os.close(1); os.close(2); time.sleep(300)
    except BlockingIOError:
        break
'"""
EAT = "python3 -c 'x = bytearray(600 << 20)'"


@pytest.fixture(scope="module")
def agent(engine, image):
    with running_agent(engine, image, SANDLOT_PIDS_LIMIT="100") as running:
        yield running


def test_a_fork_bomb_stops_at_the_limit_and_can_be_killed(agent):
    sandbox_id = agent.create()
    agent.run(sandbox_id, BOMB)
    container = agent.stored(sandbox_id)["container_id"]
    assert 50 < len(agent.engine.api.top(container)["Processes"]) <= 100

    began = time.monotonic()
    agent.client.kill(sandbox_id)
    until(lambda: container not in agent.containers())
    assert time.monotonic() - began < 5


def test_memory_runs_out_for_the_process_that_took_it(agent):
    sandbox_id = agent.create()
    code, _ = agent.run(sandbox_id, EAT)
    assert code == 137
    assert agent.run(sandbox_id, "echo alive") == (0, "alive")
    until(lambda: agent.control_plane.events_of(sandbox_id, EventKind.LOG))
    assert "memory" in agent.control_plane.events_of(sandbox_id, EventKind.LOG)[0].data["message"]
    agent.client.kill(sandbox_id)


def test_a_sandbox_that_dies_of_memory_says_so(agent):
    sandbox_id = agent.create()
    # Its own doing: PID 1 made the first to go.
    agent.run(sandbox_id, f"echo 1000 > /proc/1/oom_score_adj; exec {EAT}")
    until(lambda: agent.control_plane.events_of(sandbox_id, EventKind.ENDED), what=agent.log)
    (ended,) = agent.control_plane.events_of(sandbox_id, EventKind.ENDED)
    assert ended.data["reason"] == EndReason.OOM


def test_limits_are_those_asked_for(agent):
    sandbox_id = agent.create(cpu_count=2, memory_mb=300)
    host = agent.inspect(sandbox_id)["HostConfig"]
    assert host["NanoCpus"] == 2_000_000_000
    assert host["Memory"] == host["MemorySwap"] == 300 * 1024 * 1024
    assert host["LogConfig"]["Type"] == "none"  # nothing it prints lands on the host's disk
    assert agent.run(sandbox_id, "ulimit -c") == (0, "0")
    agent.client.kill(sandbox_id)
