"""Messages of the agent API, between the control plane and one node. Standard library only.

Control plane to agent: HTTP/1.1 + JSON, `Authorization: Bearer <node token>`.

    GET    /v1/node                            -> NodeStatus
    PUT    /v1/pools                           [PoolSpec] -> 204; replaces the wanted pools
    GET    /v1/sandboxes                       -> [SandboxState]
    POST   /v1/sandboxes                       CreateSandbox -> 201 SandboxStarted; repeatable
    GET    /v1/sandboxes/{id}                  -> SandboxState
    GET    /v1/sandboxes/{id}/metrics          -> [MetricSample], the last minutes, oldest first
    DELETE /v1/sandboxes/{id}?reason=R         -> SandboxEnded; 404 when the node does not have it
    POST   /v1/sandboxes/{id}/deadline         {"end_at": float} -> SandboxState
    POST   /v1/sandboxes/{id}/pause            PauseSandbox -> SandboxPaused
    POST   /v1/sandboxes/{id}/resume           ResumeSandbox -> SandboxStarted
    PUT    /v1/sandboxes/{id}/network          NetworkConfig -> 204
    POST   /v1/sandboxes/{id}/snapshots        {"image": str} -> {"image": str, "size_bytes": int}
    DELETE /v1/images/{image}                  -> 204; 409 while a container uses it
    POST   /v1/builds                          BuildTemplate -> 202 BuildState; repeatable
    GET    /v1/builds/{id}                     -> BuildState; 404 when the node does not know it
    DELETE /v1/builds/{id}                     -> 204; cancels, an absent one is no error

Agent to control plane: `POST {control_plane_url}/internal/nodes/heartbeat`, same bearer token,
Heartbeat -> HeartbeatReply; every `heartbeat_seconds` and at once when an event happens.
`POST {control_plane_url}/internal/builds/{id}/progress`, BuildProgress -> 204 or 404 (forget it).
`GET {control_plane_url}/internal/archives/{team_id}/{files_hash}` -> the archive of a COPY step.

Errors both ways: HTTP status and `{"code": int, "error_code": str, "message": str}`.
All instants are Unix seconds as float with microsecond meaning; all durations are seconds.
"""

from __future__ import annotations

import dataclasses
import functools
import typing
from dataclasses import dataclass, field
from enum import StrEnum
from types import NoneType, UnionType
from typing import Any, TypeVar

API_VERSION = 1

T = TypeVar("T")


class OnTimeout(StrEnum):
    KILL = "kill"
    PAUSE = "pause"


class NodeSandboxState(StrEnum):
    """What a node says of one of its sandboxes."""

    STARTING = "starting"
    RUNNING = "running"
    PAUSED = "paused"


class EndReason(StrEnum):
    """Why a sandbox ended. Kept on the row, shown by API errors and pages."""

    KILLED = "killed"  # by its owner, through API or page
    TIMEOUT = "timeout"
    OOM = "oom"
    EXITED = "exited"  # the container stopped by itself or behind our back
    NODE_LOST = "node_lost"
    START_FAILED = "start_failed"
    OUT_OF_CREDIT = "out_of_credit"
    UNKNOWN_TO_CONTROL_PLANE = "unknown_to_control_plane"


class EventKind(StrEnum):
    STARTED = "started"
    PAUSED = "paused"
    RESUMED = "resumed"
    ENDED = "ended"
    DEADLINE = "deadline"
    LOG = "log"


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """Egress and ingress rules of one sandbox, by IP and CIDR. `allow_out` beats `deny_out`."""

    allow_internet_access: bool | None = None
    allow_out: list[str] = field(default_factory=list)
    deny_out: list[str] = field(default_factory=list)
    allow_public_traffic: bool = True
    mask_request_host: str | None = None


@dataclass(frozen=True, kw_only=True)
class PoolSpec:
    """Warm containers wanted of one build and size. `size`: how many to keep ready."""

    template_id: str
    build_id: str
    image: str
    cpu_count: int
    memory_mb: int
    disk_size_mb: int
    size: int
    start_cmd: str = ""
    ready_cmd: str = ""
    default_user: str = "user"
    default_workdir: str = ""
    template_env: dict[str, str] = field(default_factory=dict)  # of the start command
    start_user: str = ""  # of the start command, where it is not the default user
    start_workdir: str | None = None


@dataclass(frozen=True, kw_only=True)
class CreateSandbox:
    """Everything a node needs to start a sandbox. The deadline runs from the moment it is ready."""

    sandbox_id: str
    team_id: str
    template_id: str
    build_id: str
    image: str
    cpu_count: int
    memory_mb: int
    disk_size_mb: int
    timeout_seconds: float
    max_length_seconds: float = 86400
    on_timeout: OnTimeout = OnTimeout.KILL
    auto_pause_memory: bool = True
    auto_resume: bool = False
    env_vars: dict[str, str] = field(default_factory=dict)
    envd_access_token: str | None = None
    traffic_access_token: str | None = None
    network: NetworkConfig = field(default_factory=NetworkConfig)
    start_cmd: str = ""
    ready_cmd: str = ""
    default_user: str = "user"
    default_workdir: str = ""
    template_env: dict[str, str] = field(default_factory=dict)  # of the start command
    start_user: str = ""  # of the start command, where it is not the default user
    start_workdir: str | None = None


@dataclass(frozen=True, kw_only=True)
class SandboxStarted:
    sandbox_id: str
    started_at: float
    end_at: float
    warm: bool  # claimed from the pool (True) or cold-started


@dataclass(frozen=True, kw_only=True)
class SandboxEnded:
    sandbox_id: str
    ended_at: float
    reason: EndReason


@dataclass(frozen=True, kw_only=True)
class PauseSandbox:
    memory: bool = True


@dataclass(frozen=True, kw_only=True)
class SandboxPaused:
    sandbox_id: str
    paused_at: float
    memory: bool


@dataclass(frozen=True, kw_only=True)
class ResumeSandbox:
    timeout_seconds: float
    memory: bool = True


@dataclass(frozen=True, kw_only=True)
class SandboxState:
    sandbox_id: str
    state: NodeSandboxState
    started_at: float
    end_at: float
    paused_at: float | None = None
    memory: bool = True  # of a pause: processes are kept
    is_moving: bool = False  # a pause, resume or snapshot is under way


@dataclass(frozen=True, kw_only=True)
class NodeEvent:
    """One thing that happened. `seq` grows by one per node; applying one twice changes nothing."""

    seq: int
    kind: EventKind
    sandbox_id: str
    at: float
    data: dict[str, Any] = field(
        default_factory=dict
    )  # ENDED: {"reason": EndReason, "detail": str}


@dataclass(frozen=True, kw_only=True)
class MetricSample:
    """Usage of one sandbox now. cpu_used_pct: 0..100 over all its CPUs; the rest bytes."""

    sandbox_id: str
    at: float
    cpu_count: int
    cpu_used_pct: float
    mem_used: int
    mem_total: int
    mem_cache: int
    disk_used: int
    disk_total: int


@dataclass(frozen=True, kw_only=True)
class NodeStatus:
    node_id: str
    version: str
    api_version: int
    api_url: str  # where the control plane reaches the agent API
    gateway_url: str  # where the data plane of this node answers
    started_at: float  # of this agent process: changes tell a restart
    cpu_count: int
    memory_mb: int
    memory_available_mb: int
    disk_total_mb: int
    disk_available_mb: int
    max_sandboxes: int
    draining: bool = False
    docker_version: str = ""
    storage_driver: str = ""
    cgroup_version: int = 0
    warm: dict[str, int] = field(default_factory=dict)  # build_id -> ready warm containers


@dataclass(frozen=True, kw_only=True)
class Heartbeat:
    """`sandboxes` is the node's whole list: what is missing from it is gone."""

    node: NodeStatus
    sandboxes: list[SandboxState] = field(default_factory=list)
    events: list[NodeEvent] = field(default_factory=list)
    metrics: list[MetricSample] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class HeartbeatReply:
    """`acked_seq`: events up to it may be forgotten. `kill`: sandboxes unknown or ended there."""

    acked_seq: int
    pools: list[PoolSpec] = field(default_factory=list)
    kill: list[str] = field(default_factory=list)
    deadlines: dict[str, float] = field(
        default_factory=dict
    )  # sandbox_id -> end_at, where the node's differs


class BuildPhase(StrEnum):
    """Where a build is on its node. READY and ERROR are final."""

    QUEUED = "queued"
    RUNNING = "running"
    READY = "ready"
    ERROR = "error"


@dataclass(frozen=True, kw_only=True)
class BuildContext:
    """What a build's steps carry along. `workdir` empty: the user's home."""

    user: str = ""
    workdir: str = ""
    env: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class BuildStep:
    """`key` names the layer after this step; one of the same key may be reused if `use_cache`."""

    type: str  # upper case, as E2B names them: RUN, COPY, ADD, ENV, ARG, WORKDIR, USER
    key: str
    args: list[str] = field(default_factory=list)
    files_hash: str = ""
    use_cache: bool = True


@dataclass(frozen=True, kw_only=True)
class BuildTemplate:
    """A template's recipe for one node. Layers are cached per team.

    base: an image reference as the user wrote it or, `base_is_template`, the parent's image.
    start_context: of an inherited start command; None: the context after the last step.
    """

    build_id: str
    template_id: str
    team_id: str
    image: str  # what the result is to be called
    base: str
    base_name: str  # for the log
    base_key: str
    base_is_template: bool = False
    base_context: BuildContext = field(default_factory=BuildContext)
    use_base_cache: bool = True
    registry_username: str = ""
    registry_password: str = ""
    steps: list[BuildStep] = field(default_factory=list)
    start_cmd: str = ""
    ready_cmd: str = ""
    start_context: BuildContext | None = None
    cpu_count: int = 2
    memory_mb: int = 1024
    disk_size_mb: int = 10240
    timeout_seconds: float = 3600


@dataclass(frozen=True, kw_only=True)
class BuildState:
    build_id: str
    phase: BuildPhase


@dataclass(frozen=True, kw_only=True)
class BuildLogLine:
    """`level`: debug, info, warn or error. `step`: "base", a step's number, "finalize" or ""."""

    at: float
    level: str
    message: str
    step: str = ""


@dataclass(frozen=True, kw_only=True)
class BuildResult:
    image_id: str
    size_bytes: int  # what it adds to its base
    context: BuildContext  # after the last step


@dataclass(frozen=True, kw_only=True)
class BuildProgress:
    """The lines from number `first` on, counted from 0; the same lines again change nothing.

    In READY the result is there, in ERROR a reason; both come with or after the last line.
    """

    node_id: str
    phase: BuildPhase
    first: int = 0
    lines: list[BuildLogLine] = field(default_factory=list)
    result: BuildResult | None = None
    reason: str = ""
    reason_step: str = ""


def encode(message: Any) -> Any:
    """A message (or a list of them) as plain JSON types."""
    if isinstance(message, list):
        return [encode(item) for item in message]
    return dataclasses.asdict(message)


def decode(kind: type[T], raw: Any) -> T:
    """A message of `kind` from plain JSON types; a newer peer's unknown fields are ignored.

    Raises: ValueError when a field is missing or of the wrong type.
    """
    return typing.cast(T, _decode(kind, raw, kind.__name__))


def _decode(kind: Any, raw: Any, where: str) -> Any:
    origin = typing.get_origin(kind)
    if kind is Any:
        return raw
    if origin in (UnionType, typing.Union):
        options = typing.get_args(kind)
        if raw is None and NoneType in options:
            return None
        return _decode(next(option for option in options if option is not NoneType), raw, where)
    if origin is list:
        (item,) = typing.get_args(kind)
        return [_decode(item, value, where) for value in _expect(list, raw, where)]
    if origin is dict:
        _, value_kind = typing.get_args(kind)
        pairs = _expect(dict, raw, where).items()
        return {str(key): _decode(value_kind, value, where) for key, value in pairs}
    if dataclasses.is_dataclass(kind):
        return _decode_dataclass(kind, _expect(dict, raw, where), where)
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return kind(_expect(str, raw, where))  # ValueError names the bad value
    if kind is float:
        if isinstance(raw, bool) or not isinstance(raw, int | float):
            raise ValueError(f"{where}: expected a number, got {type(raw).__name__}")
        return float(raw)
    return _expect(kind, raw, where)


def _decode_dataclass(kind: Any, raw: dict[str, Any], where: str) -> Any:
    hints = _hints(kind)
    values = {}
    for item in dataclasses.fields(kind):
        if item.name in raw:
            values[item.name] = _decode(hints[item.name], raw[item.name], f"{where}.{item.name}")
        elif item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING:
            raise ValueError(f"{where}.{item.name}: missing")
    return kind(**values)


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _expect(kind: type, raw: Any, where: str) -> Any:
    if not isinstance(raw, kind) or (isinstance(raw, bool) and kind is not bool):
        raise ValueError(f"{where}: expected {kind.__name__}, got {type(raw).__name__}")
    return raw
