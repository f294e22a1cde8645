"""The official SDKs that contract tests run, each in an environment of its own, kept by version."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

from ops.packages import make_venv
from ops.shell import REPOSITORY, VENV, ask, run, step

CACHE = REPOSITORY / ".state"
PINNED_PYTHON = "2.45.1"
CODE_INTERPRETER = "2.11.5"
PINNED_CLI = "2.19.0"
TEST_PACKAGES = ("pytest==9.2.0", "pytest-timeout==2.4.0", "pytest-asyncio==1.5.0")
# What is tested when the registry cannot be asked for the newest.
KNOWN_NEWEST_PYTHON = "2.63.0"
KNOWN_NEWEST_JS = "2.51.0"


def ensure_all() -> None:
    for version in sorted({PINNED_PYTHON, newest_python()}):
        ensure_python(version)
    ensure_js(newest_js())
    ensure_cli()


def ensure_python(version: str) -> Path:
    """An environment with the official Python SDK of that version, and pytest."""
    return _ensure_venv(f"sdk-py-{version}", [f"e2b=={version}", *TEST_PACKAGES])


def ensure_code_interpreter() -> Path:
    """An environment with the official code interpreter's Python SDK, and pytest."""
    wanted = f"e2b-code-interpreter=={CODE_INTERPRETER}"
    return _ensure_venv(f"sdk-ci-{CODE_INTERPRETER}", [wanted, *TEST_PACKAGES])


def ensure_js(version: str) -> Path:
    """A folder in which `e2b` of that version can be imported."""
    return _ensure_npm(f"sdk-js-{version}", "e2b", version)


def ensure_cli() -> Path:
    """The official command line program."""
    folder = _ensure_npm(f"sdk-cli-{PINNED_CLI}", "@e2b/cli", PINNED_CLI)
    return folder / "node_modules/.bin/e2b"


def _ensure_npm(name: str, package: str, version: str) -> Path:
    folder = CACHE / name
    if not (folder / "node_modules" / package / "package.json").exists():
        with step(f"Installing {package} {version}"):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            (folder / "package.json").write_text('{"private": true, "type": "module"}\n')
            npm: list[str | Path] = [
                VENV / "bin/npm",
                "install",
                "--silent",
                "--no-fund",
                "--no-audit",
            ]
            run([*npm, f"{package}@{version}"], cwd=folder, env=_node_env())
    return folder


def newest_python() -> str:
    """The newest release on PyPI; remembered for when PyPI is out of reach."""
    listing = ask([VENV / "bin/pip", "index", "versions", "--json", "e2b"], timeout=60)
    found = json.loads(listing)["latest"] if listing else ""
    return _remember("newest-python", found) or KNOWN_NEWEST_PYTHON


def newest_js() -> str:
    found = ask([VENV / "bin/npm", "view", "e2b", "version"], timeout=60) or ""
    return _remember("newest-js", found) or KNOWN_NEWEST_JS


def _remember(name: str, found: str) -> str:
    note = CACHE / f"sdk-{name}"
    if found:
        CACHE.mkdir(mode=0o700, exist_ok=True)
        note.write_text(found)
    return note.read_text().strip() if note.exists() else ""


def _ensure_venv(name: str, wanted: list[str]) -> Path:
    folder = CACHE / name
    stamp = folder / "stamp"
    digest = hashlib.sha256("\n".join(wanted).encode()).hexdigest()
    if not stamp.exists() or stamp.read_text() != digest:
        with step(f"Installing {wanted[0]}"):
            CACHE.mkdir(mode=0o700, exist_ok=True)
            make_venv(folder)
            run([folder / "bin/pip", "install", "--quiet", "--no-input",
                 "--disable-pip-version-check", *wanted])  # fmt: skip
            stamp.write_text(digest)
    return folder


def _node_env() -> dict[str, str]:
    return {**os.environ, "PATH": f"{VENV / 'bin'}:{os.environ['PATH']}"}
