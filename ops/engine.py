"""The Docker engine: use the one that answers, else install and start Debian's."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

from ops.deployment import Deployment
from ops.packages import ensure_debian_packages
from ops.shell import OpsError, ask, has, has_systemd, is_alive, is_root, run, step

ENGINE_PACKAGES = {"docker.io": "dockerd", "cgroupfs-mount": "cgroupfs-mount", "kmod": "modprobe"}


def info() -> dict[str, Any] | None:
    """What the engine says of itself, or None when none answers."""
    raw = ask(["docker", "info", "--format", "{{json .}}"], timeout=15)
    if raw is None:
        return None
    facts: dict[str, Any] = json.loads(raw)
    # An old client exits 0 although the engine did not answer.
    return None if facts.get("ServerErrors") or not facts.get("ServerVersion") else facts


def ensure_engine(deployment: Deployment) -> None:
    """Raises: OpsError saying what to do where no engine answers and we cannot start one."""
    if info() is not None:
        return
    if not is_root():
        raise OpsError(
            "no Docker engine answers.\n"
            "  Start one (`sudo systemctl start docker`) and let your user use it\n"
            "  (`sudo usermod -aG docker $USER`, then log in again), or run `make up` as root."
        )
    if os.environ.get("DOCKER_HOST"):
        raise OpsError(f"no Docker engine answers at DOCKER_HOST={os.environ['DOCKER_HOST']}")
    ensure_debian_packages(ENGINE_PACKAGES, starts_services=has_systemd())
    with step("Starting the Docker engine"):
        if has_systemd():
            run(["systemctl", "enable", "--now", "docker"])
        else:
            _mount_cgroups()
            _start_in_background(deployment)
        _wait_until_it_answers(deployment)


def _mount_cgroups() -> None:
    """Without systemd nobody may have mounted them; Debian's script mounts what the kernel has."""
    root = Path("/sys/fs/cgroup")
    if not (root / "cgroup.controllers").exists() and not (root / "memory").exists():
        run(["cgroupfs-mount"])


def _start_in_background(deployment: Deployment) -> None:
    deployment.prepare_state_dir()
    with (deployment.logs_dir / "dockerd.log").open("ab") as log:
        # live-restore: sandboxes live on when the engine is restarted
        process = subprocess.Popen(
            ["dockerd", "--live-restore", "--pidfile", str(_pid_file(deployment))],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd="/",
        )
    time.sleep(0.2)
    if process.poll() is not None:
        raise OpsError(_what_dockerd_said(deployment))


def _wait_until_it_answers(deployment: Deployment) -> None:
    deadline = time.monotonic() + 60
    while info() is None:
        if time.monotonic() > deadline:
            raise OpsError(_what_dockerd_said(deployment))
        time.sleep(0.3)


def _what_dockerd_said(deployment: Deployment) -> str:
    log = deployment.logs_dir / "dockerd.log"
    if has_systemd() or not log.exists():
        return "the Docker engine does not start; see `journalctl -u docker`"
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
    return f"the Docker engine does not start; see {log}\n{tail}"


def _pid_file(deployment: Deployment) -> Path:
    return deployment.state_dir / "dockerd.pid"


def stop_engine_we_started(deployment: Deployment) -> None:
    """Stop a `dockerd` that `ensure_engine` started, unless it still runs something."""
    try:
        pid = int(_pid_file(deployment).read_text())
        is_ours = Path(f"/proc/{pid}/comm").read_text().strip() == "dockerd"
    except (OSError, ValueError):
        return
    if not is_ours or not has("docker") or ask(["docker", "ps", "-q"]) != "":
        return
    with step("Stopping the Docker engine"):
        os.kill(pid, 15)
        deadline = time.monotonic() + 20
        while is_alive(pid) and time.monotonic() < deadline:
            time.sleep(0.1)
