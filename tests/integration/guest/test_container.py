from __future__ import annotations

import asyncio
import re
import time
from pathlib import Path

import pytest

from nodeagent.errors import GuestFault, NoSpace, Unavailable
from nodeagent.guest.link import GuestLink

pytestmark = pytest.mark.docker
MIB = 1024 * 1024


async def test_it_runs_where_there_is_no_shell_and_no_libc(sandbox):
    output, ended = await sandbox.python("import os; print(os.getpid() > 1, os.getuid())")

    assert output == "True 0\n"
    assert ended.exit_code == 0


async def test_a_pid_is_the_one_of_the_sandbox_and_gone_after_a_kill(sandbox):
    channel = await sandbox.start_python("import time; time.sleep(60)")
    probe = f"import os; os.kill({channel.pid}, 0)"
    _, alive = await sandbox.python(probe)

    await channel.signal(9)
    _, dead = await sandbox.python(probe)
    channel.close()

    assert (alive.exit_code, dead.exit_code) == (0, 1)


async def test_root_of_the_sandbox_cannot_touch_what_the_agent_made(sandbox):
    script = """
import os
for attempt in (
    lambda: os.unlink("/.sandlot/run/guest.sock"),
    lambda: os.rename("/.sandlot/run/guest.sock", "/.sandlot/run/x"),
    lambda: os.symlink("/etc/passwd", "/.sandlot/run/x"),
    lambda: os.open("/.sandlot/run/x", os.O_CREAT | os.O_WRONLY),
    lambda: os.chmod("/.sandlot/run/guest.sock", 0o777),
    lambda: os.open("/.sandlot/guest.py", os.O_WRONLY),
):
    try:
        attempt()
        print("done")
    except OSError as error:
        print(error.strerror)
"""
    output, _ = await sandbox.python(script)

    assert set(output.splitlines()) == {"Read-only file system"}


async def test_a_user_of_the_sandbox_cannot_speak_to_the_guest(sandbox):
    script = """
import _socket
try:
    _socket.socket(_socket.AF_UNIX).connect("/.sandlot/run/guest.sock")
except PermissionError:
    print("refused")
"""
    output, _ = await sandbox.python(script, user="user")

    assert output == "refused\n"


async def test_one_who_connects_and_says_nothing_holds_nobody_up(sandbox):
    script = """
import _socket, time
held = []
for _ in range(20):
    held.append(_socket.socket(_socket.AF_UNIX))
    held[-1].connect("/.sandlot/run/guest.sock")
print("held", flush=True)
time.sleep(30)
"""
    channel = await sandbox.start_python(script)
    assert await anext(channel) == ("stdout", b"held\n")

    await sandbox.link.ping()
    await channel.signal(9)
    channel.close()


async def test_orphans_are_reaped(sandbox):
    script = """
import os, time
if os.fork() == 0:
    if os.fork() == 0:
        time.sleep(0.1)
    os._exit(0)
os.wait()
time.sleep(0.3)
states = []
for name in os.listdir("/proc"):
    if name.isdecimal():
        try:
            states.append(open(f"/proc/{name}/stat").read().rsplit(")")[1].split()[0])
        except OSError:
            pass
print("Z" in states)
"""
    output, _ = await sandbox.python(script)

    assert output == "False\n"


async def test_a_watcher_works_there(sandbox):
    paths = {"user": "user", "default_workdir": ""}
    watcher = await sandbox.link.watch(
        path="~", recursive=True, include_entry=True, allow_network_mounts=False, keep=True, **paths
    )
    writer = await sandbox.link.open_write(path="f", metadata={"k": "v"}, **paths)
    await writer.write(b"x")
    entry = await writer.finish()
    events = await watcher.drain()
    watcher.close()

    assert entry["path"] == "/home/user/f"
    assert [event["type"] for event in events][:3] == [
        "EVENT_TYPE_CREATE",
        "EVENT_TYPE_CHMOD",
        "EVENT_TYPE_WRITE",
    ]


async def test_a_loopback_service_is_reached_without_any_network(sandbox):
    script = """
import _socket
door = _socket.socket()
door.bind(("127.0.0.1", 8080))
door.listen()
print("ready", flush=True)
fd, _ = door._accept()
client = _socket.socket(fileno=fd)
client.send(client.recv(100).upper())
"""
    channel = await sandbox.start_python(script)
    await anext(channel)

    transport, reader = await sandbox.link.dial(8080)
    transport.write(b"hello")

    assert await reader.read() == b"HELLO"
    transport.close()
    channel.close()
    with pytest.raises(Unavailable):
        await sandbox.link.dial(8081)


async def test_a_restarted_agent_finds_everything(sandbox):
    channel = await sandbox.start_python("print('one', flush=True); input(); print('two')", tag="t")
    await anext(channel)
    channel.close()

    link = GuestLink(sandbox.link.socket_path)
    listed = (await link.call("processes"))["processes"]
    again = await link.attach(channel.pid)
    await again.write(b"\n")

    assert [process["pid"] for process in listed if process["tag"] == "t"] == [channel.pid]
    assert [data async for _, data in again] == [b"two\n"]


async def test_a_guest_costs_little_memory(make_sandbox):
    sandbox = make_sandbox()
    await sandbox.python("pass")

    rollup = Path(f"/proc/{sandbox.host_pid()}/smaps_rollup").read_text()
    private_kb = int(re.search(r"Private_Dirty:\s+(\d+)", rollup)[1])
    assert private_kb < 5 * 1024


async def test_the_guest_survives_user_code_that_runs_out_of_memory(make_sandbox):
    sandbox = make_sandbox(mem_limit=64 * MIB, memswap_limit=64 * MIB)

    _, ended = await sandbox.python("x = bytearray(500_000_000)")

    assert ended.status == "signal: killed"
    output, _ = await sandbox.python("print('alive')")
    assert output == "alive\n"


async def test_no_room_for_processes_is_unavailable_and_passes(make_sandbox):
    sandbox = make_sandbox(pids_limit=16)
    channels = []
    with pytest.raises(Unavailable):
        for _ in range(20):
            channels.append(await sandbox.start_python("import time; time.sleep(60)"))
    for channel in channels:
        await _kill(channel)

    output, _ = await sandbox.python("print('again')")
    assert output == "again\n"


async def _kill(channel):
    await channel.signal(9)
    async for _ in channel:
        pass


async def test_a_full_disk_is_no_space(make_sandbox):
    sandbox = make_sandbox(tmpfs={"/small": "size=1m"})
    writer = await sandbox.link.open_write(
        user="root", path="/small/f", default_workdir="", metadata={}
    )
    with pytest.raises(NoSpace):
        for _ in range(40):
            await writer.write(bytes(65536))
        await writer.finish()


async def test_no_inodes_left_is_told_apart(make_sandbox):
    sandbox = make_sandbox(tmpfs={"/small": "size=1m,nr_inodes=2"})
    options = {"user": "root", "default_workdir": "", "metadata": {}}
    await (await sandbox.link.open_write(path="/small/a", **options)).finish()

    with pytest.raises(NoSpace) as caught:
        await sandbox.link.open_write(path="/small/b", **options)
    assert caught.value.error_code == "no_inodes"


def test_stopping_is_quick_and_a_restart_is_handed_over_again(make_sandbox):
    sandbox = make_sandbox()
    asyncio.run(sandbox.python("open('/tmp/kept', 'w').write('x')"))
    started_at = time.monotonic()
    sandbox.container.stop(timeout=10)
    assert time.monotonic() - started_at < 5

    with pytest.raises(GuestFault):
        asyncio.run(sandbox.link.ping())
    sandbox.start()
    output, _ = asyncio.run(sandbox.python("print(open('/tmp/kept').read())"))
    assert output == "x\n"
