"""Inviting, joining, roles and leaving, as pages do them."""

from __future__ import annotations

import re

import pytest
from django.core import mail
from django.test import Client
from django.utils import timezone

from accounts.members import invite
from accounts.models import AuditEvent, Invitation, Membership, Role, Team, User
from accounts.services import Actor
from tests.integration.frontend.conftest import client_of, make_user

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def mailbox(settings) -> None:
    settings.EMAIL_BACKEND = "django.core.mail.backends.locmem.EmailBackend"


def invited(client: Client, team: Team, email: str, role: str = "developer") -> str:
    """The path of the link that the mail holds."""
    client.post(f"/t/{team.slug}/members/invite", {"email": email, "role": role})
    found = re.search(r"https?://[^/\s]+(/invitations/\S+)", mail.outbox[-1].body)
    assert found
    return found[1]


def test_somebody_without_an_account_joins_by_mail(as_alice: Client, team: Team) -> None:
    path = invited(as_alice, team, "New@Example.com")
    assert mail.outbox[-1].to == ["new@example.com"]
    stranger = Client(headers={"accept": "text/html"})
    assert stranger.get(path).headers["Location"].startswith("/accounts/login/?next=")
    new = make_user("new@example.com")
    client = client_of(new)
    page = client.get(path)
    assert team.name.replace("'", "&#x27;") in page.content.decode()
    assert not Membership.objects.filter(user=new, team=team).exists()
    client.post(path)
    assert Membership.objects.get(user=new, team=team).role == Role.DEVELOPER
    assert client.post(path).status_code == 404  # used up
    actions = set(AuditEvent.objects.filter(team=team).values_list("action", flat=True))
    assert {"member.invited", "member.joined"} <= actions


def test_an_invitation_works_for_its_mailbox_only(
    as_alice: Client, as_charlie: Client, team: Team, charlie: User
) -> None:
    path = invited(as_alice, team, "somebody@example.com")
    assert as_charlie.get(path).status_code == 404
    assert as_charlie.post(path).status_code == 404
    assert not Membership.objects.filter(user=charlie, team=team).exists()


def test_an_old_or_withdrawn_invitation_does_not_work(
    as_alice: Client, team: Team, as_charlie: Client
) -> None:
    path = invited(as_alice, team, "charlie@example.com")
    Invitation.objects.update(expires_at=timezone.now())
    assert as_charlie.post(path).status_code == 404
    path = invited(as_alice, team, "charlie@example.com")
    invitation = Invitation.objects.get()
    as_alice.post(f"/t/{team.slug}/invitations/{invitation.public_id}/withdraw")
    assert as_charlie.post(path).status_code == 404


def test_inviting_twice_leaves_one_invitation(as_alice: Client, team: Team) -> None:
    first = invited(as_alice, team, "charlie@example.com")
    second = invited(as_alice, team, "charlie@example.com", "viewer")
    assert first != second
    assert Invitation.objects.get().role == Role.VIEWER


@pytest.mark.parametrize(
    "form",
    [
        {},
        {"email": "no", "role": "viewer"},
        {"email": "a@b.cd", "role": "emperor"},
        {"email": "a@b.cd"},
    ],
)
def test_a_bad_invitation_is_refused(form: dict[str, str], as_alice: Client, team: Team) -> None:
    assert as_alice.post(f"/t/{team.slug}/members/invite", form).status_code == 422
    assert not Invitation.objects.exists()


def test_a_team_name_cannot_add_a_header_to_the_mail(as_alice: Client, team: Team) -> None:
    Team.objects.filter(pk=team.pk).update(name="x\nBcc: evil@example.com")
    invited(as_alice, team, "new@example.com")
    assert mail.outbox[-1].recipients() == ["new@example.com"]


def test_admins_do_not_make_or_touch_owners(
    as_alice: Client, alice: User, bob: User, vera: User, team: Team
) -> None:
    Membership.objects.filter(user=bob, team=team).update(role=Role.ADMIN)
    as_bob = client_of(bob)
    base = f"/t/{team.slug}/members"
    assert as_bob.post(f"{base}/{vera.public_id}/role", {"role": "owner"}).status_code == 403
    assert as_bob.post(f"{base}/{alice.public_id}/role", {"role": "viewer"}).status_code == 403
    assert as_bob.post(f"{base}/{alice.public_id}/remove").status_code == 403
    refused = as_bob.post(f"{base}/invite", {"email": "x@example.com", "role": "owner"})
    assert refused.status_code == 422
    assert as_bob.post(f"{base}/{vera.public_id}/role", {"role": "developer"}).status_code == 302
    assert Membership.objects.get(user=vera, team=team).role == Role.DEVELOPER


def test_the_last_owner_stays(as_alice: Client, alice: User, bob: User, team: Team) -> None:
    base = f"/t/{team.slug}/members/{alice.public_id}"
    assert as_alice.post(f"{base}/remove").status_code == 409
    assert as_alice.post(f"{base}/role", {"role": "viewer"}).status_code == 409
    as_alice.post(f"/t/{team.slug}/members/{bob.public_id}/role", {"role": "owner"})
    assert as_alice.post(f"{base}/role", {"role": "viewer"}).status_code == 302
    assert Membership.objects.get(user=alice, team=team).role == Role.VIEWER


def test_anybody_may_leave(vera: User, as_vera: Client, team: Team) -> None:
    response = as_vera.post(f"/t/{team.slug}/members/{vera.public_id}/remove")
    assert response.status_code == 302
    assert as_vera.get(f"/t/{team.slug}/").status_code == 404


def test_a_viewer_removes_nobody_else(as_vera: Client, bob: User, team: Team) -> None:
    assert as_vera.post(f"/t/{team.slug}/members/{bob.public_id}/remove").status_code == 403
    assert Membership.objects.filter(user=bob, team=team).exists()


def test_open_invitations_are_bounded(alice: User, team: Team, as_alice: Client) -> None:
    by = Membership.objects.get(user=alice, team=team)
    for index in range(50):
        invite(
            team=team,
            email=f"p{index}@example.com",
            role=Role.VIEWER,
            by=by,
            actor=Actor.of_user(alice),
            now=timezone.now(),
        )
    response = as_alice.post(
        f"/t/{team.slug}/members/invite", {"email": "one@example.com", "role": "viewer"}
    )
    assert response.status_code == 429


def test_teams_are_founded_and_renamed(as_alice: Client, alice: User, team: Team) -> None:
    response = as_alice.post("/new-team", {"name": "Second team"})
    second = Team.objects.get(name="Second team")
    assert response.headers["Location"] == f"/t/{second.slug}/"
    assert Membership.objects.get(team=second, user=alice).role == Role.OWNER
    assert as_alice.post("/new-team", {"name": " "}).status_code == 400
    as_alice.post(f"/t/{team.slug}/rename", {"name": "Acme"})
    team.refresh_from_db()
    assert team.name == "Acme"
