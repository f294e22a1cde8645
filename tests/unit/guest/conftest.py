"""A guest as a plain process of this machine: no container, so each test takes milliseconds."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from nodeagent.guest.boot import Handover, socket_path
from nodeagent.guest.link import GuestLink

ROOT = Path(__file__).parents[3]
START = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from nodeagent.guest import guest, users
users.DATABASES = sys.argv[2]
guest.main()
"""
PASSWD = """root:x:0:0:root:/root:/bin/bash
user:x:4321:4321::{home}:/bin/bash
numbers:x:no:no::/:/bin/sh
"""
GROUP = "root:x:0:\nuser:x:4321:\nextra:x:4400:other,user\nnot-ours:x:4401:other\n"


class RunningGuest:
    def __init__(self, directory: Path) -> None:
        self.run_dir, self.databases = directory / "run", directory / "etc"
        self.home = directory / "home"
        for made in (self.run_dir, self.databases, self.home):
            made.mkdir()
        self.databases.joinpath("passwd").write_text(PASSWD.format(home=self.home))
        self.databases.joinpath("group").write_text(GROUP)
        os.chown(self.home, 4321, 4321)
        handover = Handover(self.run_dir)
        command = [sys.executable, "-I", "-S", "-B", "-c", START]
        self.process = subprocess.Popen([*command, str(self.run_dir), str(self.databases)])
        try:
            asyncio.run(handover.wait(10))
        except BaseException:
            self.process.kill()
            raise
        self.link = GuestLink(socket_path(self.run_dir))

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(10)


@pytest.fixture(scope="session")
def running_guest():
    if os.getuid() != 0:
        pytest.skip("the guest needs root, as PID 1 of a container has it")
    # Not below pytest's directory: every session, also a parallel one, closes it to others.
    with tempfile.TemporaryDirectory(prefix="sandlot-guest-") as directory:
        Path(directory).chmod(0o755)
        guest = RunningGuest(Path(directory))
        yield guest
        guest.stop()


@pytest.fixture
def guest(running_guest):
    return running_guest.link


@pytest.fixture
def home(running_guest):
    return running_guest.home


@pytest.fixture
async def start(guest):
    """Start a process with defaults for what a test does not care about."""
    channels = []

    async def start(cmd, *args, **options):
        defaults = {
            "user": "root",
            "env": {},
            "cwd": "/",
            "default_workdir": "",
            "pty": None,
            "stdin": False,
            "tag": None,
            "config": {},
            "deadline_seconds": 20.0,
        }
        channel = await guest.start_process(cmd=cmd, args=list(args), **{**defaults, **options})
        channels.append(channel)
        return channel

    yield start
    for channel in channels:
        channel.close()
    await asyncio.sleep(0)  # transports close in the loop's next turn


@pytest.fixture
def run(start):
    """Run a process to its end -> (what each stream gave, exit)."""

    async def run(cmd, *args, **options):
        channel = await start(cmd, *args, **options)
        return await collect(channel), channel.exit

    return run


async def collect(channel):
    streams: dict[str, bytes] = {}
    async for stream, data in channel:
        streams[stream] = streams.get(stream, b"") + data
    return streams


@pytest.fixture(name="collect")
def collect_fixture():
    return collect
