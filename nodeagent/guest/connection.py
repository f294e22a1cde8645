"""One connection to a guest as the agent sees it: bounded, with back-pressure, and suspicious."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from pathlib import Path
from typing import Any, cast

from nodeagent import errors
from nodeagent.errors import AgentError, GuestFault
from nodeagent.guest import boot, frames
from nodeagent.guest.parser import FrameParser

QUEUE_BYTES = 256 * 1024  # received and not yet taken: above it the guest has to wait
QUEUE_ITEMS = 4096
URGENT_BYTES = 4 * 1024 * 1024  # how much may be read past unread output, to find an answer
REPLY_BYTES = 64 * 1024 * 1024
ITEM_COST = 64  # what an item costs at least, so that empty ones count
TEXT_LIMIT = 8192
CONNECT_RETRY_SECONDS = 0.005

_ERRORS: dict[str, type[AgentError]] = {
    error.connect_code: error
    for error in (
        AgentError,
        errors.InvalidArgument,
        errors.PermissionDenied,
        errors.NotFound,
        errors.AlreadyExists,
        errors.Conflict,
        errors.Unimplemented,
        errors.Unavailable,
        errors.Unknown,
    )
}
_ERRORS |= {
    "no_space": errors.NoSpace,
    "no_inodes": errors.NoSpace,
    "unknown_user": errors.Unauthenticated,
}


class Again(AgentError):
    """What we asked for was ending at that moment; asking once more gives the answer."""


def decode(payload: bytes) -> Any:
    """JSON a guest sent. Raises: GuestFault, also for text that is not Unicode."""
    try:
        text = payload.decode()
        value = json.loads(text)
        if "\\ud" in text or "\\uD" in text:
            json.dumps(value, ensure_ascii=False).encode()  # refuses lone surrogates
    except (ValueError, RecursionError) as error:
        raise GuestFault("the guest sent bad JSON") from error
    return value


def decode_object(payload: bytes) -> dict[str, Any]:
    value = decode(payload)
    if not isinstance(value, dict):
        raise GuestFault("the guest sent JSON that is no object")
    return value


def decode_error(payload: bytes) -> AgentError:
    """The error a guest reports, under our own names; `error_code` tells no_inodes and
    unknown_user apart.
    """
    value = decode_object(payload)
    code, message = value.get("code"), value.get("message")
    if not isinstance(code, str) or not isinstance(message, str):
        raise GuestFault("the guest sent a bad error")
    message = message[:TEXT_LIMIT]
    if code == "again":
        return Again(message)
    kind = _ERRORS.get(code)
    if kind is None:
        raise GuestFault("the guest sent an unknown error code")
    own_code = code if code in ("no_inodes", "unknown_user") else None
    return kind(message, error_code=own_code)


class Connection(asyncio.Protocol):
    """Frames in and out.

    `take` gives them in order; answers to numbered requests go to who asked.
    """

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self._limit = QUEUE_BYTES
        self._urgent = 0  # requests whose answers stand behind unread output
        self.fault: GuestFault | None = None
        self.is_closed = False
        self.has_exit = False  # the process has ended, even if its output is not read yet
        self._parser = FrameParser()
        self._items: deque[tuple[int, bytes]] = deque()
        self._size = 0
        self._waiter: asyncio.Future[None] | None = None
        self._is_paused = False
        self._answers: dict[int, asyncio.Future[bytes]] = {}
        self._number = 0
        self._may_write = asyncio.Event()
        self._may_write.set()

    # asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not an isinstance check: uvloop's transports are no subclass of asyncio's.
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        try:
            found = self._parser.feed(data)
        except GuestFault as fault:
            self._break(fault)
            return
        for kind, payload in found:
            if kind == frames.ANSWER:
                self._take_answer(payload)
            else:
                self._items.append((kind, payload))
                self._size += len(payload) + ITEM_COST
                if kind == frames.EXIT:
                    self.has_exit = True
                    self._drop_answers(errors.NotFound("the process has ended"))
        if self._size > self._limit:
            if self._urgent:
                self._break(GuestFault("the guest sent too much"))
            else:
                self._pause()
        self._wake()

    def eof_received(self) -> bool:
        return False  # close

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_closed = True
        self._drop_answers(self.fault or GuestFault("the guest closed the connection"))
        self._may_write.set()
        self._wake()

    def pause_writing(self) -> None:
        self._may_write.clear()

    def resume_writing(self) -> None:
        self._may_write.set()

    # Ours

    def _break(self, fault: GuestFault) -> None:
        self.fault = fault
        self._items.clear()
        self.close()

    def _pause(self) -> None:
        if not self._is_paused and self.transport is not None and not self.is_closed:
            self._is_paused = True
            self.transport.pause_reading()

    def _resume(self) -> None:
        if self._is_paused:
            self._is_paused = False
            if self.transport is not None and not self.transport.is_closing():
                self.transport.resume_reading()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _take_answer(self, payload: bytes) -> None:
        waiting = self._answers.pop(int.from_bytes(payload[:4], "big"), None)
        if waiting is not None and not waiting.done():
            waiting.set_result(payload[4:])

    def _drop_answers(self, error: AgentError) -> None:
        for waiting in self._answers.values():
            if not waiting.done():
                waiting.set_exception(error)
        self._answers.clear()

    def take_now(self) -> tuple[int, bytes] | None:
        if not self._items:
            return None
        item = self._items.popleft()
        self._size -= len(item[1]) + ITEM_COST
        if self._is_paused and self._size <= QUEUE_BYTES // 2:
            self._resume()
        return item

    async def take(self) -> tuple[int, bytes] | None:
        """The next frame, or None when the connection has ended.

        One taker at a time. Raises: GuestFault.
        """
        while True:
            item = self.take_now()
            if item is not None:
                return item
            if self.fault is not None:
                raise self.fault
            if self.is_closed:
                return None
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None

    async def take_reply(self, timeout_seconds: float) -> dict[str, Any]:
        """The reply to the request, put together.

        Raises: AgentError as the guest says; GuestFault.
        """
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(timeout_seconds):
                while True:
                    item = await self.take()
                    if item is None:
                        raise GuestFault("the guest closed the connection", error_code="closed")
                    kind, payload = item
                    if kind == frames.ERROR:
                        raise decode_error(payload)
                    if kind not in (frames.REPLY, frames.REPLY_PART):
                        raise GuestFault("the guest did not reply")
                    parts.append(payload)
                    size += len(payload) + ITEM_COST
                    if size > REPLY_BYTES:
                        raise GuestFault("the guest sent too much")
                    if kind == frames.REPLY:
                        return decode_object(b"".join(parts))
        except TimeoutError as error:
            raise GuestFault(f"the guest did not answer in {timeout_seconds:g} s") from error

    def send(self, data: bytes) -> None:
        """Raises: GuestFault when the connection has ended."""
        if self.transport is None or self.is_closed or self.transport.is_closing():
            raise self.fault or GuestFault("the guest closed the connection")
        self.transport.write(data)

    async def drain(self, timeout_seconds: float) -> None:
        """Wait until the guest has taken most of what was sent. Raises: GuestFault."""
        if self._may_write.is_set():
            return
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._may_write.wait()
        except TimeoutError as error:
            text = f"the guest has not read for {timeout_seconds:g} s"
            raise GuestFault(text) from error

    async def request(
        self,
        kind: int,
        data: bytes = b"",
        *,
        timeout_seconds: float | None,
        read_past: int = 0,
    ) -> None:
        """Send a numbered request and wait for its answer. Raises: AgentError as the guest says;
        GuestFault.

        `read_past`: bytes of unread output to take into the queue meanwhile, since the answer
        comes after them.
        """
        self._number = (self._number + 1) % 2**32
        number = self._number
        waiting: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self.send(frames.pack_numbered(kind, number, data))
        self._answers[number] = waiting
        if read_past:
            self._urgent += 1
            self._limit = max(self._limit, self._size + read_past)
            self._resume()
        try:
            async with asyncio.timeout(timeout_seconds):
                payload = await waiting
        except TimeoutError as error:
            raise GuestFault(f"the guest did not answer in {timeout_seconds:g} s") from error
        finally:
            self._answers.pop(number, None)
            if read_past:
                self._urgent -= 1
                if not self._urgent:
                    self._limit = QUEUE_BYTES
                    if self._size > QUEUE_BYTES:
                        self._pause()
        if payload:
            raise decode_error(payload)

    def close(self) -> None:
        if self.transport is not None and not self.is_closed:
            self.transport.abort()


async def connect(path: Path, timeout_seconds: float) -> Any:
    """A connected socket. Raises: GuestFault."""
    try:
        async with asyncio.timeout(timeout_seconds):
            while True:
                try:
                    return boot.connect(path)
                except BlockingIOError:  # its queue is full
                    await asyncio.sleep(CONNECT_RETRY_SECONDS)
    except TimeoutError as error:
        raise GuestFault("the guest does not accept connections") from error
    except OSError as error:
        raise GuestFault("the guest does not run") from error


async def open_connection(
    path: Path, request: dict[str, Any], timeout_seconds: float
) -> Connection:
    """Connect and send the request. Raises: GuestFault."""
    raw = await connect(path, timeout_seconds)
    _transport, connection = await asyncio.get_running_loop().create_unix_connection(
        Connection, sock=raw
    )
    connection.send(frames.pack(frames.REQUEST, encode(request)))
    return connection


def encode(request: dict[str, Any]) -> bytes:
    return json.dumps(request, separators=(",", ":")).encode()
