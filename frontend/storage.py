"""Static files with hashed names, also for what our JavaScript modules import from each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from whitenoise.storage import CompressedManifestStaticFilesStorage

OURS = "frontend/"


class HashedStaticFiles(CompressedManifestStaticFilesStorage):  # type: ignore[misc]  # no types
    """Rewrites imports in our own modules only: other packages ship modules with bare names."""

    support_js_module_import_aggregation = True

    def url_converter(self, name: str, *arguments: Any, **keywords: Any) -> Callable[[Any], str]:
        if name.endswith(".js") and not name.startswith(OURS):
            return lambda match: str(match.group(0))
        converter: Callable[[Any], str] = super().url_converter(name, *arguments, **keywords)
        return converter
