from __future__ import annotations

import codecs
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack

from sandlot import _wire
from sandlot._async.transport import AsyncTransport
from sandlot._errors import (
    CommandFailed,
    CommandTimeout,
    NotFound,
    RequestTimeout,
    SandboxGone,
    SandlotError,
    Unavailable,
)
from sandlot._models import CommandResult, ProcessInfo, SandboxHandle

# The server ends a command at its deadline; past this much more we stop believing that it will.
_DEADLINE_GRACE_SECONDS = 5.0

OnOutput = Callable[[str], None]


class AsyncCommand:
    """A started command. Iterate it for `(stream, text)` as output comes, then `wait` for its end.

    Close it (or leave its `async with`) to stop listening; the command runs on until its deadline.
    """

    def __init__(
        self, commands: AsyncCommands, request: _wire.Request, timeout_seconds: float | None
    ) -> None:
        self.pid = 0
        self._commands = commands
        self._request = request
        self._timeout_seconds = timeout_seconds
        self._stack = AsyncExitStack()
        self._events: AsyncIterator[_wire.ProcessEvent] | None = None
        self._ended: _wire.Ended | None = None
        self._output: dict[str, list[str]] = {"stdout": [], "stderr": []}

    async def __aenter__(self) -> AsyncCommand:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def _open(self) -> None:
        transport = self._commands._transport
        try:
            chunks = await self._stack.enter_async_context(transport.stream(self._request))
            self._events = self._read(chunks)
            first = await self._events.__anext__()
            if not isinstance(first, _wire.Started):
                raise SandlotError("the server sent output before the command started")
            self.pid = first.pid
        except StopAsyncIteration:
            await self.close()
            raise SandlotError("the server ended the stream before the command started") from None
        except BaseException:
            await self.close()
            raise

    async def _read(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[_wire.ProcessEvent]:
        reader = _wire.EventReader()
        deadline = None
        if self._timeout_seconds is not None:
            deadline = time.monotonic() + self._timeout_seconds + _DEADLINE_GRACE_SECONDS
        async for chunk in chunks:
            for event in reader.feed(chunk):
                yield event
            if reader.is_complete:
                return
            if deadline is not None and time.monotonic() > deadline:
                raise CommandTimeout(f"the command ran longer than {self._timeout_seconds:g} s")
        raise Unavailable("the connection ended before the command did")

    async def __aiter__(self) -> AsyncIterator[tuple[str, str]]:
        if self._ended is not None or self._events is None:
            return
        decoders = {name: codecs.getincrementaldecoder("utf-8")("replace") for name in self._output}
        try:
            async for event in self._events:
                if isinstance(event, _wire.Ended):
                    self._ended = event
                    break
                if isinstance(event, _wire.Output):
                    text = decoders[event.stream].decode(event.data)
                    if text:
                        self._output[event.stream].append(text)
                        yield event.stream, text
            for name, decoder in decoders.items():
                if text := decoder.decode(b"", True):
                    self._output[name].append(text)
                    yield name, text
        except (Unavailable, RequestTimeout) as error:
            if isinstance(error, CommandTimeout) or await self._commands.is_sandbox_running():
                raise
            raise SandboxGone(
                "the sandbox was killed or reached its end of life while the command ran"
            ) from error

    async def wait(
        self,
        *,
        on_stdout: OnOutput | None = None,
        on_stderr: OnOutput | None = None,
        check: bool = True,
    ) -> CommandResult:
        """Follow the command to its end.

        Raises: CommandFailed unless `check` is False; CommandTimeout; SandboxGone.
        """
        try:
            async for stream, text in self:
                callback = on_stdout if stream == "stdout" else on_stderr
                if callback is not None:
                    callback(text)
        finally:
            await self.close()
        if self._ended is None:
            raise SandlotError("the server ended the stream without saying how the command ended")
        stdout, stderr = "".join(self._output["stdout"]), "".join(self._output["stderr"])
        if check and self._ended.exit_code != 0:
            raise CommandFailed(
                exit_code=self._ended.exit_code,
                stdout=stdout,
                stderr=stderr,
                status=self._ended.status,
            )
        return CommandResult(stdout, stderr, self._ended.exit_code)

    async def send_stdin(self, data: str | bytes) -> None:
        await self._commands.send_stdin(self.pid, data)

    async def close_stdin(self) -> None:
        await self._commands.close_stdin(self.pid)

    async def kill(self) -> bool:
        return await self._commands.kill(self.pid)

    async def close(self) -> None:
        await self._stack.aclose()


class AsyncCommands:
    """Commands of one sandbox, run by its login shell."""

    def __init__(self, transport: AsyncTransport, handle: SandboxHandle) -> None:
        self._transport = transport
        self._handle = handle

    async def run(
        self,
        command: str,
        *,
        envs: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        timeout_seconds: float | None = 60.0,
        on_stdout: OnOutput | None = None,
        on_stderr: OnOutput | None = None,
        check: bool = True,
    ) -> CommandResult:
        """Run a command to its end; at `timeout_seconds` it is killed (None: no limit).

        Raises: CommandFailed on a bad exit unless `check` is False; CommandTimeout; SandboxGone.
        """
        started = await self.start(
            command, envs=envs, cwd=cwd, user=user, timeout_seconds=timeout_seconds
        )
        return await started.wait(on_stdout=on_stdout, on_stderr=on_stderr, check=check)

    async def start(
        self,
        command: str,
        *,
        envs: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        stdin: bool = False,
        timeout_seconds: float | None = 60.0,
    ) -> AsyncCommand:
        """Start a command and return once it runs. `stdin`: keep it open for `send_stdin`."""
        request = _wire.start_command(
            self._transport.config,
            self._handle,
            command,
            envs=envs,
            cwd=cwd,
            user=user,
            stdin=stdin,
            timeout_seconds=timeout_seconds,
        )
        started = AsyncCommand(self, request, timeout_seconds)
        await started._open()
        return started

    async def connect(self, pid: int, *, timeout_seconds: float | None = 60.0) -> AsyncCommand:
        """Listen to a running command from now on. Raises: NotFound."""
        request = _wire.connect_command(
            self._transport.config, self._handle, pid, timeout_seconds=timeout_seconds
        )
        command = AsyncCommand(self, request, timeout_seconds)
        await command._open()
        return command

    async def list(self) -> list[ProcessInfo]:
        request = _wire.list_processes(self._transport.config, self._handle)
        return _wire.parse_processes(await self._transport.send(request))

    async def kill(self, pid: int) -> bool:
        """Kill a command; False when there is none of that pid."""
        request = _wire.kill_process(self._transport.config, self._handle, pid)
        try:
            await self._transport.send(request)
        except NotFound:
            return False
        return True

    async def send_stdin(self, pid: int, data: str | bytes) -> None:
        content = data.encode() if isinstance(data, str) else data
        request = _wire.send_stdin(self._transport.config, self._handle, pid, content)
        await self._transport.send(request)

    async def close_stdin(self, pid: int) -> None:
        request = _wire.close_stdin(self._transport.config, self._handle, pid)
        await self._transport.send(request)

    async def is_sandbox_running(self) -> bool:
        try:
            request = _wire.health(self._transport.config, self._handle)
            await self._transport.send(request, timeout_seconds=5.0)
        except SandboxGone:
            return False
        except SandlotError:
            return True  # unknown: do not claim that it is gone
        return True
