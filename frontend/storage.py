"""Static files with hashed names, also for what our JavaScript modules import from each other."""

from __future__ import annotations

from whitenoise.storage import CompressedManifestStaticFilesStorage


class HashedStaticFiles(CompressedManifestStaticFilesStorage):  # type: ignore[misc]  # no types
    support_js_module_import_aggregation = True
