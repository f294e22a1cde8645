"""Figures of the data plane through the official Python SDK, against a running stack.

    <python with e2b> bench/data_plane.py [--quick]     with E2B_* set, as `make env` prints them

Prints a line a figure: name, p50 and p95 in milliseconds or a rate in MB/s, and its target.
Times on a shared machine move; compare figures of one run.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import struct
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx
from e2b import PtySize, Sandbox

MIB = 1024 * 1024


def milliseconds(action: Callable[[], object], rounds: int) -> list[float]:
    """Durations of `rounds` calls after three that warm up."""
    for _ in range(3):
        action()
    taken = []
    for _ in range(rounds):
        began = time.perf_counter()
        action()
        taken.append((time.perf_counter() - began) * 1000)
    return sorted(taken)


def report(name: str, taken: list[float], target: str) -> None:
    p95 = taken[min(len(taken) - 1, int(len(taken) * 0.95))]
    print(f"{name:<34} p50 {statistics.median(taken):7.1f} ms  p95 {p95:7.1f} ms   target {target}")


def report_rate(name: str, size_bytes: int, seconds: float, target: str) -> None:
    print(f"{name:<34} {size_bytes / seconds / 1e6:7.0f} MB/s                  target {target}")


def commands(sandbox: Sandbox, rounds: int) -> None:
    report(
        "commands.run('true')",
        milliseconds(lambda: sandbox.commands.run("true"), rounds),
        "10 / 20 ms",
    )


def small_files(sandbox: Sandbox, rounds: int) -> None:
    text = "x" * 1024
    report(
        "files.write 1 KiB",
        milliseconds(lambda: sandbox.files.write("k.txt", text), rounds),
        "8 ms",
    )
    report("files.read 1 KiB", milliseconds(lambda: sandbox.files.read("k.txt"), rounds), "8 ms")


def pty_echo(sandbox: Sandbox, rounds: int) -> None:
    """One key sent until its echo is seen, through the SDK's own stream."""
    terminal = sandbox.pty.create(PtySize(cols=80, rows=24), cwd="/tmp")
    stream = iter(terminal)

    def read_until(mark: bytes) -> None:
        seen = b""
        while mark not in seen:
            _, _, data = next(stream)
            seen += data or b""

    sandbox.pty.send_stdin(terminal.pid, b"stty -icanon; cat; echo\n")
    read_until(b"echo\r\n")
    taken = []
    for round_number in range(rounds + 3):
        key = b"%c" % (ord("a") + round_number % 26)
        began = time.perf_counter()
        sandbox.pty.send_stdin(terminal.pid, key)
        read_until(key)
        taken.append((time.perf_counter() - began) * 1000)
    report("PTY key to echo", sorted(taken[3:]), "5 ms")
    terminal.kill()


def big_files(sandbox: Sandbox, size: int) -> None:
    """Up and down through signed URLs, as a plain HTTP client would."""
    data = os.urandom(MIB) * (size // MIB)
    headers = {"E2b-Sandbox-Id": sandbox.sandbox_id, "E2b-Sandbox-Port": "49983"}
    with httpx.Client(timeout=120) as client:
        began = time.perf_counter()
        client.post(
            sandbox.upload_url("/tmp/big"),
            content=data,
            headers={**headers, "Content-Type": "application/octet-stream"},
        ).raise_for_status()
        report_rate(f"upload {size // MIB} MiB", size, time.perf_counter() - began, "300 MB/s")
        digest, began = hashlib.sha256(), time.perf_counter()
        chunks = []
        with client.stream(
            "GET",
            sandbox.download_url("/tmp/big"),
            headers={**headers, "Accept-Encoding": "identity"},
        ) as answer:
            answer.raise_for_status()
            chunks = list(answer.iter_raw(MIB))
        report_rate(f"download {size // MIB} MiB", size, time.perf_counter() - began, "300 MB/s")
        for chunk in chunks:
            digest.update(chunk)
    if digest.digest() != hashlib.sha256(data).digest():
        raise SystemExit("the file that came back is not the file that was sent")


def big_stdout(sandbox: Sandbox, size: int) -> None:
    """`head -c` of zeros, read off the wire by a plain HTTP client."""
    message = json.dumps(
        {"process": {"cmd": "/usr/bin/head", "args": ["-c", str(size), "/dev/zero"]}}
    ).encode()
    headers = {
        "E2b-Sandbox-Id": sandbox.sandbox_id,
        "E2b-Sandbox-Port": "49983",
        "X-Access-Token": sandbox._envd_access_token or "",
        "Content-Type": "application/connect+json",
        "Connect-Protocol-Version": "1",
    }
    wire_bytes, began = 0, time.perf_counter()
    with (
        httpx.Client(timeout=300) as client,
        client.stream(
            "POST",
            f"{sandbox.envd_api_url}/process.Process/Start",
            content=struct.pack(">BI", 0, len(message)) + message,
            headers=headers,
        ) as answer,
    ):
        answer.raise_for_status()
        for chunk in answer.iter_raw(MIB):
            wire_bytes += len(chunk)
    if wire_bytes < size:
        raise SystemExit(f"output lost: {wire_bytes} bytes on the wire for {size}")
    report_rate(
        f"{size // 1_000_000} MB of stdout (wire)", size, time.perf_counter() - began, "200 MB/s"
    )


def parallel(count: int, rounds: int) -> None:
    """`rounds` waves of 50 commands at once over ten sandboxes."""
    sandboxes = [Sandbox.create(timeout=120) for _ in range(count)]

    def once(number: int) -> float:
        began = time.perf_counter()
        sandboxes[number % count].commands.run("true")
        return (time.perf_counter() - began) * 1000

    try:
        taken: list[float] = []
        with ThreadPoolExecutor(50) as pool:
            list(pool.map(once, range(50)))  # connections open
            for _ in range(rounds):
                taken += pool.map(once, range(50))
        report(f"50 commands over {count} sandboxes", sorted(taken), "p95 150 ms")
    finally:
        for sandbox in sandboxes:
            sandbox.kill()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer rounds and smaller bodies")
    quick = parser.parse_args().quick
    rounds = 40 if quick else 200
    sandbox = Sandbox.create(timeout=600)
    try:
        commands(sandbox, rounds)
        small_files(sandbox, rounds)
        pty_echo(sandbox, rounds)
        big_files(sandbox, (20 if quick else 100) * MIB)
        big_stdout(sandbox, (100 if quick else 1000) * 1_000_000)
    finally:
        sandbox.kill()
    parallel(10, 1 if quick else 4)


if __name__ == "__main__":
    main()
