"""Pages of the dashboard. `config.urls` includes this at the root."""

from __future__ import annotations

from django.urls import URLPattern, URLResolver, include, path

from frontend.views import (
    actions,
    files,
    home,
    keys,
    nodes,
    sandbox,
    sandboxes,
    shell,
    team,
    templates,
)

app_name = "frontend"

of_a_sandbox: list[URLPattern | URLResolver] = [
    path("", sandbox.overview, name="sandbox"),
    path("/head", sandbox.head, name="sandbox-head"),
    path("/ports", sandbox.ports, name="sandbox-ports"),
    path("/logs", sandbox.logs, name="sandbox-logs"),
    path("/logs.txt", sandbox.logs_download, name="sandbox-logs-download"),
    path("/monitoring", sandbox.monitoring, name="sandbox-monitoring"),
    path("/metrics", sandbox.metrics, name="sandbox-metrics"),
    path("/terminal", sandbox.terminal, name="sandbox-terminal"),
    path("/kill", actions.kill, name="sandbox-kill"),
    path("/pause", actions.pause, name="sandbox-pause"),
    path("/resume", actions.resume, name="sandbox-resume"),
    path("/timeout", actions.change_timeout, name="sandbox-timeout"),
    path("/files", files.browse, name="files"),
    path("/files/download", files.download, name="files-download"),
    path("/files/save", files.save, name="files-save"),
    path("/files/upload", files.upload, name="files-upload"),
    path("/files/new", files.make_folder, name="files-create"),
    path("/files/remove", files.remove, name="files-remove"),
]

of_a_team: list[URLPattern | URLResolver] = [
    path("", home.team_home, name="team-home"),
    path("now", home.home_live, name="home-live"),
    path("first-key", home.home_key, name="home-key"),
    path("palette", shell.palette, name="palette"),
    path("sandboxes", sandboxes.sandbox_list, name="sandboxes"),
    path("sandboxes/new", actions.create, name="sandbox-create"),
    path("sandboxes/change", actions.change_many, name="sandboxes-change"),
    path("sandboxes/<str:sandbox_id>", include(of_a_sandbox)),
    path("templates", templates.template_list, name="templates"),
    path("templates/<str:template_id>", templates.template_detail, name="template"),
    path("members", team.members, name="members"),
    path("audit", team.audit_log, name="audit"),
    path("audit.csv", team.audit_export, name="audit-export"),
    path("nodes", nodes.node_list, name="nodes"),
    path("keys", keys.key_list, name="keys"),
    path("keys/new", keys.key_create, name="key-create"),
    path("keys/<str:key_id>/revoke", keys.key_revoke, name="key-revoke"),
]

urlpatterns = [
    path("", home.home, name="home"),
    path("preferences/theme", shell.theme, name="theme"),
    path("account/", shell.account, name="account"),
    path("t/<slug:team_slug>/", include(of_a_team)),
]
