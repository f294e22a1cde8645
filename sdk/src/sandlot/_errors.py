"""Named failures. `error_for_status` is the one table from HTTP and Connect codes to them."""

from __future__ import annotations


class SandlotError(Exception):
    """Base of every error this package raises.

    `status`: the HTTP status, when there was an answer. `error_code`: for programs, may be None.
    `request_id`: what to quote to whoever runs the server.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        error_code: str | None = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.error_code = error_code
        self.request_id = request_id


class InvalidArgument(SandlotError):
    """The request can be fixed by the caller."""


class Unauthenticated(SandlotError):
    """The API key or the sandbox token is missing or wrong."""


class PermissionDenied(SandlotError):
    """The credentials do not allow this."""


class NotFound(SandlotError):
    """Absent, or not yours."""


class Conflict(SandlotError):
    """The state has moved, or forbids it."""


class QuotaExceeded(SandlotError):
    """Plan, credit, rate limit or disk is used up."""


class Unavailable(SandlotError):
    """The server or a node is not answering. Safe to try again."""


class SandboxGone(Unavailable):
    """The sandbox was killed, reached its end of life, or is paused."""


class RequestTimeout(SandlotError):
    """No answer in time; whether it took effect is unknown."""


class CommandTimeout(RequestTimeout):
    """The command ran longer than its `timeout_seconds` and was killed."""


class CommandFailed(SandlotError):
    """The command exited non-zero, or a signal ended it (`exit_code` -1)."""

    def __init__(self, *, exit_code: int, stdout: str, stderr: str, status: str) -> None:
        super().__init__(f"command ended with {status}" + (f": {stderr.strip()}" if stderr else ""))
        self.exit_code = exit_code
        self.stdout = stdout
        self.stderr = stderr


_BY_STATUS: dict[int, type[SandlotError]] = {
    400: InvalidArgument,
    401: Unauthenticated,
    403: PermissionDenied,
    404: NotFound,
    409: Conflict,
    413: InvalidArgument,
    422: InvalidArgument,
    429: QuotaExceeded,
    502: SandboxGone,
    503: Unavailable,
    504: RequestTimeout,
    507: QuotaExceeded,
}

_BY_CONNECT_CODE: dict[str, type[SandlotError]] = {
    "invalid_argument": InvalidArgument,
    "out_of_range": InvalidArgument,
    "unauthenticated": Unauthenticated,
    "permission_denied": PermissionDenied,
    "not_found": NotFound,
    "already_exists": Conflict,
    "failed_precondition": Conflict,
    "aborted": Conflict,
    "resource_exhausted": QuotaExceeded,
    "unavailable": Unavailable,
    "deadline_exceeded": CommandTimeout,
    "canceled": RequestTimeout,
}


def error_for_status(
    status: int, message: str, *, error_code: str | None = None, request_id: str | None = None
) -> SandlotError:
    kind = _BY_STATUS.get(status, SandlotError)
    return kind(message, status=status, error_code=error_code, request_id=request_id)


def error_for_connect_code(
    code: str, message: str, *, status: int | None = None, request_id: str | None = None
) -> SandlotError:
    kind = _BY_CONNECT_CODE.get(code, SandlotError)
    return kind(message, status=status, error_code=code, request_id=request_id)
