"""What envd keeps for one sandbox."""

from __future__ import annotations

import asyncio
from typing import Any

from nodeagent.envd.processes import Processes
from nodeagent.guest.link import WatchChannel
from nodeagent.sandbox import LiveSandbox

ADOPTION_SECONDS = 10.0


class SandboxEnvd:
    """Processes and kept watchers; both live in the guest and outlast this object."""

    def __init__(self) -> None:
        self.processes = Processes()
        self.watchers: dict[str, WatchChannel] = {}
        self.adoption: asyncio.Task[None] | None = None  # while it runs, requests wait for it
        self._tasks: set[asyncio.Future[Any]] = set()

    async def wait_adopted(self) -> None:
        if self.adoption is not None:
            await asyncio.wait([self.adoption], timeout=ADOPTION_SECONDS)

    def hold(self, task: asyncio.Future[Any]) -> None:
        """Keep a reference to work that goes on without its client."""
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Let go of the guest: processes and watchers live on there."""
        if self.adoption is not None:
            self.adoption.cancel()
        await self.processes.close()
        for watcher in self.watchers.values():
            watcher.close()
        self.watchers.clear()


def state_of(sandbox: LiveSandbox) -> SandboxEnvd:
    if sandbox.envd is None:
        sandbox.envd = SandboxEnvd()
    state: SandboxEnvd = sandbox.envd
    return state
