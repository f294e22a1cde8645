"""Run a command through the official SDK, beside `docker exec`, in one run against a running stack.

    make bench      or: <python with e2b> bench/command.py, with E2B_* set by `make env`

Prints p50 and p95 in milliseconds and the ratio to Docker. The SDK runs every command by a login
shell (`bash -l -c`), so `docker exec` does too.
"""

from __future__ import annotations

import argparse
import subprocess
import time

from e2b import Sandbox
from figures import compare, measure


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=100)
    rounds = parser.parse_args().rounds
    run = ["docker", "run", "--rm", "--detach", "--network", "none", "sandlot/base:latest"]
    container = subprocess.run(
        [*run, "sleep", "600"], check=True, capture_output=True, text=True
    ).stdout.strip()
    sandbox = Sandbox.create(timeout=300)

    def docker_exec() -> float:
        began = time.perf_counter()
        subprocess.run(
            ["docker", "exec", container, "bash", "-l", "-c", "true"],
            check=True,
            capture_output=True,
        )
        return time.perf_counter() - began

    def command() -> float:
        began = time.perf_counter()
        sandbox.commands.run("true")
        return time.perf_counter() - began

    try:
        docker = measure("docker exec true", docker_exec, max(10, rounds // 4))
        ours = measure("commands.run('true')", command, rounds)
    finally:
        sandbox.kill()
        subprocess.run(["docker", "rm", "-f", container], check=False, capture_output=True)
    print("\nTargets on 2 cores: commands.run p50 15 ms.")
    compare({"docker exec": docker, "commands.run": ours})


if __name__ == "__main__":
    main()
