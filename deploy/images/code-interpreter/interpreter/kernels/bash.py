"""A bash session: one interactive bash without a terminal, fed line by line on its stdin.

Interactive, because only then does SIGINT abort the command in progress and keep the shell. Each
run is two lines: `eval '<code>' </dev/null`, then one that tells the exit status on a descriptor of
our own and marks both output streams, so that we know when all output is in.
"""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import fcntl
import os
import re
import secrets
import shlex
import signal
from collections.abc import AsyncIterator

from interpreter.kernels.base import (
    KernelDied,
    KernelFailed,
    guarded,
    kernel_environment,
    kill_group,
    signal_group,
)
from interpreter.outputs import Failure, Output, Text

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_START_TIMEOUT_SECONDS = 10.0
# A line without its end is shown after this long, so that prompts and progress bars are seen.
_PARTIAL_SECONDS = 0.1
# After the status the marks follow at once, unless the user sent a stream elsewhere for good.
_MARK_SECONDS = 0.5
_LOWEST_FD = 200
# An interactive bash says "exit" when it leaves; nobody needs to read that.
_SETUP = """
set +o history; set +H; set +m; unset PROMPT_COMMAND
exit() { builtin exit "$@" 2>/dev/null; }
"""


class BashKernel:
    def __init__(self, cwd: str) -> None:
        self.died = asyncio.Event()
        self._cwd = cwd
        self._process: asyncio.subprocess.Process | None = None
        self._status_fd = -1
        self._tasks: list[asyncio.Task[None]] = []
        self._events: asyncio.Queue[tuple[str, str]] = asyncio.Queue()

    async def start(self) -> None:
        read_end, write_end = os.pipe()
        # A high number, out of the way of users' own `exec 3>...`.
        self._status_fd = fcntl.fcntl(write_end, fcntl.F_DUPFD, _LOWEST_FD)
        os.close(write_end)
        try:
            self._process = await asyncio.create_subprocess_exec(
                *guarded(["bash", "--noprofile", "--norc", "--noediting", "-i"]),
                cwd=self._cwd,
                env=kernel_environment({"PS1": "", "PS2": "", "PAGER": "cat", "TERM": "dumb"}),
                pass_fds=(self._status_fd,),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                start_new_session=True,
            )
        except OSError as error:
            os.close(read_end)
            raise KernelFailed(f"cannot start bash: {error.strerror}") from error
        finally:
            os.close(self._status_fd)
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        status = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(status), os.fdopen(read_end, "rb")
        )
        self._tasks = [
            asyncio.create_task(self._read("stdout", self._process.stdout), name="bash stdout"),
            asyncio.create_task(self._read("stderr", self._process.stderr), name="bash stderr"),
            asyncio.create_task(self._read("status", status), name="bash status"),
            asyncio.create_task(self._watch(), name="watch bash"),
        ]
        try:
            async with asyncio.timeout(_START_TIMEOUT_SECONDS):
                await self._silently(_SETUP)
        except (TimeoutError, KernelDied) as error:
            await self.kill()
            raise KernelFailed("bash did not start") from error

    async def run(self, code: str) -> AsyncIterator[Output]:
        code = code.replace("\0", "")
        parts = {"stdout": "", "stderr": ""}
        token, marks = self._submit(code), set(parts)
        status: str | None = None
        while status is None or marks:
            try:
                waits = _MARK_SECONDS if status is not None else _PARTIAL_SECONDS
                async with asyncio.timeout(waits if status or any(parts.values()) else None):
                    kind, data = await self._events.get()
            except TimeoutError:
                if status is not None:
                    break
                for name, text in parts.items():
                    if text:
                        yield Text(name, text)
                        parts[name] = ""
                continue
            if kind == "died":
                break
            if kind == "status":
                for line in data.splitlines():
                    told, _, number = line.partition(" ")
                    if told == token:
                        status = number
                continue
            text = parts[kind] + data
            before, mark, _ = text.partition(f"\x1e{token}\x1e")
            if mark:
                marks.discard(kind)
                text = before
            elif "\x1e" in text[-(len(token) + 2) :]:  # perhaps the beginning of the mark
                parts[kind] = text
                continue
            *lines, parts[kind] = text.split("\n")
            for line in lines:
                yield Text(kind, line + "\n")
        for name, text in parts.items():
            if text:
                yield Text(name, text)
        if status is None:
            status = await self._exit_status()
        if status != "0":
            yield Failure("", status)

    async def _exit_status(self) -> str:
        """After `exit n` the session is over, but the run has ended well. Raises: KernelDied."""
        code = None if self._process is None else self._process.returncode
        if code is None or code < 0:
            raise KernelDied
        return str(code)

    async def set_env(self, values: dict[str, str], remove: list[str]) -> None:
        lines = [
            f"export {name}={shlex.quote(value)}"
            for name, value in values.items()
            if _NAME.fullmatch(name)
        ]
        lines += [f"unset {name}" for name in remove if _NAME.fullmatch(name)]
        await self._silently("\n".join(lines))

    async def _silently(self, code: str) -> None:
        # The status of the last command must outlive our own commands, as users may ask for `$?`.
        async for _ in self.run(f"__sandlot_status=$?\n{code}\n(exit $__sandlot_status)"):
            pass

    def _submit(self, code: str) -> str:
        """Send one run; returns the token that will mark its end."""
        if self.died.is_set() or self._process is None or self._process.stdin is None:
            raise KernelDied
        while not self._events.empty():  # leftovers of background jobs between runs
            self._events.get_nowait()
        token = secrets.token_hex(8)
        line = (
            f"eval {shlex.quote(code)} </dev/null\n"
            f"__sandlot_status=$?; printf '%s %s\\n' {token} $__sandlot_status >&{self._status_fd};"
            f" printf '\\036%s\\036' {token}; printf '\\036%s\\036' {token} >&2;"
            f" (exit $__sandlot_status)\n"
        )
        self._process.stdin.write(line.encode("utf-8", "surrogateescape"))
        return token

    def interrupt(self) -> None:
        if self._process is not None:
            signal_group(self._process, signal.SIGINT)

    async def kill(self) -> None:
        if self._process is not None:
            await kill_group(self._process)
        self._announce_death()
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
        self._events.put_nowait(("died", ""))

    async def _read(self, kind: str, reader: asyncio.StreamReader) -> None:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                if text := decoder.decode(data):
                    self._events.put_nowait((kind, text))
