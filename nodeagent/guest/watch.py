"""Watching a directory with inotify, from inside the sandbox's mounts.

The child of a watcher gathers events until its agent reads them; a kept one outlives the agent's
connection.
"""

from __future__ import annotations

import _socket
import ctypes
import errno
import os
import select
import stat
from _collections import deque

from nodeagent.guest import frames, tinyjson
from nodeagent.guest.channel import Channel, pack_failure, receive_with_fds, send_with_fds
from nodeagent.guest.entries import Describer, clean
from nodeagent.guest.failure import Failure, reason
from nodeagent.guest.users import expand_path, find_user

TYPE_CHECKING = False  # the typing module is large, and every sandbox would pay for it
if TYPE_CHECKING:
    from typing import Any

MODIFY, ATTRIB = 0x2, 0x4
MOVED_FROM, MOVED_TO, CREATE, DELETE = 0x40, 0x80, 0x100, 0x200
DELETE_SELF, MOVE_SELF = 0x400, 0x800
OVERFLOW, IGNORED, IS_DIR = 0x4000, 0x8000, 0x40000000
ONLY_DIR, DONT_FOLLOW = 0x1000000, 0x2000000
MASK = (
    MODIFY | ATTRIB | MOVED_FROM | MOVED_TO | CREATE | DELETE | DELETE_SELF | MOVE_SELF | ONLY_DIR
)
TYPES = (  # in the order in which one kernel event is reported as several
    (CREATE | MOVED_TO, "EVENT_TYPE_CREATE"),
    (MOVED_FROM | MOVE_SELF, "EVENT_TYPE_RENAME"),
    (ATTRIB, "EVENT_TYPE_CHMOD"),
    (MODIFY, "EVENT_TYPE_WRITE"),
    (DELETE | DELETE_SELF, "EVENT_TYPE_REMOVE"),
)
WITH_ENTRY = ("EVENT_TYPE_CREATE", "EVENT_TYPE_CHMOD", "EVENT_TYPE_WRITE")
NETWORK_TYPES = ("nfs", "nfs4", "cifs", "smb", "smb2", "smb3", "smbfs", "fuse", "fuseblk")
LOCAL_FUSE = ("fuse.fuse-overlayfs", "fuse.lxcfs")
HEADER = 16  # of an inotify event: wd, mask, cookie, length of the name
READ_BYTES = 64 * 1024
BATCH_BYTES = 128 * 1024
QUEUE_BYTES = 16 * 1024 * 1024  # more than that, and the kernel's own queue fills and overflows

_libc = ctypes.CDLL(None, use_errno=True)


class Event:
    __slots__ = ("cookie", "mask", "name", "wd")

    def __init__(self, wd: int, mask: int, cookie: int, name: str) -> None:
        self.wd, self.mask, self.cookie, self.name = wd, mask, cookie, name


class Tree:
    """The kernel's watches below one root, and the events they give, as the client is to see
    them.
    """

    def __init__(self, root: str, *, recursive: bool, include_entry: bool) -> None:
        self.root, self.recursive, self.include_entry = root, recursive, include_entry
        self.fd = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self.fd < 0:
            raise _os_error()
        self.places: dict[int, str] = {}  # wd -> directory, relative to the root; "" is the root
        self.raw: deque[Event] = deque()
        self.describer: Describer | None = None
        self.add("")
        if recursive:
            self.add_below("")

    def path(self, place: str) -> str:
        return f"{self.root.rstrip('/')}/{place}" if place else self.root

    def add(self, place: str) -> bool:
        """Watch one directory; False when it is gone.

        Raises: OSError, when the kernel has no room for it.
        """
        mask = MASK | (DONT_FOLLOW if place else 0)
        wd = _libc.inotify_add_watch(self.fd, os.fsencode(self.path(place)), mask)
        if wd < 0:
            error = _os_error()
            if place and error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                return False
            raise error
        self.places[wd] = place
        return True

    def add_below(self, place: str) -> None:
        """Watch every directory below one that is watched."""
        stack = [place]
        while stack:
            place = stack.pop()
            for name, mode in self.scan(place):
                child = f"{place}/{name}" if place else name
                if stat.S_ISDIR(mode) and self.add(child):
                    stack.append(child)

    def scan(self, place: str) -> list[tuple[str, int]]:
        found = []
        try:
            with os.scandir(self.path(place)) as entries:
                for entry in entries:
                    try:
                        found.append((entry.name, entry.stat(follow_symlinks=False).st_mode))
                    except OSError:
                        continue
        except OSError:
            pass
        return found

    def fill(self) -> None:
        """Take everything the kernel has. Raises: OSError."""
        while True:
            try:
                data = os.read(self.fd, READ_BYTES)
            except BlockingIOError:
                return
            at = 0
            while at < len(data):
                wd = int.from_bytes(data[at : at + 4], "little", signed=True)
                mask = int.from_bytes(data[at + 4 : at + 8], "little")
                cookie = int.from_bytes(data[at + 8 : at + 12], "little")
                end = at + HEADER + int.from_bytes(data[at + 12 : at + 16], "little")
                name = os.fsdecode(data[at + HEADER : end].rstrip(b"\0"))
                self.raw.append(Event(wd, mask, cookie, name))
                at = end

    def read(self) -> list[dict[str, Any]]:
        """Every event up to now. Raises: OSError, Failure on overflow."""
        self.fill()
        self.describer = None  # names may have changed since the last batch
        found: list[dict[str, Any]] = []
        while self.raw:
            self.take(self.raw.popleft(), found)
        return found

    def take(self, event: Event, found: list[dict[str, Any]]) -> None:
        if event.mask & OVERFLOW:
            raise Failure("internal", "watcher error: fsnotify: queue or buffer overflow")
        if event.mask & IGNORED:
            self.places.pop(event.wd, None)
            return
        place = self.places.get(event.wd)
        if place is None or (place and not event.name):
            return  # what happens to a sub-directory itself, its parent reports
        name = f"{place}/{event.name}" if place and event.name else event.name or "."
        for bits, kind in TYPES:
            if event.mask & bits:
                found.append(self.tell(name, kind))
        if self.recursive and event.mask & IS_DIR and event.name:
            if event.mask & MOVED_FROM:
                self.move_away(name, event.cookie)
            elif event.mask & MOVED_TO:
                if name not in self.places.values() and self.add(name):
                    self.add_below(name)
            elif event.mask & CREATE and name not in self.places.values():
                self.adopt(name, found)

    def tell(self, name: str, kind: str) -> dict[str, Any]:
        event: dict[str, Any] = {"name": clean(name), "type": kind}
        if self.include_entry and kind in WITH_ENTRY:
            self.describer = self.describer or Describer()
            try:
                event["entry"] = self.describer.describe(self.path("" if name == "." else name))
            except OSError:
                pass  # gone already
        return event

    def adopt(self, place: str, found: list[dict[str, Any]]) -> None:
        """Watch a new directory, and report what came into it before we did: the kernel will
        not.
        """
        if not self.add(place):
            return
        wd = next(wd for wd, known in self.places.items() if known == place)
        names = self.scan(place)
        self.fill()
        # What came between the watch and the scan is in both; then the kernel's word is enough.
        seen = {
            (event.name, event.mask & (CREATE | MOVED_TO | MODIFY))
            for event in self.raw
            if event.wd == wd
        }
        for name, mode in names:
            if (name, CREATE) in seen or (name, MOVED_TO) in seen:
                continue
            child = f"{place}/{name}"
            found.append(self.tell(child, "EVENT_TYPE_CREATE"))
            if stat.S_ISDIR(mode):
                self.adopt(child, found)
            elif stat.S_ISREG(mode) and (name, MODIFY) not in seen and self.has_content(child):
                found.append(self.tell(child, "EVENT_TYPE_WRITE"))

    def has_content(self, place: str) -> bool:
        try:
            return os.lstat(self.path(place)).st_size > 0
        except OSError:
            return False

    def move_away(self, place: str, cookie: int) -> None:
        """A directory moved: within the tree its watches go on under new names, otherwise they
        end.
        """
        self.fill()
        arrival = next((e for e in self.raw if e.mask & MOVED_TO and e.cookie == cookie), None)
        target = None
        if arrival is not None and arrival.wd in self.places:
            above = self.places[arrival.wd]
            target = f"{above}/{arrival.name}" if above else arrival.name
        for wd, known in list(self.places.items()):
            if known == place or known.startswith(f"{place}/"):
                if target is not None:
                    self.places[wd] = target + known[len(place) :]
                else:
                    del self.places[wd]
                    _libc.inotify_rm_watch(self.fd, wd)


def _os_error() -> OSError:
    code = ctypes.get_errno()
    return OSError(code, os.strerror(code))


def check_root(path: str, *, allow_network_mounts: bool) -> None:
    """Raises: Failure."""
    try:
        found = os.stat(path)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            text = f"path {path} not found: stat {path}: {reason(error)}"
            raise Failure("not_found", text) from error
        raise Failure("internal", f"error statting path {path}: {reason(error)}") from error
    if not stat.S_ISDIR(found.st_mode):
        raise Failure("invalid_argument", f"path {path} not a directory: {path}")
    if not allow_network_mounts and is_network_mount(found.st_dev):
        text = f"cannot watch path on network filesystem: {path}"
        raise Failure("invalid_argument", text)


def is_network_mount(device: int) -> bool:
    """Whether changes may happen elsewhere, where our kernel does not see them."""
    wanted = f"{os.major(device)}:{os.minor(device)}"
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as lines:
            for line in lines:
                fields = line.split()
                if fields[2] == wanted:
                    kind = fields[fields.index("-") + 1]
                    is_fuse = kind.startswith("fuse.") and kind not in LOCAL_FUSE
                    return is_fuse or kind in NETWORK_TYPES
    except (OSError, ValueError, IndexError):
        pass
    return False


def start(channel: Channel, request: dict[str, Any], registry: _socket.socket) -> None:
    """Watch until removed, or until the agent leaves when the watcher is not kept."""
    user = find_user(request["user"])
    path = expand_path(user, request["path"], request.get("default_workdir") or "")
    check_root(path, allow_network_mounts=bool(request["allow_network_mounts"]))
    try:
        tree = Tree(
            path,
            recursive=bool(request["recursive"]),
            include_entry=bool(request["include_entry"]),
        )
    except OSError as error:
        text = f"error adding path {path} to watcher: {reason(error)}"
        raise Failure("internal", text) from error
    watcher_id = "w" + os.urandom(10).hex()
    control = None
    if request["keep"]:
        control, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
        control.setblocking(False)
        config = os.memfd_create("config")
        note = tinyjson.dumps({"kind": "start", "key": watcher_id, "keeper": os.getpid()})
        send_with_fds(registry, note, [theirs.fileno(), config])
        theirs.close()
        os.close(config)
    Watcher(tree, watcher_id, channel.socket, control).run()


class Watcher:
    """Gathers events and gives them to the agent's connection."""

    def __init__(
        self,
        tree: Tree,
        watcher_id: str,
        connection: _socket.socket,
        control: _socket.socket | None,
    ) -> None:
        self.tree, self.watcher_id, self.control = tree, watcher_id, control
        self.connection: _socket.socket | None = None
        self.events: deque[bytes] = deque()
        self.size = 0
        self.outbox: deque[memoryview] = deque()
        self.inbox = bytearray()
        self.failure: Failure | None = None
        self.connect(connection)

    def run(self) -> None:
        while self.connection is not None or self.control is not None:
            self.flush()
            poller = select.poll()
            if self.failure is None and self.size < QUEUE_BYTES:
                poller.register(self.tree.fd, select.POLLIN)
            if self.control is not None:
                poller.register(self.control.fileno(), select.POLLIN)
            if self.connection is not None:
                waiting = select.POLLOUT if self.outbox or self.may_push() else 0
                poller.register(self.connection.fileno(), select.POLLIN | waiting)
            for fd, events in poller.poll():
                if fd == self.tree.fd:
                    self.gather()
                elif self.control is not None and fd == self.control.fileno():
                    self.take_connection()
                elif (
                    self.connection is not None
                    and fd == self.connection.fileno()
                    and events & ~select.POLLOUT
                ):
                    self.hear()

    def gather(self) -> None:
        try:
            for event in self.tree.read():
                packed = tinyjson.dumps(event)
                self.events.append(packed)
                self.size += len(packed)
        except Failure as failure:
            self.fail(failure)
        except OSError as error:
            self.fail(Failure("internal", f"watcher error: {reason(error)}"))

    def fail(self, failure: Failure) -> None:
        """Remember it: whoever asks from now on is told, since events have been lost."""
        self.failure = failure
        self.events.clear()
        self.size = 0
        self.outbox.append(memoryview(pack_failure(frames.ERROR, failure)))

    def may_push(self) -> bool:
        """A kept watcher is asked for its events: none is in flight when its agent dies."""
        return bool(self.events) and self.control is None

    def batch(self) -> memoryview:
        taken, size = [], 0
        while self.events and size < BATCH_BYTES:
            event = self.events.popleft()
            taken.append(event)
            size += len(event)
        self.size -= size
        return memoryview(frames.pack(frames.EVENTS, b"[" + b",".join(taken) + b"]"))

    def flush(self) -> None:
        while self.connection is not None:
            if not self.outbox:
                if not self.may_push():
                    return
                self.outbox.append(self.batch())
            try:
                sent = self.connection.send(self.outbox[0])
            except BlockingIOError:
                return
            except OSError:
                self.disconnect()
                return
            self.outbox[0] = self.outbox[0][sent:]
            if not self.outbox[0]:
                self.outbox.popleft()

    def connect(self, connection: _socket.socket) -> None:
        self.disconnect()
        connection.setblocking(False)
        self.connection = connection
        reply = frames.pack(frames.REPLY, tinyjson.dumps({"watcher_id": self.watcher_id}))
        self.outbox = deque([memoryview(reply)])
        if self.failure is not None:
            self.fail(self.failure)

    def disconnect(self) -> None:
        """Frames not sent whole go back to the queue, in their order."""
        if self.connection is not None:
            self.connection.close()
        self.connection = None
        self.inbox.clear()
        for frame in reversed(self.outbox):
            whole = bytes(frame.obj)
            if whole[0] == frames.EVENTS:
                events = tinyjson.loads(whole[frames.HEADER_BYTES :])
                for event in reversed(events):
                    packed = tinyjson.dumps(event)
                    self.events.appendleft(packed)
                    self.size += len(packed)
        self.outbox.clear()

    def take_connection(self) -> None:
        assert self.control is not None
        try:
            _data, fds = receive_with_fds(self.control)
        except BlockingIOError:
            return
        except OSError:
            fds = []
        if fds:
            self.connect(_socket.socket(fileno=fds[-1]))
        else:  # PID 1 has forgotten us
            self.control.close()
            self.control = None

    def hear(self) -> None:
        assert self.connection is not None
        try:
            data = self.connection.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.disconnect()
            return
        self.inbox += data
        size = frames.HEADER_BYTES + 4
        while len(self.inbox) >= size:
            number = bytes(self.inbox[frames.HEADER_BYTES : size])
            del self.inbox[:size]
            self.drain(number)

    def drain(self, number: bytes) -> None:
        """Answer after every event up to now."""
        if self.failure is None:
            self.gather()
        if self.failure is not None:
            answer = pack_failure(frames.ANSWER, self.failure, number)
        else:
            while self.events:
                self.outbox.append(self.batch())
            answer = frames.pack(frames.ANSWER, number)
        self.outbox.append(memoryview(answer))
