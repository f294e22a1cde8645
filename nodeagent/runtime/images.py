"""Images that builds start from: what the engine has, and what it can pull."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import docker
import docker.errors
import requests.exceptions

T = TypeVar("T")

OUR_NAMESPACE = "sandlot/"
MAX_IMAGE_BYTES = 25_000 * 1000 * 1000
PULL_SECONDS = 600

_REFERENCE = re.compile(
    r"(?:[a-zA-Z0-9][a-zA-Z0-9.-]*(?::[0-9]+)?/)?[a-z0-9]+(?:[._/-]+[a-z0-9]+)*"
    r"(?::[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(?:@sha256:[0-9a-f]{64})?"
)
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "amd64": "amd64", "arm64": "arm64"}


class ImageRefused(Exception):
    """The image cannot be used. The text is for the build's owner."""


@dataclass(frozen=True, kw_only=True)
class ImageInfo:
    image_id: str
    size_bytes: int
    env: dict[str, str] = field(default_factory=dict)


class Images(Protocol):
    async def obtain(
        self, reference: str, *, username: str, password: str
    ) -> tuple[str, ImageInfo]:
        """A local name of what users call `reference`, pulled if needed. Raises: ImageRefused."""

    async def find(self, image: str) -> ImageInfo | None: ...

    async def remove(self, image: str) -> None:
        """Best effort: an image in use stays."""


class DockerImages:
    """aliases: an operator's names for local images, e.g. `ubuntu:22.04`, tried before any pull."""

    def __init__(self, aliases: Mapping[str, str]) -> None:
        self._aliases = {_with_tag(name): image for name, image in aliases.items()}
        self._client: docker.DockerClient | None = None
        self._threads = ThreadPoolExecutor(max_workers=4, thread_name_prefix="images")
        self._pulls: dict[str, asyncio.Lock] = {}

    async def obtain(
        self, reference: str, *, username: str, password: str
    ) -> tuple[str, ImageInfo]:
        name = check_reference(reference)
        alias = self._aliases.get(_with_tag(name))
        if alias is not None:
            found = await self.find(alias)
            if found is None:
                raise ImageRefused(f"image '{reference}' stands for an image that is not here")
            return alias, found
        found = await self.find(name)
        if username or found is None:
            async with self._pulls.setdefault(name, asyncio.Lock()):
                await self._call(self._pull, reference, name, username, password)
                if username:
                    # Under a name only these credentials lead to: others must not find it here.
                    name = await self._call(self._hide, name, found, f"{username}\0{password}")
            found = await self.find(name)
        if found is None:
            raise ImageRefused("unable to retrieve image from registry")
        if found.size_bytes > MAX_IMAGE_BYTES:
            raise ImageRefused(
                f"image '{reference}' is too large: {found.size_bytes // 10**6} MB"
                f" of at most {MAX_IMAGE_BYTES // 10**6} MB"
            )
        return name, found

    async def find(self, image: str) -> ImageInfo | None:
        return await self._call(self._find, image)

    async def remove(self, image: str) -> None:
        await self._call(self._remove, image)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    @property
    def _api(self) -> Any:
        if self._client is None:
            self._client = docker.DockerClient.from_env(timeout=PULL_SECONDS)
        return self._client.api

    def _find(self, image: str) -> ImageInfo | None:
        try:
            raw = self._api.inspect_image(image)
        except docker.errors.ImageNotFound:
            return None
        pairs = (item.partition("=") for item in raw["Config"].get("Env") or [])
        machine = _ARCHITECTURES.get(str(self._api.info().get("Architecture")), "")
        if machine and raw.get("Architecture") not in ("", machine):
            raise ImageRefused(
                f"image '{image}' is for {raw.get('Architecture')}, this node is {machine}"
            )
        return ImageInfo(
            image_id=str(raw["Id"]),
            size_bytes=int(raw["Size"]),
            env={name: value for name, _, value in pairs if name and value},
        )

    def _pull(self, reference: str, name: str, username: str, password: str) -> None:
        credentials = {"username": username, "password": password} if username else None
        repository, _, tag = _with_tag(name).rpartition(":")
        if "@" in name:
            repository, tag = name, ""
        try:
            lines = self._api.pull(
                repository, tag=tag or None, stream=True, decode=True, auth_config=credentials
            )
            for line in lines:
                if "error" in line:
                    raise ImageRefused(explain_pull(reference, str(line["error"]), bool(username)))
        except docker.errors.APIError as error:
            text = str(error.explanation or error)
            raise ImageRefused(explain_pull(reference, text, bool(username))) from error

    def _hide(self, name: str, before: ImageInfo | None, secret: str) -> str:
        digest = hashlib.sha256(f"{name}\0{secret}".encode()).hexdigest()[:32]
        pulled = self._api.inspect_image(name)["Id"]
        self._api.tag(pulled, "sandlot/private", tag=digest, force=True)
        self._api.remove_image(name, force=False, noprune=True)
        if before is not None:  # somebody's own, by the same name
            repository, _, tag = _with_tag(name).rpartition(":")
            if "@" not in name:
                self._api.tag(before.image_id, repository, tag=tag, force=True)
        return f"sandlot/private:{digest}"

    def _remove(self, image: str) -> None:
        try:
            self._api.remove_image(image, force=False, noprune=False)
        except docker.errors.APIError:
            return

    async def _call(self, function: Callable[..., T], *args: Any) -> T:
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._threads, function, *args)
        except (docker.errors.DockerException, requests.exceptions.RequestException) as error:
            raise ImageRefused("unable to retrieve image from registry") from error


def check_reference(reference: str) -> str:
    """The reference as engines know it. Raises: ImageRefused."""
    name = reference.strip()
    for prefix in ("docker.io/library/", "docker.io/"):
        name = name.removeprefix(prefix)
    if len(name) > 512 or not _REFERENCE.fullmatch(name):
        raise ImageRefused(f"invalid image reference '{reference[:200]}': it has a wrong form")
    if name.startswith(OUR_NAMESPACE):
        # Layers, snapshots and templates of all teams have names there.
        raise ImageRefused(f"repository '{reference}' not found: verify the image name is correct")
    return name


def explain_pull(reference: str, text: str, has_credentials: bool) -> str:
    """The engine's complaint in the words users get. Nothing of the registry's own text."""
    lower = text.lower()
    if "manifest" in lower and ("unknown" in lower or "not found" in lower):
        return f"image '{reference}' not found: the image or tag does not exist in the registry"
    if "pull access denied" in lower and not has_credentials:
        return f"repository '{reference}' not found: verify the image name is correct"
    if any(word in lower for word in ("unauthorized", "denied", "authentication", "no basic auth")):
        return (
            f"access denied to '{reference}': authentication required or insufficient permissions"
        )
    if "name unknown" in lower or ("repository" in lower and "not found" in lower):
        return f"repository '{reference}' not found: verify the image name is correct"
    if "invalid reference" in lower:
        return f"invalid image reference '{reference}': it has a wrong form"
    if found := re.search(r"status(?: code)?:? (\d{3})", lower):
        return f"failed to pull image '{reference}': registry returned status code {found[1]}"
    return (
        f"failed to pull image '{reference}': unable to retrieve image from registry."
        " This machine may have no way to it; its operator can name a local image for it"
    )


def _with_tag(name: str) -> str:
    last = name.rpartition("/")[2]
    return name if ":" in last or "@" in last else f"{name}:latest"
