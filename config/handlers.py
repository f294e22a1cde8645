"""What Django answers when no view does: JSON where a program asks, a page where a person does."""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse
from django.views import defaults

from config.middleware import json_error
from config.paths import is_api_path


def _wants_page(request: HttpRequest) -> bool:
    return not is_api_path(request.path_info) and "text/html" in request.headers.get("Accept", "")


def bad_request(request: HttpRequest, exception: Exception) -> HttpResponse:
    if _wants_page(request):
        return defaults.bad_request(request, exception)
    return json_error(400, "Error when parsing request: the request is malformed")


def permission_denied(request: HttpRequest, exception: Exception) -> HttpResponse:
    if _wants_page(request):
        return defaults.permission_denied(request, exception)
    return json_error(403, "You are not allowed to do this")


def not_found(request: HttpRequest, exception: Exception) -> HttpResponse:
    if _wants_page(request):
        return defaults.page_not_found(request, exception)
    return json_error(404, "validation error: no matching operation was found")


def server_error(request: HttpRequest) -> HttpResponse:
    if _wants_page(request):
        return defaults.server_error(request)
    return json_error(500, "Something went wrong on our side")
