"""Plain HTTP file transfer: /files and /files/compose."""

from __future__ import annotations

import json
import time
from typing import Any

from nodeagent.envd import signing
from nodeagent.envd.download import Download
from nodeagent.envd.upload import Upload
from nodeagent.errors import AgentError, InvalidArgument, NoSpace, NotFound, Unauthenticated
from nodeagent.http import JSON_HEADERS, Request
from nodeagent.sandbox import LiveSandbox

MAX_COMPOSE_BYTES = 1024 * 1024


async def get_file(sandbox: LiveSandbox, request: Request) -> None:
    _check_access(sandbox, request, "read")
    user = _user(sandbox, request.query.get("username"))
    try:
        await Download(request, sandbox, user).serve()
    except Unauthenticated as error:
        raise _unknown_user(user) from error


async def post_files(sandbox: LiveSandbox, request: Request) -> None:
    _check_access(sandbox, request, "write")
    user = _user(sandbox, request.query.get("username"))
    try:
        stored = await Upload(request, sandbox, user).store()
    except Unauthenticated as error:
        raise _unknown_user(user) from error
    body = json.dumps(stored, ensure_ascii=False, separators=(",", ":"))
    await request.answer(200, [(b"content-type", b"application/json")], body.encode())


async def compose(sandbox: LiveSandbox, request: Request) -> None:
    sources, destination, username = _compose_arguments(await request.body(MAX_COMPOSE_BYTES))
    user = _user(sandbox, username)
    try:
        answer = await sandbox.link.call(
            "compose",
            user=user,
            sources=sources,
            destination=destination,
            default_workdir=sandbox.spec.default_workdir,
            timeout_seconds=600.0,
        )
    except Unauthenticated as error:
        raise _unknown_user(user) from error
    entry = answer["entry"]
    value = {"path": entry["path"], "name": entry["name"], "type": "file"}
    body = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    await request.answer(200, JSON_HEADERS, body)


def _compose_arguments(raw: bytes) -> tuple[list[str], str, str | None]:
    """Raises: InvalidArgument."""
    try:
        value: Any = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"invalid request body: {error}") from error
    if not isinstance(value, dict):
        raise InvalidArgument("invalid request body: expected an object")
    sources, destination = value.get("source_paths"), value.get("destination")
    username = value.get("username")
    if sources is not None and not (
        isinstance(sources, list) and all(isinstance(source, str) for source in sources)
    ):
        raise InvalidArgument("invalid request body: source_paths must be a list of strings")
    if not isinstance(destination, str | None) or not isinstance(username, str | None):
        raise InvalidArgument("invalid request body: destination and username must be strings")
    if not sources:
        raise InvalidArgument("source_paths must not be empty")
    if not destination:
        raise InvalidArgument("destination is required")
    return sources, destination, username


def _check_access(sandbox: LiveSandbox, request: Request, operation: str) -> None:
    signing.check_access(
        request.query,
        header=request.header(b"x-access-token"),
        operation=operation,
        token=sandbox.spec.envd_access_token,
        now=time.time(),
    )


def _user(sandbox: LiveSandbox, asked: str | None) -> str:
    user = asked or sandbox.spec.default_user
    if not user:
        raise InvalidArgument("username not provided")
    return user


def _unknown_user(user: str) -> Unauthenticated:
    return Unauthenticated(f"error looking up user '{user}': user: unknown user {user}")


def status_of(error: AgentError) -> int:
    """The HTTP status of plain file calls.

    What is not the caller's doing is 500: clients read 502 as a dead sandbox.
    """
    if isinstance(error, InvalidArgument):
        return 400
    if isinstance(error, NotFound | NoSpace | Unauthenticated):
        return error.http_status
    return error.http_status if error.http_status in (406, 413) else 500
