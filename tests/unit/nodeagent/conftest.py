"""A whole agent on fakes, with a clock that stands still."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from nodeagent.agent import Agent
from nodeagent.runtime.fake import FakeRuntime
from nodeagent.settings import Settings
from tests.unit.nodeagent.fakes import Clock, FakeControlPlane, FakeFirewall


@dataclass
class Stage:
    """An agent and everything around it. `restart` is what kill -9 and a new start leave."""

    state_dir: Path
    clock: Clock
    runtime: FakeRuntime
    firewall: FakeFirewall
    control_plane: FakeControlPlane
    agent: Agent = None  # type: ignore[assignment]
    task: asyncio.Task[None] | None = None
    adopted: list[str] = field(default_factory=list)  # sandboxes given to the data plane

    async def start(self, **changes) -> Agent:
        settings = Settings(
            node_id="n1",
            token="sln_test",
            state_dir=self.state_dir,
            heartbeat_seconds=0.05,
            **changes,
        )
        self.agent = Agent(
            settings,
            runtime=self.runtime,
            firewall=self.firewall,
            control_plane=self.control_plane,
            adopt_data_plane=lambda _, sandbox: self.adopted.append(sandbox.sandbox_id),
            clock=self.clock,
        )
        self.task = asyncio.create_task(self.agent.run([]))
        ready = asyncio.create_task(self.agent.ready.wait())
        await asyncio.wait([self.task, ready], return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()
        if self.task.done():
            self.task.result()
        return self.agent

    async def kill(self) -> None:
        """Cut the agent off: no draining, no last words."""
        assert self.task is not None
        self.task.cancel()
        await asyncio.wait([self.task])

    async def restart(self) -> Agent:
        await self.kill()
        return await self.start()

    async def until(self, holds: Callable[[], object]) -> None:
        """Wait for something that background tasks bring about."""
        async with asyncio.timeout(5):
            while not holds():  # noqa: ASYNC110 - what it watches tells nobody
                await asyncio.sleep(0.002)


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    stage = Stage(
        state_dir=tmp_path / "state",
        clock=Clock(),
        runtime=FakeRuntime(),
        firewall=FakeFirewall(),
        control_plane=FakeControlPlane(),
    )
    await stage.start()
    yield stage
    await stage.kill()
