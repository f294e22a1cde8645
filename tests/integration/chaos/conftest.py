"""A whole stack of its own to break, and the laws that must hold once the dust has settled."""

from __future__ import annotations

import contextlib
import json
import logging
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from ops import processes
from ops.stack import node_token
from tests.stack import Stack

SETTLED = ("running", "paused", "ended")


@dataclass(frozen=True)
class Row:
    """What the control plane's database says of a sandbox."""

    sandbox_id: str
    state: str
    end_reason: str
    end_detail: str
    end_at: str
    ended_at: str


class Chaos:
    """Orders over the REST API as a client gives them; looks behind the scenes to judge."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.deployment = stack.deployment
        logging.getLogger("httpx").setLevel(logging.WARNING)
        self.api = httpx.Client(
            base_url=stack.web_url,
            headers={"X-API-Key": stack.env()["E2B_API_KEY"]},
            timeout=70,
        )
        self.agent = httpx.Client(
            base_url=stack.agent_url,
            headers={"Authorization": f"Bearer {node_token(stack.deployment)}"},
            timeout=20,
        )
        self.threads = ThreadPoolExecutor(50)

    def close(self) -> None:
        self.threads.shutdown(wait=True)
        self.api.close()
        self.agent.close()

    # -- orders

    def order(self, method: str, path: str, **body: Any) -> httpx.Response | None:
        """None when the connection broke: the client knows nothing of what came of it."""
        try:
            return self.api.request(method, path, json=body or None)
        except httpx.HTTPError:
            return None

    def begin(self, method: str, path: str, **body: Any) -> Future[httpx.Response | None]:
        return self.threads.submit(self.order, method, path, **body)

    def create(self, **options: Any) -> str:
        answer = self.api.post("/sandboxes", json={"templateID": "base", "timeout": 300, **options})
        assert answer.status_code == 201, answer.text
        return str(answer.json()["sandboxID"])

    def kill_all(self) -> None:
        for item in self.api.get("/v2/sandboxes").json():
            self.order("DELETE", f"/sandboxes/{item['sandboxID']}")

    def shell(self, sandbox_id: str, command: str) -> str:
        """The output of a command in its container, by way of the engine."""
        done = subprocess.run(
            ["docker", "exec", self.container_of(sandbox_id), "bash", "-c", command],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout.strip()

    # -- behind the scenes

    def row(self, sandbox_id: str) -> Row:
        return next(row for row in self.rows() if row.sandbox_id == sandbox_id)

    def rows(self) -> list[Row]:
        return [
            Row(*found)
            for found in self._query(
                "SELECT public_id, state, end_reason, end_detail, end_at, ended_at"
                " FROM sandboxes_sandbox ORDER BY id"
            )
        ]

    def open_usage(self) -> dict[str, str]:
        """Sandbox id -> what its meter counts it as."""
        return dict(
            self._query(
                "SELECT sandbox_id, state FROM billing_usageinterval WHERE ended_ms IS NULL"
            )
        )

    def on_node(self) -> dict[str, str]:
        return {
            item["sandbox_id"]: item["state"] for item in self.agent.get("/v1/sandboxes").json()
        }

    def warm(self) -> int:
        return sum(self.agent.get("/v1/node").json()["warm"].values())

    def container_of(self, sandbox_id: str) -> str:
        node_dir = self.stack.state_dir / "node" / self.deployment.node_id
        stored = json.loads((node_dir / "sandboxes" / f"{sandbox_id}.json").read_text())
        return str(stored["container_id"])

    def _query(self, sql: str) -> list[Any]:
        uri = f"file:{self.stack.state_dir / 'db.sqlite3'}?mode=ro"
        with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=30)) as database:
            return database.execute(sql).fetchall()

    # -- faults

    def stop(self, name: str) -> None:
        processes.control(self.deployment, "stop", name)

    def start(self, name: str) -> None:
        processes.control(self.deployment, "start", name)

    # -- the laws

    def until(self, holds: Callable[[], object], *, seconds: float = 45, what: str = "") -> None:
        deadline = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < deadline, f"it did not come about: {what}"
            time.sleep(0.02)

    def settle(self, *, seconds: float = 60) -> None:
        """Wait until all of it is true: every row, every container, every meter."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                wrong = self.what_is_wrong()
            except httpx.HTTPError as error:
                wrong = [f"the agent does not answer: {error!r}"]
            if not wrong:
                return
            assert time.monotonic() < deadline, "\n".join(wrong)
            time.sleep(0.2)

    def what_is_wrong(self) -> list[str]:
        on_node = self.on_node()
        rows = {row.sandbox_id: row for row in self.rows()}
        wrong = [
            f"{row.sandbox_id} is still {row.state}"
            for row in rows.values()
            if row.state not in SETTLED
        ]
        alive = {key: row.state for key, row in rows.items() if row.state in ("running", "paused")}
        if alive != on_node:
            wrong.append(f"the rows say {alive}, the node says {on_node}")
        wrong += [
            f"{row.sandbox_id} ended without a reason"
            for row in rows.values()
            if row.state == "ended" and not row.end_reason
        ]
        if (usage := self.open_usage()) != alive:
            wrong.append(f"the rows say {alive}, the meters run for {usage}")
        containers = {item[:12] for item in self.stack.containers()}
        sandboxes = {self.container_of(sandbox_id)[:12] for sandbox_id in on_node}
        if missing := sandboxes - containers:
            wrong.append(f"containers are missing: {missing}")
        extra = len(containers - sandboxes)
        if extra != (warm := self.warm()):
            wrong.append(f"{extra} containers beside those of sandboxes, {warm} of them warm")
        return wrong


@pytest.fixture(scope="package")
def stack() -> Iterator[Stack]:
    """Not the one of the other tests: this one gets hurt."""
    with Stack.start(SANDLOT_HEARTBEAT_SECONDS="0.5") as running:
        yield running


@pytest.fixture
def chaos(stack: Stack) -> Iterator[Chaos]:
    made = Chaos(stack)
    yield made
    made.kill_all()
    made.close()
