"""The agent's error tree. Each edge (agent API, Connect, plain HTTP) maps it to its codes."""

from __future__ import annotations


class AgentError(Exception):
    """Base. `connect_code`: for Connect; `http_status`: for the agent API and plain HTTP."""

    connect_code = "internal"
    http_status = 500
    error_code = "internal_server_error"

    def __init__(self, message: str, *, error_code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        if error_code is not None:
            self.error_code = error_code


class InvalidArgument(AgentError):
    connect_code, http_status, error_code = "invalid_argument", 400, "invalid_argument"


class Unauthenticated(AgentError):
    connect_code, http_status, error_code = "unauthenticated", 401, "unauthenticated"


class PermissionDenied(AgentError):
    connect_code, http_status, error_code = "permission_denied", 403, "permission_denied"


class NotFound(AgentError):
    connect_code, http_status, error_code = "not_found", 404, "not_found"


class AlreadyExists(AgentError):
    connect_code, http_status, error_code = "already_exists", 409, "already_exists"


class Conflict(AgentError):
    connect_code, http_status, error_code = "failed_precondition", 409, "conflict"


class QuotaExceeded(AgentError):
    connect_code, http_status, error_code = "resource_exhausted", 429, "quota_exceeded"


class Unimplemented(AgentError):
    connect_code, http_status, error_code = "unimplemented", 501, "unimplemented"


class Unavailable(AgentError):
    connect_code, http_status, error_code = "unavailable", 503, "unavailable"


class DeadlineExceeded(AgentError):
    connect_code, http_status, error_code = "deadline_exceeded", 504, "deadline_exceeded"


class Unknown(AgentError):
    connect_code, http_status, error_code = "unknown", 500, "unknown"


class NoSpace(AgentError):
    """The sandbox's disk is full."""

    connect_code, http_status, error_code = "resource_exhausted", 507, "no_space"


class GuestFault(AgentError):
    """The guest broke the link's rules, closed early or was silent. Never trust what it sent."""

    connect_code, http_status, error_code = "unavailable", 502, "guest_fault"
