"""A gateway on a free port before real containers, without the agent around it."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import uvloop

from nodeagent.envd.adoption import adopt, release
from nodeagent.errors import Conflict, NotFound
from nodeagent.gateway import Gateway, GatewaySettings
from nodeagent.guest.boot import Handover, socket_path
from nodeagent.guest.bundle import build_bundle, container_options
from nodeagent.guest.link import GuestLink
from nodeagent.remote import Peers
from nodeagent.sandbox import LiveSandbox
from nodeagent.wire import CreateSandbox, MetricSample, NodeSandboxState

IMAGE = "sandlot/base:latest"


class RigNode:
    """`sandbox.Node` over a dictionary."""

    def __init__(self) -> None:
        self.sandboxes: dict[str, LiveSandbox] = {}
        self.logged: list[tuple[str, str, str, dict[str, Any]]] = []
        self.woken: list[str] = []
        self.wake_error: Exception | None = None

    def find(self, sandbox_id: str) -> LiveSandbox | None:
        return self.sandboxes.get(sandbox_id)

    def all(self) -> list[LiveSandbox]:
        return list(self.sandboxes.values())

    def log(self, sandbox: LiveSandbox, level: str, message: str, fields: dict[str, Any]) -> None:
        self.logged.append((sandbox.sandbox_id, level, message, fields))

    async def sample(self, sandbox: LiveSandbox) -> MetricSample:
        return MetricSample(
            sandbox_id=sandbox.sandbox_id,
            at=time.time(),
            cpu_count=2,
            cpu_used_pct=12.345,
            mem_used=64 << 20,
            mem_total=512 << 20,
            mem_cache=1 << 20,
            disk_used=1 << 30,
            disk_total=10 << 30,
        )

    async def wake(self, sandbox: LiveSandbox) -> None:
        self.woken.append(sandbox.sandbox_id)
        if self.wake_error is not None:
            raise self.wake_error
        sandbox.state = NodeSandboxState.RUNNING
        sandbox.is_routable = True


def make_spec(sandbox_id: str, **fields: Any) -> CreateSandbox:
    values: dict[str, Any] = {
        "sandbox_id": sandbox_id,
        "team_id": "team",
        "template_id": "base",
        "build_id": "build",
        "image": IMAGE,
        "cpu_count": 2,
        "memory_mb": 512,
        "disk_size_mb": 1024,
        "timeout_seconds": 300,
    }
    return CreateSandbox(**{**values, **fields})


class Rig:
    """Runs the gateway in a thread of its own, so that blocking clients can be used in tests."""

    def __init__(self, peers: Peers | None = None) -> None:
        self.node = RigNode()
        self.peers = peers
        self.directory = Path(tempfile.mkdtemp(prefix="sl-envd-"))
        self.loop = uvloop.new_event_loop()
        self.port = self.tls_port = 0
        self.gateway: Gateway | None = None
        self._serving: asyncio.Task[None] | None = None
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._containers: dict[str, Any] = {}
        self._docker: Any = None

    def start(self, settings: GatewaySettings | None = None) -> None:
        self._thread.start()
        self.run(self._start(settings or GatewaySettings(host="127.0.0.1", port=0)))

    async def _start(self, settings: GatewaySettings) -> None:
        self.gateway = Gateway(self.node, settings, self.peers)
        self.port = self.gateway.bind()
        self.tls_port = self.gateway.tls_port
        self._serving = asyncio.create_task(self.gateway.serve())

    def run(self, work: Any, timeout_seconds: float = 60) -> Any:
        """Run a coroutine in the gateway's loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(timeout_seconds)

    def call(self, function: Any, *args: Any) -> Any:
        async def call() -> Any:
            return function(*args)

        return self.run(call())

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def create(self, **fields: Any) -> LiveSandbox:
        """A sandbox in a container."""
        if self._docker is None:
            self._docker = docker.from_env()
        sandbox_id = uuid.uuid4().hex[:16]
        run_dir = self.directory / sandbox_id
        run_dir.mkdir()
        bundle = build_bundle(self.directory)
        handover = self.call(Handover, run_dir)
        container = self._docker.containers.create(
            IMAGE,
            name=f"envd-test-{sandbox_id}",
            mem_limit="512m",
            pids_limit=1024,
            sysctls={"net.ipv6.conf.lo.disable_ipv6": "0"},
            **container_options(bundle, run_dir),
        )
        self._containers[sandbox_id] = container
        waiting = asyncio.run_coroutine_threadsafe(handover.wait(30), self.loop)
        container.start()
        waiting.result(30)
        return self.add(
            make_spec(sandbox_id, **fields),
            container_id=container.id,
            link=GuestLink(socket_path(run_dir)),
        )

    def add(self, spec: CreateSandbox, *, link: Any, container_id: str = "") -> LiveSandbox:
        now = time.time()
        sandbox = LiveSandbox(
            spec=spec,
            container_id=container_id,
            link=link,
            state=NodeSandboxState.RUNNING,
            started_at=now,
            end_at=now + spec.timeout_seconds,
        )
        self.node.sandboxes[spec.sandbox_id] = sandbox
        self.call(adopt, self.node, sandbox)
        return sandbox

    def kill(self, sandbox: LiveSandbox) -> None:
        """In the agent's order: unroute, reset, tear down."""

        def unroute() -> None:
            self.node.sandboxes.pop(sandbox.sandbox_id, None)
            sandbox.unroute()
            release(sandbox)

        self.call(unroute)
        container = self._containers.pop(sandbox.sandbox_id, None)
        if container is not None:
            container.remove(force=True)

    def stop(self) -> None:
        for sandbox in self.node.all():
            self.kill(sandbox)
        if self._serving is not None:
            self.run(_cancel(self._serving))
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)
        self.loop.close()
        if self._docker is not None:
            self._docker.close()
        shutil.rmtree(self.directory, ignore_errors=True)


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    others = [other for other in asyncio.all_tasks() if other is not asyncio.current_task()]
    for other in others:
        other.cancel()
    await asyncio.gather(*others, return_exceptions=True)


@contextlib.contextmanager
def running_rig(
    settings: GatewaySettings | None = None, peers: Peers | None = None
) -> Iterator[Rig]:
    rig = Rig(peers)
    rig.start(settings)
    try:
        yield rig
    finally:
        rig.stop()


__all__ = ["Conflict", "NotFound", "Rig", "RigNode", "make_spec", "running_rig"]
