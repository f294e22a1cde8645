from __future__ import annotations

from django.urls import path

from frontend.consumers import LiveConsumer, TerminalConsumer

websocket_urlpatterns = [
    path("ws/teams/<slug:team_slug>/live", LiveConsumer.as_asgi()),
    path(
        "ws/teams/<slug:team_slug>/sandboxes/<str:sandbox_id>/terminal", TerminalConsumer.as_asgi()
    ),
]
