"""A container of the code interpreter's image, its port reached directly, no control plane."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
import uuid
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from ops import templates

START_SECONDS = 60


def docker(*arguments: str) -> str:
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


class Interpreter:
    def __init__(self, container: str) -> None:
        self.container = container
        address = docker("inspect", "-f", "{{.NetworkSettings.IPAddress}}", container)
        self.url = f"http://{address}:49999"
        self.http = httpx.Client(base_url=self.url, timeout=60, trust_env=False)

    def wait_until_healthy(self, seconds: float = START_SECONDS) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx.TransportError):
                if self.http.get("/health").status_code == 200:
                    return
            time.sleep(0.05)
        pytest.fail(f"not healthy after {seconds} s: {docker('logs', self.container)}")

    def run(self, code: str, **body: Any) -> Execution:
        """Run code to its end. `env`, `language` and `context_id` as the API has them."""
        answer = self.http.post("/execute", json={"code": code, **body})
        assert answer.status_code == 200, answer.text
        return Execution(answer.text)

    def sh(self, command: str, *options: str) -> str:
        return docker("exec", *options, self.container, "bash", "-c", command)

    def contexts(self) -> list[dict[str, str]]:
        return self.http.get("/contexts").json()

    def create_context(self, **body: Any) -> str:
        answer = self.http.post("/contexts", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()["id"]


class Execution:
    def __init__(self, text: str) -> None:
        assert text.isascii()
        self.lines = [json.loads(line) for line in text.splitlines()]
        self.types = [line["type"] for line in self.lines if line["type"] != "keepalive"]
        assert self.types[-1] == "end_of_execution"

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [line for line in self.lines if line["type"] == kind]

    @property
    def stdout(self) -> list[str]:
        return [line["text"] for line in self.of("stdout")]

    @property
    def stderr(self) -> list[str]:
        return [line["text"] for line in self.of("stderr")]

    @property
    def results(self) -> list[dict[str, Any]]:
        return self.of("result")

    @property
    def text(self) -> str | None:
        return next((line.get("text") for line in self.results if line["is_main_result"]), None)

    @property
    def error(self) -> dict[str, Any] | None:
        return next(iter(self.of("error")), None)

    @property
    def count(self) -> int:
        return self.of("number_of_executions")[0]["execution_count"]


@pytest.fixture(scope="session")
def interpreter() -> Iterator[Interpreter]:
    """One for the whole session; tests that need a fresh state make a context of their own."""
    image = templates.ensure_recipe("code-interpreter-v1")
    name = f"sandlot-test-interpreter-{uuid.uuid4().hex[:8]}"
    envs = '{"SANDBOX_WIDE": "from create", "QUOTED": "a\\"b\\u0027c\\n$(x) `y`"}'
    docker(
        "run", "-d", "--init", "--name", name, "--memory", "2g", "--pids-limit", "500",
        image, "bash", "-c",
        f"mkdir -p /run/e2b && printf '%s' '{envs}' > /run/e2b/envs.json && exec code-interpreter",
    )  # fmt: skip
    try:
        found = Interpreter(name)
        found.wait_until_healthy()
        yield found
        found.http.close()
    finally:
        docker("rm", "-f", name)
