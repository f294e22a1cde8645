from __future__ import annotations

import uuid

import pytest

from accounts.models import APIKey, AuditEvent
from tests.api import Api, as_user, check_error

KEY_FIELDS = {"id", "name", "mask", "createdAt", "createdBy", "key"}


def test_a_key_is_shown_once_and_works(alice):
    made = as_user(alice).post("/api-keys", {"name": "ci"})
    assert made.status_code == 201
    assert set(made.data) == KEY_FIELDS
    clear = made.data["key"]
    assert made.data["mask"] == {
        "prefix": "e2b_",
        "valueLength": 40,
        "maskedValuePrefix": clear[4:6],
        "maskedValueSuffix": clear[-4:],
    }
    assert Api({"X-API-Key": clear}).get("/v2/sandboxes").status_code == 200
    listed = as_user(alice).get("/api-keys").data
    assert made.data["id"] in [key["id"] for key in listed]
    assert all("key" not in key for key in listed)


@pytest.mark.parametrize("body", [None, {}, {"name": ""}, {"name": 5}, {"name": "x" * 101}, []])
def test_a_key_needs_a_name(alice, body):
    response = as_user(alice).post("/api-keys", body)
    check_error(response, 400, "validation error")
    assert APIKey.objects.filter(team=alice.team).count() == 1


def test_a_name_of_blanks_is_no_name(alice):
    check_error(as_user(alice).post("/api-keys", {"name": "  "}), 400, "printable")


def test_a_key_is_renamed(alice):
    key = APIKey.objects.get(team=alice.team)
    response = as_user(alice).patch(f"/api-keys/{key.public_id}", {"name": "new"})
    assert (response.status_code, response.content) == (202, b"")
    key.refresh_from_db()
    assert key.name == "new"


def test_a_deleted_key_is_gone(alice, api):
    key = APIKey.objects.get(team=alice.team)
    path = f"/api-keys/{key.public_id}"
    assert as_user(alice).delete(path).status_code == 204
    assert api.get("/v2/sandboxes").status_code == 401
    check_error(as_user(alice).delete(path), 404, "id not found")
    assert as_user(alice).get("/api-keys").data == []


@pytest.mark.parametrize("method", ["patch", "delete"])
def test_charlie_cannot_touch_alices_key(alice, charlie, method):
    key = APIKey.objects.get(team=alice.team)
    body = {"name": "mine"} if method == "patch" else None
    response = getattr(as_user(charlie), method)(f"/api-keys/{key.public_id}", body)
    check_error(response, 404, "id not found")
    key.refresh_from_db()
    assert (key.name, key.revoked_at) == ("test key", None)


@pytest.mark.parametrize("method", ["patch", "delete"])
def test_an_id_that_is_none_is_refused(alice, method):
    body = {"name": "x"} if method == "patch" else None
    check_error(getattr(as_user(alice), method)("/api-keys/7", body), 400, "Error when parsing")
    unknown = f"/api-keys/{uuid.uuid4()}"
    check_error(getattr(as_user(alice), method)(unknown, body), 404, "id not found")


def test_what_happens_to_keys_is_audited_without_secrets(alice):
    made = as_user(alice).post("/api-keys", {"name": "ci"}).data
    as_user(alice).delete(f"/api-keys/{made['id']}")
    events = AuditEvent.objects.filter(team=alice.team, target=made["id"]).order_by("pk")
    assert [event.action for event in events] == ["api_key.created", "api_key.revoked"]
    assert all(event.actor_user == alice.user for event in events)
    assert made["key"] not in str(list(events.values()))


def test_teams_come_with_a_key_that_works(alice):
    [team] = Api({"Authorization": f"Bearer {alice.token}"}).get("/teams").data
    assert (team["teamID"], team["isDefault"]) == (str(alice.team.public_id), True)
    assert Api({"X-API-Key": team["apiKey"]}).get("/v2/sandboxes").status_code == 200


def test_an_access_token_is_made_and_deleted(alice):
    user = Api({"Authorization": f"Bearer {alice.token}"})
    made = user.post("/access-tokens", {"name": "laptop"}).data
    fresh = Api({"Authorization": f"Bearer {made['token']}"})
    assert fresh.get("/teams").status_code == 200
    assert user.delete(f"/access-tokens/{made['id']}").status_code == 204
    assert fresh.get("/teams").status_code == 401


def test_charlie_cannot_delete_alices_token(alice, charlie):
    token = alice.user.access_tokens.get()
    stranger = Api({"Authorization": f"Bearer {charlie.token}"})
    check_error(stranger.delete(f"/access-tokens/{token.public_id}"), 404, "id not found")


def test_the_operator_makes_and_deletes_a_key(alice, settings):
    settings.ADMIN_TOKEN = "operator-secret"
    admin = Api({"X-Admin-Token": "operator-secret"})
    path = f"/admin/teams/{alice.team.public_id}/api-keys"
    made = admin.post(path, {"name": "ops"}).data
    assert Api({"X-API-Key": made["key"]}).get("/v2/sandboxes").status_code == 200
    assert admin.delete(f"{path}/{made['id']}").status_code == 204
    check_error(admin.delete(f"{path}/{made['id']}"), 404, "API key not found")
    check_error(admin.post(f"/admin/teams/{uuid.uuid4()}/api-keys", {"name": "x"}), 404, "Team")
