"""Collects once per node what runs PID 1 in any image: interpreter, loader, libraries, a few
modules, the guest.

The bundle is mounted read-only at /.sandlot, the run directory of one sandbox read-only at
/.sandlot/run. The image's own libc, Python and environment are never touched.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.machinery
import importlib.util
import os
import py_compile
import re
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

MOUNT = "/.sandlot"
FORMAT = b"1"  # raise it when the layout changes
PACKAGE = Path(__file__).parent
# What the guest runs of this folder; the rest is the agent's.
GUEST_MODULES = (
    "channel",
    "entries",
    "failure",
    "files",
    "frames",
    "guest",
    "process",
    "relay",
    "spawn",
    "tinyjson",
    "users",
    "watch",
)
# Standard modules that are neither built in nor frozen in every build of CPython; see
# `needed_modules`.
C_MODULES = (
    "_ctypes",
    "_json",
    "_posixsubprocess",
    "_socket",
    "_struct",
    "array",
    "fcntl",
    "select",
)
PURE_MODULES = (
    "__future__",
    "_collections_abc",
    "_sitebuiltins",
    "abc",
    "codecs",
    "ctypes",
    "ctypes._endian",
    "encodings",
    "encodings.aliases",
    "encodings.ascii",
    "encodings.latin_1",
    "encodings.utf_8",
    "genericpath",
    "io",
    "os",
    "posixpath",
    "stat",
    "struct",
    "types",
)
# What sudo, apt, useradd and chown need as root of the container, and no more. ping works without
# NET_RAW through a sysctl of the runtime.
CAPABILITIES = (
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
)


def build_bundle(state_dir: Path) -> Path:
    """The bundle for this interpreter and this version of the guest, made if it is not there yet.

    Safe to call at every start and from several processes: it is named by what it holds and
    moved into place whole.
    """
    files = collect()
    digest = hashlib.sha256(FORMAT)
    for target, content in sorted(files.items()):
        digest.update(f"{target}\0{len(content[0])}\0{content[1]}\0".encode() + content[0])
    bundles = state_dir / "bundles"
    bundle = bundles / digest.hexdigest()[:16]
    if bundle.is_dir():
        return bundle
    bundles.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=bundles, prefix=".new-") as scratch:
        new = Path(scratch) / "bundle"
        for target, (data, mode) in files.items():
            path = new / target
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            path.chmod(mode)
        (new / "run").mkdir()  # where the sandbox's run directory is mounted
        (new / stdlib() / "lib-dynload").mkdir(parents=True, exist_ok=True)
        for directory, _names, _files in os.walk(new):
            Path(directory).chmod(0o755)
        with contextlib.suppress(FileExistsError, OSError):  # another process was faster
            new.rename(bundle)
    if not bundle.is_dir():
        raise RuntimeError(f"cannot make the guest's bundle in {bundles}")
    return bundle


def stdlib() -> str:
    return f"lib/python{sys.version_info[0]}.{sys.version_info[1]}"


def collect() -> dict[str, tuple[bytes, int]]:
    """Every file of the bundle: its place -> (content, mode)."""
    files: dict[str, tuple[bytes, int]] = {}
    # realpath: a virtual environment's python is a link to the one that is a program.
    interpreter = Path(sys.executable).resolve()
    binaries = [interpreter]
    for name in C_MODULES:
        found = importlib.util.find_spec(name)
        if found is not None and found.origin and found.origin.endswith(".so"):
            path = Path(found.origin)
            binaries.append(path)
            files[f"{stdlib()}/lib-dynload/{path.name}"] = (path.read_bytes(), 0o755)
    files["bin/python"] = (interpreter.read_bytes(), 0o755)
    loader = find_loader(interpreter)
    files["lib/loader"] = (loader.read_bytes(), 0o755)
    for binary in binaries:
        for name, path in libraries(binary).items():
            files[f"lib/{name}"] = (path.read_bytes(), 0o755)
    root = Path(sysconfig.get_path("stdlib"))
    for name in PURE_MODULES:
        source = root / (name.replace(".", "/") + ".py")
        if not source.is_file():
            source = root / name.replace(".", "/") / "__init__.py"
        target = f"{stdlib()}/{source.relative_to(root)}c"
        files[target] = (compiled(source, f"{MOUNT}/{target}"), 0o644)
    packages = ("nodeagent/__init__", "nodeagent/guest/__init__")
    for module in packages:
        files[f"{stdlib()}/{module}.pyc"] = (compiled(None, module), 0o644)
    for name in GUEST_MODULES:
        target = f"{stdlib()}/nodeagent/guest/{name}.pyc"
        files[target] = (compiled(PACKAGE / f"{name}.py", f"{MOUNT}/{target}"), 0o644)
    files["guest.py"] = (b"from nodeagent.guest.guest import main\n\nmain()\n", 0o644)
    return files


def compiled(source: Path | None, shown_as: str) -> bytes:
    """Byte code without docstrings, found by its place alone: no source to compare with, nothing
    to parse at boot.
    """
    with tempfile.TemporaryDirectory() as scratch:
        code = Path(scratch) / "code.pyc"
        if source is None:
            source = Path(scratch) / "empty.py"
            source.touch()
        py_compile.compile(
            str(source),
            cfile=str(code),
            dfile=shown_as,
            doraise=True,
            optimize=2,
            invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
        )
        return code.read_bytes()


def find_loader(binary: Path) -> Path:
    """The program interpreter named in the binary. Raises: RuntimeError."""
    head = binary.read_bytes()[:65536]
    found = re.search(rb"/lib(?:64|32)?/[\w./-]*ld-[\w.-]+\.so[\w.]*", head)
    if found is None:
        raise RuntimeError(f"{binary} names no loader")
    return Path(found[0].decode())


def libraries(binary: Path) -> dict[str, Path]:
    """Shared libraries the binary needs: name -> path. Raises: RuntimeError when one is missing."""
    out = subprocess.run(["ldd", str(binary)], capture_output=True, text=True, check=False).stdout
    found = {}
    for line in out.splitlines():
        name, arrow, rest = line.strip().partition(" => ")
        if arrow:
            if rest.startswith("not found"):
                raise RuntimeError(f"{binary} needs {name}, which is not installed")
            found[name] = Path(rest.rsplit(" (", 1)[0])
    return found


def command() -> list[str]:
    """What a container runs; the bundle's loader with the bundle's libraries, whatever the image
    holds.
    """
    return [
        f"{MOUNT}/lib/loader",
        "--library-path",
        f"{MOUNT}/lib",
        f"{MOUNT}/bin/python",
        "-I",
        "-S",
        "-B",
        f"{MOUNT}/guest.py",
    ]


def container_options(bundle_dir: Path, run_dir: Path) -> dict[str, Any]:
    """How a container must be made for the guest, as keywords of docker's `containers.create`.

    The log driver is off: the sandbox's root can write to PID 1's output, and so to the host's
    disk. PID 1 keeps the engine's oom score of 0: commands get 100, a tenth of the memory limit,
    and the guest is a few MB. A negative score would need CAP_SYS_RESOURCE of the engine, which
    nested engines lack.
    """
    return {
        "entrypoint": command(),
        "command": [],
        "user": "0:0",
        "working_dir": "/",
        "cap_drop": ["ALL"],
        "cap_add": list(CAPABILITIES),
        "stop_signal": "SIGTERM",
        "log_config": {"type": "none"},
        "volumes": {
            str(bundle_dir): {"bind": MOUNT, "mode": "ro"},
            str(run_dir): {"bind": f"{MOUNT}/run", "mode": "ro"},
        },
    }
