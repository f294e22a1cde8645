from __future__ import annotations

import asyncio
import os
import socket

import pytest

from nodeagent.errors import InvalidArgument, Unavailable


@pytest.fixture
async def echo():
    """A service that returns what it gets and says goodbye after the end."""

    async def serve(reader, writer):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.write(b"bye")
        writer.close()

    servers = []

    async def listen(host):
        server = await asyncio.start_server(serve, host, 0)
        servers.append(server)
        return server.sockets[0].getsockname()[1]

    yield listen
    for server in servers:
        server.close()
        await server.wait_closed()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_bytes_go_both_ways_and_an_end_passes_through(guest, echo, host):
    try:
        port = await echo(host)
    except OSError:
        pytest.skip(f"this machine has no {host}")
    data = os.urandom(2_000_000)

    transport, reader = await guest.dial(port)
    transport.write(data)
    transport.write_eof()

    assert await reader.read() == data + b"bye"
    transport.close()


async def test_a_protocol_of_ones_own_takes_the_stream(guest, echo):
    class Collector(asyncio.Protocol):
        def __init__(self):
            self.data = b""
            self.ended = asyncio.get_running_loop().create_future()

        def data_received(self, data):
            self.data += data

        def connection_lost(self, exc):
            self.ended.set_result(None)

    transport, protocol = await guest.dial(await echo("127.0.0.1"), protocol_factory=Collector)
    transport.write(b"hi")
    transport.write_eof()
    await protocol.ended

    assert protocol.data == b"hibye"


async def test_a_closed_port_is_unavailable(guest):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        with pytest.raises(Unavailable):
            await guest.dial(free.getsockname()[1])


@pytest.mark.parametrize("port", [0, -1, 65536])
async def test_no_such_port(guest, port):
    with pytest.raises(InvalidArgument):
        await guest.dial(port)
