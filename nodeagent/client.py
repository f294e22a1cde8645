"""The control plane's client for one node's agent API. Blocking, thread-safe."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

import urllib3

from nodeagent import wire
from nodeagent.errors import (
    AgentError,
    AlreadyExists,
    Conflict,
    DeadlineExceeded,
    InvalidArgument,
    NoSpace,
    NotFound,
    PermissionDenied,
    QuotaExceeded,
    Unauthenticated,
    Unavailable,
    Unimplemented,
)

MAX_ANSWER_BYTES = 16 * 1024 * 1024

# 409 and 429 have more than one meaning; error_code tells them apart where it matters.
ERROR_BY_STATUS: dict[int, type[AgentError]] = {
    400: InvalidArgument,
    401: Unauthenticated,
    403: PermissionDenied,
    404: NotFound,
    409: Conflict,
    413: InvalidArgument,
    429: QuotaExceeded,
    501: Unimplemented,
    503: Unavailable,
    504: DeadlineExceeded,
    507: NoSpace,
}


class AgentClient:
    """One per node: keeps its connections open between calls, so keep the client too.

    Every call raises a nodeagent.errors class named by the answer's status. A node that cannot be
    reached, or an answer that breaks the contract, is Unavailable; whether the call took effect is
    then unknown and the same call may be sent again: each call is idempotent.
    """

    def __init__(
        self,
        api_url: str,
        token: str,
        *,
        connect_timeout_seconds: float = 2.0,
        timeout_seconds: float = 30.0,
        max_connections: int = 32,
    ) -> None:
        self.api_url = api_url.rstrip("/")
        self._timeout_seconds = timeout_seconds
        self._connect_timeout_seconds = connect_timeout_seconds
        self._pool = urllib3.PoolManager(
            num_pools=1,
            maxsize=max_connections,
            headers={"Authorization": f"Bearer {token}", "Accept": "application/json"},
            retries=False,
        )

    def close(self) -> None:
        self._pool.clear()

    def node_status(self) -> wire.NodeStatus:
        return self._decoded(wire.NodeStatus, self._call("GET", "/v1/node"))

    def put_pools(self, pools: list[wire.PoolSpec]) -> None:
        """Replace the wanted pools."""
        self._call("PUT", "/v1/pools", wire.encode(pools))

    def list_sandboxes(self) -> list[wire.SandboxState]:
        return self._decoded_list(wire.SandboxState, self._call("GET", "/v1/sandboxes"))

    def get_sandbox(self, sandbox_id: str) -> wire.SandboxState:
        """Raises: NotFound."""
        return self._decoded(wire.SandboxState, self._call("GET", _path(sandbox_id)))

    def create(
        self, spec: wire.CreateSandbox, *, timeout_seconds: float = 120.0
    ) -> wire.SandboxStarted:
        """Start a sandbox; the same id again gives the first answer, an error leaves nothing."""
        answer = self._call(
            "POST", "/v1/sandboxes", wire.encode(spec), timeout_seconds=timeout_seconds
        )
        return self._decoded(wire.SandboxStarted, answer)

    def kill(
        self, sandbox_id: str, *, reason: wire.EndReason = wire.EndReason.KILLED
    ) -> wire.SandboxEnded:
        """When this returns, traffic to the sandbox fails. Raises: NotFound."""
        answer = self._call("DELETE", f"{_path(sandbox_id)}?reason={reason.value}")
        return self._decoded(wire.SandboxEnded, answer)

    def set_deadline(self, sandbox_id: str, *, end_at: float) -> wire.SandboxState:
        """Replace the deadline. Raises: NotFound, Conflict when it is not running."""
        answer = self._call("POST", f"{_path(sandbox_id)}/deadline", {"end_at": end_at})
        return self._decoded(wire.SandboxState, answer)

    def pause(
        self, sandbox_id: str, *, memory: bool = True, timeout_seconds: float = 60.0
    ) -> wire.SandboxPaused:
        """Pausing what is paused gives the first pause's answer. Raises: NotFound, Unavailable."""
        answer = self._call(
            "POST",
            f"{_path(sandbox_id)}/pause",
            wire.encode(wire.PauseSandbox(memory=memory)),
            timeout_seconds=timeout_seconds,
        )
        return self._decoded(wire.SandboxPaused, answer)

    def resume(
        self,
        sandbox_id: str,
        *,
        timeout_seconds: float,
        memory: bool = True,
        call_timeout_seconds: float = 120.0,
    ) -> wire.SandboxStarted:
        """Run for `timeout_seconds` from now; leaves a running one alone. Raises: NotFound."""
        answer = self._call(
            "POST",
            f"{_path(sandbox_id)}/resume",
            wire.encode(wire.ResumeSandbox(timeout_seconds=timeout_seconds, memory=memory)),
            timeout_seconds=call_timeout_seconds,
        )
        return self._decoded(wire.SandboxStarted, answer)

    def put_network(self, sandbox_id: str, network: wire.NetworkConfig) -> None:
        """Replace the rules; in force for new connections when this returns. Raises: NotFound."""
        self._call("PUT", f"{_path(sandbox_id)}/network", wire.encode(network))

    def snapshot(self, sandbox_id: str, *, image: str, timeout_seconds: float = 600.0) -> int:
        """Commit the file system to `image`; the sandbox goes on. Returns its size in bytes."""
        answer = self._call(
            "POST",
            f"{_path(sandbox_id)}/snapshots",
            {"image": image},
            timeout_seconds=timeout_seconds,
        )
        size_bytes = answer.get("size_bytes") if isinstance(answer, dict) else None
        if not isinstance(size_bytes, int):
            raise Unavailable("the node's answer to a snapshot has no size")
        return size_bytes

    def delete_image(self, image: str) -> None:
        """Deleting an absent image is no error. Raises: Conflict while a container uses it."""
        self._call("DELETE", f"/v1/images/{quote(image, safe='')}")

    def start_build(self, spec: wire.BuildTemplate) -> wire.BuildState:
        """Queue a build; the same id again changes nothing. Raises: QuotaExceeded."""
        answer = self._call("POST", "/v1/builds", wire.encode(spec))
        return self._decoded(wire.BuildState, answer)

    def get_build(self, build_id: str) -> wire.BuildState:
        """Raises: NotFound, also for builds of an earlier agent."""
        answer = self._call("GET", f"/v1/builds/{quote(build_id, safe='')}")
        return self._decoded(wire.BuildState, answer)

    def cancel_build(self, build_id: str) -> None:
        self._call("DELETE", f"/v1/builds/{quote(build_id, safe='')}")

    def _call(
        self, method: str, path: str, body: Any = None, *, timeout_seconds: float | None = None
    ) -> Any:
        timeout = urllib3.Timeout(
            connect=self._connect_timeout_seconds, read=timeout_seconds or self._timeout_seconds
        )
        headers = dict(self._pool.headers)
        payload = None
        if body is not None:
            payload = json.dumps(body, separators=(",", ":")).encode()
            headers["Content-Type"] = "application/json"
        try:
            answer = self._pool.request(
                method,
                self.api_url + path,
                body=payload,
                headers=headers,
                timeout=timeout,
                redirect=False,
                preload_content=False,
            )
            try:
                raw = answer.read(MAX_ANSWER_BYTES + 1)
            finally:
                answer.release_conn()
        except urllib3.exceptions.HTTPError as error:
            raise Unavailable(f"node at {self.api_url} does not answer: {error}") from error
        if len(raw) > MAX_ANSWER_BYTES:
            answer.close()
            raise Unavailable(f"node at {self.api_url} sent too much")
        return _parsed(answer.status, raw)

    def _decoded(self, kind: type[wire.T], raw: Any) -> wire.T:
        try:
            return wire.decode(kind, raw)
        except ValueError as error:
            raise Unavailable(
                f"node at {self.api_url} answered out of contract: {error}"
            ) from error

    def _decoded_list(self, kind: type[wire.T], raw: Any) -> list[wire.T]:
        if not isinstance(raw, list):
            raise Unavailable(f"node at {self.api_url} answered out of contract: not a list")
        return [self._decoded(kind, item) for item in raw]


def _path(sandbox_id: str) -> str:
    return f"/v1/sandboxes/{quote(sandbox_id, safe='')}"


def _parsed(status: int, raw: bytes) -> Any:
    """The JSON of a good answer, or the error an error answer names."""
    try:
        body = json.loads(raw) if raw else None
    except ValueError:
        body = None
        if status < 300:
            raise Unavailable("the node's answer is not JSON") from None
    if status < 300:
        return body
    fields = body if isinstance(body, dict) else {}
    message = str(fields.get("message") or f"the node answered {status}")
    error_code = fields.get("error_code")
    kind = ERROR_BY_STATUS.get(status, Unavailable if status >= 500 else AgentError)
    if error_code == AlreadyExists.error_code:
        kind = AlreadyExists
    raise kind(message, error_code=error_code if isinstance(error_code, str) else None)
