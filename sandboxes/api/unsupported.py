"""Parts of E2B's API that this server does not offer: each says so, to those who may ask at all."""

from __future__ import annotations

from typing import Any

from django.http import HttpResponse
from drf_spectacular.utils import extend_schema

from accounts.auth import TeamAPIView, TeamRequest
from config.drf import answer
from config.errors import NotFound, PermissionDenied


@extend_schema(exclude=True)
class Volumes(TeamAPIView):
    """/volumes: none exist, and none can be made."""

    allowed_when_blocked = frozenset({"GET", "DELETE"})

    def get(self, request: TeamRequest, **_: Any) -> HttpResponse:
        if _:
            raise NotFound("Volume not found")
        return answer([])

    def post(self, request: TeamRequest, **_: Any) -> HttpResponse:
        raise PermissionDenied("use of volumes is not enabled")

    def delete(self, request: TeamRequest, **_: Any) -> HttpResponse:
        raise NotFound("Volume not found")


@extend_schema(exclude=True)
class Secrets(TeamAPIView):
    """/secrets: refused for every team."""

    def refuse(self, request: TeamRequest, **_: Any) -> HttpResponse:
        raise PermissionDenied(
            "Secrets are not available for this team", headers={"Cache-Control": "no-store"}
        )

    get = post = delete = refuse
