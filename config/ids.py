"""Public identifiers. Lower-case and DNS-safe where they become host names."""

from __future__ import annotations

import re
import secrets
import string
import uuid

ALPHABET = string.ascii_lowercase + string.digits

ZERO_UUID = str(uuid.UUID(int=0))

_SANDBOX_ID = re.compile(r"[a-z0-9]{1,63}")


def _random(length: int) -> str:
    return "".join(secrets.choice(ALPHABET) for _ in range(length))


def new_sandbox_id() -> str:
    return "i" + _random(20)


def new_template_id() -> str:
    return _random(20)


def new_uuid() -> uuid.UUID:
    return uuid.uuid4()


def parse_sandbox_id(raw: str) -> str | None:
    """The id in `raw`, which may be the older `<id>-<clientID>`; None when it cannot be one."""
    sandbox_id, *rest = raw.split("-")
    if len(rest) > 1 or not _SANDBOX_ID.fullmatch(sandbox_id):
        return None
    return sandbox_id


def parse_uuid(raw: str) -> uuid.UUID | None:
    try:
        return uuid.UUID(raw)
    except (ValueError, AttributeError, TypeError):
        return None
