"""Containers of an image that holds next to nothing: what works there works anywhere."""

from __future__ import annotations

import asyncio
import io
import tarfile
import uuid
from concurrent.futures import ThreadPoolExecutor

import docker
import pytest

from nodeagent.guest.boot import Handover, socket_path
from nodeagent.guest.bundle import build_bundle, command, container_options
from nodeagent.guest.link import GuestLink

PASSWD = "root:x:0:0::/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n"
DIRECTORIES = {"tmp": 0o1777, "root": 0o700, "home": 0o755, "etc": 0o755, "proc": 0o755}


@pytest.fixture(scope="session")
def engine():
    client = docker.from_env()
    yield client
    client.close()


@pytest.fixture(scope="session")
def bundle(tmp_path_factory):
    return build_bundle(tmp_path_factory.mktemp("node"))


@pytest.fixture(scope="session")
def image(engine):
    """No shell, no libc, no Python: a passwd file and some directories."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        for name, mode in DIRECTORIES.items():
            made = tarfile.TarInfo(name)
            made.type, made.mode = tarfile.DIRTYPE, mode
            tar.addfile(made)
        home = tarfile.TarInfo("home/user")
        home.type, home.mode, home.uid, home.gid = tarfile.DIRTYPE, 0o755, 1000, 1000
        tar.addfile(home)
        passwd = tarfile.TarInfo("etc/passwd")
        passwd.size = len(PASSWD)
        tar.addfile(passwd, io.BytesIO(PASSWD.encode()))
    name = f"sandlot-test-guest-{uuid.uuid4().hex[:8]}"
    engine.api.import_image_from_data(content.getvalue(), repository=name, tag="1")
    yield f"{name}:1"
    engine.images.remove(f"{name}:1", force=True)


class Sandbox:
    def __init__(self, engine, image, bundle, run_dir, **options):
        self.run_dir = run_dir
        self.container = engine.containers.create(
            image,
            name=f"sandlot-test-{uuid.uuid4().hex[:12]}",
            network_mode="none",
            **{**container_options(bundle, run_dir), **options},
        )
        self.link = GuestLink(socket_path(run_dir))

    def start(self):
        handover = Handover(self.run_dir)
        self.container.start()
        with ThreadPoolExecutor(1) as pool:  # a test may have a loop running here
            pool.submit(lambda: asyncio.run(handover.wait(20))).result()

    def host_pid(self):
        self.container.reload()
        return self.container.attrs["State"]["Pid"]

    async def python(self, script, *, user="root", **options):
        """Run a script with the only program there is -> (output, exit)."""
        channel = await self.start_python(script, user=user, **options)
        output = b"".join([data async for _, data in channel])
        return output.decode(), channel.exit

    async def start_python(self, script, *, user="root", **options):
        defaults = {"env": {}, "cwd": "/", "default_workdir": "", "pty": None, "stdin": True}
        more = {"tag": None, "config": {}, "deadline_seconds": 30.0}
        words = [*command()[:-1], "-c", script]
        return await self.link.start_process(
            user=user, cmd=words[0], args=words[1:], **{**defaults, **more, **options}
        )


@pytest.fixture(scope="module")
def make_sandbox(engine, image, bundle, tmp_path_factory):
    made = []

    def make(**options):
        sandbox = Sandbox(engine, image, bundle, tmp_path_factory.mktemp("run"), **options)
        made.append(sandbox)  # first, so that one which does not start is removed as well
        sandbox.start()
        return sandbox

    yield make
    for sandbox in made:
        sandbox.container.remove(force=True, v=True)


@pytest.fixture(scope="module")
def sandbox(make_sandbox):
    return make_sandbox()
