"""What the OpenAPI document describes: the public routes, and the errors any of them may answer."""

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


ERRORS = {
    400: "The request cannot be understood, or asks for what is not allowed.",
    401: "No credentials, or wrong ones.",
    403: "The credentials do not allow this.",
    404: "Not there, or not yours.",
    405: "Another method is meant.",
    409: "The state of things forbids it now.",
    413: "The body is too large.",
    415: "The body is not JSON.",
    422: "The same Idempotency-Key with another request.",
    429: "A limit of the plan, or too many requests; Retry-After says when to come again.",
    500: "Something failed on our side.",
    501: "Known, but not offered here.",
    503: "A part is not answering; nothing has changed, ask again.",
    504: "It took too long.",
}
_ERROR_BODY = {
    "type": "object",
    "required": ["code", "message"],
    "properties": {
        "code": {"type": "integer", "description": "the HTTP status"},
        "message": {"type": "string"},
        "error_code": {"type": "string", "description": "for programs; not always there"},
    },
}


def add_errors(result: dict[str, Any], **_: Any) -> dict[str, Any]:
    """Every operation answers errors in one shape; saying so at each view would be noise."""
    result.setdefault("components", {}).setdefault("schemas", {})["Error"] = _ERROR_BODY
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    for operations in result["paths"].values():
        for operation in operations.values():
            if not isinstance(operation, dict) or "responses" not in operation:
                continue
            for status, text in ERRORS.items():
                operation["responses"].setdefault(
                    str(status), {"description": text, "content": content}
                )
    return result
