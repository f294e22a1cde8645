"""Which paths belong to the API, and how encoded slashes in them survive Django's decoding."""

from __future__ import annotations

from urllib.parse import unquote

from django.urls import register_converter

API_PREFIXES = (
    "/sandboxes",
    "/snapshots",
    "/templates",
    "/default-templates",
    "/teams",
    "/api-keys",
    "/access-tokens",
    "/nodes",
    "/admin/",
    "/volumes",
    "/volumecontent",
    "/secrets",
    "/internal/",
    "/health",
    "/schema",
    "/v1/",
    "/v2/",
    "/v3/",
)


def is_api_path(path: str) -> bool:
    return any(
        path.startswith(prefix) if prefix.endswith("/") else (path + "/").startswith(prefix + "/")
        for prefix in API_PREFIXES
    )


def keep_encoded_slashes(raw_path: bytes, decoded: str) -> str:
    """`decoded`, but with each encoded slash left as `%2F`, so that it does not split segments.

    Clients send a reference such as `team/name:tag` as one segment; `ReferenceConverter` undoes
    this.
    """
    if b"%2f" not in raw_path.lower():
        return decoded
    segments = raw_path.decode("ascii", "replace").split("?", 1)[0].split("/")
    return "/".join(unquote(segment).replace("/", "%2F") for segment in segments)


class ReferenceConverter:
    """A template or snapshot reference: one encoded segment, or two plain ones."""

    regex = r"[^/]+(?:/[^/]+)?"

    def to_python(self, value: str) -> str:
        return value.replace("%2F", "/").replace("%2f", "/")

    def to_url(self, value: str) -> str:
        return value


# Here, where it happens once, and not in the URL configuration, which may be loaded again.
register_converter(ReferenceConverter, "ref")
