"""Making a guest's sockets and handing it the one it serves on.

The agent makes both sockets, in a directory the container sees read-only. The guest connects to
boot.sock and is given the listening descriptor of guest.sock; nothing ever comes back but one byte.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
from pathlib import Path

from nodeagent.errors import GuestFault

BOOT, GUEST = "boot.sock", "guest.sock"
BACKLOG = 1024


def socket_path(run_dir: Path) -> Path:
    return run_dir / GUEST


def listen(run_dir: Path, name: str) -> socket.socket:
    """A listening socket of mode 0600, in place of whatever had the name."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    directory = os.open(run_dir, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=directory)
        os.fchmod(listener.fileno(), 0o600)  # what the socket's file will have
        # Through /proc: a unix socket's path may be 108 bytes long, a state directory longer.
        listener.bind(f"/proc/self/fd/{directory}/{name}")
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    finally:
        os.close(directory)
    return listener


def connect(path: Path) -> socket.socket:
    """Connect without following links and to nothing but a socket.

    Raises: OSError (BlockingIOError while the guest's queue is full); GuestFault.
    """
    found = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if not stat.S_ISSOCK(os.fstat(found).st_mode):
            raise GuestFault("the guest's socket is not a socket")
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            connection.connect(f"/proc/self/fd/{found}")
        except BaseException:
            connection.close()
            raise
        return connection
    finally:
        os.close(found)


class Handover:
    """The sockets of one boot: make it before the container starts, then `wait` until the guest
    serves.
    """

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.door = listen(run_dir, GUEST)
        try:
            self.boot = listen(run_dir, BOOT)
        except BaseException:
            self.door.close()
            raise

    async def wait(self, timeout_seconds: float) -> None:
        """Give the guest its socket, whenever it comes, and return when it serves.

        Raises: GuestFault.
        """
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(timeout_seconds):
                while True:
                    guest, _ = await loop.sock_accept(self.boot)
                    with guest:
                        guest.setblocking(False)
                        with contextlib.suppress(OSError):
                            socket.send_fds(guest, [b"L"], [self.door.fileno()])
                            # recv, not recvmsg: a descriptor sent to us is dropped by the kernel.
                            if await loop.sock_recv(guest, 1) == b"R":
                                return
        except TimeoutError as error:
            text = f"the guest did not start within {timeout_seconds:g} seconds"
            raise GuestFault(text) from error
        finally:
            self.close()

    def close(self) -> None:
        self.boot.close()
        self.door.close()  # ours: from now on nobody listens once the guest is gone
        with contextlib.suppress(OSError):
            (self.run_dir / BOOT).unlink()


async def hand_over(run_dir: Path, timeout_seconds: float = 30.0) -> None:
    """Make both sockets, wait for the guest to boot, and hand over. Raises: GuestFault.

    The sockets exist from the first step of this coroutine, so it may run beside the container's
    start.
    """
    await Handover(run_dir).wait(timeout_seconds)
