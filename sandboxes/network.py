"""The `network` object of the API: checked, and kept as it was given. Pure."""

from __future__ import annotations

import ipaddress
import re
from typing import Any

from pydantic import ConfigDict, Field

from config.drf import Body
from config.errors import InvalidArgument, PermissionDenied

ALL_TRAFFIC = "0.0.0.0/0"
MAX_RULES = 500
ENVD_PORT = 49983

_LABEL = r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?"
_DOMAIN = re.compile(rf"(\*\.)?({_LABEL}\.)*{_LABEL}", re.IGNORECASE)
_MASK_HOST = re.compile(r"[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\]")
_MASK_PORT = re.compile(r"\d{1,5}|\$\{PORT\}")


class EgressInput(Body):
    """What may be changed while a sandbox runs."""

    allowOut: list[str] | None = Field(default=None, max_length=MAX_RULES)
    denyOut: list[str] | None = Field(default=None, max_length=MAX_RULES)
    dnsServers: list[str] | None = Field(default=None, max_length=10)
    rules: dict[str, Any] | None = None
    egressProxy: dict[str, Any] | None = None


class NetworkInput(EgressInput):
    allowPublicTraffic: bool | None = None
    maskRequestHost: str | None = None
    httpsPorts: list[int] | None = Field(default=None, max_length=100)


class NetworkUpdateInput(EgressInput):
    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)

    allow_internet_access: bool | None = None


def checked_network(network: NetworkInput | None) -> dict[str, Any] | None:
    """What to store; None when nothing was said. Raises: InvalidArgument, PermissionDenied."""
    if network is None:
        return None
    stored = checked_egress(network, proxy_name="network.egressProxy")
    if network.allowPublicTraffic is not None:
        stored["allowPublicTraffic"] = network.allowPublicTraffic
    if network.maskRequestHost is not None:
        check_mask_host(network.maskRequestHost)
        stored["maskRequestHost"] = network.maskRequestHost
    if network.httpsPorts:
        raise InvalidArgument("network.httpsPorts is not supported by this server.")
    return stored or None


def checked_egress(egress: EgressInput, *, proxy_name: str) -> dict[str, Any]:
    """Raises: InvalidArgument, PermissionDenied for what this server does not offer."""
    stored: dict[str, Any] = {}
    deny = egress.denyOut or []
    for entry in deny:
        check_denied(entry)
    has_domain = False
    for entry in egress.allowOut or []:
        has_domain = check_allowed(entry) or has_domain
    if has_domain and ALL_TRAFFIC not in deny:
        raise InvalidArgument(
            "When specifying allowed domains in allow out, you must include 'ALL_TRAFFIC' in deny"
            " out to block all other traffic."
        )
    if has_domain:
        raise InvalidArgument(
            "Allowing domains in network.allowOut is not supported by this server yet:"
            " use IP addresses or CIDR blocks."
        )
    if egress.allowOut is not None:
        stored["allowOut"] = egress.allowOut
    if egress.denyOut is not None:
        stored["denyOut"] = egress.denyOut
    if egress.dnsServers is not None:
        for server in egress.dnsServers:
            try:
                ipaddress.IPv4Address(server)
            except ValueError:
                raise InvalidArgument(f"invalid DNS server {server[:100]}") from None
        stored["dnsServers"] = egress.dnsServers
    if egress.rules:
        raise InvalidArgument("Network transform rules are not available for your team.")
    if egress.egressProxy is not None:
        raise PermissionDenied(f"Egress proxy ({proxy_name}) is not enabled for this team.")
    return stored


def check_denied(entry: str) -> None:
    """An IP or a CIDR block; of the unspecified ones only 0.0.0.0/0. Raises: InvalidArgument."""
    try:
        block = ipaddress.ip_network(entry, strict=False)
    except ValueError:
        raise InvalidArgument(f"invalid denied CIDR {entry[:100]}") from None
    if block.network_address.is_unspecified and entry != ALL_TRAFFIC:
        raise InvalidArgument(f"invalid denied CIDR {entry[:100]}")


def check_allowed(entry: str) -> bool:
    """Whether the entry is a domain. Raises: InvalidArgument for what is nothing of the kind."""
    try:
        ipaddress.ip_network(entry, strict=False)
    except ValueError:
        pass
    else:
        return False
    looks_numeric = re.fullmatch(r"[0-9./]+", entry) is not None
    if entry != "*" and (looks_numeric or len(entry) > 253 or not _DOMAIN.fullmatch(entry)):
        raise InvalidArgument(f"invalid allowed address {entry[:100]}")
    return True


def check_mask_host(mask: str) -> None:
    """`host[:port]`, the port perhaps `${PORT}`. Raises: InvalidArgument."""
    shown = mask[:100]
    if not mask.isascii():
        raise InvalidArgument(
            f"mask request host '{shown}' is not ASCII. Please use ASCII characters only."
        )
    host, port = mask, ""
    match = re.fullmatch(r"(\[[^\]]*\]|[^:]*)(?::(.*))?", mask)
    if match:
        host, port = match[1], match[2]
    plain_host = host.replace("${PORT}", "0")
    is_port_valid = port is None or (
        _MASK_PORT.fullmatch(port) is not None and (port == "${PORT}" or 0 < int(port) < 65536)
    )
    if not match or not _MASK_HOST.fullmatch(plain_host) or not is_port_valid:
        raise InvalidArgument(f"mask request host is not valid: {shown}")


def shown_network(network: dict[str, Any] | None) -> dict[str, Any] | None:
    """As GET shows it."""
    return network or None
