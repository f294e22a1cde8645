"""A real agent process on a real engine, with a control plane that only listens."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import docker
import pytest

from nodeagent import netpolicy, wire
from nodeagent.client import AgentClient
from nodeagent.errors import AgentError
from nodeagent.runtime.docker import bridge_name
from nodeagent.wire import CreateSandbox, EventKind, Heartbeat, PoolSpec
from ops import images

ROOT = Path(__file__).resolve().parents[3]
TOKEN = "sln_integration"
SIZE = {"cpu_count": 1, "memory_mb": 256, "disk_size_mb": 1024}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class ControlPlane:
    """Takes heartbeats, applies events once and in order, and asks for the pools a test sets."""

    def __init__(self) -> None:
        self.events: list[wire.NodeEvent] = []
        self.metrics: list[wire.MetricSample] = []
        self.last: Heartbeat | None = None
        self.pools: list[PoolSpec] = []
        self.port = free_port()
        self._acked_seq = 0
        self._server = self._serve()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def events_of(self, sandbox_id: str, kind: EventKind) -> list[wire.NodeEvent]:
        return [
            event
            for event in list(self.events)
            if event.sandbox_id == sandbox_id and event.kind is kind
        ]

    def take(self, heartbeat: Heartbeat) -> wire.HeartbeatReply:
        self.last = heartbeat
        self.metrics += heartbeat.metrics
        for event in heartbeat.events:
            if event.seq == self._acked_seq + 1:
                self._acked_seq = event.seq
                self.events.append(event)
        return wire.HeartbeatReply(acked_seq=self._acked_seq, pools=self.pools)

    def _serve(self) -> ThreadingHTTPServer:
        plane = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                raw = self.rfile.read(int(self.headers["Content-Length"]))
                assert self.path == "/internal/nodes/heartbeat"
                assert self.headers["Authorization"] == f"Bearer {TOKEN}"
                reply = plane.take(wire.decode(Heartbeat, json.loads(raw)))
                body = json.dumps(wire.encode(reply)).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None: ...

        server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return server


@dataclass
class AgentProcess:
    """`python -m nodeagent` with a state directory, ports and a node id of its own."""

    engine: docker.DockerClient
    image: str
    state_dir: Path
    control_plane: ControlPlane
    settings: dict[str, str] = field(default_factory=dict)
    node_id: str = field(default_factory=lambda: f"it{secrets.token_hex(3)}")
    api_port: int = field(default_factory=free_port)
    gateway_port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        self.client = AgentClient(f"http://127.0.0.1:{self.api_port}", TOKEN)
        self.log_path = self.state_dir / "agent.log"

    def environ(self) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith("SANDLOT_")}
        return {
            **kept,
            "SANDLOT_STATE_DIR": str(self.state_dir),
            "SANDLOT_NODE_ID": self.node_id,
            "SANDLOT_NODE_TOKEN": TOKEN,
            "SANDLOT_AGENT_PORT": str(self.api_port),
            "SANDLOT_GATEWAY_PORT": str(self.gateway_port),
            "SANDLOT_GATEWAY_HOST": "127.0.0.1",
            "SANDLOT_CONTROL_PLANE_URL": f"http://127.0.0.1:{self.control_plane.port}",
            "SANDLOT_HEARTBEAT_SECONDS": "0.5",
            "SANDLOT_METER_SECONDS": "1",
            **self.settings,
        }

    def start(self) -> None:
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "nodeagent"],
                cwd=ROOT,
                env=self.environ(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        until(self._answers, what=self.log)

    def kill9(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)

    def stop(self) -> int:
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(20)

    def purge(self) -> None:
        subprocess.run(
            [sys.executable, "-m", "nodeagent", "purge"],
            cwd=ROOT,
            env=self.environ(),
            check=True,
            capture_output=True,
        )

    def log(self) -> str:
        return self.log_path.read_text()[-4000:]

    def spec(self, **changes: Any) -> CreateSandbox:
        fields = {
            "sandbox_id": f"i{secrets.token_hex(6)}",
            "team_id": "team1",
            "template_id": "template1",
            "build_id": "build1",
            "image": self.image,
            "timeout_seconds": 120.0,
            **SIZE,
        }
        return CreateSandbox(**{**fields, **changes})

    def create(self, **changes: Any) -> str:
        spec = self.spec(**changes)
        self.client.create(spec)
        return spec.sandbox_id

    def keep_warm(self, count: int, **changes: Any) -> None:
        fields = {
            "template_id": "template1",
            "build_id": "build1",
            "image": self.image,
            "size": count,
            **SIZE,
        }
        spec = PoolSpec(**{**fields, **changes})
        self.control_plane.pools = [spec] if count else []
        self.client.put_pools(self.control_plane.pools)
        until(lambda: self.client.node_status().warm.get(spec.build_id, 0) == count, what=self.log)

    def stored(self, sandbox_id: str) -> dict[str, Any]:
        path = self.state_dir / "node" / self.node_id / "sandboxes" / f"{sandbox_id}.json"
        return json.loads(path.read_text())

    def run(self, sandbox_id: str, command: str, *, user: str = "root") -> tuple[int, str]:
        """Exit code and output of a shell command in the sandbox, by way of the engine.

        Not through the guest: the agent takes over the processes it finds there.
        """
        container = self.engine.containers.get(self.stored(sandbox_id)["container_id"])
        done = container.exec_run(["/bin/bash", "-c", command], user=user)
        return done.exit_code, done.output.decode(errors="replace").strip()

    def inspect(self, sandbox_id: str) -> dict[str, Any]:
        return self.engine.api.inspect_container(self.stored(sandbox_id)["container_id"])

    def containers(self) -> list[str]:
        found = self.engine.api.containers(
            all=True, filters={"label": f"sandlot.node={self.node_id}"}
        )
        return [item["Id"] for item in found]

    def rules(self) -> list[str]:
        """Every packet filter rule and chain of this node, IPv4 and IPv6."""
        marks = (netpolicy.chain_prefix(self.node_id), f" {bridge_name(self.node_id)} ")
        lines = []
        for program in ("iptables", "ip6tables"):
            done = subprocess.run(
                [program, "-w", "5", "-S"], capture_output=True, text=True, check=True
            )
            lines += [
                line for line in done.stdout.splitlines() if any(m in f"{line} " for m in marks)
            ]
        return lines

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log()
        try:
            self.client.node_status()
        except AgentError:
            return False
        return True


def until(
    holds: Callable[[], object], *, seconds: float = 20, what: Callable[[], str] = lambda: ""
) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"it did not come about\n{what()}"
        time.sleep(0.01)


@contextlib.contextmanager
def running_agent(
    engine: docker.DockerClient, image: str, **settings: str
) -> Iterator[AgentProcess]:
    state_dir = Path(tempfile.mkdtemp(prefix="slit-"))
    control_plane = ControlPlane()
    agent = AgentProcess(engine, image, state_dir, control_plane, settings)
    try:
        agent.start()
        yield agent
    finally:
        if agent.process is not None and agent.process.poll() is None:
            agent.kill9()
        agent.client.close()
        agent.purge()
        control_plane.close()
        shutil.rmtree(state_dir, ignore_errors=True)


@pytest.fixture(scope="session")
def engine() -> Iterator[docker.DockerClient]:
    client = docker.from_env()
    yield client
    client.close()


@pytest.fixture(scope="session")
def image() -> str:
    images.ensure_base_image()
    return images.BASE_IMAGE


@pytest.fixture(scope="module")
def agent(engine: docker.DockerClient, image: str) -> Iterator[AgentProcess]:
    """One agent for the tests of a module that leave it as it was."""
    with running_agent(engine, image) as running:
        yield running


@pytest.fixture
def own_agent(engine: docker.DockerClient, image: str) -> Iterator[AgentProcess]:
    """An agent for one test, which may do with it what it likes."""
    with running_agent(engine, image) as running:
        yield running
