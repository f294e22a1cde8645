"""What the API gives back, as plain values."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum


class SandboxState(StrEnum):
    RUNNING = "running"
    PAUSED = "paused"


class FileType(StrEnum):
    FILE = "file"
    DIRECTORY = "directory"
    OTHER = "other"


@dataclass(frozen=True)
class SandboxHandle:
    """What is needed to talk to a sandbox. `access_token` is a secret."""

    sandbox_id: str
    template_id: str
    envd_version: str
    access_token: str | None = field(default=None, repr=False)
    traffic_token: str | None = field(default=None, repr=False)
    domain: str | None = None


@dataclass(frozen=True)
class SandboxInfo:
    sandbox_id: str
    template_id: str
    state: SandboxState
    started_at: datetime
    end_at: datetime
    cpu_count: int
    memory_mb: int
    disk_size_mb: int
    alias: str | None = None
    metadata: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class FileEntry:
    """`mode`: permission bits. `symlink_target`: absolute, only of links."""

    name: str
    path: str
    type: FileType
    size_bytes: int = 0
    mode: int = 0
    owner: str = ""
    group: str = ""
    modified_at: datetime | None = None
    symlink_target: str | None = None


@dataclass(frozen=True)
class CommandResult:
    stdout: str
    stderr: str
    exit_code: int


@dataclass(frozen=True)
class ProcessInfo:
    pid: int
    cmd: str
    args: list[str]
    cwd: str | None = None
    tag: str | None = None
