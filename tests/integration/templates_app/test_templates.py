from __future__ import annotations

from urllib.parse import quote

import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone

from sandboxes.lifecycle import State
from templates_app.models import Template, TemplateAlias, TemplateBuild, TemplateKind
from tests.api import check_error
from tests.factories import make_build, make_sandbox, make_template

ENTRY = {
    "templateID",
    "buildID",
    "cpuCount",
    "memoryMB",
    "diskSizeMB",
    "public",
    "aliases",
    "names",
    "createdAt",
    "updatedAt",
    "createdBy",
    "lastSpawnedAt",
    "spawnCount",
    "buildCount",
    "envdVersion",
    "buildStatus",
}


@pytest.fixture
def mine(alice):
    return make_template("mine", team=alice.team)


def test_a_list_shows_the_teams_own_templates(api, alice, charlie, mine):
    make_template("base")
    make_template("theirs", team=charlie.team)
    make_template(team=alice.team, kind=TemplateKind.SNAPSHOT)
    Template.objects.create(team=alice.team, deleted_at=timezone.now())
    [entry] = api.get("/templates").data
    assert set(entry) == ENTRY
    assert entry["templateID"] == mine.public_id
    assert (entry["aliases"], entry["names"]) == (["mine"], ["alice/mine"])
    assert (entry["createdBy"], entry["lastSpawnedAt"]) == (None, None)
    assert entry["buildStatus"] == "ready"


def test_another_teams_id_in_the_query_is_refused(api, charlie):
    response = api.get(f"/templates?teamID={charlie.team.public_id}")
    check_error(response, 400, "Team ID param mismatch with the API key")


def test_pages_hold_everything_once_newest_first(api, alice):
    made = [make_template(f"t{index}", team=alice.team).public_id for index in range(5)]
    seen, token = [], ""
    while True:
        page = api.get(f"/v2/templates?limit=2{token}")
        seen += [entry["templateID"] for entry in page.data]
        if "X-Next-Token" not in page.headers:
            break
        token = f"&nextToken={page.headers['X-Next-Token']}"
    assert seen == made[::-1]


@pytest.mark.parametrize("query", ["limit=0", "limit=101", "limit=x", "nextToken=x"])
def test_a_bad_page_is_refused(api, query):
    assert api.get(f"/v2/templates?{query}").status_code == 400


def test_the_list_of_many_costs_as_many_queries_as_that_of_one(
    api, alice, mine, django_assert_max_num_queries
):
    for index in range(10):
        make_template(f"t{index}", team=alice.team)
    with django_assert_max_num_queries(5):
        assert len(api.get("/templates").data) == 11


@pytest.mark.parametrize("reference", ["mine", "alice/mine", "alice/mine:v9"])
def test_a_template_is_found_by_its_names(api, mine, reference):
    body = api.get(f"/templates/{quote(reference, safe='')}").data
    assert body["templateID"] == mine.public_id
    assert [build["status"] for build in body["builds"]] == ["ready"]
    assert set(body) >= ENTRY


def test_a_template_shows_its_builds_newest_first(api, mine):
    newer = make_build(mine)
    body = api.get(f"/templates/{mine.public_id}?limit=1")
    assert [build["buildID"] for build in body.data["builds"]] == [str(newer.public_id)]
    assert "X-Next-Token" in body.headers


def test_charlie_sees_neither_template_nor_tags(other_api, mine):
    assert other_api.get(f"/templates/{mine.public_id}").status_code == 403
    assert other_api.get(f"/templates/{mine.public_id}/tags").status_code == 403
    assert other_api.patch(f"/v2/templates/{mine.public_id}", {"public": True}).status_code == 403
    assert other_api.delete(f"/templates/{mine.public_id}").status_code == 403
    mine.refresh_from_db()
    assert (mine.is_public, mine.deleted_at) == (False, None)


def test_a_public_template_is_not_for_others_to_change(other_api, mine):
    Template.objects.filter(pk=mine.pk).update(is_public=True)
    assert other_api.get(f"/templates/{mine.public_id}").status_code == 200
    assert other_api.delete(f"/templates/{mine.public_id}").status_code == 403
    response = other_api.post("/templates/tags", {"target": mine.public_id, "tags": ["x"]})
    assert response.status_code == 403


def test_what_does_not_exist_is_not_found(api):
    check_error(api.get("/templates/nothing"), 404, "Template nothing not found")
    check_error(api.get("/templates/a%20b"), 400, "Invalid template ID")


def test_publishing_answers_the_names(api, mine):
    response = api.patch(f"/v2/templates/{mine.public_id}", {"public": True})
    assert (response.status_code, response.data) == (200, {"names": ["alice/mine"]})
    mine.refresh_from_db()
    assert mine.is_public


def test_the_older_publishing_takes_the_bare_name(api, other_api, alice, charlie, mine):
    assert api.patch(f"/templates/{mine.public_id}", {"public": True}).content == b"null"
    assert TemplateAlias.objects.filter(namespace=None, alias="mine").exists()
    theirs = make_template("mine", team=charlie.team)
    response = other_api.patch(f"/templates/{theirs.public_id}", {"public": True})
    check_error(response, 409, "Public template name 'mine' is already taken.")
    theirs.refresh_from_db()
    assert not theirs.is_public


@pytest.mark.parametrize("reference", ["mine", "alice/mine", "alice/mine:default"])
def test_a_deleted_template_frees_its_name(api, alice, mine, reference):
    path = f"/templates/{quote(reference, safe='')}"
    assert api.delete(path).status_code == 204
    check_error(api.delete(path), 404, "not found")
    assert api.get("/templates").data == []
    make_template("mine", team=alice.team)


@pytest.mark.parametrize(("state", "word"), [(State.RUNNING, "running"), (State.PAUSED, "paused")])
def test_a_template_in_use_is_not_deleted(api, alice, mine, state, word):
    make_sandbox(alice.team, template=mine, state=state)
    response = api.delete(f"/templates/{mine.public_id}")
    check_error(response, 400, f"because there are {word} sandboxes using it")
    mine.refresh_from_db()
    assert mine.deleted_at is None


def test_an_alias_exists_for_those_who_may_use_it(api, other_api, mine):
    base = make_template("base")
    assert api.get("/templates/aliases/base").data == {
        "templateID": base.public_id,
        "public": True,
    }
    assert api.get("/templates/aliases/mine").status_code == 200
    assert api.get("/templates/aliases/no-such-name").status_code == 404
    check_error(api.get("/templates/aliases/mine%3Av7"), 404, "tag 'v7' does not exist")
    response = other_api.get("/templates/aliases/alice%2Fmine")
    check_error(response, 403, "You don't have access to this template alias")
    check_error(api.get("/templates/aliases/a%20b"), 400, "Invalid alias format")


def test_the_teams_own_name_comes_before_the_global_one(api, other_api, alice):
    base = make_template("base")
    own = make_template("base", team=alice.team)
    assert api.get("/templates/aliases/base").data["templateID"] == own.public_id
    assert other_api.get("/templates/aliases/base").data["templateID"] == base.public_id


def test_tags_point_at_builds_and_the_newest_counts(api, mine):
    first = mine.builds.get()
    response = api.post("/templates/tags", {"target": "mine", "tags": ["V1", "v1", "prod"]})
    assert response.status_code == 201
    assert response.data == {"tags": ["v1", "prod"], "buildID": str(first.public_id)}
    second = make_build(mine)
    api.post("/templates/tags", {"target": "alice/mine", "tags": ["prod"]})
    tags = api.get("/templates/mine/tags").data
    assert [(tag["tag"], tag["buildID"]) for tag in tags] == [
        ("default", str(second.public_id)),
        ("prod", str(second.public_id)),
        ("v1", str(first.public_id)),
    ]


def test_a_tag_is_removed(api, mine):
    api.post("/templates/tags", {"target": "mine", "tags": ["v1"]})
    assert api.delete("/templates/tags", {"name": "mine", "tags": ["v1"]}).status_code == 204
    assert [tag["tag"] for tag in api.get("/templates/mine/tags").data] == ["default"]


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"target": "mine", "tags": []}, 400, "At least one tag is required"),
        ({"target": "mine", "tags": [":v1"]}, 400, "Invalid tag"),
        ({"target": "mine", "tags": ["v1:"]}, 400, "Invalid tag"),
        (
            {"target": "mine", "tags": ["12345678-1234-1234-1234-123456789abc"]},
            400,
            "tag cannot be a UUID",
        ),
        ({"target": "a b", "tags": ["v"]}, 400, "Invalid target template format"),
        ({"target": "other/mine", "tags": ["v"]}, 400, "must match your team"),
        ({"target": "mine:v9", "tags": ["v"]}, 404, "Template 'mine:v9' with tag 'v9' not found"),
        ({"target": "nope", "tags": ["v"]}, 404, "not found"),
        ({"target": "base", "tags": ["v"]}, 403, "You don't have access"),
        ({"target": "mine"}, 400, "validation error"),
    ],
)
def test_bad_assignments_change_nothing(api, mine, body, status, message):
    make_template("base")
    check_error(api.post("/templates/tags", body), status, message)
    assert mine.tags.count() == 1


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"name": "mine", "tags": ["default"]}, "Cannot delete the 'default' tag"),
        ({"name": "mine:v1", "tags": ["v1"]}, "should not contain a tag"),
        ({"name": "mine", "tags": []}, "At least one"),
    ],
)
def test_bad_removals_change_nothing(api, mine, body, message):
    check_error(api.delete("/templates/tags", body), 400, message)
    assert mine.tags.count() == 1


def test_the_platforms_templates_are_listed_without_others_use(api):
    Template.objects.filter(pk=make_template("base").pk).update(spawn_count=9)
    [entry] = api.get("/default-templates").data
    assert (entry["names"], entry["spawnCount"], entry["isDefault"]) == (["base"], 0, True)


def ensure(*extra: str) -> None:
    call_command(
        "ensure_template",
        "--name=base",
        "--image=sandlot/base:latest",
        "--public",
        *(extra or ("--image-id=sha256:1",)),
    )


def test_a_platform_template_is_made_once(db, api):
    ensure()
    ensure()
    assert TemplateBuild.objects.count() == 1
    [entry] = api.get("/default-templates").data
    assert (entry["names"], entry["public"]) == (["base"], True)


def test_a_new_image_or_setting_is_a_new_build(db):
    ensure()
    ensure("--image-id=sha256:2")
    ensure("--image-id=sha256:2", "--memory=2048")
    assert Template.objects.count() == 1
    newest = TemplateBuild.objects.latest("pk")
    assert (TemplateBuild.objects.count(), newest.memory_mb) == (3, 2048)
    assert newest.tags.get().tag == "default"


@pytest.mark.parametrize("option", ["--name=a/b", "--name=a b", "--cpu=0", "--env=novalue"])
def test_bad_options_of_the_command_are_refused(db, option):
    with pytest.raises(CommandError):
        ensure("--image-id=x", option)
    assert not Template.objects.exists()
