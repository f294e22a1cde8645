"""The whole URL space: the API at the root, as its clients expect, and the pages beside it."""

from __future__ import annotations

import importlib.util
from typing import Any

from django.contrib import admin
from django.urls import include, path
from drf_spectacular.views import SpectacularJSONAPIView

from config import handlers, paths  # noqa: F401 paths registers the converter "ref"
from config.health import health

urlpatterns: list[Any] = [
    path("health", health),
    path("schema", SpectacularJSONAPIView.as_view(), name="schema"),
    path("operator/", admin.site.urls),
    path("accounts/", include("allauth.urls")),
]
for _app in ("accounts", "templates_app", "sandboxes", "billing", "frontend"):
    if importlib.util.find_spec(f"{_app}.urls") is not None:
        urlpatterns.append(path("", include(f"{_app}.urls")))

handler400 = handlers.bad_request
handler403 = handlers.permission_denied
handler404 = handlers.not_found
handler500 = handlers.server_error
