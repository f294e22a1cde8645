"""The HTTP service, as an ASGI application: E2B's code-interpreter API on port 49999."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from interpreter.contexts import Context, ContextNotFound, Contexts, Run
from interpreter.kernels.base import KernelFailed
from interpreter.outputs import END, KEEPALIVE, to_line
from interpreter.sandbox_env import read_sandbox_env

log = logging.getLogger(__name__)

KEEPALIVE_SECONDS = 5.0
MAX_BODY_BYTES = 64 * 1024 * 1024

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

_CORS = [(b"access-control-allow-origin", b"*")]
_PREFLIGHT = [
    (b"access-control-allow-methods", b"GET, POST, DELETE, OPTIONS"),
    (b"access-control-allow-headers", b"*"),
    (b"access-control-max-age", b"7200"),
]


class Problem(Exception):
    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


class Disconnected(Exception):
    pass


class App:
    def __init__(self) -> None:
        self.contexts = Contexts(read_sandbox_env)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
            return
        if scope["type"] != "http":
            return
        try:
            await self._route(scope, receive, send)
        except Disconnected:
            return
        except ContextNotFound as error:
            await _text(send, 404, str(error))
        except Problem as problem:
            await _text(send, problem.status, problem.text)
        except _Unprocessable as error:
            await _json(send, {"detail": str(error)}, status=422)
        except KernelFailed as error:
            await _text(send, 500, f"Failed to create context: {error}")
        except Exception:
            log.exception("a request failed")
            await _text(send, 500, "Internal error of the code interpreter")

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        """The port opens only once the default contexts answer."""
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                try:
                    await self.contexts.open_defaults()
                except Exception as error:
                    log.exception("cannot start the default contexts")
                    await send({"type": "lifespan.startup.failed", "message": str(error)})
                    return
                await send({"type": "lifespan.startup.complete"})
            else:
                await self.contexts.close()
                await send({"type": "lifespan.shutdown.complete"})
                return

    async def _route(self, scope: Scope, receive: Receive, send: Send) -> None:
        method, parts = scope["method"], scope["path"].strip("/").split("/")
        if method == "OPTIONS":
            await _respond(send, 204, b"", _PREFLIGHT)
            return
        match method, parts:
            case "GET", ["health"]:
                await _json(send, "OK")
            case "POST", ["execute"]:
                await self._execute(scope, receive, send)
            case "GET", ["contexts"]:
                await _json(send, [_shape(context) for context in self.contexts.list()])
            case "POST", ["contexts"]:
                body = await _body(receive)
                context = await self.contexts.create(
                    _optional(body, "language"), _optional(body, "cwd")
                )
                await _json(send, _shape(context))
            case "DELETE", ["contexts", context_id]:
                await self.contexts.remove(context_id)
                await _json(send, None)
            case "POST", ["contexts", context_id, "restart"]:
                try:
                    await self.contexts.get(context_id).restart()
                except KernelFailed as error:
                    raise Problem(500, f"Failed to restart context {context_id}") from error
                await _json(send, None)
            case _, ["health" | "execute" | "contexts", *_]:
                await _json(send, {"detail": "Method Not Allowed"}, status=405)
            case _:
                await _json(send, {"detail": "Not Found"}, status=404)

    async def _execute(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await _body(receive)
        code = body.get("code")
        if not isinstance(code, str):
            raise _Unprocessable("code: a string is required")
        context_id, language = _optional(body, "context_id"), _optional(body, "language")
        if context_id and language:
            raise Problem(400, "Only one of context_id or language can be provided")
        if context_id:
            context = self.contexts.get(context_id)
        else:
            context = await self.contexts.default(language)
        run = context.submit(code, _env_vars(body), _header(scope, b"x-access-token"))
        gone = asyncio.create_task(_until_disconnect(receive))
        try:
            await send(
                {
                    "type": "http.response.start",
                    "status": 200,
                    "headers": [(b"content-type", b"application/x-ndjson"), *_CORS],
                }
            )
            await send({"type": "http.response.body", "body": b"", "more_body": True})
            await _stream(run, gone, send)
        finally:
            gone.cancel()
            await context.abandon(run)


async def _stream(run: Run, gone: asyncio.Task[None], send: Send) -> None:
    while True:
        if run.outputs.empty():
            waiting = asyncio.create_task(run.outputs.get())
            try:
                await asyncio.wait(
                    (waiting, gone),
                    timeout=KEEPALIVE_SECONDS,
                    return_when=asyncio.FIRST_COMPLETED,
                )
            finally:
                output = waiting.result() if waiting.done() else None
                waiting.cancel()
            if gone.done():
                return
            if output is None:
                await send(_chunk(to_line(KEEPALIVE)))
                continue
        else:
            output = run.outputs.get_nowait()
        lines = [to_line(output)]
        # What came in the meantime goes out in one write, with a bound.
        while output is not END and not run.outputs.empty() and len(lines) < 100:
            output = run.outputs.get_nowait()
            lines.append(to_line(output))
        await send(_chunk(b"".join(lines), more=output is not END))
        if output is END:
            return


async def _until_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class _Unprocessable(Exception):
    pass


async def _body(receive: Receive) -> dict[str, Any]:
    content = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Disconnected
        content += message.get("body", b"")
        if len(content) > MAX_BODY_BYTES:
            raise Problem(413, "request too large")
        if not message.get("more_body"):
            break
    try:
        body = json.loads(content or b"{}")
    except ValueError as error:
        raise _Unprocessable(f"the body is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise _Unprocessable("the body is not a JSON object")
    return body


def _optional(body: dict[str, Any], name: str) -> str | None:
    value = body.get(name)
    if value is not None and not isinstance(value, str):
        raise _Unprocessable(f"{name}: a string is expected")
    return value


def _env_vars(body: dict[str, Any]) -> dict[str, str]:
    values = body.get("env_vars")
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(item, str) for item in values.values()):
        raise _Unprocessable("env_vars: an object of strings is expected")
    for name, value in values.items():
        if not name or "=" in name or "\0" in name + value:
            raise _Unprocessable(f"env_vars: {name!r} cannot be a variable")
    return values


def _header(scope: Scope, name: bytes) -> str | None:
    for key, value in scope["headers"]:
        if key == name:
            return str(value.decode("latin-1"))
    return None


def _shape(context: Context) -> dict[str, str]:
    return {"id": context.context_id, "language": context.language, "cwd": context.cwd}


def _chunk(data: bytes, *, more: bool = True) -> dict[str, Any]:
    return {"type": "http.response.body", "body": data, "more_body": more}


async def _json(send: Send, value: Any, *, status: int = 200) -> None:
    headers = [(b"content-type", b"application/json")]
    await _respond(send, status, json.dumps(value).encode(), headers)


async def _text(send: Send, status: int, text: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8")]
    await _respond(send, status, text.encode(), headers)


async def _respond(
    send: Send, status: int, body: bytes, headers: list[tuple[bytes, bytes]]
) -> None:
    length = [] if status == 204 else [(b"content-length", str(len(body)).encode())]
    start = {
        "type": "http.response.start",
        "status": status,
        "headers": [*headers, *length, *_CORS],
    }
    with contextlib.suppress(OSError):
        await send(start)
        await send({"type": "http.response.body", "body": body})
