"""The Docker engine as a runtime. Its client blocks, so calls go through named threads."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import functools
import hashlib
import logging
import os
import resource
import shutil
import subprocess
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import docker
import docker.errors
import requests.exceptions

from nodeagent.errors import AgentError, Conflict, InvalidArgument, NotFound, Unavailable
from nodeagent.guest.boot import Handover, socket_path
from nodeagent.guest.bundle import CAPABILITIES, MOUNT, build_bundle, command
from nodeagent.guest.link import GuestLink
from nodeagent.runtime import cgroup, seccomp
from nodeagent.runtime.base import (
    Container,
    ContainerEvent,
    ContainerEventKind,
    ContainerSpec,
    ContainerUsage,
    FoundContainer,
    RuntimeInfo,
)
from nodeagent.runtime.bootid import mount_boot_id, write_boot_id
from nodeagent.runtime.kernel_log import ended_for_memory

logger = logging.getLogger(__name__)

T = TypeVar("T")

LABEL = "sandlot.node"
HOSTNAME = "e2b.local"
# No more than we may open ourselves: an engine inside a container may not raise its own limit
# either.
OPEN_FILES = min(1048576, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
BOOT_ID_FILE = "boot_id"
GUEST_START_SECONDS = 20.0
DISK_WALK_SECONDS = 30.0

# The engine's own lists (ours replace them), and what tells of the machine below: DMI, power,
# interrupts.
MASKED_PATHS = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/dmi",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
    "/sys/fs/bpf",
]
READ_ONLY_PATHS = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]

SYSCTLS = {
    "net.ipv4.ping_group_range": "0 2147483647",
    "net.ipv4.ip_unprivileged_port_start": "0",
    "net.ipv6.conf.default.disable_ipv6": "1",
    "net.ipv6.conf.lo.disable_ipv6": "0",  # services on [::1] work; nothing else speaks IPv6
}


class DockerRuntime:
    """state_dir: where the guest's bundle is kept, mounted read-only into every container.

    Networks, containers and images of other nodes and of people on the same engine are never
    touched.
    """

    def __init__(
        self,
        *,
        node_id: str,
        run_dir: Path,
        state_dir: Path,
        pids_limit: int,
        docker_runtime: str = "",
        dns_servers: Sequence[str] = (),
        threads: int = 16,
    ) -> None:
        self.network = f"sandlot-{node_id}"
        self._node_id = node_id
        self._run_dir = run_dir
        self._state_dir = state_dir
        self._bundle: asyncio.Future[Path] | None = None
        self._pids_limit = pids_limit
        self._docker_runtime = docker_runtime
        self._dns_servers = list(dns_servers)
        self._threads = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="docker")
        self._client: docker.DockerClient | None = None
        self._groups: dict[str, cgroup.ContainerGroups] = {}  # by container id, while running
        self._events: _EventThread | None = None
        self.bridge = ""

    @property
    def _api(self) -> Any:
        if self._client is None:
            raise Unavailable("the container engine is not connected")
        return self._client.api

    async def open(self) -> RuntimeInfo:
        # It takes a second; what runs already does not wait for it, only the first boot does.
        self._bundle = asyncio.ensure_future(self._call(build_bundle, self._state_dir))
        return await self._call(self._open)

    async def close(self) -> None:
        if self._events is not None:
            self._events.stop()
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self._client is not None:
            self._client.close()

    async def boot(self, spec: ContainerSpec) -> Container:
        run_dir = self._run_dir / spec.name
        created = False
        handover: Handover | None = None
        try:
            run_dir.mkdir(mode=0o700)
            write_boot_id(run_dir / BOOT_ID_FILE)
            handover = Handover(run_dir)
            created = True
            config = self._config(spec, await self._bundle_dir(), run_dir)
            container_id = await self._call(self._create_and_start, spec, config)
            return await self._settle_boot(container_id, spec.name, spec.image, handover)
        except BaseException as error:
            if handover is not None:
                handover.close()
            # By name: a call that was cancelled or cut off may have made it all the same.
            removal = self.remove("", spec.name) if created else self._forget_run_dir(spec.name)
            await asyncio.shield(asyncio.ensure_future(removal))
            if isinstance(error, OSError):
                raise Unavailable(f"the container could not be prepared: {error}") from error
            raise

    async def reboot(self, container: Container) -> None:
        run_dir = self._run_dir / container.name
        write_boot_id(run_dir / BOOT_ID_FILE)
        handover = Handover(run_dir)
        try:
            await self._call(self._start, container.container_id)
            fresh = await self._settle_boot(
                container.container_id, container.name, container.image, handover
            )
        finally:
            handover.close()
        container.ip, container.pid, container.link = fresh.ip, fresh.pid, fresh.link
        container.disk_dirs = fresh.disk_dirs

    async def adopt(self, container_id: str) -> Container:
        return await self._call(self._adopt, container_id)

    async def freeze(self, container: Container) -> None:
        await self._call(self._freeze, container.container_id)

    async def thaw(self, container: Container) -> None:
        await self._call(self._thaw, container.container_id)

    async def halt(self, container: Container) -> None:
        await self._call(self._halt, container)
        self._groups.pop(container.container_id, None)
        container.pid = 0

    async def remove(self, container_id: str, name: str) -> None:
        self._groups.pop(container_id, None)
        await self._call(self._remove, container_id or name)
        await self._forget_run_dir(name)

    async def commit(self, container: Container, image: str) -> int:
        return await self._call(self._commit, container.container_id, image)

    async def remove_image(self, image: str) -> None:
        await self._call(self._remove_image, image)

    async def containers(self) -> list[FoundContainer]:
        return await self._call(self._containers)

    async def state_of(self, container_id: str) -> tuple[bool, bool]:
        return await self._call(self._state_of, container_id)

    async def events(self) -> AsyncIterator[ContainerEvent]:
        queue: asyncio.Queue[ContainerEvent] = asyncio.Queue()
        self._events = _EventThread(self._open_events, asyncio.get_running_loop(), queue.put_nowait)
        self._events.start()
        while True:
            yield await queue.get()

    def usage(self, container: Container) -> ContainerUsage | None:
        if not container.pid:
            return None
        try:
            groups = self._groups.get(container.container_id)
            if groups is None:
                groups = cgroup.ContainerGroups(container.pid)
                self._groups[container.container_id] = groups
            return groups.usage()
        except (OSError, KeyError, ValueError):
            self._groups.pop(container.container_id, None)
            return None

    def disk_usage(self, containers: Sequence[Container]) -> dict[str, int]:
        sizes: dict[str, int] = {}
        for start in range(0, len(containers), 20):  # a bound on one command line and one time-out
            batch = containers[start : start + 20]
            by_dir = {folder: box.container_id for box in batch for folder in box.disk_dirs}
            for folder, size_bytes in _walk(list(by_dir)).items():
                sizes[by_dir[folder]] = sizes.get(by_dir[folder], 0) + size_bytes
        return sizes

    # -- blocking parts, in the thread pool -----------------------------------------------------

    def _open(self) -> RuntimeInfo:
        self._client = docker.DockerClient.from_env(timeout=120, max_pool_size=32)
        info = self._api.info()
        self._make_network()
        return RuntimeInfo(
            version=str(info.get("ServerVersion", "")),
            storage_driver=str(info.get("Driver", "")),
            cgroup_version=cgroup.version(),
            data_root=str(info.get("DockerRootDir", "/")),
        )

    def _make_network(self) -> None:
        """A bridge of the node's own: neighbours cannot reach each other, and it has no IPv6."""
        try:
            found = self._api.inspect_network(self.network)
        except docker.errors.NotFound:
            self._api.create_network(
                self.network,
                driver="bridge",
                check_duplicate=True,
                enable_ipv6=False,
                labels={LABEL: self._node_id},
                options={
                    "com.docker.network.bridge.enable_icc": "false",
                    "com.docker.network.bridge.name": bridge_name(self._node_id),
                },
            )
            found = self._api.inspect_network(self.network)
        if found["Labels"].get(LABEL) != self._node_id or found.get("EnableIPv6"):
            raise InvalidArgument(f"the network {self.network} exists and is not ours")
        self.bridge = found["Options"]["com.docker.network.bridge.name"]

    async def _bundle_dir(self) -> Path:
        assert self._bundle is not None, "not opened"
        try:
            return await asyncio.shield(self._bundle)
        except (OSError, RuntimeError) as error:
            raise Unavailable(f"the guest's bundle could not be made: {error}") from error

    def _create_and_start(self, spec: ContainerSpec, config: dict[str, Any]) -> str:
        try:
            made = self._api.create_container_from_config(config, spec.name)
        except docker.errors.ImageNotFound as error:
            raise NotFound(
                f"image {spec.image} is not on this node", error_code="image_not_found"
            ) from error
        container_id = str(made["Id"])
        self._api.start(container_id)
        return container_id

    def _config(self, spec: ContainerSpec, bundle_dir: Path, run_dir: Path) -> dict[str, Any]:
        memory_bytes = spec.memory_mb * 1024 * 1024
        host: dict[str, Any] = {
            "NetworkMode": self.network,
            "Binds": [f"{bundle_dir}:{MOUNT}:ro", f"{run_dir}:{MOUNT}/run:ro"],
            "CapDrop": ["ALL"],
            "CapAdd": list(CAPABILITIES),
            "SecurityOpt": [f"seccomp={seccomp.profile()}"],
            "Privileged": False,
            "PidsLimit": self._pids_limit,
            "Memory": memory_bytes,
            "MemorySwap": memory_bytes,  # the same: no swap
            "NanoCpus": spec.cpu_count * 10**9,
            "CpuShares": 1024 * spec.cpu_count,
            "ShmSize": memory_bytes // 2,  # what a tmpfs may hold on any machine
            "Ulimits": [
                {"Name": "nofile", "Soft": min(65536, OPEN_FILES), "Hard": OPEN_FILES},
                {"Name": "core", "Soft": 0, "Hard": 0},
            ],
            "MaskedPaths": MASKED_PATHS,
            "ReadonlyPaths": READ_ONLY_PATHS,
            "LogConfig": {"Type": "none"},
            "RestartPolicy": {"Name": "no"},
            "Sysctls": SYSCTLS,
            "IpcMode": "private",
            "Dns": self._dns_servers,
            "Init": False,
        }
        if self._docker_runtime:
            host["Runtime"] = self._docker_runtime
        return {
            "Image": spec.image,
            "Hostname": HOSTNAME,
            "User": "0:0",
            "WorkingDir": "/",
            "Entrypoint": command(),
            "Cmd": [],
            "Env": [],
            "Tty": False,
            "OpenStdin": False,
            "AttachStdout": False,
            "AttachStderr": False,
            "StopSignal": "SIGKILL",
            "Healthcheck": {"Test": ["NONE"]},
            # Set in full: an image committed from a sandbox carries that sandbox's labels.
            "Labels": {
                LABEL: self._node_id,
                "sandlot.template": spec.template_id,
                "sandlot.build": spec.build_id,
            },
            "HostConfig": host,
        }

    def _start(self, container_id: str) -> None:
        self._api.start(container_id)

    async def _settle_boot(
        self, container_id: str, name: str, image: str, handover: Handover
    ) -> Container:
        """From a started container to a guest that answers."""
        waiting = asyncio.ensure_future(handover.wait(GUEST_START_SECONDS))
        try:
            container = await self._call(self._inspect, container_id)
            await self._call(self._enclose, container)
            await waiting
        finally:
            waiting.cancel()
        await container.link.ping()
        return container

    def _enclose(self, container: Container) -> None:
        if not container.pid:
            raise Unavailable("the container ended as soon as it had started")
        self._isolate_ports()
        mount_boot_id(container.pid, f"{MOUNT}/run/{BOOT_ID_FILE}")

    def _isolate_ports(self) -> None:
        """Keep neighbours apart in the bridge itself: ARP, and engines without bridge-netfilter."""
        for port in Path(f"/sys/class/net/{self.bridge}/brif").glob("*/isolated"):
            with contextlib.suppress(OSError):  # a port that has just gone
                if port.read_text().strip() == "0":
                    port.write_text("1")

    def _inspect(self, container_id: str) -> Container:
        found = self._api.inspect_container(container_id)
        name = found["Name"].lstrip("/")
        network = found["NetworkSettings"]["Networks"].get(self.network) or {}
        data = found.get("GraphDriver", {}).get("Data") or {}
        upper = data.get("UpperDir", "")
        # hosts, hostname and resolv.conf are files of the host that the sandbox's root may fill.
        own = str(Path(found.get("HostsPath") or "/").parent)
        return Container(
            container_id=container_id,
            name=name,
            image=found["Config"]["Image"],
            ip=network.get("IPAddress", ""),
            pid=int(found["State"]["Pid"]),
            disk_dirs=tuple(folder for folder in (upper, own) if len(folder) > 1),
            link=GuestLink(socket_path(self._run_dir / name)),
        )

    def _adopt(self, container_id: str) -> Container:
        try:
            container = self._inspect(container_id)
        except docker.errors.NotFound as error:
            raise NotFound("the container is gone") from error
        return container

    def _freeze(self, container_id: str) -> None:
        try:
            self._api.pause(container_id)
        except docker.errors.APIError:
            if not self._api.inspect_container(container_id)["State"]["Paused"]:
                raise

    def _thaw(self, container_id: str) -> None:
        try:
            self._api.unpause(container_id)
        except docker.errors.APIError:
            state = self._api.inspect_container(container_id)["State"]
            if state["Paused"] or not state["Running"]:
                raise

    def _halt(self, container: Container) -> None:
        if container.disk_dirs:
            _sync_file_system(container.disk_dirs[0])
        try:
            self._api.kill(container.container_id)
        except docker.errors.APIError:
            if self._api.inspect_container(container.container_id)["State"]["Running"]:
                raise
        self._api.wait(container.container_id, timeout=30)

    def _remove(self, reference: str) -> None:
        try:
            self._api.remove_container(reference, v=True, force=True)
        except docker.errors.NotFound:
            return
        except docker.errors.APIError as error:
            if "already in progress" not in str(error):
                raise
            # Someone else's removal of the same container: done when it is done.
            with contextlib.suppress(docker.errors.NotFound):
                self._api.wait(reference, timeout=30, condition="removed")

    def _commit(self, container_id: str, image: str) -> int:
        repository, _, tag = image.rpartition(":")
        if not repository or "/" in tag:
            repository, tag = image, "latest"
        found = self._api.inspect_container(container_id)
        parent_bytes = int(self._api.inspect_image(found["Image"])["Size"])
        made = self._api.commit(container_id, repository=repository, tag=tag, pause=True)
        size_bytes = int(self._api.inspect_image(made["Id"])["Size"])
        return max(0, size_bytes - parent_bytes)

    def _remove_image(self, image: str) -> None:
        try:
            self._api.remove_image(image, force=False, noprune=False)
        except docker.errors.ImageNotFound:
            return
        except docker.errors.APIError as error:
            if error.status_code == 409:
                raise Conflict(
                    f"image {image} is in use by a container", error_code="image_in_use"
                ) from error
            raise

    def _containers(self) -> list[FoundContainer]:
        found = self._api.containers(all=True, filters={"label": f"{LABEL}={self._node_id}"})
        return [
            FoundContainer(
                container_id=item["Id"],
                name=item["Names"][0].lstrip("/") if item["Names"] else item["Id"],
                is_running=item["State"] in ("running", "paused"),
                is_frozen=item["State"] == "paused",
                created_at=float(item["Created"]),
            )
            for item in found
            if item["State"] != "removing"
        ]

    def _state_of(self, container_id: str) -> tuple[bool, bool]:
        try:
            state = self._api.inspect_container(container_id)["State"]
        except docker.errors.NotFound as error:
            raise NotFound("no such container") from error
        is_running = bool(state["Running"])
        return is_running, state["OOMKilled"] or (not is_running and ended_for_memory(container_id))

    def _open_events(self, since: float) -> Any:
        return self._api.events(
            decode=True,
            since=datetime.fromtimestamp(since).astimezone(),
            filters={
                "type": "container",
                "event": ["die", "oom"],
                "label": f"{LABEL}={self._node_id}",
            },
        )

    async def _forget_run_dir(self, name: str) -> None:
        if name:
            await asyncio.get_running_loop().run_in_executor(
                self._threads,
                functools.partial(shutil.rmtree, self._run_dir / name, ignore_errors=True),
            )

    async def _call(self, function: Callable[..., T], *args: Any) -> T:
        loop = asyncio.get_running_loop()
        with _engine_errors():
            return await loop.run_in_executor(self._threads, function, *args)


class _EventThread(threading.Thread):
    """Follows the engine's event stream, and follows it again after every interruption."""

    def __init__(
        self,
        open_stream: Callable[[float], Any],
        loop: asyncio.AbstractEventLoop,
        deliver: Callable[[ContainerEvent], None],
    ) -> None:
        super().__init__(name="docker events", daemon=True)
        self._open_stream = open_stream
        self._loop = loop
        self._deliver = deliver
        self._stopping = threading.Event()
        self._stream: Any = None

    def stop(self) -> None:
        self._stopping.set()
        if self._stream is not None:
            with contextlib.suppress(Exception):
                self._stream.close()

    def run(self) -> None:
        while not self._stopping.is_set():
            self._emit(ContainerEvent(kind=ContainerEventKind.RESYNC))
            try:
                self._stream = self._open_stream(datetime.now().timestamp())
                for raw in self._stream:
                    self._on_raw(raw)
            except (
                AgentError,
                docker.errors.DockerException,
                requests.exceptions.RequestException,
            ):
                logger.warning("The engine's event stream broke off; opening it again.")
            except Exception:
                if not self._stopping.is_set():
                    logger.exception("The engine's event stream failed.")
            self._stopping.wait(1.0)

    def _on_raw(self, raw: dict[str, Any]) -> None:
        kinds = {"die": ContainerEventKind.DIED, "oom": ContainerEventKind.OOM}
        kind = kinds.get(str(raw.get("Action") or raw.get("status")))
        container_id = str((raw.get("Actor") or {}).get("ID") or raw.get("id") or "")
        if kind is not None and container_id:
            self._emit(ContainerEvent(kind=kind, container_id=container_id))

    def _emit(self, event: ContainerEvent) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has closed
            self._loop.call_soon_threadsafe(self._deliver, event)


@contextlib.contextmanager
def _engine_errors() -> Iterator[None]:
    try:
        yield
    except AgentError:
        raise
    except docker.errors.NotFound as error:
        raise NotFound(f"the container engine does not have it: {error.explanation}") from error
    except (docker.errors.DockerException, requests.exceptions.RequestException) as error:
        raise Unavailable(f"the container engine failed: {error}") from error
    except RuntimeError as error:
        if "shutdown" in str(error):
            raise Unavailable("the node agent is stopping") from error
        raise


def purge(node_id: str) -> int:
    """Remove a node's containers, network and the images it made from the engine. Blocking.

    Returns how many containers.
    """
    with _engine_errors(), contextlib.closing(docker.DockerClient.from_env(timeout=120)) as client:
        label = {"label": f"{LABEL}={node_id}"}
        found = client.api.containers(all=True, filters=label)
        for item in found:
            with contextlib.suppress(docker.errors.NotFound):
                client.api.remove_container(item["Id"], v=True, force=True)
        for network in client.api.networks(filters=label):
            client.api.remove_network(network["Id"])
        # A committed image carries its container's labels. Newest first: what others are made on
        # goes last.
        made = client.api.images(filters=label)
        for image in sorted(made, key=lambda item: int(item["Created"]), reverse=True):
            for name in image.get("RepoTags") or [image["Id"]]:
                with contextlib.suppress(docker.errors.APIError):
                    client.api.remove_image(name)
        return len(found)


def bridge_name(node_id: str) -> str:
    """At most 15 characters, so long node ids are shortened by a hash."""
    return "sl-" + hashlib.sha256(node_id.encode()).hexdigest()[:10]


def _sync_file_system(folder: str) -> None:
    """Write out the file system that holds `folder`, and no other."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        ctypes.CDLL(None).syncfs(fd)
    finally:
        os.close(fd)


def _walk(folders: list[str]) -> dict[str, int]:
    """Bytes below each folder; du(1) follows no links and stays on the file system."""
    if not folders:
        return {}
    try:
        done = subprocess.run(
            ["nice", "-n", "19", "du", "-s", "-x", "-B1", "--", *folders],
            capture_output=True,
            text=True,
            timeout=DISK_WALK_SECONDS,
            check=False,  # files vanish under it, which makes it fail for the rest
        )
    except (subprocess.TimeoutExpired, OSError):
        return {}
    sizes = {}
    for line in done.stdout.splitlines():
        size_bytes, _, folder = line.partition("\t")
        if size_bytes.isdigit():
            sizes[folder] = int(size_bytes)
    return sizes
