"""Python client of Sandlot, a self-hosted cloud for sandboxes that run AI-generated code."""

from sandlot._async.commands import AsyncCommand
from sandlot._async.sandbox import AsyncSandbox
from sandlot._errors import (
    CommandFailed,
    CommandTimeout,
    Conflict,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    QuotaExceeded,
    RequestTimeout,
    SandboxGone,
    SandlotError,
    Unauthenticated,
    Unavailable,
)
from sandlot._models import (
    CommandResult,
    FileEntry,
    FileType,
    ProcessInfo,
    SandboxInfo,
    SandboxState,
)
from sandlot._sync.commands import Command
from sandlot._sync.sandbox import Sandbox

__version__ = "0.1.0"

__all__ = [
    "AsyncCommand",
    "AsyncSandbox",
    "Command",
    "CommandFailed",
    "CommandResult",
    "CommandTimeout",
    "Conflict",
    "FileEntry",
    "FileType",
    "InvalidArgument",
    "NotFound",
    "PermissionDenied",
    "ProcessInfo",
    "QuotaExceeded",
    "RequestTimeout",
    "Sandbox",
    "SandboxGone",
    "SandboxInfo",
    "SandboxState",
    "SandlotError",
    "Unauthenticated",
    "Unavailable",
]
