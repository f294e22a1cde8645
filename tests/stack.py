"""The whole of Sandlot, started as `make up` starts it, for tests of the whole."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ops import processes, stack
from ops.deployment import Deployment
from ops.services import free_port


class Stack:
    """One deployment of its own: ports, state directory, node id, embedded database."""

    def __init__(self, deployment: Deployment) -> None:
        self.deployment = deployment
        self.web_url = f"http://localhost:{deployment.web_port}"
        self.gateway_url = f"http://localhost:{deployment.gateway_port}"
        self.agent_url = f"http://127.0.0.1:{deployment.agent_port}"
        self.state_dir = deployment.state_dir
        self._accounts: dict[str, dict[str, str]] = {}

    @staticmethod
    @contextmanager
    def start(**settings: str) -> Iterator[Stack]:
        # Short: unix socket paths have 107 bytes.
        state_dir = Path(tempfile.mkdtemp(prefix="slt-"))
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("SANDLOT_", "DATABASE_URL", "REDIS_URL", "E2B_"))
        }
        for name in ("SANDLOT_EXTRA_CA", "SANDLOT_DEBIAN_MIRROR"):
            if name in os.environ:
                inherited[name] = os.environ[name]
        deployment = Deployment.from_environment(
            {
                **inherited,
                "SANDLOT_STATE_DIR": str(state_dir),
                "SANDLOT_WEB_PORT": str(free_port()),
                "SANDLOT_GATEWAY_PORT": str(free_port()),
                "SANDLOT_AGENT_PORT": str(free_port()),
                "SANDLOT_WEB_HOST": "127.0.0.1",
                "SANDLOT_GATEWAY_HOST": "127.0.0.1",
                "SANDLOT_NODE_ID": f"t{secrets.token_hex(3)}",
                "SANDLOT_POOL_SIZE": "2",
                **settings,
            }
        )
        try:
            stack.prepare(deployment)
            stack.start(deployment)
            yield Stack(deployment)
        finally:
            stack.take_down(deployment)
            stack.remove_networks(deployment)
            if not os.environ.get("SANDLOT_KEEP_TEST_STATE"):
                shutil.rmtree(state_dir, ignore_errors=True)

    def env(self, email: str = "alice@example.com") -> dict[str, str]:
        """The SDK's variables for a user, who is created if missing."""
        if email not in self._accounts:
            self._accounts[email] = stack.account_env(self.deployment, email)
        return self._accounts[email]

    def process_env(self, email: str = "alice@example.com") -> dict[str, str]:
        """A whole environment for a program that uses the SDK as that user."""
        return {**os.environ, **self.env(email)}

    def manage(self, *words: str) -> str:
        """What a Django command prints in this deployment."""
        return stack.manage(self.deployment, *words)

    def pid(self, name: str) -> int | None:
        return processes.process_pid(self.deployment, name)

    def kill9(self, name: str, *, wait: bool = True) -> None:
        """Kill web, worker or agent as the kernel would and wait for its successor."""
        before = self.pid(name)
        assert before is not None, f"{name} does not run"
        os.kill(before, signal.SIGKILL)
        if wait:
            self._wait_for_successor(name, before)

    def restart(self, name: str) -> None:
        """Stop and start web, worker or agent in order."""
        before = self.pid(name)
        processes.control(self.deployment, "restart", name)
        self._wait_for_successor(name, before)

    def _wait_for_successor(self, name: str, before: int | None) -> None:
        deadline = time.monotonic() + 30
        while self.pid(name) in (None, before):
            assert time.monotonic() < deadline, f"{name} did not come back\n{self.logs()}"
            time.sleep(0.05)
        stack.wait_until_healthy(self.deployment, timeout=60)

    def containers(self) -> list[str]:
        """Ids of this node's containers, warm ones included."""
        return stack.containers(self.deployment)

    def logs(self, lines: int = 40) -> str:
        return processes.all_logs(self.deployment, lines)
