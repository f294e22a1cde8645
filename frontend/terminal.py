"""Shared terminals: one shell in a sandbox, any number of viewers, replay for who comes back.

A `Terminal` holds one envd stream and the last REPLAY_BYTES of its output. Viewers get the replay
and then live output; a viewer that cannot keep up loses its backlog and gets a fresh replay instead
of a growing queue, so `yes` in a shell costs the server a bounded amount. The shell belongs to the
sandbox: it survives this process, and is found again by its tag.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from frontend.envd import Door, EnvdError, Processes

logger = logging.getLogger(__name__)

TAG = "dashboard-terminal"
REPLAY_BYTES = 256 * 1024
VIEWER_QUEUE_BYTES = 512 * 1024
DETACHED_SECONDS = 60.0
MAX_INPUT_BYTES = 64 * 1024
MAX_COLS, MAX_ROWS = 500, 200
RESET_SCREEN = b"\x1bc"


class Replay:
    """The last bytes of a stream, bounded."""

    def __init__(self, limit: int = REPLAY_BYTES) -> None:
        self._chunks: deque[bytes] = deque()
        self._size = 0
        self._limit = limit

    def add(self, data: bytes) -> None:
        self._chunks.append(data)
        self._size += len(data)
        while self._size > self._limit and len(self._chunks) > 1:
            self._size -= len(self._chunks.popleft())

    def all(self) -> bytes:
        return b"".join(self._chunks)[-self._limit :]


@dataclass(eq=False)
class Viewer:
    """One socket that looks at a terminal. `take` waits for output; None says the shell ended."""

    replay: Callable[[], bytes]
    _chunks: deque[bytes] = field(default_factory=deque)
    _size: int = 0
    _skipped: bool = False
    _ended: str | None = None
    _wake: asyncio.Event = field(default_factory=asyncio.Event)

    def give(self, data: bytes) -> None:
        self._size += len(data)
        if self._size > VIEWER_QUEUE_BYTES:
            self._chunks.clear()
            self._size = 0
            self._skipped = True
        else:
            self._chunks.append(data)
        self._wake.set()

    def end(self, reason: str) -> None:
        self._ended = reason
        self._wake.set()

    async def take(self) -> bytes | None:
        while True:
            if self._skipped:
                self._skipped = False
                self._chunks.clear()
                self._size = 0
                return RESET_SCREEN + self.replay()
            if self._chunks:
                data = b"".join(self._chunks)
                self._chunks.clear()
                self._size = 0
                return data
            if self._ended is not None:
                return None
            self._wake.clear()
            await self._wake.wait()

    @property
    def end_reason(self) -> str:
        return self._ended or ""


class Terminal:
    """One shell of one sandbox, within this process."""

    def __init__(self, door: Door, on_gone: Callable[[Terminal], None]) -> None:
        self.door = door
        self.pid = 0
        self._processes = Processes(door)
        self._replay = Replay()
        self._viewers: set[Viewer] = set()
        self._on_gone = on_gone
        self._pump: asyncio.Task[None] | None = None
        self._linger: asyncio.TimerHandle | None = None
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def viewers(self) -> int:
        return len(self._viewers)

    async def open(self, *, cols: int, rows: int) -> None:
        """Find the sandbox's dashboard shell, or start one. Raises: EnvdError."""
        self._pump = asyncio.create_task(self._run(cols, rows), name="terminal")
        await asyncio.shield(self._ready)

    def attach(self) -> tuple[Viewer, bytes]:
        """A new viewer and what it missed."""
        if self._linger:
            self._linger.cancel()
            self._linger = None
        viewer = Viewer(self._replay.all)
        self._viewers.add(viewer)
        return viewer, self._replay.all()

    def detach(self, viewer: Viewer) -> None:
        self._viewers.discard(viewer)
        if not self._viewers and not self._linger:
            loop = asyncio.get_running_loop()
            self._linger = loop.call_later(DETACHED_SECONDS, self.close)

    async def send(self, data: bytes) -> None:
        """At most MAX_INPUT_BYTES a call. Raises: EnvdError."""
        await self._processes.send_pty(self.pid, data)

    async def resize(self, cols: int, rows: int) -> None:
        cols, rows = clamp_size(cols, rows)
        await self._processes.resize(self.pid, cols, rows)

    def close(self) -> None:
        """Let go of the stream; the shell in the sandbox goes on."""
        if self._pump:
            self._pump.cancel()

    async def _run(self, cols: int, rows: int) -> None:
        reason = "The connection to the sandbox ended."
        try:
            pid = await self._find()
            opened = (
                self._processes.connect(pid)
                if pid
                else self._processes.start_shell(cols=cols, rows=rows, tag=TAG)
            )
            async with opened as events:
                async for event in events:
                    if "start" in event:
                        self.pid = int(event["start"].get("pid", 0))
                        if pid:  # a full-screen program redraws, a shell shows its prompt again
                            await self.resize(cols, rows)
                        if not self._ready.done():
                            self._ready.set_result(None)
                    elif "data" in event:
                        self._publish(base64.b64decode(event["data"].get("pty", "")))
                    elif "end" in event:
                        code = event["end"].get("exitCode", 0)
                        reason = f"The shell ended with exit code {code}."
                        break
        except EnvdError as error:
            reason = error.message
            if not self._ready.done():
                self._ready.set_exception(error)
        finally:
            if not self._ready.done():
                self._ready.set_exception(EnvdError("unavailable", reason))
            self._on_gone(self)
            for viewer in self._viewers:
                viewer.end(reason)
            with contextlib.suppress(Exception):
                await self._processes.close()

    async def _find(self) -> int:
        for process in await self._processes.list():
            if process.get("tag") == TAG:
                return int(process.get("pid", 0))
        return 0

    def _publish(self, data: bytes) -> None:
        if not data:
            return
        self._replay.add(data)
        for viewer in self._viewers:
            viewer.give(data)


def clamp_size(cols: int, rows: int) -> tuple[int, int]:
    return max(2, min(cols, MAX_COLS)), max(1, min(rows, MAX_ROWS))


class Terminals:
    """The terminals that this process holds, one per sandbox."""

    def __init__(self) -> None:
        self._open: dict[str, Terminal] = {}
        self._locks: dict[str, asyncio.Lock] = {}

    async def join(self, door: Door, *, cols: int, rows: int) -> Terminal:
        """The sandbox's terminal, opened if need be. Raises: EnvdError."""
        lock = self._locks.setdefault(door.sandbox_id, asyncio.Lock())
        async with lock:
            terminal = self._open.get(door.sandbox_id)
            if terminal is None:
                terminal = Terminal(door, self._forget)
                self._open[door.sandbox_id] = terminal
                try:
                    await terminal.open(cols=cols, rows=rows)
                except EnvdError:
                    self._forget(terminal)
                    raise
            return terminal

    def _forget(self, terminal: Terminal) -> None:
        if self._open.get(terminal.door.sandbox_id) is terminal:
            del self._open[terminal.door.sandbox_id]
        self._locks.pop(terminal.door.sandbox_id, None)


terminals = Terminals()
