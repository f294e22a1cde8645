"""The host side of a guest: one connection per operation over the sandbox's unix socket.

Every byte from a guest is hostile: frames are bounded, every wait has a timeout, no descriptor is accepted,
and a guest that breaks the rules raises GuestFault without harm to the agent.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class ProcessExit:
    """exit_code: -1 when ended by a signal. status/error: Go-style texts of the envd contract, section 4.5."""

    exit_code: int
    exited: bool
    status: str
    error: str | None


class ProcessChannel:
    """The agent's one connection to a process of the guest; the fan-out to clients is envd's.

    Iterating yields `(stream, data)`, stream being "stdout", "stderr" or "pty", data never empty and at most 32 KiB,
    and ends after the exit, which `exit` then holds. Not reading holds the process back (back-pressure).
    """

    pid: int
    exit: ProcessExit | None

    def __aiter__(self) -> AsyncIterator[tuple[str, bytes]]: ...

    async def write(self, data: bytes) -> None:
        """Give stdin (or PTY) bytes; returns when the process's pipe took all. Raises: AgentError as 4.8 says."""

    async def close_stdin(self) -> None: ...

    async def signal(self, number: int) -> None:
        """Signal the leader; after SIGKILL waits up to 200 ms until it is reaped. Raises: NotFound if it has ended."""

    async def resize(self, cols: int, rows: int) -> None: ...

    def close(self) -> None:
        """Leave; the process lives on and its output goes to the guest's bounded ring."""


class FileReader:
    """An open file. `size_bytes` is from stat (0 for /proc files, which still yield content)."""

    path: str
    size_bytes: int
    modified_at: float
    is_regular: bool

    def __aiter__(self) -> AsyncIterator[bytes]: ...

    def close(self) -> None: ...


class FileWriter:
    """A file being written. `finish` sets the metadata and returns the entry; leaving without it keeps what was written."""

    async def write(self, data: bytes) -> None:
        """Raises: NoSpace, AgentError."""

    async def finish(self) -> dict[str, Any]: ...

    def close(self) -> None: ...


class WatchChannel:
    """A watcher that lives in the guest until `remove`. Iterating yields event dicts {"name", "type", "entry"?}."""

    watcher_id: str

    def __aiter__(self) -> AsyncIterator[dict[str, Any]]: ...

    async def drain(self) -> list[dict[str, Any]]:
        """Every event up to now, the kernel's queue included."""

    def close(self) -> None: ...


class GuestLink:
    """Operations on one guest. `user` None means root power with root's names; paths are resolved in the guest."""

    def __init__(self, socket_path: Path) -> None:
        self.socket_path = socket_path

    async def ping(self) -> None:
        """Raises: GuestFault when the guest does not answer within a second."""

    async def call(self, op: str, *, timeout_seconds: float = 30.0, **args: Any) -> dict[str, Any]:
        """One unary operation -> its reply. Raises: AgentError named by the guest's code; GuestFault.

        resolve_user(user) -> {"uid","gid","groups","home","name"}; resolve_path(user, path, default_workdir)
        stat(user, path, default_workdir) / list_dir(..., depth) / make_dir / move(source, destination) / remove
        compose(user, sources, destination) / processes() -> {"processes": [{"pid","config","tag"}]}
        remove_watcher(watcher_id) / disk_usage() -> {"total","used"}
        """
        raise NotImplementedError

    async def start_process(
        self,
        *,
        user: str,
        cmd: str,
        args: list[str],
        env: dict[str, str],
        cwd: str | None,
        default_workdir: str,
        pty: tuple[int, int] | None,  # cols, rows
        stdin: bool,
        tag: str | None,
        config: dict[str, Any],  # as the client sent it; what `processes` gives back
        deadline_seconds: float | None,  # the guest kills the leader then, client or not
    ) -> ProcessChannel:
        raise NotImplementedError

    async def attach(self, pid: int) -> ProcessChannel:
        """Take over a process after an agent restart; yields what its ring kept, then live. Raises: NotFound."""
        raise NotImplementedError

    async def open_read(
        self, *, user: str, path: str, default_workdir: str, offset: int = 0, length: int | None = None
    ) -> FileReader:
        raise NotImplementedError

    async def open_write(
        self, *, user: str, path: str, default_workdir: str, metadata: dict[str, str]
    ) -> FileWriter:
        raise NotImplementedError

    async def watch(
        self,
        *,
        user: str,
        path: str,
        default_workdir: str,
        recursive: bool,
        include_entry: bool,
        allow_network_mounts: bool,
        keep: bool,  # True: lives until remove_watcher; False: ends with this connection
    ) -> WatchChannel:
        raise NotImplementedError

    async def dial(self, port: int, *, timeout_seconds: float = 5.0) -> tuple[asyncio.Transport, Any]:
        """A raw byte stream to `port` inside the sandbox (127.0.0.1, then ::1, then its address).

        Raises: Unavailable when nothing listens there.
        """
        raise NotImplementedError
