"""The engine, the kernel or the clock acts on its own; or a part is away for a while."""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess
import time
from datetime import UTC, datetime

from tests.integration.chaos.conftest import Chaos

# Takes more than the sandbox has, as PID 1's heir of the kernel's choice.
EAT = "python3 -c 'x = []\nwhile True: x.append(bytearray(10**7))'"


def seconds(text: str) -> float:
    """SQLite's text of an instant."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


def test_a_container_killed_by_somebody_else(chaos: Chaos) -> None:
    sandbox_id, other = chaos.create(), chaos.create()
    subprocess.run(
        ["docker", "kill", chaos.container_of(sandbox_id)], check=True, capture_output=True
    )
    chaos.until(lambda: chaos.row(sandbox_id).state == "ended")
    assert chaos.row(sandbox_id).end_reason == "exited"
    assert chaos.order("GET", f"/sandboxes/{sandbox_id}").status_code == 404
    chaos.settle()
    assert chaos.shell(other, "echo fine") == "fine"


def test_a_paused_container_killed_by_somebody_else_keeps_its_files(chaos: Chaos) -> None:
    sandbox_id = chaos.create()
    chaos.shell(sandbox_id, "echo kept > /home/user/note; sync")
    assert chaos.order("POST", f"/sandboxes/{sandbox_id}/pause").status_code == 204
    subprocess.run(
        ["docker", "kill", chaos.container_of(sandbox_id)], check=True, capture_output=True
    )
    connected = None

    def is_connected() -> bool:
        nonlocal connected
        connected = chaos.order("POST", f"/sandboxes/{sandbox_id}/connect", timeout=60)
        return connected is not None and connected.status_code == 201

    chaos.until(is_connected)
    assert chaos.shell(sandbox_id, "cat /home/user/note") == "kept"
    chaos.settle()


def test_a_sandbox_that_runs_out_of_memory_says_so(chaos: Chaos) -> None:
    sandbox_id = chaos.create()
    command = f"echo 1000 > /proc/1/oom_score_adj; exec {EAT}"
    subprocess.run(
        ["docker", "exec", chaos.container_of(sandbox_id), "bash", "-c", command],
        capture_output=True,
        timeout=120,
        check=False,
    )
    chaos.until(lambda: chaos.row(sandbox_id).state == "ended")
    assert chaos.row(sandbox_id).end_reason == "oom"
    logs = chaos.order("GET", f"/v2/sandboxes/{sandbox_id}/logs").json()["logs"]
    assert any(entry["fields"].get("reason") == "oom" for entry in logs)
    chaos.settle()


def test_deadlines_are_met_while_web_is_down_and_told_later(chaos: Chaos) -> None:
    """The spool outlives an agent that is killed before it could tell."""
    doomed = chaos.create(timeout=4)
    pausing = chaos.create(timeout=4, autoPause=True)
    removed = chaos.create()
    end_at = seconds(chaos.row(doomed).end_at)
    victim = chaos.container_of(removed)
    chaos.stop("worker")
    chaos.stop("web")
    try:
        subprocess.run(["docker", "rm", "-f", victim], check=True, capture_output=True)
        chaos.until(lambda: chaos.on_node() == {pausing: "paused"})
        chaos.stack.kill9("agent", wait=False)
    finally:
        chaos.start("web")
        chaos.start("worker")
    chaos.settle()
    assert chaos.row(doomed).end_reason == "timeout"
    assert abs(seconds(chaos.row(doomed).ended_at) - end_at) < 2
    assert chaos.row(removed).end_reason == "exited"
    assert chaos.row(pausing).state == "paused"


def test_a_database_that_is_locked_for_a_while(chaos: Chaos) -> None:
    """Nothing is written for five seconds; creates wait, or are refused without a trace."""
    held = chaos.create()
    path = chaos.stack.state_dir / "db.sqlite3"
    with contextlib.closing(sqlite3.connect(path, timeout=30)) as database:
        database.isolation_level = None
        database.execute("BEGIN IMMEDIATE")
        futures = [
            chaos.begin("POST", "/sandboxes", templateID="base", timeout=300) for _ in range(3)
        ]
        killed = chaos.begin("DELETE", f"/sandboxes/{held}")
        released_at = time.monotonic() + 5
        chaos.until(lambda: time.monotonic() > released_at)
        database.execute("ROLLBACK")
    for future in [*futures, killed]:
        answer = future.result(timeout=120)
        assert answer is not None
        assert answer.status_code in (201, 204, 503), answer.text
    chaos.settle()
