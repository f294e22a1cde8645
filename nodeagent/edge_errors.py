"""Errors of the gateway itself: JSON for programs, a small page for people."""

from __future__ import annotations

import html
import json
import re
from dataclasses import dataclass, field
from typing import Any

from nodeagent.http import Request

_BROWSER = re.compile(r"mozilla|chrome|safari|firefox|edge|opera|msie", re.IGNORECASE)
_SCRIPT_MODES = {"cors", "no-cors", "same-origin", "websocket"}
_JSON = [(b"content-type", b"application/json; charset=utf-8")]
_HTML = [(b"content-type", b"text/html; charset=utf-8")]


@dataclass(frozen=True, kw_only=True)
class EdgeError:
    """`fields`: what the JSON body has besides message and code, in order. `detail`: the page's
    text.
    """

    status: int
    title: str
    message: str
    sandbox_id: str | None = None
    fields: dict[str, Any] = field(default_factory=dict)
    detail: str | None = None

    def body(self) -> dict[str, Any]:
        start = {} if self.sandbox_id is None else {"sandboxId": self.sandbox_id}
        return {**start, "message": self.message, **self.fields, "code": self.status}

    def page(self) -> str:
        title = html.escape(self.title)
        detail = html.escape(self.detail or self.message)
        about = ""
        if self.sandbox_id is not None:
            about = f"<p>Sandbox <code>{html.escape(self.sandbox_id)}</code>"
            if "port" in self.fields:
                about += f", port <code>{self.fields['port']}</code>"
            about += "</p>"
        return (
            f'<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            "<style>body{font:16px/1.5 system-ui,sans-serif;max-width:34rem;margin:15vh auto;"
            "padding:0 1rem;"
            "color-scheme:light dark}code{font-family:ui-monospace,monospace}</style></head>"
            f"<body><h1>{title}</h1><p>{detail}</p>{about}</body></html>"
        )


def not_found(sandbox_id: str) -> EdgeError:
    return EdgeError(
        status=502,
        title="Sandbox Not Found",
        message="The sandbox was not found",
        sandbox_id=sandbox_id,
        detail="The sandbox was not found: it has ended, is paused, or never was.",
    )


def port_closed(sandbox_id: str, port: int) -> EdgeError:
    return EdgeError(
        status=502,
        title="Closed Port Error",
        message="The sandbox is running but port is not open",
        sandbox_id=sandbox_id,
        fields={"port": port},
        detail=f"The sandbox is running, but there is no service running on port {port}.",
    )


def bad_service(sandbox_id: str, port: int, reason: str) -> EdgeError:
    return EdgeError(
        status=502,
        title="Bad Answer",
        message=f"The sandbox is running but the service on the port failed: {reason}",
        sandbox_id=sandbox_id,
        fields={"port": port},
    )


def traffic_token_missing(sandbox_id: str) -> EdgeError:
    return EdgeError(
        status=403,
        title="Missing Traffic Access Token",
        message="Sandbox is secured with traffic access token. "
        "Token header 'e2b-traffic-access-token' is missing",
        sandbox_id=sandbox_id,
    )


def traffic_token_invalid(sandbox_id: str) -> EdgeError:
    return EdgeError(
        status=403,
        title="Invalid Traffic Access Token",
        message="Sandbox is secured with traffic access token. "
        "Provided token in header 'e2b-traffic-access-token' is invalid",
        sandbox_id=sandbox_id,
    )


def resume_refused(sandbox_id: str) -> EdgeError:
    return EdgeError(
        status=403,
        title="Unable to Resume Sandbox",
        message="This sandbox can't be resumed with the credentials provided. "
        "Check your access token and try again.",
        sandbox_id=sandbox_id,
    )


def in_transition(sandbox_id: str) -> EdgeError:
    return EdgeError(
        status=409,
        title="Unable to Resume Sandbox",
        message="The sandbox is still transitioning. Try again in a moment.",
        sandbox_id=sandbox_id,
    )


def limit_reached(sandbox_id: str, message: str) -> EdgeError:
    return EdgeError(
        status=429,
        title="Unable to Resume Sandbox",
        message=message or "Sandbox limit reached",
        sandbox_id=sandbox_id,
    )


def too_many_connections(sandbox_id: str, limit: int) -> EdgeError:
    return EdgeError(
        status=429,
        title="Too Many Connections",
        message=f"The sandbox has too many concurrent incoming connections (limit: {limit})",
        sandbox_id=sandbox_id,
        fields={"connectionLimit": limit},
    )


def endpoint_reserved(path: str) -> EdgeError:
    return EdgeError(
        status=404,
        title="Endpoint Not Available",
        message="This endpoint is reserved for the E2B control plane "
        "and is not reachable through the sandbox URL",
        fields={"path": path},
    )


def not_answering(message: str) -> EdgeError:
    return EdgeError(status=503, title="Not Answering", message=message)


async def answer(request: Request, error: EdgeError) -> None:
    if wants_html(request):
        await request.answer(error.status, _HTML, error.page().encode())
        return
    body = json.dumps(error.body(), ensure_ascii=False, separators=(",", ":"))
    await request.answer(error.status, _JSON, body.encode())


def wants_html(request: Request) -> bool:
    """Only a person's browser that navigates gets a page."""
    if not _BROWSER.search(request.header(b"user-agent") or ""):
        return False
    accept = request.header(b"accept") or ""
    if "application/json" in accept and "text/html" not in accept:
        return False
    mode = request.header(b"sec-fetch-mode")
    if mode in _SCRIPT_MODES:
        return False
    return mode is not None or request.header(b"x-requested-with") is None
