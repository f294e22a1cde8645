"""A guest may be anything: the agent neither hangs, grows nor believes it."""

from __future__ import annotations

import array
import asyncio
import json
import os
import resource
import socket
import time

import pytest

from nodeagent.errors import AgentError, GuestFault
from nodeagent.guest import frames
from nodeagent.guest.boot import Handover, connect, listen, socket_path
from nodeagent.guest.connection import REPLY_BYTES
from nodeagent.guest.link import GuestLink

START = {
    "user": "root",
    "cmd": "true",
    "args": [],
    "env": {},
    "cwd": None,
    "default_workdir": "",
    "pty": None,
    "stdin": True,
    "tag": None,
    "config": {},
    "deadline_seconds": None,
}


def reply(value) -> bytes:
    return frames.pack(frames.REPLY, json.dumps(value).encode())


class HostileGuest:
    """Answers every connection with what `script(reader, writer)` does."""

    def __init__(self, run_dir, script):
        self.link = GuestLink(socket_path(run_dir))
        self._listener = listen(run_dir, "guest.sock")
        self._script = script

    async def __aenter__(self):
        self._server = await asyncio.start_unix_server(self._serve, sock=self._listener)
        return self.link

    async def _serve(self, reader, writer):
        try:
            header = await reader.readexactly(5)
            await reader.readexactly(int.from_bytes(header[1:], "big"))
            await self._script(reader, writer)
        except OSError:
            pass  # the agent has left
        finally:
            writer.close()

    async def __aexit__(self, *_):
        self._server.close()
        self._server.close_clients() if hasattr(self._server, "close_clients") else None


def says(data: bytes):
    async def script(_reader, writer):
        writer.write(data)
        await writer.drain()

    return script


def repeats(data: bytes, first: bytes = b""):
    async def script(_reader, writer):
        writer.write(first)
        while True:
            writer.write(data)
            await writer.drain()

    return script


async def stays_silent(reader, _writer):
    await reader.read()


BREACHES = {
    "closes": says(b""),
    "closes in a header": says(b"\x10\0"),
    "closes in a message": says(reply({})[:-1]),
    "unknown kind": says(frames.pack(77)),
    "claims 4 GiB": says(bytes([frames.REPLY]) + b"\xff\xff\xff\xff"),
    "claims 4 GiB of content": says(bytes([frames.STDOUT]) + b"\xff\xff\xff\xff"),
    "no JSON": says(frames.pack(frames.REPLY, b"nonsense")),
    "no UTF-8": says(frames.pack(frames.REPLY, b'{"a":"\xff"}')),
    "half a character": says(frames.pack(frames.REPLY, b'{"a":"\\ud800"}')),
    "a list": says(frames.pack(frames.REPLY, b"[]")),
    "deep nesting": says(frames.pack(frames.REPLY, b"[" * 500_000)),
    "a huge number": says(frames.pack(frames.REPLY, b'{"a":' + b"9" * 500_000 + b"}")),
    "content instead of a reply": says(frames.pack(frames.DATA, b"x")),
    "an unknown error": says(frames.pack(frames.ERROR, b'{"code":"root","message":"x"}')),
    "an error without text": says(frames.pack(frames.ERROR, b'{"code":"internal"}')),
    "endless parts": repeats(frames.pack(frames.REPLY_PART, bytes(frames.MAX_MESSAGE))),
    "endless empty parts": repeats(frames.pack(frames.REPLY_PART) * 1000),
    "endless content": repeats(frames.pack(frames.STDOUT, bytes(60_000))),
    "silence": stays_silent,
}


@pytest.mark.parametrize("breach", BREACHES)
async def test_a_call_ends_as_a_fault(tmp_path, breach):
    async with HostileGuest(tmp_path, BREACHES[breach]) as link:
        with pytest.raises(GuestFault):
            await link.call("stat", path="/", timeout_seconds=1.0)


async def test_a_reply_without_end_costs_bounded_memory(tmp_path):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    async with HostileGuest(tmp_path, BREACHES["endless parts"]) as link:
        with pytest.raises(GuestFault):
            await link.call("stat", path="/", timeout_seconds=10)

    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < 2 * REPLY_BYTES


LIES = {
    "no entry": ("stat", {}),
    "an entry of numbers": ("stat", {"entry": {"name": 1}}),
    "an entry of a strange type": (
        "stat",
        {
            "entry": dict.fromkeys(
                ("name", "path", "permissions", "owner", "group", "modifiedTime"), "x"
            )
            | {"type": []}
        },
    ),
    "entries that are none": ("list_dir", {"entries": [1]}),
    "a negative pid": ("processes", {"processes": [{"pid": -1, "config": {}}]}),
    "a true pid": ("processes", {"processes": [{"pid": True, "config": {}}]}),
    "no config": ("processes", {"processes": [{"pid": 1}]}),
    "a home of no text": ("resolve_user", {"uid": 0, "gid": 0, "home": 7, "name": "x"}),
    "a disk of text": ("disk_usage", {"total": "much", "used": 0}),
}


@pytest.mark.parametrize("lie", LIES)
async def test_a_reply_of_the_wrong_shape_is_a_fault(tmp_path, lie):
    op, value = LIES[lie]
    async with HostileGuest(tmp_path, says(reply(value))) as link:
        with pytest.raises(GuestFault):
            await link.call(op)


@pytest.mark.parametrize("value", [{}, {"pid": 0}, {"pid": "1"}, {"pid": 2**40}])
async def test_a_process_needs_a_pid(tmp_path, value):
    async with HostileGuest(tmp_path, says(reply(value))) as link:
        with pytest.raises(GuestFault):
            await link.start_process(**START)


@pytest.mark.parametrize(
    "rest",
    [
        b"",
        frames.pack(frames.EXIT, b"x"),
        frames.pack(frames.DATA, b"x"),
        frames.pack(frames.REPLY, b"{}"),
        frames.pack(99),
    ],
)
async def test_output_that_breaks_off_is_a_fault_and_no_exit(tmp_path, rest):
    hello = reply({"pid": 7}) + frames.pack(frames.STDOUT, b"hi")
    async with HostileGuest(tmp_path, says(hello + rest)) as link:
        channel = None
        with pytest.raises(GuestFault):
            channel = await link.start_process(**START)
            async for _stream, _data in channel:
                pass

    assert channel is None or channel.exit is None


async def test_a_flood_nobody_reads_is_held_back(tmp_path):
    sent = 0

    async def floods(_reader, writer):
        nonlocal sent
        writer.write(reply({"pid": 7}))
        while True:
            writer.write(frames.pack(frames.STDOUT, bytes(60_000)))
            await writer.drain()
            sent += 60_000

    async with HostileGuest(tmp_path, floods) as link:
        channel = await link.start_process(**START)
        last = -1
        while last != sent:  # until it stands still
            last = sent
            await asyncio.sleep(0.05)
        channel.close()

    assert sent < 4 * 1024 * 1024


@pytest.mark.parametrize("data", [bytes(60_000), b""])
async def test_a_flood_instead_of_an_answer_is_a_fault(tmp_path, data):
    flood = frames.pack(frames.STDOUT, data) if data else frames.pack(frames.EVENTS, b"[]")
    async with HostileGuest(tmp_path, repeats(flood, reply({"pid": 7}))) as link:
        channel = await link.start_process(**START)
        with pytest.raises(GuestFault):
            await channel.signal(9)


async def test_answers_nobody_asked_for_are_ignored(tmp_path):
    stray = frames.pack(frames.ANSWER) + frames.pack_numbered(frames.ANSWER, 99, b"nonsense")
    rest = frames.pack(frames.EXIT, bytes(4))
    async with HostileGuest(tmp_path, says(reply({"pid": 7}) + stray + rest)) as link:
        channel = await link.start_process(**START)
        assert [item async for item in channel] == []

    assert channel.exit is not None
    assert channel.exit.exit_code == 0


async def test_a_watcher_that_lies_is_a_fault(tmp_path):
    hello = reply({"watcher_id": "w1"})
    for event in ({}, {"name": 1, "type": "EVENT_TYPE_CREATE"}, {"name": "x", "type": ["y"]}):
        events = frames.pack(frames.EVENTS, json.dumps([event]).encode())
        async with HostileGuest(tmp_path, says(hello + events)) as link:
            channel = await link.attach_watcher("w1")
            with pytest.raises(GuestFault):
                await anext(channel)


async def test_a_guest_that_stops_taking_a_file_is_told_apart(tmp_path, monkeypatch):
    monkeypatch.setattr("nodeagent.guest.link.FILE_STALL_SECONDS", 0.2)

    async def stops(_reader, writer):
        writer.write(reply({"path": "/x"}))
        await asyncio.sleep(5)

    async with HostileGuest(tmp_path, stops) as link:
        writer = await link.open_write(user="root", path="/x", default_workdir="", metadata={})
        with pytest.raises(GuestFault):
            for _ in range(100):
                await writer.write(bytes(256 * 1024))
        writer._connection.close()


@pytest.mark.parametrize(
    "answer", [b"", b"\x10\0\0\0", frames.pack(77), frames.pack(frames.REPLY)[:1] + b"\xff" * 4]
)
async def test_dialling_a_liar_is_a_fault(tmp_path, answer):
    async with HostileGuest(tmp_path, says(answer)) as link:
        with pytest.raises(GuestFault):
            await link.dial(80, timeout_seconds=1)


async def test_descriptors_from_a_guest_are_not_accepted(tmp_path):
    async def gives_a_descriptor(_reader, writer):
        raw = writer.get_extra_info("socket")
        with socket.socket(fileno=os.dup(raw.fileno())) as own, open("/dev/null") as gift:
            rights = array.array("i", [gift.fileno()])
            own.sendmsg([reply({})], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])

    async with HostileGuest(tmp_path, gives_a_descriptor) as link:
        await link.call("ping")
        before = set(os.listdir("/proc/self/fd"))
        await link.call("ping")
        await asyncio.sleep(0)

    targets = [
        os.path.realpath(f"/proc/self/fd/{fd}") for fd in set(os.listdir("/proc/self/fd")) - before
    ]
    assert "/dev/null" not in targets


@pytest.mark.parametrize("kind", ["link", "file", "nothing", "nobody listens"])
async def test_only_a_live_socket_is_connected_to(tmp_path, kind):
    path = tmp_path / "guest.sock"
    if kind == "link":
        listen(tmp_path, "elsewhere.sock").close()
        path.symlink_to("elsewhere.sock")
    elif kind == "file":
        path.write_text("")
    elif kind == "nobody listens":
        listen(tmp_path, "guest.sock").close()

    with pytest.raises(GuestFault):
        await GuestLink(path).ping()


async def test_a_long_path_is_no_obstacle(tmp_path):
    run_dir = tmp_path / ("d" * 120)
    run_dir.mkdir()
    listener = listen(run_dir, "guest.sock")

    connect(run_dir / "guest.sock").close()

    assert (run_dir / "guest.sock").stat().st_mode & 0o777 == 0o600
    listener.close()


async def test_a_boot_that_never_comes_times_out_and_leaves_no_boot_socket(tmp_path):
    handover = Handover(tmp_path)
    started_at = time.monotonic()

    with pytest.raises(GuestFault):
        await handover.wait(0.1)

    assert time.monotonic() - started_at < 5
    assert not (tmp_path / "boot.sock").exists()


async def test_every_fault_is_an_agent_error():
    assert issubclass(GuestFault, AgentError)
