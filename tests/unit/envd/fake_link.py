"""A guest that lives in memory: the interface of GuestLink, driven by the test."""

from __future__ import annotations

import asyncio
import posixpath
import time
from collections.abc import AsyncIterator
from typing import Any

from nodeagent.errors import (
    AgentError,
    AlreadyExists,
    InvalidArgument,
    NoSpace,
    NotFound,
    Unauthenticated,
    Unavailable,
)
from nodeagent.guest.link import ProcessExit

HOMES = {"user": "/home/user", "root": "/root"}


class FakeChannel:
    """A process whose output and end the test decides."""

    def __init__(self, pid: int, arguments: dict[str, Any]) -> None:
        self.pid = pid
        self.arguments = arguments
        self.exit: ProcessExit | None = None
        self.written = bytearray()
        self.size: tuple[int, int] | None = arguments.get("pty")
        self.stdin_closed = not arguments.get("stdin", True)
        self.signals: list[int] = []
        self.is_left = False
        self.taken = 0  # output events the agent has read
        self._queue: asyncio.Queue[tuple[str, bytes] | ProcessExit | AgentError] = asyncio.Queue()

    def emit(self, stream: str, data: bytes) -> None:
        self._queue.put_nowait((stream, data))

    def end(self, exit_code: int = 0) -> None:
        text = f"exit status {exit_code}"
        self._queue.put_nowait(ProcessExit(exit_code, True, text, text if exit_code else None))

    def end_by_signal(self, name: str) -> None:
        self._queue.put_nowait(ProcessExit(-1, False, f"signal: {name}", f"signal: {name}"))

    def fail(self, error: AgentError) -> None:
        self._queue.put_nowait(error)

    def __aiter__(self) -> AsyncIterator[tuple[str, bytes]]:
        return self

    async def __anext__(self) -> tuple[str, bytes]:
        event = await self._queue.get()
        if isinstance(event, ProcessExit):
            self.exit = event
            raise StopAsyncIteration
        if isinstance(event, AgentError):
            raise event
        self.taken += 1
        return event

    async def write(self, data: bytes) -> None:
        if self.stdin_closed and self.size is None:
            raise AgentError("error writing to stdin: stdin not enabled or closed")
        self.written += data

    async def close_stdin(self) -> None:
        self.stdin_closed = True

    async def signal(self, number: int) -> None:
        if self.exit is not None:
            raise NotFound("the process has ended")
        self.signals.append(number)
        self.end_by_signal("killed" if number == 9 else "terminated")

    async def resize(self, cols: int, rows: int) -> None:
        self.size = (cols, rows)

    def close(self) -> None:
        self.is_left = True


class FakeReader:
    def __init__(self, path: str, data: bytes, size: int, is_regular: bool) -> None:
        self.path, self.size_bytes, self.is_regular = path, size, is_regular
        self.modified_at = 1_700_000_000.5
        self.is_closed = False
        self._data = data

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._pieces()

    async def _pieces(self) -> AsyncIterator[bytes]:
        for at in range(0, len(self._data), 1000):
            yield self._data[at : at + 1000]

    def close(self) -> None:
        self.is_closed = True


class FakeWriter:
    def __init__(self, link: FakeLink, path: str, metadata: dict[str, str]) -> None:
        self.path = path
        self._link, self._metadata = link, metadata
        link.files[path] = b""

    async def write(self, data: bytes) -> None:
        if self._link.is_full:
            raise NoSpace("not enough disk space available")
        self._link.files[self.path] += data

    async def finish(self) -> dict[str, Any]:
        self._link.metadata[self.path] = self._metadata
        return self._link.entry(self.path)

    def close(self) -> None:
        pass


class FakeWatch:
    def __init__(self, watcher_id: str) -> None:
        self.watcher_id = watcher_id
        self.events: list[dict[str, Any]] = []
        self.queue: asyncio.Queue[dict[str, Any] | AgentError] = asyncio.Queue()
        self.is_closed = False

    def __aiter__(self) -> AsyncIterator[dict[str, Any]]:
        return self

    async def __anext__(self) -> dict[str, Any]:
        event = await self.queue.get()
        if isinstance(event, AgentError):
            raise event
        return event

    async def drain(self) -> list[dict[str, Any]]:
        events, self.events = self.events, []
        return events

    def close(self) -> None:
        self.is_closed = True


class FakeLink:
    """`kept`: watchers that outlive the agent. `dials`: ports asked for; nothing listens."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.directories: set[str] = {"/", "/home/user", "/root", "/tmp"}
        self.metadata: dict[str, dict[str, str]] = {}
        self.pseudo_files: dict[str, bytes] = {"/proc/version": b"Linux\n"}
        self.processes: dict[int, FakeChannel] = {}
        self.kept: dict[str, FakeWatch] = {}
        self.watches: list[FakeWatch] = []
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.dials: list[int] = []
        self.is_full = False
        self.start_gate: asyncio.Event | None = None
        self._next_pid = 41

    # Paths

    def resolve(self, user: str, path: str) -> str:
        if user not in HOMES:
            raise Unauthenticated(f"invalid username: '{user}'", error_code="unknown_user")
        if path.startswith("~") and path != "~" and not path.startswith("~/"):
            raise InvalidArgument("cannot expand user-specific home dir")
        if path in ("", "~"):
            return HOMES[user]
        if path.startswith("~/"):
            path = path[2:]
        return posixpath.normpath(posixpath.join(HOMES[user], path))

    def entry(self, path: str) -> dict[str, Any]:
        is_file = path in self.files
        if not is_file and path not in self.directories:
            raise NotFound(f"file not found: lstat {path}: no such file or directory")
        entry = {
            "name": posixpath.basename(path),
            "type": "FILE_TYPE_FILE" if is_file else "FILE_TYPE_DIRECTORY",
            "path": path,
            "size": str(len(self.files.get(path, b"    "))),
            "mode": 0o644 if is_file else 0o755,
            "permissions": "-rw-r--r--" if is_file else "drwxr-xr-x",
            "owner": "user",
            "group": "user",
            "modifiedTime": "2026-01-02T03:04:05.000000006Z",
        }
        if self.metadata.get(path):
            entry["metadata"] = self.metadata[path]
        return entry

    # GuestLink

    async def call(self, op: str, *, timeout_seconds: float = 30.0, **args: Any) -> dict[str, Any]:
        self.calls.append((op, args))
        if op == "processes":
            return {
                "processes": [
                    {
                        "pid": pid,
                        "config": channel.arguments["config"],
                        "tag": channel.arguments["tag"],
                        "pty": channel.arguments["pty"] is not None,
                        "stdin": channel.arguments["stdin"],
                    }
                    for pid, channel in self.processes.items()
                ]
            }
        if op == "resolve_user":
            self.resolve(args["user"], "")
            return {"uid": 1000, "gid": 1000, "home": HOMES[args["user"]], "name": args["user"]}
        if op == "remove_watcher":
            if self.kept.pop(args["watcher_id"], None) is None:
                raise NotFound(f"watcher with id {args['watcher_id']} not found")
            return {}
        if op == "compose":
            target = self.resolve(args["user"], args["destination"])
            sources = [self.resolve(args["user"], source) for source in args["sources"]]
            for source in sources:
                if source not in self.files:
                    raise NotFound(f"source file not found: {source}")
            self.files[target] = b"".join(self.files.pop(source) for source in sources)
            return {"entry": self.entry(target)}
        if op == "move":
            source = self.resolve(args["user"], args["source"])
            if source not in self.files:
                raise NotFound("source file not found: no such file or directory")
            target = self.resolve(args["user"], args["destination"])
            self.files[target] = self.files.pop(source)
            return {"entry": self.entry(target)}
        path = self.resolve(args["user"], args["path"])
        if op == "stat":
            return {"entry": self.entry(path)}
        if op == "make_dir":
            if path in self.directories:
                raise AlreadyExists(f"directory already exists: {path}")
            self.directories.add(path)
            return {"entry": self.entry(path)}
        if op == "remove":
            self.files.pop(path, None)
            return {}
        if op == "list_dir":
            if path not in self.directories:
                raise NotFound("path not found: no such file or directory")
            inside = [name for name in self.files if posixpath.dirname(name) == path]
            return {"entries": [self.entry(name) for name in sorted(inside)]}
        raise AssertionError(op)

    async def start_process(self, **arguments: Any) -> FakeChannel:
        self.resolve(arguments["user"], "")
        if self.start_gate is not None:
            await self.start_gate.wait()
        if arguments["cwd"] == "/missing":
            raise InvalidArgument("cwd '/missing' does not exist")
        self._next_pid += 1
        channel = FakeChannel(self._next_pid, arguments)
        self.processes[channel.pid] = channel
        return channel

    async def attach(self, pid: int) -> FakeChannel:
        if pid not in self.processes:
            raise NotFound(f"process with pid {pid} not found")
        return self.processes[pid]

    async def open_read(
        self,
        *,
        user: str,
        path: str,
        default_workdir: str,
        offset: int = 0,
        length: int | None = None,
    ) -> FakeReader:
        path = self.resolve(user, path)
        if path in self.directories:
            raise InvalidArgument(f"path '{path}' is a directory")
        if path in self.pseudo_files:
            return FakeReader(path, self.pseudo_files[path], 0, True)
        if path not in self.files:
            raise NotFound(f"path '{path}' does not exist")
        data = self.files[path]
        end = None if length is None else offset + length
        return FakeReader(path, data[offset:end], len(data), True)

    async def open_write(
        self, *, user: str, path: str, default_workdir: str, metadata: dict[str, str]
    ) -> FakeWriter:
        path = self.resolve(user, path)
        if path in self.directories:
            raise InvalidArgument(f"path is a directory: {path}")
        return FakeWriter(self, path, metadata)

    async def watch(self, *, user: str, path: str, keep: bool, **_: Any) -> FakeWatch:
        path = self.resolve(user, path)
        if path not in self.directories:
            raise NotFound(f"path {path} not found: no such file or directory")
        watch = FakeWatch(f"w{len(self.watches)}-{time.monotonic_ns()}")
        self.watches.append(watch)
        if keep:
            self.kept[watch.watcher_id] = watch
        return watch

    async def attach_watcher(self, watcher_id: str) -> FakeWatch:
        if watcher_id not in self.kept:
            raise NotFound(f"watcher with id {watcher_id} not found")
        return self.kept[watcher_id]

    async def dial(self, port: int, **_: Any) -> Any:
        self.dials.append(port)
        raise Unavailable("connection refused")
