"""A kernel process of our own making: it takes and gives JSON lines on two pipes of its own.

Down: {"id", "code"} or {"id", "env", "remove"}. Up: {"id", "type", ...}, where type is "stdout",
"stderr", "display", "error" or "done". What lands on its real stdout and stderr (of its child
processes) counts as output of the run.
"""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import json
import os
import signal
from collections.abc import AsyncIterator
from typing import Any

from interpreter.kernels.base import (
    KernelDied,
    KernelFailed,
    guarded,
    kernel_environment,
    kill_group,
    signal_group,
)
from interpreter.outputs import Display, Failure, Output, Text

_READY_TIMEOUT_SECONDS = 30.0
_ENV_TIMEOUT_SECONDS = 10.0
# One line up holds one output; a picture of 200 MB is not reasonable.
_MAX_LINE_BYTES = 256 * 1024 * 1024
_DRAIN_SECONDS = 0.02


class PipedKernel:
    def __init__(self, language: str, command: list[str], env: dict[str, str], cwd: str) -> None:
        self.died = asyncio.Event()
        self._language = language
        self._command = command
        self._env = env
        self._cwd = cwd
        self._process: asyncio.subprocess.Process | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._down: asyncio.WriteTransport | None = None
        self._queue: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        self._current = 0
        self._raw_at = 0.0

    async def start(self) -> None:
        down_read, down_write = os.pipe()
        up_read, up_write = os.pipe()
        env = {"SANDLOT_DOWN_FD": str(down_read), "SANDLOT_UP_FD": str(up_write), **self._env}
        try:
            self._process = await asyncio.create_subprocess_exec(
                *guarded(self._command),
                cwd=self._cwd,
                env=kernel_environment(env),
                pass_fds=(down_read, up_write),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                start_new_session=True,
            )
        except OSError as error:
            os.close(down_write)
            os.close(up_read)
            raise KernelFailed(f"cannot start {self._language}: {error.strerror}") from error
        finally:
            os.close(down_read)
            os.close(up_write)
        loop = asyncio.get_running_loop()
        self._down, _ = await loop.connect_write_pipe(asyncio.Protocol, os.fdopen(down_write, "wb"))
        reader = asyncio.StreamReader(limit=_MAX_LINE_BYTES)
        await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(up_read, "rb")
        )
        self._tasks = [
            asyncio.create_task(self._read_messages(reader), name="kernel messages"),
            asyncio.create_task(self._read_raw("stdout"), name="kernel stdout"),
            asyncio.create_task(self._read_raw("stderr"), name="kernel stderr"),
            asyncio.create_task(self._watch(), name="watch kernel"),
        ]
        try:
            await self._settle({"env": {}, "remove": []}, _READY_TIMEOUT_SECONDS)
        except (KernelDied, KernelFailed) as error:
            await self.kill()
            raise KernelFailed(f"the {self._language} kernel did not start") from error

    async def run(self, code: str) -> AsyncIterator[Output]:
        async for message in self._exchange({"code": code}):
            output = self._to_output(message)
            if output is not None:
                yield output

    async def set_env(self, values: dict[str, str], remove: list[str]) -> None:
        await self._settle({"env": values, "remove": remove}, _ENV_TIMEOUT_SECONDS)

    async def _settle(self, request: dict[str, Any], timeout_seconds: float) -> None:
        try:
            async with asyncio.timeout(timeout_seconds):
                async for message in self._exchange(request):
                    if message["type"] == "error":
                        raise KernelFailed(str(message.get("value", "")))
        except TimeoutError as error:
            raise KernelFailed("the kernel did not answer") from error

    async def _exchange(self, request: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        if self.died.is_set() or self._down is None:
            raise KernelDied
        self._current += 1
        self._down.write(json.dumps({"id": self._current, **request}).encode() + b"\n")
        while (message := await self._queue.get()) is not None:
            # Output of an earlier run that was given up is nobody's any more.
            if message.get("id", self._current) != self._current:
                continue
            if message.get("type") == "done":
                # A child's last bytes may be behind on another pipe.
                await asyncio.sleep(0)
                if asyncio.get_running_loop().time() - self._raw_at < _DRAIN_SECONDS:
                    await asyncio.sleep(_DRAIN_SECONDS)
                while not self._queue.empty():
                    late = self._queue.get_nowait()
                    if late is None:
                        self._queue.put_nowait(None)
                        return
                    if late.get("id", self._current) == self._current:
                        yield late
                return
            yield message
        raise KernelDied

    @staticmethod
    def _to_output(message: dict[str, Any]) -> Output | None:
        match message.get("type"):
            case "stdout" | "stderr" as stream:
                return Text(stream, str(message.get("text", "")))
            case "display":
                bundle = message.get("bundle")
                return Display(
                    bundle if isinstance(bundle, dict) else {}, bool(message.get("main"))
                )
            case "error":
                return Failure(
                    str(message.get("name", "")),
                    str(message.get("value", "")),
                    str(message.get("traceback", "")),
                )
        return None

    def interrupt(self) -> None:
        if self._process is not None:
            signal_group(self._process, signal.SIGINT)

    async def kill(self) -> None:
        if self._process is not None:
            await kill_group(self._process)
        self._announce_death()
        if self._down is not None and not self._down.is_closing():
            self._down.abort()
        for task in self._tasks:
            if task is not asyncio.current_task():
                task.cancel()

    async def _watch(self) -> None:
        assert self._process is not None
        await self._process.wait()
        await asyncio.sleep(0.05)
        self._announce_death()

    def _announce_death(self) -> None:
        self.died.set()
        self._queue.put_nowait(None)

    async def _read_messages(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(ValueError, OSError):  # over-long line: the kernel is beyond help
            while line := await reader.readline():
                with contextlib.suppress(ValueError):
                    message = json.loads(line)
                    if isinstance(message, dict):
                        self._queue.put_nowait(message)
        if self._process is not None and not self.died.is_set():
            signal_group(self._process, signal.SIGKILL)

    async def _read_raw(self, stream: str) -> None:
        assert self._process is not None
        reader = self._process.stdout if stream == "stdout" else self._process.stderr
        assert reader is not None
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        while data := await reader.read(65536):
            self._raw_at = asyncio.get_running_loop().time()
            if text := decoder.decode(data):
                self._queue.put_nowait({"type": stream, "text": text})
