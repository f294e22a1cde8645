"""The one error an operation of the guest ends with; `code` is a Connect code or one of the few
listed in link.py.
"""

from __future__ import annotations

import errno
import os

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


class Failure(Exception):
    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


def reason(error: OSError) -> str:
    """The kernel's words as Go prints them, which clients of envd know."""
    return os.strerror(error.errno or 0).lower()


def failure_of(error: BaseException) -> Failure:
    """Name what went wrong when the operation itself had no better words."""
    if isinstance(error, Failure):
        return error
    if isinstance(error, OSError):
        if error.errno in NO_SPACE:
            return Failure("no_space", "not enough disk space available")
        if error.errno in (errno.EAGAIN, errno.ENOMEM):
            return Failure("unavailable", f"the sandbox has no room for it: {reason(error)}")
        return Failure("internal", reason(error))
    if isinstance(error, (ValueError, KeyError, TypeError)):  # NUL in a path, lone surrogates
        return Failure("invalid_argument", str(error))
    return Failure("internal", f"{type(error).__name__}: {error}")
