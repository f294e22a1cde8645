"""PID 1 of every sandbox: forks one child per connection of the agent, reaps, and remembers what
runs.

It imports only C modules and its own few files, so that a sandbox costs little memory and starts
at once.
"""

from __future__ import annotations

import _signal
import _socket
import gc
import os
import select
import sys
import time

from nodeagent.guest import files, process, relay, tinyjson
from nodeagent.guest.channel import Channel, linger, receive_with_fds, send_with_fds
from nodeagent.guest.failure import Failure, failure_of

TYPE_CHECKING = False  # the typing module is large, and every sandbox would pay for it
if TYPE_CHECKING:
    from typing import Any, NoReturn

RUN_DIR = "/.sandlot/run"
RETAIN_SECONDS = 30.0  # an ended process can still be attached to
RETAIN_COUNT = 1024
BOOT_RETRY_SECONDS = 0.02
REQUEST_SECONDS = 10.0
GRACE_SECONDS = 0.3


class Kept:
    """A process or watcher and its keeper.

    `control` hands it a new connection; `config` is a file of JSON.
    """

    __slots__ = ("config", "control", "keeper")

    def __init__(self, keeper: int, control: int, config: int) -> None:
        self.keeper, self.control, self.config = keeper, control, config


class Guest:
    """Everything PID 1 knows.

    A forked child reads its copy of the tables, as they were at the fork.
    """

    def __init__(self, listener: _socket.socket) -> None:
        self.listener = listener
        self.kept: dict[int | str, Kept] = {}  # by pid of a process, by id of a watcher
        self.ended: dict[int, tuple[float, int]] = {}  # pid -> (when, wait status), oldest first
        self.desk, self.registry = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
        self.desk.setblocking(False)
        self.wake, self.wake_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self.is_stopping = False

    def serve(self) -> NoReturn:
        _signal.signal(_signal.SIGCHLD, lambda *_: None)
        _signal.signal(_signal.SIGTERM, self.stop)
        _signal.signal(_signal.SIGINT, self.stop)
        _signal.set_wakeup_fd(self.wake_end, warn_on_full_buffer=False)
        door, desk = self.listener.fileno(), self.desk.fileno()
        poller = select.poll()
        for fd in (door, desk, self.wake):
            poller.register(fd, select.POLLIN)
        self.reap()  # what ended before the handler stood
        while True:
            ready = [fd for fd, _ in poller.poll()]
            if self.is_stopping:
                end_all()
            if self.wake in ready:
                os.read(self.wake, 4096)
                self.reap()
            # Always before accepting: whoever connects after a process was announced must find it.
            self.read_desk()
            if door in ready:
                self.accept()

    def stop(self, *_: object) -> None:
        self.is_stopping = True

    def reap(self) -> None:
        while True:
            try:
                pid, _status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            # A keeper that was killed can no longer announce an end.
            for key in [key for key, kept in self.kept.items() if kept.keeper == pid]:
                self.read_desk()
                self.forget(key)

    def accept(self) -> None:
        try:
            fd, _ = self.listener._accept()  # type: ignore[attr-defined]
        except OSError:  # it has left, or no descriptor is free
            return
        try:
            pid = os.fork()
        except OSError as error:
            Channel(fd).fail(Failure("unavailable", f"the sandbox cannot fork: {error.strerror}"))
            return
        if pid == 0:
            self.run_child(fd)
        os.close(fd)

    def run_child(self, fd: int) -> NoReturn:
        """One operation from its request to its end; never returns into the parent's loop."""
        try:
            _signal.set_wakeup_fd(-1)
            for number in (_signal.SIGCHLD, _signal.SIGTERM, _signal.SIGINT):
                _signal.signal(number, _signal.SIG_DFL)
            self.listener.close()
            self.desk.close()
            channel = Channel(fd)
            try:
                self.run_operation(channel)
            except (BrokenPipeError, ConnectionResetError):
                pass  # the agent left
            except Exception as error:
                channel.fail(failure_of(error))
                linger(channel.socket)
        finally:
            os._exit(0)

    def run_operation(self, channel: Channel) -> None:
        request = channel.receive_request(REQUEST_SECONDS)
        op = request["op"]
        if op == "ping":
            channel.reply({})
        elif op == "start":
            process.start(channel, request, self.registry)
        elif op == "processes":
            channel.reply({"processes": self.list_processes()})
        elif op == "attach":
            self.attach(channel, int(request["pid"]))
        elif op == "dial":
            relay.dial(channel, int(request["port"]))
        elif op == "watch":
            from nodeagent.guest import watch  # brings ctypes, so only where it is needed

            watch.start(channel, request, self.registry)
        elif op == "attach_watcher":
            self.pass_on(channel, self.find_watcher(request["watcher_id"]))
        elif op == "remove_watcher":
            watcher = self.find_watcher(request["watcher_id"])
            note = tinyjson.dumps({"kind": "end", "key": request["watcher_id"]})
            send_with_fds(self.registry, note, [])
            os.kill(watcher.keeper, _signal.SIGKILL)
            channel.reply({})
        else:
            files.serve(channel, op, request)

    # What a child reads of its copy

    def list_processes(self) -> list[dict[str, Any]]:
        found = []
        for pid, kept in self.kept.items():
            if isinstance(pid, int):
                config = os.pread(kept.config, os.fstat(kept.config).st_size, 0)
                found.append({"pid": pid, **tinyjson.loads(config)})
        return found

    def attach(self, channel: Channel, pid: int) -> None:
        kept = self.kept.get(pid)
        if kept is not None:
            self.pass_on(channel, kept)
            return
        when, status = self.ended.get(pid, (0.0, 0))
        if pid not in self.ended or time.monotonic() - when > RETAIN_SECONDS:
            raise Failure("not_found", f"process with pid {pid} not found")
        channel.reply({"pid": pid})
        process.send_exit(channel, status)

    def find_watcher(self, watcher_id: str) -> Kept:
        if not isinstance(watcher_id, str) or watcher_id not in self.kept:
            raise Failure("not_found", f"watcher with id {watcher_id} not found")
        return self.kept[watcher_id]

    def pass_on(self, channel: Channel, kept: Kept) -> None:
        """Give this connection to a keeper, which answers on it. `again`: it ended just now."""
        control = _socket.socket(fileno=kept.control)
        try:
            send_with_fds(control, b"attach", [channel.socket.fileno()])
        except OSError as error:
            raise Failure("again", "it has just ended") from error

    # What keepers tell PID 1

    def read_desk(self) -> None:
        while True:
            try:
                note, fds = receive_with_fds(self.desk)
            except OSError:  # nothing more now
                return
            try:
                self.take_note(tinyjson.loads(note), fds)
            except (
                ValueError,
                KeyError,
                TypeError,
                IndexError,
            ):  # only the sandbox's own root could
                for fd in fds:
                    os.close(fd)

    def take_note(self, note: dict[str, Any], fds: list[int]) -> None:
        kind, key = note["kind"], note["key"]
        self.forget(key)
        if kind == "start":
            self.ended.pop(key, None)
            self.kept[key] = Kept(note["keeper"], fds[0], fds[1])
        elif isinstance(key, int) and "status" in note:
            self.retain(key, note["status"])

    def forget(self, key: int | str) -> None:
        kept = self.kept.pop(key, None)
        if kept is not None:
            os.close(kept.control)
            os.close(kept.config)

    def retain(self, pid: int, status: int) -> None:
        now = time.monotonic()
        self.ended.pop(pid, None)
        self.ended[pid] = (now, status)
        while True:
            oldest = next(iter(self.ended))
            if len(self.ended) <= RETAIN_COUNT and now - self.ended[oldest][0] <= RETAIN_SECONDS:
                return
            del self.ended[oldest]


def end_all() -> NoReturn:
    """Ask everything to end, wait a moment, and leave; the kernel kills what is left with PID 1."""
    try:
        if os.getpid() == 1:  # elsewhere, in tests, -1 would be the whole machine
            os.kill(-1, _signal.SIGTERM)
            ends_at = time.monotonic() + GRACE_SECONDS
            while time.monotonic() < ends_at:
                if os.waitpid(-1, os.WNOHANG)[0] == 0:
                    time.sleep(0.01)
    except (ProcessLookupError, ChildProcessError):
        pass
    os._exit(0)


def receive_listener(run_dir: str) -> _socket.socket:
    """Take the listening socket the agent made for us, waiting for the agent as long as it takes.

    The directory is read-only here: the sandbox's root can neither replace the socket nor fill
    the host's disk.
    """
    while True:
        boot = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
        try:
            boot.connect(f"{run_dir}/boot.sock")
            _data, fds = receive_with_fds(boot)
            if fds:
                listener = _socket.socket(fileno=fds[0])
                listener.setblocking(False)
                boot.send(b"R")
                return listener
        except OSError:
            pass
        finally:
            boot.close()
        time.sleep(BOOT_RETRY_SECONDS)


def main() -> NoReturn:
    run_dir = sys.argv[1] if len(sys.argv) > 1 else RUN_DIR
    os.umask(0o022)
    os.chdir("/")
    guest = Guest(receive_listener(run_dir))
    gc.collect()
    gc.disable()  # nothing here makes cycles, and a collection in a child would copy every page
    gc.freeze()
    guest.serve()
