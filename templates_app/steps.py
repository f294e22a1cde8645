"""The SDK's build steps as a node is to run them: normalised, and named by layer keys. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TypedDict

from nodeagent import wire

# Part of every base's key: counts up when base images are prepared in another way.
PROVISION_VERSION = 1

DEFAULT_READY_AFTER_START = "sleep 20"
DEFAULT_READY = "sleep 0"


class StepDict(TypedDict, total=False):
    type: str
    args: list[str]
    filesHash: str
    force: bool


def base_key(*, image: str = "", parent_build_id: str = "", disk_size_mb: int) -> str:
    """The key of a base layer: of an image by its name as written, or of a parent's build."""
    source = f"template:{parent_build_id}" if parent_build_id else f"image:{image}"
    return _digest("base", str(PROVISION_VERSION), str(disk_size_mb), source)


def plan_steps(base: str, steps: Sequence[StepDict], *, force: bool) -> list[wire.BuildStep]:
    """Steps with their layer keys. The key names the recipe up to here, not what came of it.

    So once a step is forced, all later ones are: their keys may lead to layers made on the old one.
    """
    planned = []
    key, is_forced = base, force
    for step in steps:
        kind = step.get("type", "").strip().upper()
        args = list(step.get("args") or [])
        files_hash = step.get("filesHash") or ""
        is_forced = is_forced or bool(step.get("force"))
        key = _digest(key, kind, " ".join(args), files_hash)
        planned.append(
            wire.BuildStep(
                type=kind, args=args, files_hash=files_hash, key=key, use_cache=not is_forced
            )
        )
    return planned


def ready_command(start_cmd: str, ready_cmd: str) -> str:
    """What a build waits for when it names no ready command."""
    if ready_cmd:
        return ready_cmd
    return DEFAULT_READY_AFTER_START if start_cmd else DEFAULT_READY


def _digest(*parts: str) -> str:
    digest = hashlib.sha256()
    for part in parts:
        raw = part.encode("utf-8", "surrogatepass")
        digest.update(len(raw).to_bytes(8, "big") + raw)
    return digest.hexdigest()
