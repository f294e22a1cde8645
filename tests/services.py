"""Which services answer, asked once; those in `REQUIRE_SERVICES=docker,…` may not be missing."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from collections.abc import Callable


def required() -> set[str]:
    return {name for name in os.environ.get("REQUIRE_SERVICES", "").split(",") if name}


@functools.cache
def why_missing(name: str) -> str:
    """Why the service cannot be used, or nothing when it answers."""
    return CHECKS[name]()


def _docker() -> str:
    done = subprocess.run(
        ["docker", "version", "--format", "{{.Server.Version}}"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    return "" if done.returncode == 0 else "no engine answers"


def _postgres() -> str:
    url = os.environ.get("DATABASE_URL", "")
    return (
        "" if url.startswith("postgres") else "DATABASE_URL names no PostgreSQL (make test sets it)"
    )


def _redis() -> str:
    return "" if os.environ.get("REDIS_URL") else "REDIS_URL is not set (make test sets it)"


def _chromium() -> str:
    return "" if shutil.which("chromium") else "the program chromium is not installed"


CHECKS: dict[str, Callable[[], str]] = {
    "docker": _docker,
    "postgres": _postgres,
    "redis": _redis,
    "chromium": _chromium,
}
