"""The node's voice to the control plane: one heartbeat at a time, over a connection kept open."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import urllib3

from nodeagent import wire
from nodeagent.errors import Unavailable
from nodeagent.wire import Heartbeat, HeartbeatReply

MAX_REPLY_BYTES = 8 * 1024 * 1024


class ControlPlane(Protocol):
    async def send(self, heartbeat: Heartbeat) -> HeartbeatReply:
        """Raises: Unavailable when it does not answer as the contract says."""

    def close(self) -> None: ...


class HttpControlPlane:
    """Blocking HTTP in a thread of its own, so that a slow control plane delays nothing else."""

    def __init__(self, url: str, token: str, *, timeout_seconds: float = 10.0) -> None:
        self._url = f"{url}/internal/nodes/heartbeat"
        self._headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        self._timeout = urllib3.Timeout(connect=2.0, read=timeout_seconds)
        self._http = urllib3.PoolManager(num_pools=1, maxsize=1, retries=False)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="heartbeat")

    async def send(self, heartbeat: Heartbeat) -> HeartbeatReply:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._send, heartbeat)

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._http.clear()

    def _send(self, heartbeat: Heartbeat) -> HeartbeatReply:
        body = json.dumps(wire.encode(heartbeat), separators=(",", ":")).encode()
        try:
            answer = self._http.request(
                "POST",
                self._url,
                body=body,
                headers=self._headers,
                timeout=self._timeout,
                redirect=False,
                preload_content=False,
            )
            try:
                raw = answer.read(MAX_REPLY_BYTES + 1)
            finally:
                answer.release_conn()
        except urllib3.exceptions.HTTPError as error:
            raise Unavailable(f"the control plane does not answer: {error}") from error
        if answer.status != 200 or len(raw) > MAX_REPLY_BYTES:
            answer.close()
            raise Unavailable(f"the control plane answered {answer.status}")
        try:
            return wire.decode(HeartbeatReply, json.loads(raw))
        except ValueError as error:
            raise Unavailable(f"the control plane answered out of contract: {error}") from error
