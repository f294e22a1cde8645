"""A template's start and ready commands, run in a container that has just booted."""

from __future__ import annotations

import asyncio
import re

from nodeagent.guest.link import GuestLink
from nodeagent.runtime.base import Container
from nodeagent.wire import CreateSandbox, PoolSpec

SHELL = "/bin/bash"
FIRST_PAUSE_SECONDS = 0.05
LAST_PAUSE_SECONDS = 2.0
READY_ATTEMPT_SECONDS = 60.0
STANDARD_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# "sleep 20" is what a template gets that names no ready command. It lets a build settle and proves
# nothing afterwards; waiting for it would delay every start.
_PURE_WAIT = re.compile(r"^\s*sleep\s+[0-9.]+\s*$")


async def run_template_commands(container: Container, spec: PoolSpec | CreateSandbox) -> None:
    """Start the start command and return once the ready command has passed.

    Both run as the template's user in its directory with its variables. The caller bounds the time.
    """
    link = container.link
    if not spec.start_cmd:
        return
    args, env = login_shell(spec.start_cmd, spec.template_env)
    channel = await link.start_process(
        user=spec.start_user or spec.default_user,
        cmd=SHELL,
        args=args,
        env=env,
        cwd=None,
        default_workdir=_workdir(spec),
        pty=None,
        stdin=False,
        tag="start",
        config={"cmd": SHELL, "args": ["-l", "-c", spec.start_cmd]},
        deadline_seconds=None,
    )
    channel.close()  # it lives on; the guest keeps the end of its output
    if not spec.ready_cmd or _PURE_WAIT.match(spec.ready_cmd):
        return
    pause_seconds = FIRST_PAUSE_SECONDS
    while not await _passes(link, spec):
        await asyncio.sleep(pause_seconds)
        pause_seconds = min(LAST_PAUSE_SECONDS, 2 * pause_seconds)


async def _passes(link: GuestLink, spec: PoolSpec | CreateSandbox) -> bool:
    args, env = login_shell(spec.ready_cmd, spec.template_env)
    channel = await link.start_process(
        user=spec.start_user or spec.default_user,
        cmd=SHELL,
        args=args,
        env=env,
        cwd=None,
        default_workdir=_workdir(spec),
        pty=None,
        stdin=False,
        tag=None,
        config={"cmd": SHELL, "args": ["-l", "-c", spec.ready_cmd]},
        deadline_seconds=READY_ATTEMPT_SECONDS,
    )
    try:
        async for _ in channel:
            pass  # unread output would hold the command back
    finally:
        channel.close()
    return channel.exit is not None and channel.exit.exit_code == 0


def login_shell(command: str, env: dict[str, str]) -> tuple[list[str], dict[str, str]]:
    """Arguments for bash, and its environment.

    A login shell's profile resets PATH, so a template's own is put back after it, with the places
    where every tool is found behind it.
    """
    if "PATH" not in env:
        return ["-l", "-c", command], dict(env)
    path = f"{env['PATH']}:{STANDARD_PATH}"
    script = 'export PATH="$1"; eval "$2"'
    return ["-l", "-c", script, "bash", path, command], {**env, "PATH": path}


def _workdir(spec: PoolSpec | CreateSandbox) -> str:
    """An inherited start command runs where its own template ended, not where this one did."""
    return spec.default_workdir if spec.start_workdir is None else spec.start_workdir
