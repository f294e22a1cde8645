"""Readers of the environment. Each setting is read once, in `config.settings`, through one of
these.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

TRUE_WORDS = {"1", "true", "yes", "on"}
FALSE_WORDS = {"0", "false", "no", "off", ""}


class BadSetting(Exception):
    """A setting is missing or wrong; the message names it and says what is expected."""


def env_str(name: str, default: str = "") -> str:
    return os.environ.get(name, default)


def env_bool(name: str, default: bool = False) -> bool:
    raw = os.environ.get(name)
    if raw is None:
        return default
    word = raw.strip().lower()
    if word in TRUE_WORDS:
        return True
    if word in FALSE_WORDS:
        return False
    raise BadSetting(f"{name} must be true or false, not {raw!r}")


def env_int(name: str, default: int, *, minimum: int | None = None) -> int:
    raw = os.environ.get(name)
    if raw is None or not raw.strip():
        return default
    try:
        value = int(raw)
    except ValueError:
        raise BadSetting(f"{name} must be a whole number, not {raw!r}") from None
    if minimum is not None and value < minimum:
        raise BadSetting(f"{name} must be at least {minimum}, not {value}")
    return value


def env_list(name: str, default: list[str] | None = None) -> list[str]:
    """Comma-separated words; surrounding blanks and empty words are dropped."""
    raw = os.environ.get(name)
    if raw is None:
        return list(default or [])
    return [word.strip() for word in raw.split(",") if word.strip()]


def env_secret(name: str, default: str = "") -> str:
    """A secret from `NAME`, or from the file that `NAME_FILE` names (Docker and Kubernetes
    secrets).
    """
    value = os.environ.get(name)
    if value:
        return value
    path = os.environ.get(f"{name}_FILE")
    if path:
        try:
            return Path(path).read_text().strip()
        except OSError as error:
            raise BadSetting(f"{name}_FILE cannot be read: {error}") from error
    return default


def load_env_file(path: Path) -> None:
    """Set `NAME=value` lines of a file where the environment does not say otherwise."""
    try:
        lines = path.read_text().splitlines()
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise BadSetting(f"{path} cannot be read: {error}") from error
    for line in lines:
        name, separator, value = line.strip().removeprefix("export ").partition("=")
        if separator and not name.startswith("#"):
            os.environ.setdefault(name.strip(), value.strip().strip("'\""))


def derive_secret(secret: str, purpose: str) -> str:
    """A secret of its own for `purpose`, so that one leaked value does not open the others."""
    return hmac.new(secret.encode(), purpose.encode(), hashlib.sha256).hexdigest()


def parse_database_url(url: str, *, pool_size: int) -> dict[str, object]:
    """Django's database settings from `postgres://user:password@host:port/name?option=value`."""
    parts = urlsplit(url)
    if parts.scheme not in {"postgres", "postgresql"}:
        raise BadSetting(f"DATABASE_URL must start with postgresql://, not {parts.scheme}://")
    options: dict[str, object] = dict(parse_qsl(parts.query))
    host = options.pop("host", None) or unquote(parts.hostname or "")
    # The pool belongs to the process; a request borrows a connection and gives it back.
    options["pool"] = {"min_size": 2, "max_size": pool_size, "timeout": 20}
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": unquote(parts.path.lstrip("/")),
        "USER": unquote(parts.username or ""),
        "PASSWORD": unquote(parts.password or ""),
        "HOST": host,
        "PORT": str(parts.port or ""),
        "OPTIONS": options,
        "CONN_MAX_AGE": 0,
    }
