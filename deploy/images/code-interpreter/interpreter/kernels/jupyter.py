"""Kernels that speak Jupyter's protocol (Python, R, Java), driven without a Jupyter server."""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zmq
import zmq.asyncio
from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_client.connect import write_connection_file

from interpreter.kernels.base import (
    KernelDied,
    KernelFailed,
    guarded,
    kernel_environment,
    kill_group,
    signal_group,
)
from interpreter.outputs import Display, Failure, Output, Text

_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_SILENT_TIMEOUT_SECONDS = 10.0
_START_TIMEOUT_SECONDS = 60.0


@dataclass(frozen=True)
class Dialect:
    """What differs between Jupyter kernels.

    silent_env: makes code that sets and removes variables without output.
    """

    language: str
    command: list[str]
    env: dict[str, str]
    silent_env: Any  # (values, remove) -> code
    set_cwd: Any = None  # (cwd) -> code, for a kernel that cannot start in a directory
    transport: str = "ipc"
    interrupt_by_message: bool = False
    splits_line_end: bool = False  # clients expect `println` as the text, then its line end


class JupyterKernel:
    def __init__(self, dialect: Dialect, cwd: str) -> None:
        self.died = asyncio.Event()
        self._dialect = dialect
        self._cwd = cwd
        self._process: asyncio.subprocess.Process | None = None
        self._client: AsyncKernelClient | None = None
        self._context: zmq.asyncio.Context | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._queues: dict[str, asyncio.Queue[dict[str, Any] | None]] = {}
        self._folder = Path(tempfile.mkdtemp(prefix="kernel-"))

    async def start(self) -> None:
        file = str(self._folder / "connection.json")
        is_ipc = self._dialect.transport == "ipc"
        address = str(self._folder / "socket") if is_ipc else "127.0.0.1"
        write_connection_file(file, ip=address, transport=self._dialect.transport)
        command = [part.replace("{connection_file}", file) for part in self._dialect.command]
        try:
            self._process = await asyncio.create_subprocess_exec(
                *guarded(command),
                cwd=self._cwd,
                env=kernel_environment(self._dialect.env),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError as error:
            raise KernelFailed(
                f"cannot start {self._dialect.language}: {error.strerror}"
            ) from error
        self._tasks.append(asyncio.create_task(self._watch(), name="watch kernel"))
        self._context = zmq.asyncio.Context()
        # No limit of queued messages: beyond it ZeroMQ would drop output without a word.
        self._context.setsockopt(zmq.RCVHWM, 0)
        self._client = AsyncKernelClient(context=self._context)
        self._client.load_connection_file(file)
        self._client.start_channels(hb=False, stdin=False)
        try:
            async with asyncio.timeout(_START_TIMEOUT_SECONDS):
                await self._until_ready()
                self._tasks.append(asyncio.create_task(self._read_iopub(), name="iopub"))
                self._tasks.append(asyncio.create_task(self._read_replies("shell"), name="shell"))
                self._tasks.append(
                    asyncio.create_task(self._read_replies("control"), name="control")
                )
                if self._dialect.set_cwd is not None:
                    await self._silently(self._dialect.set_cwd(self._cwd))
        except (TimeoutError, KernelDied) as error:
            await self.kill()
            raise KernelFailed(f"the {self._dialect.language} kernel did not start") from error
        except BaseException:
            await self.kill()
            raise

    async def _until_ready(self) -> None:
        """Wait until its broadcast reaches us, which takes longer than its first answer."""
        client = self._live_client()
        while not self.died.is_set():
            client.kernel_info()
            # It broadcasts "busy" for each request; having heard one, we miss none from now on.
            for _ in range(10):
                if await client.iopub_channel.socket.poll(100):
                    while await client.iopub_channel.socket.poll(20):
                        await client.get_iopub_msg(timeout=1)
                    return
                if self.died.is_set():
                    break
        raise KernelDied

    async def run(self, code: str) -> AsyncIterator[Output]:
        async for message in self._execute(code, silent=False):
            output = self._to_output(message["msg_type"], message["content"])
            if isinstance(output, Text) and self._dialect.splits_line_end:
                body = output.text.removesuffix("\n")
                if body and body != output.text:
                    yield Text(output.stream, body)
                    output = Text(output.stream, "\n")
            if output is not None:
                yield output

    async def set_env(self, values: dict[str, str], remove: list[str]) -> None:
        await self._silently(self._dialect.silent_env(values, remove))

    async def _silently(self, code: str) -> None:
        try:
            async with asyncio.timeout(_SILENT_TIMEOUT_SECONDS):
                async for message in self._execute(code, silent=True):
                    if message["msg_type"] == "error":
                        raise KernelFailed(_ANSI.sub("", str(message["content"].get("evalue"))))
        except TimeoutError as error:
            raise KernelFailed("the kernel did not answer") from error

    async def _execute(self, code: str, *, silent: bool) -> AsyncIterator[dict[str, Any]]:
        if self.died.is_set():
            raise KernelDied
        request = self._live_client().execute(
            code,
            silent=silent,
            store_history=not silent,
            allow_stdin=False,
            # Others' queued runs must not be aborted because this one raised.
            stop_on_error=False,
        )
        queue = self._queues[request] = asyncio.Queue()
        try:
            while (message := await queue.get()) is not None:
                if message["msg_type"] == "status":
                    if message["content"].get("execution_state") == "idle":
                        return
                else:
                    yield message
            raise KernelDied
        finally:
            del self._queues[request]

    def _to_output(self, kind: str, content: dict[str, Any]) -> Output | None:
        if kind == "stream":
            return Text("stderr" if content.get("name") == "stderr" else "stdout", content["text"])
        if kind in ("display_data", "execute_result"):
            return Display(content.get("data") or {}, is_main=kind == "execute_result")
        if kind == "error":
            frames = "".join(content.get("traceback") or [])
            return Failure(
                str(content.get("ename") or ""),
                _ANSI.sub("", str(content.get("evalue") or "")),
                _ANSI.sub("", frames),
            )
        return None

    def interrupt(self) -> None:
        if self._dialect.interrupt_by_message:
            client = self._live_client()
            client.control_channel.send(client.session.msg("interrupt_request", {}))
        elif self._process is not None:
            signal_group(self._process, signal.SIGINT)

    async def kill(self) -> None:
        if self._process is not None:
            await kill_group(self._process)
        self._announce_death()
        for task in self._tasks:
            if task is not asyncio.current_task():
                task.cancel()
        if self._client is not None:
            self._client.stop_channels()
        if self._context is not None:
            self._context.destroy(linger=0)
            self._context = None
        shutil.rmtree(self._folder, ignore_errors=True)

    def _live_client(self) -> AsyncKernelClient:
        if self._client is None:
            raise KernelDied
        return self._client

    async def _watch(self) -> None:
        assert self._process is not None
        await self._process.wait()
        # What it sent before it died may still be in the socket.
        await asyncio.sleep(0.05)
        self._announce_death()

    def _announce_death(self) -> None:
        self.died.set()
        for queue in self._queues.values():
            queue.put_nowait(None)

    async def _read_iopub(self) -> None:
        """A forged or broken message is passed over."""
        client = self._live_client()
        while True:
            with contextlib.suppress(ValueError):
                message = await client.get_iopub_msg()
                queue = self._queues.get(message["parent_header"].get("msg_id", ""))
                if queue is not None:
                    queue.put_nowait(message)

    async def _read_replies(self, name: str) -> None:
        """Replies say nothing that the broadcast did not; but unread ones would pile up."""
        client = self._live_client()
        read = client.get_shell_msg if name == "shell" else client.get_control_msg
        while True:
            with contextlib.suppress(ValueError):
                await read()
