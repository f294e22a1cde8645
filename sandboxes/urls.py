from django.urls import path

from sandboxes.api import internal, views

urlpatterns = [
    path("sandboxes", views.SandboxList.as_view()),
    path("v2/sandboxes", views.SandboxListV2.as_view()),
    path("sandboxes/<str:sandbox_id>", views.SandboxDetail.as_view()),
    path("sandboxes/<str:sandbox_id>/timeout", views.SandboxTimeout.as_view()),
    path("sandboxes/<str:sandbox_id>/refreshes", views.SandboxRefresh.as_view()),
    path("sandboxes/<str:sandbox_id>/connect", views.SandboxConnect.as_view()),
    path("v2/sandboxes/<str:sandbox_id>/connect", views.SandboxConnectV2.as_view()),
    path("sandboxes/<str:sandbox_id>/resume", views.SandboxResume.as_view()),
    path("sandboxes/<str:sandbox_id>/pause", views.SandboxPause.as_view()),
    path("sandboxes/<str:sandbox_id>/network", views.SandboxNetwork.as_view()),
    path("internal/nodes/heartbeat", internal.node_heartbeat),
    path("internal/live", internal.live_hints),
]
