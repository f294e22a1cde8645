"""Signed /files URLs and the access token. Source: E2B envd, signature "v1"."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Mapping

from nodeagent.errors import InvalidArgument, Unauthenticated


def sign(*, path: str, operation: str, username: str, token: str, expiration: int | None) -> str:
    """operation: "read" or "write". expiration: Unix seconds."""
    raw = f"{path}:{operation}:{username}:{token}"
    if expiration is not None:
        raw += f":{expiration}"
    digest = hashlib.sha256(raw.encode("utf-8", "surrogateescape")).digest()
    return "v1_" + base64.b64encode(digest).decode().rstrip("=")


def same_secret(given: str, expected: str) -> bool:
    """Compare in constant time; `given` may be anything a client sends."""
    return hmac.compare_digest(given.encode("utf-8", "replace"), expected.encode())


def is_signed_by(query: Mapping[str, str], *, operation: str, token: str) -> bool:
    """Whether the signature is right, expired or not. Raises: InvalidArgument."""
    expected = sign(
        path=query.get("path", ""),
        operation=operation,
        username=query.get("username", ""),
        token=token,
        expiration=_expiration(query),
    )
    return same_secret(query.get("signature", ""), expected)


def check_access(
    query: Mapping[str, str], *, header: str | None, operation: str, token: str | None, now: float
) -> None:
    """May this request read or write files? token None: the sandbox is open to all.

    Raises: Unauthenticated with the exact words clients compare; InvalidArgument.
    """
    if token is None:
        return
    if header is not None:
        if not same_secret(header, token):
            raise Unauthenticated("access token present in header but does not match")
        return
    if "signature" not in query:
        raise Unauthenticated("missing signature query parameter")
    if not is_signed_by(query, operation=operation, token=token):
        raise Unauthenticated("invalid signature")
    expiration = _expiration(query)
    if expiration is not None and expiration < now:
        raise Unauthenticated("signature is already expired")


def _expiration(query: Mapping[str, str]) -> int | None:
    raw = query.get("signature_expiration")
    if raw is None:
        return None
    try:
        if len(raw) > 20 or not raw.removeprefix("-").isdecimal():
            raise ValueError(raw)
        return int(raw)
    except ValueError as error:
        raise InvalidArgument(
            "Invalid format for parameter signature_expiration: it must be an integer"
        ) from error
