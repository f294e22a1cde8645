from __future__ import annotations

from datetime import timedelta

import pytest
from django.utils import timezone

from accounts.models import APIKey, Membership, Role, Team
from accounts.services import SYSTEM, create_api_key, revoke_api_key
from tests.api import Api, api_of, as_user, check_error
from tests.factories import join, make_person, make_user

PATH = "/v2/sandboxes"


def key_of(person):
    return APIKey.objects.get(team=person.team)


def test_a_key_opens_its_team(api):
    assert api.get(PATH).status_code == 200


def test_header_names_and_body_do_not_matter_before_the_caller_is_known(db):
    response = Api().post("/sandboxes", b"{not json")
    check_error(response, 401, "authorization header is missing")


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ({}, "authorization header is missing"),
        ({"X-API-Key": "nope"}, "authorization header is malformed"),
        ({"X-API-Key": "e2b_xyz"}, "Invalid API key format"),
        ({"X-API-Key": "e2b_"}, "Invalid API key format"),
        ({"X-API-Key": "e2b_" + "0" * 40}, "Cannot get the team for the given API key"),
        ({"Authorization": "Basic x"}, "authorization header is malformed"),
        ({"X-Admin-Token": "wrong"}, "Invalid Access token."),
    ],
)
def test_a_caller_without_a_good_credential_is_refused(db, headers, message):
    check_error(Api(headers).get(PATH), 401, message)


def test_the_first_schemes_error_is_told(db, alice):
    headers = {"X-API-Key": "e2b_zz", "Authorization": "Bearer sk_e2b_zz", "X-Team-ID": "x"}
    check_error(Api(headers).get(PATH), 401, "Invalid API key format")


def test_a_later_scheme_may_succeed(alice):
    assert Api({**alice.user_headers, "X-API-Key": "e2b_zz"}).get(PATH).status_code == 200


def test_only_a_keyed_hash_is_stored(alice):
    key = key_of(alice)
    digits = alice.key.removeprefix("e2b_")
    assert len(digits) == 40
    assert digits not in key.secret_hash
    assert key.mask == f"e2b_{digits[:2]}…{digits[-4:]}"


def test_a_revoked_key_opens_nothing(alice, api):
    revoke_api_key(key=key_of(alice), actor=SYSTEM, now=timezone.now())
    check_error(api.get(PATH), 401, "Cannot get the team")


def test_an_expired_key_opens_nothing(alice):
    past = timezone.now() - timedelta(seconds=1)
    _, clear = create_api_key(team=alice.team, name="old", expires_at=past)
    check_error(Api({"X-API-Key": clear}).get(PATH), 401, "Cannot get the team")


def test_a_use_is_noted_at_most_once_a_minute(alice, api):
    api.get(PATH)
    first = key_of(alice).last_used_at
    assert first is not None
    api.get(PATH)
    assert key_of(alice).last_used_at == first


def test_authentication_costs_one_query(alice, api, django_assert_num_queries):
    api.get(PATH)  # notes the use
    with django_assert_num_queries(1):
        api.post("/sandboxes", b"{not json")


@pytest.mark.parametrize("method", ["get", "post"])
def test_a_banned_team_is_refused_everywhere(alice, api, method):
    Team.objects.filter(pk=alice.team.pk).update(is_banned=True)
    check_error(getattr(api, method)("/sandboxes"), 403, "team is banned")


def test_a_blocked_team_may_look_and_clean_up_only(alice, api):
    Team.objects.filter(pk=alice.team.pk).update(is_blocked=True, blocked_reason="unpaid")
    assert api.get(PATH).status_code == 200
    check_error(api.post("/sandboxes", {"templateID": "base"}), 403, "team is blocked: unpaid")
    check_error(api.delete("/sandboxes/iunknown"), 404, "doesn't exist")


def test_a_member_acts_in_the_team(alice):
    assert as_user(alice).get("/api-keys").status_code == 200


def test_a_user_who_is_not_in_the_team_is_refused(alice, charlie):
    headers = {**charlie.user_headers, "X-Team-ID": str(alice.team.public_id)}
    check_error(Api(headers).get("/api-keys"), 401, "Invalid auth provider token teamID.")


@pytest.mark.parametrize("team_id", ["x", "", "00000000-0000-0000-0000-000000000000"])
def test_a_bad_team_header_is_refused(alice, team_id):
    headers = {**alice.user_headers, "X-Team-ID": team_id}
    assert Api(headers).get("/api-keys").status_code == 401


def test_a_viewer_may_only_look(alice):
    viewer = make_person("victor")
    join(alice.team, viewer.user, Role.VIEWER)
    headers = {**viewer.user_headers, "X-Team-ID": str(alice.team.public_id)}
    assert Api(headers).get(PATH).status_code == 200
    check_error(Api(headers).post("/api-keys", {"name": "x"}), 403, "Your role")


def test_a_strangers_jwt_is_refused(db):
    check_error(Api({"Authorization": "Bearer a.b.c"}).get("/teams"), 401, "Invalid auth provider")


def test_the_operator_acts_as_a_team(alice, settings):
    settings.ADMIN_TOKEN = "operator-secret"
    headers = {"X-Admin-Token": "operator-secret"}
    team = {"X-Team-ID": str(alice.team.public_id)}
    assert Api({**headers, **team}).get(PATH).status_code == 200
    check_error(Api(headers).get(PATH), 401, "Invalid admin token teamID.")


def test_without_an_admin_token_nobody_is_the_operator(db, settings):
    settings.ADMIN_TOKEN = ""
    check_error(Api({"X-Admin-Token": ""}).get("/nodes"), 401, "Invalid Access token.")


def test_a_key_does_not_open_the_operators_routes(api):
    check_error(api.get("/nodes"), 401, "authorization header is missing")


def test_a_user_without_a_team_is_told_so(db):
    person = make_person()
    Membership.objects.filter(user=person.user).delete()
    headers = {"Authorization": f"Bearer {person.token}"}
    check_error(Api(headers).get("/templates"), 403, "You don't have access to any teams")


def test_a_user_may_name_the_team_of_a_list(alice, charlie):
    headers = {"Authorization": f"Bearer {alice.token}"}
    own, foreign = alice.team.public_id, charlie.team.public_id
    assert Api(headers).get(f"/templates?teamID={own}").status_code == 200
    check_error(Api(headers).get(f"/templates?teamID={foreign}"), 403, "You are not allowed")


def test_an_inactive_user_is_refused(alice):
    alice.user.is_active = False
    alice.user.save()
    assert as_user(alice).get("/api-keys").status_code == 401
    assert api_of(alice).get(PATH).status_code == 200  # the team's key is the team's


def test_a_name_gives_each_team_a_slug_of_its_own(db):
    teams = {make_person().team.slug, make_person().team.slug}
    user = make_user("same.name")
    assert len(teams) == 2
    assert user.get_short_name() == "same.name"
