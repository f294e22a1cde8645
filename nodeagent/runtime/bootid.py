"""Giving a container a boot id of its own, over the kernel's."""

from __future__ import annotations

import ctypes
import os
import threading
import uuid
from pathlib import Path

from nodeagent.errors import Unavailable

BOOT_ID = "/proc/sys/kernel/random/boot_id"

_CLONE_NEWNS = 0x00020000
_CLONE_FS = 0x00000200
_MS_BIND = 4096
_MS_REMOUNT = 32
_MS_RDONLY = 1

_libc = ctypes.CDLL(None, use_errno=True)


def write_boot_id(path: Path) -> None:
    """A fresh boot id in `path`; the file is replaced, so that an earlier mount keeps its own."""
    fresh = path.with_suffix(".new")
    fresh.write_text(f"{uuid.uuid4()}\n")
    fresh.chmod(0o444)
    fresh.replace(path)


def mount_boot_id(pid: int, source: str) -> None:
    """Mount the container's own file `source` over its boot id. Blocking, a millisecond.

    The engine refuses mounts below /proc, so this enters the mount namespace of the container whose
    PID 1
    is `pid`, with system calls alone: running the image's `mount` there, as nsenter(1) would, would
    run a tenant's program with the host's powers. A thread of its own does it, and ends with it:
    joining a mount namespace takes a thread whose root and directory are shared with no other.
    Raises: Unavailable.
    """
    failure: list[OSError] = []
    thread = threading.Thread(
        target=_mount_in_namespace,
        args=(f"/proc/{pid}/ns/mnt", source.encode(), BOOT_ID.encode(), failure),
        name="boot id",
    )
    thread.start()
    thread.join()
    if failure:
        raise Unavailable(f"the boot id could not be set: {failure[0]}") from failure[0]


def _mount_in_namespace(
    namespace: str, source: bytes, target: bytes, failure: list[OSError]
) -> None:
    try:
        fd = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _check(_libc.unshare(_CLONE_FS))
            _check(_libc.setns(fd, _CLONE_NEWNS))
        finally:
            os.close(fd)
        _check(_libc.mount(source, target, None, ctypes.c_ulong(_MS_BIND), None))
        flags = _MS_BIND | _MS_REMOUNT | _MS_RDONLY
        _check(_libc.mount(None, target, None, ctypes.c_ulong(flags), None))
    except OSError as error:
        failure.append(error)


def _check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
