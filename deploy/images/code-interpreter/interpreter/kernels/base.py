"""What a context needs of a kernel, and how kernel processes are started."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from typing import Protocol

from interpreter.outputs import Output

# A kernel is killed first when memory runs out, then other processes, the service last.
_OOM_SCORE = 500


class KernelDied(Exception):
    """The kernel's process has ended; its state is lost."""


class KernelFailed(Exception):
    """The kernel could not be started, or broke its protocol. The text may be shown to users."""


class Kernel(Protocol):
    """One interpreter process with its state."""

    died: asyncio.Event

    async def start(self) -> None:
        """Raises: KernelFailed."""

    def run(self, code: str) -> AsyncIterator[Output]:
        """Run code, yielding what it produces, until it is done. Raises: KernelDied."""

    async def set_env(self, values: dict[str, str], remove: list[str]) -> None:
        """Set and remove variables of the session, silently. Raises: KernelDied, KernelFailed."""

    def interrupt(self) -> None:
        """As Ctrl-C: the run in progress ends soon, state is kept where the language can."""

    async def kill(self) -> None: ...


def guarded(command: list[str]) -> list[str]:
    """The command such that it dies with this service and goes first when memory runs out."""
    return [
        "choom", "-n", str(_OOM_SCORE), "--",
        "setpriv", "--pdeathsig", "KILL", "--",
        *command,
    ]  # fmt: skip


def kernel_environment(extra: dict[str, str] | None = None) -> dict[str, str]:
    kept = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "USER", "LOGNAME", "SSL_CERT_FILE")
    env = {name: os.environ[name] for name in kept if name in os.environ}
    return {**env, **(extra or {})}


def signal_group(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    """Signal a process that leads its session, and all it started in its group."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)


async def kill_group(process: asyncio.subprocess.Process) -> None:
    # Also when the leader has ended: its children may live on in the group.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()
