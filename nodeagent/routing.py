"""Which sandbox and port a request is for. Pure."""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass

from nodeagent.errors import InvalidArgument

INTERNAL_PATHS = {"/init", "/freeze", "/unfreeze", "/collapse", "/fsfreeze", "/fsthaw", "/upgrade"}
SANDBOX_HEADER, PORT_HEADER = b"e2b-sandbox-id", b"e2b-sandbox-port"
_SANDBOX_ID = re.compile(r"^[a-z0-9]+$")
_PORT = re.compile(r"^[0-9]{1,5}$")


class MissingHeader(InvalidArgument):
    """One of the two routing headers came without the other."""


@dataclass(frozen=True)
class Target:
    sandbox_id: str
    port: int


def find_target(host: str, sandbox_header: str | None, port_header: str | None) -> Target:
    """A host of the form `{port}-{id}.{domain}` wins, else both headers decide.

    Raises: MissingHeader, InvalidArgument.
    """
    label, dot, _ = host_name(host).partition(".")
    parts = label.split("-")
    if dot and len(parts) >= 2 and _PORT.match(parts[0]):
        return _target(parts[1], parts[0])
    if sandbox_header is not None and port_header is not None:
        return _target(sandbox_header.strip().lower(), port_header.strip())
    if sandbox_header is not None:
        raise MissingHeader("missing header E2b-Sandbox-Port")
    if port_header is not None:
        raise MissingHeader("missing header E2b-Sandbox-Id")
    if not dot or len(parts) < 2:
        raise InvalidArgument("Invalid host")
    if not _SANDBOX_ID.match(parts[1]):
        raise InvalidArgument("Invalid sandbox ID")
    raise InvalidArgument("Invalid sandbox port")


def _target(sandbox_id: str, port: str) -> Target:
    if not _SANDBOX_ID.match(sandbox_id):
        raise InvalidArgument("Invalid sandbox ID")
    if not _PORT.match(port) or int(port) > 65535:
        raise InvalidArgument("Invalid sandbox port")
    return Target(sandbox_id, int(port))


def host_name(host: str) -> str:
    """A Host header's name, without port, in lower case."""
    return host.partition(":")[0].lower()


def control_plane_hosts(domain: str) -> set[str]:
    """Names under which the API and the dashboard answer.

    A domain without a dot (localhost) is none of them: there, headers route to sandboxes.
    """
    name = host_name(domain)
    return {f"api.{name}", name} if "." in name else {f"api.{name}"}


def is_internal(path: str) -> bool:
    """Operations of the original daemon that no client may reach; we have none of them."""
    return posixpath.normpath("/" + path.lstrip("/")) in INTERNAL_PATHS
