"""The keeper of one process: relays its input and output, enforces its deadline, and outlives
the agent's connection.

A keeper is a forked child of PID 1 with one small poll loop. Output goes to the agent's
connection; while the agent does not read, the keeper does not read from the process; while there
is no agent, a bounded ring keeps the newest output for a later `attach`.
"""

from __future__ import annotations

import _signal
import _socket
import fcntl
import os
import select
import time

from nodeagent.guest import frames, tinyjson
from nodeagent.guest.channel import Channel, linger, pack_failure, receive_with_fds, send_with_fds
from nodeagent.guest.failure import Failure, reason
from nodeagent.guest.spawn import set_size, spawn
from nodeagent.guest.users import find_user

TYPE_CHECKING = False  # the typing module is large, and every sandbox would pay for it
if TYPE_CHECKING:
    from typing import Any

RING_BYTES = 64 * 1024
SMALL_READ, LARGE_READ = 32 * 1024, 256 * 1024
LARGE_PIPE = 256 * 1024
F_SETPIPE_SZ = 1031
KILL_WAIT_SECONDS = 0.2  # how long the answer to SIGKILL waits for the reaping
HANGUP_SECONDS = 0.02  # a terminal's last output passes through a kernel worker
IN, OUT = select.POLLIN, select.POLLOUT


def start(channel: Channel, request: dict[str, Any], registry: _socket.socket) -> None:
    """Start the process and keep it until it has ended."""
    Keeper(channel, request, registry).run()


def send_exit(channel: Channel, status: int) -> None:
    channel.send(frames.pack(frames.EXIT, (status & 0xFFFFFFFF).to_bytes(4, "big")))


class Keeper:
    def __init__(self, channel: Channel, request: dict[str, Any], registry: _socket.socket) -> None:
        self.registry = registry
        self.poller = select.poll()
        self.watched: dict[int, int] = {}
        seconds = request.get("deadline_seconds")
        self.deadline = None if seconds is None else time.monotonic() + seconds
        self.is_cut = False  # signalled: do not wait for whoever else holds the pipes
        self.pending = memoryview(b"")  # the frame being sent
        self.answers: list[bytes] = []  # frames to be sent next
        self.ring: list[bytes] = []  # frames nobody was there to take
        self.ring_size = 0
        self.inbox = bytearray()
        self.stdin_queue: list[tuple[int, memoryview]] = []
        self.close_after_stdin = False
        self.kills: list[tuple[int, float]] = []  # signals whose answer waits for the reaping
        self.buffer = memoryview(bytearray(frames.HEADER_BYTES + SMALL_READ))

        self.wake, wake_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        _signal.signal(_signal.SIGCHLD, lambda *_: None)
        _signal.set_wakeup_fd(wake_end, warn_on_full_buffer=False)
        self.process = spawn(find_user(request["user"]), request)
        self.pid = self.process.pid
        self.status = self.process.status
        self.control = self.announce(request)
        self.kinds: dict[int, int] = {}
        for fd, kind in (
            (self.process.stdout, frames.STDOUT),
            (self.process.stderr, frames.STDERR),
            (self.process.terminal, frames.PTY),
        ):
            if fd >= 0:
                self.kinds[fd] = kind
        self.connection: _socket.socket | None = None
        self.connect(channel.socket)
        if self.process.complaint:
            is_pty = self.process.terminal >= 0
            kind = frames.PTY if is_pty else frames.STDERR
            self.answers.append(frames.pack(kind, self.process.complaint))

    def announce(self, request: dict[str, Any]) -> _socket.socket:
        """Tell PID 1 before telling the agent, so that whoever hears of the pid can attach to
        it.
        """
        ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        config = os.memfd_create("config")
        about = {
            "config": request.get("config") or {},
            "tag": request.get("tag"),
            "pty": bool(request.get("pty")),
            "stdin": bool(request.get("stdin")),
        }
        data = tinyjson.dumps(about)
        while data:
            data = data[os.write(config, data) :]
        note = tinyjson.dumps({"kind": "start", "key": self.pid, "keeper": os.getpid()})
        send_with_fds(self.registry, note, [theirs.fileno(), config])
        theirs.close()
        os.close(config)
        return ours

    # The loop

    def run(self) -> None:
        self.watch(self.wake, IN)
        self.watch(self.control.fileno(), IN)
        while True:
            self.flush()
            if self.is_over():
                break
            self.arrange()
            for fd, events in self.poller.poll(self.timeout_ms()):
                self.handle(fd, events)
            self.check_clock()
        self.finish()

    def is_over(self) -> bool:
        if self.status is None:
            return False
        if self.kinds and (self.is_cut or self.process.terminal >= 0):
            self.drain()
        return not self.kinds

    def arrange(self) -> None:
        """Watch exactly what can make progress; a pipe that has hung up would report without
        end.
        """
        may_read = not self.pending and not self.kills  # so little stands before the answer
        for fd in self.kinds:
            events = IN if may_read else 0
            if fd == self.process.terminal and self.stdin_queue:
                events |= OUT
            self.watch(fd, events)
        if self.process.stdin >= 0:
            self.watch(self.process.stdin, OUT if self.stdin_queue else 0)
        if self.connection is not None:
            self.watch(self.connection.fileno(), IN | (OUT if self.pending else 0))

    def watch(self, fd: int, events: int) -> None:
        if self.watched.get(fd, 0) == events:
            return
        if events:
            self.poller.register(fd, events)
            self.watched[fd] = events
        else:
            self.unwatch(fd)

    def unwatch(self, fd: int) -> None:
        if self.watched.pop(fd, 0):
            self.poller.unregister(fd)

    def timeout_ms(self) -> int | None:
        times = [until for _, until in self.kills]
        if self.deadline is not None:
            times.append(self.deadline)
        if not times:
            return None
        return max(0, int((min(times) - time.monotonic()) * 1000) + 1)

    def check_clock(self) -> None:
        if self.deadline is not None and time.monotonic() >= self.deadline:
            self.deadline = None
            self.kill(_signal.SIGKILL)
        if self.kills:
            now = time.monotonic()
            for number, until in self.kills[:]:
                if self.status is not None or now >= until:
                    self.kills.remove((number, until))
                    self.answer(number)

    def handle(self, fd: int, events: int) -> None:
        if fd in self.kinds:
            if events & OUT:
                self.feed()
            if events & ~OUT and not self.pending and fd in self.kinds:
                self.read_output(fd)
        elif fd == self.wake:
            os.read(self.wake, 512)
            self.reap()
        elif fd == self.process.stdin:
            self.feed()
        elif fd == self.control.fileno():
            self.take_connection()
        elif self.connection is not None and fd == self.connection.fileno() and events & ~OUT:
            self.hear()

    def reap(self) -> None:
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = status

    def finish(self) -> None:
        """Tell PID 1, then the agent, and leave when the agent has it all."""
        assert self.status is not None
        note = tinyjson.dumps({"kind": "end", "key": self.pid, "status": self.status})
        send_with_fds(self.registry, note, [])
        for number, _ in self.kills:
            self.answer(number)
        for number, _data in self.stdin_queue:
            self.refuse(number, self.stdin_failure("broken pipe"))
        self.take_connection()
        self.answers.append(frames.pack(frames.EXIT, (self.status & 0xFFFFFFFF).to_bytes(4, "big")))
        while self.connection is not None:
            self.flush()
            if not self.pending and not self.answers:
                break
            poller = select.poll()
            poller.register(self.connection.fileno(), IN | OUT)
            if any(events & IN for _, events in poller.poll()):
                self.hear()
        if self.connection is not None:
            linger(self.connection)

    # Output

    def read_output(self, fd: int) -> None:
        buffer = self.buffer
        try:
            size = os.readv(fd, [buffer[frames.HEADER_BYTES :]])
        except BlockingIOError:
            return
        except OSError:  # EIO: the last holder of the terminal has left
            size = 0
        if size == 0:
            self.close_output(fd)
            return
        buffer[0] = kind = self.kinds.pop(fd)
        self.kinds[fd] = kind  # to the end of the line, so that a busy stdout cannot starve stderr
        buffer[1:5] = size.to_bytes(4, "big")
        frame = buffer[: frames.HEADER_BYTES + size]
        if self.connection is None:
            self.keep(bytes(frame))
            return
        self.pending = frame
        self.flush()
        if size == len(buffer) - frames.HEADER_BYTES < LARGE_READ and not self.pending:
            self.enlarge(fd)

    def enlarge(self, fd: int) -> None:
        """A full read: this process has much to say, so take more of it at a time."""
        self.buffer = memoryview(bytearray(frames.HEADER_BYTES + LARGE_READ))
        if self.kinds[fd] != frames.PTY:
            for pipe in self.kinds:
                try:
                    fcntl.fcntl(pipe, F_SETPIPE_SZ, LARGE_PIPE)
                except OSError:
                    pass  # the kernel's allowance for pipes is used up; it works with less

    def close_output(self, fd: int) -> None:
        self.unwatch(fd)
        del self.kinds[fd]
        os.close(fd)
        if fd == self.process.terminal:
            self.process.terminal = -1

    def drain(self) -> None:
        """Take what is there now, without waiting for an end of it."""
        if self.pending:
            return  # the loop comes back when the agent has read
        patience = HANGUP_SECONDS if self.process.terminal >= 0 and not self.is_cut else 0.0
        for fd in list(self.kinds):
            poller = select.poll()
            poller.register(fd, IN)
            while fd in self.kinds and poller.poll(patience * 1000):
                self.read_output(fd)
                if self.pending:
                    return
            if fd in self.kinds:
                self.close_output(fd)

    def flush(self) -> None:
        """Send what waits, as far as the agent takes it."""
        while self.connection is not None:
            if not self.pending:
                if not self.answers:
                    return
                self.pending = memoryview(self.answers.pop(0))
            try:
                sent = self.connection.send(self.pending)
            except BlockingIOError:
                return
            except OSError:
                self.disconnect()
                return
            self.pending = self.pending[sent:]

    def keep(self, frame: bytes) -> None:
        """Remember the newest RING_BYTES, to the byte."""
        self.ring.append(frame)
        self.ring_size += len(frame)
        while self.ring_size > RING_BYTES:
            oldest = self.ring.pop(0)
            self.ring_size -= len(oldest)
            room = RING_BYTES - self.ring_size - frames.HEADER_BYTES
            if room > 0:
                self.ring.insert(0, frames.pack(oldest[0], oldest[-room:]))
                self.ring_size += room + frames.HEADER_BYTES

    # The agent

    def connect(self, connection: _socket.socket) -> None:
        """Serve this connection from now on; it first gets what the ring kept."""
        self.disconnect()
        connection.setblocking(False)
        self.connection = connection
        self.inbox.clear()
        self.answers = [frames.pack(frames.REPLY, tinyjson.dumps({"pid": self.pid})), *self.ring]
        self.ring, self.ring_size = [], 0

    def disconnect(self) -> None:
        if self.connection is None:
            return
        self.unwatch(self.connection.fileno())
        self.connection.close()
        self.connection = None
        if self.pending:  # a frame cut in the middle was of no use to an agent that died
            cut = memoryview(self.pending.obj)
            size = int.from_bytes(cut[1:5], "big")
            self.answers.insert(0, bytes(cut[: frames.HEADER_BYTES + size]))
        for frame in self.answers:
            if frame[0] in (frames.STDOUT, frames.STDERR, frames.PTY):
                self.keep(frame)
        self.pending, self.answers = memoryview(b""), []
        self.stdin_queue.clear()
        self.kills.clear()

    def take_connection(self) -> None:
        try:
            _data, fds = receive_with_fds(self.control)
        except BlockingIOError:
            return
        except OSError:
            fds = []
        if not fds:  # PID 1 is gone, and the sandbox with it
            self.unwatch(self.control.fileno())
            return
        self.connect(_socket.socket(fileno=fds[-1]))

    def hear(self) -> None:
        assert self.connection is not None
        try:
            data = self.connection.recv(LARGE_READ)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.disconnect()
            return
        self.inbox += data
        while len(self.inbox) >= frames.HEADER_BYTES:
            end = frames.HEADER_BYTES + int.from_bytes(self.inbox[1:5], "big")
            if end > frames.MAX_DATA + 64:
                self.disconnect()
                return
            if len(self.inbox) < end:
                return
            kind, payload = self.inbox[0], bytes(self.inbox[frames.HEADER_BYTES : end])
            del self.inbox[:end]
            number = int.from_bytes(payload[:4], "big")
            try:
                self.obey(kind, number, payload[4:])
            except Failure as failure:
                self.refuse(number, failure)

    def obey(self, kind: int, number: int, data: bytes) -> None:
        if kind == frames.STDIN:
            self.take_stdin(number, data)
        elif kind == frames.CLOSE_STDIN:
            self.close_stdin(number)
        elif kind == frames.SIGNAL:
            self.kill(data[0])
            if data[0] == _signal.SIGKILL and self.status is None:
                self.kills.append((number, time.monotonic() + KILL_WAIT_SECONDS))
            else:
                self.answer(number)
        elif kind == frames.RESIZE:
            if self.process.terminal < 0:
                raise Failure("internal", "error resizing tty: tty not assigned to process")
            cols, rows = int.from_bytes(data[:2], "big"), int.from_bytes(data[2:4], "big")
            set_size(self.process.terminal, cols, rows)
            self.answer(number)
        else:
            raise Failure("invalid_argument", "unknown frame")

    def answer(self, number: int) -> None:
        self.answers.append(frames.pack_numbered(frames.ANSWER, number))

    def refuse(self, number: int, failure: Failure) -> None:
        self.answers.append(pack_failure(frames.ANSWER, failure, number.to_bytes(4, "big")))

    def kill(self, number: int) -> None:
        """Signal the leader only. One that has ended but left its pipes to others ends here."""
        if self.status is None:
            os.kill(self.pid, number)
        if number in (_signal.SIGKILL, _signal.SIGTERM):
            self.is_cut = True

    # Input

    def input_fd(self) -> int:
        return self.process.terminal if self.process.terminal >= 0 else self.process.stdin

    def take_stdin(self, number: int, data: bytes) -> None:
        if self.input_fd() < 0 or self.close_after_stdin:
            raise Failure("internal", "error writing to stdin: stdin not enabled or closed")
        self.stdin_queue.append((number, memoryview(data)))
        self.feed()

    def feed(self) -> None:
        while self.stdin_queue:
            number, data = self.stdin_queue[0]
            try:
                data = data[os.write(self.input_fd(), data) :] if data else data
            except BlockingIOError:
                return
            except OSError as error:
                self.stdin_queue.pop(0)
                self.refuse(number, self.stdin_failure(reason(error)))
                continue
            if data:
                self.stdin_queue[0] = (number, data)
                return
            self.stdin_queue.pop(0)
            self.answer(number)
        if self.close_after_stdin:
            self.release_stdin()

    def stdin_failure(self, why: str) -> Failure:
        return Failure(
            "internal", f"error writing to stdin of process '{self.pid}': write |1: {why}"
        )

    def close_stdin(self, number: int) -> None:
        if self.process.terminal >= 0:
            raise Failure(
                "unknown",
                "error closing stdin: cannot close stdin for PTY process"
                " — send Ctrl+D (0x04) instead",
            )
        self.close_after_stdin = True
        self.feed()
        self.answer(number)

    def release_stdin(self) -> None:
        if self.process.stdin >= 0:
            self.unwatch(self.process.stdin)
            os.close(self.process.stdin)
            self.process.stdin = -1
