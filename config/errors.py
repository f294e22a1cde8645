"""The control plane's error tree. One place, `config.drf`, turns these into HTTP answers."""

from __future__ import annotations


class AppError(Exception):
    """Base of every anticipated failure. `message` is for people, `error_code` for programs."""

    http_status = 500
    error_code: str | None = None

    def __init__(
        self,
        message: str,
        *,
        error_code: str | None = None,
        http_status: int | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.headers = headers or {}
        if error_code is not None:
            self.error_code = error_code
        if http_status is not None:
            self.http_status = http_status

    def body(self) -> dict[str, object]:
        """E2B's error body: `code` equals the HTTP status; `error_code` only where there is one."""
        body: dict[str, object] = {"code": self.http_status, "message": self.message}
        if self.error_code is not None:
            body["error_code"] = self.error_code
        return body


class InvalidArgument(AppError):
    """The caller can fix the request."""

    http_status = 400


class Unauthenticated(AppError):
    http_status = 401


class PermissionDenied(AppError):
    http_status = 403


class NotFound(AppError):
    """Absent, or not yours: the two look alike."""

    http_status = 404


class Conflict(AppError):
    """The state moved, or forbids it."""

    http_status = 409


class PayloadTooLarge(AppError):
    http_status = 413


class QuotaExceeded(AppError):
    """A plan, credit or rate limit."""

    http_status = 429


class Unimplemented(AppError):
    """A part of the API that this server does not offer."""

    http_status = 501


class Unavailable(AppError):
    """A node or service is not answering. Nothing changed; safe to retry."""

    http_status = 503
