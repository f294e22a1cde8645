"""The guest's end of one connection, for operations that may simply block."""

from __future__ import annotations

import _socket

from nodeagent.guest import frames, tinyjson
from nodeagent.guest.failure import Failure

TYPE_CHECKING = False  # the typing module is large, and every sandbox would pay for it
if TYPE_CHECKING:
    from typing import Any

FD_BYTES = 4
LINGER_SECONDS = 10.0


class Channel:
    def __init__(self, fd: int) -> None:
        self.socket = _socket.socket(fileno=fd)
        self.socket.setblocking(True)

    def receive_request(self, timeout_seconds: float) -> dict[str, Any]:
        """Raises: ValueError, TimeoutError, ConnectionResetError."""
        self.socket.settimeout(timeout_seconds)
        kind, payload = self.receive(frames.MAX_REQUEST)
        self.socket.setblocking(True)
        request = tinyjson.loads(payload) if kind == frames.REQUEST else None
        if not isinstance(request, dict):
            raise ValueError("not a request")
        return request

    def receive(self, limit: int = frames.MAX_DATA + 64) -> tuple[int, bytes]:
        """Raises: ConnectionResetError when the agent leaves, ValueError for an oversized frame."""
        header = self.receive_exactly(frames.HEADER_BYTES)
        size = int.from_bytes(header[1:5], "big")
        if size > limit:
            raise ValueError(f"frame of {size} bytes")
        return header[0], self.receive_exactly(size)

    def receive_exactly(self, size: int) -> bytes:
        data = self.socket.recv(size, _socket.MSG_WAITALL) if size else b""
        while len(data) < size:  # a timeout or a signal cuts MSG_WAITALL short
            more = self.socket.recv(size - len(data))
            if not more:
                raise ConnectionResetError
            data += more
        return data

    def send(self, data: bytes | memoryview) -> None:
        self.socket.sendall(data)

    def reply(self, value: dict[str, Any]) -> None:
        data = tinyjson.dumps(value)
        while len(data) > frames.MAX_DATA:
            self.send(frames.pack(frames.REPLY_PART, data[: frames.MAX_DATA]))
            data = data[frames.MAX_DATA :]
        self.send(frames.pack(frames.REPLY, data))

    def fail(self, failure: Failure) -> None:
        try:
            self.send(pack_failure(frames.ERROR, failure))
        except OSError:
            pass


def linger(socket: _socket.socket) -> None:
    """Take what the agent is still sending until it has read our last word and leaves.

    Closing at once would break its write, and that is noticed before what is left to read.
    """
    try:
        socket.shutdown(_socket.SHUT_WR)
        socket.settimeout(LINGER_SECONDS)
        while socket.recv(65536):
            pass
    except OSError:
        pass


def pack_failure(kind: int, failure: Failure, prefix: bytes = b"") -> bytes:
    message = {"code": failure.code, "message": failure.message[:4096]}
    return frames.pack(kind, prefix + tinyjson.dumps(message))


def send_with_fds(socket: _socket.socket, data: bytes, fds: list[int]) -> None:
    packed = b"".join(fd.to_bytes(FD_BYTES, "little") for fd in fds)
    socket.sendmsg([data], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, packed)] if fds else [])


def receive_with_fds(socket: _socket.socket, limit: int = 4096) -> tuple[bytes, list[int]]:
    space = _socket.CMSG_SPACE(4 * FD_BYTES)
    data, ancillary, _flags, _address = socket.recvmsg(limit, space, _socket.MSG_CMSG_CLOEXEC)
    fds = []
    for level, kind, packed in ancillary:
        if level == _socket.SOL_SOCKET and kind == _socket.SCM_RIGHTS:
            for at in range(0, len(packed) - FD_BYTES + 1, FD_BYTES):
                fds.append(int.from_bytes(packed[at : at + FD_BYTES], "little"))
    return data, fds
