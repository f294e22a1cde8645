"""What the agent asks of a container engine: a small Protocol, with Docker and a fake behind it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from nodeagent.guest.link import GuestLink


class ContainerEventKind(StrEnum):
    OOM = "oom"  # the kernel killed a process of the container; the container may live on
    DIED = "died"
    RESYNC = "resync"  # events may have been missed: look at the whole list


@dataclass(frozen=True, kw_only=True)
class ContainerSpec:
    """`name` is random, never an id: the engine's resolver tells it to the neighbours."""

    name: str
    image: str
    template_id: str
    build_id: str
    cpu_count: int
    memory_mb: int
    disk_size_mb: int


@dataclass(eq=False, kw_only=True)
class Container:
    """A container of this node. `ip`, `pid` and `link` are replaced when it boots again."""

    container_id: str
    name: str
    image: str
    ip: str
    pid: int  # of its PID 1, on the host; 0 while stopped
    disk_dirs: tuple[str, ...]  # host directories whose size is the sandbox's disk use
    link: GuestLink


@dataclass(frozen=True, kw_only=True)
class FoundContainer:
    """What the engine says of one of our containers. `created_at`: Unix seconds."""

    container_id: str
    name: str
    is_running: bool  # True while paused too
    is_frozen: bool
    created_at: float


@dataclass(frozen=True, kw_only=True)
class ContainerEvent:
    kind: ContainerEventKind
    container_id: str = ""


@dataclass(frozen=True, kw_only=True)
class ContainerUsage:
    """One reading. `cpu_seconds` grows since boot; memory in bytes, `memory_used` without cache."""

    cpu_seconds: float
    memory_used: int
    memory_cache: int
    pids: int


@dataclass(frozen=True, kw_only=True)
class RuntimeInfo:
    version: str
    storage_driver: str
    cgroup_version: int
    data_root: str


class Runtime(Protocol):
    """Every method raises Unavailable when the engine does not answer or refuses."""

    async def open(self) -> RuntimeInfo:
        """Connect and make sure that the node's network exists."""

    async def close(self) -> None: ...

    async def boot(self, spec: ContainerSpec) -> Container:
        """A new container whose guest answers; an error, even a cancel, leaves nothing."""

    async def reboot(self, container: Container) -> None:
        """Start a stopped container again: same file system, new processes, new boot id."""

    async def adopt(self, container_id: str) -> Container:
        """Take a container of an earlier agent. Raises: NotFound."""

    async def freeze(self, container: Container) -> None: ...

    async def thaw(self, container: Container) -> None: ...

    async def halt(self, container: Container) -> None:
        """Write out its files and stop it, keeping the container."""

    async def remove(self, container_id: str, name: str) -> None:
        """Stop and remove it with all that was made for it. Removing what is absent is no error."""

    async def commit(self, container: Container, image: str) -> int:
        """Save its file system as an image; what that adds to the disk, in bytes."""

    async def remove_image(self, image: str) -> None:
        """Removing an absent image is no error. Raises: Conflict while a container uses it."""

    async def containers(self) -> list[FoundContainer]:
        """Every container labelled with this node's id."""

    async def state_of(self, container_id: str) -> tuple[bool, bool]:
        """(is running, was killed for memory). Raises: NotFound."""

    def events(self) -> AsyncIterator[ContainerEvent]:
        """Events of this node's containers, for ever; RESYNC first and after every interruption."""

    def usage(self, container: Container) -> ContainerUsage | None:
        """Blocking but quick; None when it is not running."""

    def disk_usage(self, containers: Sequence[Container]) -> dict[str, int]:
        """Blocking and slow: container id -> bytes, for those that could be measured in time."""
