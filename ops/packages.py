"""What has to be installed: Debian packages, the Python environment, the browser libraries."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ops.shell import REPOSITORY, VENV, OpsError, ask, is_root, run, step

POLICY = Path("/usr/sbin/policy-rc.d")

# package: the program or file (a pattern) that tells that it is there, whoever installed it
RUN_PACKAGES = {
    "ca-certificates": "/etc/ssl/certs/ca-certificates.crt",
    "debian-archive-keyring": "/usr/share/keyrings/debian-archive-keyring.gpg",
    "fonts-dejavu-core": "/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf",
    "iproute2": "ip",
    "iptables": "iptables",
    # These three: invoices as PDF.
    "libharfbuzz-subset0": "/usr/lib/*/libharfbuzz-subset.so.0",
    "libpango-1.0-0": "/usr/lib/*/libpango-1.0.so.0",
    "libpangoft2-1.0-0": "/usr/lib/*/libpangoft2-1.0.so.0",
    "mmdebstrap": "mmdebstrap",
    "util-linux": "nsenter",
}
TEST_PACKAGES = {
    "chromium": "chromium",
    "curl": "curl",
    "git": "git",
    "libnss-myhostname": "/usr/lib/*/libnss_myhostname.so.2",  # *.localhost
    "postgresql-15": "/usr/lib/postgresql/15/bin/postgres",
    "redis-server": "redis-server",
}


def is_present(sign: str) -> bool:
    if sign.startswith("/"):
        return any(Path("/").glob(sign[1:]))
    return shutil.which(sign, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") is not None


def ensure_debian_packages(packages: dict[str, str], *, starts_services: bool = False) -> None:
    """Install what is missing. `starts_services`: whether a service among them may start by itself.

    Raises: OpsError saying what to install where we cannot do it.
    """
    missing = [name for name, sign in packages.items() if not is_present(sign)]
    if missing:
        with step(f"Installing {', '.join(missing)}"):
            apt_install(missing, starts_services=starts_services)


def apt_install(names: Sequence[str], *, starts_services: bool = False) -> None:
    if not is_present("apt-get"):
        raise OpsError(f"this is not Debian or Ubuntu: install {', '.join(names)} yourself")
    if not is_root():
        raise OpsError(f"run as root, or first run: sudo apt-get install -y {' '.join(names)}")
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "NEEDRESTART_SUSPEND": "1"}
    apt = ("apt-get", "-qq", "-o", "Acquire::Retries=3", "-o", "DPkg::Lock::Timeout=120")
    install = (*apt, "install", "-y", "--no-install-recommends", *names)
    with _services_stay_off() if not starts_services else _nothing():
        run([*apt, "update"], env=env)
        run(install, env=env)


@contextmanager
def _services_stay_off() -> Iterator[None]:
    """Debian starts what it installs, unless this file says no; tests start their own copies."""
    if POLICY.exists():
        yield
        return
    POLICY.write_text("#!/bin/sh\nexit 101\n")
    POLICY.chmod(0o755)
    try:
        yield
    finally:
        POLICY.unlink()


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def ensure_venv(*, dev: bool = False) -> None:
    """The Python environment at .venv, as requirements.txt (and the extra "dev") say; stamped."""
    wanted = _requirements(dev=dev)
    stamp = VENV / ("stamp-dev" if dev else "stamp-run")
    digest = hashlib.sha256("\n".join([sys.version, *wanted]).encode()).hexdigest()
    if stamp.exists() and stamp.read_text() == digest and _venv_works():
        return
    with step("Installing Python packages" + (" for tests" if dev else "")):
        if not _venv_works():
            make_venv(VENV)
        run(
            [VENV / "bin/python", "-m", "pip", "install", "--quiet", "--no-input",
             "--disable-pip-version-check", *wanted],
        )  # fmt: skip
        stamp.write_text(digest)


def _requirements(*, dev: bool) -> list[str]:
    lines = (REPOSITORY / "requirements.txt").read_text().splitlines()
    wanted = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if dev:
        import tomllib

        project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
        wanted += project["optional-dependencies"]["dev"]
    return wanted


def _venv_works() -> bool:
    return ask([VENV / "bin/python", "-c", "import pip"]) is not None


def make_venv(folder: Path) -> None:
    """A Python environment by Debian's interpreter if it fits, else by the one that runs us."""
    for python in ("/usr/bin/python3", sys.executable):
        if (
            ask([python, "-c", "import ensurepip, sys; assert sys.version_info >= (3, 11)"])
            is not None
        ):
            break
    else:
        apt_install(["python3", "python3-venv"])
        python = "/usr/bin/python3"
    run([python, "-m", "venv", "--clear", folder])


def ensure_assets() -> None:
    """The dashboard's browser libraries, copied out of npm packages. Needs `.venv`."""
    env = {**os.environ, "PATH": f"{VENV / 'bin'}:{os.environ['PATH']}"}
    builder = REPOSITORY / "frontend/build_assets.py"
    if ask([VENV / "bin/python", builder, "--check"]) is None:
        with step("Copying the dashboard's browser libraries"):
            run([VENV / "bin/python", builder], env=env)
