"""The steps of a build, carried out inside its sandbox through the guest.

Scripts get what users wrote as arguments, never as text of the script. Everything here happens with
the sandbox's own files, users and tools; the host only starts processes and reads their output.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace

from nodeagent.build_archives import source_root
from nodeagent.commands import SHELL, login_shell
from nodeagent.errors import AgentError, InvalidArgument, Unauthenticated
from nodeagent.guest.link import GuestLink, ProcessChannel, ProcessExit
from nodeagent.wire import BuildContext, BuildStep

COMMAND_SECONDS = 3600.0
SCRIPT_SECONDS = 300.0
MAX_LINE_BYTES = 8192
MAX_CAPTURE_BYTES = 1024 * 1024

OnLine = Callable[[str, str], None]  # stream, line


class StepFailed(Exception):
    """The text is the build's reason."""


@dataclass(frozen=True, kw_only=True)
class Ended:
    exit: ProcessExit
    output: str  # stdout, as far as it was kept
    errors: str


class Workbench:
    """A build's container: runs commands in it and hands their output on, line by line."""

    def __init__(self, link: GuestLink) -> None:
        self.link = link

    async def run(
        self,
        command: str,
        *,
        user: str,
        context: BuildContext,
        on_line: OnLine,
        seconds: float = COMMAND_SECONDS,
    ) -> ProcessExit:
        """A command of the user's, in a login shell. Raises: AgentError."""
        args, env = login_shell(command, context.env)
        channel = await self._start(SHELL, args, user, env, context.workdir, seconds)
        return await follow(channel, on_line)

    async def start(self, command: str, *, context: BuildContext) -> ProcessChannel:
        args, env = login_shell(command, context.env)
        return await self._start(SHELL, args, context.user, env, context.workdir, None)

    async def script(
        self,
        text: str,
        *args: str,
        program: str = SHELL,
        env: dict[str, str] | None = None,
        is_login: bool = False,
        on_line: OnLine | None = None,
        seconds: float = SCRIPT_SECONDS,
    ) -> Ended:
        """A script of ours, as root in `/`. Raises: AgentError."""
        kept: dict[str, list[str]] = {"stdout": [], "stderr": []}
        left = MAX_CAPTURE_BYTES

        def keep(stream: str, line: str) -> None:
            nonlocal left
            left -= len(line) + 1
            if left > 0:
                kept[stream].append(line)
            if on_line is not None:
                on_line(stream, line)

        flags = ["-l", "-c"] if is_login else ["-c"]
        channel = await self._start(
            program, [*flags, text, "sandlot", *args], "root", env or {}, "/", seconds
        )
        end = await follow(channel, keep)
        return Ended(
            exit=end, output="\n".join(kept["stdout"]), errors="\n".join(kept["stderr"]).strip()
        )

    async def put(self, path: str, chunks: AsyncIterator[bytes]) -> None:
        """Write a file of root's in the sandbox. Raises: AgentError."""
        writer = await self.link.open_write(user="root", path=path, default_workdir="", metadata={})
        try:
            async for chunk in chunks:
                await writer.write(chunk)
            await writer.finish()
        finally:
            writer.close()

    async def _start(
        self,
        cmd: str,
        args: list[str],
        user: str,
        env: dict[str, str],
        workdir: str,
        seconds: float | None,
    ) -> ProcessChannel:
        return await self.link.start_process(
            user=user,
            cmd=cmd,
            args=args,
            env=env,
            cwd=None,
            default_workdir=workdir,
            pty=None,
            stdin=False,
            tag=None,
            config={"cmd": cmd, "args": []},
            deadline_seconds=seconds,
        )


async def follow(channel: ProcessChannel, on_line: OnLine) -> ProcessExit:
    """Read a process to its end, line by line; lines are trimmed and blank ones dropped."""
    parts = {"stdout": b"", "stderr": b""}
    try:
        async for stream, data in channel:
            *lines, rest = (parts[stream] + data).split(b"\n")
            for line in lines:
                _tell(on_line, stream, line)
            while len(rest) > MAX_LINE_BYTES:
                _tell(on_line, stream, rest[:MAX_LINE_BYTES])
                rest = rest[MAX_LINE_BYTES:]
            parts[stream] = rest
        for stream, rest in parts.items():
            _tell(on_line, stream, rest)
    finally:
        channel.close()
    if channel.exit is None:
        raise StepFailed("the build's sandbox ended")
    return channel.exit


def _tell(on_line: OnLine, stream: str, line: bytes) -> None:
    # Of a line that a program overwrote (progress bars), what was last to be seen.
    text = line.decode("utf-8", "replace").rstrip("\r").rpartition("\r")[2].strip()
    if text:
        on_line(stream, text)


def describe(step: BuildStep) -> str:
    """As the log shows it: `RUN echo hi`."""
    return " ".join([step.type, *step.args]).strip()


async def perform(
    step: BuildStep,
    *,
    bench: Workbench,
    context: BuildContext,
    archive: Callable[[str], AsyncIterator[bytes]] | None,
    on_line: OnLine,
) -> tuple[BuildContext, bool]:
    """Carry out a step. The context after it, and whether files may have changed.

    archive: gives the checked archive in the sandbox. Raises: StepFailed.
    """
    match step.type:
        case "RUN":
            await _run(step, bench, context, on_line)
            return context, True
        case "COPY" | "ADD":
            await _copy(step, bench, context, archive)
            return context, True
        case "ENV" | "ARG":
            return await _env(step, bench, context), False
        case "WORKDIR":
            return await _workdir(step, bench, context)
        case "USER":
            return await _user(step, bench, context)
    raise StepFailed(f"command type {step.type} is not implemented")


async def _run(step: BuildStep, bench: Workbench, context: BuildContext, on_line: OnLine) -> None:
    if not step.args or not step.args[0]:
        raise StepFailed("RUN requires a command")
    command = step.args[0]
    user = (step.args[1] if len(step.args) > 1 else "") or context.user
    try:
        end = await bench.run(command, user=user, context=context, on_line=on_line)
    except Unauthenticated as error:
        raise StepFailed(
            f"failed to run command '{command}': command failed: unauthenticated: {error.message}"
        ) from error
    except InvalidArgument as error:
        raise StepFailed(
            f"failed to run command '{command}': command failed: invalid_argument: {error.message}"
        ) from error
    except AgentError as error:
        raise StepFailed(f"failed to run command '{command}': {error.message}") from error
    if end.exit_code != 0:
        raise StepFailed(f"failed to run command '{command}': {end.status}")


_COPY = r"""
set -e
archive=$1 source=$2 dest=$3 owner=$4 mode=$5
room=$(mktemp -d /tmp/.sandlot-copy-XXXXXX)
trap 'rm -rf "$room" "$archive"' EXIT
if ! tar -x -p --no-same-owner -f "$archive" -C "$room"; then
  echo 'failed to extract files: tar failed' >&2; exit 65
fi
path=$room${source:+/$source}
if [ ! -e "$path" ] && [ ! -L "$path" ]; then
  echo "failed to move files in sandbox: source '$source' does not exist" >&2; exit 66
fi
case $owner in
  *:*) ;;
  *) if grep -q "^$owner:" /etc/group; then owner=$owner:$owner; else owner=$owner:; fi ;;
esac
if [ -L "$path" ] || [ ! -d "$path" ]; then
  chown -h -- "$owner" "$path"
  [ -L "$path" ] || [ -z "$mode" ] || chmod -- "$mode" "$path"
  case $dest in */) mkdir -p -- "$dest" ;; esac
  if [ -d "$dest" ]; then
    target=${dest%/}/$(basename -- "$path")
  else
    mkdir -p -- "$(dirname -- "$dest")"; target=$dest
  fi
  mv -f -T -- "$path" "$target"
else
  chown -R -h -- "$owner" "$path"
  [ -z "$mode" ] || chmod -R -- "$mode" "$path"
  mkdir -p -- "$dest"
  # Merged: existing directories keep their own metadata, links to directories are followed.
  tar -c -f - -C "$path" . | tar -x -p --same-owner --no-overwrite-dir --keep-directory-symlink \
    -f - -C "$dest"
fi
"""


async def _copy(
    step: BuildStep,
    bench: Workbench,
    context: BuildContext,
    archive: Callable[[str], AsyncIterator[bytes]] | None,
) -> None:
    if not step.files_hash:
        raise StepFailed("COPY requires files hash to be set")
    if len(step.args) < 2 or not step.args[1]:
        raise StepFailed("COPY requires both a source and a destination argument")
    if archive is None:
        raise StepFailed("failed to extract files: the archive is missing")
    source, dest, owner, mode = (*step.args, "", "")[:4]
    try:
        if not dest.startswith("/"):
            base = context.workdir or await _home(bench, context.user)
            dest = f"{base.rstrip('/')}/{dest}"
        path = f"/tmp/.sandlot-archive-{step.key[:16]}"  # noqa: S108 in the sandbox
        await bench.put(path, archive(step.files_hash))
        end = await bench.script(
            _COPY, path, source_root(source), dest, owner or context.user, mode,
            seconds=COMMAND_SECONDS,
        )  # fmt: skip
    except AgentError as error:
        raise StepFailed(f"failed to extract files: {error.message}") from error
    if end.exit.exit_code != 0:
        text = end.errors.splitlines()[-1] if end.errors else end.exit.status
        if not text.startswith("failed to "):
            text = f"failed to move files in sandbox: {text}"
        raise StepFailed(text)


async def _home(bench: Workbench, user: str) -> str:
    try:
        return str((await bench.link.call("resolve_user", user=user))["home"])
    except (AgentError, KeyError) as error:
        raise StepFailed(f"failed to move files in sandbox: {error}") from error


async def _env(step: BuildStep, bench: Workbench, context: BuildContext) -> BuildContext:
    args = step.args
    if not args:
        raise StepFailed(f"{step.type} does not support passing no arguments")
    if len(args) % 2:
        raise StepFailed(f"{step.type} requires both a key and value arguments")
    env = dict(context.env)
    for name, value in zip(args[::2], args[1::2], strict=True):
        if not name or "=" in name or "\0" in name + value:
            raise StepFailed(f"{step.type}: '{name[:100]}' cannot be the name of a variable")
        env[name] = await _expand(value, bench, {})
    return replace(context, env=env)


async def _expand(value: str, bench: Workbench, env: dict[str, str]) -> str:
    """`$NAME` and `${NAME}` as root's login shell has them; everything else is literal."""
    if "$" not in value:
        return value
    escaped = (
        value.replace("\\", "\\\\").replace('"', '\\"').replace("`", "\\`").replace("$(", "\\$(")
    )
    # The mark keeps trailing line ends, which the capture would drop.
    text = f'printf "%s" "{escaped}"; printf "\\nEND\\n"'
    lines: list[str] = []
    end = await _captured(bench, text, env, lines)
    if end.exit_code != 0:
        raise StepFailed(f"failed to expand '{value[:200]}': {end.status}")
    return "".join(lines).removesuffix("\nEND\n")


async def _captured(
    bench: Workbench, text: str, env: dict[str, str], into: list[str]
) -> ProcessExit:
    """Raw stdout of a login shell of root's. Raises: StepFailed."""
    try:
        channel = await bench.link.start_process(
            user="root", cmd=SHELL, args=["-l", "-c", text], env=env, cwd=None,
            default_workdir="/", pty=None, stdin=False, tag=None,
            config={"cmd": SHELL, "args": []}, deadline_seconds=SCRIPT_SECONDS,
        )  # fmt: skip
        raw = b""
        try:
            async for stream, data in channel:
                if stream == "stdout" and len(raw) < MAX_CAPTURE_BYTES:
                    raw += data
        finally:
            channel.close()
    except AgentError as error:
        raise StepFailed(f"the shell could not be started: {error.message}") from error
    into.append(raw.decode("utf-8", "replace"))
    if channel.exit is None:
        raise StepFailed("the build's sandbox ended")
    return channel.exit


_WORKDIR = r"""
set -e
path=$1 owner=$2 made=no
if [ -e "$path" ] && [ ! -d "$path" ]; then
  echo "'$path' exists and is not a directory" >&2; exit 1
fi
if [ ! -d "$path" ]; then
  top=$path parent=$(dirname -- "$path")
  while [ ! -e "$parent" ]; do top=$parent; parent=$(dirname -- "$parent"); done
  mkdir -p -- "$path"
  chown -R -h -- "$owner" "$top"
  made=yes
fi
cd -- "$path"
echo "$made"
pwd
"""


async def _workdir(
    step: BuildStep, bench: Workbench, context: BuildContext
) -> tuple[BuildContext, bool]:
    if len(step.args) != 1 or not step.args[0]:
        raise StepFailed("WORKDIR requires a path argument")
    path = await _expand(step.args[0], bench, dict(context.env))
    if not path.startswith("/"):
        path = f"{(context.workdir or '').rstrip('/')}/{path}"
    owner = context.user or "root"
    end = await _scripted(bench, "failed to create workdir", _WORKDIR, path, f"{owner}:")
    made, _, resolved = end.output.partition("\n")
    if not resolved.startswith("/"):
        raise StepFailed("failed to create workdir: it has no path")
    return replace(context, workdir=resolved), made == "yes"


_USER = r"""
set -e
name=$1 admin=$2
if ! id -u -- "$name" >/dev/null 2>&1; then
  case $name in ''|-*|*[!A-Za-z0-9._-]*) echo "invalid user name '$name'" >&2; exit 1 ;; esac
  if command -v useradd >/dev/null; then useradd --create-home --shell /bin/bash "$name"
  else adduser -D -s /bin/bash "$name"; fi
  passwd -d "$name" >/dev/null 2>&1 || true
  echo made
fi
if [ "$admin" = true ]; then
  for group in sudo wheel; do
    if grep -q "^$group:" /etc/group; then
      if command -v usermod >/dev/null; then usermod -aG "$group" "$name"
      else addgroup "$name" "$group"; fi
      break
    fi
  done
  mkdir -p /etc/sudoers.d
  line="$name ALL=(ALL:ALL) NOPASSWD: ALL"
  file=/etc/sudoers.d/90-sandlot-$name
  if [ "$(cat "$file" 2>/dev/null)" != "$line" ]; then
    echo "$line" > "$file"; chmod 440 "$file"; echo made
  fi
fi
"""


async def _user(
    step: BuildStep, bench: Workbench, context: BuildContext
) -> tuple[BuildContext, bool]:
    if not step.args or not step.args[0]:
        raise StepFailed("USER requires a name argument")
    name = await _expand(step.args[0], bench, dict(context.env))
    admin = step.args[1] if len(step.args) > 1 else ""
    end = await _scripted(bench, "failed to create user", _USER, name, admin)
    return replace(context, user=name), "made" in end.output


async def make_default_user(bench: Workbench) -> None:
    """`user`, with a home, bash, no password and sudo for everything. Raises: StepFailed."""
    await _scripted(bench, "failed to create user", _USER, "user", "true")


async def _scripted(bench: Workbench, failure: str, text: str, *args: str) -> Ended:
    try:
        end = await bench.script(text, *args)
    except AgentError as error:
        raise StepFailed(f"{failure}: {error.message}") from error
    if end.exit.exit_code != 0:
        last = end.errors.splitlines()[-1] if end.errors else end.exit.status
        raise StepFailed(f"{failure}: {last}")
    return end


# Under sh, because bash may be among what is missing.
_PROVISION = r"""
set -e
if [ ! -r /etc/os-release ]; then
  echo "images without /etc/os-release are not supported. $SENTENCE" >&2; exit 1
fi
. /etc/os-release
family=
for id in $ID $ID_LIKE; do
  case $id in
    rhel|ol|amzn)
      if [ "$id" = "$ID" ]; then echo "ID='$ID' is not supported. $SENTENCE" >&2; exit 1; fi ;;
    debian|ubuntu) family=debian ;;
    fedora|centos|rocky|almalinux) family=fedora ;;
    arch) family=arch ;;
    alpine) family=alpine ;;
    nixos) family=nixos ;;
  esac
  [ -n "$family" ] && break
done
if [ -z "$family" ]; then echo "ID='$ID' is not supported. $SENTENCE" >&2; exit 1; fi
missing=
for tool in bash sudo curl git tar:tar ss:iproute2 pgrep:procps useradd:passwd; do
  command -v "${tool%%:*}" >/dev/null 2>&1 || missing="$missing ${tool##*:}"
done
tar --version 2>/dev/null | grep -q GNU || missing="$missing tar"
[ -e /etc/ssl/certs/ca-certificates.crt ] || [ -e /etc/pki/tls/certs/ca-bundle.crt ] \
  || missing="$missing ca-certificates"
[ -z "$missing" ] && exit 0
echo "Installing$missing"
case $family in
  debian)
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends $missing
    apt-get clean; rm -rf /var/lib/apt/lists/* ;;
  fedora)
    missing=$(echo " $missing " | sed 's/ iproute2 / iproute /; s/ procps / procps-ng /')
    missing=$(echo " $missing " | sed 's/ passwd / shadow-utils /')
    dnf install -y -q $missing ;;
  arch) missing=$(echo " $missing " | sed 's/ procps / procps-ng /; s/ passwd / shadow /')
    pacman -Sy --noconfirm --needed $missing ;;
  alpine) missing=$(echo " $missing " | sed 's/ passwd / shadow /')
    apk add --no-cache $missing ;;
  *) echo "it lacks$missing" >&2; exit 1 ;;
esac
"""
_SENTENCE = (
    "Sandboxes boot E2B's kernel conventions: use a Debian, Ubuntu, Fedora, CentOS, Rocky,"
    " AlmaLinux, Arch or Alpine image."
)


async def provision(bench: Workbench, on_line: OnLine) -> None:
    """Make an image able to be a sandbox: the tools that clients rely on. Raises: StepFailed."""
    try:
        end = await bench.script(
            _PROVISION, program="/bin/sh", env={"SENTENCE": _SENTENCE}, on_line=on_line
        )
    except AgentError as error:
        raise StepFailed(f"the image could not be prepared: {error.message}") from error
    if end.exit.exit_code != 0:
        last = end.errors.splitlines()[-1] if end.errors else end.exit.status
        raise StepFailed(f"the image could not be prepared: {last}")


# Touches only what is not so yet: a change of a file's mode or owner stores the file again.
_PERMISSIONS = r"""
set -e
if [ -d /etc/skel ]; then cp -a -n /etc/skel/. /home/user/ 2>/dev/null || true; fi
group=$(id -gn user)
find /home/user \( ! -user user -o ! -group "$group" \) -exec chown -h "user:$group" {} +
find /usr/local \( -type d ! -perm -0777 -o -type f ! -perm -0666 \) -exec chmod a+rwX {} +
mkdir -p /code; chmod 777 /code
"""
_CONFIGURE = (
    _PERMISSIONS
    + r"""
printf 'ENV_ID=%s\nTEMPLATE_ID=%s\nBUILD_ID=%s\n' "$1" "$1" "$2" > /.e2b
rm -rf /run/e2b /tmp/.sandlot-*
"""
)


async def make_base_ready(bench: Workbench) -> None:
    """The part of `configure` that is the same for all templates on this base, once."""
    await make_default_user(bench)
    await _scripted(bench, "configuration script failed", _PERMISSIONS)


async def configure(bench: Workbench, *, template_id: str, build_id: str) -> None:
    """What every template has in the end. Raises: StepFailed."""
    await make_default_user(bench)
    await _scripted(bench, "configuration script failed", _CONFIGURE, template_id, build_id)
