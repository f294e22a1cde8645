"""What an agent needs around it, without an engine, a packet filter or a control plane."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nodeagent import wire
from nodeagent.errors import Unavailable
from nodeagent.wire import CreateSandbox, Heartbeat, HeartbeatReply, NetworkConfig, PoolSpec

IMAGE = "sandlot/base:latest"


class Clock:
    """Unix seconds that stand still until a test moves them."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


class FakeFirewall:
    def __init__(self) -> None:
        self.rules: dict[str, tuple[str, NetworkConfig]] = {}
        self.calls: list[str] = []
        self.error: Exception | None = None

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def apply(self, container_id: str, ip: str, network: NetworkConfig) -> None:
        self.calls.append("apply")
        if self.error is not None:
            raise self.error
        self.rules[container_id] = (ip, network)

    async def clear(self, container_id: str) -> None:
        self.rules.pop(container_id, None)

    async def restore(self, rules: Mapping[str, tuple[str, NetworkConfig]]) -> None:
        self.rules = dict(rules)

    async def verify(self) -> None: ...


class FakeControlPlane:
    """Applies events as the real one does: each seq once, in order."""

    def __init__(self) -> None:
        self.acked_seq = 0
        self.events: list[wire.NodeEvent] = []
        self.heartbeats: list[Heartbeat] = []
        self.reply: dict[str, Any] = {}
        self.is_down = False

    async def send(self, heartbeat: Heartbeat) -> HeartbeatReply:
        if self.is_down:
            raise Unavailable("nobody answers")
        # Through JSON, as over the wire.
        heartbeat = wire.decode(Heartbeat, wire.encode(heartbeat))
        self.heartbeats.append(heartbeat)
        for event in heartbeat.events:
            if event.seq == self.acked_seq + 1:
                self.acked_seq = event.seq
                self.events.append(event)
        return HeartbeatReply(acked_seq=self.acked_seq, **self.reply)

    def close(self) -> None: ...


def create_spec(sandbox_id: str = "i1", **changes: Any) -> CreateSandbox:
    fields: dict[str, Any] = {
        "sandbox_id": sandbox_id,
        "team_id": "team1",
        "template_id": "template1",
        "build_id": "build1",
        "image": IMAGE,
        "cpu_count": 1,
        "memory_mb": 256,
        "disk_size_mb": 1024,
        "timeout_seconds": 300.0,
    }
    return CreateSandbox(**{**fields, **changes})


def pool_spec(size: int, **changes: Any) -> PoolSpec:
    fields: dict[str, Any] = {
        "template_id": "template1",
        "build_id": "build1",
        "image": IMAGE,
        "cpu_count": 1,
        "memory_mb": 256,
        "disk_size_mb": 1024,
        "size": size,
    }
    return PoolSpec(**{**fields, **changes})
