"""What a guest costs: time to start and reap a command, bytes a second, memory of a sandbox.

    python -m bench.guest [--image IMAGE] [--rounds N]

Needs a Docker engine and an image with bash, coreutils and a /root. Prints one line per figure.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import tempfile
import time
import uuid
from pathlib import Path

import docker
import uvloop

from nodeagent.guest.boot import Handover, socket_path
from nodeagent.guest.bundle import build_bundle, container_options
from nodeagent.guest.link import GuestLink, ProcessChannel

MB = 1_000_000


async def start(link: GuestLink, cmd: str, *args: str, user: str = "root") -> ProcessChannel:
    return await link.start_process(
        user=user,
        cmd=cmd,
        args=list(args),
        env={},
        cwd="/",
        default_workdir="",
        pty=None,
        stdin=False,
        tag=None,
        config={},
        deadline_seconds=60,
    )


async def run(link: GuestLink, cmd: str, *args: str, user: str = "root") -> int:
    size = 0
    async for _stream, data in await start(link, cmd, *args, user=user):
        size += len(data)
    return size


def show(name: str, seconds: list[float]) -> None:
    seconds = sorted(seconds)
    p50, p95 = (seconds[int(len(seconds) * part)] * 1000 for part in (0.5, 0.95))
    print(f"{name:<34} p50 {p50:7.2f} ms   p95 {p95:7.2f} ms")


async def repeat(name: str, rounds: int, action: object) -> None:
    taken = []
    for _ in range(rounds):
        started_at = time.perf_counter()
        await action()  # type: ignore[operator]
        taken.append(time.perf_counter() - started_at)
    show(name, taken)


def private_kb(pid: int) -> dict[str, int]:
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return {
        kind: int(re.search(rf"Private_{kind}:\s+(\d+)", rollup)[1])  # type: ignore[index]
        for kind in ("Dirty", "Clean")
    }


def show_memory(pid: int) -> None:
    """Before any command: later, children share a part. Pages of files are shared by all."""
    guest = private_kb(pid)
    print(f"{'PID 1, private memory':<34} {guest['Dirty']:7} kB (+ {guest['Clean']} kB of files)")


def last_child(pid: int) -> int:
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[-1])


async def measure(link: GuestLink, pid: int, rounds: int) -> None:
    await repeat("ping", rounds, link.ping)
    await repeat("/bin/true as root", rounds, lambda: run(link, "/bin/true"))
    await repeat("/bin/true as nobody", rounds, lambda: run(link, "/bin/true", user="nobody"))
    await repeat("bash -l -c true", rounds, lambda: run(link, "/bin/bash", "-l", "-c", "true"))

    async def upload() -> None:
        writer = await link.open_write(user="root", path="/f", default_workdir="", metadata={})
        await writer.write(b"x" * 1000)
        await writer.finish()

    await repeat("write a file of 1 kB", rounds, upload)

    started_at = time.perf_counter()
    size = await run(link, "/bin/head", "-c", "1000000000", "/dev/zero")
    print(f"{'stdout':<34} {size / MB / (time.perf_counter() - started_at):7.0f} MB/s")

    writer = await link.open_write(user="root", path="/dev/null", default_workdir="", metadata={})
    block = bytes(MB)
    started_at = time.perf_counter()
    for _ in range(1000):
        await writer.write(block)
    await writer.finish()
    print(f"{'upload':<34} {1000 / (time.perf_counter() - started_at):7.0f} MB/s")

    started_at = time.perf_counter()
    reader = await link.open_read(
        user="root", path="/dev/zero", default_workdir="", length=1000 * MB
    )
    size = sum([len(piece) async for piece in reader])
    print(f"{'download':<34} {size / MB / (time.perf_counter() - started_at):7.0f} MB/s")

    started_at = time.perf_counter()
    await asyncio.gather(*(run(link, "/bin/sleep", "0.5") for _ in range(200)))
    print(f"{'200 commands of 0.5 s at once':<34} {time.perf_counter() - started_at:7.2f} s")

    sleeper = await start(link, "/bin/sleep", "30")
    print(f"{'a keeper, private memory':<34} {private_kb(last_child(pid))['Dirty']:7} kB")
    await sleeper.signal(9)
    sleeper.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--image", default="sandlot/base:latest")
    parser.add_argument("--rounds", type=int, default=300)
    options = parser.parse_args()
    engine = docker.from_env()
    with tempfile.TemporaryDirectory() as state:
        bundle, run_dir = build_bundle(Path(state)), Path(state) / "run"
        run_dir.mkdir()
        handover = Handover(run_dir)
        container = engine.containers.create(
            options.image,
            name=f"sandlot-bench-{uuid.uuid4().hex[:8]}",
            network_mode="none",
            **container_options(bundle, run_dir),
        )
        try:
            started_at = time.perf_counter()
            container.start()
            started = time.perf_counter()
            asyncio.run(handover.wait(20))
            print(f"{'container start':<34} {(started - started_at) * 1000:7.0f} ms")
            print(
                f"{'guest ready after that':<34} {(time.perf_counter() - started) * 1000:7.1f} ms"
            )
            container.reload()
            link = GuestLink(socket_path(run_dir))
            pid = container.attrs["State"]["Pid"]
            show_memory(pid)
            uvloop.run(measure(link, pid, options.rounds))
        finally:
            container.remove(force=True, v=True)
            engine.close()


if __name__ == "__main__":
    main()
