"""A caller of the API over Django's own test client: JSON in, JSON out."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from django.test import Client

from tests.factories import Person


@dataclass(frozen=True)
class Api:
    headers: dict[str, str] = field(default_factory=dict)
    client: Client = field(default_factory=lambda: Client(raise_request_exception=False))

    def call(self, method: str, path: str, body: Any = None, **headers: str) -> Any:
        """The response, with its JSON in `.data` (None when it has no body)."""
        raw = body if isinstance(body, bytes | str) else json.dumps(body)
        raw = b"" if body is None else raw
        extra = {} if method == "GET" else {"data": raw, "content_type": "application/json"}
        sent = {**self.headers, **{name.replace("_", "-"): text for name, text in headers.items()}}
        response = getattr(self.client, method.lower())(path, headers=sent, **extra)
        is_json = response.headers.get("Content-Type", "").startswith("application/json")
        response.data = json.loads(response.content) if is_json and response.content else None
        return response

    def get(self, path: str, **headers: str) -> Any:
        return self.call("GET", path, **headers)

    def post(self, path: str, body: Any = None, **headers: str) -> Any:
        return self.call("POST", path, body, **headers)

    def put(self, path: str, body: Any = None) -> Any:
        return self.call("PUT", path, body)

    def patch(self, path: str, body: Any = None) -> Any:
        return self.call("PATCH", path, body)

    def delete(self, path: str, body: Any = None) -> Any:
        return self.call("DELETE", path, body)


def api_of(person: Person) -> Api:
    """With the API key of the person's team."""
    return Api(person.headers)


def as_user(person: Person) -> Api:
    """With the person's token, acting in the personal team."""
    return Api(person.user_headers)


def check_error(response: Any, status: int, text: str, error_code: str | None = None) -> None:
    """The response is an error in E2B's shape."""
    assert response.status_code == status, response.content
    assert response.data["code"] == status
    assert text in response.data["message"]
    assert response.data.get("error_code") == error_code or error_code is None
