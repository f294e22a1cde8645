"""The platform's other templates: their images, built on the base image, and their registration."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass

from ops import images, stack
from ops.deployment import Deployment
from ops.shell import REPOSITORY, ask, run, step

FOLDER = REPOSITORY / "deploy/images"


@dataclass(frozen=True, kw_only=True)
class PlatformTemplate:
    """`folder`: in deploy/images, with the build.sh that makes `image` on the base image."""

    name: str
    folder: str
    image: str
    memory_mb: int
    start_cmd: str
    ready_cmd: str
    about: str


TEMPLATES = [
    PlatformTemplate(
        name="httpbin",
        folder="httpbin",
        image="sandlot/httpbin:latest",
        memory_mb=512,
        start_cmd="exec python3 /opt/httpbin/httpbin.py",
        ready_cmd="curl -sf -o /dev/null http://localhost:8080/status/200",
        about="a few seconds",
    ),
    PlatformTemplate(
        name="code-interpreter-v1",
        folder="code-interpreter",
        image="sandlot/code-interpreter:latest",
        memory_mb=2048,
        start_cmd="exec code-interpreter",
        ready_cmd="curl -sf -o /dev/null http://localhost:49999/health",
        about="three to four minutes the first time",
    ),
]


def ensure_templates(deployment: Deployment, names: list[str] | None = None) -> None:
    """Build what has changed and register it; without names all of them.

    Raises: OpsError when a build fails.
    """
    for template in TEMPLATES:
        if names and template.name not in names:
            continue
        ensure_image(template)
        register(deployment, template.name)


def register(deployment: Deployment, name: str, *, pool_size: int | None = None) -> None:
    """Make a ready build of a template's image, unless there is one. Raises: OpsError."""
    template = _named(name)
    words = ["--name", template.name, "--image", template.image]
    words += ["--memory", str(template.memory_mb)]
    words += ["--start-cmd", template.start_cmd, "--ready-cmd", template.ready_cmd, "--public"]
    if pool_size is not None:
        words += ["--pool-size", str(pool_size)]
    stack.manage(deployment, "ensure_template", *words)


def _named(name: str) -> PlatformTemplate:
    return next(template for template in TEMPLATES if template.name == name)


def ensure_image(template: PlatformTemplate) -> bool:
    """Build the image unless its recipe and its base are what they were. True if it was built."""
    base = ask(["docker", "image", "inspect", "--format", "{{.Id}}", images.BASE_IMAGE])
    wanted = f"{recipe_digest(template)} {base}"
    if images.image_label(template.image, "sandlot.recipe") == wanted:
        return False
    with step(f"Building the image of {template.name} ({template.about})"):
        run(
            [FOLDER / template.folder / "build.sh", "--label", f"sandlot.recipe={wanted}"],
            env={**os.environ, "TAG": template.image, "DOCKER_BUILDKIT": "0"},
            timeout=1800,
        )
    return True


def recipe_digest(template: PlatformTemplate) -> str:
    folder = FOLDER / template.folder
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts and "node_modules" not in path.parts:
            digest.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def ensure_recipe(name: str) -> str:
    """The image of a template, made by the present recipe on whatever base; for tests."""
    template = _named(name)
    label = images.image_label(template.image, "sandlot.recipe") or ""
    if label.partition(" ")[0] != recipe_digest(template):
        images.ensure_base_image()
        ensure_image(template)
    return template.image
