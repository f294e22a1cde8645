from __future__ import annotations

import stat
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command
from django.urls import reverse

from accounts.models import APIKey, Membership, Role, Team, User
from tests.api import Api

PASSWORD = "a long passphrase 123"


def test_signing_up_gives_a_user_a_team_and_its_ownership(client, db):
    response = client.post(
        reverse("account_signup"), {"email": "dora@example.com", "password1": PASSWORD}
    )
    assert response.status_code == 302
    user = User.objects.get(email="dora@example.com")
    membership = Membership.objects.get(user=user)
    assert (membership.role, membership.is_default) == (Role.OWNER, True)
    assert membership.team.is_personal
    assert membership.team.slug == "dora"


def test_sign_up_can_be_closed(client, db, settings):
    settings.SIGN_UP_IS_OPEN = False
    client.post(reverse("account_signup"), {"email": "e@example.com", "password1": PASSWORD})
    assert not User.objects.exists()


def test_a_weak_password_makes_no_user(client, db):
    client.post(reverse("account_signup"), {"email": "e@example.com", "password1": "12345"})
    assert not User.objects.exists()
    assert not Team.objects.exists()


def test_an_address_is_taken_whatever_its_case(client, alice, mailoutbox):
    client.post(reverse("account_signup"), {"email": "ALICE@example.com", "password1": PASSWORD})
    assert User.objects.count() == 1


def test_log_in_and_out(client, alice):
    login = {"login": "alice@example.com", "password": "a long passphrase"}
    assert client.post(reverse("account_login"), login).status_code == 302
    assert client.session["_auth_user_id"]
    client.post(reverse("account_logout"))
    assert "_auth_user_id" not in client.session


def test_a_forgotten_password_is_mailed_to_known_addresses_only(client, alice, mailoutbox):
    client.post(reverse("account_reset_password"), {"email": "alice@example.com"})
    assert [mail.to for mail in mailoutbox] == [["alice@example.com"]]
    assert "/accounts/password/reset/key/" in mailoutbox[0].body


@pytest.fixture
def state_dir(tmp_path, settings):
    settings.STATE_DIR = tmp_path
    return tmp_path


def ensure(capsys, *arguments: str) -> dict[str, str]:
    call_command("ensure_account", "--email", "Eve@example.com", "--print-env", *arguments)
    lines = capsys.readouterr().out.splitlines()
    return dict(line.removeprefix("export ").split("=", 1) for line in lines)


def test_the_command_prints_settings_that_work_and_nothing_else(db, state_dir, capsys):
    env = ensure(capsys)
    assert set(env) == {"E2B_API_URL", "E2B_SANDBOX_URL", "E2B_API_KEY", "E2B_DOMAIN"}
    assert Api({"X-API-Key": env["E2B_API_KEY"]}).get("/v2/sandboxes").status_code == 200


def test_the_command_again_prints_the_same_key(db, state_dir, capsys):
    assert ensure(capsys) == ensure(capsys)
    assert APIKey.objects.count() == 1
    [path] = (Path(state_dir) / "env").iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_key_that_was_revoked_is_replaced(db, state_dir, capsys):
    first = ensure(capsys)["E2B_API_KEY"]
    APIKey.objects.all().delete()
    second = ensure(capsys)["E2B_API_KEY"]
    assert first != second
    assert Api({"X-API-Key": second}).get("/v2/sandboxes").status_code == 200


def test_the_command_refuses_what_is_no_address(db, state_dir):
    with pytest.raises(CommandError, match="not an e-mail address"):
        call_command("ensure_account", "--email", "nobody")
    assert not User.objects.exists()
