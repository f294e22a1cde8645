"""Who may open and do what. Every page and action, with Charlie and with the lesser roles."""

from __future__ import annotations

import re

import pytest
from django.test import Client
from django.urls import URLPattern, URLResolver, get_resolver, reverse

from accounts.models import APIKey, Membership, Role, Team, User
from accounts.services import create_api_key
from frontend import urls
from sandboxes.models import Sandbox
from templates_app.models import Template
from tests.integration.frontend.conftest import client_of

pytestmark = pytest.mark.django_db

# Actions by name, with what they need; all other routes are pages to read.
ACTIONS = {
    "home-key": "developer",
    "sandbox-create": "developer",
    "sandboxes-change": "developer",
    "sandbox-kill": "developer",
    "sandbox-pause": "developer",
    "sandbox-resume": "developer",
    "sandbox-timeout": "developer",
    "sandbox-snapshot": "developer",
    "template-public": "admin",
    "template-tag": "admin",
    "template-delete": "admin",
    "files-save": "developer",
    "files-upload": "developer",
    "files-create": "developer",
    "files-remove": "developer",
    "key-create": "developer",
    "key-revoke": "developer",
    "member-invite": "admin",
    "member-role": "admin",
    "invitation-withdraw": "admin",
    "team-rename": "admin",
}
# Actions that anybody may do to themselves.
OWN_ACTIONS = {"member-remove"}
# Pages of money have their own tests of roles.
MONEY = ("usage", "billing", "invoice", "books")
ADMIN_PAGES = {"audit", "audit-export"}
OPERATOR_PAGES = {"nodes"}
# Pages that go inside the sandbox; their own tests have one that answers.
NEEDS_A_NODE = {"files", "files-download", "sandbox-ports"}


def team_routes() -> list[str]:
    names = []

    def collect(patterns: list[URLPattern | URLResolver]) -> None:
        for pattern in patterns:
            if isinstance(pattern, URLResolver):
                collect(pattern.url_patterns)
            elif pattern.name:
                names.append(pattern.name)

    collect(urls.of_a_team)
    return names


def readable_routes() -> list[str]:
    names = set(team_routes()) - set(ACTIONS) - OWN_ACTIONS - NEEDS_A_NODE
    return sorted(name for name in names if not name.startswith(MONEY))


@pytest.fixture
def address(team: Team, sandbox: Sandbox, template: Template, alice: User):
    key, _ = create_api_key(team=team, name="laptop", created_by=alice)

    def of(name: str) -> str:
        known = {
            "team_slug": team.slug,
            "sandbox_id": sandbox.public_id,
            "key_id": key.public_id,
            "template_id": template.public_id,
            "build_id": template.builds.get().public_id,
            "user_id": alice.public_id,
        }
        pages = get_resolver().namespace_dict["frontend"][1]
        (_, arguments), *_ = pages.reverse_dict.getlist(name)[0][0]
        return reverse(f"frontend:{name}", kwargs={each: known.get(each, 1) for each in arguments})

    return of


def test_charlie_finds_nothing(as_charlie: Client, address) -> None:
    for name in team_routes():
        url = address(name)
        answers = {as_charlie.get(url).status_code, as_charlie.post(url).status_code}
        assert answers in ({404}, {404, 405}), name


def test_charlie_cannot_tell_a_foreign_team_from_none(
    as_charlie: Client, team: Team, charlie: User
) -> None:
    foreign = as_charlie.get(f"/t/{team.slug}/sandboxes")
    absent = as_charlie.get("/t/no-such-team/sandboxes")
    assert foreign.status_code == absent.status_code == 404
    assert team.name not in foreign.content.decode()


def test_a_sandbox_is_not_reached_through_another_team(
    as_charlie: Client, charlie: User, sandbox: Sandbox
) -> None:
    own = Team.objects.get(memberships__user=charlie)
    for tail in ("", "/logs", "/metrics", "/monitoring", "/terminal", "/files", "/logs.txt"):
        response = as_charlie.get(f"/t/{own.slug}/sandboxes/{sandbox.public_id}{tail}")
        assert response.status_code == 404, tail
    response = as_charlie.post(f"/t/{own.slug}/sandboxes/{sandbox.public_id}/kill")
    assert response.status_code == 404
    sandbox.refresh_from_db()
    assert sandbox.state == "running"


def test_a_viewer_may_do_nothing(as_vera: Client, address) -> None:
    for name in sorted(ACTIONS):
        assert as_vera.post(address(name)).status_code == 403, name


def test_a_viewer_may_read(as_vera: Client, address) -> None:
    for name in readable_routes():
        expected = 403 if name in ADMIN_PAGES else 404 if name in OPERATOR_PAGES else 200
        assert as_vera.get(address(name)).status_code == expected, name


def test_who_is_not_logged_in_is_sent_to_log_in(client: Client, address) -> None:
    for name in team_routes():
        url = address(name)
        responses = [client.get(url), client.post(url)]
        assert {response.status_code for response in responses} <= {302, 405}, name
        for response in responses:
            if response.status_code == 302:
                assert response.headers["Location"].startswith("/accounts/login/")


def test_actions_want_a_csrf_token(alice: User, address) -> None:
    for name in sorted(ACTIONS):
        client = Client(enforce_csrf_checks=True)
        client.force_login(alice)
        assert client.post(address(name)).status_code == 403, name


def test_actions_do_not_happen_by_a_link(as_alice: Client, address) -> None:
    for name in sorted(ACTIONS):
        assert as_alice.get(address(name)).status_code == 405, name


def test_a_viewer_sees_no_buttons_that_do_not_work(
    as_vera: Client, team: Team, sandbox: Sandbox
) -> None:
    rows = as_vera.get(f"/t/{team.slug}/sandboxes").content.decode()
    assert sandbox.public_id in rows
    assert "/kill" not in rows
    assert "new-sandbox" not in rows
    keys = as_vera.get(f"/t/{team.slug}/keys").content.decode()
    assert "New key" not in keys
    assert "/revoke" not in keys


def test_a_developer_does_not_see_the_audit_log(bob: User, team: Team) -> None:
    client = client_of(bob)
    assert client.get(f"/t/{team.slug}/audit").status_code == 403
    assert f"/t/{team.slug}/audit" not in client.get(f"/t/{team.slug}/").content.decode()


def test_nodes_are_for_operators(alice: User, as_alice: Client, team: Team, node: object) -> None:
    assert as_alice.get(f"/t/{team.slug}/nodes").status_code == 404
    User.objects.filter(pk=alice.pk).update(is_staff=True)
    assert as_alice.get(f"/t/{team.slug}/nodes").status_code == 200


def test_leaving_a_team_closes_its_pages(vera: User, as_vera: Client, team: Team) -> None:
    assert as_vera.get(f"/t/{team.slug}/").status_code == 200
    Membership.objects.filter(user=vera, team=team).delete()
    assert as_vera.get(f"/t/{team.slug}/").status_code == 404


def test_a_banned_team_has_no_pages(as_alice: Client, team: Team) -> None:
    Team.objects.filter(pk=team.pk).update(is_banned=True)
    assert as_alice.get(f"/t/{team.slug}/").status_code == 404


def test_a_key_of_another_team_is_not_revoked(
    as_charlie: Client, charlie: User, team: Team, alice: User
) -> None:
    key, _ = create_api_key(team=team, name="laptop", created_by=alice)
    own = Team.objects.get(memberships__user=charlie)
    assert as_charlie.post(f"/t/{own.slug}/keys/{key.public_id}/revoke").status_code == 404
    assert APIKey.objects.get(pk=key.pk).revoked_at is None


def test_pages_carry_a_strict_policy_and_are_not_cached(as_alice: Client, team: Team) -> None:
    response = as_alice.get(f"/t/{team.slug}/sandboxes")
    policy = response.headers["Content-Security-Policy"]
    assert "unsafe-inline" not in policy
    assert "unsafe-eval" not in policy
    assert "default-src 'none'" in policy
    assert response.headers["Cache-Control"] == "no-store"


def test_pages_hold_no_inline_script_style_or_handler(
    as_alice: Client, team: Team, address
) -> None:
    names = set(readable_routes()) - OPERATOR_PAGES - {"sandbox-logs-download"}
    for name in sorted(names):
        text = as_alice.get(address(name)).content.decode()
        assert not re.search(r"<script(?![^>]*\ssrc=)[^>]*>", text), name
        assert "<style" not in text, name
        assert not re.search(r"<[a-z][^>]*\s(style|on[a-z]+)=", text), name


def test_every_role_is_covered() -> None:
    assert set(Role) == {Role.OWNER, Role.ADMIN, Role.DEVELOPER, Role.VIEWER}
