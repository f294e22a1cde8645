"""Faults of our own parts, seen through the official SDK: nothing is lost."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest

from ops import sdks
from tests.stack import Stack

START_FIVE = """
import json
from concurrent.futures import ThreadPoolExecutor
from e2b import Sandbox

def start(n):
    sandbox = Sandbox.create(timeout=300)
    sandbox.files.write("/home/user/note", f"note {n}")
    # It counts on through whatever happens to us, and ends when told to.
    count = "i=$((i+1)); echo $i > /tmp/new; mv /tmp/new /tmp/count; sleep 0.05"
    loop = f"i=0; until [ -e /tmp/stop ]; do {count}; done; echo done-$i"
    handle = sandbox.commands.run(loop, background=True)
    return {"id": sandbox.sandbox_id, "pid": handle.pid}

with ThreadPoolExecutor(5) as threads:
    print(json.dumps(list(threads.map(start, range(5)))))
"""

LOOK_AFTER = """
import json, sys
from e2b import Sandbox

found = []
for n, known in enumerate(json.loads(sys.argv[1])):
    sandbox = Sandbox.connect(known["id"])
    before = int(sandbox.files.read("/tmp/count"))
    handle = sandbox.commands.connect(known["pid"])
    grows = f"until [ $(cat /tmp/count) -gt {before} ]; do sleep 0.02; done; echo grew"
    answer = sandbox.commands.run(grows).stdout
    sandbox.files.write("/tmp/stop", "")
    result = handle.wait()
    note = sandbox.files.read("/home/user/note")
    ended = result.stdout.startswith("done-")
    found.append([note, answer, result.exit_code, ended, sandbox.kill()])
print(json.dumps(found))
"""


def run_sdk(stack: Stack, script: str, *words: str) -> Any:
    """What a script that uses the official SDK prints, as JSON."""
    python = sdks.ensure_python(sdks.PINNED_PYTHON) / "bin/python"
    done = subprocess.run(
        [python, "-c", script, *words],
        env=stack.process_env("faults@example.com"),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, f"{done.stderr}\n{stack.logs()}"
    return json.loads(done.stdout)


@pytest.mark.parametrize("victim", ["agent", "web"])
def test_five_sandboxes_outlive_a_kill_of(stack: Stack, victim: str) -> None:
    five = run_sdk(stack, START_FIVE)

    stack.kill9(victim)

    found = run_sdk(stack, LOOK_AFTER, json.dumps(five))
    assert found == [[f"note {n}", "grew\n", 0, True, True] for n in range(5)]


def test_the_worker_comes_back_when_killed(stack: Stack) -> None:
    stack.kill9("worker")
    assert stack.pid("worker") is not None
