"""Taking over what already runs in a sandbox: after an agent restart, or from a warm container."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from typing import Any

from nodeagent.envd.process import log_end
from nodeagent.envd.processes import Process
from nodeagent.envd.state import SandboxEnvd
from nodeagent.errors import AgentError, NotFound
from nodeagent.sandbox import LiveSandbox, Node

logger = logging.getLogger(__name__)

ATTEMPTS = 3
START_TAG = "start"  # of a template's start command
MAX_LINE_BYTES = 2000
NEW_SECONDS = 15.0  # a sandbox taken over sooner after its start was not logged before
REPEAT_SECONDS = 2.0
IDLE_SECONDS = 30.0

# Services that were running before the sandbox was claimed learn its variables here.
ENVS_PATH = "/run/e2b/envs.json"


def adopt(node: Node, sandbox: LiveSandbox) -> None:
    """Begin to attach to a sandbox's processes; requests to it wait until that is done.

    Call it in the event loop, before the sandbox is routable, and again when its guest was
    started anew.
    """
    old: SandboxEnvd | None = sandbox.envd
    state = sandbox.envd = SandboxEnvd()
    if old is not None:
        state.hold(asyncio.ensure_future(old.close()))
    name = f"adopt {sandbox.sandbox_id}"
    state.adoption = asyncio.get_running_loop().create_task(_adopt(node, sandbox, state), name=name)


def release(sandbox: LiveSandbox) -> None:
    """Let go of a sandbox that has ended."""
    state: SandboxEnvd | None = sandbox.envd
    sandbox.envd = None
    if state is not None:
        state.hold(asyncio.ensure_future(state.close()))


async def _adopt(node: Node, sandbox: LiveSandbox, state: SandboxEnvd) -> None:
    await _tell_variables(node, sandbox)
    for attempt in range(ATTEMPTS):
        try:
            found = await sandbox.link.call("processes")
            for process in found["processes"]:
                await _attach(node, sandbox, state, process)
            return
        except (AgentError, KeyError, TypeError) as error:
            if node.find(sandbox.sandbox_id) is not sandbox:
                return  # it was killed meanwhile
            logger.warning(
                "Could not take over the processes of a sandbox: %s",
                error,
                extra={"sandbox_id": sandbox.sandbox_id},
            )
            await asyncio.sleep(0.2 * attempt)


async def _tell_variables(node: Node, sandbox: LiveSandbox) -> None:
    """Best effort: a full disk must not keep the sandbox from being used."""
    try:
        writer = await sandbox.link.open_write(
            user="root", path=ENVS_PATH, default_workdir="", metadata={}
        )
        try:
            await writer.write(json.dumps(sandbox.env()).encode())
            await writer.finish()
        finally:
            writer.close()
    except AgentError as error:
        if node.find(sandbox.sandbox_id) is not sandbox:
            return
        logger.warning(
            "Could not tell a sandbox its variables: %s",
            error,
            extra={"sandbox_id": sandbox.sandbox_id},
        )


async def _attach(
    node: Node, sandbox: LiveSandbox, state: SandboxEnvd, found: dict[str, Any]
) -> None:
    pid = int(found["pid"])
    if state.processes.find(pid=pid) is not None:
        return
    try:
        channel = await sandbox.link.attach(pid)
    except NotFound:
        return  # it ended meanwhile
    process = Process(channel, found["config"], found.get("tag"), bool(found.get("pty")))
    log_end(node, sandbox, process)
    if process.tag == START_TAG:
        state.hold(asyncio.ensure_future(_log_output(node, sandbox, state, process)))
    state.processes.add(process)


async def _log_output(
    node: Node, sandbox: LiveSandbox, state: SandboxEnvd, process: Process
) -> None:
    """Lines of the start command go to the sandbox's log, those from before its claim too.

    After an agent restart the guest gives its ring again; those lines were logged already.
    """
    is_repeat = time.time() - sandbox.started_at > NEW_SECONDS
    quiet_until = time.monotonic() + (REPEAT_SECONDS if is_repeat else 0.0)
    rest = {"stdout": b"", "stderr": b""}
    subscriber = process.subscribe()
    try:
        while True:
            event = await subscriber.get(IDLE_SECONDS)
            if event is None:
                if sandbox.envd is not state:
                    return  # another data plane has taken over
                continue
            if not isinstance(event, tuple):
                return  # it has ended
            stream, data = event
            if time.monotonic() < quiet_until:
                continue
            *lines, last = (rest.get(stream, b"") + data).split(b"\n")
            rest[stream] = last[-MAX_LINE_BYTES:]
            for line in lines:
                text = line[:MAX_LINE_BYTES].decode(errors="replace").rstrip()
                if text:
                    node.log(sandbox, "info", text, {"source": "start command", "stream": stream})
    finally:
        process.unsubscribe(subscriber)
