"""The layer cache of one node: which image and context a recipe led to, per team.

A file per key. Layers that differ in their context only (ENV, USER) share an image.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

from nodeagent import wire
from nodeagent.wire import BuildContext

_SAFE = re.compile(r"[a-zA-Z0-9-]{1,80}")


@dataclass(frozen=True, kw_only=True)
class Layer:
    image: str
    context: BuildContext


class LayerStore:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, team_id: str, key: str) -> Layer | None:
        """The layer, which counts as used now."""
        path = self._path(team_id, key)
        try:
            raw = json.loads(path.read_text())
            os.utime(path)
            return wire.decode(Layer, raw)
        except (OSError, ValueError):
            return None

    def put(self, team_id: str, key: str, layer: Layer) -> None:
        path = self._path(team_id, key)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        fresh = path.with_suffix(".new")
        fresh.write_text(json.dumps(wire.encode(layer)))
        fresh.replace(path)

    def forget(self, team_id: str, key: str) -> None:
        self._path(team_id, key).unlink(missing_ok=True)

    def forget_unused(self, *, since: float) -> None:
        """Drop the layers that nothing has used since then (Unix seconds)."""
        for path in self._folder.glob("*/*.json"):
            with contextlib.suppress(OSError):
                if path.stat().st_mtime < since:
                    path.unlink()

    def images(self) -> set[str]:
        """Those that some layer still needs."""
        found = set()
        for path in self._folder.glob("*/*.json"):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                found.add(str(json.loads(path.read_text())["image"]))
        return found

    def _path(self, team_id: str, key: str) -> Path:
        if not _SAFE.fullmatch(team_id) or not _SAFE.fullmatch(key):
            raise ValueError("not a team or a layer key")
        return self._folder / team_id / f"{key}.json"


def days_ago(days: float) -> float:
    return time.time() - days * 86400
