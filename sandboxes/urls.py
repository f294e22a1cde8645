from django.urls import path

from sandboxes.api import (
    history_views,
    internal,
    operator_views,
    snapshot_views,
    unsupported,
    views,
)

# The fixed words come before the ids they could be mistaken for.
urlpatterns = [
    path("sandboxes", views.SandboxList.as_view()),
    path("v2/sandboxes", views.SandboxListV2.as_view()),
    path("sandboxes/metrics", history_views.SandboxesMetrics.as_view()),
    path("sandboxes/<str:sandbox_id>", views.SandboxDetail.as_view()),
    path("sandboxes/<str:sandbox_id>/timeout", views.SandboxTimeout.as_view()),
    path("sandboxes/<str:sandbox_id>/refreshes", views.SandboxRefresh.as_view()),
    path("sandboxes/<str:sandbox_id>/connect", views.SandboxConnect.as_view()),
    path("v2/sandboxes/<str:sandbox_id>/connect", views.SandboxConnectV2.as_view()),
    path("sandboxes/<str:sandbox_id>/resume", views.SandboxResume.as_view()),
    path("sandboxes/<str:sandbox_id>/pause", views.SandboxPause.as_view()),
    path("sandboxes/<str:sandbox_id>/network", views.SandboxNetwork.as_view()),
    path("sandboxes/<str:sandbox_id>/snapshots", snapshot_views.SandboxSnapshots.as_view()),
    path("sandboxes/<str:sandbox_id>/fork", snapshot_views.SandboxFork.as_view()),
    path("snapshots", snapshot_views.SnapshotList.as_view()),
    path("sandboxes/<str:sandbox_id>/logs", history_views.SandboxLogs.as_view()),
    path("v2/sandboxes/<str:sandbox_id>/logs", history_views.SandboxLogsV2.as_view()),
    path("sandboxes/<str:sandbox_id>/metrics", history_views.SandboxMetrics.as_view()),
    path("teams/<str:team_id>/metrics", history_views.TeamMetrics.as_view()),
    path("teams/<str:team_id>/metrics/max", history_views.MaxTeamMetrics.as_view()),
    path("nodes", operator_views.NodeList.as_view()),
    path("nodes/<str:node_id>", operator_views.NodeDetail.as_view()),
    path("admin/teams/<str:team_id>/sandboxes/kill", operator_views.AdminKillSandboxes.as_view()),
    path("admin/sandboxes/running-counts", operator_views.RunningCounts.as_view()),
    path("volumes", unsupported.Volumes.as_view()),
    path("volumes/<str:volume_id>", unsupported.Volumes.as_view()),
    path("secrets", unsupported.Secrets.as_view()),
    path("secrets/<str:name>", unsupported.Secrets.as_view()),
    path("internal/nodes/heartbeat", internal.node_heartbeat),
    path("internal/live", internal.live_hints),
]
