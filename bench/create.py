"""Create a sandbox through the official SDK, beside `docker run`, against a running stack.

    make bench      or: <python with e2b> bench/create.py [--rounds N], with E2B_* set by `make env`

Prints p50 and p95 in milliseconds and the ratio to Docker. Creates are apart by a little rest, as
people's are, so that they meet a warm pool; the burst outruns it.
"""

from __future__ import annotations

import argparse
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

from e2b import Sandbox
from figures import compare, measure

DOCKER_RUN = ["docker", "run", "--rm", "--network", "none", "sandlot/base:latest", "true"]


def create_and_kill() -> float:
    """Seconds that creating takes; killing is not counted."""
    began = time.perf_counter()
    sandbox = Sandbox.create(timeout=60)
    taken = time.perf_counter() - began
    sandbox.kill()
    return taken


def create_and_run() -> float:
    """Seconds until the output of a first command is here."""
    began = time.perf_counter()
    sandbox = Sandbox.create(timeout=60)
    sandbox.commands.run("echo hello")
    taken = time.perf_counter() - began
    sandbox.kill()
    return taken


def docker_run() -> float:
    began = time.perf_counter()
    subprocess.run(DOCKER_RUN, check=True, capture_output=True)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--rest", type=float, default=1.0, help="seconds between creates")
    options = parser.parse_args()
    docker = measure("docker run true", docker_run, max(5, options.rounds // 2))
    warm = measure("Sandbox.create, warm", create_and_kill, options.rounds, rest=options.rest)
    first = measure("create + first command", create_and_run, options.rounds, rest=options.rest)
    with ThreadPoolExecutor(5) as threads:
        burst = sorted(threads.map(lambda _: create_and_kill(), range(10)))
    print("\nTargets on 2 cores: warm create p50 60 ms.")
    compare({"docker run": docker, "warm": warm, "with a command": first, "burst of 10": burst})


if __name__ == "__main__":
    main()
