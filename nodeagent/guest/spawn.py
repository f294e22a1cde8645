"""Starting a user's command: identity, environment, directory, pipes or terminal."""

from __future__ import annotations

import _posixsubprocess
import errno
import fcntl
import os
import posixpath

from nodeagent.guest.failure import Failure, reason
from nodeagent.guest.users import User, expand_path

TYPE_CHECKING = False  # the typing module is large, and every sandbox would pay for it
if TYPE_CHECKING:
    from typing import Any

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
OOM_SCORE = b"100"  # user code dies before the guest does
TIOCSCTTY, TIOCSWINSZ, TIOCSPTLCK, TIOCGPTPEER = 0x540E, 0x5414, 0x40045431, 0x5441
EXIT_NOT_FOUND, EXIT_NOT_EXECUTABLE = 127, 126


class Spawned:
    """A started command. `stdin`, `stdout`, `stderr`, `terminal`: our ends, -1 where there is none.

    `status`: set when it could not be executed, to what a shell would have ended with;
    `complaint` is what the shell would have printed.
    """

    __slots__ = ("complaint", "pid", "status", "stderr", "stdin", "stdout", "terminal")

    def __init__(self) -> None:
        self.pid = self.stdin = self.stdout = self.stderr = self.terminal = -1
        self.status: int | None = None
        self.complaint = b""


def find_workdir(user: User, request: dict[str, Any]) -> str:
    """Raises: Failure `invalid_argument`."""
    cwd = expand_path(user, request.get("cwd") or "", request.get("default_workdir") or "")
    try:
        os.stat(cwd)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise Failure("invalid_argument", f"cwd '{cwd}' does not exist") from error
    except OSError as error:
        raise start_failure(request, cwd, error) from error
    return cwd


def start_failure(request: dict[str, Any], cwd: str, error: OSError) -> Failure:
    line = " ".join([request["cmd"], *request["args"]])
    if request.get("pty"):
        cols, rows = request["pty"]
        text = (
            f"error starting pty with command '{line}' in dir '{cwd}' "
            f"with '{cols}' cols and '{rows}' rows: fork/exec /bin/sh: {reason(error)}"
        )
    else:
        text = f"error starting process '{line}': fork/exec /bin/sh: {reason(error)}"
    return Failure("invalid_argument", text)


def environment(user: User, extra: dict[str, str]) -> dict[bytes, bytes]:
    env = {"PATH": PATH, "HOME": user.home, "USER": user.name, "LOGNAME": user.name, **extra}
    encoded = {os.fsencode(key): os.fsencode(value) for key, value in env.items()}
    # A name the kernel cannot carry is dropped, as a shell would; a NUL would cut the value short.
    return {
        key: value
        for key, value in encoded.items()
        if key and b"=" not in key and b"\0" not in key and b"\0" not in value
    }


def candidates(cmd: bytes, env: dict[bytes, bytes]) -> list[bytes]:
    """What execvp would try."""
    if b"/" in cmd or not cmd:
        return [cmd]
    path = env.get(b"PATH") or os.fsencode(PATH)
    return [posixpath.join(directory or b".", cmd) for directory in path.split(b":")]


def spawn(user: User, request: dict[str, Any]) -> Spawned:
    """Start the command as the user.

    Raises: Failure for a bad directory; OSError when there is no room.
    """
    cwd = find_workdir(user, request)
    argv = [os.fsencode(word) for word in [request["cmd"], *request["args"]]]
    if any(b"\0" in word for word in argv):
        raise Failure("invalid_argument", "a command cannot contain a NUL byte")
    env = environment(user, request["env"])
    programs = candidates(argv[0], env)
    # It may be set lower again: the engine set PID 1's score with CAP_SYS_RESOURCE, which is the
    # floor.
    own_score = exchange_oom_score(OOM_SCORE)
    assume(user)
    try:
        try:
            os.chdir(cwd)  # with the user's own power
        except OSError as error:
            raise start_failure(request, cwd, error) from error
        if request.get("pty"):
            spawned = spawn_on_terminal(user, programs, argv, env, request["pty"])
        else:
            spawned = spawn_on_pipes(programs, argv, env, has_stdin=bool(request["stdin"]))
    finally:
        resume_root()
        os.chdir("/")
        exchange_oom_score(own_score)
    return spawned


def exchange_oom_score(score: bytes) -> bytes:
    try:
        fd = os.open("/proc/self/oom_score_adj", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return score
    try:
        before = os.read(fd, 16).strip()
        os.pwrite(fd, score, 0)
        return before
    except OSError:
        return score
    finally:
        os.close(fd)


def assume(user: User) -> None:
    """Become the user but for the saved id, which execve replaces: so vfork serves, three times
    as fast as fork.

    Effective capabilities go with the effective uid, so the kernel checks the directory as it
    should.
    """
    os.setgroups(user.groups)
    os.setresgid(user.gid, user.gid, user.gid)
    os.setresuid(user.uid, user.uid, 0)


def resume_root() -> None:
    os.setresuid(0, 0, 0)
    os.setresgid(0, 0, 0)
    os.setgroups([0])


def spawn_on_pipes(
    programs: list[bytes], argv: list[bytes], env: dict[bytes, bytes], *, has_stdin: bool
) -> Spawned:
    spawned = Spawned()
    if has_stdin:
        theirs_in, spawned.stdin = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(spawned.stdin, False)
    else:
        theirs_in = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    spawned.stdout, theirs_out = os.pipe2(os.O_CLOEXEC)
    spawned.stderr, theirs_err = os.pipe2(os.O_CLOEXEC)
    for fd in (spawned.stdout, spawned.stderr):
        os.set_blocking(fd, False)
    fds = (theirs_in, theirs_out, theirs_err)
    error = execute(spawned, programs, argv, env, fds)
    if error == errno.ENOEXEC:  # a script without "#!": execvp hands it to the shell
        script = next((path for path in programs if os.access(path, os.X_OK)), argv[0])
        os.waitpid(spawned.pid, 0)
        error = execute(spawned, [b"/bin/sh"], [b"/bin/sh", script, *argv[1:]], env, fds)
    for fd in fds:
        os.close(fd)
    if error:
        os.waitpid(spawned.pid, 0)
        explain(spawned, argv[0], error)
    return spawned


def execute(
    spawned: Spawned,
    programs: list[bytes],
    argv: list[bytes],
    env: dict[bytes, bytes],
    fds: tuple[int, int, int],
) -> int:
    """Fork and execute; returns the errno of a failed execve, or 0."""
    error_read, error_write = os.pipe2(os.O_CLOEXEC)
    try:
        spawned.pid = _posixsubprocess.fork_exec(
            argv,
            programs,
            False,  # close_fds: every descriptor of ours is close-on-exec
            (),
            None,  # type: ignore[arg-type]  # the directory: ours
            [key + b"=" + value for key, value in env.items()],
            fds[0],
            -1,
            -1,
            fds[1],
            -1,
            fds[2],
            error_read,
            error_write,
            True,  # restore_signals
            False,  # setsid
            -1,
            None,
            None,
            None,
            0o022,
            None,  # type: ignore[arg-type]  # preexec_fn
            True,  # vfork
        )
    finally:
        os.close(error_write)
    report = os.read(error_read, 256)
    os.close(error_read)
    if not report:
        return 0
    _name, code, _where = report.split(b":", 2)
    return int(code, 16)


def explain(spawned: Spawned, cmd: bytes, error: int) -> None:
    """End as a shell does that cannot execute."""
    if error in (errno.ENOENT, errno.ENOTDIR):
        spawned.status = EXIT_NOT_FOUND << 8
        spawned.complaint = b"/bin/sh: 1: exec: " + cmd + b": not found\n"
    else:
        spawned.status = EXIT_NOT_EXECUTABLE << 8
        spawned.complaint = (
            b"/bin/sh: 1: exec: " + cmd + b": " + os.strerror(error).encode() + b"\n"
        )


def set_size(terminal: int, cols: int, rows: int) -> None:
    size = b"".join(number.to_bytes(2, "little") for number in (rows, cols, 0, 0))
    fcntl.ioctl(terminal, TIOCSWINSZ, size)


def open_terminal() -> tuple[int, int]:
    """Master and slave, both opened by root: a user could not open a slave that root made."""
    flags = os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC
    master = os.open("/dev/ptmx", flags)
    try:
        fcntl.ioctl(master, TIOCSPTLCK, bytes(4))
        return master, fcntl.ioctl(master, TIOCGPTPEER, flags)
    except OSError:
        os.close(master)
        raise


def spawn_on_terminal(
    user: User,
    programs: list[bytes],
    argv: list[bytes],
    env: dict[bytes, bytes],
    size: list[int],
) -> Spawned:
    spawned = Spawned()
    os.seteuid(0)
    try:
        spawned.terminal, slave = open_terminal()
        os.fchown(slave, user.uid, -1)
        os.fchmod(slave, 0o620)
        set_size(spawned.terminal, size[0], size[1])
    finally:
        os.seteuid(user.uid)
    error_read, error_write = os.pipe2(os.O_CLOEXEC)
    spawned.pid = os.fork()
    if spawned.pid == 0:
        error = errno.EINVAL
        try:
            os.setsid()
            fcntl.ioctl(slave, TIOCSCTTY, 0)
            for fd in (0, 1, 2):
                os.dup2(slave, fd)
            os.umask(0o022)
            _restore_signals()
            os.setresuid(user.uid, user.uid, user.uid)
            error = execute_in_place(programs, argv, env)
        except OSError as failed:
            error = failed.errno or errno.EINVAL
        finally:
            os.write(error_write, str(error).encode())
            os._exit(255)
    os.close(error_write)
    os.close(slave)
    report = os.read(error_read, 16)
    os.close(error_read)
    if report:
        os.waitpid(spawned.pid, 0)
        explain(spawned, argv[0], int(report))
        spawned.complaint = spawned.complaint.replace(b"\n", b"\r\n")
    os.set_blocking(spawned.terminal, False)
    return spawned


def _restore_signals() -> None:
    import _signal

    for name in ("SIGPIPE", "SIGXFSZ", "SIGCHLD", "SIGINT", "SIGTERM"):
        _signal.signal(getattr(_signal, name), _signal.SIG_DFL)


def execute_in_place(programs: list[bytes], argv: list[bytes], env: dict[bytes, bytes]) -> int:
    """Try each program as execvp does; returns the errno that says most."""
    worst = errno.ENOENT
    for program in programs:
        try:
            os.execve(program, argv, env)
        except OSError as error:
            if error.errno == errno.ENOEXEC:
                os.execve(b"/bin/sh", [b"/bin/sh", program, *argv[1:]], env)
            if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                worst = error.errno or worst
    return worst
