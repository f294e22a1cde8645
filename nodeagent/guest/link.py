"""The host side of a guest: one connection per operation over the sandbox's unix socket.

Every byte from a guest is hostile: frames are bounded, every wait has a timeout, no descriptor
is accepted, and a guest that breaks the rules raises GuestFault without harm to the agent.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nodeagent.errors import GuestFault, NotFound
from nodeagent.guest import frames
from nodeagent.guest.connection import (
    URGENT_BYTES,
    Again,
    Connection,
    connect,
    decode,
    decode_error,
    encode,
    open_connection,
)

STREAMS = {frames.STDOUT: "stdout", frames.STDERR: "stderr", frames.PTY: "pty"}
STDIN_PIECE_BYTES = 128 * 1024
WRITE_PIECE_BYTES = frames.MAX_DATA
START_SECONDS = 30.0
ANSWER_SECONDS = 5.0
FILE_STALL_SECONDS = 120.0  # a file operation that moves nothing for so long has failed
DRAIN_BYTES = 64 * 1024 * 1024
ATTACH_TRIES = 3
SIGNAL_NAMES = {
    1: "hangup",
    2: "interrupt",
    3: "quit",
    4: "illegal instruction",
    5: "trace/breakpoint trap",
    6: "aborted",
    7: "bus error",
    8: "floating point exception",
    9: "killed",
    10: "user defined signal 1",
    11: "segmentation fault",
    12: "user defined signal 2",
    13: "broken pipe",
    14: "alarm clock",
    15: "terminated",
    24: "CPU time limit exceeded",
    25: "file size limit exceeded",
    31: "bad system call",
}


@dataclass(frozen=True)
class ProcessExit:
    """exit_code: -1 when ended by a signal.

    status/error: Go-style texts of the envd contract, section 4.5.
    """

    exit_code: int
    exited: bool
    status: str
    error: str | None

    @classmethod
    def from_wait_status(cls, status: int) -> ProcessExit:
        number = status & 0x7F
        if number == 0:
            code = status >> 8 & 0xFF
            text = f"exit status {code}"
            return cls(code, True, text, text if code else None)
        text = f"signal: {SIGNAL_NAMES.get(number, f'signal {number}')}"
        if status & 0x80:
            text += " (core dumped)"
        return cls(-1, False, text, text)


class ProcessChannel:
    """The agent's one connection to a process of the guest; the fan-out to clients is envd's.

    Iterating yields `(stream, data)`, stream being "stdout", "stderr" or "pty", data never empty
    and at most 32 KiB (16 KiB for a PTY), and ends after the exit, which `exit` then holds. Not
    reading holds the process back (back-pressure). One task iterates. Raises: GuestFault when
    the guest is lost before the exit.
    """

    def __init__(self, connection: Connection, pid: int) -> None:
        self.pid = pid
        self.exit: ProcessExit | None = None
        self._connection = connection
        self._is_left = False
        self._stdin_lock = asyncio.Lock()

    def __aiter__(self) -> AsyncIterator[tuple[str, bytes]]:
        return self

    async def __anext__(self) -> tuple[str, bytes]:
        if self.exit is not None or self._is_left:
            raise StopAsyncIteration
        item = self._connection.take_now() or await self._connection.take()
        if item is None:
            if self._is_left:
                raise StopAsyncIteration
            raise GuestFault("the guest was lost before the process ended")
        kind, payload = item
        if kind in STREAMS:
            return STREAMS[kind], payload
        if kind == frames.EXIT and len(payload) == 4:
            self.exit = ProcessExit.from_wait_status(int.from_bytes(payload, "big"))
            self._connection.close()
            raise StopAsyncIteration
        self._connection.close()
        if kind == frames.ERROR:
            raise decode_error(payload)
        raise GuestFault("the guest sent what no process sends")

    async def write(self, data: bytes) -> None:
        """Give stdin (or PTY) bytes; returns when the process's pipe took all. Raises:
        AgentError as 4.8 says.

        Waits as long as the process does not read: the caller's deadline is the bound. NotFound:
        it has ended.
        """
        async with self._stdin_lock:
            self._check_running()
            for at in range(0, len(data), STDIN_PIECE_BYTES):
                piece = data[at : at + STDIN_PIECE_BYTES]
                await self._connection.request(frames.STDIN, piece, timeout_seconds=None)

    async def close_stdin(self) -> None:
        """After what was written so far; a repeat is fine. Raises: Unknown for a PTY."""
        await self._urgent(frames.CLOSE_STDIN)

    async def signal(self, number: int) -> None:
        """Signal the leader; after SIGKILL waits up to 200 ms until it is reaped.

        Raises: NotFound if it has ended.
        """
        await self._urgent(frames.SIGNAL, bytes([number]))

    async def resize(self, cols: int, rows: int) -> None:
        size = min(cols, 0xFFFF).to_bytes(2, "big") + min(rows, 0xFFFF).to_bytes(2, "big")
        await self._urgent(frames.RESIZE, size)

    def _check_running(self) -> None:
        if self._connection.has_exit:
            raise NotFound(f"process with pid {self.pid} not found")

    async def _urgent(self, kind: int, data: bytes = b"") -> None:
        self._check_running()
        await self._connection.request(
            kind, data, timeout_seconds=ANSWER_SECONDS, read_past=URGENT_BYTES
        )

    def close(self) -> None:
        """Leave; the process lives on and its output goes to the guest's bounded ring."""
        self._is_left = True
        self._connection.close()


class FileReader:
    """An open file. `size_bytes` is from stat (0 for /proc files, which still yield content).

    Iterating yields pieces of at most 256 KiB. `path` is the resolved path.
    """

    def __init__(self, connection: Connection, about: dict[str, Any]) -> None:
        self.path = _field(about, "path", str)
        self.size_bytes = _field(about, "size", int)
        self.modified_at = float(_field(about, "modified_at", (int, float)))
        self.is_regular = _field(about, "is_regular", bool)
        self._connection = connection
        self._is_done = False

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if self._is_done:
            raise StopAsyncIteration
        item = self._connection.take_now()
        if item is None:
            try:
                async with asyncio.timeout(FILE_STALL_SECONDS):
                    item = await self._connection.take()
            except TimeoutError as error:
                self.close()
                raise GuestFault("the guest stopped sending the file") from error
        if item is None:
            raise GuestFault("the guest was lost before the end of the file")
        kind, payload = item
        if kind == frames.DATA:
            return payload
        self.close()
        if kind == frames.END:
            raise StopAsyncIteration
        if kind == frames.ERROR:
            raise decode_error(payload)
        raise GuestFault("the guest sent what no file sends")

    def close(self) -> None:
        self._is_done = True
        self._connection.close()


class FileWriter:
    """A file being written. `finish` sets the metadata and returns the entry; leaving without it
    keeps what was written.

    `path` is the resolved path.
    """

    def __init__(self, connection: Connection, about: dict[str, Any]) -> None:
        self.path = _field(about, "path", str)
        self._connection = connection

    async def write(self, data: bytes) -> None:
        """Raises: NoSpace, AgentError. Either may come later than the write that caused it."""
        for at in range(0, len(data), WRITE_PIECE_BYTES):
            piece = data[at : at + WRITE_PIECE_BYTES]
            try:
                self._connection.send(frames.pack(frames.DATA, piece))
                await self._connection.drain(FILE_STALL_SECONDS)
            except GuestFault:
                self._raise_reported()
                raise
            self._raise_reported()

    def _raise_reported(self) -> None:
        """The guest says why before it closes."""
        item = self._connection.take_now()
        if item is not None:
            self._connection.close()
            if item[0] == frames.ERROR:
                raise decode_error(item[1])
            raise GuestFault("the guest replied before the end of the file")

    async def finish(self) -> dict[str, Any]:
        """EntryInfo of the complete file, in protobuf JSON. Raises: NoSpace, AgentError."""
        try:
            try:
                self._connection.send(frames.pack(frames.FINISH))
            except GuestFault:
                self._raise_reported()
                raise
            reply = await self._connection.take_reply(FILE_STALL_SECONDS)
            return check_entry(reply.get("entry"))
        finally:
            self._connection.close()

    def close(self) -> None:
        """Leave. What was sent before still reaches the file."""
        transport = self._connection.transport
        if transport is not None:
            transport.close()


class WatchChannel:
    """A watcher in the guest: event dicts {"name", "type", "entry"?}, type and entry as in
    protobuf JSON.

    Without `keep` it pushes events (iterate) and ends with `close`; kept, it holds them until
    `drain`, and lives until `remove_watcher`. Raises: AgentError `watcher error: …` when the
    watcher has failed.
    """

    def __init__(self, connection: Connection, watcher_id: str) -> None:
        self.watcher_id = watcher_id
        self._connection = connection
        self._ready: list[dict[str, Any]] = []
        self._is_left = False

    def __aiter__(self) -> AsyncIterator[dict[str, Any]]:
        return self

    async def __anext__(self) -> dict[str, Any]:
        while not self._ready:
            item = None if self._is_left else await self._connection.take()
            if item is None:
                if self._is_left:
                    raise StopAsyncIteration
                raise GuestFault("the guest was lost")
            self._ready = self._unpack(*item)
        return self._ready.pop(0)

    async def drain(self) -> list[dict[str, Any]]:
        """Every event up to now, the kernel's queue included."""
        await self._connection.request(
            frames.DRAIN, timeout_seconds=ANSWER_SECONDS, read_past=DRAIN_BYTES
        )
        events, self._ready = self._ready, []
        while item := self._connection.take_now():
            events += self._unpack(*item)
        return events

    def _unpack(self, kind: int, payload: bytes) -> list[dict[str, Any]]:
        if kind == frames.ERROR:
            raise decode_error(payload)
        events = decode(payload) if kind == frames.EVENTS else None
        if not isinstance(events, list):
            self._connection.close()
            raise GuestFault("the guest sent what no watcher sends")
        return [check_event(event) for event in events]

    def close(self) -> None:
        self._is_left = True
        self._connection.close()


class GuestLink:
    """Operations on one guest. `user` None means root power with root's names; paths are
    resolved in the guest.

    An unknown user raises Unauthenticated with error_code "unknown_user" and message `invalid
    username: '<name>'`.
    """

    def __init__(self, socket_path: Path) -> None:
        self.socket_path = socket_path

    async def ping(self) -> None:
        """Raises: GuestFault when the guest does not answer within a second."""
        await self.call("ping", timeout_seconds=1.0)

    async def call(self, op: str, *, timeout_seconds: float = 30.0, **args: Any) -> dict[str, Any]:
        """One unary operation -> its reply. Raises: AgentError named by the guest's code;
        GuestFault.

        resolve_user(user) -> {"uid","gid","groups","home","name"};
        resolve_path(user, path, default_workdir) -> {"path"}
        stat(user, path, default_workdir) / make_dir / move(source, destination) -> {"entry"}
        list_dir(..., depth) -> {"entries"}; remove -> {}; compose(user, sources, destination) ->
        {"entry"} processes() -> {"processes": [{"pid","config","tag","pty","stdin"}]}
        remove_watcher(watcher_id) -> {}; disk_usage() -> {"total","used"}

        Entries are EntryInfo in protobuf JSON: default values left out, size a string,
        modifiedTime RFC 3339.
        """
        connection, reply = await self._ask({"op": op, **args}, timeout_seconds)
        connection.close()
        return check_reply(op, reply)

    async def _ask(
        self, request: dict[str, Any], timeout_seconds: float
    ) -> tuple[Connection, dict[str, Any]]:
        connection = await open_connection(self.socket_path, request, timeout_seconds)
        try:
            return connection, await connection.take_reply(timeout_seconds)
        except BaseException:
            connection.close()
            raise

    async def _ask_again(
        self, request: dict[str, Any], timeout_seconds: float
    ) -> tuple[Connection, dict[str, Any]]:
        """As `_ask`, for what may be ending at this moment."""
        for _ in range(ATTACH_TRIES - 1):
            try:
                return await self._ask(request, timeout_seconds)
            except Again:
                pass
            except GuestFault as fault:
                if fault.error_code != "closed":
                    raise
            await asyncio.sleep(0.01)
        return await self._ask(request, timeout_seconds)

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
        """Start a command; PATH, HOME, USER and LOGNAME are added below `env`.

        Raises: Unauthenticated (unknown user), InvalidArgument (cwd), Unavailable (no room for a
        process).
        """
        connection, reply = await self._ask(
            {
                "op": "start",
                "user": user,
                "cmd": cmd,
                "args": args,
                "env": env,
                "cwd": cwd,
                "default_workdir": default_workdir,
                "pty": None if pty is None else [min(pty[0], 0xFFFF), min(pty[1], 0xFFFF)],
                "stdin": stdin,
                "tag": tag,
                "config": config,
                "deadline_seconds": deadline_seconds,
            },
            START_SECONDS,
        )
        return ProcessChannel(connection, self._pid(connection, reply))

    async def attach(self, pid: int) -> ProcessChannel:
        """Take over a process after an agent restart; yields what its ring kept, then live.
        Raises: NotFound.

        One that ended within the last 30 s yields its exit only.
        """
        connection, reply = await self._ask_again({"op": "attach", "pid": pid}, ANSWER_SECONDS)
        return ProcessChannel(connection, self._pid(connection, reply))

    @staticmethod
    def _pid(connection: Connection, reply: dict[str, Any]) -> int:
        try:
            return _pid_field(reply)
        except GuestFault:
            connection.close()
            raise

    async def open_read(
        self,
        *,
        user: str,
        path: str,
        default_workdir: str,
        offset: int = 0,
        length: int | None = None,
    ) -> FileReader:
        """Raises: NotFound `path '<path>' does not exist`, InvalidArgument `path '<path>' is a
        directory`.
        """
        connection, reply = await self._ask(
            {
                "op": "read",
                "user": user,
                "path": path,
                "default_workdir": default_workdir,
                "offset": offset,
                "length": length,
            },
            START_SECONDS,
        )
        try:
            return FileReader(connection, reply)
        except GuestFault:
            connection.close()
            raise

    async def open_write(
        self, *, user: str, path: str, default_workdir: str, metadata: dict[str, str]
    ) -> FileWriter:
        """Open for writing: parents made, file truncated and owned by the user. `metadata`:
        checked by the caller.

        Raises: InvalidArgument `path is a directory: <path>`, NoSpace.
        """
        connection, reply = await self._ask(
            {
                "op": "write",
                "user": user,
                "path": path,
                "default_workdir": default_workdir,
                "metadata": metadata,
            },
            START_SECONDS,
        )
        try:
            return FileWriter(connection, reply)
        except GuestFault:
            connection.close()
            raise

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
        """Watch a directory; every event from the return on is seen.

        Raises: NotFound, InvalidArgument.
        """
        connection, reply = await self._ask(
            {
                "op": "watch",
                "user": user,
                "path": path,
                "default_workdir": default_workdir,
                "recursive": recursive,
                "include_entry": include_entry,
                "allow_network_mounts": allow_network_mounts,
                "keep": keep,
            },
            START_SECONDS,
        )
        return self._watch_channel(connection, reply)

    async def attach_watcher(self, watcher_id: str) -> WatchChannel:
        """Take over a kept watcher after an agent restart, with the events it has gathered.

        Raises: NotFound.
        """
        connection, reply = await self._ask_again(
            {"op": "attach_watcher", "watcher_id": watcher_id}, ANSWER_SECONDS
        )
        return self._watch_channel(connection, reply)

    @staticmethod
    def _watch_channel(connection: Connection, reply: dict[str, Any]) -> WatchChannel:
        try:
            return WatchChannel(connection, _field(reply, "watcher_id", str))
        except GuestFault:
            connection.close()
            raise

    async def dial(
        self,
        port: int,
        *,
        timeout_seconds: float = 5.0,
        protocol_factory: Callable[[], asyncio.BaseProtocol] | None = None,
    ) -> tuple[asyncio.Transport, Any]:
        """A raw byte stream to `port` inside the sandbox (127.0.0.1, then ::1, then its address).

        Returns the transport and the protocol made by `protocol_factory`; without one, a
        StreamReader. `write_eof` and an end from the service pass through. Raises: Unavailable
        when nothing listens there.
        """
        loop = asyncio.get_running_loop()
        raw = await connect(self.socket_path, timeout_seconds)
        try:
            async with asyncio.timeout(timeout_seconds):
                request = {"op": "dial", "port": port}
                await loop.sock_sendall(raw, frames.pack(frames.REQUEST, encode(request)))
                # Exactly the reply and no more: what follows belongs to the stream.
                header = await _receive_exactly(raw, frames.HEADER_BYTES)
                size = int.from_bytes(header[1:], "big")
                if header[0] not in (frames.REPLY, frames.ERROR) or size > frames.MAX_DATA:
                    raise GuestFault("the guest did not reply")
                payload = await _receive_exactly(raw, size)
            if header[0] == frames.ERROR:
                raise decode_error(payload)
            reader: asyncio.StreamReader | None = None
            if protocol_factory is None:
                reader = asyncio.StreamReader()
                stream = asyncio.StreamReaderProtocol(reader)
                transport, _ = await loop.create_unix_connection(lambda: stream, sock=raw)
                return transport, reader
            return await loop.create_unix_connection(protocol_factory, sock=raw)
        except TimeoutError as error:
            raw.close()
            raise GuestFault(f"the guest did not answer in {timeout_seconds:g} s") from error
        except BaseException:
            raw.close()
            raise


async def _receive_exactly(raw: Any, size: int) -> bytes:
    loop = asyncio.get_running_loop()
    data = b""
    while len(data) < size:
        more = await loop.sock_recv(raw, size - len(data))
        if not more:
            raise GuestFault("the guest closed the connection")
        data += more
    return data


# What a guest says is checked for its shape before anybody relies on it.

ENTRY_TYPES = {"FILE_TYPE_FILE", "FILE_TYPE_DIRECTORY", "FILE_TYPE_SYMLINK"}
ENTRY_TEXTS = ("name", "path", "permissions", "owner", "group", "modifiedTime")
EVENT_TYPES = {f"EVENT_TYPE_{name}" for name in ("CREATE", "WRITE", "REMOVE", "RENAME", "CHMOD")}


def _field(value: dict[str, Any], name: str, kind: Any) -> Any:
    found = value.get(name)
    if not isinstance(found, kind) or (isinstance(found, bool) and kind is not bool):
        raise GuestFault(f"the guest sent a bad {name}")
    return found


def _pid_field(value: dict[str, Any]) -> int:
    pid: int = _field(value, "pid", int)
    if not 0 < pid < 2**31:
        raise GuestFault("the guest sent a bad pid")
    return pid


def _is_text_map(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())


def check_entry(entry: Any) -> dict[str, Any]:
    if not isinstance(entry, dict):
        raise GuestFault("the guest sent a bad entry")
    for name in ENTRY_TEXTS:
        _field(entry, name, str)
    known = {name: entry[name] for name in ENTRY_TEXTS}
    if "type" in entry:
        if _field(entry, "type", str) not in ENTRY_TYPES:
            raise GuestFault("the guest sent a bad entry type")
        known["type"] = entry["type"]
    if "size" in entry:
        size = _field(entry, "size", str)
        if not (size.isascii() and size.isdecimal() and len(size) < 20):
            raise GuestFault("the guest sent a bad size")
        known["size"] = size
    if "mode" in entry:
        known["mode"] = _field(entry, "mode", int) & 0o777
    if "symlinkTarget" in entry:
        known["symlinkTarget"] = _field(entry, "symlinkTarget", str)
    if "metadata" in entry:
        if not _is_text_map(entry["metadata"]):
            raise GuestFault("the guest sent bad metadata")
        known["metadata"] = entry["metadata"]
    return known


def check_event(event: Any) -> dict[str, Any]:
    if not isinstance(event, dict) or _field(event, "type", str) not in EVENT_TYPES:
        raise GuestFault("the guest sent a bad event")
    known = {"name": _field(event, "name", str), "type": event["type"]}
    if "entry" in event:
        known["entry"] = check_entry(event["entry"])
    return known


def check_reply(op: str, reply: dict[str, Any]) -> dict[str, Any]:
    if op in ("stat", "make_dir", "move", "compose"):
        return {"entry": check_entry(reply.get("entry"))}
    if op == "list_dir":
        return {"entries": [check_entry(entry) for entry in _field(reply, "entries", list)]}
    if op == "processes":
        for process in _field(reply, "processes", list):
            if not isinstance(process, dict) or not isinstance(process.get("config"), dict):
                raise GuestFault("the guest sent a bad process")
            _pid_field(process)
            if process.get("tag") is not None:
                _field(process, "tag", str)
    elif op == "resolve_user":
        for name, kind in (("uid", int), ("gid", int), ("home", str), ("name", str)):
            _field(reply, name, kind)
    elif op == "resolve_path":
        _field(reply, "path", str)
    elif op == "disk_usage":
        _field(reply, "total", int), _field(reply, "used", int)
    return reply
