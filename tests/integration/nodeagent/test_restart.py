"""An agent that is killed loses nothing; one that stops in order leaves its sandboxes running."""

import threading

import pytest

from nodeagent.errors import AgentError
from nodeagent.wire import EventKind, NetworkConfig, NodeSandboxState
from tests.integration.nodeagent.conftest import until

pytestmark = pytest.mark.docker


def test_killed_with_sandboxes_in_every_state(own_agent):
    agent = own_agent
    running = [agent.create(envd_access_token="secret") for _ in range(2)]
    denied = agent.create(network=NetworkConfig(allow_internet_access=False))
    frozen = agent.create()
    stopped = agent.create()
    doomed = agent.create(timeout_seconds=2.0)
    for sandbox_id in (*running, frozen, stopped):
        agent.run(sandbox_id, f"echo {sandbox_id} > /root/name; setsid sleep 987 &> /dev/null &")
    agent.client.pause(frozen)
    agent.client.pause(stopped, memory=False)
    agent.keep_warm(2)
    warm = set(agent.containers()) - {
        agent.stored(sandbox_id)["container_id"]
        for sandbox_id in (*running, denied, frozen, stopped, doomed)
    }
    rules = agent.rules()
    agent.kill9()
    until(lambda: agent.run(running[0], "true") == (0, ""))  # they do not need the agent

    agent.start()

    for sandbox_id in running:
        assert agent.run(sandbox_id, "cat /root/name; pgrep -x sleep | wc -l") == (
            0,
            f"{sandbox_id}\n1",
        )
    assert agent.client.get_sandbox(frozen).state is NodeSandboxState.PAUSED
    assert agent.client.resume(frozen, timeout_seconds=60).warm
    assert agent.run(frozen, "pgrep -x sleep | wc -l") == (0, "1")
    assert not agent.client.resume(stopped, timeout_seconds=60).warm
    assert agent.run(stopped, "cat /root/name") == (0, stopped)
    assert sorted(agent.rules()) == sorted(rules)
    until(lambda: agent.control_plane.events_of(doomed, EventKind.ENDED), what=agent.log)
    until(lambda: agent.client.node_status().warm == {"build1": 2}, what=agent.log)
    claimed = agent.spec()
    assert agent.client.create(claimed).warm
    assert agent.stored(claimed.sandbox_id)["container_id"] in warm


def test_killed_in_the_middle_of_creates(own_agent):
    agent = own_agent
    specs = [agent.spec() for _ in range(4)]

    def create(spec):
        try:
            agent.client.create(spec)
        except AgentError:
            return

    threads = [threading.Thread(target=create, args=(spec,)) for spec in specs]
    for thread in threads:
        thread.start()
    until(agent.containers)
    agent.kill9()
    for thread in threads:
        thread.join()
    agent.start()

    # What was not finished is gone; what was is whole; the same ids can be asked for again.
    known = {state.sandbox_id for state in agent.client.list_sandboxes()}
    until(lambda: len(agent.containers()) == len(known), what=agent.log)
    for spec in specs:
        agent.client.create(spec)
        assert agent.run(spec.sandbox_id, "echo ok") == (0, "ok")


def test_stopping_in_order_leaves_sandboxes_running(own_agent):
    agent = own_agent
    sandbox_id = agent.create()
    assert agent.stop() == 0
    assert agent.run(sandbox_id, "echo still") == (0, "still")
    agent.start()
    assert agent.client.get_sandbox(sandbox_id).state is NodeSandboxState.RUNNING


def test_purging_removes_containers_network_and_rules(own_agent):
    agent = own_agent
    sandbox_id = agent.create(network=NetworkConfig(deny_out=["1.1.1.1"]))
    assert agent.rules()
    agent.stop()
    agent.purge()

    assert agent.containers() == []
    assert agent.rules() == []
    assert not agent.engine.api.networks(names=[f"sandlot-{agent.node_id}"])
    agent.start()  # tells that the sandbox is gone, and works
    until(lambda: agent.control_plane.events_of(sandbox_id, EventKind.ENDED), what=agent.log)
    assert agent.run(agent.create(), "echo new") == (0, "new")
