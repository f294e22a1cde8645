"""`make test`: install what tests need, run all of them. `make bench`: the published figures."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from ops import check, engine, images, packages, sdks, services, stack, templates
from ops.deployment import Deployment
from ops.shell import REPOSITORY, VENV, OpsError, paint, say, step

# Each suite's databases: the embedded default, and what production uses.
EMBEDDED = ["-m", "not postgres and not redis"]
# The server is thrown away whole; dropping its database would wait for the last connection.
SERVERS = ["--database-only", "--reuse-db"]


def run_tests(deployment: Deployment, words: list[str]) -> int:
    """All tests, or only those that pytest's `words` choose (on the embedded database)."""
    began = time.monotonic()
    deployment = _inside_this_network(deployment)
    _install(deployment)
    if words:
        return _pytest(deployment, words)
    early: dict[str, Callable[[], int]] = {
        "check": lambda: check.run_checks(deployment, []),
        "client package": lambda: _client_package(deployment),
        "PostgreSQL and Redis": lambda: _on_servers(deployment),
    }
    failed = []
    # Its image takes minutes on a new machine, and only the last suite needs it.
    with _Job("code interpreter", lambda: templates.ensure_recipe("code-interpreter-v1")):
        for name, suite in early.items():
            say(f"\n{paint('=== ' + name, 'bold')}  (at {time.monotonic() - began:.0f} s)")
            if suite():
                failed.append(name)
    # Last, so that its closing line ends the output.
    name = "everything, embedded"
    say(f"\n{paint('=== ' + name, 'bold')}  (at {time.monotonic() - began:.0f} s)")
    if _pytest(deployment, EMBEDDED):
        failed.append(name)
    if failed:
        say(f"\n{paint('FAILED', 'red')}: {', '.join(failed)}")
    return 1 if failed else 0


def _inside_this_network(deployment: Deployment) -> Deployment:
    """Where the machine's tools were given a CA of their own, sandboxes of the tests get it too."""
    bundle = images.custom_ca_of_this_machine(deployment.environ)
    if bundle:
        os.environ["SANDLOT_EXTRA_CA"] = bundle
    return Deployment.from_environment()


def _install(deployment: Deployment) -> None:
    packages.ensure_debian_packages(packages.RUN_PACKAGES)
    engine.ensure_engine(deployment)
    packages.ensure_debian_packages(packages.TEST_PACKAGES)
    packages.ensure_venv(dev=True)
    # Building the image is mostly waiting for dpkg, copying and installing mostly for the network.
    with ExitStack() as jobs:
        jobs.enter_context(_Job("base image", lambda: images.ensure_base_image(deployment.environ)))
        packages.ensure_assets()
        sdks.ensure_all()
    stack.collect_static(deployment)


class _Job:
    """Runs a function beside the caller; leaving waits for it and raises what it raised."""

    def __init__(self, name: str, function: Callable[[], object]) -> None:
        self._function = function
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=name)

    def _run(self) -> None:
        try:
            self._function()
        except BaseException as error:
            self._error = error

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._thread.join()
        if self._error is not None:
            raise self._error


def _pytest(
    deployment: Deployment, words: list[str], *, extra: dict[str, str] | None = None
) -> int:
    env = {**deployment.process_environ(), **(extra or {})}
    # Tests bring their own deployments; they must not meet the one that may be running here.
    for name in ("SANDLOT_STATE_DIR", "SANDLOT_NODE_ID", "SANDLOT_CONTROL_PLANE_URL"):
        env.pop(name, None)
    for name in ("SANDLOT_WEB_PORT", "SANDLOT_GATEWAY_PORT", "SANDLOT_AGENT_PORT"):
        env.pop(name, None)
    command: list[str | Path] = [
        VENV / "bin/python",
        "-m",
        "pytest",
        "--durations=15",
        "--durations-min=1",
        *words,
    ]
    sys.stderr.flush()
    return subprocess.run(
        command, cwd=REPOSITORY, env=env, stdin=subprocess.DEVNULL, check=False
    ).returncode


def _on_servers(deployment: Deployment) -> int:
    with services.postgres() as database_url, services.redis() as redis_url:
        urls = {"DATABASE_URL": database_url, "REDIS_URL": redis_url}
        return _pytest(deployment, SERVERS, extra=urls)


def _client_package(deployment: Deployment) -> int:
    """The SDK's own tests, that its sync half is up to date, and that its wheel builds."""
    project = REPOSITORY / "sdk"
    python = VENV / "bin/python"
    wheels = deployment.state_dir / "wheels"
    commands: list[list[str | Path]] = [
        [python, "scripts/unasync.py", "--check"],
        [python, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", wheels, project],
        [python, "-m", "pytest", "--quiet"],
    ]
    for command in commands:
        done = subprocess.run(command, cwd=project, stdin=subprocess.DEVNULL, check=False)
        if done.returncode:
            return done.returncode
    return 0


def run_benches(deployment: Deployment, words: list[str]) -> int:
    """Measure creating and commands beside plain Docker, against the deployment that runs here."""
    if not stack.is_up(deployment):
        raise OpsError("nothing runs here: start it with `make up` (or DETACH=1 make up) first")
    with step("Installing the official SDK"):
        venv = sdks.ensure_python(sdks.newest_python())
    env = {**os.environ, **stack.account_env(deployment, "bench@example.com")}
    benches = [Path(word) for word in words] or [
        REPOSITORY / "bench" / name for name in ("create.py", "command.py")
    ]
    for bench in benches:
        done = subprocess.run([venv / "bin/python", bench], cwd=REPOSITORY, env=env, check=False)
        if done.returncode:
            return 1
    return 0
