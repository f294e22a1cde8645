"""Running other programs, and telling a person what happens."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
VENV = REPOSITORY / ".venv"

_COLOURS = {"green": "32", "yellow": "33", "red": "31", "bold": "1", "dim": "2", "cyan": "36"}


class OpsError(Exception):
    """What a person has to fix; the message says how. Printed without a traceback."""


def paint(text: str, colour: str) -> str:
    if not sys.stderr.isatty() or os.environ.get("NO_COLOR"):
        return text
    return f"\033[{_COLOURS[colour]}m{text}\033[0m"


def say(text: str) -> None:
    """A line for the person; on stderr, so that stdout stays for what a program reads."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


@contextmanager
def step(name: str) -> Iterator[None]:
    """Say what is being done, and how long it took when that was noticeable."""
    say(f"{paint('==>', 'cyan')} {name}")
    began = time.monotonic()
    yield
    took = time.monotonic() - began
    if took >= 1:
        say(paint(f"    {took:.0f} s", "dim"))


def run(
    command: Sequence[str | Path],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path = REPOSITORY,
    quiet: bool = True,
    timeout: float | None = None,
) -> str:
    """Run a program to its end. Its output is shown when it fails (or as it comes, when not quiet).

    Raises: OpsError when it exits non-zero, is missing or takes longer than `timeout` seconds.
    """
    words = [str(word) for word in command]
    shown = " ".join(words)
    if len(shown) > 200:
        shown = shown[:200] + " ..."
    try:
        done = subprocess.run(
            words,
            cwd=cwd,
            env=None if env is None else dict(env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if quiet else sys.stderr,
            stderr=subprocess.STDOUT if quiet else None,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
        )
    except FileNotFoundError:
        raise OpsError(f"{words[0]} is not installed") from None
    except subprocess.TimeoutExpired:
        raise OpsError(f"`{shown}` took more than {timeout:g} s") from None
    if done.returncode:
        tail = "\n".join((done.stdout or "").splitlines()[-60:])
        raise OpsError(f"`{shown}` failed with exit code {done.returncode}\n{tail}".rstrip())
    return done.stdout or ""


def ask(command: Sequence[str | Path], *, timeout: float = 20) -> str | None:
    """The output of a program, or None when it is missing, fails or hangs."""
    try:
        done = subprocess.run(
            [str(word) for word in command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def has(program: str) -> bool:
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") is not None


def is_root() -> bool:
    return os.geteuid() == 0


def has_systemd() -> bool:
    return Path("/run/systemd/system").is_dir()


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that ended and waits for its parent to notice does not."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    return re.search(r"^State:\s+[ZX]", status, re.MULTILINE) is None
