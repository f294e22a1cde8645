"""Builds while parts of the system die: they end with a reason, or go on; none hangs for ever."""

from __future__ import annotations

import json
import time
import urllib.request
import uuid
from typing import Any

import docker
import pytest

from tests.stack import Stack

pytestmark = pytest.mark.timeout(240)


class Api:
    def __init__(self, stack: Stack) -> None:
        env = stack.env()
        self.url, self.key = env["E2B_API_URL"], env["E2B_API_KEY"]

    def call(self, method: str, path: str, body: Any = None) -> Any:
        request = urllib.request.Request(
            self.url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"X-API-Key": self.key, "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            raw = answer.read()
        return json.loads(raw) if raw else None

    def build(self, *commands: str) -> str:
        """Start a build; returns the path of its status."""
        name = f"f-{uuid.uuid4().hex[:10]}"
        made = self.call("POST", "/v3/templates", {"name": name, "cpuCount": 1, "memoryMB": 256})
        ids = made["templateID"], made["buildID"]
        steps = [{"type": "RUN", "args": [command]} for command in commands]
        body = {"fromImage": "e2bdev/base", "steps": steps}
        self.call("POST", "/v2/templates/{}/builds/{}".format(*ids), body)
        return "/templates/{}/builds/{}/status".format(*ids)

    def until(self, path: str, holds: Any, seconds: float = 90) -> dict[str, Any]:
        deadline = time.monotonic() + seconds
        while True:
            try:
                told: dict[str, Any] = self.call("GET", path)
                if holds(told):
                    return told
            except OSError:
                told = {"error": "web does not answer"}
            assert time.monotonic() < deadline, told
            time.sleep(0.1)


def says(text: str) -> Any:
    return lambda told: any(text in entry["message"] for entry in told["logEntries"])


def has_ended(told: dict[str, Any]) -> bool:
    return told["status"] in ("ready", "error")


def test_a_build_whose_agent_dies_ends_with_a_reason_and_leaves_no_container(stack: Stack) -> None:
    api = Api(stack)
    path = api.build("echo running; sleep 300")
    api.until(path, says("[stdout]: running"))
    stack.kill9("agent")
    told = api.until(path, has_ended)
    assert told["status"] == "error"
    assert told["reason"]["message"].startswith("An internal error occurred.")
    engine = docker.from_env()
    node = stack.deployment.environ["SANDLOT_NODE_ID"]
    deadline = time.monotonic() + 60
    while engine.containers.list(all=True, filters={"name": f"sandlot-{node}-build-"}):
        assert time.monotonic() < deadline, "the build's container is still there"
        time.sleep(0.5)
    engine.close()


def test_a_build_outlives_the_control_plane(stack: Stack) -> None:
    api = Api(stack)
    path = api.build("for n in 1 2 3 4 5 6; do echo line $n; sleep 1; done")
    api.until(path, says("line 1"))
    stack.kill9("web")
    told = api.until(path, has_ended)
    assert told["status"] == "ready", told
    lines = [entry["message"] for entry in told["logEntries"] if "line " in entry["message"]]
    assert [line[-6:] for line in lines[-6:]] == [f"line {n}" for n in range(1, 7)]


def test_deleting_a_template_ends_its_build(stack: Stack) -> None:
    api = Api(stack)
    path = api.build("echo running; sleep 300")
    api.until(path, says("[stdout]: running"))
    api.call("DELETE", f"/templates/{path.split('/')[2]}")
    told = api.until(path, has_ended, seconds=10)
    assert told["reason"]["message"] == "build was cancelled"
