"""A runtime without an engine, for tests: containers are dict entries, guests always answer."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from nodeagent.errors import Conflict, NotFound, Unavailable
from nodeagent.guest.link import GuestLink, ProcessChannel, ProcessExit
from nodeagent.runtime.base import (
    Container,
    ContainerEvent,
    ContainerEventKind,
    ContainerSpec,
    ContainerUsage,
    FoundContainer,
    RuntimeInfo,
)


class FakeChannel(ProcessChannel):
    """A process that has already ended, without output."""

    def __init__(self, exit_code: int) -> None:
        self.pid = 100
        self.exit = ProcessExit(exit_code, True, f"exit status {exit_code}", None)

    async def __aiter__(self) -> AsyncIterator[tuple[str, bytes]]:
        return
        yield "", b""

    def close(self) -> None: ...


class FakeLink(GuestLink):
    """Remembers what it should start, in `started`; `exit_codes` answers in turn, then 0."""

    def __init__(self, exit_codes: list[int]) -> None:
        super().__init__(Path("/nonexistent"))
        self.started: list[dict[str, Any]] = []
        self.exit_codes = exit_codes

    async def ping(self) -> None: ...

    async def start_process(self, **options: Any) -> ProcessChannel:
        self.started.append(options)
        return FakeChannel(self.exit_codes.pop(0) if self.exit_codes else 0)


class FakeRuntime:
    """`calls` names every engine call in order, so that a test can say which were not made."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.running: dict[str, Container] = {}
        self.stopped: dict[str, Container] = {}
        self.frozen: set[str] = set()
        self.oom_killed: set[str] = set()
        self.images: dict[str, int] = {}
        self.exit_codes: list[int] = []  # what processes end with, in turn; then 0
        self.boot_gate = asyncio.Event()  # cleared by a test to hold boots back
        self.boot_gate.set()
        self.boot_error: Exception | None = None
        self.disk_bytes = 4096  # what each container holds
        self._numbers = itertools.count(1)
        self._events: asyncio.Queue[ContainerEvent] = asyncio.Queue()

    async def open(self) -> RuntimeInfo:
        return RuntimeInfo(version="fake", storage_driver="fake", cgroup_version=0, data_root="/")

    async def close(self) -> None: ...

    async def boot(self, spec: ContainerSpec) -> Container:
        self.calls.append("boot")
        await self.boot_gate.wait()
        if self.boot_error is not None:
            raise self.boot_error
        number = next(self._numbers)
        container = Container(
            container_id=f"c{number}",
            name=spec.name,
            image=spec.image,
            ip=f"172.30.0.{number + 1}",
            pid=1000 + number,
            disk_dirs=(),
            link=FakeLink(self.exit_codes),
        )
        self.running[container.container_id] = container
        return container

    async def reboot(self, container: Container) -> None:
        self.calls.append("reboot")
        if self.stopped.pop(container.container_id, None) is None:
            raise Unavailable("it is not stopped")
        self.running[container.container_id] = container

    async def adopt(self, container_id: str) -> Container:
        self.calls.append("adopt")
        found = self.running.get(container_id) or self.stopped.get(container_id)
        if found is None:
            raise NotFound("no such container")
        return found

    async def freeze(self, container: Container) -> None:
        self.calls.append("freeze")
        if container.container_id not in self.running:
            raise Unavailable("it is not running")
        self.frozen.add(container.container_id)

    async def thaw(self, container: Container) -> None:
        self.calls.append("thaw")
        if container.container_id not in self.frozen:
            raise Unavailable("it is not frozen")
        self.frozen.discard(container.container_id)

    async def halt(self, container: Container) -> None:
        self.calls.append("halt")
        self._stop(container.container_id)

    async def remove(self, container_id: str, name: str) -> None:
        self.calls.append("remove")
        self._stop(container_id)
        self.stopped.pop(container_id, None)

    async def commit(self, container: Container, image: str) -> int:
        self.calls.append("commit")
        self.images[image] = 4096
        return 4096

    async def remove_image(self, image: str) -> None:
        self.calls.append("remove_image")
        everyone = [*self.running.values(), *self.stopped.values()]
        if any(container.image == image for container in everyone):
            raise Conflict("a container uses it")
        self.images.pop(image, None)

    async def containers(self) -> list[FoundContainer]:
        return [
            FoundContainer(
                container_id=container_id,
                name=container.name,
                is_running=container_id in self.running,
                is_frozen=container_id in self.frozen,
                created_at=0.0,
            )
            for container_id, container in {**self.running, **self.stopped}.items()
        ]

    async def state_of(self, container_id: str) -> tuple[bool, bool]:
        if container_id not in self.running and container_id not in self.stopped:
            raise NotFound("no such container")
        return container_id in self.running, container_id in self.oom_killed

    async def events(self) -> AsyncIterator[ContainerEvent]:
        while True:
            yield await self._events.get()

    def usage(self, container: Container) -> ContainerUsage | None:
        if container.container_id not in self.running:
            return None
        return ContainerUsage(cpu_seconds=1.0, memory_used=1 << 20, memory_cache=0, pids=1)

    def disk_usage(self, containers: Sequence[Container]) -> dict[str, int]:
        return {container.container_id: self.disk_bytes for container in containers}

    def die(self, container_id: str, *, oom: bool = False) -> None:
        """The container ends behind the agent's back."""
        self._stop(container_id)
        if oom:
            self.oom_killed.add(container_id)
            self._events.put_nowait(
                ContainerEvent(kind=ContainerEventKind.OOM, container_id=container_id)
            )
        self._events.put_nowait(
            ContainerEvent(kind=ContainerEventKind.DIED, container_id=container_id)
        )

    def _stop(self, container_id: str) -> None:
        container = self.running.pop(container_id, None)
        self.frozen.discard(container_id)
        if container is not None:
            self.stopped[container_id] = container
