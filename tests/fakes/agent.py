"""A node agent that keeps its sandboxes in memory and speaks the real wire, over real HTTP.

Named by misbehaviour: `FakeAgent` does as it is told; `SlowAgent` takes its time; `BrokenAgent`
answers errors; `VanishingNode` does the work and then breaks the connection, so that nobody knows.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from nodeagent import wire


class AgentFault(Exception):
    def __init__(self, status: int, message: str, error_code: str = "") -> None:
        super().__init__(message)
        self.status, self.message, self.error_code = status, message, error_code


class FakeAgent:
    def __init__(
        self, node_id: str = "node-a", *, token: str, clock: Callable[[], float] = time.time
    ) -> None:
        self.node_id = node_id
        self.token = token
        self.clock = clock
        self.sandboxes: dict[str, wire.SandboxState] = {}
        self.specs: dict[str, wire.CreateSandbox] = {}
        self.networks: dict[str, wire.NetworkConfig] = {}
        self.images: set[str] = set()
        self.calls: list[tuple[str, str]] = []
        self.events: list[wire.NodeEvent] = []
        self.seq = 0
        self.lock = threading.RLock()
        self.started_at = self.clock()
        agent = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args: Any) -> None:
                return

            def _serve(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                raw = self.rfile.read(length)
                agent.respond(self, json.loads(raw) if raw else None)

            do_GET = do_POST = do_PUT = do_DELETE = _serve

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, request: Any, client_address: Any) -> None:
                return  # a client that hung up

        self.server = Server(("127.0.0.1", 0), Handler)
        self.api_url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(
            target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    # --- Answering ----------------------------------------------------------------------------

    def respond(self, http: BaseHTTPRequestHandler, body: Any) -> None:
        parts = urlsplit(http.path)
        with self.lock:
            self.calls.append((http.command, parts.path))
        if http.headers.get("Authorization") != f"Bearer {self.token}":
            self.send(http, 401, {"code": 401, "error_code": "unauthenticated", "message": "no"})
            return
        try:
            self.before(http.command, parts.path)
            status, answer = self.handle(http.command, parts.path, parse_qs(parts.query), body)
            self.after(http, http.command, parts.path)
        except AgentFault as fault:
            status = fault.status
            answer = {"code": status, "error_code": fault.error_code, "message": fault.message}
        except ConnectionAbortedError:
            http.close_connection = True
            return
        self.send(http, status, answer)

    def before(self, method: str, path: str) -> None:
        """A place for misbehaviour before the work."""

    def after(self, http: BaseHTTPRequestHandler, method: str, path: str) -> None:
        """A place for misbehaviour after the work."""

    def send(self, http: BaseHTTPRequestHandler, status: int, answer: Any) -> None:
        raw = b"" if answer is None else json.dumps(answer).encode()
        head = (
            f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(raw)}\r\n\r\n"
        )
        http.wfile.write(head.encode() + raw)

    def handle(
        self, method: str, path: str, query: dict[str, list[str]], body: Any
    ) -> tuple[int, Any]:
        if path == "/v1/node":
            return 200, wire.encode(self.status())
        if path == "/v1/pools":
            return 204, None
        if path.startswith("/v1/images/"):
            with self.lock:
                self.images.discard(unquote(path.removeprefix("/v1/images/")))
            return 204, None
        if path == "/v1/sandboxes":
            if method == "GET":
                with self.lock:
                    return 200, wire.encode(list(self.sandboxes.values()))
            return 201, wire.encode(self.create(wire.decode(wire.CreateSandbox, body)))
        match = re.fullmatch(r"/v1/sandboxes/([a-z0-9]+)(?:/(\w+))?", path)
        if match is None:
            raise AgentFault(404, "no such route")
        sandbox_id, verb = match[1], match[2]
        with self.lock:
            return self._steer(method, sandbox_id, verb, query, body)

    def _steer(
        self, method: str, sandbox_id: str, verb: str | None, query: Any, body: Any
    ) -> tuple[int, Any]:
        state = self.sandboxes.get(sandbox_id)
        if state is None:
            raise AgentFault(404, f"sandbox {sandbox_id} is not on this node", "not_found")
        now = self.clock()
        is_running = state.state is wire.NodeSandboxState.RUNNING
        match method, verb:
            case "GET", None:
                return 200, wire.encode(state)
            case "DELETE", None:
                reason = wire.EndReason(query.get("reason", ["killed"])[0])
                return 200, wire.encode(self.end(sandbox_id, reason))
            case "POST", "deadline":
                if not is_running:
                    raise AgentFault(409, "not running", "conflict")
                state = self.put(sandbox_id, end_at=float(body["end_at"]))
                return 200, wire.encode(state)
            case "POST", "pause":
                if is_running:
                    state = self.put(
                        sandbox_id,
                        state=wire.NodeSandboxState.PAUSED,
                        paused_at=now,
                        end_at=now,
                        memory=bool(body["memory"]),
                    )
                    self.tell(wire.EventKind.PAUSED, sandbox_id, memory=state.memory)
                assert state.paused_at is not None
                return 200, wire.encode(
                    wire.SandboxPaused(
                        sandbox_id=sandbox_id, paused_at=state.paused_at, memory=state.memory
                    )
                )
            case "POST", "resume":
                if not is_running:
                    state = self.put(
                        sandbox_id,
                        state=wire.NodeSandboxState.RUNNING,
                        started_at=now,
                        end_at=now + body["timeout_seconds"],
                        paused_at=None,
                    )
                    self.tell(wire.EventKind.RESUMED, sandbox_id)
                return 200, wire.encode(self._started(state))
            case "PUT", "network":
                self.networks[sandbox_id] = wire.decode(wire.NetworkConfig, body)
                return 204, None
            case "POST", "snapshots":
                self.images.add(body["image"])
                return 200, {"image": body["image"], "size_bytes": 4096}
        raise AgentFault(404, "no such route")

    # --- Doing --------------------------------------------------------------------------------

    def create(self, spec: wire.CreateSandbox) -> wire.SandboxStarted:
        with self.lock:
            state = self.sandboxes.get(spec.sandbox_id)
            if state is None:
                now = self.clock()
                state = wire.SandboxState(
                    sandbox_id=spec.sandbox_id,
                    state=wire.NodeSandboxState.RUNNING,
                    started_at=now,
                    end_at=now + min(spec.timeout_seconds, spec.max_length_seconds),
                )
                self.sandboxes[spec.sandbox_id] = state
                self.specs[spec.sandbox_id] = spec
                self.networks[spec.sandbox_id] = spec.network
                self.tell(wire.EventKind.STARTED, spec.sandbox_id)
            return self._started(state)

    def _started(self, state: wire.SandboxState) -> wire.SandboxStarted:
        return wire.SandboxStarted(
            sandbox_id=state.sandbox_id,
            started_at=state.started_at,
            end_at=state.end_at,
            warm=True,
        )

    def put(self, sandbox_id: str, **changes: Any) -> wire.SandboxState:
        with self.lock:
            state = replace(self.sandboxes[sandbox_id], **changes)
            self.sandboxes[sandbox_id] = state
            return state

    def end(self, sandbox_id: str, reason: wire.EndReason, detail: str = "") -> wire.SandboxEnded:
        with self.lock:
            del self.sandboxes[sandbox_id]
            at = self.clock()
            self.tell(wire.EventKind.ENDED, sandbox_id, reason=reason.value, detail=detail)
            return wire.SandboxEnded(sandbox_id=sandbox_id, ended_at=at, reason=reason)

    def tell(self, kind: wire.EventKind, sandbox_id: str, **data: Any) -> wire.NodeEvent:
        with self.lock:
            self.seq += 1
            event = wire.NodeEvent(
                seq=self.seq, kind=kind, sandbox_id=sandbox_id, at=self.clock(), data=data
            )
            self.events.append(event)
            return event

    def status(self, **changes: Any) -> wire.NodeStatus:
        status = wire.NodeStatus(
            node_id=self.node_id,
            version="test",
            api_version=wire.API_VERSION,
            api_url=self.api_url,
            gateway_url="http://127.0.0.1:1",
            started_at=self.started_at,
            cpu_count=8,
            memory_mb=16384,
            memory_available_mb=8192,
            disk_total_mb=100_000,
            disk_available_mb=50_000,
            max_sandboxes=200,
        )
        return replace(status, **changes)

    def heartbeat(self, *, metrics: list[wire.MetricSample] | None = None) -> wire.Heartbeat:
        with self.lock:
            return wire.Heartbeat(
                node=self.status(),
                sandboxes=list(self.sandboxes.values()),
                events=list(self.events),
                metrics=metrics or [],
            )

    def acknowledge(self, reply: wire.HeartbeatReply) -> None:
        with self.lock:
            self.events = [event for event in self.events if event.seq > reply.acked_seq]
            for sandbox_id in reply.kill:
                if sandbox_id in self.sandboxes:
                    self.end(sandbox_id, wire.EndReason.UNKNOWN_TO_CONTROL_PLANE)
            for sandbox_id, end_at in reply.deadlines.items():
                self.put(sandbox_id, end_at=end_at)

    def called(self, method: str, ending: str) -> int:
        """How often a route was asked."""
        with self.lock:
            return sum(1 for verb, path in self.calls if verb == method and path.endswith(ending))


class SlowAgent(FakeAgent):
    """Does the work of chosen verbs only when `go` is set; `is_waiting` says that one has come."""

    def __init__(self, *args: Any, slow: str, **kwargs: Any) -> None:
        self.slow = slow
        self.go = threading.Event()
        self.is_waiting = threading.Event()
        super().__init__(*args, **kwargs)

    def before(self, method: str, path: str) -> None:
        if path.endswith(self.slow):
            self.is_waiting.set()
            assert self.go.wait(20)


class BrokenAgent(FakeAgent):
    """Answers `status` to the routes that end in one of `broken`; nothing happens."""

    def __init__(
        self,
        *args: Any,
        broken: tuple[str, ...] = ("/v1/sandboxes",),
        status: int = 500,
        error_code: str = "internal_server_error",
        **kwargs: Any,
    ) -> None:
        self.broken = broken
        self.fault_status = status
        self.error_code = error_code
        super().__init__(*args, **kwargs)

    def before(self, method: str, path: str) -> None:
        if method != "GET" and path.endswith(self.broken):
            raise AgentFault(self.fault_status, "the engine said no", self.error_code)


class VanishingNode(FakeAgent):
    """Does the work, then hangs up without an answer, on routes that end in one of `vanishing`."""

    def __init__(
        self, *args: Any, vanishing: tuple[str, ...] = ("/v1/sandboxes",), **kwargs: Any
    ) -> None:
        self.vanishing = vanishing
        super().__init__(*args, **kwargs)

    def after(self, http: BaseHTTPRequestHandler, method: str, path: str) -> None:
        if method != "GET" and path.endswith(self.vanishing):
            raise ConnectionAbortedError
