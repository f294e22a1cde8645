"""A byte stream from the agent to a port inside the sandbox, whether or not the sandbox has a
network.
"""

from __future__ import annotations

import _socket
import select
import time

from nodeagent.guest.channel import Channel
from nodeagent.guest.failure import Failure

BUFFER = 64 * 1024
CONNECT_SECONDS = 4.0
IN, OUT = select.POLLIN, select.POLLOUT


def dial(channel: Channel, port: int) -> None:
    """Connect to the port on 127.0.0.1, ::1, then the sandbox's own address, and relay until
    both sides end.

    Raises: Failure `unavailable` when nothing listens there.
    """
    if not 0 < port < 65536:
        raise Failure("invalid_argument", f"no such port: {port}")
    service = connect(port)
    if service is None:
        raise Failure("unavailable", f"nothing listens on port {port}")
    service.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
    channel.reply({})
    relay(channel.socket, service)


def connect(port: int) -> _socket.socket | None:
    until = time.monotonic() + CONNECT_SECONDS
    for family, host in ((_socket.AF_INET, "127.0.0.1"), (_socket.AF_INET6, "::1"), (0, "")):
        address = host or own_address()
        try:
            service = _socket.socket(family or _socket.AF_INET, _socket.SOCK_STREAM)
        except OSError:  # no IPv6 here
            continue
        try:
            service.settimeout(max(0.1, until - time.monotonic()))
            service.connect((address, port))
            return service
        except OSError:
            service.close()
    return None


def own_address() -> str:
    """The address packets to the world would carry; nothing is sent to find out."""
    probe = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM)
    try:
        probe.connect(("192.0.2.1", 9))
        return str(probe.getsockname()[0])
    except OSError:
        return "127.0.0.1"
    finally:
        probe.close()


class Way:
    """One direction: bytes taken from `source` and not yet given to `sink`."""

    def __init__(self, source: _socket.socket, sink: _socket.socket) -> None:
        self.source, self.sink = source, sink
        self.store = memoryview(bytearray(BUFFER))
        self.pending = self.store[:0]
        self.is_ended = False  # the source has no more
        self.is_done = False  # and the sink knows

    def move(self) -> None:
        """Carry what can be carried now. Raises: OSError when one side broke."""
        while not self.is_done:
            if self.pending:
                try:
                    sent = self.sink.send(self.pending)
                except BlockingIOError:
                    return
                self.pending = self.pending[sent:]
            elif self.is_ended:
                self.is_done = True
                try:
                    self.sink.shutdown(_socket.SHUT_WR)
                except OSError:
                    pass  # it has closed already
            else:
                try:
                    size = self.source.recv_into(self.store)
                except BlockingIOError:
                    return
                self.pending = self.store[:size]
                self.is_ended = size == 0


def relay(agent: _socket.socket, service: _socket.socket) -> None:
    agent.setblocking(False)
    service.setblocking(False)
    ways = (Way(agent, service), Way(service, agent))
    try:
        while not all(way.is_done for way in ways):
            poller = select.poll()
            for socket in (agent, service):
                events = 0
                for way in ways:
                    if way.is_done:
                        continue
                    if way.source is socket and not way.pending and not way.is_ended:
                        events |= IN
                    if way.sink is socket and way.pending:
                        events |= OUT
                if events:
                    poller.register(socket.fileno(), events)
            poller.poll()
            for way in ways:
                way.move()
    except OSError:
        # A reset on one side is a reset on the other: a clean end would look like a complete body.
        service.setsockopt(_socket.SOL_SOCKET, _socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    service.close()
