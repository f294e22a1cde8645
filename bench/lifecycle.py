"""The life of a sandbox in figures: through the official Python SDK, beside `docker run`.

    .venv/bin/python bench/lifecycle.py [--rounds 30] [--density 1,50,100] [--json FILE]

Starts a stack of its own and takes it down again. Creates are apart by a little rest, as people's
are, so that they meet a warm pool. Memory is told by owner: `guest` is what the containers' control
groups hold without page cache, `shim` the engine's process beside each container, and `dockerd` and
`agent` what those two grew by.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
POOL = 20
# name: (target of p50, of p95), in milliseconds on 2 quiet cores
TARGETS: dict[str, tuple[float | None, float | None]] = {
    "docker run": (None, None),
    "create, warm": (20, 40),
    "create, cold": (350, None),
    "create + first command": (30, None),
    "20 creates at once": (None, 400),
    "pause": (30, None),
    "resume": (30, None),
    "kill": (30, None),
    "snapshot of 100 MB": (500, None),
    "list of 1,000, a page": (50, None),
}
FILL = """
from datetime import timedelta
from django.utils import timezone
from accounts.models import Team
from sandboxes.lifecycle import State
from sandboxes.models import Sandbox
from templates_app.models import Template
team = Team.objects.get(memberships__user__email="list@example.com")
template = Template.objects.filter(team=None).latest("pk")
build = template.builds.latest("pk")
now = timezone.now()
Sandbox.objects.bulk_create(
    Sandbox(
        team=team, template=template, build=build, state=State.PAUSED, created_at=now,
        started_at=now - timedelta(seconds=n), paused_at=now, end_at=now,
        cpu_count=build.cpu_count, memory_mb=build.memory_mb, disk_size_mb=build.disk_size_mb,
        envd_version=build.envd_version, timeout_seconds=300, metadata={"n": str(n)},
    )
    for n in range(1000)
)
"""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--density", default="1,50,100", help="numbers of idle sandboxes")
    parser.add_argument("--json", help="write the figures there too")
    options = parser.parse_args()
    if "BENCH_STACK" in os.environ:
        measure_all(options, json.loads(os.environ["BENCH_STACK"]))
        return
    sys.path.insert(0, str(REPOSITORY))
    from ops import sdks
    from tests.stack import Stack

    with Stack.start(
        SANDLOT_POOL_SIZE=str(POOL),
        SANDLOT_CREATE_RATE_LIMIT="false",
        SANDLOT_MEMORY_OVERCOMMIT="40",
        SANDLOT_CPU_OVERCOMMIT="200",
    ) as stack:
        facts = {
            "list_env": stack.env("list@example.com"),
            "agent_pid": stack.pid("agent"),
            "node_id": stack.deployment.node_id,
            "metrics": stack.agent_url,
        }
        stack.manage("shell", "--command", FILL)
        python = sdks.ensure_python(sdks.PINNED_PYTHON) / "bin/python"
        env = {**stack.process_env("bench@example.com"), "BENCH_STACK": json.dumps(facts)}
        done = subprocess.run([python, *sys.argv], env=env, check=False)
    raise SystemExit(done.returncode)


def measure_all(options: argparse.Namespace, facts: dict[str, Any]) -> None:
    """In the SDK's own environment."""
    rounds = options.rounds
    figures = {
        "docker run": [docker_run() for _ in range(max(5, rounds // 3))],
        **life(rounds),
        "create, cold": cold_creates(max(5, rounds // 5)),
        "20 creates at once": burst(20),
        "snapshot of 100 MB": snapshots(max(3, rounds // 10)),
        "list of 1,000, a page": list_pages(rounds, facts["list_env"]),
    }
    density = [idle(int(count), facts) for count in options.density.split(",") if count.strip()]
    print_figures(figures)
    print_density(density)
    if options.json:
        rows = {name: [round(item * 1000, 2) for item in taken] for name, taken in figures.items()}
        Path(options.json).write_text(json.dumps({"milliseconds": rows, "density": density}))


def taken_by(action: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    result = action()
    return time.perf_counter() - began, result


def docker_run() -> float:
    command = ["docker", "run", "--rm", "--network", "none", "sandlot/base:latest", "true"]
    return taken_by(lambda: subprocess.run(command, check=True, capture_output=True))[0]


def rest() -> None:
    time.sleep(0.6)  # the pool refills when claims have been over for a moment


def life(rounds: int) -> dict[str, list[float]]:
    from e2b import Sandbox

    names = ("create, warm", "pause", "resume", "kill", "create + first command")
    figures: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds + 2):
        took, sandbox = taken_by(lambda: Sandbox.create(timeout=60))
        row = {"create, warm": took}
        row["pause"], _ = taken_by(sandbox.pause)
        row["resume"], sandbox = taken_by(lambda box=sandbox: box.connect(timeout=60))
        row["kill"], _ = taken_by(sandbox.kill)
        rest()
        began = time.perf_counter()
        with Sandbox.create(timeout=60) as other:
            other.commands.run("true")
            row["create + first command"] = time.perf_counter() - began
        rest()
        if number >= 2:  # the first ones open connections
            for name, seconds in row.items():
                figures[name].append(seconds)
    return figures


def cold_creates(rounds: int) -> list[float]:
    """From a snapshot that no pool keeps warm."""
    from e2b import Sandbox

    with Sandbox.create(timeout=120) as origin:
        snapshot = origin.create_snapshot()
    taken = []
    for _ in range(rounds + 1):
        seconds, sandbox = taken_by(lambda: Sandbox.create(snapshot.snapshot_id, timeout=60))
        sandbox.kill()
        taken.append(seconds)
        rest()
    Sandbox.delete_snapshot(snapshot.snapshot_id)
    return taken[1:]


def burst(count: int) -> list[float]:
    """Every create's own time, all begun at once; p95 is nearly the last one's."""
    from e2b import Sandbox

    time.sleep(10)  # a full pool
    with ThreadPoolExecutor(count) as threads:
        done = list(
            threads.map(lambda _: taken_by(lambda: Sandbox.create(timeout=60)), range(count))
        )
        list(threads.map(lambda item: item[1].kill(), done))
    return [seconds for seconds, _ in done]


def snapshots(rounds: int) -> list[float]:
    from e2b import Sandbox

    taken = []
    for _ in range(rounds):
        with Sandbox.create(timeout=120) as sandbox:
            sandbox.commands.run("head -c 100000000 /dev/urandom > /home/user/data; sync")
            seconds, snapshot = taken_by(sandbox.create_snapshot)
        Sandbox.delete_snapshot(snapshot.snapshot_id)
        taken.append(seconds)
    return taken


def list_pages(rounds: int, env: dict[str, str]) -> list[float]:
    from e2b import Sandbox

    taken = []
    for _ in range(max(2, rounds // 10)):
        pages = Sandbox.list(limit=100, api_key=env["E2B_API_KEY"])
        while pages.has_next:
            seconds, items = taken_by(pages.next_items)
            assert len(items) == 100
            taken.append(seconds)
    return taken[1:]


def idle(count: int, facts: dict[str, Any]) -> dict[str, Any]:
    """Memory per sandbox by owner, how fast the next create is, and whether all of them answer."""
    from e2b import Sandbox

    before = owners(facts)
    with ThreadPoolExecutor(4) as threads:
        made = list(threads.map(lambda _: Sandbox.create(timeout=900), range(count)))
    time.sleep(15)  # the pool is full again, and what booted has settled
    creates = []
    for _ in range(10):
        seconds, sandbox = taken_by(lambda: Sandbox.create(timeout=60))
        sandbox.kill()
        creates.append(seconds)
        rest()
    after = owners(facts)
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda box: box.commands.run("echo up").stdout, made))
        list(threads.map(lambda box: box.kill(), made))
    containers = max(after["containers"], 1)
    return {
        "sandboxes": count,
        "answering": answers.count("up\n"),
        "guest_mb": round(after["guest"] / containers, 2),
        "shim_mb": round(after["shim"] / containers, 2),
        "dockerd_mb": round((after["dockerd"] - before["dockerd"]) / max(count, 1), 2),
        "agent_mb": round((after["agent"] - before["agent"]) / max(count, 1), 2),
        "create_p50_ms": round(statistics.median(creates) * 1000, 1),
        "create_p95_ms": round(p95(creates) * 1000, 1),
    }


def owners(facts: dict[str, Any]) -> dict[str, float]:
    """Megabytes now, over this node's containers (warm ones too) and the processes beside them."""
    label = f"label=sandlot.node={facts['node_id']}"
    listing = ["docker", "ps", "--no-trunc", "--quiet", "--filter", label]
    ids = subprocess.run(listing, capture_output=True, text=True, check=True).stdout.split()
    shims = dockerd = 0.0
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        try:
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if "containerd-shim" in command and any(item in command for item in ids):
            shims += own_mb(process.name)
        elif command.split(" ")[0].endswith("/dockerd") or command.startswith("dockerd"):
            dockerd += own_mb(process.name)
    return {
        "containers": len(ids),
        "guest": sum(group_mb(item) for item in ids),
        "shim": shims,
        "dockerd": dockerd,
        "agent": own_mb(str(facts["agent_pid"])),
    }


def own_mb(pid: str) -> float:
    """What would be free again if the process ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024


def group_mb(container_id: str) -> float:
    for pattern in ("memory/docker/{}/memory.stat", "system.slice/docker-{}.scope/memory.stat"):
        path = Path("/sys/fs/cgroup") / pattern.format(container_id)
        if path.exists():
            stat = dict(line.split() for line in path.read_text().splitlines())
            return int(stat.get("rss", stat.get("anon", 0))) / 2**20
    return 0.0


def p95(taken: list[float]) -> float:
    return sorted(taken)[min(len(taken) - 1, int(len(taken) * 0.95))]


def print_figures(figures: dict[str, list[float]]) -> None:
    docker = statistics.median(figures["docker run"])
    load = ", ".join(f"{item:.1f}" for item in os.getloadavg())
    print(f"\nMilliseconds; {os.cpu_count()} cores, load {load}")
    for name, (target_p50, target_p95) in TARGETS.items():
        taken = figures[name]
        p50 = statistics.median(taken)
        targets = [
            f"{label} ≤ {target:g}"
            for label, target in (("p50", target_p50), ("p95", target_p95))
            if target
        ]
        print(
            f"{name:<24} p50 {p50 * 1000:7.1f}   p95 {p95(taken) * 1000:7.1f}"
            f"   {docker / p50:5.1f} x docker run   {', '.join(targets) or '-'}"
        )


def print_density(rows: list[dict[str, Any]]) -> None:
    print("\nIdle sandboxes: MB per sandbox by owner; the next creates in milliseconds")
    for row in rows:
        print("   ".join(f"{name} {value}" for name, value in row.items()))


if __name__ == "__main__":
    main()
