"""Throw-away PostgreSQL and Redis servers from Debian's packages, for tests."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ops.shell import OpsError, is_root, run

POSTGRES_BIN = Path("/usr/lib/postgresql/15/bin")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def postgres() -> Iterator[str]:
    """A PostgreSQL server with an empty database, gone at the end; yields its URL."""
    folder = Path(tempfile.mkdtemp(prefix="sandlot-pg-"))
    # It refuses to run as root: it gets Debian's own user for it.
    user = "postgres" if is_root() else pwd.getpwuid(os.getuid()).pw_name
    shutil.chown(folder, user)
    data, port = folder / "data", free_port()
    as_user = ["runuser", "-u", user, "--"] if is_root() else []
    try:
        run([*as_user, POSTGRES_BIN / "initdb", "--no-sync", "--auth=trust", "--encoding=UTF8",
             "--locale=C.UTF-8", "--username=sandlot", data], cwd=folder)  # fmt: skip
        options = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off",
                   "listen_addresses": "127.0.0.1", "port": str(port), "max_connections": "200",
                   "unix_socket_directories": str(folder)}  # fmt: skip
        settings = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
        with _server([POSTGRES_BIN / "postgres", "-D", data, *settings], folder, port, user=user):
            run([*as_user, POSTGRES_BIN / "createdb", "-h", folder, "-p", str(port),
                 "-U", "sandlot", "sandlot"], cwd=folder)  # fmt: skip
            yield f"postgresql://sandlot@127.0.0.1:{port}/sandlot"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def redis() -> Iterator[str]:
    """A Redis server that keeps nothing on disk; yields its URL."""
    folder, port = Path(tempfile.mkdtemp(prefix="sandlot-redis-")), free_port()
    command: list[str | Path] = ["redis-server", "--port", str(port), "--bind", "127.0.0.1",
               "--save", "", "--appendonly", "no", "--dir", folder]  # fmt: skip
    try:
        with _server(command, folder, port):
            yield f"redis://127.0.0.1:{port}/0"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _server(
    command: list[str | Path], folder: Path, port: int, *, user: str | None = None
) -> Iterator[None]:
    log_path = folder / "server.log"
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=folder,
            user=user if is_root() else None,
        )
    try:
        deadline = time.monotonic() + 30
        while not _answers(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise OpsError(f"{command[0]} does not start:\n{log_path.read_text()[-2000:]}")
            time.sleep(0.05)
        yield
    finally:
        process.send_signal(signal.SIGINT)  # PostgreSQL: fast shutdown
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0
