"""The processes of one deployment under supervisord: start, restart, stop, and what they say.

Why supervisord: docs/decisions/0001-supervisor.md.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from ops.deployment import Deployment
from ops.shell import REPOSITORY, VENV, OpsError, ask, is_alive, paint

# Ours while we run; they outlive us. Kept, or Python would warn that we forgot them.
_started: list[subprocess.Popen[bytes]] = []

COLOURS = {"web": "cyan", "worker": "yellow", "agent": "green", "stripe": "dim"}


def commands(deployment: Deployment) -> dict[str, str]:
    """Name: command line, in the order of starting."""
    bin_ = VENV / "bin"
    # With TLS, the gateway stands before web and says whom it speaks for.
    proxy = "--proxy-headers" if deployment.has_tls else ""
    fake = {}
    if deployment.fake_stripe_port:
        hook = f"http://127.0.0.1:{deployment.web_port}/webhooks/stripe"
        port = deployment.fake_stripe_port
        fake["stripe"] = f"{bin_}/python -m tests.fakes.stripe --port {port} --webhook {hook}"
    return fake | {
        "web": (
            f"{bin_}/daphne --bind {deployment.web_host} --port {deployment.web_port}"
            f" --no-server-name --verbosity 0 {proxy} config.asgi:application"
        ),
        "agent": f"{bin_}/python -m nodeagent",
        "worker": (
            f"{bin_}/celery --app config --quiet worker --beat --concurrency 2"
            " --without-gossip --without-mingle --loglevel INFO"
        ),
    }


def config_text(deployment: Deployment) -> str:
    """The supervisord configuration. `%` is special there, so paths are escaped."""
    state = str(deployment.state_dir).replace("%", "%%")
    parts = [
        f"""
[supervisord]
nodaemon=true
silent=true
logfile={state}/logs/supervisord.log
logfile_maxbytes=5MB
logfile_backups=1
pidfile={state}/supervisord.pid
childlogdir={state}/logs
umask=077
minfds=1024

[unix_http_server]
file={state}/supervisor.sock
chmod=0700

[rpcinterface:supervisor]
supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface

[supervisorctl]
serverurl=unix://{state}/supervisor.sock
"""
    ]
    for number, (name, command) in enumerate(commands(deployment).items()):
        parts.append(
            f"""
[program:{name}]
command={command.replace("%", "%%")}
directory={str(REPOSITORY).replace("%", "%%")}
priority={number}
autorestart=true
startsecs=1
startretries=1000
stopsignal=TERM
stopwaitsecs=20
killasgroup=true
redirect_stderr=true
stdout_logfile={state}/logs/{name}.log
stdout_logfile_maxbytes=20MB
stdout_logfile_backups=2
"""
        )
    return "".join(parts)


def supervisor_pid(deployment: Deployment) -> int | None:
    """The pid of this deployment's supervisord, or None when it does not run."""
    pid_file = deployment.state_dir / "supervisord.pid"
    try:
        pid = int(pid_file.read_text())
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (OSError, ValueError):
        return None
    return pid if str(deployment.state_dir).encode() in command else None


def start(deployment: Deployment) -> None:
    """Start supervisord in a session of its own: Ctrl-C reaches us, we stop it in order."""
    config = deployment.state_dir / "supervisord.conf"
    config.write_text(config_text(deployment))
    config.chmod(0o600)
    log = deployment.logs_dir / "supervisord.log"
    with log.open("ab") as out:
        process = subprocess.Popen(
            [VENV / "bin/supervisord", "--configuration", config],
            cwd=REPOSITORY,
            env=deployment.process_environ(),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    _started.append(process)
    deadline = time.monotonic() + 15
    while supervisor_pid(deployment) is None:
        if process.poll() is not None or time.monotonic() > deadline:
            raise OpsError(f"supervisord does not start; see {log}\n{tail(log)}")
        time.sleep(0.05)


def stop(deployment: Deployment) -> bool:
    """Stop all processes and wait for their end. Returns whether there was something to stop."""
    pid = supervisor_pid(deployment)
    if pid is None:
        return False
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + 60
    while is_alive(pid):
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            raise OpsError("supervisord did not stop in 60 s and was killed; see `ps`")
        time.sleep(0.05)
    for process in _started:
        process.poll()  # one of ours that has ended is still to be collected
    return True


def control(deployment: Deployment, *words: str) -> str:
    """What supervisorctl answers."""
    config = deployment.state_dir / "supervisord.conf"
    done = subprocess.run(
        [VENV / "bin/supervisorctl", "--configuration", config, *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.stdout.strip()


def process_pid(deployment: Deployment, name: str) -> int | None:
    """The pid of one of the processes, or None while it does not run."""
    answer = control(deployment, "pid", name)
    return int(answer) if answer.isdigit() and answer != "0" else None


def tail(path: Path, lines: int = 25) -> str:
    if not path.exists():
        return ""
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])


def all_logs(deployment: Deployment, lines: int = 25) -> str:
    parts = []
    for name in commands(deployment):
        path = deployment.logs_dir / f"{name}.log"
        parts.append(f"--- {path}\n{tail(path, lines)}")
    return "\n".join(parts)


class LogFollower:
    """Prints new lines of every process's log, with its name before each, until `stop`."""

    def __init__(self, deployment: Deployment) -> None:
        self._paths = {name: deployment.logs_dir / f"{name}.log" for name in commands(deployment)}
        self._places: dict[str, tuple[int, int]] = {}  # name: (inode, offset)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="log-follower", daemon=True)
        for name, path in self._paths.items():
            if path.exists():
                status = path.stat()
                self._places[name] = (status.st_ino, status.st_size)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join(timeout=5)

    def _follow(self) -> None:
        while not self._stopping.wait(0.2):
            self._print_new_lines()
        self._print_new_lines()

    def _print_new_lines(self) -> None:
        for name, path in self._paths.items():
            if not path.exists():
                continue
            inode, offset = self._places.get(name, (0, 0))
            with path.open("rb") as log:
                status = os.fstat(log.fileno())
                if status.st_ino != inode or status.st_size < offset:
                    offset = 0  # rotated
                log.seek(offset)
                text = log.read(1 << 20)
            end = text.rfind(b"\n") + 1
            self._places[name] = (status.st_ino, offset + end)
            prefix = paint(f"{name:<6} |", COLOURS.get(name, "dim"))
            for line in text[:end].decode(errors="replace").splitlines():
                sys.stderr.write(f"{prefix} {line}\n")
        sys.stderr.flush()


def whose_port(port: int) -> str | None:
    """The program that listens on a TCP port, or None when it is free."""
    listing = ask(["ss", "-Hltnp", f"sport = :{port}"])
    if not listing:
        return None
    found = re.search(r'\(\("([^"]+)",pid=(\d+)', listing)
    return f"{found[1]} (pid {found[2]})" if found else "another program"
