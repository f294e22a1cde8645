"""The agent's environment, read once into a frozen dataclass and checked at start."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from nodeagent.errors import InvalidArgument

_NODE_ID = re.compile(r"^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$")
# What the SDKs call their base image is ours.
DEFAULT_IMAGE_ALIASES = {"e2bdev/base": "sandlot/base:latest"}
_REPOSITORY = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, kw_only=True)
class EgressException:
    """A place sandboxes may reach although policy refuses it, e.g. the cluster's own entry."""

    cidr: str
    port: int


@dataclass(frozen=True, kw_only=True)
class Settings:
    """`from_environment` names each field's variable; docs/reference/agent-api.md lists them."""

    node_id: str
    token: str
    state_dir: Path
    control_plane_url: str = "http://127.0.0.1:8000"
    api_host: str = "127.0.0.1"
    api_port: int = 8002
    api_url: str = ""
    gateway_host: str = "0.0.0.0"  # noqa: S104 - the public door
    gateway_port: int = 8001
    gateway_url: str = ""
    heartbeat_seconds: float = 3.0
    meter_seconds: float = 5.0
    max_sandboxes: int = 300
    pids_limit: int = 2048
    pool_ceiling: int = 20
    refill_concurrency: int = 2
    cold_start_concurrency: int = 4
    build_concurrency: int = 4
    image_aliases: Mapping[str, str] = field(default_factory=dict)
    create_timeout_seconds: float = 100.0
    docker_runtime: str = ""
    dns_servers: tuple[str, ...] = ()
    egress_exceptions: tuple[EgressException, ...] = ()
    blocks_smtp: bool = True
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_port: int = 443
    domain: str = "localhost"
    max_connections: int = 0
    log_format: str = "text"
    log_level: str = "INFO"

    @property
    def node_dir(self) -> Path:
        return self.state_dir / "node" / self.node_id

    @staticmethod
    def from_environment(environ: Mapping[str, str] | None = None) -> Settings:
        """Raises: InvalidArgument naming the variable that is missing or wrong."""
        env = _Environment(os.environ if environ is None else environ)
        state_dir = Path(env.text("SANDLOT_STATE_DIR", str(_REPOSITORY / ".state"))).absolute()
        env = env.with_secrets(state_dir / "secrets.env")
        node_id = env.text("SANDLOT_NODE_ID", "local")
        if not _NODE_ID.match(node_id):
            raise InvalidArgument("SANDLOT_NODE_ID: use 1 to 40 of a-z, 0-9 and inner dashes")
        api_host = env.text("SANDLOT_AGENT_HOST", "127.0.0.1")
        api_port = env.integer("SANDLOT_AGENT_PORT", 8002, least=1, most=65535)
        gateway_port = env.integer("SANDLOT_GATEWAY_PORT", 8001, least=1, most=65535)
        tls_cert, tls_key = env.file("SANDLOT_TLS_CERT"), env.file("SANDLOT_TLS_KEY")
        if (tls_cert is None) != (tls_key is None):
            raise InvalidArgument("SANDLOT_TLS_CERT and SANDLOT_TLS_KEY go together")
        return Settings(
            node_id=node_id,
            token=env.node_token(node_id),
            state_dir=state_dir,
            control_plane_url=env.text("SANDLOT_CONTROL_PLANE_URL", "http://127.0.0.1:8000").rstrip(
                "/"
            ),
            api_host=api_host,
            api_port=api_port,
            api_url=env.text("SANDLOT_AGENT_URL", f"http://{api_host}:{api_port}"),
            gateway_host=env.text("SANDLOT_GATEWAY_HOST", "0.0.0.0"),  # noqa: S104
            gateway_port=gateway_port,
            gateway_url=env.text("SANDLOT_GATEWAY_URL", f"http://127.0.0.1:{gateway_port}"),
            heartbeat_seconds=env.number("SANDLOT_HEARTBEAT_SECONDS", 3.0, least=0.1, most=60),
            meter_seconds=env.number("SANDLOT_METER_SECONDS", 5.0, least=0.5, most=60),
            max_sandboxes=env.integer("SANDLOT_MAX_SANDBOXES", 300, least=1, most=1000),
            pids_limit=env.integer("SANDLOT_PIDS_LIMIT", 2048, least=64, most=65536),
            pool_ceiling=env.integer("SANDLOT_POOL_CEILING", 20, least=0, most=500),
            refill_concurrency=env.integer("SANDLOT_REFILL_CONCURRENCY", 2, least=1, most=32),
            cold_start_concurrency=env.integer(
                "SANDLOT_COLD_START_CONCURRENCY", 4, least=1, most=64
            ),
            build_concurrency=env.integer("SANDLOT_BUILD_CONCURRENCY", 4, least=1, most=64),
            image_aliases=env.pairs("SANDLOT_IMAGE_ALIASES", DEFAULT_IMAGE_ALIASES),
            create_timeout_seconds=env.number(
                "SANDLOT_CREATE_TIMEOUT_SECONDS", 100.0, least=1, most=3600
            ),
            docker_runtime=env.text("SANDLOT_DOCKER_RUNTIME", ""),
            dns_servers=env.addresses("SANDLOT_DNS"),
            egress_exceptions=env.exceptions("SANDLOT_EGRESS_ALLOW"),
            blocks_smtp=env.boolean("SANDLOT_BLOCK_SMTP", True),
            tls_cert=tls_cert,
            tls_key=tls_key,
            tls_port=env.integer("SANDLOT_TLS_PORT", 443, least=1, most=65535),
            domain=env.text("SANDLOT_DOMAIN", "localhost"),
            max_connections=env.integer("SANDLOT_MAX_CONNECTIONS", 0, least=0, most=100_000),
            log_format=env.choice("SANDLOT_LOG_FORMAT", "text", ("text", "json")),
            log_level=env.choice(
                "SANDLOT_LOG_LEVEL", "INFO", ("DEBUG", "INFO", "WARNING", "ERROR")
            ),
        )


def derive_node_token(node_secret: str, node_id: str) -> str:
    """The token both sides compute, so that adding a node needs no exchange of tokens."""
    mac = hmac.new(node_secret.encode(), f"node:{node_id}".encode(), hashlib.sha256)
    return f"sln_{mac.hexdigest()}"


class _Environment:
    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = values

    def with_secrets(self, path: Path) -> _Environment:
        """Values of the state directory's secrets file, under those of the environment."""
        if not path.is_file():
            return self
        values = {}
        for line in path.read_text().splitlines():
            name, equals, value = line.strip().removeprefix("export ").partition("=")
            if equals and not name.startswith("#"):
                values[name.strip()] = value.strip().strip("'\"")
        return _Environment({**values, **self._values})

    def text(self, name: str, default: str) -> str:
        return self._values.get(name, "").strip() or default

    def file(self, name: str) -> Path | None:
        """Raises: InvalidArgument when it is named but not there."""
        value = self.text(name, "")
        if value and not Path(value).is_file():
            raise InvalidArgument(f"{name}: {value} is not a file")
        return Path(value) if value else None

    def choice(self, name: str, default: str, options: tuple[str, ...]) -> str:
        value = self.text(name, default)
        if value not in options:
            raise InvalidArgument(f"{name}: {value!r} is not one of {', '.join(options)}")
        return value

    def boolean(self, name: str, default: bool) -> bool:
        value = self.text(name, "true" if default else "false").lower()
        if value not in ("true", "false", "1", "0", "yes", "no", "on", "off"):
            raise InvalidArgument(f"{name}: {value!r} is not a boolean")
        return value in ("true", "1", "yes", "on")

    def number(self, name: str, default: float, *, least: float, most: float) -> float:
        try:
            value = float(self.text(name, str(default)))
        except ValueError:
            raise InvalidArgument(f"{name}: not a number") from None
        if not least <= value <= most:
            raise InvalidArgument(f"{name}: must be between {least:g} and {most:g}")
        return value

    def integer(self, name: str, default: int, *, least: int, most: int) -> int:
        value = self.number(name, default, least=least, most=most)
        if value != int(value):
            raise InvalidArgument(f"{name}: must be a whole number")
        return int(value)

    def addresses(self, name: str) -> tuple[str, ...]:
        try:
            return tuple(
                str(ipaddress.ip_address(item))
                for item in self.text(name, "").replace(",", " ").split()
            )
        except ValueError as error:
            raise InvalidArgument(f"{name}: {error}") from None

    def pairs(self, name: str, default: Mapping[str, str]) -> dict[str, str]:
        """`a=b,c=d`, on top of the default."""
        found = dict(default)
        for item in self.text(name, "").replace(",", " ").split():
            key, equals, value = item.partition("=")
            if not key or not equals or not value:
                raise InvalidArgument(f"{name}: {item!r} is not of the form name=image")
            found[key] = value
        return found

    def exceptions(self, name: str) -> tuple[EgressException, ...]:
        """Comma-separated `address-or-CIDR:port`, IPv4."""
        found = []
        for item in self.text(name, "").replace(",", " ").split():
            cidr, _, port = item.rpartition(":")
            try:
                found.append(EgressException(cidr=str(ipaddress.IPv4Network(cidr)), port=int(port)))
            except ValueError as error:
                raise InvalidArgument(f"{name}: {item!r}: {error}") from None
        return tuple(found)

    def node_token(self, node_id: str) -> str:
        if token := self.text("SANDLOT_NODE_TOKEN", ""):
            return token
        if secret := self.text("SANDLOT_NODE_SECRET", ""):
            return derive_node_token(secret, node_id)
        raise InvalidArgument("SANDLOT_NODE_TOKEN or SANDLOT_NODE_SECRET must be set")
