"""Where one deployment lives: its state directory, ports, node id and secrets."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

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
    web_host: str = "0.0.0.0"  # noqa: S104 the public door
    node_id: str = "local"
    keeps_containers: bool = False
    environ: Mapping[str, str]

    @staticmethod
    def from_environment(environ: Mapping[str, str] | None = None) -> Deployment:
        """Raises: OpsError naming the variable that is wrong."""
        env = dict(os.environ if environ is None else environ)
        state_dir = Path(env.get("SANDLOT_STATE_DIR") or REPOSITORY / ".state").absolute()
        return Deployment(
            state_dir=state_dir,
            web_port=_port(env, "SANDLOT_WEB_PORT", 8000),
            gateway_port=_port(env, "SANDLOT_GATEWAY_PORT", 8001),
            agent_port=_port(env, "SANDLOT_AGENT_PORT", 8002),
            web_host=env.get("SANDLOT_WEB_HOST") or "0.0.0.0",  # noqa: S104
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
    def web_url(self) -> str:
        return self.environ.get("SANDLOT_PUBLIC_URL") or f"http://localhost:{self.web_port}"

    @property
    def gateway_url(self) -> str:
        return self.environ.get("SANDLOT_SANDBOX_URL") or f"http://localhost:{self.gateway_port}"

    @property
    def ports(self) -> dict[str, int]:
        return {"web": self.web_port, "gateway": self.gateway_port, "agent": self.agent_port}

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


def _port(env: Mapping[str, str], name: str, default: int) -> int:
    raw = env.get(name) or str(default)
    if not raw.isdigit() or not 0 < int(raw) < 65536:
        raise OpsError(f"{name} must be a port number, not {raw!r}")
    return int(raw)
