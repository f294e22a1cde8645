"""`make check`: format, lint, types, import rules, migrations. `make fmt` mends what can be."""

from __future__ import annotations

import os
import subprocess
import time
from dataclasses import dataclass

from ops import packages
from ops.deployment import Deployment
from ops.shell import REPOSITORY, VENV, paint, say

CHECKS: dict[str, list[str]] = {
    "types": ["mypy", "--no-error-summary", "."],
    "format": ["ruff", "format", "--check", "--quiet", "."],
    "lint": ["ruff", "check", "--quiet", "."],
    "import rules": ["lint-imports"],
    "migrations": ["python", "manage.py", "makemigrations", "--check", "--dry-run"],
}


@dataclass
class _Running:
    name: str
    command: list[str]
    process: subprocess.Popen[str]
    began: float


def run_checks(deployment: Deployment, _: list[str]) -> int:
    """Run every check, side by side. Returns 1 when one of them complains."""
    packages.ensure_venv(dev=True)
    env = {**deployment.process_environ(), "MYPY_CACHE_DIR": str(REPOSITORY / ".mypy_cache")}
    started = [_start(name, command, env) for name, command in CHECKS.items()]
    failures = 0
    for check in started:
        output, _stderr = check.process.communicate()
        took = time.monotonic() - check.began
        if check.process.returncode:
            failures += 1
            say(f"{paint('FAIL', 'red')}  {check.name}: {' '.join(check.command)}")
            say(output.rstrip())
        else:
            say(f"{paint('OK', 'green')}    {check.name} ({took:.0f} s)")
    return 1 if failures else 0


def _start(name: str, command: list[str], env: dict[str, str]) -> _Running:
    process = subprocess.Popen(
        [VENV / "bin" / command[0], *command[1:]],
        cwd=REPOSITORY,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return _Running(name, command, process, time.monotonic())


def format_code(_deployment: Deployment, _: list[str]) -> int:
    packages.ensure_venv(dev=True)
    for words in (["format", "."], ["check", "--fix", "--quiet", "."]):
        subprocess.run(
            [VENV / "bin/ruff", *words], cwd=REPOSITORY, env=dict(os.environ), check=False
        )
    return 0
