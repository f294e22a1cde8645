"""File operations, with root's power and inside the sandbox's own mounts.

The user says where a path starts and who owns what is made.
"""

from __future__ import annotations

import errno
import os
import stat

from nodeagent.guest import frames
from nodeagent.guest.channel import Channel
from nodeagent.guest.entries import XATTR_PREFIX, Describer, clean
from nodeagent.guest.failure import NO_SPACE, Failure, reason
from nodeagent.guest.users import User, expand_path, find_user

TYPE_CHECKING = False  # the typing module is large, and every sandbox would pay for it
if TYPE_CHECKING:
    from typing import Any

    Request = dict[str, Any]


def serve(channel: Channel, op: str, request: Request) -> None:
    if op == "read":
        read(channel, request)
        return
    if op == "write":
        write(channel, request)
        return
    if op not in UNARY:
        raise Failure("unimplemented", f"no operation {op}")
    channel.reply(UNARY[op](request))


def place(request: Request, key: str = "path") -> tuple[User, str]:
    user = find_user(request["user"])
    return user, expand_path(user, request[key], request.get("default_workdir") or "")


def resolve_user(request: Request) -> dict[str, Any]:
    user = find_user(request["user"])
    return {
        "uid": user.uid,
        "gid": user.gid,
        "groups": user.groups,
        "home": clean(user.home),
        "name": clean(user.name),
    }


def resolve_path(request: Request) -> dict[str, Any]:
    return {"path": place(request)[1]}


def stat_path(request: Request) -> dict[str, Any]:
    _user, path = place(request)
    try:
        return {"entry": Describer().describe(path)}
    except (FileNotFoundError, NotADirectoryError) as error:
        raise Failure("not_found", f"file not found: lstat {path}: {reason(error)}") from error
    except OSError as error:
        raise Failure("internal", f"error statting file: lstat {path}: {reason(error)}") from error


def make_dir(request: Request) -> dict[str, Any]:
    user, path = place(request)
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        pass
    else:
        if stat.S_ISDIR(found.st_mode):
            raise Failure("already_exists", f"directory already exists: {path}")
        raise Failure("invalid_argument", f"path already exists but it is not a directory: {path}")
    make_parents(user, path)
    return {"entry": Describer().describe(path)}


def make_parents(user: User, path: str) -> None:
    """Make `path` and what is missing above it, each owned by the user. What exists stays as it is.

    Raises: Failure `internal`, `no_space`.
    """
    missing = []
    while path and path != "/":
        try:
            if stat.S_ISDIR(os.stat(path).st_mode):
                break
            raise Failure("internal", f"error creating directory: mkdir {path}: not a directory")
        except FileNotFoundError:
            missing.append(path)
        except OSError as error:
            if error.errno == errno.ENOTDIR:
                missing.append(path)
            else:
                raise Failure("internal", f"error creating directory: {reason(error)}") from error
        path = os.path.dirname(path.rstrip("/"))
    for path in reversed(missing):
        try:
            os.mkdir(path, 0o755)
            os.chown(path, user.uid, user.gid, follow_symlinks=False)
        except FileExistsError:
            continue  # somebody else was faster, or a "x/.." has come to exist
        except OSError as error:
            if error.errno in NO_SPACE:
                raise
            raise Failure("internal", f"error creating directory: {reason(error)}") from error


def move(request: Request) -> dict[str, Any]:
    user, source = place(request, "source")
    destination = expand_path(user, request["destination"], request.get("default_workdir") or "")
    try:
        os.lstat(source)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise Failure("not_found", f"source file not found: {reason(error)}") from error
    make_parents(user, os.path.dirname(destination.rstrip("/")))
    try:
        os.rename(source, destination)
    except OSError as error:
        if error.errno in NO_SPACE:
            raise
        text = f"error renaming: rename {source} {destination}: {reason(error)}"
        raise Failure("internal", text) from error
    return {"entry": Describer().describe(destination)}


def remove(request: Request) -> dict[str, Any]:
    _user, path = place(request)
    try:
        remove_tree(path)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        text = f"error removing file or directory: {path}: {reason(error)}"
        raise Failure("internal", text) from error
    return {}


def remove_tree(path: str) -> None:
    """Walk by descriptors, so that a directory exchanged for a link meanwhile leads nowhere
    else.
    """
    path = path.rstrip("/") or "/"
    if path == "/":
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
    if not stat.S_ISDIR(os.lstat(path).st_mode):
        os.unlink(path)
        return
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    # Each step: a directory, its sub-directories still to be emptied, and the name it has above.
    steps = [_open_step(os.open(path, flags), "")]
    try:
        while steps:
            fd, children, name = steps[-1]
            if children:
                child = children.pop()
                try:
                    steps.append(_open_step(os.open(child, flags, dir_fd=fd), child))
                except FileNotFoundError:
                    continue
                except OSError as error:
                    if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                        raise
                    os.unlink(child, dir_fd=fd)
                continue
            steps.pop()
            os.close(fd)
            if steps:
                _ignore_missing(os.rmdir, name, dir_fd=steps[-1][0])
        os.rmdir(path)
    finally:
        for fd, _children, _name in steps:
            os.close(fd)


def _open_step(fd: int, name: str) -> tuple[int, list[str], str]:
    """Unlink the files of a directory and note its sub-directories."""
    children = []
    with os.scandir(fd) as found:
        for entry in found:
            if entry.is_dir(follow_symlinks=False):
                children.append(entry.name)
            else:
                _ignore_missing(os.unlink, entry.name, dir_fd=fd)
    return fd, children, name


def _ignore_missing(action: Any, name: str, *, dir_fd: int) -> None:
    try:
        action(name, dir_fd=dir_fd)
    except FileNotFoundError:
        pass


def list_dir(request: Request) -> dict[str, Any]:
    _user, path = place(request)
    depth = int(request.get("depth") or 1)
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise Failure("not_found", f"path not found: {reason(error)}") from error
    except OSError as error:
        if error.errno == errno.ELOOP:
            text = f'cyclic symlink or chain >255 links at "{path}"'
            raise Failure("failed_precondition", text) from error
        raise Failure("internal", f"error getting path info: {reason(error)}") from error
    if not stat.S_ISDIR(found.st_mode):
        raise Failure("invalid_argument", f"path is not a directory: {path}")
    describer = Describer()
    entries: list[dict[str, Any]] = []
    stack = [(name, 1) for name in _sorted_names(path)]
    while stack:
        name, level = stack.pop()
        try:
            entries.append(describer.describe(name))
            if level < depth and stat.S_ISDIR(os.lstat(name).st_mode):
                stack += [(child, level + 1) for child in _sorted_names(name)]
        except OSError:
            continue  # gone during the walk
    return {"entries": entries}


def _sorted_names(directory: str) -> list[str]:
    """Bytewise descending: the walk takes them from the end."""
    names = sorted(os.listdir(directory), key=os.fsencode, reverse=True)
    prefix = directory.rstrip("/")
    return [f"{prefix}/{name}" for name in names]


def compose(request: Request) -> dict[str, Any]:
    user = find_user(request["user"])
    workdir = request.get("default_workdir") or ""
    destination = expand_path(user, request["destination"], workdir)
    sources = [expand_path(user, source, workdir) for source in request["sources"]]
    for source in sources:
        if source == destination:
            text = f'source path "{source}" cannot be the same as destination'
            raise Failure("invalid_argument", text)
        try:
            found = os.stat(source)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise Failure("not_found", f"source file not found: {source}") from error
        if not stat.S_ISREG(found.st_mode):
            raise Failure("invalid_argument", f"source path is not a regular file: {source}")
    if os.path.isdir(destination):
        raise Failure("invalid_argument", f"path is a directory: {destination}")
    make_parents(user, os.path.dirname(destination))
    draw = os.urandom(16).hex()
    uuid = "-".join((draw[:8], draw[8:12], draw[12:16], draw[16:20], draw[20:]))
    temporary = f"{destination}.e2b-compose.{uuid}.tmp"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        for source in sources:
            source_fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            try:
                while os.sendfile(fd, source_fd, None, 2**30):
                    pass
            finally:
                os.close(source_fd)
        os.fchown(fd, user.uid, user.gid)
        os.rename(temporary, destination)
    except BaseException:
        os.unlink(temporary)
        raise
    finally:
        os.close(fd)
    for source in dict.fromkeys(sources):
        try:
            os.unlink(source)
        except FileNotFoundError:
            pass
    return {"entry": Describer().describe(destination)}


def disk_usage(_request: Request) -> dict[str, Any]:
    found = os.statvfs("/")
    total = found.f_blocks * found.f_frsize
    return {"total": total, "used": total - found.f_bavail * found.f_frsize}


UNARY = {
    "resolve_user": resolve_user,
    "resolve_path": resolve_path,
    "stat": stat_path,
    "list_dir": list_dir,
    "make_dir": make_dir,
    "move": move,
    "remove": remove,
    "compose": compose,
    "disk_usage": disk_usage,
}


# Content


def read(channel: Channel, request: Request) -> None:
    """REPLY with what stat says, then the content, to the end of the file or `length` bytes."""
    _user, path = place(request)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise Failure("not_found", f"path '{path}' does not exist") from error
    except OSError as error:
        raise Failure("internal", f"error opening file '{path}': {reason(error)}") from error
    found = os.fstat(fd)
    if stat.S_ISDIR(found.st_mode):
        raise Failure("invalid_argument", f"path '{path}' is a directory")
    os.set_blocking(fd, True)
    channel.reply(
        {
            "path": path,
            "size": found.st_size,
            "modified_at": found.st_mtime,
            "is_regular": stat.S_ISREG(found.st_mode),
        }
    )
    if request.get("offset"):
        os.lseek(fd, request["offset"], os.SEEK_SET)
    left = request.get("length")
    buffer = memoryview(bytearray(frames.HEADER_BYTES + frames.MAX_DATA))
    content = buffer[frames.HEADER_BYTES :]
    buffer[0] = frames.DATA
    while left is None or left > 0:
        size = os.readv(fd, [content if left is None else content[:left]])
        if size == 0:
            break
        if left is not None:
            left -= size
        buffer[1:5] = size.to_bytes(4, "big")
        channel.send(buffer[: frames.HEADER_BYTES + size])
    channel.send(frames.pack(frames.END))


def open_for_writing(user: User, path: str) -> int:
    """Exactly these calls, because watchers count them: a new file is CREATE and CHMOD, then its
    content.

    Raises: Failure.
    """
    make_parents(user, os.path.dirname(path.rstrip("/")) or "/")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOCTTY
    try:
        try:
            found = os.stat(path)
        except FileNotFoundError:
            fd = os.open(path, flags, 0o666)
            os.fchown(fd, user.uid, user.gid)
            return fd
        if stat.S_ISDIR(found.st_mode):
            raise Failure("invalid_argument", f"path is a directory: {path}")
        os.chown(path, user.uid, user.gid)
        return os.open(path, flags, 0o666)
    except OSError as error:
        if error.errno in NO_SPACE:
            raise no_space(os.path.dirname(path) or "/") from error
        raise Failure("internal", f"error opening file: open {path}: {reason(error)}") from error


def no_space(directory: str) -> Failure:
    try:
        found = os.statvfs(directory)
    except OSError:
        found = None
    if found is not None and found.f_files and not found.f_favail:
        return Failure("no_inodes", f"not enough inodes available: {found.f_favail}")
    return Failure("no_space", "not enough disk space available")


def write(channel: Channel, request: Request) -> None:
    """REPLY once the file is open, take its content, then REPLY with the entry.

    Not atomic, as in envd.
    """
    user, path = place(request)
    if not path or path.endswith("/"):
        raise Failure("invalid_argument", f"path is a directory: {path}")
    fd = open_for_writing(user, path)
    channel.reply({"path": path})
    # Small pieces are put together: a small file must be one write, and so one event for its
    # watchers.
    gathered = bytearray()
    try:
        while True:
            kind, data = channel.receive()
            if kind == frames.FINISH:
                break
            if kind != frames.DATA:
                raise ValueError("unknown frame")
            if gathered or len(data) < frames.MAX_DATA // 4:
                gathered += data
                if len(gathered) < frames.MAX_DATA // 4:
                    continue
                data = bytes(gathered)
                gathered.clear()
            write_all(fd, data)
        write_all(fd, gathered)
        set_metadata(fd, request["metadata"])
    except ConnectionResetError:
        write_all(fd, gathered)  # a failed upload leaves what was written
        raise
    except OSError as error:
        if error.errno in NO_SPACE:
            raise Failure("no_space", "not enough disk space available") from error
        raise Failure("internal", f"error writing file: {reason(error)}") from error
    channel.reply({"entry": Describer().describe(path)})


def write_all(fd: int, data: bytes | bytearray) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def set_metadata(fd: int, metadata: dict[str, str]) -> None:
    """Replace the whole set; a file system without attributes ignores them."""
    try:
        present = [name for name in os.listxattr(fd) if name.startswith(XATTR_PREFIX)]
        for name in present:
            if name[len(XATTR_PREFIX) :] not in metadata:
                os.removexattr(fd, name)
        for key, value in metadata.items():
            os.setxattr(fd, XATTR_PREFIX + key, value.encode())
    except OSError as error:
        if error.errno not in (errno.ENOTSUP, errno.EPERM, errno.EACCES):
            raise
