"""The API's edge: CORS, body size, the Host header, answers without the dashboard's machinery."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from django.conf import settings
from django.core.exceptions import DisallowedHost
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.http.response import HttpResponseBase

from config.paths import is_api_path

ALLOWED_HEADERS = (
    "Origin, Content-Length, Content-Type, User-Agent, Authorization, X-API-Key, X-Team-ID, "
    "browser, lang, lang_version, machine, os, package_version, processor, publisher, release, "
    "sdk_runtime, system, Idempotency-Key"
)
EXPOSED_HEADERS = (
    "X-Next-Token, X-Total-Running, RateLimit-Limit, RateLimit-Remaining, RateLimit-Reset, "
    "Retry-After, Should-Retry"
)
PREFLIGHT_HEADERS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "GET, POST, PUT, PATCH, DELETE, OPTIONS",
    "Access-Control-Allow-Headers": ALLOWED_HEADERS,
    "Access-Control-Max-Age": "43200",
}


def json_error(status: int, message: str) -> JsonResponse:
    return JsonResponse({"code": status, "message": message}, status=status)


class ApiEdge:
    """First in line. Any origin may call the API: it knows keys in headers, never cookies."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        try:
            request.get_host()
        except DisallowedHost:
            host = request.META.get("HTTP_HOST", "")[:100]
            return json_error(
                400, f"Invalid host {host!r}: add it to SANDLOT_ALLOWED_HOSTS if it is yours"
            )
        if not is_api_path(request.path_info):
            return self.get_response(request)
        is_cross_origin = "HTTP_ORIGIN" in request.META
        if request.method == "OPTIONS" and is_cross_origin:
            return HttpResponse(status=204, headers=PREFLIGHT_HEADERS)
        if _body_length(request) > settings.MAX_BODY_BYTES:
            response: HttpResponseBase = HttpResponse(
                "request too large", status=413, content_type="text/plain"
            )
        else:
            response = self.get_response(request)
        if is_cross_origin:
            response["Access-Control-Allow-Origin"] = "*"
            response["Access-Control-Expose-Headers"] = EXPOSED_HEADERS
        return response


def _body_length(request: HttpRequest) -> int:
    """How long the body is. A chunked one (undici sends these) declares nothing: it is measured.

    DRF takes a request without a length for one without a body, so the length is written down.
    """
    try:
        declared = int(request.META.get("CONTENT_LENGTH") or 0)
    except ValueError:
        declared = 0
    stream: Any = getattr(
        request, "_stream", None
    )  # the whole body, spooled by Django's ASGI handler
    if declared or stream is None or not stream.seekable():
        return declared
    measured: int = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    if measured:
        request.META["CONTENT_LENGTH"] = str(measured)
    return measured
