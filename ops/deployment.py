"""Where one deployment lives: its state directory, ports, names, node id and secrets."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ops import tls
from ops.shell import REPOSITORY, VENV, OpsError

# What `make up` generates; each is a value of its own, and none is ever printed.
SECRET_NAMES = ("SANDLOT_SECRET_KEY", "SANDLOT_NODE_SECRET")


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """One running Sandlot on this machine. Two with different state directories do not meet."""

    state_dir: Path
    web_port: int = 8000
    gateway_port: int = 8001
    agent_port: int = 8002
    tls_port: int = 443
    web_host: str = "0.0.0.0"  # noqa: S104 the public door
    domain: str = "localhost"
    tls_cert: Path | None = None
    tls_key: Path | None = None
    node_id: str = "local"
    keeps_containers: bool = False
    environ: Mapping[str, str]

    @staticmethod
    def from_environment(environ: Mapping[str, str] | None = None) -> Deployment:
        """Raises: OpsError naming the variable that is wrong."""
        env = dict(os.environ if environ is None else environ)
        state_dir = Path(env.get("SANDLOT_STATE_DIR") or REPOSITORY / ".state").absolute()
        made = state_dir / "tls"
        # A domain may carry the port of TLS, as clients write it.
        domain, _, domain_port = (
            env.get("SANDLOT_DOMAIN") or tls.domain_of(made) or "localhost"
        ).partition(":")
        tls_cert, tls_key = env.get("SANDLOT_TLS_CERT"), env.get("SANDLOT_TLS_KEY")
        if not tls_cert and not tls_key and tls.domain_of(made) == domain:
            tls_cert, tls_key = str(made / "server.crt"), str(made / "server.key")
        web_host = "127.0.0.1" if tls_cert else "0.0.0.0"  # noqa: S104
        return Deployment(
            state_dir=state_dir,
            web_port=_port(env, "SANDLOT_WEB_PORT", 8000),
            gateway_port=_port(env, "SANDLOT_GATEWAY_PORT", 8001),
            agent_port=_port(env, "SANDLOT_AGENT_PORT", 8002),
            tls_port=_port(env, "SANDLOT_TLS_PORT", domain_port or 443),
            web_host=env.get("SANDLOT_WEB_HOST") or web_host,
            domain=domain,
            tls_cert=Path(tls_cert).absolute() if tls_cert else None,
            tls_key=Path(tls_key).absolute() if tls_key else None,
            node_id=env.get("SANDLOT_NODE_ID") or "local",
            keeps_containers=env.get("KEEP") == "1",
            environ=env,
        )

    @property
    def logs_dir(self) -> Path:
        return self.state_dir / "logs"

    @property
    def secrets_file(self) -> Path:
        return self.state_dir / "secrets.env"

    @property
    def tls_dir(self) -> Path:
        """What `make tls` makes."""
        return self.state_dir / "tls"

    @property
    def has_tls(self) -> bool:
        return self.tls_cert is not None

    @property
    def has_own_authority(self) -> bool:
        """Whether clients must be told whom to trust."""
        return self.tls_cert == self.tls_dir / "server.crt"

    @property
    def client_domain(self) -> str:
        """The domain as clients write it; they put names before it, so it carries the port."""
        has_port = self.has_tls and self.tls_port != 443
        return f"{self.domain}:{self.tls_port}" if has_port else self.domain

    @property
    def web_url(self) -> str:
        default = f"http://localhost:{self.web_port}"
        if self.has_tls:
            default = f"https://{self.client_domain}"
        return self.environ.get("SANDLOT_PUBLIC_URL") or default

    @property
    def api_url(self) -> str:
        return f"https://api.{self.client_domain}" if self.has_tls else self.web_url

    @property
    def gateway_url(self) -> str:
        default = f"http://localhost:{self.gateway_port}"
        if self.has_tls:
            default = f"https://sandbox.{self.client_domain}"
        return self.environ.get("SANDLOT_SANDBOX_URL") or default

    @property
    def fake_stripe_port(self) -> int | None:
        """`STRIPE=fake make up` runs a stand-in for Stripe; nothing is real there."""
        if self.environ.get("STRIPE") != "fake":
            return None
        return _port(self.environ, "SANDLOT_FAKE_STRIPE_PORT", 12111)

    def _fake_stripe_environ(self) -> dict[str, str]:
        if self.fake_stripe_port is None:
            return {}
        return {
            "STRIPE_SECRET_KEY": "sk_test_fake",
            "STRIPE_WEBHOOK_SECRET": "whsec_fake",
            "STRIPE_API_BASE": f"http://127.0.0.1:{self.fake_stripe_port}",
        }

    @property
    def ports(self) -> dict[str, int]:
        ports = {"web": self.web_port, "gateway": self.gateway_port, "agent": self.agent_port}
        return {**ports, "tls": self.tls_port} if self.has_tls else ports

    def _tls_environ(self) -> dict[str, str]:
        """The gateway takes TLS off, so web is behind a proxy of ours."""
        if not self.has_tls:
            return {}
        found = {
            "SANDLOT_TLS_CERT": str(self.tls_cert or ""),
            "SANDLOT_TLS_KEY": str(self.tls_key or ""),
            "SANDLOT_TLS_PORT": str(self.tls_port),
            "SANDLOT_PUBLIC_URL": self.web_url,
            "SANDLOT_SANDBOX_URL": self.gateway_url,
            "SANDLOT_BEHIND_PROXY": "true",
        }
        if self.has_own_authority:
            # Browsers remember HSTS for a year; a certificate of our own may be gone tomorrow.
            found["SANDLOT_HSTS_SECONDS"] = self.environ.get("SANDLOT_HSTS_SECONDS", "0")
        return found

    def process_environ(self) -> dict[str, str]:
        """The environment of web, worker and agent."""
        return {
            **self.environ,
            "PATH": f"{VENV / 'bin'}:{self.environ.get('PATH', '/usr/bin:/bin')}:/usr/sbin:/sbin",
            "PYTHONUNBUFFERED": "1",
            "DJANGO_SETTINGS_MODULE": "config.settings",
            "SANDLOT_STATE_DIR": str(self.state_dir),
            "SANDLOT_WEB_PORT": str(self.web_port),
            "SANDLOT_GATEWAY_PORT": str(self.gateway_port),
            "SANDLOT_AGENT_PORT": str(self.agent_port),
            "SANDLOT_NODE_ID": self.node_id,
            "SANDLOT_DOMAIN": self.domain,
            **self._tls_environ(),
            **self._fake_stripe_environ(),
            "SANDLOT_CONTROL_PLANE_URL": self.environ.get("SANDLOT_CONTROL_PLANE_URL")
            or f"http://127.0.0.1:{self.web_port}",
        }

    def prepare_state_dir(self) -> None:
        """Make the state directory and, once, the secrets; only their owner can read them."""
        for folder in (self.state_dir, self.logs_dir):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.state_dir.chmod(0o700)
        known = self.secrets_file.read_text() if self.secrets_file.exists() else ""
        missing = [name for name in SECRET_NAMES if f"{name}=" not in known]
        if missing:
            lines = known + "".join(f"{name}={secrets.token_hex(32)}\n" for name in missing)
            fresh = self.secrets_file.with_suffix(".new")
            fresh.touch(mode=0o600)
            fresh.write_text(lines)
            fresh.rename(self.secrets_file)
        self.secrets_file.chmod(0o600)


def _port(env: Mapping[str, str], name: str, default: int | str) -> int:
    raw = env.get(name) or str(default)
    if not raw.isdigit() or not 0 < int(raw) < 65536:
        raise OpsError(f"{name} must be a port number, not {raw!r}")
    return int(raw)
