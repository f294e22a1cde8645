"""Pages of the dashboard. `config.urls` includes this at the root."""

from __future__ import annotations

from django.urls import URLPattern, URLResolver, include, path

from frontend.views import (
    actions,
    billing,
    files,
    home,
    keys,
    nodes,
    sandbox,
    sandboxes,
    shell,
    team,
    templates,
    usage,
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
    path("members/invite", team.member_invite, name="member-invite"),
    path("members/<str:user_id>/role", team.member_role, name="member-role"),
    path("members/<str:user_id>/remove", team.member_remove, name="member-remove"),
    path(
        "invitations/<str:invitation_id>/withdraw",
        team.invitation_withdraw,
        name="invitation-withdraw",
    ),
    path("rename", team.team_rename, name="team-rename"),
    path("audit", team.audit_log, name="audit"),
    path("audit.csv", team.audit_export, name="audit-export"),
    path("nodes", nodes.node_list, name="nodes"),
    path("usage", usage.usage, name="usage"),
    path("usage/<str:kind>.csv", usage.usage_export, name="usage-export"),
    path("billing", billing.overview, name="billing"),
    path("billing/plan", billing.choose_plan, name="billing-plan"),
    path("billing/credit", billing.add_credit, name="billing-credit"),
    path("billing/addons", billing.add_addon, name="billing-addon"),
    path("billing/addons/<int:addon_id>/end", billing.remove_addon, name="billing-addon-end"),
    path("billing/limits", billing.set_policy, name="billing-policy"),
    path("billing/details", billing.save_details, name="billing-details"),
    path("billing/card", billing.add_card, name="billing-card"),
    path("billing/portal", billing.open_portal, name="billing-portal"),
    path("billing/invoices/<str:invoice_id>", billing.invoice, name="invoice"),
    path("billing/invoices/<str:invoice_id>/pay", billing.pay, name="invoice-pay"),
    path("billing/invoices/<str:invoice_id>/print", billing.invoice_print, name="invoice-print"),
    path("billing/invoices/<str:invoice_id>/pdf", billing.invoice_file, name="invoice-pdf"),
    path(
        "billing/invoices/<str:invoice_id>/lines/<int:position>",
        billing.invoice_line,
        name="invoice-line",
    ),
    path("books", billing.books, name="books"),
    path("books/check", billing.books_check, name="books-check"),
    path("books/steps/<int:step_id>/retry", billing.books_retry, name="books-retry"),
    path("keys", keys.key_list, name="keys"),
    path("keys/new", keys.key_create, name="key-create"),
    path("keys/<str:key_id>/revoke", keys.key_revoke, name="key-revoke"),
]

urlpatterns = [
    path("", home.home, name="home"),
    path("preferences/theme", shell.theme, name="theme"),
    path("account/", shell.account, name="account"),
    path("billing", billing.billing_home, name="billing-home"),
    path("invitations/<str:secret>", team.invitation, name="invitation"),
    path("new-team", team.team_create, name="team-create"),
    path("t/<slug:team_slug>", home.team_home),
    path("t/<slug:team_slug>/", include(of_a_team)),
]
