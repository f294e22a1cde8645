"""Asking the gateway without a socket, and reading what it says."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from dataclasses import dataclass, field
from typing import Any

from nodeagent.envd.connect import envelope
from nodeagent.gateway import Gateway, GatewaySettings
from nodeagent.sandbox import LiveSandbox
from nodeagent.wire import CreateSandbox, MetricSample, NetworkConfig, NodeSandboxState
from tests.unit.envd.fake_link import FakeLink

TOKEN = "k" * 64


class FakeNode:
    def __init__(self) -> None:
        self.sandboxes: dict[str, LiveSandbox] = {}
        self.logged: list[tuple[str, dict[str, Any]]] = []
        self.wakes: list[str] = []
        self.wake_error: Exception | None = None

    def find(self, sandbox_id: str) -> LiveSandbox | None:
        return self.sandboxes.get(sandbox_id)

    def all(self) -> list[LiveSandbox]:
        return list(self.sandboxes.values())

    def log(self, sandbox: LiveSandbox, level: str, message: str, fields: dict[str, Any]) -> None:
        self.logged.append((message, fields))

    async def sample(self, sandbox: LiveSandbox) -> MetricSample:
        return MetricSample(
            sandbox_id=sandbox.sandbox_id,
            at=1700000000.7,
            cpu_count=2,
            cpu_used_pct=12.3456,
            mem_used=64 << 20,
            mem_total=512 << 20,
            mem_cache=1 << 20,
            disk_used=1 << 30,
            disk_total=10 << 30,
        )

    async def wake(self, sandbox: LiveSandbox) -> None:
        self.wakes.append(sandbox.sandbox_id)
        if self.wake_error is not None:
            raise self.wake_error
        sandbox.state, sandbox.is_routable = NodeSandboxState.RUNNING, True

    def add(self, sandbox_id: str = "abc", **fields: Any) -> LiveSandbox:
        values: dict[str, Any] = {
            "sandbox_id": sandbox_id,
            "team_id": "team",
            "template_id": "base",
            "build_id": "build",
            "image": "image",
            "cpu_count": 2,
            "memory_mb": 512,
            "disk_size_mb": 1024,
            "timeout_seconds": 300,
            "envd_access_token": TOKEN,
            "network": NetworkConfig(),
        }
        spec = CreateSandbox(**{**values, **fields})
        sandbox = LiveSandbox(
            spec=spec,
            container_id="c",
            link=FakeLink(),  # type: ignore[arg-type]
            state=NodeSandboxState.RUNNING,
            started_at=time.time(),
            end_at=time.time() + 300,
        )
        self.sandboxes[sandbox_id] = sandbox
        return sandbox


class FakeExchange:
    def __init__(self, target: str) -> None:
        self.raw_target = target.encode()
        self.is_upgrade = False
        self.is_gone = False
        self.was_reset = False

    def reset(self) -> None:
        self.was_reset = True


@dataclass
class Answer:
    """status 0: nothing was answered."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    is_complete: bool = False

    def json(self) -> Any:
        return json.loads(self.body)

    def messages(self) -> list[Any]:
        """The messages of a JSON stream."""
        return [json.loads(payload) for flags, payload in split_envelopes(self.body) if not flags]

    def end(self) -> Any:
        """The end-stream message; the last envelope must be it, and the only one."""
        envelopes = split_envelopes(self.body)
        assert [flags for flags, _ in envelopes if flags & 2] == [2]
        assert envelopes[-1][0] == 2
        return json.loads(envelopes[-1][1])

    def output(self, stream: str = "stdout") -> bytes:
        pieces = [
            message["event"]["data"][stream]
            for message in self.messages()
            if stream in message["event"].get("data", {})
        ]
        return b"".join(base64.b64decode(piece) for piece in pieces)


def split_envelopes(body: bytes) -> list[tuple[int, bytes]]:
    found = []
    while len(body) >= 5:
        size = int.from_bytes(body[1:5], "big")
        if len(body) < 5 + size:
            break
        found.append((body[0], body[5 : 5 + size]))
        body = body[5 + size :]
    return found


async def until(condition: Any) -> None:
    """Let other tasks run until `condition()` holds."""
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - the fakes tell nobody
            await asyncio.sleep(0)


class Conversation:
    """One request under way; `answer` grows while it is answered."""

    def __init__(self, gateway: Gateway, scope: dict[str, Any], body: list[bytes]) -> None:
        self.answer = Answer()
        self.exchange: FakeExchange = scope["extensions"]["sandlot"]
        self.sent = asyncio.Event()
        self.may_send = asyncio.Event()
        self.may_send.set()
        self._incoming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        for at, piece in enumerate(body):
            more = at < len(body) - 1
            self._incoming.put_nowait({"type": "http.request", "body": piece, "more_body": more})
        self.task = asyncio.create_task(gateway(scope, self._incoming.get, self._send))

    async def _send(self, message: dict[str, Any]) -> None:
        await self.may_send.wait()
        if message["type"] == "http.response.start":
            assert self.answer.status == 0
            self.answer.status = message["status"]
            for name, value in message["headers"]:
                self.answer.headers[name.decode()] = value.decode("latin-1")
        else:
            assert self.answer.status
            assert not self.answer.is_complete
            self.answer.body += message["body"]
            self.answer.is_complete = not message["more_body"]
        self.sent.set()

    async def until(self, condition: Any) -> None:
        """Wait until `condition()` holds; it is looked at whenever something was sent."""
        async with asyncio.timeout(5):
            while not condition():
                self.sent.clear()
                await self.sent.wait()

    def hang_up(self) -> None:
        """What the protocol does when the client goes away."""
        self.exchange.is_gone = True
        self.task.cancel()


class Client:
    def __init__(self, gateway: Gateway, sandbox: LiveSandbox | None = None) -> None:
        self.gateway = gateway
        self.sandbox = sandbox

    def open(
        self,
        method: str,
        target: str,
        *,
        headers: dict[str, str] | None = None,
        body: bytes | list[bytes] = b"",
        port: int = 49983,
        token: str | None = TOKEN,
    ) -> Conversation:
        path, _, query = target.partition("?")
        sent = {"host": "localhost"}
        if self.sandbox is not None:
            sent["host"] = f"{port}-{self.sandbox.sandbox_id}.sandbox.test"
        if token is not None:
            sent["x-access-token"] = token
        sent |= {name.lower(): value for name, value in (headers or {}).items()}
        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "query_string": query.encode(),
            "headers": [(name.encode(), value.encode("latin-1")) for name, value in sent.items()],
            "extensions": {"sandlot": FakeExchange(target)},
        }
        pieces = body if isinstance(body, list) else [body]
        return Conversation(self.gateway, scope, pieces or [b""])

    async def ask(self, method: str, target: str, **arguments: Any) -> Answer:
        conversation = self.open(method, target, **arguments)
        async with asyncio.timeout(10):
            await conversation.task
        return conversation.answer

    async def rpc(self, method: str, message: Any = None, **arguments: Any) -> Answer:
        """A unary call with JSON."""
        headers = {"content-type": "application/json", **arguments.pop("headers", {})}
        body = json.dumps({} if message is None else message).encode()
        return await self.ask("POST", method, headers=headers, body=body, **arguments)

    def stream(self, method: str, *messages: Any, **arguments: Any) -> Conversation:
        """A stream with JSON."""
        headers = {"content-type": "application/connect+json", **arguments.pop("headers", {})}
        body = b"".join(envelope(0, json.dumps(message).encode()) for message in messages)
        return self.open("POST", method, headers=headers, body=body, **arguments)

    async def run_stream(self, method: str, *messages: Any, **arguments: Any) -> Answer:
        conversation = self.stream(method, *messages, **arguments)
        async with asyncio.timeout(10):
            await conversation.task
        return conversation.answer


def basic(user: str) -> dict[str, str]:
    return {"authorization": "Basic " + base64.b64encode(f"{user}:".encode()).decode()}


def make_client(**fields: Any) -> tuple[Client, LiveSandbox, FakeNode]:
    node = FakeNode()
    sandbox = node.add(**fields)
    gateway = Gateway(node, GatewaySettings(host="127.0.0.1", port=0))
    return Client(gateway, sandbox), sandbox, node
