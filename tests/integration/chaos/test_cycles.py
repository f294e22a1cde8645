"""After many sandboxes, all is as it was: nothing of them is left in the kernel or in us."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import psutil
import pytest

from nodeagent.netpolicy import chain_prefix
from nodeagent.runtime.docker import bridge_name
from tests.integration.chaos.conftest import Chaos

WARM_UP = 10
AT_ONCE = 5


@dataclass(frozen=True)
class Held:
    """What the node, and the processes of the stack, hold."""

    containers: int
    interfaces: int  # on the node's bridge
    namespaces: int  # of networks, of this node's containers
    mounts: int
    rules: int
    agent_fds: int
    web_fds: int
    agent_threads: int
    web_threads: int
    agent_mb: int
    web_mb: int


# What may differ from one quiet moment to the next: connections and threads of bounded pools, which
# fill up with time, and arenas of the allocator. A leak of one a sandbox is far more.
SLACK = {"agent_fds": 12, "web_fds": 16, "agent_threads": 16, "web_threads": 16}
GROWTH_MB = 24


def measure(chaos: Chaos) -> Held:
    agent, web = (psutil.Process(chaos.stack.pid(name)) for name in ("agent", "web"))
    containers = chaos.stack.containers()
    return Held(
        containers=len(containers),
        interfaces=len(list(Path(f"/sys/class/net/{bridge(chaos)}/brif").iterdir())),
        namespaces=len(set(network_namespaces(containers))),
        mounts=len(list(mounts_of(chaos))),
        rules=len(rules_of(chaos)),
        agent_fds=agent.num_fds(),
        web_fds=web.num_fds(),
        agent_threads=agent.num_threads(),
        web_threads=web.num_threads(),
        agent_mb=agent.memory_info().rss // 2**20,
        web_mb=web.memory_info().rss // 2**20,
    )


def bridge(chaos: Chaos) -> str:
    return bridge_name(chaos.deployment.node_id)


def network_namespaces(containers: list[str]) -> Iterator[str]:
    if not containers:
        return
    form = "{{.NetworkSettings.SandboxKey}}"
    done = subprocess.run(
        ["docker", "inspect", "--format", form, *containers], capture_output=True, text=True
    )
    yield from done.stdout.split()


def mounts_of(chaos: Chaos) -> Iterator[str]:
    """Mounts of the host that belong to the node's run directory or its containers' layers."""
    marks = [str(chaos.stack.state_dir)]
    for container in chaos.stack.containers():
        form = "{{.GraphDriver.Data.MergedDir}}"
        done = subprocess.run(
            ["docker", "inspect", "--format", form, container], capture_output=True, text=True
        )
        marks += [done.stdout.strip()] if done.stdout.strip() else []
    for line in Path("/proc/mounts").read_text().splitlines():
        if any(mark in line for mark in marks):
            yield line


def rules_of(chaos: Chaos) -> list[str]:
    prefix = chain_prefix(chaos.deployment.node_id)
    done = subprocess.run(["iptables", "-w", "10", "-S"], capture_output=True, text=True)
    return [line for line in done.stdout.splitlines() if prefix in line]


def leftovers(chaos: Chaos, gone: set[str]) -> list[str]:
    """Mounts and namespaces of containers that were removed."""
    text = Path("/proc/mounts").read_text()
    return [container for container in gone if container in text]


def cycle(chaos: Chaos, number: int) -> str:
    """One sandbox through all that leaves traces: rules of its own, a pause, a file, a process."""
    network = {"denyOut": ["11.99.1.1"]} if number % 2 else None
    sandbox_id = chaos.create(**({"network": network} if network else {}))
    container = chaos.container_of(sandbox_id)
    if number % 5 == 0:
        assert chaos.order("POST", f"/sandboxes/{sandbox_id}/pause").status_code == 204
        connected = chaos.order("POST", f"/sandboxes/{sandbox_id}/connect", timeout=60)
        assert connected.status_code == 201
    assert chaos.order("DELETE", f"/sandboxes/{sandbox_id}").status_code == 204
    return container


def run_cycles(chaos: Chaos, count: int) -> None:
    gone: set[str] = set()

    def run(first: int, number: int) -> None:
        for start in range(first, first + number, AT_ONCE):
            ids = range(start, min(start + AT_ONCE, first + number))
            gone.update(chaos.threads.map(lambda index: cycle(chaos, index), ids))

    def rest() -> Held:
        """At a quiet moment: no sandbox, and the pool neither grew nor shrank meanwhile."""
        found: list[Held] = []

        def is_quiet() -> bool:
            before = chaos.stack.containers()
            found[:] = [measure(chaos)]
            return chaos.warm() == len(before) and chaos.stack.containers() == before

        chaos.settle()
        chaos.until(is_quiet)
        return found[0]

    run(0, WARM_UP)
    before = rest()
    run(WARM_UP, count)
    after = rest()

    assert not leftovers(chaos, gone)
    wrong = []
    for field in fields(Held):
        was, is_now = getattr(before, field.name), getattr(after, field.name)
        if field.name in ("containers", "interfaces", "namespaces", "mounts"):
            # The pool follows demand; what a container takes, it takes once.
            was = was * after.containers // max(before.containers, 1)
        slack = GROWTH_MB if field.name.endswith("_mb") else SLACK.get(field.name, 0)
        if is_now > was + slack:
            wrong.append(f"{field.name}: {was} before, {is_now} after")
    assert not wrong, wrong


def test_fifty_sandboxes_leave_nothing(chaos: Chaos) -> None:
    run_cycles(chaos, int(os.environ.get("SANDLOT_TEST_CYCLES", "50")))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_five_hundred_sandboxes_leave_nothing(chaos: Chaos) -> None:
    run_cycles(chaos, 500)
