"""The agent API over HTTP: routes of `wire`, token check, bounded bodies, errors as JSON."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeVar
from urllib.parse import parse_qs, unquote

import uvicorn

from nodeagent import wire
from nodeagent.agent import Agent
from nodeagent.errors import (
    AgentError,
    InvalidArgument,
    NotFound,
    Unauthenticated,
    Unimplemented,
)
from nodeagent.wire import (
    BuildTemplate,
    CreateSandbox,
    EndReason,
    NetworkConfig,
    PauseSandbox,
    PoolSpec,
    ResumeSandbox,
)

logger = logging.getLogger(__name__)

T = TypeVar("T")
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Answer = tuple[int, Any]

MAX_BODY_BYTES = 4 * 1024 * 1024


class BodyTooLarge(InvalidArgument):
    http_status, error_code = 413, "body_too_large"


class MethodNotAllowed(AgentError):
    http_status, error_code = 405, "method_not_allowed"


class AgentAPI:
    """An ASGI application. Raw paths are matched, so an image name may hold encoded slashes."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._token = agent.settings.token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        try:
            self._authenticate(scope)
            status, answer = await self._route(scope, receive)
        except AgentError as error:
            status = error.http_status
            answer = {"code": status, "error_code": error.error_code, "message": error.message}
            if status >= 500:
                logger.warning("%s %s: %s", scope["method"], scope["path"], error)
        except Exception:
            logger.exception("%s %s failed.", scope["method"], scope["path"])
            status = 500
            answer = {
                "code": 500,
                "error_code": "internal_server_error",
                "message": "the node agent failed; its log says why",
            }
        await _respond(send, status, answer)

    def _authenticate(self, scope: Scope) -> None:
        """Before anything else is looked at. Raises: Unauthenticated."""
        given = b""
        for name, value in scope["headers"]:
            if name == b"authorization":
                given = value
        scheme, _, token = given.partition(b" ")
        # Compared in any case, so that a wrong scheme takes as long as a wrong token.
        is_right = hmac.compare_digest(token.strip(), self._token)
        if not is_right or scheme.lower() != b"bearer":
            raise Unauthenticated("the node token is missing or wrong")

    async def _route(self, scope: Scope, receive: Receive) -> Answer:
        method = scope["method"]
        raw_path = scope.get("raw_path") or scope["path"].encode()
        parts = [unquote(part) for part in raw_path.decode("latin-1").strip("/").split("/")]
        match [method, *parts]:
            case ["GET", "v1", "node"]:
                return 200, wire.encode(self._agent.status())
            case ["PUT", "v1", "pools"]:
                self._agent.put_pools(_decoded_list(PoolSpec, await _body(receive)))
                return 204, None
            case ["GET", "v1", "sandboxes"]:
                return 200, wire.encode(self._agent.states())
            case ["POST", "v1", "sandboxes"]:
                spec = _decoded(CreateSandbox, await _body(receive))
                return 201, wire.encode(await self._agent.create(spec))
            case [_, "v1", "sandboxes", sandbox_id, *rest]:
                return await self._route_sandbox(method, sandbox_id, rest, scope, receive)
            case [_, "v1", "builds", *rest]:
                return await self._route_build(method, rest, receive)
            case ["DELETE", "v1", "images", image]:
                await self._agent.delete_image(image)
                return 204, None
            case [_, "v1", "node" | "pools" | "sandboxes" | "images", *_]:
                raise MethodNotAllowed(f"{method} is not allowed here")
        raise NotFound("no such route", error_code="route_not_found")

    async def _route_build(self, method: str, rest: list[str], receive: Receive) -> Answer:
        builder = self._agent.builder
        if builder is None:
            raise Unimplemented("this node builds no templates")
        match [method, *rest]:
            case ["POST"]:
                spec = _decoded(BuildTemplate, await _body(receive))
                return 202, wire.encode(builder.submit(spec))
            case ["GET", build_id]:
                return 200, wire.encode(builder.state(build_id))
            case ["DELETE", build_id]:
                builder.cancel(build_id)
                return 204, None
        raise MethodNotAllowed(f"{method} is not allowed here")

    async def _route_sandbox(
        self, method: str, sandbox_id: str, rest: list[str], scope: Scope, receive: Receive
    ) -> Answer:
        agent = self._agent
        match [method, *rest]:
            case ["GET"]:
                return 200, wire.encode(agent.state(sandbox_id))
            case ["DELETE"]:
                reason = _end_reason(scope)
                return 200, wire.encode(agent.kill(sandbox_id, reason=reason))
            case ["GET", "metrics"]:
                return 200, wire.encode(agent.samples(sandbox_id))
            case ["POST", "deadline"]:
                end_at = _number(await _body(receive), "end_at")
                return 200, wire.encode(agent.set_deadline(sandbox_id, end_at))
            case ["POST", "pause"]:
                pause = _decoded(PauseSandbox, await _body(receive))
                return 200, wire.encode(await agent.pause(sandbox_id, memory=pause.memory))
            case ["POST", "resume"]:
                resume = _decoded(ResumeSandbox, await _body(receive))
                started = await agent.resume(
                    sandbox_id, timeout_seconds=resume.timeout_seconds, memory=resume.memory
                )
                return 200, wire.encode(started)
            case ["PUT", "network"]:
                await agent.put_network(sandbox_id, _decoded(NetworkConfig, await _body(receive)))
                return 204, None
            case ["POST", "snapshots"]:
                image = _text(await _body(receive), "image")
                size_bytes = await agent.snapshot(sandbox_id, image)
                return 200, {"image": image, "size_bytes": size_bytes}
            case [_] | [_, "metrics" | "deadline" | "pause" | "resume" | "network" | "snapshots"]:
                raise MethodNotAllowed(f"{method} is not allowed here")
        raise NotFound("no such route", error_code="route_not_found")


class AgentServer:
    """The agent's door for the control plane."""

    def __init__(self, agent: Agent) -> None:
        self._server = make_server(
            AgentAPI(agent), host=agent.settings.api_host, port=agent.settings.api_port
        )

    async def serve(self) -> None:
        await serve_until_cancelled(self._server)


class _Server(uvicorn.Server):
    """Without uvicorn's signal handlers: the agent's own decide when to stop."""

    async def serve(self, sockets: Any = None) -> None:
        await self._serve(sockets)


def make_server(app: Any, *, host: str, port: int) -> uvicorn.Server:
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        interface="asgi3",
        http="httptools",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=3,
    )
    return _Server(config)


async def serve_until_cancelled(server: uvicorn.Server) -> None:
    """Serve until cancelled, then shut down in order. Raises: OSError if the port is taken."""
    serving = asyncio.create_task(server.serve())
    try:
        await asyncio.shield(serving)
    except asyncio.CancelledError:
        server.should_exit = True
        await serving
        raise
    except SystemExit as error:  # how uvicorn says that it could not bind
        raise OSError("the port could not be bound") from error


async def _body(receive: Receive) -> Any:
    """The JSON of a request's body; {} when it is empty. Raises: InvalidArgument, BodyTooLarge."""
    raw = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise InvalidArgument("the client went away in mid-request")
        raw += message.get("body", b"")
        if len(raw) > MAX_BODY_BYTES:
            raise BodyTooLarge(f"the body is over {MAX_BODY_BYTES} bytes")
        if not message.get("more_body", False):
            break
    if not raw:
        return {}
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"the body is not JSON: {error}") from error


def _decoded(kind: type[T], raw: Any) -> T:
    try:
        return wire.decode(kind, raw)
    except ValueError as error:
        raise InvalidArgument(str(error)) from error


def _decoded_list(kind: type[T], raw: Any) -> list[T]:
    if not isinstance(raw, list):
        raise InvalidArgument("expected a list")
    return [_decoded(kind, item) for item in raw]


def _field(raw: Any, name: str) -> Any:
    if not isinstance(raw, dict) or name not in raw:
        raise InvalidArgument(f"{name}: missing")
    return raw[name]


def _number(raw: Any, name: str) -> float:
    value = _field(raw, name)
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        raise InvalidArgument(f"{name}: expected a number")
    return float(value)


def _text(raw: Any, name: str) -> str:
    value = _field(raw, name)
    if not isinstance(value, str):
        raise InvalidArgument(f"{name}: expected a text")
    return value


def _end_reason(scope: Scope) -> EndReason:
    query = parse_qs(scope["query_string"].decode("latin-1"))
    value = query.get("reason", [EndReason.KILLED.value])[-1]
    try:
        return EndReason(value)
    except ValueError:
        raise InvalidArgument(f"reason: {value!r} is not known") from None


async def _respond(send: Send, status: int, answer: Any) -> None:
    body = b"" if answer is None else json.dumps(answer, separators=(",", ":")).encode()
    headers = [(b"content-length", str(len(body)).encode())]
    if body:
        headers.append((b"content-type", b"application/json"))
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
