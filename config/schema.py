"""Which routes the OpenAPI document describes."""

from __future__ import annotations

from typing import Any

from config.paths import is_api_path

HIDDEN = ("/internal/", "/health", "/schema")


def only_public_api(endpoints: list[tuple[str, str, str, Any]]) -> list[tuple[str, str, str, Any]]:
    return [
        endpoint
        for endpoint in endpoints
        if is_api_path(endpoint[0]) and not endpoint[0].startswith(HIDDEN)
    ]
