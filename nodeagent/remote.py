"""What the gateway forwards to other servers: the control plane, and gateways of other nodes."""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import Hashable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol
from urllib.parse import quote, urlsplit

import urllib3

from nodeagent.errors import Unavailable
from nodeagent.http import Headers, Request
from nodeagent.proxy import FORWARDED_HEADER, request_head
from nodeagent.upstream import Upstream

DIAL_SECONDS = 5.0
FOUND_SECONDS = 5.0  # how long an answer is believed
ABSENT_SECONDS = 1.0
MAX_REMEMBERED = 10_000
LOOKUP_THREADS = 4


class RemoteServer:
    """An HTTP server by its URL, which has no path."""

    is_there = True

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._host = parts.hostname or ""
        self._is_tls = parts.scheme == "https"
        self._port = parts.port or (443 if self._is_tls else 80)

    @property
    def key(self) -> Hashable:
        return (type(self), self._host, self._port, self._is_tls)

    async def dial(self) -> Upstream:
        loop = asyncio.get_running_loop()
        context = await asyncio.to_thread(ssl.create_default_context) if self._is_tls else None
        try:
            async with asyncio.timeout(DIAL_SECONDS):
                _, upstream = await loop.create_connection(
                    Upstream, self._host, self._port, ssl=context
                )
        except (OSError, TimeoutError) as error:
            raise Unavailable(f"{self._host}:{self._port} does not answer: {error}") from error
        return upstream

    def head(self, request: Request, *, upgrade: bool = False) -> bytes:
        return request_head(request, self._added(request), upgrade=upgrade)

    def _added(self, request: Request) -> Headers:
        return [(b"host", (request.header(b"host") or "").encode("latin-1"))]


class ControlPlane(RemoteServer):
    """It learns whom we speak for: sign-in limits and the audit log need the client's address."""

    def _added(self, request: Request) -> Headers:
        client = request.scope.get("client")
        return [
            *super()._added(request),
            (b"x-forwarded-for", (client[0] if client else "").encode()),
            (b"x-forwarded-proto", request.scope.get("scheme", "http").encode()),
        ]


class PeerGateway(RemoteServer):
    def _added(self, request: Request) -> Headers:
        return [*super()._added(request), (FORWARDED_HEADER, b"1")]


class Peers(Protocol):
    """Where the sandboxes of other nodes are."""

    async def gateway_of(self, sandbox_id: str) -> str | None:
        """The URL of the gateway that has the sandbox; None when no other node has it."""

    def close(self) -> None: ...


class HttpPeers:
    """Asks the control plane, and believes its answer for a few seconds.

    While it does not answer, a sandbox counts as absent.
    """

    def __init__(
        self, control_plane_url: str, *, node_id: str, token: str, timeout_seconds: float = 2.0
    ) -> None:
        self._url = f"{control_plane_url}/internal/sandboxes/"
        self._node_id = node_id
        self._headers = {"Authorization": f"Bearer {token}", "Sandlot-Node": node_id}
        self._timeout = urllib3.Timeout(connect=timeout_seconds, read=timeout_seconds)
        self._http = urllib3.PoolManager(num_pools=1, maxsize=LOOKUP_THREADS, retries=False)
        self._threads = ThreadPoolExecutor(LOOKUP_THREADS, thread_name_prefix="peers")
        self._known: dict[str, tuple[float, str | None]] = {}  # good until, gateway
        self._asking: dict[str, asyncio.Future[str | None]] = {}

    async def gateway_of(self, sandbox_id: str) -> str | None:
        until, gateway = self._known.get(sandbox_id, (0.0, None))
        if time.monotonic() < until:
            return gateway
        asking = self._asking.get(sandbox_id)
        if asking is None:
            asking = asyncio.get_running_loop().run_in_executor(
                self._threads, self._ask, sandbox_id
            )
            self._asking[sandbox_id] = asking
            asking.add_done_callback(lambda done: self._remember(sandbox_id, done))
        return await asyncio.shield(asking)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._http.clear()

    def _remember(self, sandbox_id: str, done: asyncio.Future[str | None]) -> None:
        del self._asking[sandbox_id]
        if done.cancelled() or done.exception() is not None:
            return
        gateway = done.result()
        if len(self._known) >= MAX_REMEMBERED:
            self._known.clear()
        until = time.monotonic() + (ABSENT_SECONDS if gateway is None else FOUND_SECONDS)
        self._known[sandbox_id] = (until, gateway)

    def _ask(self, sandbox_id: str) -> str | None:
        try:
            answer = self._http.request(
                "GET",
                f"{self._url}{quote(sandbox_id, safe='')}/node",
                headers=self._headers,
                timeout=self._timeout,
                redirect=False,
            )
            if answer.status != 200:
                return None
            place = json.loads(answer.data)
            node_id, gateway = str(place["nodeID"]), str(place["gatewayURL"])
        except (urllib3.exceptions.HTTPError, ValueError, KeyError, TypeError):
            return None
        return gateway if gateway and node_id != self._node_id else None
