"""A build's log and end, sent to the control plane as they come and until it has them."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import urllib3

from nodeagent import wire
from nodeagent.errors import AgentError, NotFound, Unavailable
from nodeagent.wire import BuildLogLine, BuildPhase, BuildProgress, BuildResult

logger = logging.getLogger(__name__)

COALESCE_SECONDS = 0.1
ALIVE_SECONDS = 5.0
LINES_PER_REPORT = 500
MAX_LINES = 20_000
MAX_LINE_CHARS = 8_000
MAX_ARCHIVE_BYTES = 16 * 1024**3

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


class BuildOffice(Protocol):
    """The control plane, as builds need it."""

    async def report(self, build_id: str, progress: BuildProgress) -> None:
        """Raises: NotFound when the build is nobody's any more; Unavailable."""

    async def fetch_archive(self, team_id: str, files_hash: str, target: Path) -> None:
        """Raises: NotFound, Unavailable."""


class HttpBuildOffice:
    """Blocking HTTP in threads of its own."""

    def __init__(self, url: str, node_id: str, token: str) -> None:
        self._url = f"{url}/internal"
        self._headers = {"Authorization": f"Bearer {token}", "X-Node-ID": node_id}
        self._http = urllib3.PoolManager(num_pools=1, maxsize=8, retries=False)
        self._threads = ThreadPoolExecutor(max_workers=8, thread_name_prefix="builds")

    async def report(self, build_id: str, progress: BuildProgress) -> None:
        await self._call(self._report, build_id, progress)

    async def fetch_archive(self, team_id: str, files_hash: str, target: Path) -> None:
        await self._call(self._fetch, team_id, files_hash, target)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._http.clear()

    async def _call(self, function: Callable[..., None], *args: Any) -> None:
        await asyncio.get_running_loop().run_in_executor(self._threads, function, *args)

    def _report(self, build_id: str, progress: BuildProgress) -> None:
        body = json.dumps(wire.encode(progress), separators=(",", ":")).encode()
        answer = self._request("POST", f"/builds/{build_id}/progress", body=body, seconds=10.0)
        answer.read()
        answer.release_conn()

    def _fetch(self, team_id: str, files_hash: str, target: Path) -> None:
        answer = self._request("GET", f"/archives/{team_id}/{files_hash}", body=None, seconds=60.0)
        size = 0
        try:
            with target.open("wb") as file:
                while chunk := answer.read(1024 * 1024):
                    size += len(chunk)
                    if size > MAX_ARCHIVE_BYTES:
                        raise Unavailable("the archive is larger than archives can be")
                    file.write(chunk)
        except urllib3.exceptions.HTTPError as error:
            raise Unavailable(f"the archive did not arrive: {error}") from error
        finally:
            answer.close()

    def _request(self, method: str, path: str, *, body: bytes | None, seconds: float) -> Any:
        headers = dict(self._headers)
        if body is not None:
            headers["Content-Type"] = "application/json"
        try:
            answer = self._http.request(
                method,
                self._url + path,
                body=body,
                headers=headers,
                timeout=urllib3.Timeout(connect=2.0, read=seconds),
                redirect=False,
                preload_content=False,
            )
        except urllib3.exceptions.HTTPError as error:
            raise Unavailable(f"the control plane does not answer: {error}") from error
        if answer.status >= 300:
            answer.close()
            kind: type[AgentError] = NotFound if answer.status == 404 else Unavailable
            raise kind(f"the control plane answered {answer.status}")
        return answer


class BuildLog:
    """Lines of one build, and its end. Numbered from 0, append-only, bounded."""

    def __init__(self) -> None:
        self.phase = BuildPhase.QUEUED
        self.result: BuildResult | None = None
        self.reason, self.reason_step = "", ""
        self.changed = asyncio.Event()
        self._lines: list[BuildLogLine] = []

    def add(self, message: str, *, level: str = "info", step: str = "") -> None:
        """One line; beyond the bound the first lost one says so, and failures still get in."""
        if len(self._lines) >= MAX_LINES and level != "error":
            if len(self._lines) > MAX_LINES:
                return
            message, level = "The log is too long; what follows is left out.", "warn"
        text = _CONTROL.sub("", message)[:MAX_LINE_CHARS]
        text = text.encode("utf-8", "replace").decode()
        self._lines.append(BuildLogLine(at=time.time(), level=level, message=text, step=step))
        self.changed.set()

    def move(self, phase: BuildPhase) -> None:
        self.phase = phase
        self.changed.set()

    @property
    def is_final(self) -> bool:
        return self.phase in (BuildPhase.READY, BuildPhase.ERROR)

    def has_more(self, first: int) -> bool:
        return first < len(self._lines)

    def progress(self, node_id: str, first: int) -> tuple[BuildProgress, int]:
        """What follows line `first`, and the number of the line after it. The end comes last."""
        lines = self._lines[first : first + LINES_PER_REPORT]
        following = first + len(lines)
        is_last = following >= len(self._lines)
        phase = self.phase
        if self.is_final and not is_last:
            phase = BuildPhase.RUNNING
        is_end = self.is_final and is_last
        return (
            BuildProgress(
                node_id=node_id,
                phase=phase,
                first=first,
                lines=lines,
                result=self.result if is_end else None,
                reason=self.reason if is_end else "",
                reason_step=self.reason_step if is_end else "",
            ),
            following,
        )


async def report_until_known(
    log: BuildLog, *, build_id: str, node_id: str, office: BuildOffice
) -> bool:
    """Send everything, the end too; False when the control plane has forgotten the build."""
    sent = 0
    retry_seconds = 0.2
    while True:
        log.changed.clear()
        progress, following = log.progress(node_id, sent)
        is_end = progress.phase in (BuildPhase.READY, BuildPhase.ERROR)
        try:
            await office.report(build_id, progress)
        except NotFound:
            return False
        except Unavailable as error:
            logger.warning("A build's progress could not be told: %s", error)
            await asyncio.sleep(retry_seconds)
            retry_seconds = min(10.0, 2 * retry_seconds)
            continue
        sent, retry_seconds = following, 0.2
        if is_end:
            return True
        if log.has_more(sent):
            continue
        try:
            async with asyncio.timeout(ALIVE_SECONDS):
                await log.changed.wait()
            await asyncio.sleep(COALESCE_SECONDS)
        except TimeoutError:
            continue  # an empty report says that the build lives
