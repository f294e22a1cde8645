"""`make doctor`: is this machine fit to run sandboxes? One line a question: OK, or what to do."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from ops import engine, images, processes
from ops.deployment import Deployment
from ops.shell import ask, is_root, paint

GIB = 1024**3


class Level(StrEnum):
    OK = "OK"
    WARN = "WARN"
    FAIL = "FAIL"


@dataclass(frozen=True)
class Finding:
    level: Level
    subject: str
    text: str
    fix: str = ""

    def line(self) -> str:
        colour = {Level.OK: "green", Level.WARN: "yellow", Level.FAIL: "red"}[self.level]
        fix = f"  Fix: {self.fix}" if self.fix else ""
        return f"{paint(f'{self.level:<4}', colour)}  {self.subject:<15} {self.text}{fix}"


def examine(deployment: Deployment) -> Iterator[Finding]:
    """Every finding, in the order in which they build on each other."""
    yield check_kernel(os.uname().release)
    yield check_memory(Path("/proc/meminfo").read_text())
    yield check_disk(deployment)
    yield from check_ports(deployment)
    yield check_clock()
    facts = engine.info()
    if facts is None:
        yield _no_engine()
        return
    yield check_cgroup(facts)
    yield check_docker_version(facts)
    yield check_storage(facts)
    yield check_runc(_runc_version(facts))
    yield check_live_restore(facts)
    yield check_base_image(deployment)
    yield from check_from_inside()


def check_kernel(release: str) -> Finding:
    if _numbers(release) < (4, 18):
        return Finding(Level.FAIL, "kernel", release, "Linux 4.18 or newer is needed.")
    if _numbers(release) < (5, 10):
        return Finding(
            Level.WARN, "kernel", release, "use a kernel that still gets security fixes."
        )
    return Finding(Level.OK, "kernel", release)


def check_memory(meminfo: str) -> Finding:
    found = dict(re.findall(r"^(\w+):\s+(\d+) kB", meminfo, re.MULTILINE))
    total, free = int(found["MemTotal"]) / 2**20, int(found["MemAvailable"]) / 2**20
    text = f"{free:.1f} of {total:.1f} GiB available"
    if total < 1.8:
        return Finding(Level.FAIL, "memory", text, "use a machine with at least 2 GiB.")
    if free < 1:
        return Finding(
            Level.WARN, "memory", text, "free at least 1 GiB, or sandboxes will be killed."
        )
    return Finding(Level.OK, "memory", text)


def check_disk(deployment: Deployment) -> Finding:
    facts = engine.info() or {}
    folders = [deployment.state_dir, Path(facts.get("DockerRootDir") or "/var/lib/docker")]
    existing = [next(p for p in (f, *f.parents) if p.exists()) for f in folders]
    free = min(shutil.disk_usage(folder).free for folder in existing) / GIB
    text = f"{free:.0f} GiB free for images and sandboxes"
    if free < 3:
        return Finding(Level.FAIL, "disk", text, "free at least 3 GiB (`docker system prune`).")
    if free < 15:
        return Finding(
            Level.WARN, "disk", text, "15 GiB or more lets sandboxes be used in earnest."
        )
    return Finding(Level.OK, "disk", text)


def check_ports(deployment: Deployment) -> Iterator[Finding]:
    ours = processes.supervisor_pid(deployment) is not None
    for name, port in deployment.ports.items():
        owner = processes.whose_port(port)
        if owner and not ours:
            fix = f"stop it, or set SANDLOT_{name.upper()}_PORT."
            yield Finding(Level.FAIL, f"port {port}", f"{name}: taken by {owner}", fix)
        else:
            yield Finding(Level.OK, f"port {port}", f"{name}: {'ours' if owner else 'free'}")


def check_clock() -> Finding:
    """Signed URLs and deadlines need a true clock; a web server's own date is near enough."""
    url = images.host_mirror()
    try:
        with urllib.request.urlopen(  # noqa: S310 http(s) only: a Debian mirror
            urllib.request.Request(url + "/", method="HEAD"),  # noqa: S310 http(s) only
            timeout=5,
        ) as answer:
            date = answer.headers.get("Date")
    except urllib.error.HTTPError as error:
        date = error.headers.get("Date")
    except OSError:
        date = None
    if not date:
        return Finding(
            Level.WARN, "clock", f"{url} gave no time to compare with", "see that NTP runs."
        )
    offset = time.time() - parsedate_to_datetime(date).timestamp()
    text = f"{abs(offset):.0f} s off {url.split('/')[2]}"
    if abs(offset) > 30:
        return Finding(Level.WARN, "clock", text, "set the clock (`timedatectl set-ntp true`).")
    return Finding(Level.OK, "clock", text)


def _no_engine() -> Finding:
    fix = (
        "`make up` installs and starts Debian's."
        if is_root()
        else "start one, and add your user to the group docker; or run as root."
    )
    return Finding(Level.FAIL, "docker", "no engine answers", fix)


def check_cgroup(facts: dict[str, Any]) -> Finding:
    version = str(facts.get("CgroupVersion", "1"))
    missing = [
        name
        for name, field in (
            ("memory", "MemoryLimit"),
            ("cpu", "CpuCfsQuota"),
            ("pids", "PidsLimit"),
        )
        if not facts.get(field)
    ]
    if missing:
        fix = "boot with these controllers on (on some boards: cgroup_enable=memory)."
        return Finding(Level.FAIL, "cgroup", f"v{version} without {', '.join(missing)}", fix)
    return Finding(Level.OK, "cgroup", f"v{version}, with memory, cpu and pids limits")


def check_docker_version(facts: dict[str, Any]) -> Finding:
    version = facts["ServerVersion"]
    if _numbers(version) < (20, 10):
        return Finding(Level.FAIL, "docker", version, "20.10 or newer is needed.")
    return Finding(Level.OK, "docker", version)


def check_storage(facts: dict[str, Any]) -> Finding:
    driver = facts.get("Driver", "")
    backing = dict(facts.get("DriverStatus") or []).get("Backing Filesystem", "")
    text = f"{driver} on {backing}" if backing else driver
    # No quota of the engine's is asked for, whatever the driver: see docs/explanation/lifecycle.md.
    text += "; a sandbox that outgrows its disk is paused"
    if driver in ("overlay2", "overlayfs"):
        return Finding(Level.OK, "storage driver", text)
    fix = "put /var/lib/docker on ext4 or xfs, so that Docker uses overlay2."
    return Finding(Level.FAIL if driver == "vfs" else Level.WARN, "storage driver", text, fix)


def _runc_version(facts: dict[str, Any]) -> str:
    raw = ask(["docker", "version", "--format", "{{json .Server.Components}}"])
    for component in json.loads(raw or "[]") or []:
        if component["Name"] == "runc":
            details = component.get("Details") or {}
            return f"{component['Version']} {details.get('GitCommit', '')}".strip()
    return str((facts.get("RuncCommit") or {}).get("ID") or "")


def check_runc(version: str) -> Finding:
    """CVE-2025-31133, -52565, -52881: a container can write through the host's /proc.

    Source: runc's advisories of November 2025; fixed in 1.2.8, 1.3.3 and 1.4.0.
    """
    shown = version.split(" ")[0] or "unknown"
    numbers = _numbers(version)
    if not numbers:
        return Finding(
            Level.WARN, "runc", "version unknown", "see that it is 1.2.8, 1.3.3, 1.4 or newer."
        )
    fixed: tuple[int, ...] = (1, 4)
    for line in ((1, 2, 8), (1, 3, 3)):
        if numbers[:2] == line[:2]:
            fixed = line
    if numbers >= fixed:
        return Finding(Level.OK, "runc", shown)
    fix = (
        "install runc 1.2.8, 1.3.3 or newer (Docker's own packages bring it), "
        "or see that your distribution patched CVE-2025-31133, -52565 and -52881; "
        "until then run only code you trust not to attack the host."
    )
    return Finding(Level.WARN, "runc", f"{shown} is known to have container escapes", fix)


def check_live_restore(facts: dict[str, Any]) -> Finding:
    if facts.get("LiveRestoreEnabled"):
        return Finding(Level.OK, "live restore", "sandboxes outlive a restart of Docker")
    fix = 'put {"live-restore": true} into /etc/docker/daemon.json and reload dockerd.'
    return Finding(Level.WARN, "live restore", "off: restarting Docker ends all sandboxes", fix)


def check_base_image(deployment: Deployment) -> Finding:
    label = images.image_label(images.BASE_IMAGE, "sandlot.content")
    if label is None:
        return Finding(Level.WARN, "base image", "not built yet", "`make up` builds it.")
    if label != images.wanted_content(deployment.environ):
        return Finding(Level.WARN, "base image", "older than its recipe", "`make up` rebuilds it.")
    return Finding(Level.OK, "base image", images.BASE_IMAGE)


_PROBE = """
import socket, sys, urllib.request
def dns(name):
    socket.getaddrinfo(name, 443)
def get(url):
    urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=6).close()
for kind, call, what in (("dns", dns, "pypi.org"), ("PyPI", get, "https://pypi.org/simple/pip/"),
        ("npm", get, "https://registry.npmjs.org/npm"), ("Debian", get, "http://deb.debian.org/debian/")):
    try:
        call(what)
        print(kind, "ok", sep="\\t")
    except Exception as error:
        print(kind, getattr(error, "reason", error), sep="\\t")
"""


def check_from_inside() -> Iterator[Finding]:
    """DNS and package registries, from a container on Docker's own network."""
    if images.image_label(images.BASE_IMAGE, "sandlot.content") is None:
        yield Finding(
            Level.WARN, "from inside", "not tried: no base image yet", "`make up` builds it."
        )
        return
    raw = ask(
        ["docker", "run", "--rm", "--cap-drop", "ALL", images.BASE_IMAGE, "python3", "-c", _PROBE],
        timeout=60,
    )
    if raw is None:
        fix = f"try: docker run --rm {images.BASE_IMAGE} true"
        yield Finding(Level.FAIL, "container", "the base image does not run", fix)
        return
    answers = dict(line.split("\t", 1) for line in raw.splitlines() if "\t" in line)
    fixes: dict[str, Callable[[str], str]] = {
        "dns": lambda _: (
            'give Docker a resolver: {"dns": ["<address>"]} in /etc/docker/daemon.json.'
        ),
        "other": lambda error: (
            "set SANDLOT_EXTRA_CA to your network's CA bundle (PEM) and run `make up`."
            if "CERTIFICATE" in error
            else "see the firewall, and that IP forwarding is on (sysctl net.ipv4.ip_forward)."
        ),
    }
    for kind, answer in answers.items():
        subject = "DNS inside" if kind == "dns" else f"{kind} inside"
        if answer == "ok":
            yield Finding(Level.OK, subject, "reached from a container")
        else:
            fix = fixes.get(kind, fixes["other"])(answer)
            yield Finding(Level.WARN, subject, f"not reached from a container: {answer}", fix)


def _numbers(version: str) -> tuple[int, ...]:
    found = re.match(r"v?(\d+(?:\.\d+)*)", version)
    return tuple(int(part) for part in found[1].split(".")) if found else ()
