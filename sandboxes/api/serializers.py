"""Bodies of the sandboxes API, and our rows as E2B's objects."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from django.conf import settings
from pydantic import BaseModel, Field

from config.drf import Body, to_wire_time
from config.errors import InvalidArgument
from sandboxes.models import Sandbox
from sandboxes.network import NetworkInput
from sandboxes.tokens import envd_access_token, traffic_access_token

CLIENT_ID = "6532622b"
INT32_MAX = 2**31 - 1

Seconds = Annotated[int, Field(ge=0, le=INT32_MAX)]


class AutoResumeInput(Body):
    enabled: bool


class IamInput(Body):
    tokens: dict[str, Any] | None = None


class VolumeMountInput(Body):
    name: str
    path: str


class CreateInput(Body):
    templateID: str
    timeout: Seconds | None = None
    autoPause: bool | None = None
    autoPauseMemory: bool | None = None
    autoResume: AutoResumeInput | None = None
    secure: bool | None = None
    allow_internet_access: bool | None = None
    network: NetworkInput | None = None
    metadata: dict[str, str] | None = None
    envVars: dict[str, str] | None = None
    mcp: dict[str, Any] | None = None
    iam: IamInput | None = None
    volumeMounts: list[VolumeMountInput] | None = None


class ConnectInput(Body):
    timeout: Seconds
    memory: bool | None = None


class ConnectV2Input(Body):
    timeout: Seconds = 300
    memory: bool | None = None


class ResumeInput(Body):
    timeout: Seconds = 15
    autoPause: bool | None = None
    memory: bool | None = None


class PauseInput(Body):
    memory: bool | None = None
    requireHealthyGuest: bool | None = None


class TimeoutInput(Body):
    timeout: Seconds


class RefreshInput(Body):
    duration: Annotated[int, Field(ge=0, le=3600)] = 0


class SnapshotInput(Body):
    name: str | None = None
    memory: bool | None = None


class ForkInput(Body):
    timeout: Seconds = 15
    count: int = 1


# --- Answers, for the schema -----------------------------------------------------------------


class SandboxAnswer(BaseModel):
    templateID: str
    sandboxID: str
    clientID: str
    envdVersion: str
    alias: str | None = None
    envdAccessToken: str | None = None
    trafficAccessToken: str | None = None
    domain: str | None = None


class ErrorAnswer(BaseModel):
    code: int
    message: str
    error_code: str | None = None


class ForkResult(BaseModel):
    """Exactly one of the two."""

    sandbox: SandboxAnswer | None = None
    error: ErrorAnswer | None = None


class ListedSandboxAnswer(BaseModel):
    templateID: str
    alias: str | None = None
    sandboxID: str
    clientID: str
    startedAt: str
    endAt: str
    cpuCount: int
    memoryMB: int
    diskSizeMB: int
    metadata: dict[str, str] | None = None
    state: str
    envdVersion: str
    volumeMounts: list[dict[str, str]]


class LifecycleAnswer(BaseModel):
    autoResume: bool
    onTimeout: str


class SandboxDetailAnswer(ListedSandboxAnswer):
    envdAccessToken: str | None = None
    allowInternetAccess: bool | None = None
    domain: str | None = None
    network: dict[str, Any] | None = None
    lifecycle: LifecycleAnswer
    pauseMode: str | None = None


class MetricAnswer(BaseModel):
    timestamp: str
    timestampUnix: int
    cpuCount: int
    cpuUsedPct: float
    memUsed: int
    memTotal: int
    memCache: int
    diskUsed: int
    diskTotal: int


class MetricsBySandboxAnswer(BaseModel):
    sandboxes: dict[str, MetricAnswer]


class LogLine(BaseModel):
    timestamp: str
    line: str


class LogEntry(BaseModel):
    timestamp: str
    level: str
    message: str
    fields: dict[str, str]


class LogsAnswer(BaseModel):
    logs: list[LogLine]
    logEntries: list[LogEntry]


class LogsV2Answer(BaseModel):
    logs: list[LogEntry]


class SnapshotAnswer(BaseModel):
    snapshotID: str
    names: list[str]


class TeamMetricAnswer(BaseModel):
    timestamp: str
    timestampUnix: int
    concurrentSandboxes: int
    sandboxStartRate: float


class MaxTeamMetricAnswer(BaseModel):
    timestamp: str
    timestampUnix: int
    value: float


# --- Rows as objects -------------------------------------------------------------------------


def sandbox_json(sandbox: Sandbox) -> dict[str, Any]:
    """What create, connect, resume and fork answer. Unset fields are left out, never null."""
    body: dict[str, Any] = {
        "templateID": sandbox.template.public_id,
        "sandboxID": sandbox.public_id,
        "clientID": CLIENT_ID,
        "envdVersion": sandbox.envd_version,
    }
    if sandbox.alias:
        body["alias"] = sandbox.alias
    if (token := envd_access_token(sandbox)) is not None:
        body["envdAccessToken"] = token
    if (token := traffic_access_token(sandbox)) is not None:
        body["trafficAccessToken"] = token
    if settings.SANDBOX_DOMAIN:
        body["domain"] = settings.SANDBOX_DOMAIN
    return body


def listed_json(sandbox: Sandbox, *, now: datetime) -> dict[str, Any]:
    assert sandbox.started_at is not None
    assert sandbox.end_at is not None
    body: dict[str, Any] = {
        "templateID": sandbox.template.public_id,
        "sandboxID": sandbox.public_id,
        "clientID": CLIENT_ID,
        "startedAt": to_wire_time(sandbox.started_at),
        "endAt": to_wire_time(sandbox.end_at),
        "cpuCount": sandbox.cpu_count,
        "memoryMB": sandbox.memory_mb,
        "diskSizeMB": sandbox.disk_size_mb,
        "state": sandbox.shown_state(now),
        "envdVersion": sandbox.envd_version,
        "volumeMounts": [],
    }
    if sandbox.alias:
        body["alias"] = sandbox.alias
    if sandbox.has_metadata:
        body["metadata"] = sandbox.metadata
    return body


def detail_json(sandbox: Sandbox, *, now: datetime) -> dict[str, Any]:
    body = listed_json(sandbox, now=now)
    if (token := envd_access_token(sandbox)) is not None:
        body["envdAccessToken"] = token
    if sandbox.allow_internet_access is not None:
        body["allowInternetAccess"] = sandbox.allow_internet_access
    if settings.SANDBOX_DOMAIN:
        body["domain"] = settings.SANDBOX_DOMAIN
    if sandbox.network:
        body["network"] = sandbox.network
    body["lifecycle"] = {"autoResume": sandbox.auto_resume, "onTimeout": sandbox.on_timeout}
    if sandbox.state == "paused":
        body["pauseMode"] = "full" if sandbox.keeps_memory else "filesystem"
    return body


def check_texts(pairs: dict[str, str] | None, *, what: str, max_bytes: int) -> dict[str, str]:
    """Pairs that databases and processes can hold. Raises: InvalidArgument."""
    size = 0
    for key, value in (pairs or {}).items():
        if "\x00" in key or "\x00" in value:
            raise InvalidArgument(f"validation error: {what} must not hold NUL characters")
        try:
            size += len(key.encode()) + len(value.encode())
        except UnicodeEncodeError:
            raise InvalidArgument(f"validation error: {what} must be valid Unicode") from None
    if size > max_bytes:
        raise InvalidArgument(f"validation error: {what} is larger than {max_bytes} bytes")
    return pairs or {}


def check_env(pairs: dict[str, str] | None) -> dict[str, str]:
    """Raises: InvalidArgument for names no process can have."""
    checked = check_texts(pairs, what="envVars", max_bytes=128 * 1024)
    for name in checked:
        if not name or "=" in name:
            raise InvalidArgument("validation error: envVars has a name that is empty or holds '='")
    return checked
