"""The websocket routes of all apps."""

from __future__ import annotations

import importlib.util
from importlib import import_module
from typing import Any


def websocket_urlpatterns() -> list[Any]:
    """Patterns of each app that has a `routing` module."""
    patterns: list[Any] = []
    for app in ("sandboxes", "frontend"):
        if importlib.util.find_spec(f"{app}.routing") is not None:
            patterns += import_module(f"{app}.routing").websocket_urlpatterns
    return patterns
